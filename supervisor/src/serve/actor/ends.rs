//! A VM's end: how it is called, how it is written down, and what comes after it.
//!
//! The order keeps what a supervisor that dies in between needs: the row says how it ended, then the handle goes, then the
//! jailer forgets the worker. Where the row goes, too, it goes after the handle, from which the VM would come back. Whoever is
//! told of the end is told after that.

use super::{Actor, AskedStart};
use crate::api::types::{ApiError, Desired, End, EndKind, ErrorCode, EventKind};
use crate::serve::Context;
use crate::serve::adopt::{Found, How};
use crate::serve::fault::{self, Step};
use crate::serve::jail::Held;
use crate::serve::lifecycle::{After, Event, State, is_guests};
use crate::serve::registry::Place;
use crate::serve::restart::{self, Decision};
use crate::serve::state::Change;
use crate::serve::vm::{Reply, Vm, unix_time};
use crate::spec::Restart;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// How long the end of a VM waits for its row to be written. A disk that hangs keeps nobody from starting it again.
const WRITE: Duration = Duration::from_secs(5);
/// How long it waits for netd to take the leases back, so that the next run gets its forwards.
const RELEASE: Duration = Duration::from_secs(2);
/// How long it waits for a worker that was killed and whose end nobody has seen.
const END: Duration = Duration::from_secs(3);
/// How long a retired VM is found at most.
const GRACE: Duration = Duration::from_secs(10);

/// What is told once the end is written down.
pub struct Told {
    /// Who asked for the start that failed, or for the one whose guest was quicker than the word that it ran.
    answer: Option<(Reply, Result<(), ApiError>)>,
    /// Why it ended.
    reason: String,
    /// What is said of the restart.
    restart: Option<String>,
    /// It never ran, and its owner had asked for it: nothing of that is kept.
    undone: bool,
    /// Whether it was stopped to be started anew.
    anew: Anew,
}

/// Whether a start comes after a stop that was for that.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Anew {
    No,
    /// By who stopped it.
    Theirs,
    /// By us: who stopped it has gone with an earlier supervisor.
    Ours,
}

impl Actor {
    /// Writes the end down and decides what comes.
    pub(super) fn record(&mut self) {
        let State::Ended { kind, asked } = self.state else { return };
        fault::here(Step::EndHeard);
        let quick = is_guests(kind) && self.run.failure.is_none() && self.run.held.is_some();
        if quick && self.run.began.is_none() {
            self.runs();
            self.emit(EventKind::Started, "its vCPUs ran");
        }
        let ran = self.run.began.is_some() || self.run.meanwhile.is_some();
        let failure = (!ran && kind == EndKind::StartFailed).then(|| self.failure());
        let reason = failure.as_ref().map_or_else(|| self.reason(kind), |failure| failure.message.clone());
        let (kind, reason) = if asked && self.comes_back() && kind.is_clean() {
            // As when it goes down without a word: both are followed by a start.
            (EndKind::HostDown, format!("the host goes down: {reason}"))
        } else {
            (kind, reason)
        };
        tracing::info!(?kind, reason, "ended");
        self.context.metrics.ended(kind);
        self.intent.ended(End { kind, reason: reason.clone(), at: unix_time() });
        let mut told = Told { answer: None, reason, restart: None, undone: false, anew: Anew::No };
        let (change, after) = match self.asked.take() {
            Some(AskedStart { told: asker, before }) if !ran => {
                told.answer = Some((asker, Err(failure.unwrap_or_else(|| self.stopped_before()))));
                told.undone = true;
                self.undo(before)
            }
            asker => {
                told.answer = asker.map(|asked| (asked.told, Ok(())));
                self.intent.confirmed = true;
                self.decide(kind, asked, &mut told)
            }
        };
        self.run.told = Some(told);
        let (context, number) = (self.context.clone(), self.intent.number);
        let (nets, control) = (std::mem::take(&mut self.run.nets), self.run.control.take());
        let mut held = self.run.held.take();
        let writing = self.run.writing.take();
        let forgotten = self.intent.remove_when_ended;
        self.step = Some(Box::pin(async move {
            if let Some(held) = &mut held {
                held.gone(END).await;
            }
            let (first, then) = match change {
                Change::Remove(_) => (None, Some(change)),
                _ => (Some(change), None),
            };
            write(&context, first).await;
            fault::here(Step::EndWritten);
            if let Some(writing) = writing {
                // Its disk may hang, too.
                let _ = tokio::time::timeout(WRITE, writing).await;
            }
            if let Err(error) = context.handles.remove(number) {
                tracing::error!(%error, "the handle of a VM that has ended could not be removed");
            }
            fault::here(Step::EndHandleRemoved);
            match then {
                // What nobody waits for: a row without a handle is removed by the next supervisor, too.
                Some(change) if forgotten => context.store.queue(change),
                then => write(&context, then).await,
            }
            let leased = !nets.leases.is_empty();
            drop((nets, control));
            if leased {
                let _ = tokio::time::timeout(RELEASE, context.netd.settled()).await;
            }
            if after == After::Remove {
                context.storage.remove(number).await;
            }
            fault::here(Step::EndReleased);
            // Its jailer forgets it now.
            drop(held);
            fault::here(Step::EndLetGo);
            super::steps::Done::Recorded(after)
        }));
    }

    /// A start that failed or was given up leaves nothing: no row of a new VM, the row of one that was there as it was.
    fn undo(&mut self, before: Option<crate::serve::state::Intent>) -> (Change, After) {
        match before {
            Some(before) => {
                // Its handle is one of a run that is over.
                let run = self.intent.runs;
                self.intent = before;
                (self.intent.runs, self.intent.over) = (run, run);
                self.intent.desired = Desired::Stopped;
                (Change::Put(Box::new(self.intent.clone())), After::Rest)
            }
            None => (Change::Remove(self.intent.number), After::Remove),
        }
    }

    /// What comes after a run.
    fn decide(&mut self, kind: EndKind, asked: bool, told: &mut Told) -> (Change, After) {
        if self.intent.remove_when_ended {
            return (Change::Remove(self.intent.number), After::Remove);
        }
        if std::mem::take(&mut self.intent.again) {
            told.anew = if self.run.renewed { Anew::Theirs } else { Anew::Ours };
            return (Change::Put(Box::new(self.intent.clone())), After::Rest);
        }
        let backoff = self.intent.spec.backoff.clone().unwrap_or_default();
        let ran = self.run.began.map_or(Duration::ZERO, |began| began.elapsed());
        let decision = restart::decide(self.intent.spec.restart, &backoff, kind, self.row, ran);
        let after = match decision {
            Decision::Again { after, nth } if !asked => {
                (self.row, self.clock.back_off) = (nth, after);
                let count = self.intent.restarts.saturating_add(1);
                told.restart = Some(format!("started again in {} s (restart {count})", after.as_secs()));
                After::BackOff
            }
            Decision::GiveUp(row) if !asked => {
                told.reason += &format!("; given up after {row} restarts in a row");
                After::Rest
            }
            _ => After::Rest,
        };
        if after == After::Rest && self.comes_back() {
            // The next supervisor begins anew with it.
            self.intent.restarts = 0;
        } else if after == After::Rest {
            self.intent.desired = Desired::Stopped;
        }
        (Change::Put(Box::new(self.intent.clone())), after)
    }

    /// It ends because the host does, and is to run when that is back.
    fn comes_back(&self) -> bool {
        self.host_goes_down && self.intent.comes_back()
    }

    /// It is time for a restart; none where there is no place for it now.
    pub(super) fn restart_is_due(&mut self) -> Option<Event> {
        self.clock.restart_at = None;
        match self.context.registry.enter() {
            Ok(place) => {
                self.run.place = Some(place);
                self.intent.restarts = self.intent.restarts.saturating_add(1);
                let nth = self.intent.restarts;
                let cause = match self.clock.owed {
                    true => "it is to run, and an earlier supervisor did not see to it".to_owned(),
                    false => format!("restart {nth}, as its file says"),
                };
                self.emit(EventKind::Starting, &cause);
                self.save();
                Some(if self.state == State::Resting { Event::StartAsked } else { Event::BackOffOver })
            }
            Err(error) => {
                tracing::warn!("no restart now: {}", error.message);
                self.clock.restart_at = Some(Instant::now() + self.clock.back_off.max(Duration::from_secs(30)));
                None
            }
        }
    }

    /// Nothing of it runs any more.
    pub(super) fn came_to_rest(&mut self, before: State) {
        fault::here(Step::EndRests);
        let told = self.run.told.take();
        let forgotten = matches!(before, State::Ended { .. }) && told.as_ref().is_some_and(|told| !told.undone);
        self.run = Default::default();
        (self.clock.deadline, self.clock.overdue) = (None, false);
        // One that waits for its restart is still to run, and its owner's quota is not somebody else's meanwhile.
        if self.state != State::BackingOff {
            self.vm.holds_claim(None);
        }
        match self.state {
            State::Gone if forgotten => {
                self.context.registry.retire(&self.vm);
                forget_later(&self.context, &self.vm);
            }
            State::Gone => self.context.registry.remove(&self.vm),
            _ if self.vm.console().is_ok() => self.context.registry.keep_console(&self.vm),
            _ => {}
        }
        if self.state == State::Resting {
            self.clock.restart_at = None;
            match told.as_ref().map_or(Anew::No, |told| told.anew) {
                Anew::Theirs => {}
                Anew::Ours => {
                    (self.clock.restart_at, self.clock.owed) = (Some(Instant::now()), true);
                    self.vm.charge(&self.context);
                }
                // It was stopped while its end was written down, and a restart was already decided.
                Anew::No if self.intent.desired == Desired::Running && !self.comes_back() => {
                    self.intent.desired = Desired::Stopped;
                    self.save();
                }
                Anew::No => {}
            }
        }
        let Some(Told { answer, reason, restart, .. }) = told else { return };
        self.emit(EventKind::Ended, &reason);
        if let (Some(restart), State::BackingOff) = (restart, self.state) {
            self.emit(EventKind::Restarting, &restart);
        }
        // After others can see it.
        self.publish();
        if let Some((asker, answer)) = answer {
            let _ = asker.send(answer);
        }
    }

    /// How it ended, in a sentence.
    fn reason(&self, kind: EndKind) -> String {
        match (kind, &self.run.meanwhile, &self.run.worker_end) {
            (EndKind::Killed, None, _) if self.clock.overdue => {
                format!("the guest ignored the power button for {} s and was killed", self.clock.patience.as_secs())
            }
            (EndKind::Killed, ..) => "killed on request".into(),
            (EndKind::Unhealthy, ..) => {
                let why = self.run.unwell.as_deref().unwrap_or("it was not well");
                format!("killed, as its file says, since {why}")
            }
            (_, Some(How::Unknown(why) | How::NotBelieved(why)), _) => why.clone(),
            (_, Some(How::HostDown), _) => "the host went down under it, or was started anew".into(),
            (_, _, Some(end)) => end.reason(),
            _ => "the worker is gone, and so is the jailer that could say how it ended".into(),
        }
    }

    pub(super) fn stopped_before(&self) -> ApiError {
        let message = format!("{} was stopped before it ran", self.intent.spec.name);
        ApiError { code: ErrorCode::Conflict, message, field: None }
    }

    /// Why it never ran.
    fn failure(&self) -> ApiError {
        match (&self.run.worker_end, &self.run.failure) {
            (_, Some(failure)) if !self.run.hung_up => failure.clone(),
            // Our own kill followed the hang-up and came first.
            (Some(end), Some(failure)) if end.by_sigkill() => failure.clone(),
            (Some(end), _) => ApiError {
                code: ErrorCode::Internal,
                message: format!("the guest never ran: {}", end.reason()),
                field: None,
            },
            (None, Some(failure)) => failure.clone(),
            (None, None) => ApiError {
                code: ErrorCode::Internal,
                message: "the guest never ran: its worker ended, and nobody could say how".into(),
                field: None,
            },
        }
    }

    /// It was found running.
    pub(super) fn adopt(&mut self, found: Found, place: Option<Place>) {
        let Found { intent, held, control, paused, console, nets, unlimited, started_at, ran } = found;
        self.intent = intent;
        self.intent.confirmed = true;
        self.row = self.intent.restarts;
        self.run.unreachable.store(console.is_none(), Ordering::Release);
        self.run.unlimited = unlimited;
        match console {
            Some(console) => self.vm.set_console(console),
            None => self.vm.no_console(),
        }
        let run = &mut self.run;
        (run.place, run.held, run.control, run.nets) = (place, Some(held), Some(Arc::new(control)), nets);
        (run.began, run.started_at) = (Instant::now().checked_sub(ran), Some(started_at));
        run.began.get_or_insert_with(Instant::now);
        self.state = State::adopted(paused);
        self.entered(State::Resting);
        self.save();
        // Its owner wanted it stopped, for good or to be started anew, and the supervisor that was asked is gone.
        if self.intent.desired == Desired::Stopped || self.intent.again {
            self.clock.patience = super::OLD_STOP;
            self.happened(Event::StopAsked);
        }
    }

    /// It ended while nobody looked.
    pub(super) fn ended_meanwhile(&mut self, how: How, held: Option<Held>, place: Option<Place>) {
        let asked = self.intent.desired == Desired::Stopped || self.intent.again;
        let kind = match &how {
            How::Told(end) if asked && end.by_sigkill() => EndKind::Killed,
            How::Told(end) => end.kind(),
            How::HostDown => EndKind::HostDown,
            How::Unknown(_) => EndKind::Unknown,
            How::NotBelieved(_) => EndKind::WorkerCrashed,
        };
        if let How::Told(end) = &how {
            self.run.worker_end = Some(end.clone());
        }
        (self.run.place, self.run.held, self.run.reaped, self.run.meanwhile) = (place, held, true, Some(how));
        self.row = self.intent.restarts;
        self.state = State::Ended { kind, asked };
        self.record();
    }

    /// It did not run. One that is to run waits for its restart, or for a start that its supervisor did not live to see. That
    /// comes at once; where it is what supervisors do not survive, later each time, as after a crash.
    pub(super) fn rest_on(&mut self) {
        self.row = self.intent.restarts;
        if self.intent.desired == Desired::Stopped {
            return;
        }
        let backoff = self.intent.spec.backoff.clone().unwrap_or_default();
        let decide = |policy, kind| restart::decide(policy, &backoff, kind, self.row, Duration::ZERO);
        let last = self.intent.ends.last().map(|end| end.kind);
        let waits = last.map_or(Decision::Rest, |kind| decide(self.intent.spec.restart, kind));
        self.clock.owed = waits == Decision::Rest;
        let decision = match waits {
            Decision::Rest if self.row == 0 => Decision::Again { after: Duration::ZERO, nth: 1 },
            Decision::Rest => decide(Restart::Always, EndKind::Unknown),
            waits => waits,
        };
        if let Decision::Again { after, nth } = decision {
            (self.row, self.clock.back_off) = (nth, after);
            self.clock.restart_at = Some(Instant::now() + after);
            self.state = State::BackingOff;
            self.vm.charge(&self.context);
        } else {
            self.intent.desired = Desired::Stopped;
            self.save();
        }
        self.publish();
    }
}

/// Writes a VM's end; says so where it does not work, which stops nobody.
async fn write(context: &Context, change: Option<Change>) {
    let Some(change) = change else { return };
    match tokio::time::timeout(WRITE, context.store.write(vec![change])).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the end of a VM could not be written down"),
        Err(_) => tracing::error!("the end of a VM is not written down yet; the disk of the state is slow"),
    }
}

/// Forgets a retired VM after a grace period, whoever has asked until then.
fn forget_later(context: &Arc<Context>, vm: &Arc<Vm>) {
    // Weak: the console of a VM that is forgotten sooner goes at once.
    let (context, vm) = (context.clone(), Arc::downgrade(vm));
    tokio::spawn(async move {
        tokio::time::sleep(GRACE).await;
        if let Some(vm) = vm.upgrade() {
            context.registry.remove(&vm);
        }
    });
}
