//! Bad days of netd: it is killed, starved, stopped, its rules are taken away. What is leased goes on; what is refused is
//! refused with a name; nothing is left behind.

use netd_api::{Forward, Protocol, Refusal, Reply, Request};
use rustix::process::Signal;
use vmsup_tests::netd::{NetHost, UPLINK, default_network, tenant, wanted};
use vmsup_tests::wire::Wire;
use vmsup_tests::{as_root, eventually};

fn forward(host: u16) -> Forward {
    Forward { protocol: Protocol::Tcp, host, guest: 80 }
}

#[test]
fn a_netd_that_is_killed_and_comes_back_knows_its_leases_and_traffic_never_stopped() {
    if !as_root("a_netd_that_is_killed_and_comes_back_knows_its_leases_and_traffic_never_stopped") {
        return;
    }
    let mut host = NetHost::start(&default_network("leases = 3\npool = 2"));
    let client = host.client(tenant());
    let wires = [client.lease_with("default", 1, &[forward(8080)]).unwrap(), client.lease("default", 2).unwrap()];
    let before = client.leases();
    host.kill();
    for wire in &wires {
        wire.answering(|_| assert!(host.inside.ping(wire.lease.address, 100), "while netd is away"));
        assert!(wire.passes());
    }
    assert!(client.channel.receive().is_err());
    host.run();
    let client = host.client(tenant());
    assert_eq!(client.leases(), before);
    assert!(wires.iter().all(Wire::passes));
    // Quotas and ports still count.
    assert_eq!(client.lease_with("default", 3, &[forward(8080)]).unwrap_err(), Refusal::PortTaken { port: 8080 });
    let third = client.lease("default", 3).unwrap();
    assert!(!before.iter().any(|l| l.address == third.lease.address || l.mac == third.lease.mac));
    assert_eq!(client.lease("default", 4).unwrap_err(), Refusal::Quota { limit: 3 });
    // And a lease from before ends as any other.
    drop((wires, third));
    host.nothing_left(2, tenant());
}

#[test]
fn what_ended_while_netd_was_away_is_cleaned_when_it_comes_back() {
    if !as_root("what_ended_while_netd_was_away_is_cleaned_when_it_comes_back") {
        return;
    }
    let mut host = NetHost::start(&default_network("pool = 1"));
    let client = host.client(tenant());
    let gone = client.lease_with("default", 1, &[forward(8080)]).unwrap();
    let kept = client.lease_with("default", 2, &[forward(8081)]).unwrap();
    host.kill();
    drop(gone);
    eventually("its interface to go", || host.ports().contains(&kept.lease.interface) && host.ports().len() == 1);
    // Somebody's elements, and somebody's interface with a port's name.
    host.nft("add element bridge vmsup leases { \"vt4000\" . 02:76:6d:00:00:01 . 10.77.0.99 }");
    host.nft("add element inet vmsup forwards { tcp . 8999 : 10.77.0.99 . 80 }");
    host.run();
    let client = host.client(tenant());
    assert_eq!(client.leases().iter().map(|l| l.vm.0).collect::<Vec<_>>(), [2]);
    eventually("the elements of the living", || {
        host.elements("inet vmsup forwards").len() == 1 && host.elements("bridge vmsup leases").len() == 2
    });
    assert!(!host.leased("vt4000") && host.leased(&kept.lease.interface));
    assert!(kept.passes());
    drop(kept);
    host.nothing_left(1, tenant());
}

#[test]
fn a_journal_that_is_damaged_or_of_another_boot_costs_leases_not_the_start() {
    if !as_root("a_journal_that_is_damaged_or_of_another_boot_costs_leases_not_the_start") {
        return;
    }
    type Damage = fn(&str) -> Vec<u8>;
    let damages: [(&str, Damage); 5] = [
        ("empty", |_| Vec::new()),
        ("cut within its last line", |text| text.as_bytes()[..text.len() - 5].to_vec()),
        ("of another boot", |text| {
            let (_, rest) = text.split_once('\n').unwrap();
            format!("boot 00000000-0000-0000-0000-000000000000\n{rest}").into_bytes()
        }),
        ("noise", |_| (0..10_000u32).map(|n| (n * 7919 % 251) as u8).collect()),
        ("its lines twice", |text| {
            let (first, rest) = text.split_once('\n').unwrap();
            format!("{first}\n{rest}{rest}").into_bytes()
        }),
    ];
    for (what, damage) in damages {
        let mut host = NetHost::start(&default_network("pool = 0"));
        let client = host.client(tenant());
        let wires = [client.lease("default", 1).unwrap(), client.lease("default", 2).unwrap()];
        host.kill();
        let text = std::fs::read_to_string(host.journal()).unwrap();
        std::fs::write(host.journal(), damage(&text)).unwrap();
        host.run();
        let client = host.client(tenant());
        // What is not known is no lease, and then its port is not allowed to speak either: both agree.
        let known = client.leases();
        eventually("the kernel to agree", || {
            wires
                .iter()
                .all(|w| host.leased(&w.lease.interface) == known.iter().any(|l| l.interface == w.lease.interface))
        });
        for wire in &wires {
            let works = known.iter().any(|l| l.interface == wire.lease.interface);
            assert!(!works || wire.passes(), "{what}");
        }
        let fresh = client.lease("default", 3).unwrap();
        assert!(fresh.passes(), "{what}");
        let unique = wires.iter().all(|w| w.lease.interface != fresh.lease.interface);
        assert!(unique, "{what}: a name again");
        drop((wires, fresh));
        host.nothing_left(0, tenant());
    }
}

#[test]
fn a_netd_out_of_fds_refuses_and_recovers() {
    if !as_root("a_netd_out_of_fds_refuses_and_recovers") {
        return;
    }
    let mut host = NetHost::start(&default_network("leases = 100\npool = 2"));
    host.nothing_left(2, tenant());
    let clients: Vec<_> = (0..4).map(|_| host.client(tenant())).collect();
    let before = host.fds();
    // Room for two more: a TAP of its own needs one, with four queues it needs four.
    host.limit_fds(before + 2);
    let four = |vm| clients[0].lease_of(netd_api::Wanted { queues: 4, ..wanted("default", vm) });
    for vm in 0..20 {
        assert_eq!(four(vm).unwrap_err(), Refusal::Failed, "{}", host.log());
    }
    // More than get in; the others wait to be accepted.
    let crowd: Vec<_> = (0..10).filter_map(|_| host.try_connect(&tenant()).ok()).collect();
    // Who is in is served: warm TAPs need no new fd.
    let warm = clients[1].lease("default", 99).unwrap();
    assert!(warm.passes());
    assert!(host.alive());
    drop(crowd);
    host.limit_fds(1024);
    drop((clients, warm));
    let client = host.client(tenant());
    eventually("room again", || client.lease_of(netd_api::Wanted { queues: 4, ..wanted("default", 5) }).is_ok());
    drop(client);
    host.nothing_left(2, tenant());
    host.works(tenant(), "default");
}

#[test]
fn lost_link_events_are_made_up_for() {
    if !as_root("lost_link_events_are_made_up_for") {
        return;
    }
    let host = NetHost::start(&default_network("leases = 300\npool = 0"));
    let client = host.client(tenant());
    let gone: Vec<Wire> = (0..8).map(|vm| client.lease("default", vm).unwrap()).collect();
    let kept = client.lease("default", 99).unwrap();
    host.signal(Signal::STOP);
    // Far more events than its socket can hold, and the ones that matter after them.
    let mut lines = String::from("link add noise type veth peer name other0\n");
    for _ in 0..3000 {
        lines.push_str("link set noise up\nlink set noise down\n");
    }
    host.inside.ip(&lines);
    drop(gone);
    eventually("the interfaces to go", || host.ports() == [kept.lease.interface.clone()]);
    host.signal(Signal::CONT);
    eventually("their leases to end", || client.leases().len() == 1);
    eventually("their elements to go", || host.elements("bridge vmsup leases").len() == 1);
    assert!(host.log().contains("were lost"), "so many were to come that some are: {}", host.log());
    assert!(kept.passes());
}

#[test]
fn without_its_rules_netd_says_so_leases_nothing_and_recovers() {
    if !as_root("without_its_rules_netd_says_so_leases_nothing_and_recovers") {
        return;
    }
    for table in ["bridge vmsup", "inet vmsup"] {
        let mut host = NetHost::start(&default_network("pool = 2"));
        let client = host.client(tenant());
        let wire = client.lease_with("default", 1, &[forward(8080)]).unwrap();
        host.nft(&format!("delete table {table}"));
        eventually("netd to notice", || !client.status().rules);
        assert_eq!(client.lease("default", 2).unwrap_err(), Refusal::NoRules, "{table}");
        assert!(host.alive() && client.leases().len() == 1);
        host.load_rules();
        eventually("netd to notice", || client.status().rules);
        eventually("the lease's elements to be back", || host.leased(&wire.lease.interface));
        eventually("its forward to be back", || host.elements("inet vmsup forwards").len() == 1);
        eventually("its bridge to be known again", || host.elements("inet vmsup bridges").len() == 1);
        assert!(wire.passes());
        let second = client.lease("default", 2).unwrap();
        assert!(second.passes(), "{table}");
        drop((wire, second));
        host.nothing_left(2, tenant());
    }
}

#[test]
fn netd_starts_before_its_rules_and_serves_when_they_come() {
    if !as_root("netd_starts_before_its_rules_and_serves_when_they_come") {
        return;
    }
    let mut host = NetHost::without_netd(&default_network("pool = 2"));
    host.run();
    let client = host.client(tenant());
    assert!(!client.status().rules);
    assert_eq!(client.lease("default", 1).unwrap_err(), Refusal::NoRules);
    host.load_rules();
    eventually("netd to notice", || client.status().rules);
    let wire = client.lease("default", 1).unwrap();
    assert!(wire.passes());
}

#[test]
fn a_bridge_that_was_taken_away_or_down_is_put_back_for_the_next_lease() {
    if !as_root("a_bridge_that_was_taken_away_or_down_is_put_back_for_the_next_lease") {
        return;
    }
    for harm in ["link set vmsup0 down", "link delete vmsup0"] {
        let mut host = NetHost::start(&default_network("pool = 0"));
        host.inside.ip(harm);
        let client = host.client(tenant());
        let mut wire = None;
        eventually(&format!("a lease after {harm}"), || {
            wire = client.lease("default", 1).ok();
            wire.as_ref().is_some_and(Wire::passes)
        });
        assert!(host.alive());
    }
}

#[test]
fn a_thousand_leases_and_releases_leave_nothing() {
    if !as_root("a_thousand_leases_and_releases_leave_nothing") {
        return;
    }
    let host = NetHost::start(&default_network("pool = 2"));
    let client = host.client(tenant());
    let cycle = |vm: u64| {
        let wire = client.lease_with("default", vm, &[forward(8080 + (vm % 8) as u16)]).unwrap();
        // By its owner's word, or by the end of its TAP.
        if vm.is_multiple_of(2) {
            client.release(wire.lease.id).unwrap();
        }
        drop(wire);
        eventually("the end of the lease", || client.leases().is_empty());
    };
    for vm in 0..100 {
        cycle(vm);
    }
    host.nothing_left(2, tenant());
    let (fds, memory) = (host.fds(), host.memory_kib());
    for vm in 100..1100 {
        cycle(vm);
    }
    host.nothing_left(2, tenant());
    eventually("no more fds", || host.fds() <= fds);
    assert!(host.memory_kib() <= memory + 256, "{memory} KiB before, {} KiB now", host.memory_kib());
    let journal = std::fs::metadata(host.journal()).unwrap().len();
    assert!(journal < 64 * 1024, "a journal of {journal} bytes for no lease at all");
    assert_eq!(
        host.inside.json(&["bridge", "-j", "fdb", "show", "br", "vmsup0"]).to_string().matches("02:76:6d").count(),
        2,
        "the two warm ports' entries and nobody else's: {}",
        host.inside.json(&["bridge", "-j", "fdb", "show", "br", "vmsup0"])
    );
}

#[test]
fn a_journal_that_cannot_be_written_is_a_refusal_and_no_lease_without_a_line() {
    if !as_root("a_journal_that_cannot_be_written_is_a_refusal_and_no_lease_without_a_line") {
        return;
    }
    let mut host = NetHost::without_netd(&default_network("leases = 200\npool = 0"));
    host.little_room(64);
    host.load_rules();
    host.run();
    let client = host.client(tenant());
    let filler = host.fill();
    let mut wires = Vec::new();
    let refusal = loop {
        match client.lease("default", wires.len() as u64) {
            Ok(wire) => wires.push(wire),
            Err(refusal) => break refusal,
        }
        assert!(wires.len() < 190, "the rest of a page was enough for 190 leases");
    };
    assert_eq!(refusal, Refusal::Failed);
    assert!(host.alive(), "{}", host.log());
    eventually("no interface without a lease", || host.ports().len() == wires.len());
    assert_eq!(client.leases().len(), wires.len());
    assert!(wires.iter().all(Wire::passes));
    // What ends now ends all the same, and stays ended.
    let last = wires.pop().unwrap();
    client.release(last.lease.id).unwrap();
    drop(last);
    eventually("its end", || host.ports().len() == wires.len());
    std::fs::remove_file(filler).unwrap();
    eventually("room for the next", || client.lease("default", 999).is_ok());
    host.restart();
    let client = host.client(tenant());
    eventually("the leases of before", || client.leases().len() == wires.len());
    assert!(wires.iter().all(Wire::passes));
}

#[test]
fn leases_of_many_peers_at_once_are_all_different() {
    if !as_root("leases_of_many_peers_at_once_are_all_different") {
        return;
    }
    let host = NetHost::start(&default_network("leases = 64\npool = 4"));
    let all: Vec<Wire> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8u64)
            .map(|n| {
                let host = &host;
                scope.spawn(move || {
                    let client = host.client(tenant());
                    (0..4).map(|vm| client.lease("default", n * 4 + vm).unwrap()).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    for (what, count) in [
        ("addresses", all.iter().map(|w| w.lease.address.to_string()).collect::<std::collections::BTreeSet<_>>().len()),
        ("MACs", all.iter().map(|w| format!("{:?}", w.lease.mac)).collect::<std::collections::BTreeSet<_>>().len()),
        ("interfaces", all.iter().map(|w| w.lease.interface.clone()).collect::<std::collections::BTreeSet<_>>().len()),
    ] {
        assert_eq!(count, 32, "{what}");
    }
    assert!(all.iter().all(Wire::passes));
}

#[test]
fn a_peer_that_leaves_before_its_answer_leaves_no_lease() {
    if !as_root("a_peer_that_leaves_before_its_answer_leaves_no_lease") {
        return;
    }
    let host = NetHost::start(&default_network("pool = 0"));
    for vm in 0..50 {
        let client = host.client(tenant());
        client.channel.send(&Request::Lease(wanted("default", vm)), &[]).unwrap();
        drop(client);
    }
    // Its TAP may have been kept for the next one; there is one at most, and nobody's.
    let client = host.client(tenant());
    eventually("no lease", || client.leases().is_empty() && client.status().leases == 0);
    eventually("no port but one that is warm", || host.ports().len() <= 1);
    host.works(tenant(), "default");
}

#[test]
fn netd_leaves_when_it_is_told_and_running_guests_keep_their_network() {
    if !as_root("netd_leaves_when_it_is_told_and_running_guests_keep_their_network") {
        return;
    }
    let mut host = NetHost::start(&default_network("pool = 2"));
    let client = host.client(tenant());
    let wire = client.lease_with("default", 1, &[forward(8080)]).unwrap();
    assert_eq!(host.terminate(), Some(0));
    assert!(!host.socket().exists());
    eventually("the warm ports to go", || host.ports() == [wire.lease.interface.clone()]);
    assert!(wire.passes());
    let to = std::net::SocketAddr::from((UPLINK, 8080));
    let timeout = std::time::Duration::from_secs(5);
    wire.answering(|_| assert!(host.outside.run(|| std::net::TcpStream::connect_timeout(&to, timeout).is_ok())));
    host.run();
    let Reply::Leases(leases) = host.client(tenant()).ask(&Request::Leases { after: netd_api::LeaseId(0) }).0 else {
        panic!("Leases is answered so")
    };
    assert_eq!(leases.len(), 1);
}
