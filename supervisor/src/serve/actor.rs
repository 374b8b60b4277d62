//! The owner of a VM's state: one task for each VM.
//!
//! It feeds what happens (a step done, a request, the worker's end, a deadline) to [`super::lifecycle`] and carries out
//! the effects. Nobody else changes the VM; a slow step of one VM is its own actor's, so no other VM waits for it.

use super::Context;
use super::end::WorkerEnd;
use super::jail::Held;
use super::lifecycle::{self, Effect, Event, State};
use super::nets::Interfaces;
use super::start::{self, NotTaken, Parcel, Prepared, Stages};
use super::vm::{Ask, Vm};
use super::worker::{Control, ControlError};
use crate::api::types::{ApiError, End, EndKind, ErrorCode, VmState, WorkerInfo};
use netd_api::VmId;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use worker_api::{Stats, Timings};

/// What the actor is busy with.
type Step = Pin<Box<dyn Future<Output = Done> + Send>>;

enum Done {
    Prepared(Result<Box<Prepared>, ApiError>),
    Given(Result<(Control, Timings), NotTaken>),
    Pressed(Result<(), ControlError>),
}

/// The owner of a VM's state.
pub struct Actor {
    context: Arc<Context>,
    vm: Arc<Vm>,
    inbox: mpsc::Receiver<Ask>,
    state: State,
    step: Option<Step>,
    parcel: Option<(Parcel, Stages)>,
    stages: Option<Stages>,
    held: Option<Held>,
    control: Option<Arc<Control>>,
    /// Its network interfaces; released when the actor goes, which is after the worker has.
    nets: Interfaces,
    /// Time that the last stop gave the guest, and when it is over.
    patience: Duration,
    deadline: Option<Instant>,
    overdue: bool,
    failure: Option<ApiError>,
    /// The failure is only that the worker went away.
    hung_up: bool,
    worker_end: Option<WorkerEnd>,
}

impl Actor {
    /// With the first step under way once it runs.
    pub fn new(context: Arc<Context>, vm: Arc<Vm>, inbox: mpsc::Receiver<Ask>) -> Actor {
        let step: Step = {
            let (context, vm) = (context.clone(), vm.clone());
            Box::pin(
                async move { Done::Prepared(start::prepare(&context, VmId(vm.number), &vm.spec).await.map(Box::new)) },
            )
        };
        Actor {
            context,
            vm,
            inbox,
            state: State::Making,
            step: Some(step),
            parcel: None,
            stages: None,
            held: None,
            control: None,
            nets: Interfaces::default(),
            patience: Duration::ZERO,
            deadline: None,
            overdue: false,
            failure: None,
            hung_up: false,
            worker_end: None,
        }
    }

    /// From the first step to the end of the VM.
    pub async fn run(mut self) {
        loop {
            let Some(event) = self.event().await else { continue };
            let (state, effects) = lifecycle::next(self.state, event);
            let before = std::mem::replace(&mut self.state, state);
            for effect in effects {
                self.apply(*effect);
            }
            if let State::Ended(kind) = state {
                return self.end(kind);
            }
            if state != before {
                self.publish();
            }
        }
    }

    /// The next thing that happens; `None` where it means nothing to the VM's life.
    async fn event(&mut self) -> Option<Event> {
        let Actor { step, held, inbox, deadline, .. } = self;
        tokio::select! {
            biased;
            done = async { step.as_mut().expect("guarded").await }, if step.is_some() => {
                *step = None;
                self.done(done)
            }
            end = async { held.as_mut().expect("guarded").ended().await }, if held.is_some() => {
                self.held = None;
                let event = end.as_ref().map_or(Event::WorkerLost, |end| {
                    Event::WorkerEnded { kind: end.kind(), sigkill: end.by_sigkill() }
                });
                self.worker_end = end;
                Some(event)
            }
            Some(ask) = inbox.recv() => match ask {
                Ask::Kill => Some(Event::KillAsked),
                Ask::Stop(patience) => {
                    self.patience = patience;
                    Some(Event::StopAsked)
                }
                Ask::Stats(asker) => {
                    self.ask_stats(asker);
                    None
                }
            },
            () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                self.deadline = None;
                self.overdue = true;
                Some(Event::DeadlinePassed)
            }
        }
    }

    /// Keeps what a step brought.
    fn done(&mut self, done: Done) -> Option<Event> {
        Some(match done {
            Done::Prepared(Ok(prepared)) => {
                let Prepared { held, parcel, console, nets, stages } = *prepared;
                let _ = self.vm.console.set(console);
                self.held = Some(held);
                self.nets = nets;
                self.parcel = Some((parcel, stages));
                Event::Made
            }
            Done::Prepared(Err(failure)) => {
                self.failure = Some(failure);
                Event::MakeFailed
            }
            Done::Given(Ok((control, timings))) => {
                self.control = Some(Arc::new(control));
                if let (Some(stages), Some(held)) = (&self.stages, &self.held) {
                    stages.log(&self.vm.id, &self.vm.spec.name, held.warm, &timings);
                }
                Event::Started
            }
            Done::Given(Err(NotTaken { error, hung_up })) => {
                self.failure = Some(error);
                self.hung_up = hung_up;
                Event::StartFailed
            }
            Done::Pressed(result) => {
                if let Err(error) = result {
                    tracing::warn!(id = self.vm.id, %error, "the power button could not be pressed");
                }
                // Says nothing about the guest: it ends, or its deadline passes.
                return None;
            }
        })
    }

    /// Asks the worker what it counted, beside everything else; who asks is told nothing where there is no
    /// worker to be asked.
    fn ask_stats(&self, asker: oneshot::Sender<Result<Stats, ControlError>>) {
        let Some(control) = self.control.clone() else { return };
        let deadline = self.context.deadlines.stats;
        tokio::spawn(async move {
            let _ = asker.send(control.stats(deadline).await);
        });
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::GiveVm => {
                let (Some((parcel, stages)), Some(held)) = (self.parcel.take(), &self.held) else { return };
                self.stages = Some(stages);
                let (context, worker) = (self.context.clone(), held.worker);
                self.step =
                    Some(Box::pin(async move { Done::Given(start::hand_over(&context, parcel, worker).await) }));
            }
            Effect::PressPowerButton => {
                let Some(control) = self.control.clone() else { return };
                self.step = Some(Box::pin(async move { Done::Pressed(control.press_power_button().await) }));
            }
            Effect::ArmDeadline => {
                let wanted = Instant::now() + self.patience;
                self.deadline = Some(self.deadline.map_or(wanted, |armed| armed.min(wanted)));
            }
            Effect::Kill => {
                // The signal first: a worker whose socket closes might leave by itself, and look as if it had failed.
                if let Some(held) = &self.held {
                    held.kill();
                }
                // Whatever was under way is given up; what it held closes.
                (self.step, self.parcel, self.deadline) = (None, None, None);
            }
        }
    }

    /// Tells the outside where the VM is now.
    fn publish(&mut self) {
        let state = self.state.outside();
        let worker = self.held.as_ref().map(|held| self.worker_info(held));
        let now = unix_time();
        let nets = self.nets.shown.clone();
        self.vm.phase.send_modify(|phase| {
            phase.state = state;
            phase.worker = worker;
            phase.nets = nets;
            if state == VmState::Running {
                phase.started_at.get_or_insert(now);
            }
        });
        if state == VmState::Running {
            tracing::info!(
                id = self.vm.id,
                name = self.vm.spec.name,
                pid = self.held.as_ref().map(|h| h.worker.pid),
                "running"
            );
            self.confirm();
        }
    }

    /// It has run: who had its name before is not listed any more.
    fn confirm(&self) {
        if let Some(before) = self.context.registry.confirm(&self.vm) {
            forget_later(&self.context, &before);
        }
    }

    fn worker_info(&self, held: &Held) -> WorkerInfo {
        let limits = match (&self.vm.spec.limits, &self.context.jail.facts.cgroup) {
            (None, _) => "none asked for".into(),
            (Some(_), Ok(cgroup)) => format!("held by a cgroup below {cgroup}"),
            (Some(_), Err(reason)) => format!("not held: {reason}"),
        };
        let worker = &held.worker;
        WorkerInfo {
            pid: worker.pid,
            start_time: worker.start_time,
            uid: worker.uid,
            slot: worker.slot.0,
            warm: held.warm,
            limits,
        }
    }

    /// The last thing the actor does.
    fn end(self, kind: EndKind) {
        let failure = (kind == EndKind::StartFailed).then(|| self.failure());
        let reason = match (&failure, kind) {
            (Some(failure), _) => failure.message.clone(),
            (None, EndKind::Killed) if self.overdue => {
                format!("the guest ignored the power button for {} s and was killed", self.patience.as_secs())
            }
            (None, EndKind::Killed) => "killed on request".into(),
            (None, _) => match &self.worker_end {
                Some(end) => end.reason(),
                None => "the worker is gone, and so is the jailer that could say how it ended".into(),
            },
        };
        tracing::info!(id = self.vm.id, name = self.vm.spec.name, ?kind, reason, "ended");
        let mut ran = self.vm.phase.borrow().started_at.is_some();
        if !ran && lifecycle::is_guests(kind) && self.failure.is_none() {
            ran = true;
            self.confirm();
        }
        self.vm.phase.send_modify(|phase| {
            if ran {
                phase.started_at.get_or_insert_with(unix_time);
            }
            phase.state = State::Ended(kind).outside();
            phase.worker = None;
            phase.nets = Vec::new();
            phase.end = Some(End { kind, reason, at: unix_time() });
            phase.failure = failure;
        });
        if !ran {
            self.context.registry.release(&self.vm);
            return;
        }
        self.context.registry.ended(&self.vm);
        if self.vm.remove_when_ended {
            self.context.registry.retire(&self.vm);
            forget_later(&self.context, &self.vm);
        }
    }

    /// Why it never ran.
    fn failure(&self) -> ApiError {
        match (&self.worker_end, &self.failure) {
            (_, Some(failure)) if !self.hung_up => failure.clone(),
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
}

/// How long a retired VM is found at most.
const GRACE: Duration = Duration::from_secs(10);

/// Forgets a retired VM after a grace period, whoever has asked until then.
fn forget_later(context: &Arc<Context>, vm: &Arc<Vm>) {
    // Weak: the console of a VM that is forgotten sooner goes at once.
    let (context, vm) = (context.clone(), Arc::downgrade(vm));
    tokio::spawn(async move {
        tokio::time::sleep(GRACE).await;
        if let Some(vm) = vm.upgrade() {
            context.registry.forget(&vm);
        }
    });
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
