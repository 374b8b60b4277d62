//! Connections end before their address has another holder.

use super::*;

#[test]
fn an_address_has_no_connections_of_its_last_holder_when_it_gets_a_port() {
    let small = || Network { prefix: 29, ..pooled(1) };
    let mut host = with(vec![small()]);
    host.settle();
    let gateway = small().address;
    let (kept, _kept) = host.lease(1000);
    host.kernel.world().flows.extend([gateway, kept.address]);
    for round in 0..30 {
        let (lease, queues) = host.lease(1000 + round % 2 * 1000);
        let flows = host.kernel.world().flows.clone();
        assert!(!flows.contains(&lease.address), "round {round}");
        assert!(flows.is_superset(&[gateway, kept.address].into()), "what is in use goes on");
        host.kernel.world().flows.insert(lease.address);
        drop(queues);
        host.settle();
    }
    let sweeps = host.kernel.world().sweeps;
    assert!(sweeps < 16, "{sweeps} times: one is for all free addresses");
    host.restart(vec![small()]);
    let left: BTreeSet<_> = host.netd.book.leases().map(|(p, _)| p.address).chain([gateway, kept.address]).collect();
    assert!(host.kernel.world().flows.is_subset(&left), "nor what an earlier netd knew of");
    host.check();
}

#[test]
fn while_connections_cannot_be_ended_a_soiled_address_gets_no_port() {
    let mut host = with(vec![plain()]);
    host.settle();
    let (first, queues) = host.lease(1000);
    drop(queues);
    host.settle();
    host.netd.reload(vec![plain()]).unwrap();
    host.netd.swept = false;
    let names = host.kernel.world().names.len();
    host.kernel.world().failing.insert("forget_flows", 1);
    assert_eq!(host.ask(2000, wanted("a")).unwrap_err(), Refusal::Failed, "after {}", first.address);
    assert_eq!(host.kernel.world().names.len(), names, "nothing was made");
    assert!(host.ask(2000, wanted("a")).is_ok());
}

#[test]
fn what_came_to_a_udp_forward_too_early_is_forgotten_once_it_leads_somewhere() {
    let mut host = with(vec![plain()]);
    let udp = Forward { protocol: Protocol::Udp, ..forward(8002) };
    for fails in [0, 1] {
        host.kernel.world().failing.insert("forget_knocks", fails);
        let (lease, _queues) = host.ask(1000, Wanted { forwards: vec![forward(8001), udp], ..wanted("a") }).unwrap();
        assert_eq!(host.kernel.world().knocks, [(vec![8002], 1)], "only UDP, and a failure costs no lease");
        assert_eq!(host.release(1000, lease.id), Reply::Released);
    }
}

#[test]
fn a_lease_that_never_left_leaves_no_connections_in_the_pool() {
    let mut host = with(vec![pooled(1)]);
    host.settle();
    for fails in [0, 1] {
        let request = Request::Lease(Wanted { forwards: vec![forward(8001)], ..wanted("a") });
        let (reply, queues) = host.netd.answer(&caller(1000), &request);
        let Reply::Leased(lease) = &reply else { panic!("{reply:?}") };
        host.kernel.world().flows.insert(lease.address);
        host.kernel.world().failing.insert("forget_flows", fails);
        host.netd.undelivered(&caller(1000), &request, &reply, queues);
        assert_eq!(host.kernel.world().flows.len(), fails as usize);
        assert_eq!(host.netd.warm.is_empty(), fails == 1, "what is soiled is not warm");
        assert_eq!(host.netd.book.is_soiled(lease.address), fails == 1);
        host.settle();
        host.check();
    }
}

#[test]
fn where_connections_cannot_be_ended_addresses_stay_with_their_uids_as_long_as_others_are_free() {
    let mut host = with(vec![Network { leases: 300, ..plain() }]);
    host.kernel.world().blind = true;
    let (first, queues) = host.lease(1000);
    drop(queues);
    host.settle();
    for _ in 0..600 {
        let (lease, queues) = host.lease(2000);
        assert_ne!(lease.address, first.address);
        drop(queues);
        host.settle();
    }
    assert!(host.netd.blind);
    host.check();
}
