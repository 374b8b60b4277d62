//! What is asked of VMs and takes time. Each is an operation with a number, a stage and a way to be cancelled
//! ([`super::ops`]), and goes on when whoever asked has gone.

use super::Context;
use super::fault::{self, Step};
use super::ops::Running;
use super::provide;
use super::refusals::no_cgroup;
use super::registry::is_end;
use super::side::Received;
use super::start::cgroup_limits;
use super::state::Intent;
use super::storage::{Busy, import};
use super::tenants::{Limit, Terms};
use super::update::{Plan, plan};
use super::vm::{Ask, Hold, Order, Starting, Vm};
use crate::api::types::{ApiError, ErrorCode, OperationKind, UpdateDone, UpdateRequest, VmState};
use crate::spec::{Enforce, VmSpec};
use crate::vmjson::check;
use jail_spec::{CgroupLimits, Slot};
use std::sync::Arc;
use std::time::Duration;

/// What can be told of a file without opening those that it names.
///
/// # Errors
/// The field that is wrong, or what this host has not.
pub fn admit(context: &Context, spec: &VmSpec, limit: &Limit) -> Result<(), ApiError> {
    check::check(spec)?;
    limit.as_ref().map_or(Ok(()), |quota| quota.admits(spec))?;
    check::check_memory(spec.memory_mib, context.host.memory_mib)?;
    match (&spec.limits, &context.jail.facts.cgroup) {
        (Some(limits), Err(reason)) if limits.enforce == Enforce::Required => Err(no_cgroup(reason)),
        _ => Ok(()),
    }
}

/// Begins an operation on a VM.
pub fn begin(context: &Context, kind: OperationKind, vm: &str, owner: u32) -> Running {
    let stage = match kind {
        OperationKind::Create | OperationKind::Start => "worker",
        OperationKind::Stop | OperationKind::Update => "guest",
        OperationKind::Remove => "state",
        OperationKind::Import => "files",
    };
    context.operations.begin(kind, vm, owner, stage)
}

/// Takes a VM on and starts it. Cancelled at whatever moment, nothing of it is left.
///
/// # Errors
/// Why it does not run.
pub async fn create(
    context: &Arc<Context>,
    order: impl Into<Order>,
    terms: Terms,
    mut op: Running,
) -> Result<Arc<Vm>, ApiError> {
    let (result, cancelled) = match Vm::create(context, order, terms) {
        Ok(starting) => {
            let vm = starting.vm.clone();
            let told = until_running(&mut op, starting).await;
            tidy(context, &vm).await;
            told
        }
        Err(error) => (Err(error), false),
    };
    over(op, cancelled, result)
}

/// Starts a VM that does not run.
///
/// # Errors
/// Why it does not run.
pub async fn start(context: &Arc<Context>, vm: &Arc<Vm>, limit: &Limit, mut op: Running) -> Result<(), ApiError> {
    let (result, cancelled) = match vm.start(context, limit) {
        Ok(starting) => until_running(&mut op, starting).await,
        Err(error) => (Err(error), false),
    };
    over(op, cancelled, result.map(drop))
}

/// Presses the power button, and kills when the time is over ([`Ask::Stop`], [`Ask::StopForShutdown`]). Cancelled before the
/// guest has ended, the VM goes on.
///
/// # Errors
/// The stop was cancelled.
pub async fn stop(hold: &Hold, ask: Ask, mut op: Running) -> Result<(), ApiError> {
    let (result, cancelled) = until_stopped(&mut op, hold, ask).await;
    over(op, cancelled, result)
}

/// Kills its worker.
///
/// # Errors
/// None by now.
pub async fn kill(hold: &Hold, op: Running) -> Result<(), ApiError> {
    hold.vm.ask(Ask::Kill).await;
    hold.vm.until_ended().await;
    over(op, false, Ok(()))
}

/// Forgets a VM that does not run.
///
/// # Errors
/// It runs.
pub async fn remove(context: &Arc<Context>, vm: &Vm, op: Running) -> Result<(), ApiError> {
    let result = vm.remove(context).await;
    over(op, false, result)
}

/// Makes a VM what another file says: in place where the guest need not know, else by a stop and a start.
///
/// # Errors
/// Somebody else changed it; the new limits cannot be set; it could not be stopped or started.
pub async fn update(
    context: &Arc<Context>,
    hold: &Hold,
    request: UpdateRequest,
    files: Option<Received>,
    limit: &Limit,
    mut op: Running,
) -> Result<UpdateDone, ApiError> {
    let (result, cancelled) = updated(context, hold, request, files, limit, &mut op).await;
    tidy(context, &hold.vm).await;
    over(op, cancelled, result)
}

/// What it is now is all whose files it needs.
async fn tidy(context: &Context, vm: &Vm) {
    context.storage.tidy(&context.tenants, &vm.intent()).await;
}

async fn updated(
    context: &Arc<Context>,
    hold: &Hold,
    request: UpdateRequest,
    files: Option<Received>,
    limit: &Limit,
    op: &mut Running,
) -> (Result<UpdateDone, ApiError>, bool) {
    let UpdateRequest { spec, source, if_generation, deadline_s, files: _ } = request;
    let vm = &hold.vm;
    let (intent, state) = {
        let phase = vm.phase.borrow();
        (phase.intent.clone(), phase.state)
    };
    let generation = intent.generation;
    if if_generation.is_some_and(|wanted| wanted != generation) {
        return (Err(changed_meanwhile(&intent.spec.name)), false);
    }
    // Before anything is stopped: a file that cannot be used changes nothing.
    let _busy = match update_files(context, &intent, &spec, files, op).await {
        Ok(busy) => busy,
        Err((error, cancelled)) => return (Err(error), cancelled),
    };
    let rests = is_end(state) || state == VmState::Restarting;
    let plan = plan(&intent.spec, &spec);
    // Where there is a restart to come, by us or by itself, its owner is told now that it would be too much.
    let claim = if state == VmState::Restarting || plan == Plan::Restart && !rests {
        match vm.claim(context, &spec, limit) {
            Ok(claim) => Some(claim),
            Err(error) => return (Err(error), false),
        }
    } else {
        None
    };
    let done = match plan {
        Plan::Nothing if source.is_none() || source == intent.source => return (Ok(UpdateDone::Nothing), false),
        Plan::Nothing => {
            return (vm.change(spec, source, generation, true, claim).await.map(|()| UpdateDone::Nothing), false);
        }
        _ if rests => UpdateDone::Stored,
        Plan::InPlace { limits } => {
            if limits && let Err(error) = set_limits(context, vm, &spec).await {
                return (Err(error), false);
            }
            UpdateDone::InPlace
        }
        Plan::Restart => UpdateDone::Restarted,
    };
    if done != UpdateDone::Restarted {
        let in_place = done == UpdateDone::InPlace;
        return (vm.change(spec, source, generation, in_place, claim).await.map(|()| done), false);
    }
    drop(claim);
    let stop = Ask::StopToStart(Duration::from_secs(deadline_s.into()));
    let (stopped, cancelled) = until_stopped(op, hold, stop).await;
    if let Err(error) = stopped {
        return (Err(error), cancelled);
    }
    fault::here(Step::UpdateStopped);
    op.stage("worker", None);
    if let Err(error) = vm.change(spec, source, generation, false, None).await {
        // It ran, and is to run on, as whatever it is.
        if let Ok(starting) = vm.start(context, limit) {
            let _ = starting.until_running().await;
        }
        return (Err(error), false);
    }
    fault::here(Step::UpdateChanged);
    match vm.start(context, limit) {
        Ok(starting) => {
            let (result, cancelled) = until_running(op, starting).await;
            (result.map(|_| UpdateDone::Restarted), cancelled)
        }
        Err(error) => (Err(error), false),
    }
}

/// Imports what came for another file of a VM; looks that nothing is missing where nothing came. Says with an error whether the
/// operation was cancelled.
async fn update_files(
    context: &Context,
    intent: &Intent,
    spec: &VmSpec,
    files: Option<Received>,
    op: &mut Running,
) -> Result<Option<Busy>, (ApiError, bool)> {
    let Some(files) = files else {
        provide::possible(context, intent.number, intent.owner, spec).await.map_err(|error| (error, false))?;
        return Ok(None);
    };
    let id = op.id();
    let told = |percent| context.operations.progress(id, "import", Some(percent));
    tokio::select! {
        biased;
        result = import(context, (intent.number, intent.owner), spec, files, told) => {
            result.map(Some).map_err(|error| (error, false))
        }
        () = op.cancelled() => {
            let message = format!("the change of {} was cancelled; it is as it was", spec.name);
            Err((ApiError { code: ErrorCode::Conflict, message, field: None }, true))
        }
    }
}

fn changed_meanwhile(name: &str) -> ApiError {
    let message = format!("{name} was changed by somebody else meanwhile; look again (vmsup diff)");
    ApiError { code: ErrorCode::Conflict, message, field: None }
}

/// Has the jailer hold a running VM to the limits of another file.
async fn set_limits(context: &Context, vm: &Vm, spec: &VmSpec) -> Result<(), ApiError> {
    let Some(slot) = vm.phase.borrow().worker.as_ref().map(|worker| Slot(worker.slot)) else { return Ok(()) };
    let none = CgroupLimits { best_effort: true, ..CgroupLimits::default() };
    let limits = spec.limits.as_ref().map_or(none, cgroup_limits);
    context
        .jail
        .limit(slot, limits)
        .await
        .map_err(|why| super::refusals::no_worker(super::jail::MakeError::Refused(why)))
}

/// Follows a start to its end, and gives it up where somebody wants that.
async fn until_running(op: &mut Running, starting: Starting) -> (Result<Arc<Vm>, ApiError>, bool) {
    let vm = starting.vm.clone();
    let mut phase = vm.watch();
    let mut cancelled = false;
    let running = starting.until_running();
    tokio::pin!(running);
    loop {
        tokio::select! {
            biased;
            result = &mut running => return (result, cancelled),
            () = op.cancelled(), if !cancelled => {
                cancelled = true;
                vm.ask(Ask::CancelStart).await;
            }
            Ok(()) = phase.changed() => {
                let (stage, percent) = {
                    let phase = phase.borrow_and_update();
                    (phase.stage, phase.percent)
                };
                op.stage(stage, percent);
            }
        }
    }
}

/// Follows a stop to its end, and takes it back where somebody wants that.
async fn until_stopped(op: &mut Running, hold: &Hold, ask: Ask) -> (Result<(), ApiError>, bool) {
    hold.vm.ask(ask).await;
    tokio::select! {
        biased;
        () = hold.vm.until_ended() => return (Ok(()), false),
        () = op.cancelled() => {}
    }
    hold.vm.ask(Ask::CancelStop).await;
    // It goes on, or it was too late for that.
    let settled = |state| is_end(state) || matches!(state, VmState::Running | VmState::Paused | VmState::Starting);
    let goes_on = hold.vm.watch().wait_for(|phase| settled(phase.state)).await.is_ok_and(|phase| !is_end(phase.state));
    if !goes_on {
        return (Ok(()), true);
    }
    let message = "the stop was cancelled; the VM goes on";
    (Err(ApiError { code: ErrorCode::Conflict, message: message.into(), field: None }), true)
}

/// Ends the operation: what was cancelled and not done is recorded as that.
fn over<T>(op: Running, cancelled: bool, result: Result<T, ApiError>) -> Result<T, ApiError> {
    match &result {
        Err(_) if cancelled => drop(op),
        Err(error) => op.end(Err(error.clone())),
        Ok(_) => op.end(Ok(())),
    }
    result
}
