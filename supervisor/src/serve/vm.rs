//! One VM as the rest of the supervisor sees it. Its state is its actor's ([`super::actor`]): others ask and watch.

use super::Context;
use super::actor::Actor;
use super::console::Console;
use super::registry::{Entry, is_end};
use super::worker::ControlError;
use super::{nets, refusals, state};
use crate::api::types::{
    ApiError, ConsoleInfo, Desired, End, ErrorCode, NetStats, VmInfo, VmNet, VmState, VmSummary, WorkerInfo,
};
use crate::spec::VmSpec;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use worker_api::Stats;

/// What can be asked of a running VM.
#[derive(Debug)]
pub enum Ask {
    /// Power button; SIGKILL when the time is over.
    Stop(Duration),
    /// SIGKILL.
    Kill,
    /// What its vCPUs and devices did.
    Stats(oneshot::Sender<Result<Stats, ControlError>>),
}

/// A VM as the rest of the supervisor sees it.
#[derive(Debug)]
pub struct Vm {
    pub(super) id: String,
    /// The id as a number.
    pub(super) number: u64,
    /// Uid of who started it.
    pub owner: u32,
    /// What it was started from.
    pub spec: VmSpec,
    pub(super) remove_when_ended: bool,
    inbox: mpsc::Sender<Ask>,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) console: OnceLock<Arc<Console>>,
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
    /// Its network interfaces, while it has them.
    pub nets: Vec<VmNet>,
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
        let phase = Phase {
            state: VmState::Starting,
            worker: None,
            nets: Vec::new(),
            started_at: None,
            end: None,
            failure: None,
        };
        let name = spec.name.clone();
        let vm = context.registry.reserve(&name, |number| Vm {
            id: format!("{number:016x}"),
            number,
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

    /// What its network interfaces did, as its worker says.
    ///
    /// # Errors
    /// It does not run, or its worker has no answer that fits.
    pub async fn net_stats(&self) -> Result<Vec<NetStats>, ApiError> {
        let nets = match &*self.phase.borrow() {
            phase if matches!(phase.state, VmState::Running | VmState::Stopping) => phase.nets.clone(),
            _ => return Err(self.not_running()),
        };
        if nets.is_empty() {
            return Ok(Vec::new());
        }
        let (sender, answer) = oneshot::channel();
        self.ask(Ask::Stats(sender)).await;
        let counted = answer.await.map_err(|_| self.not_running())?;
        let counted = counted.map_err(|error| refusals::internal(format!("{}: {error}", self.spec.name)))?.nets;
        if counted.len() != nets.len() {
            let message = format!(
                "the worker of {} speaks of {} interfaces, where it has {}",
                self.spec.name,
                counted.len(),
                nets.len()
            );
            return Err(refusals::internal(message));
        }
        Ok(nets.iter().zip(&counted).map(|(net, counted)| nets::stats(net, counted)).collect())
    }

    fn not_running(&self) -> ApiError {
        let message = format!("{} does not run; start it first", self.spec.name);
        ApiError { code: ErrorCode::Conflict, message, field: None }
    }

    /// Its number with netd; no other VM of this supervisor ever has it.
    pub fn number(&self) -> u64 {
        self.number
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
            nets: phase.nets.clone(),
            started_at: phase.started_at,
            end: phase.end.clone(),
            desired: Desired::Running,
            generation: 1,
            spec_hash: state::hash::of(&self.spec),
            source: None,
            restarts: 0,
            health: None,
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

#[cfg(test)]
#[path = "vm_tests.rs"]
mod tests;
