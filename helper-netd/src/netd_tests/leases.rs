//! Leases from their making to their end.

use super::*;

#[test]
fn elements_are_in_place_when_the_fd_leaves() {
    let mut host = with(vec![plain()]);
    let asked = Wanted { forwards: vec![forward(8001)], queues: 2, ..wanted("a") };
    let (lease, queues) = host.ask(1000, asked).unwrap();
    assert_eq!((queues.len(), lease.queues), (2, 2));
    let port = IfName::new(&lease.interface).unwrap();
    let elements = host.kernel.world().elements.clone();
    assert!(elements.contains(&Element::Lease { port, mac: lease.mac, address: lease.address }));
    let forward = Element::Forward { protocol: 6, host: 8001, address: lease.address, guest: 80 };
    assert!(elements.contains(&forward));
    host.settle();
    host.check();
}

#[test]
fn what_a_network_allows_is_in_the_sets_with_its_leases() {
    let mut open = plain();
    (open.isolated, open.localhost) = (false, true);
    let mut host = with(vec![open.clone()]);
    let (lease, _held) = host.ask(1000, Wanted { forwards: vec![forward(8001)], ..wanted("a") }).unwrap();
    let itself = Element::Reach { from: open.bridge, to: open.bridge };
    let localhost = Element::Localhost { protocol: 6, host: 8001 };
    let has = |host: &Host, e: &Element| host.kernel.world().elements.contains(e);
    assert!(has(&host, &itself) && has(&host, &localhost));
    host.netd.reload(vec![plain()]).unwrap();
    assert!(!has(&host, &itself) && !has(&host, &localhost));
    host.netd.reload(vec![open]).unwrap();
    assert!(has(&host, &localhost));
    host.release(1000, lease.id);
    assert!(!has(&host, &localhost));
    host.settle();
    host.check();
}

#[test]
fn a_warm_port_is_handed_out_without_making_one_and_replaced_afterwards() {
    let mut host = with(vec![pooled(2)]);
    host.settle();
    let before = host.kernel.world().names.len();
    assert_eq!((before, host.netd.warm.len()), (2, 2));
    let (lease, _queues) = host.lease(1000);
    assert_eq!(host.kernel.world().names.len(), before, "nothing was made while somebody waited");
    assert_eq!(lease.interface, "vt1");
    host.settle();
    assert_eq!(host.netd.warm.len(), 2);
    host.check();
}

#[test]
fn a_warm_port_gives_way_to_a_request_that_needs_its_mac_or_the_last_address() {
    let mut host = with(vec![Network { pool: 1, ..network("a", "br-a", "10.1.0.1", 29) }]);
    host.settle();
    let suffix = host.netd.book.ports().next().map(|p| [p.mac[3], p.mac[4], p.mac[5]]);
    let (lease, _one) = host.ask(1000, Wanted { queues: 2, mac_suffix: suffix, ..wanted("a") }).unwrap();
    host.kernel.collect(true);
    assert!(!host.has("vt1") && lease.interface == "vt2");
    let mut held = Vec::new();
    for _ in 0..4 {
        host.settle();
        host.check();
        held.push(host.ask(1000, Wanted { queues: 2, ..wanted("a") }).unwrap());
    }
    host.settle();
    assert_eq!(host.ask(1000, wanted("a")).unwrap_err(), Refusal::NetworkFull);
    host.check();
}

#[test]
fn a_released_lease_passes_nothing_at_once_and_its_interface_goes_a_second_later() {
    let mut host = with(vec![plain()]);
    let (lease, queues) = host.ask(1000, Wanted { forwards: vec![forward(8001)], ..wanted("a") }).unwrap();
    assert_eq!(host.release(2000, lease.id), Reply::Refused(Refusal::NotYours));
    assert_eq!(host.release(1000, lease.id), Reply::Released);
    assert_eq!(host.release(1000, lease.id), Reply::Refused(Refusal::NotYours), "once");
    let only_bridges = |e: &Element| matches!(e, Element::Bridge(..));
    assert!(host.kernel.world().elements.iter().all(only_bridges));
    host.settle();
    assert!(host.has("vt1"), "its holder has a second");
    host.check();
    let due = host.netd.due().expect("its deletion is due");
    host.netd.delete_overdue(due);
    host.settle();
    assert!(!host.has("vt1"));
    assert_eq!(host.kernel.world().deleted.len(), 1);
    drop(queues);
    host.check();
}

#[test]
fn a_released_lease_that_nobody_holds_is_never_deleted_by_us() {
    let mut host = with(vec![plain()]);
    let (lease, queues) = host.lease(1000);
    drop(queues);
    host.release(1000, lease.id);
    host.settle();
    assert_eq!((host.netd.book.ports().count(), host.kernel.world().deleted.len(), host.netd.due()), (0, 0, None));
}

#[test]
fn a_deletion_that_fails_is_tried_again() {
    let mut host = with(vec![plain()]);
    let (lease, _queues) = host.lease(1000);
    host.release(1000, lease.id);
    host.kernel.world().failing.insert("delete_link", 1);
    for left in [1, 0] {
        let due = host.netd.due().expect("a deletion is due");
        host.netd.delete_overdue(due);
        assert_eq!(host.netd.book.ports().count(), left);
    }
}

#[test]
fn a_worker_that_dies_leaves_nothing() {
    let mut host = with(vec![plain()]);
    let (_, queues) = host.ask(1000, Wanted { forwards: vec![forward(8001)], ..wanted("a") }).unwrap();
    let dumps = host.kernel.world().dumps;
    drop(queues);
    host.settle();
    assert_eq!(host.netd.book.ports().count(), 0);
    assert_eq!(host.kernel.world().dumps, dumps, "the event is enough: nothing is searched");
    host.check();
    assert!(host.ask(1000, Wanted { forwards: vec![forward(8001)], ..wanted("a") }).is_ok(), "its forward is free");
}

#[test]
fn a_taker_that_went_away_costs_no_port() {
    let mut host = with(vec![pooled(1)]);
    host.settle();
    let request = Request::Lease(Wanted { forwards: vec![forward(8001)], ..wanted("a") });
    let (reply, queues) = host.netd.answer(&caller(1000), &request);
    host.netd.undelivered(&caller(1000), &request, &reply, queues);
    host.settle();
    host.check();
    assert_eq!((host.netd.book.leases().count(), host.netd.warm.len()), (0, 1));
    assert_eq!(host.lease(1000).0.interface, "vt1", "it is warm again");
    let request = Request::Lease(Wanted { queues: 2, ..wanted("a") });
    let (reply, queues) = host.netd.answer(&caller(1000), &request);
    host.netd.undelivered(&caller(1000), &request, &reply, queues);
    assert_eq!(host.netd.book.count("a", 1000), 1);
}

#[test]
fn while_the_sets_cannot_be_mended_nothing_is_leased() {
    let mut host = with(vec![pooled(1)]);
    host.settle();
    let (lease, _held) = host.ask(1000, Wanted { forwards: vec![forward(8001)], ..wanted("a") }).unwrap();
    host.settle();
    host.kernel.world().failing.extend([("change", 1), ("elements", 2)]);
    host.release(1000, lease.id);
    // The old forward leads to an address that must not be another guest's before it is gone.
    assert_eq!(host.ask(2000, wanted("a")).unwrap_err(), Refusal::Failed);
    assert!(host.netd.due().is_some(), "it is tried again");
    assert!(host.ask(2000, wanted("a")).is_ok());
    host.settle();
    host.check();
}

#[test]
fn what_fails_in_the_middle_of_a_lease_leaves_nothing() {
    for step in ["create_tap", "plug", "change"] {
        let mut host = with(vec![plain()]);
        host.kernel.world().failing.extend([(step, 1), ("elements", u32::from(step == "change"))]);
        let asked = Wanted { forwards: vec![forward(8001)], ..wanted("a") };
        assert_eq!(host.ask(1000, asked).unwrap_err(), Refusal::Failed, "{step}");
        assert_eq!(host.netd.book.leases().count(), 0);
        host.netd.reconcile();
        host.settle();
        assert!(!host.has("vt1"), "{step}");
        host.check();
    }
}

#[test]
fn a_lease_that_cannot_be_written_down_is_none() {
    let mut host = with(vec![pooled(1)]);
    host.settle();
    // Nothing can be appended after a rewrite that failed, and a rewrite needs this name.
    std::fs::create_dir(host.scratch.0.join("journal.new")).unwrap();
    host.netd.write_journal();
    assert_eq!(host.ask(1000, wanted("a")).unwrap_err(), Refusal::Failed);
    assert_eq!(host.netd.book.leases().count(), 0);
    std::fs::remove_dir(host.scratch.0.join("journal.new")).unwrap();
    assert!(host.ask(1000, wanted("a")).is_ok());
    host.settle();
    host.check();
}

#[test]
fn a_pool_that_cannot_be_filled_does_not_starve_another_networks() {
    let other = Network { name: "b".into(), pool: 2, ..network("b", "br-b", "10.2.0.1", 24) };
    let (kernel, scratch) = (FakeKernel::new(), Scratch::new());
    kernel.world().failing.insert("create_tap", 1);
    let netd = start(&kernel, &scratch, vec![pooled(2), other]);
    let mut host = Host { kernel, scratch, netd };
    host.settle();
    let warm = |name: &str| host.netd.book.of_network(name).count();
    assert_eq!((warm("a"), warm("b")), (0, 2));
    assert!(host.netd.due().is_some(), "it is tried again");
}
