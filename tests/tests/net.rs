//! Whole VMs in a network: netd in a namespace that plays the host, the supervisor as an ordinary user beside it, guests
//! from `tests/guest` behind their workers' virtio-net.

use netd_api::LeaseId;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use vmsup_tests::frames;
use vmsup_tests::host::{Host, children, guest_file};
use vmsup_tests::netd::{Client, METADATA, NetHost, SERVER, UPLINK, default_network};
use vmsup_tests::page::{Page, fetch};
use vmsup_tests::{as_root, eventually, names, user};

/// netd and a supervisor of `vmsup-test`'s.
fn both(more: &str) -> (NetHost, Host) {
    let net = NetHost::start(&default_network(more));
    let host = Host::start_on(&user::with_subuids(), &net, &["--pool", "1"]);
    (net, host)
}

/// A client of netd's that is the supervisor's user.
fn owner(net: &NetHost) -> Client {
    net.client(&user::with_subuids())
}

/// A file of the guest that is built in, in the network `default`.
fn net_guest(host: &Host, name: &str, cmdline: &str, net: &Value) -> String {
    let mut boot = json!({ "builtin": "net" });
    if !cmdline.is_empty() {
        boot["cmdline"] = cmdline.into();
    }
    host.file(name, &json!({ "name": name, "cpus": 1, "memory_mib": 32, "boot": boot, "nets": [net] }))
}

fn plain() -> Value {
    json!({ "network": "default" })
}

/// Starts the guest that is built in and waits until it has its address, which is the lease's.
fn started(host: &Host, name: &str, cmdline: &str, net: &Value) -> Ipv4Addr {
    host.vmsup(&["start", &net_guest(host, name, cmdline, net)]).ok();
    let seen = host.inspect(name)["nets"][0].clone();
    let address = seen["address"].as_str().unwrap();
    host.said(name, &format!("NET mac={} ip={address} gw=10.77.0.1 mtu=1500", seen["mac"].as_str().unwrap()));
    address.parse().unwrap()
}

/// The counters of a VM's first interface, the dropped ones by reason among them.
fn stats(host: &Host, name: &str) -> BTreeMap<String, u64> {
    let all: Value = serde_json::from_str(&host.vmsup(&["net", "stats", "--json", name]).ok()).unwrap();
    let mut counters = BTreeMap::new();
    for (key, value) in all[0].as_object().unwrap() {
        match value {
            Value::Number(count) => drop(counters.insert(key.clone(), count.as_u64().unwrap())),
            Value::Object(dropped) => {
                counters.extend(
                    dropped.iter().map(|(reason, count)| (format!("dropped {reason}"), count.as_u64().unwrap())),
                );
            }
            _ => {}
        }
    }
    counters
}

/// The part of a thread's status that tells of capabilities.
fn capabilities(pid: i32) -> Vec<(String, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let fields = text.lines().filter_map(|l| l.split_once(":\t")).filter(|(k, _)| ["CapEff", "CapPrm"].contains(k));
    fields.map(|(k, v)| (k.to_owned(), u64::from_str_radix(v, 16).unwrap())).collect()
}

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
    // No DHCP was seen on the wire.
    assert!(net.counters().keys().all(|name| !name.contains("dhcp")), "{:?}", net.counters());
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
    ("metadata", "inet drop_metadata"),
];
const IN_THE_WORKER: &[&str] =
    &["short", "zero", "noheader", "oversize", "badgso", "badsegment", "dhcpother", "dhcpgarbage"];

fn frame_guest(host: &Host, name: &str, kinds: &str) {
    let boot = json!({ "kernel": guest_file("frames"), "cmdline": format!("frames={kinds}") });
    let file = json!({ "name": name, "cpus": 1, "memory_mib": 32, "boot": boot, "nets": [plain()] });
    host.vmsup(&["start", &host.file(name, &file)]).ok();
}

#[test]
fn forbidden_frames_of_a_guest_reach_nobody_are_counted_and_the_next_good_one_passes() {
    if !as_root("forbidden_frames_of_a_guest_reach_nobody") {
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
    if !as_root("a_guest_reaches_neither_the_hosts_services_nor_its_metadata") {
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
fn without_netd_a_vm_starts_and_one_with_a_network_gets_a_sentence() {
    let host = Host::start(&user::with_subuids(), &["--pool", "1", "--netd", "/nonexistent/netd.sock"]);
    host.vmsup(&["start", &host.guest("plain", "deaf", "")]).ok();
    let fds = host.fds();
    let sentence = host.vmsup(&["start", &net_guest(&host, "web", "", &plain())]).sentence(1);
    assert!(sentence.contains("netd") && sentence.contains("/nonexistent/netd.sock"), "{sentence}");
    for words in [&["net", "ls"][..], &["net", "leases"]] {
        assert!(host.vmsup(words).sentence(1).contains("netd"));
    }
    assert_eq!((host.state("plain").as_str(), host.state("web").as_str()), ("running", ""));
    eventually("the fds of before", || host.fds() <= fds);
    host.vmsup(&["kill", "plain"]).ok();
}

#[test]
fn what_netd_refuses_is_one_sentence_that_names_the_field() {
    if !as_root("what_netd_refuses_is_one_sentence_that_names_the_field") {
        return;
    }
    let (net, host) = both("pool = 0");
    let forward = |port: u16| json!({ "network": "default", "forwards": [{ "host": port, "guest": 80 }] });
    started(&host, "first", "", &forward(8080));
    let cases = [
        (json!({ "network": "nowhere" }), "nowhere"),
        (forward(8080), "8080"),
        (forward(443), "443"),
        (json!({ "network": "default", "mac_suffix": mac_suffix(&host, "first") }), "mac"),
    ];
    for (wanted, word) in cases {
        let ran = host.vmsup(&["start", &net_guest(&host, "second", "", &wanted)]);
        let status = ran.status.unwrap();
        assert!([1, 2].contains(&status), "{ran:?}");
        let sentence = ran.sentence(status);
        assert!(sentence.to_lowercase().contains(word), "{word} in {sentence}");
        assert_eq!(host.state("second"), "");
    }
    assert_eq!(owner(&net).leases().len(), 1);
}

/// The last three bytes of a VM's MAC.
fn mac_suffix(host: &Host, name: &str) -> String {
    host.inspect(name)["nets"][0]["mac"].as_str().unwrap()[9..].to_owned()
}

#[test]
fn netd_dies_and_comes_back_while_guests_talk() {
    if !as_root("netd_dies_and_comes_back_while_guests_talk") {
        return;
    }
    let (mut net, host) = both("pool = 1\nleases = 2");
    let with_forward = json!({ "network": "default", "forwards": [{ "host": 8080, "guest": 80 }] });
    let address = started(&host, "web", "", &with_forward);
    net.kill();
    assert!(net.inside.ping(address, 1472) && fetch(&net.outside, UPLINK, 8080).is_some(), "while netd is away");
    let sentence = host.vmsup(&["start", &net_guest(&host, "late", "", &plain())]).sentence(1);
    assert!(sentence.contains("netd"), "{sentence}");
    assert!(stats(&host, "web")["sent_packets"] > 0, "its worker tells, netd is not asked");
    net.run();
    assert!(net.inside.ping(address, 1472) && fetch(&net.outside, UPLINK, 8080).is_some());
    let leases = host.vmsup(&["net", "leases"]).ok();
    assert!(leases.contains("web") && leases.contains(&address.to_string()), "{leases}");
    // The next start finds it again, and quotas still count.
    started(&host, "late", "", &plain());
    let sentence = host.vmsup(&["start", &net_guest(&host, "third", "", &plain())]).sentence(1);
    assert!(sentence.contains('2'), "{sentence}");
    for name in ["web", "late"] {
        host.vmsup(&["kill", name]).ok();
    }
    net.nothing_left(1, &user::with_subuids());
}

#[test]
fn a_killed_worker_takes_its_tap_lease_and_forwards_along() {
    if !as_root("a_killed_worker_takes_its_tap_lease_and_forwards_along") {
        return;
    }
    let (net, host) = both("pool = 0");
    let with_forward = json!({ "network": "default", "forwards": [{ "host": 8080, "guest": 80 }] });
    started(&host, "victim", "", &with_forward);
    let bystander = started(&host, "bystander", "", &plain());
    let pid = host.inspect("victim")["pid"].as_i64().unwrap() as i32;
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    eventually("its interface, elements and forwards to go", || {
        net.ports().len() == 1
            && net.elements("bridge vmsup leases").len() == 1
            && net.elements("inet vmsup forwards").is_empty()
    });
    eventually("its lease to end", || owner(&net).leases().len() == 1);
    assert!(net.inside.ping(bystander, 100));
    eventually("its end", || host.state("victim") == "crashed");
    // The port and the address are free for the next.
    host.remove(&["victim"]);
    started(&host, "victim", "", &with_forward);
    assert!(fetch(&net.outside, UPLINK, 8080).is_some());
}

#[test]
fn a_killed_supervisor_leaves_no_interface_and_no_lease() {
    if !as_root("a_killed_supervisor_leaves_no_interface_and_no_lease") {
        return;
    }
    let (net, mut host) = both("pool = 1");
    let with_forward = json!({ "network": "default", "forwards": [{ "host": 8080, "guest": 80 }] });
    started(&host, "a", "", &with_forward);
    started(&host, "b", "", &plain());
    rustix::process::kill_process(rustix::process::Pid::from_raw(host.pid()).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    host.supervisor.wait().unwrap();
    net.nothing_left(1, &user::with_subuids());
}

#[test]
fn a_start_that_fails_gives_its_lease_back() {
    if !as_root("a_start_that_fails_gives_its_lease_back") {
        return;
    }
    let (net, host) = both("pool = 1");
    eventually("a warm worker", || host.workers().len() == 1);
    let fds = host.fds();
    let broken = host.work.path().join("broken.elf");
    std::fs::write(&broken, b"\x7fELF nothing of a kernel").unwrap();
    for boot in [json!({ "kernel": broken }), json!({ "kernel": "/nonexistent" })] {
        let file = json!({ "name": "x", "cpus": 1, "memory_mib": 32, "boot": boot, "nets": [plain(), plain()] });
        let ran = host.vmsup(&["start", &host.file("x", &file)]);
        assert_ne!(ran.status, Some(0), "{ran:?}");
        host.vmsup(&["rm", "x"]);
        net.nothing_left(1, &user::with_subuids());
    }
    // The second of its two networks is the one that is refused.
    let nets = [plain(), json!({ "network": "nowhere" })];
    let file = json!({ "name": "x", "cpus": 1, "memory_mib": 32, "boot": { "builtin": "net" }, "nets": nets });
    let ran = host.vmsup(&["start", &host.file("x", &file)]);
    assert!(ran.status != Some(0) && ran.err.contains("nowhere"), "{ran:?}");
    net.nothing_left(1, &user::with_subuids());
    eventually("the fds of before", || host.fds() <= fds + 1);
}

#[test]
fn the_tap_is_the_workers_alone_and_only_netd_has_a_capability() {
    if !as_root("the_tap_is_the_workers_alone_and_only_netd_has_a_capability") {
        return;
    }
    let (net, host) = both("pool = 1");
    let two = json!({ "network": "default", "queues": 2 });
    started(&host, "web", "", &two);
    let taps = |pid: i32| {
        let folder = format!("/proc/{pid}/fd");
        let is_tap = |n: &&String| std::fs::read_link(format!("{folder}/{n}")).is_ok_and(|t| t.ends_with("net/tun"));
        names(&folder).iter().filter(is_tap).count()
    };
    let worker = host.inspect("web")["pid"].as_i64().unwrap() as i32;
    eventually("netd to hold its warm one only", || taps(net.pid()) == 1);
    // From inside its root the device has no path; the kernel still names what it was opened as.
    let held = vmsup_tests::jailer::inspect(&user::with_subuids(), worker);
    assert_eq!(held.fds.iter().filter(|(_, target)| target.ends_with("tun")).count(), 2, "{:?}", held.fds);
    for pid in [host.pid(), host.jailer()] {
        assert_eq!(taps(pid), 0);
    }
    assert_eq!(capabilities(net.pid()), [("CapPrm".to_owned(), 1 << 12), ("CapEff".to_owned(), 1 << 12)]);
    for pid in children(host.jailer()).into_iter().chain([host.pid(), host.jailer()]) {
        assert!(capabilities(pid).iter().all(|(_, set)| *set == 0), "{pid}: {:?}", capabilities(pid));
    }
}

#[test]
fn a_vm_has_as_many_interfaces_as_its_file_says() {
    if !as_root("a_vm_has_as_many_interfaces_as_its_file_says") {
        return;
    }
    let name = user::with_subuids().name;
    let net = NetHost::start(&format!(
        "{}\n[[network]]\nname = \"second\"\nbridge = \"vmsup1\"\nsubnet = \"10.78.0.1/24\"\nusers = [\"{name}\"]\nmtu = 1400\n",
        default_network("")
    ));
    let host = Host::start_on(&user::with_subuids(), &net, &["--pool", "1"]);
    let nets = [plain(), json!({ "network": "second", "mac_suffix": "0a:0b:0c" })];
    let boot = json!({ "builtin": "net", "cmdline": "nic=1" });
    let file = json!({ "name": "two", "cpus": 1, "memory_mib": 32, "boot": boot, "nets": nets });
    host.vmsup(&["start", &host.file("two", &file)]).ok();
    host.said("two", "NET mac=02:76:6d:0a:0b:0c ip=10.78.0.");
    host.said("two", "mtu=1400");
    let address: Ipv4Addr = host.inspect("two")["nets"][1]["address"].as_str().unwrap().parse().unwrap();
    assert!(net.inside.ping(address, 1300));
    let leases = owner(&net).leases();
    assert_eq!(leases.iter().map(|l| l.network.as_str()).collect::<Vec<_>>(), ["default", "second"]);
    assert!(leases.iter().all(|l| l.vm == leases[0].vm && l.id > LeaseId(0)));
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
