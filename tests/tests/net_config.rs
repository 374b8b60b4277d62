//! netd's configuration, and what it says of the host: what is wrong is named, and costs no lease that is there.

use netd_api::{Forward, Protocol, Refusal};
use rustix::process::Signal;
use vmsup_tests::netd::{NetHost, default_network, stranger, tenant};
use vmsup_tests::{as_root, eventually, user};

#[test]
fn a_good_configuration_is_applied_and_a_wrong_one_refused_with_leases_kept() {
    if !as_root("a_good_configuration_is_applied_and_a_wrong_one_refused_with_leases_kept") {
        return;
    }
    let host = NetHost::start(&default_network("pool = 0"));
    let client = host.client(tenant());
    let wire = client.lease_with("default", 1, &[Forward { protocol: Protocol::Tcp, host: 8080, guest: 80 }]).unwrap();
    // A wrong one: refused whole, although the new network in it is right.
    let more = "[[network]]\nname = \"more\"\nbridge = \"vmsup1\"\nsubnet = \"10.78.0.1/24\"\npool = 0\n";
    let who = format!("users = [{}]\n", user::with_subuids().uid);
    host.configure(&format!("{}\n{more}{who}mtu = \"many\"\n", default_network("pool = 0")));
    host.signal(Signal::HUP);
    eventually("the refusal in the log", || host.log().contains("mtu"));
    assert_eq!(client.networks().len(), 1, "{}", host.log());
    assert_eq!(client.leases().len(), 1);
    // None at all is no wish to have no networks.
    host.without_configuration();
    host.signal(Signal::HUP);
    eventually("the refusal in the log", || host.log().contains("No such file"));
    assert_eq!((client.networks().len(), client.leases().len()), (1, 1), "{}", host.log());
    // A right one.
    host.configure(&format!("{}\n{more}{who}", default_network("leases = 1\npool = 0")));
    host.signal(Signal::HUP);
    eventually("the new network", || client.networks().len() == 2);
    host.works(tenant(), "more");
    assert_eq!(client.lease("default", 2).unwrap_err(), Refusal::Quota { limit: 1 }, "the new quota, the old lease");
    assert_eq!(client.leases().len(), 1);
    assert!(wire.passes());
}

#[test]
fn a_network_that_is_taken_out_of_the_configuration_keeps_its_leases_until_they_end() {
    if !as_root("a_network_that_is_taken_out_of_the_configuration_keeps_its_leases_until_they_end") {
        return;
    }
    let name = user::with_subuids().name;
    let other = format!(
        "[[network]]\nname = \"other\"\nbridge = \"vmsup1\"\nsubnet = \"10.78.0.1/24\"\nusers = [\"{name}\"]\npool = 0\n"
    );
    let host = NetHost::start(&format!("{}\n{other}", default_network("pool = 0")));
    let client = host.client(tenant());
    let wire = client.lease("default", 1).unwrap();
    host.configure(&other);
    host.signal(Signal::HUP);
    eventually("the network to go", || client.networks().iter().all(|n| n.name != "default"));
    assert_eq!(client.lease("default", 2).unwrap_err(), Refusal::NoSuchNetwork);
    assert!(host.leased(&wire.lease.interface), "{}", host.log());
    assert!(wire.passes());
    let name = wire.lease.interface.clone();
    drop(wire);
    eventually("its end", || !host.leased(&name) && client.leases().is_empty());
}

#[test]
fn a_wrong_configuration_is_named_with_line_and_reason() {
    if !as_root("a_wrong_configuration_is_named_with_line_and_reason") {
        return;
    }
    let head = "[[network]]\nname = \"default\"\nbridge = \"vmsup0\"\nsubnet = \"10.77.0.1/24\"\n";
    let host = NetHost::without_netd(head);
    let good = host.command(&["--check"]).output().unwrap();
    assert!(good.status.success(), "{good:?}");
    let second = |lines: &str| {
        format!("{head}[[network]]\nname = \"b\"\nbridge = \"vmsup1\"\nsubnet = \"10.78.0.1/24\"\n{lines}")
    };
    let cases = [
        // What is wrong, the line, a word of the reason.
        (format!("{head}mtu = \"many\"\n"), "5", "mtu"),
        (format!("{head}mtu = 100\n"), "5", "mtu"),
        (format!("{head}mtuu = 1500\n"), "5", "mtuu"),
        (format!("{head}dns = [\"9.9.9\"]\n"), "5", "dns"),
        (format!("{head}dns = [\"1.1.1.1\", \"1.1.1.2\", \"1.1.1.3\", \"1.1.1.4\"]\n"), "5", "dns"),
        (format!("{head}users = [\"nobody-of-that-name\"]\n"), "5", "nobody-of-that-name"),
        (format!("{head}groups = [\"no-group-of-that-name\"]\n"), "5", "no-group-of-that-name"),
        (format!("{head}users = [-1]\n"), "5", "users"),
        (format!("{head}pool = 17\n"), "5", "pool"),
        (format!("{head}reach = [\"nowhere\"]\n"), "5", "nowhere"),
        (format!("{head}[[network.forward]]\nports = [\"9000-8000\"]\n"), "6", "9000"),
        (format!("{head}[[network.forward]]\nports = [0]\n"), "6", "port"),
        (format!("{head}[[network.forward]]\nports = [\"1-70000\"]\n"), "6", "port"),
        (head.replace("10.77.0.1/24", "10.77.0.1/30"), "4", "subnet"),
        (head.replace("10.77.0.1/24", "10.77.0.0/24"), "4", "subnet"),
        (head.replace("10.77.0.1/24", "10.77.0.255/24"), "4", "subnet"),
        (head.replace("10.77.0.1/24", "127.0.0.1/24"), "4", "subnet"),
        (head.replace("10.77.0.1/24", "224.0.0.1/24"), "4", "subnet"),
        (head.replace("vmsup0", "a-name-that-is-too-long"), "3", "bridge"),
        (head.replace("vmsup0", "vt1"), "3", "bridge"),
        (head.replace("vmsup0", "../x"), "3", "bridge"),
        (head.replace("\"default\"", "\"a b\""), "2", "name"),
        (head.replace("\"default\"", &format!("\"{}\"", "x".repeat(32))), "2", "name"),
        (second("").replace("\"b\"", "\"default\""), "6", "default"),
        (second("").replace("vmsup1", "vmsup0"), "7", "vmsup0"),
        (second("").replace("10.78.0.1", "10.77.0.129"), "8", "10.77"),
        (format!("{head}mtu = \n"), "5", "line"),
        ("network = 3\n".to_owned(), "1", "network"),
    ];
    let mut wrong = Vec::new();
    for (config, line, word) in cases {
        host.configure(&config);
        let ran = host.command(&["--check"]).output().unwrap();
        let text = String::from_utf8_lossy(&ran.stderr).to_lowercase();
        assert_eq!(ran.status.code(), Some(2), "{config}{text}");
        assert!(!text.contains("panicked") && text.trim_end().lines().count() == 1, "{text}");
        let named = text.contains(&format!(":{line}:")) || text.contains(&format!("line {line}"));
        if !named || !text.contains(word) {
            wrong.push(format!("line {line} and {word:?} in {text}for\n{config}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // It does not serve with one either.
    let ran = host.command(&[]).output().unwrap();
    assert_eq!(ran.status.code(), Some(2), "{ran:?}");
    assert!(!host.socket().exists());
}

#[test]
fn netd_says_what_is_missing_on_the_host() {
    if !as_root("netd_says_what_is_missing_on_the_host") {
        return;
    }
    let host = NetHost::start(&default_network("pool = 0"));
    let client = host.client(stranger());
    let status = client.status();
    assert!(status.rules && status.ip_forward && status.bridges_down.is_empty(), "{status:?}");
    assert_eq!((status.dropping_chains, status.leases), (Vec::new(), 0));
    host.inside.sysctl("net/ipv4/ip_forward", "0");
    assert!(!client.status().ip_forward);
    // A bridge that is down or gone is mended at once.
    host.inside.ip("link set vmsup0 down");
    eventually("netd to mend it", || client.status().bridges_down.is_empty());
    host.nft("table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }");
    let chains = client.status().dropping_chains;
    assert_eq!(chains.len(), 1);
    assert!(chains[0].contains("FORWARD"), "{chains:?}");
}

#[test]
fn a_bridge_whose_name_is_somebody_elses_is_told_and_costs_its_own_network_only() {
    if !as_root("a_bridge_whose_name_is_somebody_elses_is_told_and_costs_its_own_network_only") {
        return;
    }
    let name = user::with_subuids().name;
    let second = format!(
        "[[network]]\nname = \"second\"\nbridge = \"vmsup1\"\nsubnet = \"10.78.0.1/24\"\nusers = [\"{name}\"]\n"
    );
    let mut host = NetHost::without_netd(&format!("{}\n{second}", default_network("pool = 2")));
    host.load_rules();
    host.inside.ip("link add vmsup0 type veth peer name other0\nlink set vmsup0 up");
    host.run();
    let client = host.client(tenant());
    assert_eq!(client.status().bridges_down, ["vmsup0"]);
    assert_eq!(client.lease("default", 1).unwrap_err(), Refusal::Failed);
    assert!(host.log().contains("vmsup0"), "{}", host.log());
    host.works(tenant(), "second");
    // When the name is free again, nobody needs to tell netd.
    host.inside.ip("link delete vmsup0");
    eventually("a lease", || client.lease("default", 1).is_ok());
}

#[test]
fn a_second_netd_refuses_and_a_stale_socket_does_not_keep_the_next_one_away() {
    if !as_root("a_second_netd_refuses_and_a_stale_socket_does_not_keep_the_next_one_away") {
        return;
    }
    let mut host = NetHost::start(&default_network("pool = 0"));
    let second = host.command(&[]).output().unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.contains("already") || text.contains("another"), "{text}");
    host.works(tenant(), "default");
    host.kill();
    assert!(host.socket().exists(), "what is killed leaves its socket");
    host.run();
    host.works(tenant(), "default");
    assert_eq!(host.terminate(), Some(0));
}
