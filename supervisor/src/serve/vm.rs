//! One VM as the rest of the supervisor sees it. Its state is its actor's ([`super::actor`]): others ask and watch.

use super::actor::{Actor, Origin};
use super::adopt::{Found, How};
pub use super::ask::{Ask, Change, Order, Reply, Start};
use super::console::Console;
use super::fault::{self, Step};
pub use super::hold::Hold;
use super::jail::Held;
use super::registry::{Entry, Reserved, is_end};
use super::state::{Intent, hash};
use super::tenants::{Claim, Demand, Limit, Terms};
use super::{Context, nets, refusals};
use crate::api::types::{
    ApiError, ConsoleInfo, CreateRequest, Desired, ErrorCode, HealthState, NetStats, VmInfo, VmNet, VmState, VmSummary,
    WorkerInfo,
};
use crate::spec::{Restart, VmSpec};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};

/// A VM as the rest of the supervisor sees it.
#[derive(Debug)]
pub struct Vm {
    id: String,
    /// The id as a number.
    number: u64,
    name: String,
    /// Uid of who made it.
    owner: u32,
    inbox: mpsc::Sender<Ask>,
    pub(super) phase: watch::Sender<Phase>,
    console: Mutex<Kept>,
    /// Waiters and console streams.
    pub(super) holds: AtomicUsize,
    /// Somebody was told how it ended.
    pub(super) heard: AtomicBool,
    /// What its being there takes of its owner's quota, while it is listed.
    there: Mutex<Option<Claim>>,
    /// What its running takes, from when it is to run until nothing of it runs or will by itself.
    runs: Mutex<Option<Claim>>,
}

/// A VM's console.
#[derive(Debug)]
enum Kept {
    /// It has none yet.
    NotYet,
    /// That of its last run.
    Here(Arc<Console>),
    /// It ran, and its output is no longer kept.
    Dropped,
    /// It was found with a worker that did not answer.
    Unreachable,
}

/// What changes in the course of a VM's life.
#[derive(Debug, Clone)]
pub struct Phase {
    /// As the API has it.
    pub state: VmState,
    /// What it is.
    pub intent: Arc<Intent>,
    /// Which of its runs this is, or was the last; counted anew by each supervisor.
    pub run: u64,
    /// What is being done to start it.
    pub stage: &'static str,
    /// How much of that is done, per cent, where that is known.
    pub percent: Option<u8>,
    /// Its worker, while there is one.
    pub worker: Option<WorkerInfo>,
    /// Its network interfaces, while it has them.
    pub nets: Vec<VmNet>,
    /// When its vCPUs began to run the last time, seconds since 1970.
    pub started_at: Option<u64>,
    /// How it is.
    pub health: Option<HealthState>,
}

impl Entry for Vm {
    fn number(&self) -> u64 {
        self.number
    }
    fn id(&self) -> &str {
        &self.id
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn owner(&self) -> u32 {
        self.owner
    }
    fn rests(&self) -> bool {
        let state = self.phase.borrow().state;
        is_end(state) || state == VmState::Restarting
    }
    fn unlisted(&self) {
        drop(lock(&self.there).take());
    }
    fn drop_console(&self) {
        let mut kept = lock(&self.console);
        if matches!(*kept, Kept::Here(_)) {
            *kept = Kept::Dropped;
        }
    }
}

/// A start that is under way.
#[derive(Debug)]
pub struct Starting {
    /// Of which VM.
    pub vm: Arc<Vm>,
    told: oneshot::Receiver<Result<(), ApiError>>,
}

impl Starting {
    /// Waits until it runs and that is written down.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn until_running(self) -> Result<Arc<Vm>, ApiError> {
        match self.told.await {
            Ok(told) => told.map(|()| self.vm),
            Err(_) => Err(self.vm.removed()),
        }
    }
}

impl Vm {
    fn new(intent: Intent, state: VmState, started_at: Option<u64>, there: Claim) -> (Vm, mpsc::Receiver<Ask>) {
        let (inbox, asks) = mpsc::channel(4);
        let vm = Vm {
            id: intent.id(),
            number: intent.number,
            name: intent.spec.name.clone(),
            owner: intent.owner,
            inbox,
            console: Mutex::new(if intent.confirmed { Kept::Dropped } else { Kept::NotYet }),
            holds: AtomicUsize::new(0),
            heard: AtomicBool::new(false),
            there: Mutex::new(Some(there)),
            runs: Mutex::default(),
            phase: watch::Sender::new(Phase {
                state,
                intent: Arc::new(intent),
                run: 0,
                stage: "worker",
                percent: None,
                worker: None,
                nets: Vec::new(),
                started_at,
                health: None,
            }),
        };
        (vm, asks)
    }

    /// Takes a VM on and starts it. One of this name and owner that does not run becomes what the request says, and keeps
    /// its id and its history. Where the start fails, a new VM is nowhere, and one that was there is as it was.
    ///
    /// # Errors
    /// The VM of this name runs; there is no room for more, or not within its owner's quota; the request contradicts itself.
    pub fn create(context: &Arc<Context>, order: impl Into<Order>, terms: Terms) -> Result<Starting, ApiError> {
        let Order { request, files } = order.into();
        if request.remove_when_ended && request.spec.restart != Restart::No {
            let message = "a VM that is forgotten at its end is not started again; remove \"restart\", or leave the VM \
                           there at its end (without --rm)";
            return Err(ApiError { code: ErrorCode::Invalid, message: message.into(), field: Some("restart".into()) });
        }
        let mut asks = None;
        let name = request.spec.name.clone();
        let Terms { owner, limit } = terms;
        let reserved = context.registry.reserve(owner, &name, |number| {
            let there = context.tenants.claim(owner, Demand::vm(), None, &limit)?;
            let (vm, inbox) = Vm::new(intent(number, owner, &request), VmState::Starting, None, there);
            asks = Some(inbox);
            Ok(vm)
        })?;
        let (Reserved::New(vm, _) | Reserved::There(vm, _)) = &reserved;
        let claim = vm.claim(context, &request.spec, &limit).inspect_err(|_| {
            if asks.is_some() {
                context.registry.remove(vm);
            }
        })?;
        let (told, answer) = oneshot::channel();
        match (reserved, asks) {
            (Reserved::New(vm, place), Some(asks)) => {
                fault::here(Step::CreateReserved);
                vm.holds_claim(claim);
                Actor::spawn(context, &vm, asks, Origin::New { place, files, told });
                Ok(Starting { vm, told: answer })
            }
            (Reserved::There(vm, place) | Reserved::New(vm, place), _) => {
                let file = Some(Order { request, files });
                vm.ask_later(Ask::Start(Box::new(Start { file, place, claim, told })));
                Ok(Starting { vm, told: answer })
            }
        }
    }

    /// Starts a VM that is there and does not run.
    ///
    /// # Errors
    /// There is no room for more, or not within its owner's quota.
    pub fn start(self: &Arc<Vm>, context: &Arc<Context>, limit: &Limit) -> Result<Starting, ApiError> {
        let place = context.registry.enter()?;
        let claim = self.claim(context, &self.intent().spec, limit)?;
        let (told, answer) = oneshot::channel();
        self.ask_later(Ask::Start(Box::new(Start { file: None, place, claim, told })));
        Ok(Starting { vm: self.clone(), told: answer })
    }

    /// What its running as `spec` takes of its owner's quota, in place of what it takes now.
    ///
    /// # Errors
    /// It is too much.
    pub fn claim(&self, context: &Context, spec: &VmSpec, limit: &Limit) -> Result<Claim, ApiError> {
        let now = lock(&self.runs);
        Ok(context.tenants.claim(self.owner, Demand::running(spec), now.as_ref(), limit)?)
    }

    /// It has what its running takes, whatever its owner may have: it ran before, or was to.
    pub(super) fn charge(&self, context: &Context) {
        self.holds_claim(context.tenants.charge(self.owner, Demand::running(&self.intent().spec)));
    }

    /// What it takes from now on. Its actor's to say.
    pub(super) fn holds_claim(&self, claim: impl Into<Option<Claim>>) {
        drop(std::mem::replace(&mut *lock(&self.runs), claim.into()));
    }

    /// Whether what it takes is what its running as `spec` takes.
    pub(super) fn has_claim_for(&self, spec: &VmSpec) -> bool {
        lock(&self.runs).as_ref().is_some_and(|claim| claim.demand() == Demand::running(spec))
    }

    /// One of an earlier supervisor's: its owner has it, whatever they may have now.
    fn old(
        context: &Context,
        intent: Intent,
        state: VmState,
        started_at: Option<u64>,
    ) -> (Arc<Vm>, mpsc::Receiver<Ask>) {
        let there = context.tenants.charge(intent.owner, Demand::vm());
        let (vm, asks) = Vm::new(intent, state, started_at, there);
        (Arc::new(vm), asks)
    }

    /// Takes over a VM that was found running.
    pub fn adopted(context: &Arc<Context>, found: Found) -> Arc<Vm> {
        let state = if found.paused { VmState::Paused } else { VmState::Running };
        let (vm, asks) = Vm::old(context, found.intent.clone(), state, Some(found.started_at));
        let place = context.registry.adopt(&vm, true);
        vm.charge(context);
        Actor::spawn(context, &vm, asks, Origin::Found { found: Box::new(found), place });
        vm
    }

    /// Takes over a VM that ended while there was no supervisor: the end is recorded, then its restart policy decides.
    pub fn ended_meanwhile(context: &Arc<Context>, intent: Intent, how: How, held: Option<Held>) -> Arc<Vm> {
        let (vm, asks) = Vm::old(context, intent, VmState::Stopping, None);
        let place = context.registry.adopt(&vm, true);
        vm.charge(context);
        Actor::spawn(context, &vm, asks, Origin::Ended { how, held, place });
        vm
    }

    /// Takes over a VM that did not run; one that was waiting for its restart goes on with that.
    pub fn resting(context: &Arc<Context>, intent: Intent) -> Arc<Vm> {
        let state = super::lifecycle::State::Resting.outside(intent.ends.last().map(|end| end.kind));
        let (vm, asks) = Vm::old(context, intent, state, None);
        context.registry.adopt(&vm, false);
        Actor::spawn(context, &vm, asks, Origin::Resting);
        vm
    }

    /// Waits until it has ended and is not started again by itself.
    pub async fn until_ended(&self) {
        let _ = self.phase.subscribe().wait_for(|p| is_end(p.state)).await;
    }

    /// Which of its runs this is.
    pub fn run(&self) -> u64 {
        self.phase.borrow().run
    }

    /// Waits until a run of it is over, whatever comes then.
    pub async fn until_run_over(&self, run: u64) {
        let over = |p: &Phase| p.run != run || is_end(p.state) || p.state == VmState::Restarting;
        let _ = self.phase.subscribe().wait_for(over).await;
    }

    /// What changes of it.
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Asks its actor for something; one that was removed is asked in vain.
    pub async fn ask(&self, ask: Ask) {
        let _ = self.inbox.send(ask).await;
    }

    /// The same, for who does not wait.
    fn ask_later(&self, ask: Ask) {
        match self.inbox.try_send(ask) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(ask)) => {
                let inbox = self.inbox.clone();
                tokio::spawn(async move { drop(inbox.send(ask).await) });
            }
        }
    }

    /// Asks for something that has an answer.
    async fn answered(&self, ask: impl FnOnce(Reply) -> Ask) -> Result<(), ApiError> {
        let (told, answer) = oneshot::channel();
        self.ask(ask(told)).await;
        answer.await.unwrap_or_else(|_| Err(self.removed()))
    }

    /// Has its vCPUs stand still.
    ///
    /// # Errors
    /// It does not run, or its worker does not do it.
    pub async fn pause(&self) -> Result<(), ApiError> {
        self.answered(Ask::Pause).await
    }

    /// Has its vCPUs go on.
    ///
    /// # Errors
    /// It is not paused, or its worker does not do it.
    pub async fn resume(&self) -> Result<(), ApiError> {
        self.answered(Ask::Resume).await
    }

    /// Makes it what another file says, as far as that needs no restart.
    ///
    /// # Errors
    /// It runs and would have to be started anew; somebody else changed it.
    pub async fn change(
        &self,
        spec: VmSpec,
        source: Option<String>,
        generation: u64,
        in_place: bool,
        claim: Option<Claim>,
    ) -> Result<(), ApiError> {
        self.answered(|told| Ask::Change(Box::new(Change { spec, source, generation, in_place, claim, told }))).await
    }

    /// Forgets it, its console output and its history included.
    ///
    /// # Errors
    /// It runs.
    pub async fn remove(&self, context: &Context) -> Result<(), ApiError> {
        let (told, answer) = oneshot::channel();
        self.ask(Ask::Remove(told)).await;
        match answer.await {
            Ok(answer) => answer,
            // It has gone already: who is to be forgotten at its end is found for a moment longer.
            Err(_) => {
                context.registry.remove(self);
                Ok(())
            }
        }
    }

    /// What its network interfaces did, as its worker says.
    ///
    /// # Errors
    /// It does not run, or its worker has no answer that fits.
    pub async fn net_stats(&self) -> Result<Vec<NetStats>, ApiError> {
        let nets = match &*self.phase.borrow() {
            phase if matches!(phase.state, VmState::Running | VmState::Paused | VmState::Stopping) => {
                phase.nets.clone()
            }
            _ => return Err(self.not_running()),
        };
        if nets.is_empty() {
            return Ok(Vec::new());
        }
        let (sender, answer) = oneshot::channel();
        self.ask(Ask::Stats(sender)).await;
        let counted = answer.await.map_err(|_| self.not_running())?;
        let counted = counted.map_err(|error| refusals::internal(format!("{}: {error}", self.name)))?.nets;
        if counted.len() != nets.len() {
            let message = format!(
                "the worker of {} speaks of {} interfaces, where it has {}",
                self.name,
                counted.len(),
                nets.len()
            );
            return Err(refusals::internal(message));
        }
        Ok(nets.iter().zip(&counted).map(|(net, counted)| nets::stats(net, counted)).collect())
    }

    fn not_running(&self) -> ApiError {
        let message = format!("{} does not run; start it first", self.name);
        ApiError { code: ErrorCode::Conflict, message, field: None }
    }

    fn removed(&self) -> ApiError {
        let message = format!("{} was removed meanwhile", self.name);
        ApiError { code: ErrorCode::NotFound, message, field: None }
    }

    /// Its console: that of this run, or of the last one.
    ///
    /// # Errors
    /// It has none yet, or none any more.
    pub fn console(&self) -> Result<Arc<Console>, ApiError> {
        let why = match &*lock(&self.console) {
            Kept::Here(console) => return Ok(console.clone()),
            Kept::NotYet => format!("{} is still being made; try again", self.name),
            Kept::Unreachable => {
                format!("the worker of {} does not answer; its console is there when it does", self.name)
            }
            Kept::Dropped => format!(
                "the console output of {} is no longer kept: there is room for that of the VMs that run and of those that \
                 ended last",
                self.name
            ),
        };
        Err(ApiError { code: ErrorCode::Conflict, message: why, field: None })
    }

    /// The console of a new run; that of the run before is let go.
    pub(super) fn set_console(&self, console: Arc<Console>) {
        *lock(&self.console) = Kept::Here(console);
    }

    /// Its worker does not answer, and so there is no console for now.
    pub(super) fn no_console(&self) {
        *lock(&self.console) = Kept::Unreachable;
    }

    /// What it is.
    pub fn intent(&self) -> Arc<Intent> {
        self.phase.borrow().intent.clone()
    }

    /// As `ls` shows it.
    pub fn summary(&self) -> VmSummary {
        let phase = self.phase.borrow();
        let intent = &phase.intent;
        VmSummary {
            name: self.name.clone(),
            id: self.id.clone(),
            state: phase.state,
            pid: phase.worker.as_ref().map(|w| w.pid),
            owner: self.owner,
            cpus: intent.spec.cpus,
            memory_mib: intent.spec.memory_mib,
            nets: phase.nets.clone(),
            started_at: phase.started_at,
            end: intent.ends.last().cloned(),
            desired: intent.desired,
            generation: intent.generation,
            spec_hash: intent.spec_hash.clone(),
            source: intent.source.clone(),
            restarts: intent.restarts,
            health: phase.health.clone(),
        }
    }

    /// In full.
    pub fn info(&self) -> VmInfo {
        let written = self.console().map_or(0, |console| console.written());
        let overwritten = worker_api::console::available(0, written).0;
        let phase = self.phase.borrow();
        let (worker, intent) = (phase.worker.clone(), phase.intent.clone());
        drop(phase);
        VmInfo {
            summary: self.summary(),
            spec: intent.spec.clone(),
            worker,
            console: ConsoleInfo { written, overwritten },
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a new VM is.
fn intent(number: u64, owner: u32, request: &CreateRequest) -> Intent {
    Intent {
        number,
        owner,
        spec: request.spec.clone(),
        spec_hash: hash::of(&request.spec),
        generation: 1,
        desired: Desired::Running,
        source: request.source.clone(),
        remove_when_ended: request.remove_when_ended,
        confirmed: false,
        created_at: unix_time(),
        restarts: 0,
        ends: Vec::new(),
        runs: 0,
        over: 0,
        again: false,
    }
}

/// Seconds since 1970.
pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
#[path = "life_tests.rs"]
mod life_tests;
#[cfg(test)]
#[path = "owed_tests.rs"]
mod owed_tests;
#[cfg(test)]
#[path = "vm_tests.rs"]
mod tests;
