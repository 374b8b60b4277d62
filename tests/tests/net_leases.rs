//! netd, asked by those who may and by those who may not: leases, quotas, forwards, names. netd runs in a
//! network namespace of the test's; there are no VMs here.

use netd_api::{Forward, LeaseId, Protocol, Refusal, Reply, Request, Wanted};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;
use vmsup_tests::netd::{NetHost, UPLINK, default_network, stranger, tenant, wanted};
use vmsup_tests::netns::Caller;
use vmsup_tests::wire::Wire;
use vmsup_tests::{as_root, eventually, user};

fn forward(host: u16, guest: u16) -> Forward {
    Forward { protocol: Protocol::Tcp, host, guest }
}

#[test]
fn a_lease_is_what_its_network_says() {
    if !as_root("a_lease_is_what_its_network_says") {
        return;
    }
    let host = NetHost::start(&default_network("dns = [\"9.9.9.9\", \"192.0.2.53\"]\nmtu = 1400\npool = 0"));
    let client = host.client(tenant());
    let wire = client.lease("default", 1).unwrap();
    let lease = &wire.lease;
    assert_eq!((lease.gateway, lease.prefix, lease.mtu), (Ipv4Addr::new(10, 77, 0, 1), 24, 1400));
    assert_eq!(lease.dns, [Ipv4Addr::new(9, 9, 9, 9), Ipv4Addr::new(192, 0, 2, 53)]);
    assert_eq!(lease.address.octets()[..3], [10, 77, 0]);
    assert!(![0, 1, 255].contains(&lease.address.octets()[3]), "{lease:?}");
    assert_eq!(lease.mac[3..], lease.address.octets()[1..], "netd's choice is the end of the address");
    let chosen = client.lease_of(Wanted { mac_suffix: Some([0xaa, 0xbb, 0xcc]), ..wanted("default", 2) }).unwrap();
    assert_eq!(chosen.lease.mac[3..], [0xaa, 0xbb, 0xcc]);
    let listed = client.leases();
    assert_eq!(listed.iter().map(|l| l.id).collect::<Vec<_>>(), [lease.id, chosen.lease.id]);
    assert_eq!((listed[0].mac, listed[0].address, listed[0].vm.0), (lease.mac, lease.address, 1));
    let link = &host.inside.json(&["ip", "-j", "-d", "link", "show", "dev", &lease.interface])[0];
    assert_eq!((link["mtu"].as_u64(), link["master"].as_str()), (Some(1400), Some("vmsup0")), "{link}");
    let data = &link["linkinfo"]["info_data"];
    assert_eq!(data["type"], "tap", "{link}");
    assert_eq!(data["persist"], false, "it goes with its last holder: {link}");
    let port = &link["linkinfo"]["info_slave_data"];
    for (setting, value) in [("isolated", true), ("learning", false), ("locked", true), ("flood", false)] {
        assert_eq!(port[setting], value, "{setting}: {link}");
    }
}

#[test]
fn every_queue_is_an_fd_of_the_one_interface() {
    if !as_root("every_queue_is_an_fd_of_the_one_interface") {
        return;
    }
    let host = NetHost::start(&default_network("pool = 0"));
    let client = host.client(tenant());
    for (vm, queues) in [(1, 1), (2, 2), (3, 4)] {
        let wire = client.lease_of(Wanted { queues, offloads: true, ..wanted("default", vm) }).unwrap();
        assert_eq!(wire.queues.len(), usize::from(queues));
        for queue in &wire.queues {
            assert_eq!(vmsup_tests::tun::name(queue).unwrap(), wire.lease.interface);
            assert_eq!(vmsup_tests::tun::header_bytes(queue).unwrap(), 12);
            assert_eq!(
                rustix::io::read(queue, &mut [0u8; 100][..]).unwrap_err(),
                rustix::io::Errno::AGAIN,
                "non-blocking, and nothing came before its guest"
            );
        }
    }
}

#[test]
fn nobody_but_the_named_may_use_a_network() {
    if !as_root("nobody_but_the_named_may_use_a_network") {
        return;
    }
    let group = user::with_subuids().gid;
    let host = NetHost::start(&format!(
        "{}\n[[network]]\nname = \"team\"\nbridge = \"vmsup1\"\nsubnet = \"10.78.0.1/24\"\ngroups = [{group}]\npool = 0\n",
        default_network("pool = 0")
    ));
    let names = |who: Caller| -> Vec<String> { host.client(who).networks().into_iter().map(|n| n.name).collect() };
    // The tenant is in the group as well: it is its primary one.
    assert_eq!(names(tenant()), ["default", "team"]);
    let nobody: [&str; 0] = [];
    assert_eq!(names(stranger()), nobody);
    assert_eq!(names(Caller { groups: vec![1, group], ..stranger() }), ["team"], "by a supplementary group");
    for (who, network) in [(stranger(), "default"), (stranger(), "team"), (tenant(), "defaul"), (tenant(), "default2")]
    {
        assert_eq!(
            host.client(who.clone()).lease(network, 1).unwrap_err(),
            Refusal::NoSuchNetwork,
            "{who:?} {network}"
        );
    }
    let root = Caller { uid: 0, gid: 0, groups: Vec::new() };
    assert_eq!(host.client(root).lease("default", 1).unwrap_err(), Refusal::NoSuchNetwork, "root is named nowhere");
    host.works(Caller { groups: vec![group], ..stranger() }, "team");
}

#[test]
fn a_quota_counts_per_uid_and_comes_back_with_each_lease() {
    if !as_root("a_quota_counts_per_uid_and_comes_back_with_each_lease") {
        return;
    }
    let both = format!("\"{}\", {}", user::with_subuids().name, user::second_tenant().uid);
    let host = NetHost::start(&format!(
        "[[network]]\nname = \"default\"\nbridge = \"vmsup0\"\nsubnet = \"10.77.0.1/24\"\nusers = [{both}]\nleases = 2\npool = 0\n"
    ));
    let (one, other) = (host.client(tenant()), host.client(stranger()));
    let first = one.lease("default", 1).unwrap();
    let _second = one.lease("default", 2).unwrap();
    assert_eq!(one.lease("default", 3).unwrap_err(), Refusal::Quota { limit: 2 });
    // A second connection is no second uid.
    assert_eq!(host.client(tenant()).lease("default", 3).unwrap_err(), Refusal::Quota { limit: 2 });
    let _theirs = other.lease("default", 1).unwrap();
    let told = &one.networks()[0];
    assert_eq!((told.leases, told.limit), (2, 2));
    // As long as its interface is there it counts, whoever holds that: else releases would be a way to any number.
    one.release(first.lease.id).unwrap();
    assert_eq!(one.lease("default", 3).unwrap_err(), Refusal::Quota { limit: 2 });
    drop(first);
    eventually("the next lease", || one.lease("default", 3).is_ok());
}

#[test]
fn a_full_network_says_so_and_gives_no_address_twice() {
    if !as_root("a_full_network_says_so_and_gives_no_address_twice") {
        return;
    }
    let name = user::with_subuids().name;
    let host = NetHost::start(&format!(
        "[[network]]\nname = \"small\"\nbridge = \"vmsup0\"\nsubnet = \"10.77.0.9/29\"\nusers = [\"{name}\"]\npool = 2\n"
    ));
    let client = host.client(tenant());
    let wires: Vec<Wire> = (1..=5).map(|vm| client.lease("small", vm).unwrap()).collect();
    let addresses: BTreeSet<Ipv4Addr> = wires.iter().map(|w| w.lease.address).collect();
    let expected: BTreeSet<Ipv4Addr> = (10..15).map(|n| Ipv4Addr::new(10, 77, 0, n)).collect();
    assert_eq!(addresses, expected, "all but the network, the host and the broadcast address");
    assert_eq!(client.lease("small", 6).unwrap_err(), Refusal::NetworkFull);
    client.release(wires[0].lease.id).unwrap();
    assert_eq!(client.lease("small", 6).unwrap_err(), Refusal::NetworkFull, "its interface is there still");
    let mut again = None;
    eventually("its address to be free, although the fd is still held", || {
        again = client.lease("small", 6).ok();
        again.is_some()
    });
    assert_eq!(again.unwrap().lease.address, wires[0].lease.address, "the only one that was free");
}

#[test]
fn a_forward_needs_permission_and_a_port_that_nobody_has() {
    if !as_root("a_forward_needs_permission_and_a_port_that_nobody_has") {
        return;
    }
    let host = NetHost::start(&default_network("pool = 0"));
    let client = host.client(tenant());
    let wire = client.lease_with("default", 1, &[forward(8080, 80), forward(2222, 22)]).unwrap();
    assert_eq!(host.elements("inet vmsup forwards").len(), 2);
    assert_eq!(client.leases()[0].forwards, [forward(8080, 80), forward(2222, 22)]);
    let refused = |forwards: &[Forward]| client.lease_with("default", 2, forwards).unwrap_err();
    assert_eq!(refused(&[forward(8080, 80)]), Refusal::PortTaken { port: 8080 });
    for port in [22, 7999, 9000, 2223, 65535] {
        assert_eq!(refused(&[forward(8081, 80), forward(port, 80)]), Refusal::PortNotAllowed { port });
    }
    assert_eq!(host.elements("inet vmsup forwards").len(), 2, "a refused lease leaves none of its forwards");
    let udp = Forward { protocol: Protocol::Udp, ..forward(8080, 53) };
    let other = client.lease_with("default", 2, &[udp]).unwrap();
    client.release(wire.lease.id).unwrap();
    eventually("its forwards to go", || host.elements("inet vmsup forwards").len() == 1);
    drop(other);
    eventually("the other's to go with its TAP", || host.elements("inet vmsup forwards").is_empty());
    client.lease_with("default", 3, &[forward(8080, 80)]).unwrap();
}

#[test]
fn a_mac_is_one_vms_only() {
    if !as_root("a_mac_is_one_vms_only") {
        return;
    }
    let host = NetHost::start(&default_network("pool = 2"));
    let client = host.client(tenant());
    let with = |vm, suffix| client.lease_of(Wanted { mac_suffix: Some(suffix), ..wanted("default", vm) });
    let wire = with(1, [1, 2, 3]).unwrap();
    assert_eq!(with(2, [1, 2, 3]).unwrap_err(), Refusal::MacTaken);
    client.release(wire.lease.id).unwrap();
    drop(wire);
    eventually("the MAC to be free", || with(2, [1, 2, 3]).is_ok());
}

#[test]
fn what_is_out_of_bounds_is_refused_and_makes_nothing() {
    if !as_root("what_is_out_of_bounds_is_refused_and_makes_nothing") {
        return;
    }
    let host = NetHost::start(&default_network("pool = 0"));
    let client = host.client(tenant());
    let many = vec![forward(8000, 80); netd_api::FORWARDS_MAX + 1];
    let cases = [
        Wanted { queues: 0, ..wanted("default", 1) },
        Wanted { queues: netd_api::QUEUES_MAX + 1, ..wanted("default", 1) },
        Wanted { queues: 255, ..wanted("default", 1) },
        Wanted { forwards: many, ..wanted("default", 1) },
        Wanted { forwards: vec![forward(0, 80)], ..wanted("default", 1) },
        Wanted { forwards: vec![forward(8000, 0)], ..wanted("default", 1) },
        Wanted { forwards: vec![forward(8000, 80), forward(8000, 81)], ..wanted("default", 1) },
    ];
    for case in cases {
        let client = host.client(tenant());
        let refusal = client.lease_of(case.clone()).unwrap_err();
        let named = matches!(refusal, Refusal::Invalid | Refusal::PortNotAllowed { .. } | Refusal::PortTaken { .. });
        assert!(named, "{case:?}: {refusal:?}");
    }
    for name in ["", "vmsup0", "../default", "default\0", "default\n", "DEFAULT", "a\u{1b}[2J", &"x".repeat(200)] {
        let refusal = host.client(tenant()).lease(name, 1).unwrap_err();
        assert!(matches!(refusal, Refusal::Invalid | Refusal::NoSuchNetwork), "{name:?}: {refusal:?}");
    }
    assert!(!host.log().contains('\x1b'), "{}", host.log());
    assert_eq!((host.ports(), client.leases()), (Vec::new(), Vec::new()));
    host.works(tenant(), "default");
}

#[test]
fn a_lease_is_released_by_its_owner_only() {
    if !as_root("a_lease_is_released_by_its_owner_only") {
        return;
    }
    let both = format!("\"{}\", {}", user::with_subuids().name, user::second_tenant().uid);
    let host = NetHost::start(&format!(
        "[[network]]\nname = \"default\"\nbridge = \"vmsup0\"\nsubnet = \"10.77.0.1/24\"\nusers = [{both}]\npool = 0\n"
    ));
    let client = host.client(tenant());
    let wire = client.lease("default", 1).unwrap();
    let thief = host.client(stranger());
    assert_eq!(thief.release(wire.lease.id), Err(Refusal::NotYours));
    for id in [0, wire.lease.id.0 + 1, u64::MAX] {
        assert_eq!(client.release(LeaseId(id)), Err(Refusal::NotYours), "there is no {id}, and the answer is the same");
    }
    assert_eq!(thief.leases(), []);
    assert_eq!((client.leases().len(), host.leased(&wire.lease.interface)), (1, true));
    // Another connection of the same uid is the owner as well.
    assert_eq!(host.client(tenant()).release(wire.lease.id), Ok(()));
    assert_eq!(client.release(wire.lease.id), Err(Refusal::NotYours), "once");
    eventually("its interface to go, although the fd is still held", || host.ports().is_empty());
}

#[test]
fn a_lease_ends_with_its_tap() {
    if !as_root("a_lease_ends_with_its_tap") {
        return;
    }
    let host = NetHost::start(&default_network("pool = 0"));
    let client = host.client(tenant());
    let wire = client.lease_with("default", 1, &[forward(8080, 80)]).unwrap();
    let kept = client.lease("default", 2).unwrap();
    assert!(host.leased(&wire.lease.interface));
    let name = wire.lease.interface.clone();
    drop(wire);
    eventually("its end", || client.leases().len() == 1);
    eventually("its element's end", || !host.leased(&name));
    assert!(host.elements("inet vmsup forwards").is_empty());
    assert_eq!(host.ports(), [&*kept.lease.interface]);
    // A connection that ends is no TAP that ends.
    drop(client);
    host.works(tenant(), "default");
    assert_eq!(host.client(tenant()).leases().len(), 1);
}

#[test]
fn a_lease_outlives_the_supervisor_that_asked_for_it_while_a_worker_holds_its_tap() {
    if !as_root("a_lease_outlives_the_supervisor_that_asked_for_it_while_a_worker_holds_its_tap") {
        return;
    }
    let host = NetHost::start(&default_network("leases = 2\npool = 0"));
    let before = host.fds();
    let (mut supervisor, through) = host.lessee(&user::with_subuids());
    // The test is the worker: what it gets is another fd of the TAP, handed on by the supervisor.
    let wire = through.lease_with("default", 1, &[forward(8080, 80)]).unwrap();
    let told = through.leases();
    assert_eq!(told.len(), 1);
    // By its pid and with SIGKILL: setpriv has become it.
    supervisor.kill().unwrap();
    assert_eq!(supervisor.wait().unwrap().signal(), Some(9));
    eventually("netd to see that its peer is gone", || host.fds() <= before);

    let later = host.client(tenant());
    assert_eq!(later.leases(), told);
    assert_eq!(host.ports(), [&*wire.lease.interface]);
    assert!(host.leased(&wire.lease.interface) && host.elements("inet vmsup forwards").len() == 1);
    assert!(wire.passes());
    let to = SocketAddr::from((UPLINK, 8080));
    let connects = || TcpStream::connect_timeout(&to, Duration::from_secs(5)).is_ok();
    wire.answering(|_| assert!(host.inside.ping(wire.lease.address, 100) && host.outside.run(connects)));
    // It still counts, for the quota and for its port.
    assert_eq!(later.lease_with("default", 2, &[forward(8080, 80)]).unwrap_err(), Refusal::PortTaken { port: 8080 });
    let _second = later.lease("default", 2).unwrap();
    assert_eq!(later.lease("default", 3).unwrap_err(), Refusal::Quota { limit: 2 });

    // Whoever comes later as the same uid ends it.
    assert_eq!(later.release(wire.lease.id), Ok(()));
    eventually("its interface to go, although the worker holds it", || !host.ports().contains(&wire.lease.interface));
    assert!(!host.leased(&wire.lease.interface) && host.elements("inet vmsup forwards").is_empty());
    assert!(wire.send(&[0; 60]).is_err());
    drop(wire);
    eventually("the next lease", || later.lease("default", 3).is_ok());
}

#[test]
fn all_leases_are_told_in_pages() {
    if !as_root("all_leases_are_told_in_pages") {
        return;
    }
    let host = NetHost::start(&default_network("leases = 80\npool = 0"));
    let client = host.client(tenant());
    let wires: Vec<Wire> = (1..=70).map(|vm| client.lease("default", vm).unwrap()).collect();
    let told: Vec<LeaseId> = client.leases().iter().map(|l| l.id).collect();
    assert_eq!(told, wires.iter().map(|w| w.lease.id).collect::<Vec<_>>());
    assert_eq!(client.status().leases, 70);
}

#[test]
fn names_and_numbers_are_never_used_again() {
    if !as_root("names_and_numbers_are_never_used_again") {
        return;
    }
    let mut host = NetHost::start(&default_network("pool = 1"));
    let mut seen = BTreeSet::new();
    for round in 0..4 {
        let client = host.client(tenant());
        for vm in 0..5 {
            let wire = client.lease("default", vm).unwrap();
            let index =
                host.inside.json(&["ip", "-j", "link", "show", "dev", &wire.lease.interface])[0]["ifindex"].clone();
            assert!(seen.insert(format!("index {index}")), "{index} again");
            assert!(seen.insert(wire.lease.interface.clone()), "{} again", wire.lease.interface);
            assert!(seen.insert(format!("lease {}", wire.lease.id.0)), "{:?} again", wire.lease.id);
            client.release(wire.lease.id).unwrap();
        }
        // Also not after a restart.
        if round % 2 == 1 {
            host.restart();
        }
    }
}

#[test]
fn a_warm_tap_is_handed_out_complete_and_replaced() {
    if !as_root("a_warm_tap_is_handed_out_complete_and_replaced") {
        return;
    }
    let host = NetHost::start(&default_network("pool = 3"));
    eventually("three warm ports", || host.ports().len() == 3);
    eventually("three elements", || host.elements("bridge vmsup leases").len() == 3);
    let warm = host.ports();
    let client = host.client(tenant());
    assert_eq!(client.leases(), [], "capacity is nobody's lease");
    let wire = client.lease("default", 1).unwrap();
    assert!(warm.contains(&wire.lease.interface), "{} was not warm: {warm:?}", wire.lease.interface);
    eventually("the next one to be warm", || host.ports().len() == 4);
    drop((wire, client));
    host.nothing_left(3, tenant());
}

#[test]
fn peers_of_another_release_are_told_apart() {
    if !as_root("peers_of_another_release_are_told_apart") {
        return;
    }
    let host = NetHost::start(&default_network("pool = 0"));
    let channel = ipc::Channel::<Request, Reply>::new(host.connect(&tenant()));
    let refused = channel.handshake(netd_api::NAME, netd_api::VERSION + 1, 0);
    assert!(matches!(refused, Err(ipc::Error::Version { .. })), "{refused:?}");
    assert!(channel.send(&Request::Status, &[]).is_err() || channel.receive().is_err(), "the connection is over");
    host.works(tenant(), "default");
}
