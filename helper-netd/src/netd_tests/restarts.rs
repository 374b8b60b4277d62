//! A netd that comes back, and one that reads its configuration again.

use super::*;

#[test]
fn a_restart_keeps_leases_quotas_and_numbers() {
    let mut limited = pooled(1);
    limited.leases = 2;
    let mut host = with(vec![limited.clone()]);
    host.settle();
    let (kept, _held) = host.ask(1000, Wanted { forwards: vec![forward(8001)], ..wanted("a") }).unwrap();
    let (_, lost) = host.lease(1000);
    host.settle();
    drop(lost);
    host.kernel.world().events.clear();
    host.restart(vec![limited]);
    host.check();
    assert_eq!(host.netd.book.leases().map(|(_, h)| h.id).collect::<Vec<_>>(), [kept.id]);
    let (next, _also) = host.lease(1000);
    assert!(next.id > kept.id);
    assert_eq!(host.ask(1000, wanted("a")).unwrap_err(), Refusal::Quota { limit: 2 });
    assert_eq!(host.release(1000, kept.id), Reply::Released);
}

#[test]
fn disobedience_while_netd_was_away_is_seen_at_its_return() {
    let mut host = with(vec![plain()]);
    let (hostile, _held) = host.lease(2000);
    let (victim, _also) = host.lease(1000);
    host.kernel.spoil(IfName::new(&hostile.interface).unwrap(), |l| l.mac = [2, 0, 0, 0, 0, 1]);
    let bridge = host.netd.bridges["a"];
    host.kernel.world().forwarding.remove(&(bridge, victim.mac));
    host.restart(vec![plain()]);
    host.goes(&hostile);
}

#[test]
fn a_lost_journal_costs_the_leases_and_no_name_comes_twice() {
    let mut host = with(vec![plain()]);
    let (lease, _held) = host.lease(1000);
    std::fs::remove_file(host.scratch.0.join("journal")).unwrap();
    host.restart(vec![plain()]);
    assert!(!host.has(&lease.interface));
    // The fake refuses a name that was there before.
    host.lease(1000);
    host.settle();
    host.check();
}

#[test]
fn a_removed_network_keeps_its_leases_through_a_restart_and_leases_no_more() {
    let mut host = with(vec![plain()]);
    let (_, held) = host.lease(1000);
    host.netd.reload(vec![]).unwrap();
    for _ in 0..2 {
        assert_eq!(host.ask(1000, wanted("a")).unwrap_err(), Refusal::NoSuchNetwork);
        assert_eq!(host.netd.book.leases().count(), 1);
        host.check();
        host.restart(vec![]);
    }
    let moved = vec![network("a", "br-a", "10.9.0.1", 24)];
    assert!(matches!(host.netd.reload(moved.clone()), Err(config::Error::InUse(_))));
    drop(held);
    host.settle();
    assert!(host.netd.networks.is_empty() && host.kernel.world().elements.is_empty());
    host.netd.reload(moved).unwrap();
    assert!(host.lease(1000).0.address.to_string().starts_with("10.9.0."));
}

#[test]
fn a_new_configuration_changes_pools_quotas_and_permissions_and_no_lease() {
    let mut host = with(vec![pooled(3)]);
    host.settle();
    let (_, _held) = host.lease(1000);
    host.settle();
    let mut new = pooled(1);
    (new.leases, new.nat, new.who.users) = (1, false, vec![1000]);
    host.netd.reload(vec![new.clone()]).unwrap();
    host.settle();
    assert_eq!((host.netd.warm.len(), host.netd.book.leases().count()), (1, 1));
    assert_eq!(host.ask(1000, wanted("a")).unwrap_err(), Refusal::Quota { limit: 1 });
    assert_eq!(host.ask(2000, wanted("a")).unwrap_err(), Refusal::NoSuchNetwork);
    host.check();
    let before: BTreeSet<u32> = host.netd.warm.keys().copied().collect();
    new.isolated = false;
    host.netd.reload(vec![new]).unwrap();
    host.settle();
    assert!(before.iter().all(|n| !host.netd.warm.contains_key(n)), "a warm port has the old isolation");
    host.check();
}
