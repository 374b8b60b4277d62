//! Attacks by a tenant whose supervisor is his own, and by his guests: on netd's time, on the quotas, on what others have
//! in common with him (the host's tables), and around the rules. Each failed to be resisted once.

use netd_api::Refusal;
use std::sync::atomic::{AtomicBool, Ordering};
use vmsup_tests::netd::{NetHost, stranger, tenant};
use vmsup_tests::netns::{Caller, as_caller};
use vmsup_tests::{as_root, eventually, tun, user};

#[test]
fn subordinate_uids_are_no_further_members_of_their_owners_groups() {
    if !as_root("subordinate_uids_are_no_further_members_of_their_owners_groups") {
        return;
    }
    let host = NetHost::start(
        "[[network]]\nname = \"default\"\nbridge = \"vmsup0\"\nsubnet = \"10.77.0.1/24\"\ngroups = [4242]\nleases = 1\npool = 0\n",
    );
    let member = |uid| Caller { uid, gid: tenant().gid, groups: vec![4242] };
    let subuids = std::fs::read_to_string("/etc/subuid").unwrap();
    let mut range =
        subuids.lines().find(|l| l.starts_with("vmsup-test:")).expect("subordinate uids").split(':').skip(1);
    let first: u32 = range.next().unwrap().parse().unwrap();
    let own = host.client(member(tenant().uid)).lease("default", 1).unwrap();
    for n in [0, 1, 65535] {
        // As in a user namespace of his own, where changing the uid leaves the groups alone.
        let other = host.client(member(first + n));
        assert_eq!(other.lease("default", 1).unwrap_err(), Refusal::NoSuchNetwork, "subordinate uid {n}");
        assert_eq!(other.networks(), []);
    }
    let another = host.client(member(stranger().uid)).lease("default", 1).unwrap();
    assert!(own.passes() && another.passes());
}

#[test]
fn a_tap_that_is_touched_without_end_goes() {
    if !as_root("a_tap_that_is_touched_without_end_goes") {
        return;
    }
    let host = NetHost::shared();
    let victim = host.client(tenant()).lease("default", 1).unwrap();
    let hostile = host.client(stranger()).lease("default", 2).unwrap();
    let owner = user::netd().uid.into();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            host.inside.run(|| {
                as_caller(&stranger(), || {
                    // The owner that it has already: every call is an event of the interface, and none shows a fault.
                    while !over.load(Ordering::Relaxed) {
                        let _ = tun::set(&hostile.queues[0], tun::TUNSETOWNER, owner);
                    }
                })
            })
        });
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _over = Over(&over);
        eventually("the hostile interface to go", || !host.ports().contains(&hostile.lease.interface));
        host.works(tenant(), "default");
    });
    assert!(victim.passes());
    let lost = host.log().lines().filter(|l| l.contains("were lost")).count();
    assert!(lost < 10, "{lost} times events were lost");
}
