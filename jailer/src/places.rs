//! The workers by slot, and where each is between being made and being forgotten.
//!
//! ```text
//!            made            listens            asked for           found running: an orphan
//!   (free) ───────> Booting ─────────> Warm ─────────────────> Taken <─────────────── (a predecessor's)
//!      ^               │ asked for: keeps the order,             │ ends; is reaped, where it is no orphan
//!      │               │ is Taken when it listens                v
//!      │<── ends ──────┴───────── ends ──┐                     Ended
//!      └─────────────────────────────────┴── forgotten ─────────┘
//! ```
//!
//! A supervisor that hangs up takes along what is empty: Booting and Warm are killed, and so is what was Taken and was
//! not told which VM it is. Taken and Ended stay, and the next supervisor is told of them ([`Place::known`]).
//!
//! A slot (so a uid, a socket's name, a cgroup leaf) is free again only after its worker has ended and, where it was
//! handed over, a supervisor has heard how. Where something listens on a slot's socket that is no worker of ours, it is
//! never given out ([`Places::block`]).

use crate::cgroup::Leaf;
use crate::report::Report;
use jail_spec::{CgroupLimits, HowEnded, Reply, Rlimits, SLOTS_MAX, Slot, Worker};
use rustix::fd::OwnedFd;
use std::collections::{BTreeMap, BTreeSet};

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
    /// Handed over, and ended; kept until a supervisor has heard it.
    Ended(HowEnded),
}

/// One worker.
pub struct Place {
    /// Who it is.
    pub worker: Worker,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// Its report pipe, until it ends; an orphan's broke with the jailer that made it.
    pub report: Option<Report>,
    /// Its cgroup leaf, where there are cgroups, until it ends.
    pub leaf: Option<Leaf>,
    /// Where it is.
    pub phase: Phase,
    /// A predecessor made it: it is no child of this process, which cannot wait for it.
    pub orphan: bool,
    /// A signal has stopped it.
    pub stopped: bool,
    /// What it said before it ended.
    pub last_words: String,
}

impl Place {
    /// What a supervisor that has just come is told of this worker: that it lives (this message carries the pidfd), how
    /// it ended, or nothing.
    pub fn known(&self) -> Option<Reply> {
        match self.phase {
            Phase::Booting(_) | Phase::Warm => None,
            Phase::Taken => Some(Reply::Holds { worker: self.worker, orphan: self.orphan }),
            Phase::Ended(how) => Some(Reply::Ended {
                slot: self.worker.slot,
                pid: self.worker.pid,
                how,
                last_words: self.last_words.clone(),
            }),
        }
    }

    /// True for one that was never handed over: nobody misses it.
    pub fn is_empty(&self) -> bool {
        matches!(self.phase, Phase::Booting(_) | Phase::Warm)
    }
}

/// All of them.
#[derive(Default)]
pub struct Places {
    by_slot: BTreeMap<u32, Place>,
    blocked: BTreeSet<u32>,
}

impl Places {
    /// The lowest free slot below `count`.
    pub fn free(&self, count: u32) -> Option<Slot> {
        let taken = |n: &u32| self.by_slot.contains_key(n) || self.blocked.contains(n);
        (0..count.min(SLOTS_MAX)).find(|n| !taken(n)).map(Slot)
    }

    /// Never gives this slot out.
    pub fn block(&mut self, slot: Slot) {
        self.blocked.insert(slot.0);
    }

    /// True while nobody can be in this slot, living or not.
    pub fn vacant(&self, slot: Slot) -> bool {
        !self.by_slot.contains_key(&slot.0) && !self.blocked.contains(&slot.0)
    }

    /// True where there is nothing to keep.
    pub fn is_empty(&self) -> bool {
        self.by_slot.is_empty()
    }

    /// All of them, by slot.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Place> {
        self.by_slot.values_mut()
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

    /// The slots of workers that were never handed over.
    pub fn empty(&self) -> Vec<Slot> {
        self.by_slot.values().filter(|p| p.is_empty()).map(|p| p.worker.slot).collect()
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
            report: Some(Report::new(reader)),
            leaf: None,
            phase,
            orphan: false,
            stopped: false,
            last_words: "words".into(),
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
        assert_eq!(places.free(4), Some(Slot(3)));
    }

    #[test]
    fn what_was_handed_over_is_told_to_the_next_supervisor_and_what_is_empty_is_not() {
        for phase in [Phase::Booting(None), Phase::Booting(Some(order(1))), Phase::Warm] {
            let place = place(3, phase);
            assert_eq!((place.known(), place.is_empty()), (None, true));
        }
        let mut orphan = place(3, Phase::Taken);
        orphan.orphan = true;
        assert_eq!(orphan.known(), Some(Reply::Holds { worker: orphan.worker, orphan: true }));
        assert!(!orphan.is_empty());
        let ended = place(3, Phase::Ended(HowEnded::Killed(9)));
        let told = Reply::Ended { slot: Slot(3), pid: 1, how: HowEnded::Killed(9), last_words: "words".into() };
        assert_eq!((ended.known(), ended.is_empty()), (Some(told), false));
    }

    #[test]
    fn only_what_is_empty_goes_with_the_supervisor() {
        let mut places = Places::default();
        places.insert(place(0, Phase::Taken));
        places.insert(place(1, Phase::Warm));
        places.insert(place(2, Phase::Ended(HowEnded::Unknown)));
        places.insert(place(3, Phase::Booting(Some(order(1)))));
        places.insert(place(4, Phase::Booting(None)));
        assert_eq!(places.empty(), [Slot(1), Slot(3), Slot(4)]);
    }

    #[test]
    fn a_blocked_slot_is_never_given_out() {
        let mut places = Places::default();
        places.block(Slot(0));
        assert_eq!(places.free(2), Some(Slot(1)));
        assert!(!places.forget(Slot(0)));
        assert_eq!(places.free(1), None);
        assert!(places.is_empty(), "there is nothing to keep in it");
        assert!(!places.vacant(Slot(0)) && places.vacant(Slot(1)));
    }

    #[test]
    fn slots_are_bounded() {
        let mut places = Places::default();
        places.insert(place(0, Phase::Taken));
        assert_eq!(places.free(1), None);
        assert_eq!(Places::default().free(u32::MAX), Some(Slot(0)));
    }
}
