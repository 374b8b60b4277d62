//! One VM: what others see of it ([`Vm`]) and the actor that owns its state ([`Actor`]).
//!
//! The actor is one task. It feeds what happens (a step done, a request, the worker's end, a deadline) to
//! [`super::lifecycle`] and carries out the effects. Nobody else changes the VM; a slow step of one VM is its own
//! actor's, so no other VM waits for it.

use super::Context;
use super::console::Console;
use super::end::WorkerEnd;
use super::jail::Held;
use super::lifecycle::{self, Effect, Event, State};
use super::registry::{Entry, is_end};
use super::start::{self, NotTaken, Parcel, Prepared, Stages};
use super::worker::{Control, ControlError};
use crate::api::types::{ApiError, ConsoleInfo, End, EndKind, ErrorCode, VmInfo, VmState, VmSummary, WorkerInfo};
use crate::spec::VmSpec;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use worker_api::Timings;

/// What can be asked of a running VM.
#[derive(Debug, Clone, Copy)]
pub enum Ask {
    /// Power button; SIGKILL when the time is over.
    Stop(Duration),
    /// SIGKILL.
    Kill,
}

/// A VM as the rest of the supervisor sees it.
#[derive(Debug)]
pub struct Vm {
    id: String,
    /// Uid of who started it.
    pub owner: u32,
    /// What it was started from.
    pub spec: VmSpec,
    remove_when_ended: bool,
    inbox: mpsc::Sender<Ask>,
    phase: watch::Sender<Phase>,
    console: OnceLock<Arc<Console>>,
    /// Waiters and console streams.
    holds: AtomicUsize,
    /// Somebody was told how it ended.
    heard: AtomicBool,
}

/// What changes in the course of a VM's life.
#[derive(Debug, Clone)]
pub struct Phase {
    /// As the API has it.
    pub state: VmState,
    /// Its worker, while there is one.
    pub worker: Option<WorkerInfo>,
    /// When its vCPUs began to run, seconds since 1970.
    pub started_at: Option<u64>,
    /// How it ended.
    pub end: Option<End>,
    /// Why it never ran.
    pub failure: Option<ApiError>,
}

impl Entry for Vm {
    fn id(&self) -> &str {
        &self.id
    }
    fn name(&self) -> &str {
        &self.spec.name
    }
    fn ended(&self) -> bool {
        is_end(self.phase.borrow().state)
    }
}

impl Vm {
    /// Reserves the name and sets the actor going.
    ///
    /// # Errors
    /// The name is taken, or no VMs are taken any more.
    pub fn create(
        context: &Arc<Context>,
        spec: VmSpec,
        owner: u32,
        remove_when_ended: bool,
    ) -> Result<Arc<Vm>, ApiError> {
        let (sender, inbox) = mpsc::channel(4);
        let phase = Phase { state: VmState::Starting, worker: None, started_at: None, end: None, failure: None };
        let name = spec.name.clone();
        let vm = context.registry.reserve(&name, |id| Vm {
            id,
            owner,
            spec,
            remove_when_ended,
            inbox: sender,
            phase: watch::Sender::new(phase),
            console: OnceLock::new(),
            holds: AtomicUsize::new(0),
            heard: AtomicBool::new(false),
        })?;
        tokio::spawn(Actor::new(context.clone(), vm.clone(), inbox).run());
        Ok(vm)
    }

    /// Waits until it runs.
    ///
    /// # Errors
    /// Why it never did.
    pub async fn until_running(&self) -> Result<(), ApiError> {
        let mut phase = self.phase.subscribe();
        let Ok(phase) = phase.wait_for(|p| p.started_at.is_some() || is_end(p.state)).await else { return Ok(()) };
        match (&phase.failure, phase.started_at) {
            (_, Some(_)) => Ok(()),
            (Some(failure), None) => Err(failure.clone()),
            (None, None) => Err(ApiError {
                code: ErrorCode::Conflict,
                message: format!("{} was stopped before it ran", self.spec.name),
                field: None,
            }),
        }
    }

    /// Waits until it has ended.
    pub async fn until_ended(&self) {
        let _ = self.phase.subscribe().wait_for(|p| is_end(p.state)).await;
    }

    /// Asks its actor for something; one that has ended is asked in vain.
    pub async fn ask(&self, ask: Ask) {
        let _ = self.inbox.send(ask).await;
    }

    /// Its console, once it has one.
    pub fn console(&self) -> Option<&Arc<Console>> {
        self.console.get()
    }

    /// As `ls` shows it.
    pub fn summary(&self) -> VmSummary {
        let phase = self.phase.borrow();
        VmSummary {
            name: self.spec.name.clone(),
            id: self.id.clone(),
            state: phase.state,
            pid: phase.worker.as_ref().map(|w| w.pid),
            owner: self.owner,
            cpus: self.spec.cpus,
            memory_mib: self.spec.memory_mib,
            started_at: phase.started_at,
            end: phase.end.clone(),
        }
    }

    /// In full.
    pub fn info(&self) -> VmInfo {
        let written = self.console.get().map_or(0, |c| c.written());
        let overwritten = worker_api::console::available(0, written).0;
        VmInfo {
            summary: self.summary(),
            spec: self.spec.clone(),
            worker: self.phase.borrow().worker.clone(),
            console: ConsoleInfo { written, overwritten },
        }
    }
}

/// Someone who waits for a VM or follows its console. A retired VM is forgotten when the last of them is gone and one
/// has heard how it ended.
#[derive(Debug)]
pub struct Hold {
    context: Arc<Context>,
    /// The VM.
    pub vm: Arc<Vm>,
}

impl Hold {
    /// Of `vm`.
    pub fn new(context: &Arc<Context>, vm: Arc<Vm>) -> Hold {
        vm.holds.fetch_add(1, Ordering::AcqRel);
        Hold { context: context.clone(), vm }
    }

    /// How it ended goes out with the answer.
    pub fn heard(&self) {
        self.vm.heard.store(true, Ordering::Release);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let last = self.vm.holds.fetch_sub(1, Ordering::AcqRel) == 1;
        if last && self.vm.remove_when_ended && self.vm.heard.load(Ordering::Acquire) && self.vm.ended() {
            self.context.registry.forget(&self.vm);
        }
    }
}

/// What the actor is busy with.
type Step = Pin<Box<dyn Future<Output = Done> + Send>>;

enum Done {
    Prepared(Result<Prepared, ApiError>),
    Given(Result<(Control, Timings), NotTaken>),
    Pressed(Result<(), ControlError>),
}

/// The owner of a VM's state.
struct Actor {
    context: Arc<Context>,
    vm: Arc<Vm>,
    inbox: mpsc::Receiver<Ask>,
    state: State,
    step: Option<Step>,
    parcel: Option<(Parcel, Stages)>,
    stages: Option<Stages>,
    held: Option<Held>,
    control: Option<Arc<Control>>,
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
    fn new(context: Arc<Context>, vm: Arc<Vm>, inbox: mpsc::Receiver<Ask>) -> Actor {
        let step: Step = {
            let (context, vm) = (context.clone(), vm.clone());
            Box::pin(async move { Done::Prepared(start::prepare(&context, &vm.spec).await) })
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
            patience: Duration::ZERO,
            deadline: None,
            overdue: false,
            failure: None,
            hung_up: false,
            worker_end: None,
        }
    }

    async fn run(mut self) {
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
            Some(ask) = inbox.recv() => Some(match ask {
                Ask::Kill => Event::KillAsked,
                Ask::Stop(patience) => {
                    self.patience = patience;
                    Event::StopAsked
                }
            }),
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
                let Prepared { held, parcel, console, stages } = prepared;
                let _ = self.vm.console.set(console);
                self.held = Some(held);
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
                // Whatever was under way is given up; what it held closes.
                (self.step, self.parcel, self.deadline) = (None, None, None);
                if let Some(held) = &self.held {
                    held.kill();
                }
            }
        }
    }

    /// Tells the outside where the VM is now.
    fn publish(&mut self) {
        let state = self.state.outside();
        let worker = self.held.as_ref().map(|held| self.worker_info(held));
        let now = unix_time();
        self.vm.phase.send_modify(|phase| {
            phase.state = state;
            phase.worker = worker;
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
            if let Some(before) = self.context.registry.confirm(&self.vm) {
                forget_later(&self.context, before);
            }
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
        let ran = self.vm.phase.borrow().started_at.is_some();
        self.vm.phase.send_modify(|phase| {
            phase.state = State::Ended(kind).outside();
            phase.worker = None;
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
            forget_later(&self.context, self.vm.clone());
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
fn forget_later(context: &Arc<Context>, vm: Arc<Vm>) {
    let context = context.clone();
    tokio::spawn(async move {
        tokio::time::sleep(GRACE).await;
        context.registry.forget(&vm);
    });
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
#[path = "vm_tests.rs"]
mod tests;
