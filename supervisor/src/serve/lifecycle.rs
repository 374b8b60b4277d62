//! The life of a VM as a pure function: (state, event) → (state, effects). The actor in [`super::actor`] feeds it and
//! carries out what it says; nothing else decides what comes next. A VM is made once, and runs as often as it is started.
//!
//! ```text
//!                         StartAsked
//!      ┌───────────────────────────────────────── Resting ──RemoveAsked──▶ Gone
//!      │  StartAsked, BackOffOver                    ▲  ▲                   ▲
//!      │ ┌──────────────────────── BackingOff ───────┘  │ Rest              │ Remove
//!      ▼ ▼                             ▲  StopAsked,    │                   │
//!    Making ──StopAsked──▶ Cancelled   │  KillAsked     │                   │
//!      │      KillAsked     │  │       └──BackOff── Ended(kind, asked) ─────┘
//!      │ Made          Made │  │ MakeFailed          ▲  ▲
//!      ▼                    │  └─────────────────────┘  │ WorkerEnded, WorkerLost
//!   Handing ────────────────┼──▶ Ending(cause, asked) ──┤ (of Handing to Stopping, too)
//!      │    StartFailed,    │      ▲                    │
//!      │    StopAsked,   ◀──┘      │ KillAsked, Unwell, │
//!      │    KillAsked              │ DeadlinePassed     │
//!      │ Started                   │                    │
//!      ▼         PauseAsked        │                    │
//!   Running ──────────────▶ Pausing ──PauseDone──▶ Paused
//!    ▲ │ ▲ └──────────◀──────┘ PauseFailed           │ ResumeAsked
//!    │ │ └──ResumeDone── Resuming ◀──────────────────┘ (ResumeFailed: back to Paused)
//!    │ │ StopAsked          (StopAsked of Pausing, Paused and Resuming: power button, then resume)
//!    │ ▼
//!   Stopping ── StopCancelled ▶ Running
//! ```
//!
//! RemoveAsked of BackingOff leads to Gone, too.
//!
//! Seen from outside ([`State::outside`]): Making and Handing are `starting`; Running and Pausing are `running`; Paused and
//! Resuming are `paused`; Cancelled, Stopping, Ending and Ended are `stopping`; BackingOff is `restarting`; Resting is
//! `stopped` or `crashed`, as the last end was.
//!
//! Every state has a way to Resting that needs no cooperation of guest or worker: opening files, making a worker,
//! handing over and writing down an end have deadlines, and a worker that was killed ends.
//!
//! `asked` is the owner's word: a VM whose owner stopped or killed it does not come from Ended to BackingOff, whatever
//! its restart policy says ([`super::restart`]).

use crate::api::types::{EndKind, VmState};

/// Where a VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing of it runs, and nothing will by itself.
    Resting,
    /// Its files are opened and its worker is asked of the jailer.
    Making,
    /// It was asked to end before its worker was there.
    Cancelled,
    /// Its worker is given the VM.
    Handing,
    /// Its vCPUs run.
    Running,
    /// Its worker is asked to stop the vCPUs.
    Pausing,
    /// Its vCPUs stand still.
    Paused,
    /// Its worker is asked to let the vCPUs go on.
    Resuming,
    /// The power button was pressed.
    Stopping,
    /// Its worker was killed and is not reaped yet.
    Ending {
        /// Why.
        cause: Cause,
        /// Its owner wants it to end.
        asked: bool,
    },
    /// Nothing of it runs any more; its end is being written down.
    Ended {
        /// How it ended.
        kind: EndKind,
        /// Its owner wanted it to end.
        asked: bool,
    },
    /// It is started again when its back-off is over.
    BackingOff,
    /// It is no longer there.
    Gone,
}

/// Why a worker was killed by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Someone asked for it.
    Asked,
    /// It could not be given its VM.
    StartFailed,
    /// The VM was not well, and its file says that it is killed then.
    Unwell,
}

/// What happens to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Its owner wants it to run.
    StartAsked,
    /// The worker is there.
    Made,
    /// There will be no worker.
    MakeFailed,
    /// The worker says that the vCPUs run.
    Started,
    /// The worker said no, something wrong, or nothing in time.
    StartFailed,
    /// Someone wants its vCPUs to stand still.
    PauseAsked,
    /// The worker says that they do.
    PauseDone,
    /// The worker does not say so.
    PauseFailed,
    /// Someone wants them to go on.
    ResumeAsked,
    /// The worker says that they do.
    ResumeDone,
    /// The worker does not say so.
    ResumeFailed,
    /// Someone wants it stopped.
    StopAsked,
    /// They want it no longer.
    StopCancelled,
    /// Someone wants it killed.
    KillAsked,
    /// The power button did not help in time.
    DeadlinePassed,
    /// It is not well, and is to be killed for that.
    Unwell,
    /// The jailer reaped the worker.
    WorkerEnded {
        /// What the worker's exit says.
        kind: EndKind,
        /// SIGKILL ended it.
        sigkill: bool,
    },
    /// The worker is gone, and so is the jailer that could say how.
    WorkerLost,
    /// The end is written down, and what comes now is decided.
    Recorded(After),
    /// The back-off is over.
    BackOffOver,
    /// Its owner wants it forgotten.
    RemoveAsked,
}

/// What comes after an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Nothing.
    Rest,
    /// Another start, after a while.
    BackOff,
    /// It is forgotten.
    Remove,
}

/// What the actor is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Open its files and get a worker.
    Make,
    /// Send the VM to its worker.
    GiveVm,
    /// Ask the worker to stop the vCPUs.
    Pause,
    /// Ask the worker to let them go on.
    Resume,
    /// Send the power button to the worker.
    PressPowerButton,
    /// The same, and then let the vCPUs go on, so that the guest can act on it.
    PressAndResume,
    /// Have `DeadlinePassed` come when the stop's time is over; an earlier deadline that is armed already stays.
    ArmDeadline,
    /// No `DeadlinePassed` any more.
    DisarmDeadline,
    /// SIGKILL to the worker.
    Kill,
    /// Write the end down, decide what comes, and have `Recorded` come.
    Record,
    /// Have `BackOffOver` come when it is time for the next start.
    ArmBackOff,
}

/// Effects of one step, at most two.
pub type Effects = &'static [Effect];

/// The next state and what to do on the way there. An event that means nothing in a state changes nothing.
pub fn next(state: State, event: Event) -> (State, Effects) {
    use Event::*;
    match state {
        State::Resting | State::BackingOff | State::Gone => at_rest(state, event),
        State::Making | State::Cancelled | State::Handing => on_its_way(state, event),
        State::Running | State::Pausing | State::Paused | State::Resuming | State::Stopping => alive(state, event),
        State::Ending { cause, asked } => match event {
            WorkerEnded { kind, sigkill } => ended(killed(cause, kind, sigkill), asked),
            WorkerLost => ended(killed(cause, EndKind::Unknown, true), asked),
            StopAsked | KillAsked => (State::Ending { cause, asked: true }, &[]),
            _ => (state, &[]),
        },
        State::Ended { kind, asked } => match event {
            Recorded(After::Remove) => (State::Gone, &[]),
            Recorded(After::BackOff) if !asked => (State::BackingOff, &[Effect::ArmBackOff]),
            Recorded(_) => (State::Resting, &[]),
            StopAsked | KillAsked => (State::Ended { kind, asked: true }, &[]),
            _ => (state, &[]),
        },
    }
}

/// Nothing of it runs.
fn at_rest(state: State, event: Event) -> (State, Effects) {
    use Event::*;
    match (state, event) {
        (State::Resting | State::BackingOff, StartAsked) | (State::BackingOff, BackOffOver) => {
            (State::Making, &[Effect::Make])
        }
        (State::BackingOff, StopAsked | KillAsked) => (State::Resting, &[]),
        (State::Resting | State::BackingOff, RemoveAsked) => (State::Gone, &[]),
        _ => (state, &[]),
    }
}

/// It is being started.
fn on_its_way(state: State, event: Event) -> (State, Effects) {
    use Event::*;
    let ending = |cause, asked| (State::Ending { cause, asked }, &[Effect::Kill][..]);
    match (state, event) {
        (State::Making, Made) => (State::Handing, &[Effect::GiveVm]),
        (State::Making, MakeFailed) => ended(EndKind::StartFailed, false),
        (State::Making, StopAsked | KillAsked) => (State::Cancelled, &[]),
        (State::Cancelled, Made) => ending(Cause::Asked, true),
        (State::Cancelled, MakeFailed) => ended(EndKind::Killed, true),

        (State::Handing, Started) => (State::Running, &[]),
        (State::Handing, StartFailed) => ending(Cause::StartFailed, false),
        (State::Handing, StopAsked | KillAsked) => ending(Cause::Asked, true),
        // A guest may be quicker than the word that it runs: its end says so, too.
        (State::Handing, WorkerEnded { kind, .. }) if is_guests(kind) => ended(kind, false),
        (State::Handing, WorkerEnded { .. } | WorkerLost) => ended(EndKind::StartFailed, false),
        _ => (state, &[]),
    }
}

/// It has its VM.
fn alive(state: State, event: Event) -> (State, Effects) {
    use Event::*;
    let ending = |cause, asked| (State::Ending { cause, asked }, &[Effect::Kill][..]);
    let stopping = state == State::Stopping;
    match (state, event) {
        (_, WorkerEnded { kind, .. }) => ended(kind, stopping),
        (_, WorkerLost) => ended(EndKind::Unknown, stopping),
        (_, KillAsked) => ending(Cause::Asked, true),
        (State::Stopping, DeadlinePassed) => ending(Cause::Asked, true),
        // Who is being stopped has a deadline of its own.
        (State::Running | State::Pausing | State::Paused | State::Resuming, Unwell) => ending(Cause::Unwell, false),

        (State::Running, PauseAsked) => (State::Pausing, &[Effect::Pause]),
        (State::Pausing, PauseDone) => (State::Paused, &[]),
        (State::Pausing, PauseFailed) => (State::Running, &[]),
        (State::Paused, ResumeAsked) => (State::Resuming, &[Effect::Resume]),
        (State::Resuming, ResumeDone) => (State::Running, &[]),
        (State::Resuming, ResumeFailed) => (State::Paused, &[]),

        (State::Running, StopAsked) => (State::Stopping, &[Effect::PressPowerButton, Effect::ArmDeadline]),
        (State::Pausing | State::Paused | State::Resuming, StopAsked) => {
            (State::Stopping, &[Effect::PressAndResume, Effect::ArmDeadline])
        }
        (State::Stopping, StopAsked) => (State::Stopping, &[Effect::ArmDeadline]),
        (State::Stopping, StopCancelled) => (State::Running, &[Effect::DisarmDeadline]),
        _ => (state, &[]),
    }
}

fn ended(kind: EndKind, asked: bool) -> (State, Effects) {
    (State::Ended { kind, asked }, &[Effect::Record])
}

/// How a VM ended whose worker we killed. The guest may have ended by itself just before the signal: then that is how.
fn killed(cause: Cause, kind: EndKind, sigkill: bool) -> EndKind {
    match cause {
        Cause::StartFailed => EndKind::StartFailed,
        _ if !sigkill => kind,
        Cause::Asked => EndKind::Killed,
        Cause::Unwell => EndKind::Unhealthy,
    }
}

/// True for the ends that only a guest that ran can have.
pub fn is_guests(kind: EndKind) -> bool {
    matches!(kind, EndKind::Shutdown | EndKind::Reset | EndKind::GuestCrashed)
}

impl State {
    /// Where a VM is that was found running.
    pub fn adopted(paused: bool) -> State {
        if paused { State::Paused } else { State::Running }
    }

    /// True where nothing of it runs and nothing is about to.
    pub fn rests(self) -> bool {
        matches!(self, State::Resting | State::BackingOff | State::Gone)
    }

    /// True where its worker has its VM and was not killed.
    pub fn has_guest(self) -> bool {
        use State::*;
        matches!(self, Running | Pausing | Paused | Resuming | Stopping)
    }

    /// What the API says of it. `last` is how it ended the last time.
    pub fn outside(self, last: Option<EndKind>) -> VmState {
        match self {
            State::Making | State::Handing => VmState::Starting,
            State::Running | State::Pausing => VmState::Running,
            State::Paused | State::Resuming => VmState::Paused,
            State::Cancelled | State::Stopping | State::Ending { .. } | State::Ended { .. } => VmState::Stopping,
            State::BackingOff => VmState::Restarting,
            State::Resting | State::Gone if last.is_none_or(EndKind::is_clean) => VmState::Stopped,
            State::Resting | State::Gone => VmState::Crashed,
        }
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
