//! The owner of a VM's state: one task for each VM, from when it is taken on until it is removed.
//!
//! It feeds what happens (a step done, a request, the worker's end, a deadline, something seen of the guest) to
//! [`super::lifecycle`] and carries out the effects. Nobody else changes the VM; a slow step of one VM is its own actor's, so
//! no other VM waits for it.
//!
//! ```text
//! mod.rs    the loop: what happens, and who carries it out
//! steps.rs  what takes time: making a worker, giving it the VM, power button, pause
//! asks.rs   what others ask of the VM
//! ends.rs   its end: written down, told, and what comes after it
//! tell.rs   what others see of it
//! ```

use super::Context;
use super::adopt::{Found, How};
use super::console::Console;
use super::end::WorkerEnd;
use super::fault::{self, Step as Point};
use super::health::{Monitor, Sight};
use super::jail::Held;
use super::lifecycle::{self, Effect, Event, State};
use super::nets::Interfaces;
use super::registry::Place;
use super::side::Received;
use super::start::{Parcel, Stages};
use super::state::{Change, Intent};
use super::vm::{Ask, Reply, Vm};
use super::watcher::Watcher;
use super::worker::Control;
use crate::api::types::{ApiError, EventKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use steps::Step;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::Instrument;

mod asks;
mod ends;
mod steps;
mod tell;

/// Time that the guest of a stop has which an earlier supervisor began.
const OLD_STOP: Duration = Duration::from_secs(30);

/// Where an actor begins.
pub enum Origin {
    /// A VM is made and started.
    New {
        /// Its place among those that run.
        place: Place,
        /// Its files, where its owner handed them over.
        files: Option<Received>,
        /// Who asked.
        told: Reply,
    },
    /// A VM was found running.
    Found {
        /// All of it.
        found: Box<Found>,
        /// Its place.
        place: Option<Place>,
    },
    /// A VM ended while there was no supervisor.
    Ended {
        /// How.
        how: How,
        /// Its worker, while the jailer is to remember it.
        held: Option<Held>,
        /// Its place.
        place: Option<Place>,
    },
    /// A VM did not run.
    Resting,
}

/// The owner of a VM's state.
pub struct Actor {
    context: Arc<Context>,
    vm: Arc<Vm>,
    inbox: mpsc::Receiver<Ask>,
    state: State,
    /// What the VM is. Others see a copy of it.
    intent: Intent,
    step: Option<Step>,
    run: Run,
    clock: Clock,
    /// The start that its owner asked for, while it is under way.
    asked: Option<AskedStart>,
    /// Who waits for a pause or a resume.
    waiters: Vec<(Goal, Reply)>,
    /// Restarts in a row; see [`super::restart`].
    row: u32,
    /// It was stopped because the host goes down: it is to run when that is back.
    host_goes_down: bool,
}

/// What there is of one run; all of it goes at its end.
#[derive(Default)]
struct Run {
    place: Option<Place>,
    /// What its owner handed over for this run, until it begins.
    files: Option<Received>,
    /// Dropped when nobody wants its files to be imported any more.
    importing: Option<oneshot::Sender<()>>,
    held: Option<Held>,
    /// Its worker has ended.
    reaped: bool,
    worker_end: Option<WorkerEnd>,
    /// Its worker has said that it runs, and its handle is still being written.
    given: Arc<AtomicBool>,
    /// What happened before what is being waited for was through.
    late: Option<Event>,
    parcel: Option<Parcel>,
    stages: Option<Stages>,
    control: Option<Arc<Control>>,
    /// Its console, until it runs: that of the run before is shown as long.
    console: Option<Arc<Console>>,
    /// Its handle is being written.
    writing: Option<tokio::task::JoinHandle<()>>,
    /// It was found with a worker that did not hand its console over, so that this is still to be asked for.
    unreachable: Arc<AtomicBool>,
    /// Why the limits of its file are not in force, though there is a cgroup for them.
    unlimited: Option<String>,
    /// Its network interfaces; released after the worker has gone.
    nets: Interfaces,
    /// When its vCPUs began to run, and the same in seconds since 1970.
    began: Option<Instant>,
    started_at: Option<u64>,
    /// When its worker began to be given it, seconds since 1970.
    handed_at: Option<u64>,
    monitor: Option<Monitor>,
    watcher: Option<Watcher>,
    /// Why it never ran.
    failure: Option<ApiError>,
    /// The failure is only that the worker went away.
    hung_up: bool,
    /// Why the last pause or resume failed.
    refused: Option<String>,
    /// Why it was killed without having been asked for.
    unwell: Option<String>,
    /// How it ended, of a run that no actor of ours has seen.
    meanwhile: Option<How>,
    /// That it is to be stopped is being written down.
    noting: Option<steps::Noting>,
    /// Who stops it starts it anew.
    renewed: bool,
    /// What is told once its end is written down.
    told: Option<ends::Told>,
}

/// What is waited for, by the monotonic clock: the host's own time may be set at any moment.
#[derive(Default)]
struct Clock {
    /// Time that the last stop gave the guest, and when it is over.
    patience: Duration,
    deadline: Option<Instant>,
    overdue: bool,
    /// Time until the next start, and when it is over.
    back_off: Duration,
    restart_at: Option<Instant>,
    /// That start is one that an earlier supervisor did not see to.
    owed: bool,
}

/// A start that its owner asked for.
struct AskedStart {
    told: Reply,
    /// What the VM was before; none where it is new.
    before: Option<Intent>,
}

/// What somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    Paused,
    Running,
}

impl Actor {
    /// Sets a VM's actor going. Needs a runtime.
    pub fn spawn(context: &Arc<Context>, vm: &Arc<Vm>, inbox: mpsc::Receiver<Ask>, origin: Origin) {
        let intent = Intent::clone(&vm.intent());
        let mut actor = Actor {
            context: context.clone(),
            vm: vm.clone(),
            inbox,
            state: State::Resting,
            intent,
            step: None,
            run: Run::default(),
            clock: Clock::default(),
            asked: None,
            waiters: Vec::new(),
            row: 0,
            host_goes_down: false,
        };
        // What is queued to be written is queued by now, and the VM is shown as what it is.
        // In all that is logged of it, whatever else is not logged.
        let span = tracing::error_span!("vm", id = actor.intent.id(), name = actor.intent.spec.name);
        span.in_scope(|| actor.begin(origin));
        tokio::spawn(actor.run().instrument(span));
    }

    fn begin(&mut self, origin: Origin) {
        match origin {
            Origin::New { place, files, told } => {
                self.run.files = files;
                self.emit(EventKind::Created, "taken on");
                self.asked = Some(AskedStart { told, before: None });
                self.run.place = Some(place);
                self.emit(EventKind::Starting, "asked for by its owner");
                // With the word that it runs, most often: until then nobody counts on it.
                self.context.store.queue(Change::Put(Box::new(self.intent.clone())));
                fault::here(Point::CreateQueued);
                self.happened(Event::StartAsked);
            }
            Origin::Found { found, place } => self.adopt(*found, place),
            Origin::Ended { how, held, place } => self.ended_meanwhile(how, held, place),
            Origin::Resting => self.rest_on(),
        }
    }

    /// From the first step until the VM is removed.
    async fn run(mut self) {
        while self.state != State::Gone {
            if let Some(event) = self.event().await {
                self.happened(event);
            }
        }
    }

    /// Takes an event in: the next state, the effects, what others see of it.
    fn happened(&mut self, event: Event) {
        let (state, effects) = lifecycle::next(self.state, event);
        let before = std::mem::replace(&mut self.state, state);
        for effect in effects {
            self.apply(*effect);
        }
        if state != before {
            self.entered(before);
        }
        self.tell_waiters();
    }

    /// The next thing that happens; `None` where it means nothing to the VM's life.
    async fn event(&mut self) -> Option<Event> {
        if self.step.is_none()
            && let Some(late) = self.run.late.take()
        {
            return Some(late);
        }
        let Actor { step, run, inbox, clock, .. } = self;
        let Run { held, reaped, watcher, .. } = run;
        tokio::select! {
            biased;
            done = async { step.as_mut().expect("guarded").await }, if step.is_some() => {
                *step = None;
                self.done(done)
            }
            end = async { held.as_mut().expect("guarded").ended().await }, if held.is_some() && !*reaped => {
                *reaped = true;
                let event = end.as_ref().map_or(Event::WorkerLost, |end| {
                    Event::WorkerEnded { kind: end.kind(), sigkill: end.by_sigkill() }
                });
                self.run.worker_end = end;
                // It had said that it runs, and only the handle is still being written: first it ran, then it ended.
                if self.step.is_some() && self.run.given.load(Ordering::Acquire) {
                    self.run.late = Some(event);
                    return None;
                }
                Some(event)
            }
            Some(ask) = inbox.recv() => self.asked_for(ask),
            () = at(clock.deadline) => {
                clock.deadline = None;
                clock.overdue = true;
                Some(Event::DeadlinePassed)
            }
            () = at(clock.restart_at) => self.restart_is_due(),
            sight = async { watcher.as_mut().expect("guarded").next().await }, if watcher.is_some() => self.saw(sight),
        }
    }

    /// Something was seen of the guest or its worker.
    fn saw(&mut self, sight: Sight) -> Option<Event> {
        if sight == Sight::Answered && self.run.unreachable.swap(false, Ordering::AcqRel) {
            self.ask_console();
        }
        let (Some(watcher), Some(monitor)) = (&self.run.watcher, &mut self.run.monitor) else { return None };
        let still = matches!(self.state, State::Pausing | State::Paused | State::Resuming);
        // The time of a guest that stands still does not count against it.
        if still && sight == Sight::Beat {
            return None;
        }
        let before = monitor.shown();
        let news = monitor.see(sight, watcher.age());
        let changed = monitor.shown() != before;
        // Whoever is being stopped has a deadline already.
        let unwell = monitor.to_be_killed().filter(|_| self.state != State::Stopping).map(str::to_owned);
        if let Some(news) = news {
            self.emit(news.kind, &news.cause);
        }
        if changed {
            self.publish();
        }
        self.run.unwell = Some(unwell?);
        Some(Event::Unwell)
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Make => self.make(),
            Effect::GiveVm => self.give(),
            Effect::Pause => self.pause(),
            Effect::Resume => self.resume(),
            Effect::PressPowerButton => self.press(false),
            Effect::PressAndResume => self.press(true),
            Effect::ArmDeadline => {
                let wanted = Instant::now() + self.clock.patience;
                self.clock.deadline = Some(self.clock.deadline.map_or(wanted, |armed| armed.min(wanted)));
            }
            Effect::DisarmDeadline => self.clock.deadline = None,
            Effect::Kill => {
                // The signal first: a worker whose socket closes might leave by itself, and look as if it had failed.
                if let Some(held) = &self.run.held {
                    held.kill();
                    fault::here(Point::KillSent);
                }
                // Whatever was under way is given up; what it held closes.
                (self.step, self.run.parcel, self.clock.deadline) = (None, None, None);
            }
            Effect::Record => self.record(),
            Effect::ArmBackOff => self.clock.restart_at = Some(Instant::now() + self.clock.back_off),
        }
    }

    /// The state is another one.
    fn entered(&mut self, before: State) {
        if self.state.has_guest() && !before.has_guest() {
            self.watch();
        }
        if !self.state.has_guest() {
            (self.run.watcher, self.run.monitor) = (None, None);
        }
        if let Some(watcher) = &mut self.run.watcher {
            watcher.pause(matches!(self.state, State::Pausing | State::Paused | State::Resuming));
        }
        if self.state == State::Cancelled {
            self.run.importing = None;
        }
        if self.state.rests() {
            self.came_to_rest(before);
        }
        self.publish();
        self.announce(before);
    }
}

/// Waits until then; for ever where there is no then.
async fn at(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}
