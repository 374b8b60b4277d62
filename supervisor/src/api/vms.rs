//! The handlers that make VMs, change them, and move them from one state to another.

use super::error::Refusal;
use super::handlers::{Answer, Shared, find, json};
use super::listen::Caller;
use super::operate::{WaitQuery, Waits, operate, waits};
use super::types::{
    ApiError, CreateRequest, ErrorCode, Operation, OperationKind, StopRequest, UpdateAnswer, UpdateRequest, VmInfo,
};
use crate::serve::registry::Entry;
use crate::serve::side::Received;
use crate::serve::vm::{Ask, Hold, Order};
use crate::serve::{Context, tasks};
use axum::Json;
use axum::extract::{Extension, Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use std::time::Duration;

/// The longest time between power button and kill.
const STOP_MAX: u32 = 24 * 3600;
/// The longest `source`, bytes: a path.
const SOURCE_MAX: usize = 4096;

/// Starts a VM; answers when its vCPUs run and that is written down. A VM of this name that does not run becomes what the
/// file says, and keeps its id and its history.
#[utoipa::path(post, path = "/v1/vms", request_body = CreateRequest, params(WaitQuery), responses(
    (status = 201, body = VmInfo, headers(("vmsup-operation" = u64, description = "Number of the operation"))),
    (status = 202, body = Operation, description = "Under way (`wait=false`)"),
    (status = 400, body = ApiError, description = "The spec is wrong"),
    (status = 409, body = ApiError, description = "The name or a disk is in use"),
    (status = 413, body = ApiError, description = "The body is too large"),
    (status = 503, body = ApiError, description = "The host cannot, at least now"),
))]
pub async fn create(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    query: Waits,
    request: Request,
) -> Answer<Response> {
    let wait = waits(query)?;
    let request: CreateRequest = json(request).await?;
    let terms = caller.terms(&context);
    tasks::admit(&context, &request.spec, &terms.limit)?;
    check_source(request.source.as_deref())?;
    let files = handed_over(&context, &caller, request.files.as_deref())?;
    let op = tasks::begin(&context, OperationKind::Create, &request.spec.name, caller.uid());
    let work = {
        let context = context.clone();
        move |op| async move { Ok(tasks::create(&context, Order { request, files }, terms, op).await?.info()) }
    };
    Ok(operate(&context, wait, StatusCode::CREATED, op, work).await)
}

/// Makes a VM what another file says: in place where the guest need not know, else by a stop and a start. One that does
/// not run is that the next time.
#[utoipa::path(put, path = "/v1/vms/{vm}", request_body = UpdateRequest,
    params(("vm" = String, Path, description = "Name or id"), WaitQuery), responses(
    (status = 200, body = UpdateAnswer, headers(("vmsup-operation" = u64, description = "Number of the operation"))),
    (status = 202, body = Operation, description = "Under way (`wait=false`)"),
    (status = 400, body = ApiError, description = "The spec is wrong"),
    (status = 404, body = ApiError),
    (status = 409, body = ApiError, description = "It has another generation, or is on its way elsewhere"),
))]
pub async fn update(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Path(key): Path<String>,
    query: Waits,
    request: Request,
) -> Answer<Response> {
    let wait = waits(query)?;
    let hold = find(&context, &caller, &key)?;
    let mut request: UpdateRequest = json(request).await?;
    let limit = caller.terms(&context).limit;
    tasks::admit(&context, &request.spec, &limit)?;
    check_source(request.source.as_deref())?;
    request.deadline_s = request.deadline_s.min(STOP_MAX);
    let name = hold.vm.name();
    if request.spec.name != name {
        let message = format!("a VM keeps its name; this one is {name}");
        return Err(ApiError { code: ErrorCode::Invalid, message, field: Some("name".into()) }.into());
    }
    let files = handed_over(&context, &caller, request.files.as_deref())?;
    let op = tasks::begin(&context, OperationKind::Update, name, caller.uid());
    let work = {
        let context = context.clone();
        move |op| async move {
            let done = tasks::update(&context, &hold, request, files, &limit, op).await?;
            Ok(UpdateAnswer { done, vm: hold.vm.info() })
        }
    };
    Ok(operate(&context, wait, StatusCode::OK, op, work).await)
}

/// Forgets a VM that does not run, its console output and its history included.
#[utoipa::path(delete, path = "/v1/vms/{vm}", params(("vm" = String, Path, description = "Name or id"), WaitQuery),
    responses(
    (status = 204, headers(("vmsup-operation" = u64, description = "Number of the operation"))),
    (status = 202, body = Operation, description = "Under way (`wait=false`)"),
    (status = 404, body = ApiError),
    (status = 409, body = ApiError, description = "It runs"),
))]
pub async fn remove(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Path(key): Path<String>,
    query: Waits,
) -> Answer<Response> {
    let wait = waits(query)?;
    let hold = find(&context, &caller, &key)?;
    let op = tasks::begin(&context, OperationKind::Remove, hold.vm.name(), caller.uid());
    let work = {
        let context = context.clone();
        move |op| async move { tasks::remove(&context, &hold.vm, op).await }
    };
    Ok(operate(&context, wait, StatusCode::NO_CONTENT, op, work).await)
}

/// Starts a VM that does not run, or that waits for its restart; answers when its vCPUs run.
#[utoipa::path(post, path = "/v1/vms/{vm}/start", params(("vm" = String, Path, description = "Name or id"), WaitQuery),
    responses(
    (status = 200, body = VmInfo, headers(("vmsup-operation" = u64, description = "Number of the operation"))),
    (status = 202, body = Operation, description = "Under way (`wait=false`)"),
    (status = 404, body = ApiError),
    (status = 409, body = ApiError, description = "It runs, or a disk is in use"),
    (status = 503, body = ApiError, description = "The host cannot, at least now"),
))]
pub async fn start(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Path(key): Path<String>,
    query: Waits,
) -> Answer<Response> {
    let wait = waits(query)?;
    let hold = find(&context, &caller, &key)?;
    // The host may have changed since its file was taken.
    let limit = caller.terms(&context).limit;
    tasks::admit(&context, &hold.vm.intent().spec, &limit)?;
    let op = tasks::begin(&context, OperationKind::Start, hold.vm.name(), caller.uid());
    let work = {
        let context = context.clone();
        move |op| async move {
            tasks::start(&context, &hold.vm, &limit, op).await?;
            Ok(hold.vm.info())
        }
    };
    Ok(operate(&context, wait, StatusCode::OK, op, work).await)
}

/// Presses the power button, kills at the deadline; answers when the VM has ended. A VM that waits for its restart is not
/// started again.
#[utoipa::path(post, path = "/v1/vms/{vm}/stop", request_body = StopRequest,
    params(("vm" = String, Path, description = "Name or id"), WaitQuery), responses(
    (status = 200, body = VmInfo, headers(("vmsup-operation" = u64, description = "Number of the operation"))),
    (status = 202, body = Operation, description = "Under way (`wait=false`)"),
    (status = 404, body = ApiError),
))]
pub async fn stop(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Path(key): Path<String>,
    query: Waits,
    request: Request,
) -> Answer<Response> {
    let wait = waits(query)?;
    let hold = find(&context, &caller, &key)?;
    let StopRequest { deadline_s, for_shutdown } = json(request).await?;
    let patience = Duration::from_secs(deadline_s.min(STOP_MAX).into());
    let ask = if for_shutdown { Ask::StopForShutdown(patience) } else { Ask::Stop(patience) };
    let op = tasks::begin(&context, OperationKind::Stop, hold.vm.name(), caller.uid());
    let work = move |op| async move {
        tasks::stop(&hold, ask, op).await?;
        Ok(heard(&hold))
    };
    Ok(operate(&context, wait, StatusCode::OK, op, work).await)
}

/// Kills the VM's worker; answers when it has ended.
#[utoipa::path(post, path = "/v1/vms/{vm}/kill", params(("vm" = String, Path, description = "Name or id"), WaitQuery),
    responses(
    (status = 200, body = VmInfo, headers(("vmsup-operation" = u64, description = "Number of the operation"))),
    (status = 202, body = Operation, description = "Under way (`wait=false`)"),
    (status = 404, body = ApiError),
))]
pub async fn kill(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Path(key): Path<String>,
    query: Waits,
) -> Answer<Response> {
    let wait = waits(query)?;
    let hold = find(&context, &caller, &key)?;
    let op = tasks::begin(&context, OperationKind::Stop, hold.vm.name(), caller.uid());
    let work = move |op| async move {
        tasks::kill(&hold, op).await?;
        Ok(heard(&hold))
    };
    Ok(operate(&context, wait, StatusCode::OK, op, work).await)
}

/// Has a VM's vCPUs stand still; answers when they do.
#[utoipa::path(post, path = "/v1/vms/{vm}/pause", params(("vm" = String, Path, description = "Name or id")), responses(
    (status = 200, body = VmInfo),
    (status = 404, body = ApiError),
    (status = 409, body = ApiError, description = "It does not run"),
))]
pub async fn pause(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Path(key): Path<String>,
) -> Answer<Json<VmInfo>> {
    let hold = find(&context, &caller, &key)?;
    hold.vm.pause().await?;
    Ok(Json(hold.vm.info()))
}

/// Has the vCPUs of a paused VM go on; answers when they do.
#[utoipa::path(post, path = "/v1/vms/{vm}/resume", params(("vm" = String, Path, description = "Name or id")), responses(
    (status = 200, body = VmInfo),
    (status = 404, body = ApiError),
    (status = 409, body = ApiError, description = "It does not run"),
))]
pub async fn resume(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Path(key): Path<String>,
) -> Answer<Json<VmInfo>> {
    let hold = find(&context, &caller, &key)?;
    hold.vm.resume().await?;
    Ok(Json(hold.vm.info()))
}

/// What the caller handed over for this request.
fn handed_over(context: &Context, caller: &Caller, ticket: Option<&str>) -> Answer<Option<Received>> {
    Ok(ticket.map(|ticket| context.side.redeem(ticket, caller.uid())).transpose()?)
}

fn check_source(source: Option<&str>) -> Answer<()> {
    match source {
        Some(source) if source.is_empty() || source.len() > SOURCE_MAX || source.contains(char::is_control) => {
            let message = format!("a source is the path of a file or directory, of 1 to {SOURCE_MAX} bytes");
            Err(Refusal::from(ApiError { code: ErrorCode::Invalid, message, field: Some("source".into()) }))
        }
        _ => Ok(()),
    }
}

/// A VM that has ended, for an answer that says so.
fn heard(hold: &Hold) -> VmInfo {
    hold.heard();
    hold.vm.info()
}
