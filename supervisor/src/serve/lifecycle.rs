//! The life of a VM as a pure function: (state, event) → (state, effects). The actor in [`super::vm`] feeds it and
//! carries out what it says; nothing else decides what comes next.
//!
//! ```text
//!             Made               Started              StopAsked
//!  Making ────────────▶ Handing ─────────▶ Running ─────────────▶ Stopping
//!    │                     │                  │                       │
//!    │ StopAsked           │ StartFailed      │ KillAsked             │ KillAsked
//!    │ KillAsked           │ StopAsked        │                       │ DeadlinePassed
//!    ▼             Made    │ KillAsked        ▼                       │
//!  Cancelled ─────────────▶└─────────────▶ Ending ◀───────────────────┘
//!    │                                        │
//!    │ MakeFailed                             │ WorkerEnded, WorkerLost
//!    │ (of Making, too)                       │ (of Handing, Running and Stopping, too)
//!    └──────────────────▶ Ended ◀─────────────┘
//! ```
//!
//! Seen from outside ([`State::outside`]): Making and Handing are `starting`; Cancelled, Stopping and Ending are
//! `stopping`; Ended is `stopped` or `crashed`.
//!
//! Every state but Ended has a way to Ended that needs no cooperation of guest or worker: opening files, making a worker
//! and handing over have deadlines, and a worker that was killed ends.

use crate::api::types::{EndKind, VmState};

/// Where a VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its files are opened and its worker is asked of the jailer.
    Making,
    /// It was asked to end before its worker was there.
    Cancelled,
    /// Its worker is given the VM.
    Handing,
    /// Its vCPUs run.
    Running,
    /// The power button was pressed.
    Stopping,
    /// Its worker was killed and is not reaped yet.
    Ending(Cause),
    /// Nothing of it runs any more.
    Ended(EndKind),
}

/// Why a worker was killed by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Someone asked for it.
    Asked,
    /// It could not be given its VM.
    StartFailed,
}

/// What happens to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The worker is there.
    Made,
    /// There will be no worker.
    MakeFailed,
    /// The worker says that the vCPUs run.
    Started,
    /// The worker said no, something wrong, or nothing in time.
    StartFailed,
    /// Someone wants it stopped.
    StopAsked,
    /// Someone wants it killed.
    KillAsked,
    /// The power button did not help in time.
    DeadlinePassed,
    /// The jailer reaped the worker.
    WorkerEnded {
        /// What the worker's exit says.
        kind: EndKind,
        /// SIGKILL ended it.
        sigkill: bool,
    },
    /// The worker is gone, and so is the jailer that could say how.
    WorkerLost,
}

/// What the actor is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Send the VM to its worker.
    GiveVm,
    /// Send the power button to the worker.
    PressPowerButton,
    /// Have `DeadlinePassed` come when the stop's time is over; an earlier deadline that is armed already stays.
    ArmDeadline,
    /// SIGKILL to the worker.
    Kill,
}

/// Effects of one step, at most two.
pub type Effects = &'static [Effect];

/// The next state and what to do on the way there. An event that means nothing in a state changes nothing.
pub fn next(state: State, event: Event) -> (State, Effects) {
    use Effect::*;
    use Event::*;
    match (state, event) {
        (State::Ended(_), _) => (state, &[]),

        (State::Making, Made) => (State::Handing, &[GiveVm]),
        (State::Making, MakeFailed) => (State::Ended(EndKind::StartFailed), &[]),
        (State::Making, StopAsked | KillAsked) => (State::Cancelled, &[]),
        (State::Cancelled, Made) => (State::Ending(Cause::Asked), &[Kill]),
        (State::Cancelled, MakeFailed) => (State::Ended(EndKind::Killed), &[]),
        (State::Making | State::Cancelled, _) => (state, &[]),

        (State::Handing, Started) => (State::Running, &[]),
        (State::Handing, StartFailed) => (State::Ending(Cause::StartFailed), &[Kill]),
        (State::Handing, StopAsked | KillAsked) => (State::Ending(Cause::Asked), &[Kill]),
        // A guest may be quicker than the word that it runs: its end says so, too.
        (State::Handing, WorkerEnded { kind, .. }) if is_guests(kind) => (State::Ended(kind), &[]),
        (State::Handing, WorkerEnded { .. } | WorkerLost) => (State::Ended(EndKind::StartFailed), &[]),

        (State::Running, StopAsked) => (State::Stopping, &[PressPowerButton, ArmDeadline]),
        (State::Stopping, StopAsked) => (State::Stopping, &[ArmDeadline]),
        (State::Stopping, DeadlinePassed) => (State::Ending(Cause::Asked), &[Kill]),
        (State::Running | State::Stopping, KillAsked) => (State::Ending(Cause::Asked), &[Kill]),
        (State::Running | State::Stopping, WorkerEnded { kind, .. }) => (State::Ended(kind), &[]),
        (State::Running | State::Stopping, WorkerLost) => (State::Ended(EndKind::Unknown), &[]),

        (State::Ending(Cause::StartFailed), WorkerEnded { .. } | WorkerLost) => {
            (State::Ended(EndKind::StartFailed), &[])
        }
        // The guest may have ended by itself just before the signal: then that is how it ended.
        (State::Ending(Cause::Asked), WorkerEnded { kind, sigkill }) => {
            (State::Ended(if sigkill { EndKind::Killed } else { kind }), &[])
        }
        (State::Ending(Cause::Asked), WorkerLost) => (State::Ended(EndKind::Killed), &[]),

        (State::Handing | State::Running | State::Stopping | State::Ending(_), _) => (state, &[]),
    }
}

/// True for the ends that only a guest that ran can have.
pub fn is_guests(kind: EndKind) -> bool {
    matches!(kind, EndKind::Shutdown | EndKind::Reset | EndKind::GuestCrashed)
}

impl State {
    /// What the API says of it.
    pub fn outside(self) -> VmState {
        match self {
            State::Making | State::Handing => VmState::Starting,
            State::Running => VmState::Running,
            State::Cancelled | State::Stopping | State::Ending(_) => VmState::Stopping,
            State::Ended(kind) if kind.is_clean() => VmState::Stopped,
            State::Ended(_) => VmState::Crashed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [EndKind; 7] = [
        EndKind::Shutdown,
        EndKind::Reset,
        EndKind::Killed,
        EndKind::GuestCrashed,
        EndKind::WorkerCrashed,
        EndKind::StartFailed,
        EndKind::Unknown,
    ];

    fn states() -> Vec<State> {
        let mut all = vec![
            State::Making,
            State::Cancelled,
            State::Handing,
            State::Running,
            State::Stopping,
            State::Ending(Cause::Asked),
            State::Ending(Cause::StartFailed),
        ];
        all.extend(KINDS.map(State::Ended));
        all
    }

    fn events() -> Vec<Event> {
        use Event::*;
        let mut all = vec![Made, MakeFailed, Started, StartFailed, StopAsked, KillAsked, DeadlinePassed, WorkerLost];
        for kind in KINDS {
            all.push(WorkerEnded { kind, sigkill: false });
        }
        all.push(WorkerEnded { kind: EndKind::WorkerCrashed, sigkill: true });
        all
    }

    fn has_worker(state: State) -> bool {
        matches!(state, State::Handing | State::Running | State::Stopping | State::Ending(_))
    }

    fn ended(state: State) -> bool {
        matches!(state, State::Ended(_))
    }

    #[test]
    fn the_end_is_final() {
        for kind in KINDS {
            for event in events() {
                assert_eq!(next(State::Ended(kind), event), (State::Ended(kind), &[][..]), "{event:?}");
            }
        }
    }

    #[test]
    fn a_worker_is_always_gone_before_the_end() {
        for state in states().into_iter().filter(|s| has_worker(*s)) {
            for event in events() {
                let gone = matches!(event, Event::WorkerEnded { .. } | Event::WorkerLost);
                assert_eq!(ended(next(state, event).0), gone, "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn a_kill_ends_every_state_with_no_help_of_guest_or_worker() {
        for state in states() {
            let mut after = next(state, Event::KillAsked).0;
            if after == State::Cancelled {
                // The jailer answers, or its deadline passes.
                assert!(ended(next(after, Event::MakeFailed).0));
                after = next(after, Event::Made).0;
            }
            assert!(ended(after) || matches!(after, State::Ending(_)), "{state:?} {after:?}");
            let reaped = Event::WorkerEnded { kind: EndKind::WorkerCrashed, sigkill: true };
            assert!(ended(next(after, reaped).0), "{state:?}");
            assert!(ended(next(after, Event::WorkerLost).0), "{state:?}");
        }
    }

    #[test]
    fn whoever_enters_ending_kills_and_nobody_else_does() {
        for state in states() {
            for event in events() {
                let (after, effects) = next(state, event);
                let enters = matches!(after, State::Ending(_)) && !matches!(state, State::Ending(_));
                assert_eq!(effects.contains(&Effect::Kill), enters, "{state:?} {event:?} {after:?}");
            }
        }
    }

    #[test]
    fn a_vm_is_given_away_once_and_only_by_the_step_into_handing() {
        for state in states() {
            for event in events() {
                let (after, effects) = next(state, event);
                let enters = after == State::Handing && state != State::Handing;
                assert_eq!(effects.contains(&Effect::GiveVm), enters, "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn a_stop_arms_a_deadline_that_leads_to_a_kill() {
        let (state, effects) = next(State::Running, Event::StopAsked);
        assert_eq!((state, effects), (State::Stopping, &[Effect::PressPowerButton, Effect::ArmDeadline][..]));
        let (again, effects) = next(state, Event::StopAsked);
        assert_eq!((again, effects), (State::Stopping, &[Effect::ArmDeadline][..]));
        assert_eq!(next(again, Event::DeadlinePassed), (State::Ending(Cause::Asked), &[Effect::Kill][..]));
    }

    #[test]
    fn an_end_is_called_by_its_cause() {
        let reaped = |kind, sigkill| Event::WorkerEnded { kind, sigkill };
        let asked = State::Ending(Cause::Asked);
        assert_eq!(next(asked, reaped(EndKind::WorkerCrashed, true)).0, State::Ended(EndKind::Killed));
        assert_eq!(next(asked, reaped(EndKind::Shutdown, false)).0, State::Ended(EndKind::Shutdown));
        assert_eq!(next(State::Running, reaped(EndKind::WorkerCrashed, true)).0, State::Ended(EndKind::WorkerCrashed));
        assert_eq!(next(State::Stopping, reaped(EndKind::Shutdown, false)).0, State::Ended(EndKind::Shutdown));
        assert_eq!(next(State::Handing, reaped(EndKind::WorkerCrashed, false)).0, State::Ended(EndKind::StartFailed));
        assert_eq!(next(State::Handing, reaped(EndKind::Reset, false)).0, State::Ended(EndKind::Reset));
        assert_eq!(next(State::Running, Event::WorkerLost).0, State::Ended(EndKind::Unknown));
    }

    /// Random walks: whatever comes in whatever order, the outside view only moves forward.
    #[test]
    fn the_outside_view_never_goes_back() {
        let rank = |s: State| match s.outside() {
            VmState::Starting => 0,
            VmState::Running | VmState::Paused => 1,
            VmState::Stopping | VmState::Restarting => 2,
            VmState::Stopped | VmState::Crashed => 3,
        };
        let events = events();
        let mut random = 0x2545_f491_4f6c_dd1du64;
        for _ in 0..20_000 {
            let mut state = State::Making;
            for _ in 0..12 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let event = events[(random % events.len() as u64) as usize];
                let (after, _) = next(state, event);
                assert!(rank(after) >= rank(state), "{state:?} {event:?} {after:?}");
                state = after;
            }
        }
    }
}
