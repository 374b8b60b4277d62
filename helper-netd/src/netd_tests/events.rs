//! What others do to interfaces, bridges and rules.

use super::*;

#[test]
fn a_disobedient_holder_loses_its_interface_and_the_others_keep_theirs() {
    type Spoil = fn(&mut crate::ops::Link);
    let ways: [Spoil; 6] = [
        |l| l.tun.as_mut().unwrap().persist = true,
        |l| l.tun.as_mut().unwrap().owner = Some(1000),
        |l| l.tun.as_mut().unwrap().group = None,
        |l| l.up = false,
        |l| l.bridge = Some(1),
        |l| l.mac = [2, 0, 0, 0, 0, 1],
    ];
    for spoil in ways {
        let mut host = with(vec![pooled(1)]);
        host.settle();
        let (victim, _held) = host.lease(1000);
        let (hostile, _also_held) = host.lease(2000);
        host.settle();
        let bridge = host.netd.bridges["a"];
        host.kernel.world().forwarding.remove(&(bridge, victim.mac));
        host.kernel.spoil(IfName::new(&hostile.interface).unwrap(), spoil);
        host.settle();
        assert!(host.netd.book.owned(hostile.id, 2000).is_none() && host.has(&victim.interface));
        assert_eq!(host.netd.book.count("a", 2000), 1, "the quota bounds how often this happens");
        host.goes(&hostile);
        assert_eq!(host.netd.book.count("a", 2000), 0);
    }
}

#[test]
fn a_holder_that_changes_its_interface_without_end_loses_it_though_nothing_is_wrong_with_it() {
    let mut host = with(vec![plain()]);
    let (victim, _held) = host.lease(1000);
    let (hostile, _also_held) = host.lease(2000);
    host.settle();
    let name = IfName::new(&hostile.interface).unwrap();
    for _ in 0..80 {
        host.kernel.spoil(name, |_| {});
    }
    host.settle();
    assert!(host.netd.book.owned(hostile.id, 2000).is_some(), "what may come of the host's own doing");
    for _ in 0..80 {
        host.kernel.spoil(name, |_| {});
    }
    host.settle();
    assert!(host.netd.book.owned(hostile.id, 2000).is_none() && host.has(&victim.interface));
    host.goes(&hostile);
    assert!(host.netd.touches.keys().all(|number| host.netd.book.port(*number).is_some()));
}

#[test]
fn one_turn_deletes_one_interface_however_many_are_overdue() {
    let mut host = with(vec![plain()]);
    let held: Vec<_> = (0..5).map(|_| host.lease(2000)).collect();
    for (lease, _) in &held {
        host.release(2000, lease.id);
    }
    host.settle();
    let later = Instant::now() + std::time::Duration::from_secs(2);
    for gone in 1..=held.len() {
        host.netd.tick(later);
        assert_eq!(host.kernel.world().deleted.len(), gone);
        assert_eq!(host.netd.due().is_some_and(|at| at <= later), gone < held.len(), "the next turn comes at once");
    }
}

#[test]
fn a_mac_that_was_changed_and_changed_back_is_seen() {
    let mut host = with(vec![plain()]);
    let (victim, _held) = host.lease(1000);
    let (hostile, _also_held) = host.lease(2000);
    host.settle();
    let name = IfName::new(&hostile.interface).unwrap();
    let mut own = [0; 6];
    host.kernel.spoil(name, |l| own = std::mem::replace(&mut l.mac, [2, 0, 0, 0, 0, 1]));
    host.kernel.spoil(name, |l| l.mac = own);
    let bridge = host.netd.bridges["a"];
    host.kernel.world().forwarding.remove(&(bridge, victim.mac));
    host.settle();
    host.goes(&hostile);
}

#[test]
fn events_that_were_lost_are_made_up_for() {
    let mut host = with(vec![pooled(1)]);
    host.settle();
    let (first, queues) = host.lease(1000);
    let (second, _held) = host.lease(1000);
    host.settle();
    drop(queues);
    host.kernel.collect(true);
    let bridge = host.netd.bridges["a"];
    let mut world = host.kernel.world();
    world.events.clear();
    world.forwarding.remove(&(bridge, second.mac));
    world.events.push_back(LinkEvent::Lost);
    drop(world);
    host.settle();
    assert!(!host.has(&first.interface));
    host.check();
}

#[test]
fn an_interface_with_a_ports_name_and_no_lease_is_deleted() {
    let mut host = with(vec![plain()]);
    let mut other = host.kernel.clone();
    let _tap = crate::ops::Ops::create_tap(&mut other, IfName::port(77), 1, true).unwrap();
    host.settle();
    assert!(!host.has("vt77"));
    host.check();
}

#[test]
fn a_bridge_that_goes_or_goes_down_is_put_back_with_its_ports() {
    let mut host = with(vec![pooled(1)]);
    host.settle();
    let (lease, _held) = host.lease(1000);
    host.settle();
    let index = host.kernel.index_of("br-a").unwrap();
    host.kernel.remove(index);
    host.settle();
    assert_ne!(host.kernel.index_of("br-a"), Some(index));
    assert!(host.has(&lease.interface));
    host.check();
    host.kernel.spoil(IfName::new("br-a").unwrap(), |l| l.up = false);
    host.settle();
    assert!(host.kernel.world().links.values().all(|l| l.link.up));
    host.check();
}

#[test]
fn without_rules_nothing_is_leased_and_all_comes_back_with_them() {
    let mut host = with(vec![pooled(1)]);
    host.settle();
    let (lease, held) = host.lease(1000);
    host.settle();
    host.kernel.load_rules(false);
    // Also before the event was seen.
    assert_eq!(host.ask(1000, Wanted { forwards: vec![forward(8001)], ..wanted("a") }).unwrap_err(), Refusal::NoRules);
    host.settle();
    assert_eq!(host.ask(1000, wanted("a")).unwrap_err(), Refusal::NoRules);
    assert_eq!(host.netd.due(), None, "it waits for an event, not for a time");
    drop(held);
    host.settle();
    assert!(!host.has(&lease.interface), "what ends meanwhile ends");
    host.kernel.load_rules(true);
    host.settle();
    host.check();
    assert!(host.ask(1000, wanted("a")).is_ok());
}

#[test]
fn netd_starts_before_its_rules_and_leases_when_they_come() {
    let (kernel, scratch) = (FakeKernel::new(), Scratch::new());
    kernel.load_rules(false);
    let netd = start(&kernel, &scratch, vec![pooled(1)]);
    let mut host = Host { kernel, scratch, netd };
    host.settle();
    assert_eq!(host.ask(1000, wanted("a")).unwrap_err(), Refusal::NoRules);
    host.kernel.load_rules(true);
    host.settle();
    assert!(host.ask(1000, wanted("a")).is_ok());
}

#[test]
fn elements_that_should_not_be_there_are_removed_and_missing_ones_added() {
    let mut host = with(vec![plain()]);
    let (lease, _held) = host.ask(1000, Wanted { forwards: vec![forward(8001)], ..wanted("a") }).unwrap();
    let stolen = Element::Forward { protocol: 6, host: 8001, address: [10, 9, 9, 9].into(), guest: 1 };
    let mut world = host.kernel.world();
    world.elements.retain(|e| !matches!(e, Element::Forward { .. }));
    world.elements.insert(stolen);
    world.touched = true;
    drop(world);
    host.settle();
    host.check();
    // Somebody removed what a release is about to remove.
    host.kernel.world().elements.retain(|e| !matches!(e, Element::Lease { .. }));
    assert_eq!(host.release(1000, lease.id), Reply::Released);
    host.check();
}
