//! Whole VMs in a network: netd in a namespace that plays the host, the supervisor as an ordinary user beside it, guests
//! from `tests/guest` behind their workers' virtio-net.

use serde_json::json;
use std::net::Ipv4Addr;
use vmsup_tests::connected::{both, net_guest, plain, started, stats};
use vmsup_tests::frames;
use vmsup_tests::host::{Host, guest_file};
use vmsup_tests::netd::{METADATA, NetHost, SERVER, UPLINK, default_network};
use vmsup_tests::page::{Page, fetch};
use vmsup_tests::{as_root, eventually, user};

#[test]
fn a_guest_takes_its_address_is_pinged_fetches_and_serves_a_page() {
    if !as_root("a_guest_takes_its_address_is_pinged_fetches_and_serves_a_page") {
        return;
    }
    let (net, host) = both("pool = 2");
    let page = Page::serve(&net.outside, SERVER, 80, "from outside\n");
    let with_forward = json!({ "network": "default", "forwards": [{ "host": 8080, "guest": 80 }] });
    let address = started(&host, "web", &format!("fetch={SERVER}:80/x"), &with_forward);
    for bytes in [0, 56, 1472] {
        assert!(net.inside.ping(address, bytes), "{bytes} bytes");
    }
    host.said("web", "FETCHED 200 13 bytes");
    host.said("web", "from outside");
    assert_eq!(page.peers().iter().map(|p| p.ip()).collect::<Vec<_>>(), [UPLINK], "with the host's address");
    let served = fetch(&net.outside, UPLINK, 8080).expect("the forward");
    assert!(served.starts_with("HTTP/1.0 200 OK") && served.contains("HELLO FROM THE GUEST"), "{served}");
    // What the command line shows of it.
    let listed = &host.ls()[0]["nets"][0];
    assert_eq!(
        (listed["network"].as_str(), listed["address"].as_str()),
        (Some("default"), Some(&*address.to_string()))
    );
    let text = host.vmsup(&["ls"]).ok();
    assert!(text.contains(&address.to_string()) && text.contains("8080"), "{text}");
    let networks = host.vmsup(&["net", "ls"]).ok();
    assert!(networks.contains("default") && networks.contains("vmsup0") && networks.contains("1/16"), "{networks}");
    let leases = host.vmsup(&["net", "leases"]).ok();
    for word in ["web", "default", &address.to_string(), "8080"] {
        assert!(leases.contains(word), "{word} in {leases}");
    }
    let counted = stats(&host, "web");
    assert!(counted["sent_packets"] >= 6 && counted["received_packets"] >= 6, "{counted:?}");
    assert!(counted["dhcp_answers"] >= 2, "an offer and an acknowledgement: {counted:?}");
    assert!(host.vmsup(&["net", "stats", "web"]).ok().contains("default"));
    // No DHCP was seen on the wire: a request's source would be 0.0.0.0, which the rules drop and count.
    assert!(net.counters().keys().all(|name| !name.starts_with("bridge drop_")), "{:?}", net.counters());
    host.vmsup(&["stop", "web"]).ok();
    assert_eq!(host.inspect("web")["end"]["kind"], "shutdown");
    net.nothing_left(2, &user::with_subuids());
}

/// What a frame guest's kinds are to cause: at the rules, or in its worker, each by the counter's name.
const AT_THE_RULES: &[(&str, &str)] = &[
    ("mac", "bridge drop_ip_source"),
    ("ip", "bridge drop_ip_source"),
    ("arp", "bridge drop_arp_sender"),
    ("arpip", "bridge drop_arp_sender"),
    ("arpmac", "bridge drop_arp_sender"),
    ("arpflood", "bridge drop_arp_sender"),
    ("vlan", "bridge drop_vlan"),
    ("qinq", "bridge drop_vlan"),
    ("ipv6", "bridge drop_ipv6"),
    ("ethertype", "bridge drop_link_local"),
    ("dhcpserver", "bridge drop_dhcp"),
    ("source0", "bridge drop_ip_source"),
    ("fragments", "bridge drop_ip_source"),
    ("tiny", "bridge drop_other"),
    ("header", "bridge drop_other"),
    ("metadata", "inet drop_metadata"),
];

const IN_THE_WORKER: &[&str] = &[
    "short",
    "zero",
    "noheader",
    "long",
    "oversize",
    "badgso",
    "badcsum",
    "badsegment",
    "badlength",
    "dhcpother",
    "dhcpgarbage",
];

fn frame_guest(host: &Host, name: &str, kinds: &str) {
    let boot = json!({ "kernel": guest_file("frames"), "cmdline": format!("frames={kinds}") });
    let file = json!({ "name": name, "cpus": 1, "memory_mib": 32, "boot": boot, "nets": [plain()] });
    host.vmsup(&["start", &host.file(name, &file)]).ok();
}

#[test]
fn forbidden_frames_of_a_guest_reach_nobody_are_counted_and_the_next_good_one_passes() {
    if !as_root("forbidden_frames_of_a_guest_reach_nobody_are_counted_and_the_next_good_one_passes") {
        return;
    }
    let (net, host) = both("pool = 1");
    // A host has a way to everywhere.
    net.inside.ip(&format!("route add default via {SERVER}"));
    let bridge = net.inside.listen("vmsup0");
    for (kind, counter) in AT_THE_RULES {
        let before = net.counters().get(*counter).copied().unwrap_or_default();
        bridge.frames();
        frame_guest(&host, kind, kind);
        host.said(kind, "FRAMES DONE");
        let said = host.logs(kind);
        assert!(said.contains(&format!("SENT {kind}")) && said.contains(&format!("ANSWERED {kind}")), "{said}");
        let after = net.counters().get(*counter).copied().unwrap_or_default();
        assert!(after > before, "{kind}: {counter}: {:?}", net.counters());
        // A packet to the metadata address is right as a frame: it ends where the host routes.
        let text = format!("frames:{kind}");
        let reached = |f: &Vec<u8>| f.windows(text.len()).any(|w| w == text.as_bytes()) && *kind != "metadata";
        let foreign = |f: &Vec<u8>| f[6..12] == [0x02, 0x76, 0x6d, 0xff, 0xff, 0xfe] || frames::kind(f) == frames::VLAN;
        let own = host.inspect(kind)["nets"][0]["address"].as_str().unwrap().parse::<Ipv4Addr>().unwrap().octets();
        let lies = |f: &Vec<u8>| frames::kind(f) == frames::ARP && f[20..22] == [0, 1] && f[6] == 2 && f[28..32] != own;
        let from_guest = |f: &&Vec<u8>| f[6..12] != net.mac("vmsup0");
        let seen = bridge.frames();
        let bad: Vec<_> = seen.iter().filter(from_guest).filter(|f| reached(f) || foreign(f) || lies(f)).collect();
        assert!(bad.is_empty(), "{kind}: {bad:02x?}");
        host.vmsup(&["kill", kind]).ok();
        host.remove(&[kind]);
    }
    net.nothing_left(1, &user::with_subuids());
}

#[test]
fn malformed_frames_of_a_guest_end_in_its_worker_and_are_counted() {
    if !as_root("malformed_frames_of_a_guest_end_in_its_worker_and_are_counted") {
        return;
    }
    let (net, host) = both("pool = 1");
    let dropped = |name: &str| -> u64 {
        stats(&host, name).iter().filter(|(what, _)| what.starts_with("dropped")).map(|(_, count)| count).sum()
    };
    for kind in IN_THE_WORKER {
        frame_guest(&host, kind, kind);
        host.said(kind, "FRAMES DONE");
        let said = host.logs(kind);
        assert!(said.contains(&format!("ANSWERED {kind}")), "{said}");
        assert!(
            dropped(kind) > 0 || said.contains(&format!("RESET {kind}")),
            "{kind}: {:?} {said}",
            stats(&host, kind)
        );
        assert_eq!(host.state(kind), "running");
        host.vmsup(&["kill", kind]).ok();
        host.remove(&[kind]);
    }
    // A guest that only sends good frames has nothing counted.
    frame_guest(&host, "good", "good");
    host.said("good", "FRAMES DONE");
    assert_eq!(dropped("good"), 0, "{:?}", stats(&host, "good"));
    assert!(host.logs("good").contains("ANSWERED good"));
    host.vmsup(&["kill", "good"]).ok();
    net.nothing_left(1, &user::with_subuids());
}

#[test]
fn two_tenants_neither_reach_each_other_nor_exceed_their_quota() {
    if !as_root("two_tenants_neither_reach_each_other_nor_exceed_their_quota") {
        return;
    }
    let second = user::second_tenant();
    let net = NetHost::start(&format!(
        "{}\n[[network]]\nname = \"theirs\"\nbridge = \"vmsup1\"\nsubnet = \"10.78.0.1/24\"\nusers = [\"{}\"]\nleases = 1\n",
        default_network("leases = 1"),
        second.name
    ));
    let one = Host::start_on(&user::with_subuids(), &net, &["--pool", "1"]);
    let other = Host::start_on(&second, &net, &["--pool", "1"]);
    let theirs = json!({ "network": "theirs" });
    other.vmsup(&["start", &net_guest(&other, "web", "", &theirs)]).ok();
    other.said("web", "NET mac=");
    let address: Ipv4Addr = other.inspect("web")["nets"][0]["address"].as_str().unwrap().parse().unwrap();
    assert!(fetch(&net.inside, address, 80).is_some(), "it does serve its page");
    started(&one, "spy", &format!("fetch={address}:80/"), &plain());
    one.said("spy", "FETCH FAILED");
    assert!(net.counters().get("inet drop_reach").is_some_and(|n| *n > 0), "{:?}", net.counters());
    // Neither by name nor beyond the quota, and each is told its own reason.
    let sentence = one.vmsup(&["start", &net_guest(&one, "b", "", &theirs)]).sentence(2);
    assert!(sentence.contains("theirs"), "{sentence}");
    let sentence = one.vmsup(&["start", &net_guest(&one, "b", "", &plain())]).sentence(1);
    assert!(sentence.contains("default") && sentence.contains('1'), "{sentence}");
    assert!(!one.vmsup(&["net", "ls"]).ok().contains("theirs") && !one.vmsup(&["net", "leases"]).ok().contains("web"));
    one.vmsup(&["kill", "spy"]).ok();
    eventually("its quota to be free", || one.vmsup(&["start", &net_guest(&one, "c", "", &plain())]).status == Some(0));
}

#[test]
fn a_guest_reaches_neither_the_hosts_services_nor_its_metadata_nor_its_loopback() {
    if !as_root("a_guest_reaches_neither_the_hosts_services_nor_its_metadata_nor_its_loopback") {
        return;
    }
    let (net, host) = both("");
    net.inside.ip(&format!("address add {METADATA}/32 dev lo"));
    let targets = [Ipv4Addr::new(10, 77, 0, 1), UPLINK, METADATA, Ipv4Addr::LOCALHOST];
    let pages: Vec<Page> = targets.iter().map(|target| Page::serve(&net.inside, *target, 80, "secret\n")).collect();
    for (n, target) in targets.iter().enumerate() {
        started(&host, &format!("spy{n}"), &format!("fetch={target}:80/"), &plain());
    }
    for (n, target) in targets.iter().enumerate() {
        let name = format!("spy{n}");
        host.said(&name, "FETCH");
        assert!(host.logs(&name).contains("FETCH FAILED"), "{target}: {}", host.logs(&name));
        host.vmsup(&["kill", &name]).ok();
    }
    assert!(pages.iter().all(|page| page.peers().is_empty()));
}

#[test]
fn a_guest_that_floods_its_network_leaves_other_vms_alone() {
    if !as_root("a_guest_that_floods_its_network_leaves_other_vms_alone") {
        return;
    }
    let (net, host) = both("");
    let neighbour = started(&host, "neighbour", "", &plain());
    let boot = json!({ "kernel": guest_file("frames"), "cmdline": "frames=arpflood count=20000" });
    let file = json!({ "name": "loud", "cpus": 1, "memory_mib": 32, "boot": boot, "nets": [plain()] });
    host.vmsup(&["start", &host.file("loud", &file)]).ok();
    host.said("loud", "NET mac=");
    for _ in 0..10 {
        assert!(net.inside.ping(neighbour, 100));
        net.works(&user::with_subuids(), "default");
    }
    host.said("loud", "ANSWERED arpflood");
    host.vmsup(&["kill", "loud"]).ok();
    host.vmsup(&["kill", "neighbour"]).ok();
}
