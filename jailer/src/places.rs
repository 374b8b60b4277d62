//! The workers by slot, and where each is between being made and being forgotten.
//!
//! ```text
//!            made            listens            asked for
//!   (free) ───────> Booting ─────────> Warm ─────────────────> Taken
//!      ^               │ asked for: keeps the order,             │ ends, is reaped
//!      │               │ is Taken when it listens                v
//!      │<── ends ──────┴───────── ends ──┐                     Ended
//!      └─────────────────────────────────┴── forgotten ─────────┘
//! ```
//!
//! A slot (so a uid, a socket's name, a cgroup leaf) is free again only after its worker was reaped and, where it was
//! handed over, the supervisor has heard how it ended.

use crate::cgroup::Leaf;
use crate::report::Report;
use jail_spec::{CgroupLimits, HowEnded, Rlimits, SLOTS_MAX, Slot, Worker};
use rustix::fd::OwnedFd;
use std::collections::BTreeMap;

/// What the supervisor asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Comes back in the answer.
    pub seq: u64,
    /// For the cgroup leaf.
    pub limits: Option<CgroupLimits>,
    /// For prlimit.
    pub rlimits: Rlimits,
}

/// Where a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Made, not listening yet; perhaps somebody waits for it.
    Booting(Option<Order>),
    /// Listening, empty, in the pool.
    Warm,
    /// Handed over.
    Taken,
    /// Handed over, ended and reaped; kept until the supervisor has heard it.
    Ended(HowEnded),
}

/// One worker.
pub struct Place {
    /// Who it is.
    pub worker: Worker,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// Its report pipe.
    pub report: Report,
    /// Its cgroup leaf, where there are cgroups.
    pub leaf: Option<Leaf>,
    /// Where it is.
    pub phase: Phase,
}

/// All of them.
#[derive(Default)]
pub struct Places {
    by_slot: BTreeMap<u32, Place>,
}

impl Places {
    /// The lowest free slot below `count`.
    pub fn free(&self, count: u32) -> Option<Slot> {
        (0..count.min(SLOTS_MAX)).find(|n| !self.by_slot.contains_key(n)).map(Slot)
    }

    /// Puts a worker in its slot.
    pub fn insert(&mut self, place: Place) {
        self.by_slot.insert(place.worker.slot.0, place);
    }

    /// The worker of a slot.
    pub fn get(&mut self, slot: Slot) -> Option<&mut Place> {
        self.by_slot.get_mut(&slot.0)
    }

    /// Frees a slot.
    pub fn remove(&mut self, slot: Slot) -> Option<Place> {
        self.by_slot.remove(&slot.0)
    }

    /// Frees the slot of a worker that has ended and that the supervisor has heard of; of no other.
    pub fn forget(&mut self, slot: Slot) -> bool {
        let ended = matches!(self.by_slot.get(&slot.0), Some(Place { phase: Phase::Ended(_), .. }));
        ended && self.by_slot.remove(&slot.0).is_some()
    }

    /// The slot of a worker that can be asked for now: a warm one first, else one that boots for nobody yet.
    pub fn candidate(&self) -> Option<(Slot, Phase)> {
        let of = |wanted: Phase| self.by_slot.values().find(|p| p.phase == wanted).map(|p| (p.worker.slot, p.phase));
        of(Phase::Warm).or_else(|| of(Phase::Booting(None)))
    }

    /// How many are in the pool or on their way there.
    pub fn pooled(&self) -> u32 {
        self.by_slot.values().filter(|p| matches!(p.phase, Phase::Warm | Phase::Booting(None))).count() as u32
    }

    /// All slots in use.
    pub fn slots(&self) -> Vec<Slot> {
        self.by_slot.keys().copied().map(Slot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(slot: u32, phase: Phase) -> Place {
        let (reader, _) = std::io::pipe().unwrap();
        Place {
            worker: Worker { slot: Slot(slot), pid: 1, start_time: 0, uid: 0 },
            pidfd: rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
                .unwrap(),
            report: Report::new(reader),
            leaf: None,
            phase,
        }
    }

    fn order(seq: u64) -> Order {
        Order { seq, limits: None, rlimits: Rlimits { fsize: 0, address_space: 0, nproc: 1, memlock: 0 } }
    }

    #[test]
    fn a_warm_worker_is_taken_before_one_that_boots() {
        let mut places = Places::default();
        places.insert(place(0, Phase::Booting(None)));
        assert_eq!(places.candidate(), Some((Slot(0), Phase::Booting(None))));
        places.insert(place(1, Phase::Warm));
        assert_eq!(places.candidate(), Some((Slot(1), Phase::Warm)));
    }

    #[test]
    fn one_that_somebody_waits_for_is_nobody_elses() {
        let mut places = Places::default();
        places.insert(place(0, Phase::Booting(Some(order(1)))));
        places.insert(place(1, Phase::Taken));
        places.insert(place(2, Phase::Ended(HowEnded::Exited(0))));
        assert_eq!(places.candidate(), None);
        assert_eq!(places.pooled(), 0);
    }

    #[test]
    fn a_slot_is_free_again_only_after_it_was_forgotten() {
        let mut places = Places::default();
        places.insert(place(0, Phase::Ended(HowEnded::Killed(9))));
        assert_eq!(places.free(2), Some(Slot(1)));
        assert!(places.forget(Slot(0)));
        assert_eq!(places.free(2), Some(Slot(0)));
    }

    #[test]
    fn a_running_worker_cannot_be_forgotten() {
        let mut places = Places::default();
        for (slot, phase) in [(0, Phase::Taken), (1, Phase::Warm), (2, Phase::Booting(None))] {
            places.insert(place(slot, phase));
            assert!(!places.forget(Slot(slot)));
        }
        assert!(!places.forget(Slot(77)));
        assert_eq!(places.slots().len(), 3);
    }

    #[test]
    fn slots_are_bounded() {
        let mut places = Places::default();
        places.insert(place(0, Phase::Taken));
        assert_eq!(places.free(1), None);
        assert_eq!(Places::default().free(u32::MAX), Some(Slot(0)));
    }
}
