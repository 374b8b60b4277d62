//! VMs and their leases: what they hold, what they are refused, and what becomes of them on bad days.

use netd_api::LeaseId;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use vmsup_tests::connected::{both, net_guest, owner, plain, started, stats};
use vmsup_tests::host::{Host, children};
use vmsup_tests::netd::{NetHost, UPLINK, default_network};
use vmsup_tests::page::fetch;
use vmsup_tests::{as_root, eventually, names, user};

/// The part of a thread's status that tells of capabilities.
fn capabilities(pid: i32) -> Vec<(String, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let fields = text.lines().filter_map(|l| l.split_once(":\t")).filter(|(k, _)| ["CapEff", "CapPrm"].contains(k));
    fields.map(|(k, v)| (k.to_owned(), u64::from_str_radix(v, 16).unwrap())).collect()
}

#[test]
fn vms_that_are_made_at_the_same_time_have_each_what_is_theirs_alone() {
    if !as_root("vms_that_are_made_at_the_same_time_have_each_what_is_theirs_alone") {
        return;
    }
    const COUNT: usize = 12;
    let (net, host) = both("pool = 2");
    std::thread::scope(|scope| {
        for n in 0..COUNT {
            let host = &host;
            scope.spawn(move || host.vmsup(&["start", &net_guest(host, &format!("vm{n}"), "", &plain())]).ok());
        }
    });
    let vms = host.ls();
    assert_eq!(vms.len(), COUNT);
    for what in ["/id", "/pid", "/nets/0/interface", "/nets/0/mac", "/nets/0/address", "/nets/0/lease"] {
        let all: std::collections::BTreeSet<String> =
            vms.iter().map(|vm| vm.pointer(what).unwrap().to_string()).collect();
        assert_eq!(all.len(), COUNT, "{what}: {all:?}");
    }
    assert_eq!(owner(&net).leases().len(), COUNT);
    host.vmsup(&["kill", "--all"]).ok();
    eventually("no lease", || owner(&net).leases().is_empty());
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
    // What the kernel counted is told by netd, whoever it is by now.
    let told: Value = serde_json::from_str(&host.vmsup(&["stats", "--json", "web"]).ok()).unwrap();
    let interface = &told[0]["interfaces"][0];
    assert!(interface["sent_packets"].as_u64().is_some_and(|n| n > 0), "{told}");
    assert!(interface["received_bytes"].as_u64().is_some_and(|n| n > 0), "{told}");
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
fn networks_outlive_a_killed_supervisor_and_go_with_their_vms() {
    if !as_root("networks_outlive_a_killed_supervisor_and_go_with_their_vms") {
        return;
    }
    let (net, mut host) = both("pool = 1");
    let with_forward = json!({ "network": "default", "forwards": [{ "host": 8080, "guest": 80 }] });
    let a = started(&host, "a", "", &with_forward);
    let b = started(&host, "b", "", &plain());
    let interfaces = host.inspect("a")["nets"].clone();
    host.replace();
    // The same interface, address and forward, and packets that go through.
    assert_eq!(host.inspect("a")["nets"], interfaces);
    assert!(net.inside.ping(a, 100) && net.inside.ping(b, 100));
    assert!(fetch(&net.outside, UPLINK, 8080).is_some());
    assert_eq!(owner(&net).leases().len(), 2);
    // And they go with their VMs, which the next supervisor ends.
    host.vmsup(&["kill", "a", "b"]).ok();
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
