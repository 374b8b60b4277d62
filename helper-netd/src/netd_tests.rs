//! netd on a kernel in memory: every rule that holds between book, kernel and journal.

use super::*;
use crate::journal::replay;
use crate::ops::{IfName, LinkEvent};
use crate::permit::Who;
use crate::testing::{BOOT, FakeKernel, Random, Scratch, caller, lease_request, network, start, wanted};
use netd_api::{Forward, Lease, LeaseId, Protocol, Reply, Request, Wanted};

struct Host {
    kernel: FakeKernel,
    scratch: Scratch,
    netd: Netd<FakeKernel>,
}

fn with(networks: Vec<Network>) -> Host {
    let (kernel, scratch) = (FakeKernel::new(), Scratch::new());
    let netd = start(&kernel, &scratch, networks);
    Host { kernel, scratch, netd }
}

fn plain() -> Network {
    let forwards = vec![(Who { users: vec![1000, 2000], groups: vec![], ..Who::default() }, vec![(8000, 8999)])];
    Network {
        who: Who { users: vec![1000, 2000], groups: vec![], ..Who::default() },
        forwards,
        ..network("a", "br-a", "10.1.0.1", 24)
    }
}

fn pooled(pool: u8) -> Network {
    Network { pool, ..plain() }
}

fn forward(host: u16) -> Forward {
    Forward { protocol: Protocol::Tcp, host, guest: 80 }
}

impl Host {
    /// As the loop does it: the kernel's events, then what is due.
    fn pump(&mut self) {
        self.kernel.collect(true);
        for _ in 0..20 {
            self.netd.link_events();
            self.netd.rule_events();
            self.netd.tick(Instant::now());
            while self.netd.refill(Instant::now()) {}
        }
    }

    /// Until nothing is left to do.
    fn settle(&mut self) {
        self.pump();
        assert!(self.kernel.world().events.is_empty());
    }

    fn ask(&mut self, uid: u32, wanted: Wanted) -> Result<(Lease, Vec<OwnedFd>), Refusal> {
        match self.netd.answer(&caller(uid), &Request::Lease(wanted)) {
            (Reply::Leased(lease), queues) => Ok((lease, queues)),
            (Reply::Refused(refusal), _) => Err(refusal),
            (other, _) => panic!("{other:?}"),
        }
    }

    fn lease(&mut self, uid: u32) -> (Lease, Vec<OwnedFd>) {
        self.ask(uid, wanted("a")).unwrap()
    }

    fn release(&mut self, uid: u32, lease: LeaseId) -> Reply {
        self.netd.answer(&caller(uid), &Request::Release { lease }).0
    }

    fn restart(&mut self, networks: Vec<Network>) {
        self.netd.warm.clear();
        self.kernel.collect(true);
        self.netd = start(&self.kernel, &self.scratch, networks);
        self.settle();
    }

    /// A disobedient holder's interface is unplugged, and a second later it is gone.
    fn goes(&mut self, hostile: &Lease) {
        let index = self.kernel.index_of(&hostile.interface).expect("its holder has a second");
        let link = self.kernel.world().links[&index].link.clone();
        assert_eq!((link.bridge, link.up), (None, false));
        self.check();
        let due = self.netd.due().expect("its deletion is due");
        self.netd.delete_overdue(due);
        self.settle();
        assert!(!self.has(&hostile.interface));
        self.check();
    }

    fn has(&self, name: &str) -> bool {
        self.kernel.index_of(name).is_some()
    }

    /// What must hold whenever netd has nothing left to do.
    fn check(&self) {
        let world = self.kernel.world();
        assert_eq!(world.elements, self.netd.desired(), "the kernel's sets are what the book says");
        let mut addresses = BTreeSet::new();
        let mut macs = BTreeSet::new();
        for port in self.netd.book.ports() {
            assert!(addresses.insert((port.network.clone(), port.address)), "{} twice", port.address);
            let link = &world.links.get(&port.index).expect("a port has its interface").link;
            assert_eq!(link.name, port.name());
            if port.live() {
                assert!(macs.insert((port.network.clone(), port.mac)), "a MAC twice");
                let bridge = self.netd.bridges[&port.network];
                assert_eq!((link.bridge, link.up), (Some(bridge), true), "{} is plugged and up", port.name());
                assert_eq!(world.forwarding.get(&(bridge, port.mac)), Some(&port.index), "{} is reached", port.name());
            }
        }
        let known: BTreeSet<u32> = self.netd.book.ports().map(|p| p.index).collect();
        let ports: BTreeSet<u32> =
            world.links.values().filter(|l| l.link.name.port_number().is_some()).map(|l| l.link.index).collect();
        assert_eq!(known, ports, "no interface without its port");
        let text = std::fs::read_to_string(self.scratch.0.join("journal")).unwrap();
        let told = replay(&text, BOOT);
        assert_eq!(told.faults, Vec::<String>::new());
        assert!(told.book.leases().eq(self.netd.book.leases()), "the journal tells the same leases");
        assert_eq!((told.book.last_port, told.book.last_lease), (self.netd.book.last_port, self.netd.book.last_lease));
    }
}

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

#[test]
fn replies_tell_a_caller_of_itself_only() {
    let mut host = with(vec![plain()]);
    let (mine, _held) = host.lease(1000);
    let (_, _also) = host.lease(2000);
    let Reply::Networks(networks) = host.netd.answer(&caller(1000), &Request::Networks).0 else { panic!() };
    assert_eq!((networks[0].leases, networks[0].limit, &*networks[0].forwards), (1, 16, &[(8000, 8999)][..]));
    let Reply::Leases(leases) = host.netd.answer(&caller(1000), &Request::Leases { after: LeaseId(0) }).0 else {
        panic!()
    };
    assert_eq!(leases.iter().map(|l| l.id).collect::<Vec<_>>(), [mine.id]);
    assert_eq!(host.netd.answer(&caller(3000), &Request::Networks).0, Reply::Networks(vec![]));
    assert_eq!(host.netd.answer(&caller(3000), &Request::Leases { after: LeaseId(0) }).0, Reply::Leases(vec![]));
    let Reply::Status(status) = host.netd.answer(&caller(3000), &Request::Status).0 else { panic!() };
    assert_eq!((status.rules, status.leases, status.bridges_down.len()), (true, 2, 0));
}

#[test]
fn leases_are_told_in_pages() {
    let mut host = with(vec![Network { leases: 100, ..plain() }]);
    let held: Vec<_> = (0..70).map(|_| host.lease(1000)).collect();
    let mut seen = Vec::new();
    loop {
        let after = seen.last().copied().unwrap_or(LeaseId(0));
        let Reply::Leases(page) = host.netd.answer(&caller(1000), &Request::Leases { after }).0 else { panic!() };
        assert!(page.len() <= netd_api::PAGE);
        seen.extend(page.iter().map(|l| l.id));
        if page.len() < netd_api::PAGE {
            break;
        }
    }
    assert_eq!(seen, held.iter().map(|(l, _)| l.id).collect::<Vec<_>>());
}

#[test]
fn the_largest_replies_fit_their_frame() {
    let wide = |n: u8| {
        let (name, bridge) = (format!("{n:02}{}", "x".repeat(29)), format!("br{n:013}"));
        let mut net = Network { leases: 64, ..network(&name, &bridge, &format!("10.{n}.0.1"), 16) };
        net.forwards = vec![(net.who.clone(), (0..9).map(|p| (40_000 + p, 50_000 + p)).collect())];
        net
    };
    let mut host = with((0..netd_api::NETWORKS_MAX as u8).map(wide).collect());
    let name = host.netd.networks[0].name.clone();
    let mut held = Vec::new();
    for vm in 0..netd_api::PAGE as u16 {
        let forwards = (0..16).map(|n| Forward { protocol: Protocol::Udp, host: 40_000 + 16 * vm + n, guest: 65_535 });
        let asked = Wanted { forwards: forwards.collect(), vm: netd_api::VmId(u64::MAX), ..wanted(&name) };
        held.push(host.ask(1000, asked).unwrap());
    }
    for request in [Request::Networks, Request::Leases { after: LeaseId(0) }, Request::Status] {
        let reply = host.netd.answer(&caller(1000), &request).0;
        let bytes = ipc::codec::encode(&reply, <Reply as ipc::Message>::MAX_BYTES);
        assert!(bytes.is_ok(), "{request:?}: {:?}", bytes.map(|b| b.len()));
    }
}

#[test]
fn what_is_out_of_bounds_is_refused() {
    let mut host = with(vec![plain()]);
    let twice = vec![forward(8001), Forward { guest: 81, ..forward(8001) }];
    let many = (0..17).map(|n| forward(8000 + n)).collect();
    for wrong in [
        Wanted { queues: 0, ..wanted("a") },
        Wanted { queues: 5, ..wanted("a") },
        Wanted { forwards: vec![forward(0)], ..wanted("a") },
        Wanted { forwards: vec![Forward { guest: 0, ..forward(8001) }], ..wanted("a") },
        Wanted { forwards: twice, ..wanted("a") },
        Wanted { forwards: many, ..wanted("a") },
    ] {
        assert_eq!(host.ask(1000, wrong).unwrap_err(), Refusal::Invalid);
    }
    assert_eq!(
        host.netd.answer(&caller(1000), &lease_request(&"x".repeat(200))).0,
        Reply::Refused(Refusal::NoSuchNetwork)
    );
    assert!(host.kernel.world().names.is_empty());
}

/// Anything that anybody can do, in any order: after each step nothing contradicts anything else.
#[test]
fn ten_thousand_random_steps_leave_book_kernel_and_journal_in_agreement() {
    let small = Network { who: plain().who, leases: 5, pool: 1, ..network("b", "br-b", "10.2.0.1", 29) };
    let first = Network { leases: 6, ..pooled(2) };
    let all = vec![first, small];
    let mut host = with(all.clone());
    let mut random = Random(0x5eed);
    let mut held: Vec<(u32, Lease, Vec<OwnedFd>)> = Vec::new();
    let mut leased = 0;
    for _ in 0..10_000 {
        let uid = [1000, 2000][random.below(2)];
        match random.below(24) {
            0..8 => {
                let network = ["a", "b"][random.below(2)];
                let forwards = if random.below(3) == 0 && network == "a" {
                    vec![forward(8000 + random.below(4) as u16)]
                } else {
                    vec![]
                };
                let mac_suffix = (random.below(4) == 0).then(|| [1, 0, random.below(6) as u8]);
                let asked = Wanted { queues: 1 + random.below(2) as u8, forwards, mac_suffix, ..wanted(network) };
                if let Ok((lease, queues)) = host.ask(uid, asked) {
                    leased += 1;
                    held.push((uid, lease, queues));
                }
            }
            8..12 if !held.is_empty() => {
                let (owner, lease, queues) = held.swap_remove(random.below(held.len()));
                let reply = host.release(owner, lease.id);
                assert!(matches!(reply, Reply::Released | Reply::Refused(Refusal::NotYours)));
                if random.below(2) == 0 {
                    held.push((owner, lease, queues));
                }
            }
            12..17 if !held.is_empty() => drop(held.swap_remove(random.below(held.len()))),
            17 if !held.is_empty() => {
                let name = IfName::new(&held[random.below(held.len())].1.interface).unwrap();
                if host.kernel.index_of(name.as_str()).is_some() {
                    let way = random.below(3);
                    host.kernel.spoil(name, |l| match way {
                        0 => l.mac[5] ^= 0x80,
                        1 => l.up = false,
                        _ => l.tun.as_mut().unwrap().persist = true,
                    });
                }
            }
            18 => host.kernel.world().events.push_back(LinkEvent::Lost),
            19 => {
                let step = ["create_tap", "plug", "change", "elements", "delete_link"][random.below(5)];
                host.kernel.world().failing.insert(step, 1);
                match held.pop() {
                    Some((owner, lease, queues)) if random.below(2) == 0 => {
                        host.release(owner, lease.id);
                        drop(queues);
                    }
                    rest => held.extend(rest),
                }
                if let Ok((lease, queues)) = host.ask(uid, Wanted { queues: 2, ..wanted("a") }) {
                    held.push((uid, lease, queues));
                }
            }
            20 => {
                host.kernel.load_rules(false);
                host.kernel.load_rules(true);
            }
            21 => host.restart(all.clone()),
            22 => {
                let keep = random.below(3);
                host.netd.reload(all[..keep].to_vec()).unwrap();
            }
            _ => {
                if let Some(index) = host.kernel.index_of(["br-a", "br-b"][random.below(2)]) {
                    host.kernel.remove(index);
                }
            }
        }
        // With the fault, where one was told; then without.
        host.pump();
        host.kernel.world().failing.clear();
        host.netd.resting.clear();
        if host.netd.retry.take().is_some() {
            host.netd.reconcile();
            host.netd.write_journal();
        }
        if random.below(3) == 0 {
            host.netd.delete_overdue(Instant::now() + Duration::from_secs(2));
        }
        host.settle();
        host.check();
    }
    assert!(leased > 500, "{leased} leases were had");
    drop(held);
    host.netd.delete_overdue(Instant::now() + Duration::from_secs(2));
    host.settle();
    assert_eq!(host.netd.book.leases().count(), 0);
    host.check();
}
