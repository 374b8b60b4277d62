//! A hostile holder of a TAP's fd, without any capability: whatever it does with it, nobody else is harmed, and its interface
//! is gone soon.

use netd_api::Wanted;
use std::os::fd::OwnedFd;
use vmsup_tests::frames::{self, UDP};
use vmsup_tests::netd::{NetHost, stranger, tenant, wanted};
use vmsup_tests::netns::as_caller;
use vmsup_tests::wire::Wire;
use vmsup_tests::{as_root, eventually, tun};

/// A victim and an attacker in one network, and the attacker's TAP in the attacker's hands.
struct Holders {
    host: NetHost,
    victim: Wire,
    hostile: Wire,
}

fn holders(queues: u8) -> Holders {
    let host = NetHost::shared();
    let victim = host.client(tenant()).lease("default", 1).unwrap();
    let hostile = host.client(stranger()).lease_of(Wanted { queues, ..wanted("default", 2) }).unwrap();
    assert!(victim.passes() && hostile.passes());
    Holders { host, victim, hostile }
}

impl Holders {
    /// What the attacker does with its TAP, in the host's namespace, without a capability.
    fn attack<T: Send>(&self, work: impl FnOnce(&OwnedFd) -> T + Send) -> T {
        let tap = &self.hostile.queues[0];
        self.host.inside.run(|| as_caller(&stranger(), || work(tap)))
    }

    /// The victim answers the host, and its frames are let through.
    fn victim_is_reached(&self) {
        self.victim.answering(|_| {
            eventually("an answer of the victim's", || {
                // Not from what the host still remembers.
                self.host.inside.feed(&["ip", "neigh", "flush", "all"], "");
                self.host.inside.ping(self.victim.lease.address, 0)
            });
        });
        eventually("the victim's frames to pass", || self.victim.passes());
    }

    fn interface_goes(&self) {
        let name = &self.hostile.lease.interface;
        eventually("the hostile interface to go", || !self.host.ports().contains(name));
        eventually("its elements to go", || !self.host.leased(name));
        eventually("its lease to end", || self.host.client(stranger()).leases().is_empty());
    }
}

#[test]
fn a_tap_that_is_made_to_persist_goes_all_the_same() {
    if !as_root("a_tap_that_is_made_to_persist_goes_all_the_same") {
        return;
    }
    let holders = holders(1);
    holders.attack(|tap| tun::set(tap, tun::TUNSETPERSIST, 1)).unwrap();
    holders.interface_goes();
    holders.victim_is_reached();
    // And where the flag is set in the last moment.
    let late = holders.host.client(stranger()).lease("default", 3).unwrap();
    tun::set(&late.queues[0], tun::TUNSETPERSIST, 1).unwrap();
    drop(late);
    eventually("no port but the victim's", || holders.host.ports() == [holders.victim.lease.interface.clone()]);
}

#[test]
fn a_tap_that_takes_another_vms_address_harms_only_itself() {
    if !as_root("a_tap_that_takes_another_vms_address_harms_only_itself") {
        return;
    }
    let bridge_mac = |h: &Holders| h.host.mac("vmsup0");
    type Chosen = fn(&Holders, [u8; 6]) -> [u8; 6];
    let choices: [(&str, Chosen); 4] = [
        ("the victim's", |h, _| h.victim.lease.mac),
        ("the bridge's", |_, bridge| bridge),
        ("its own guest's", |h, _| h.hostile.lease.mac),
        ("anything", |_, _| [2, 9, 9, 9, 9, 9]),
    ];
    for (what, chosen) in choices {
        let holders = holders(1);
        let mac = chosen(&holders, bridge_mac(&holders));
        // The kernel refuses some by itself.
        let changed = holders.attack(|tap| tun::set_mac(tap, mac)).is_ok();
        if changed {
            holders.interface_goes();
        }
        holders.victim_is_reached();
        let entries = holders.host.inside.json(&["bridge", "-j", "fdb", "show", "br", "vmsup0"]);
        let victim = holders.victim.lease.mac.map(|b| format!("{b:02x}")).join(":");
        let to: Vec<&str> = entries
            .as_array()
            .unwrap()
            .iter()
            .filter(|e| e["mac"] == victim.as_str())
            .filter_map(|e| e["ifname"].as_str())
            .collect();
        assert_eq!(to, [holders.victim.lease.interface.as_str()], "{what}: {entries}");
        assert!(changed || what != "the victim's", "the attack was possible");
    }
}

#[test]
fn nobody_attaches_to_a_tap_a_second_time() {
    if !as_root("nobody_attaches_to_a_tap_a_second_time") {
        return;
    }
    for queues in [1, 2] {
        let holders = holders(queues);
        for name in [&holders.hostile.lease.interface, &holders.victim.lease.interface] {
            for several in [false, true] {
                let refused = holders.attack(|_| tun::attach(name, several)).unwrap_err();
                let code = refused.raw_os_error();
                let codes = [Some(libc::EPERM), Some(libc::EBUSY), Some(libc::EINVAL)];
                assert!(codes.contains(&code), "{name}: {refused}");
            }
        }
        // A holder can name another owner, itself for instance: that is seen, and the interface goes.
        let uid = u64::from(stranger().uid);
        holders.attack(|tap| tun::set(tap, tun::TUNSETOWNER, uid)).unwrap();
        holders.interface_goes();
        holders.victim_is_reached();
    }
}

#[test]
fn a_tap_given_to_a_group_goes() {
    if !as_root("a_tap_given_to_a_group_goes") {
        return;
    }
    let holders = holders(1);
    let gid = u64::from(stranger().gid);
    holders.attack(|tap| tun::set(tap, tun::TUNSETGROUP, gid)).unwrap();
    holders.interface_goes();
    holders.victim_is_reached();
}

#[test]
fn other_offloads_and_no_carrier_are_the_holders_own_loss() {
    if !as_root("other_offloads_and_no_carrier_are_the_holders_own_loss") {
        return;
    }
    let holders = holders(1);
    for offloads in [0, 0x1f, 0x61f, 1] {
        let _ = holders.attack(|tap| tun::set(tap, tun::TUNSETOFFLOAD, offloads));
        holders.victim_is_reached();
    }
    // The carrier: an int behind a pointer.
    let down = 0i32;
    let _ = holders.attack(|tap| tun::set(tap, tun::TUNSETCARRIER, (&raw const down) as u64));
    holders.victim_is_reached();
    let name = holders.hostile.lease.interface.clone();
    drop(holders.hostile);
    eventually("the interface to go with its holder", || !holders.host.ports().contains(&name));
}

#[test]
fn a_flood_of_frames_from_one_tap_leaves_netd_and_its_neighbour_alone() {
    if !as_root("a_flood_of_frames_from_one_tap_leaves_netd_and_its_neighbour_alone") {
        return;
    }
    let holders = holders(1);
    let packet =
        holders.hostile.packet(holders.host.mac("vmsup0"), [192, 0, 2, 2].into(), UDP, &frames::udp(1, 2, &[0; 1000]));
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = holders.hostile.send(&packet);
            }
        });
        for _ in 0..20 {
            holders.host.works(tenant(), "default");
        }
        holders.victim_is_reached();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
