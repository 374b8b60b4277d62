//! One handler a route, named after what it does. What they answer is in [`super::types`].

use super::error::Refusal;
use super::listen::Caller;
use super::types::{ApiError, CreateRequest, ErrorCode, JailerInfo, StopRequest, VersionInfo, VmInfo, VmSummary};
use super::{CONSOLE_INPUT_HEADER, CONSOLE_PROTOCOL, OVERWRITTEN_HEADER, WRITTEN_HEADER};
use crate::serve::stream::Attached;
use crate::serve::vm::{Ask, Hold, Vm};
use crate::serve::{Context, no_cgroup, registry::Entry};
use crate::spec::{Enforce, SPEC_MAX_BYTES, VmSpec};
use crate::vmjson::check;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use jail_spec::UidSource;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;

/// How long a client may take to send a body.
const BODY_TIME: Duration = Duration::from_secs(10);
/// The longest time between power button and kill.
const STOP_MAX: u32 = 24 * 3600;

pub(super) type Shared = State<Arc<Context>>;
pub(super) type Answer<T> = Result<T, Refusal>;

/// Who answers, and on what host.
#[utoipa::path(get, path = "/v1/version", responses((status = 200, body = VersionInfo)))]
pub async fn version(State(context): Shared) -> Json<VersionInfo> {
    let jail = &context.jail;
    let alive = *jail.alive().borrow();
    let jailer = JailerInfo {
        pid: alive.then_some(jail.facts.pid),
        uids: match jail.facts.uids {
            UidSource::Subordinate { .. } => "subordinate".into(),
            UidSource::Own => "own".into(),
        },
        cgroup: jail.facts.cgroup.clone().ok(),
        cgroup_reason: jail.facts.cgroup.clone().err(),
        pool: jail.facts.pool,
    };
    let version = env!("CARGO_PKG_VERSION").into();
    Json(VersionInfo { version, pid: std::process::id() as i32, uid: context.host.uid, jailer })
}

/// All VMs, by name.
#[utoipa::path(get, path = "/v1/vms", responses((status = 200, body = Vec<VmSummary>)))]
pub async fn list(State(context): Shared) -> Json<Vec<VmSummary>> {
    Json(context.registry.list().iter().map(|vm| vm.summary()).collect())
}

/// Starts a VM; answers when its vCPUs run.
#[utoipa::path(post, path = "/v1/vms", request_body = CreateRequest, responses(
    (status = 201, body = VmInfo),
    (status = 400, body = ApiError, description = "The spec is wrong"),
    (status = 409, body = ApiError, description = "The name or a disk is in use"),
    (status = 413, body = ApiError, description = "The body is too large"),
    (status = 503, body = ApiError, description = "The host cannot, at least now"),
))]
pub async fn create(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Answer<(StatusCode, Json<VmInfo>)> {
    let CreateRequest { spec, remove_when_ended, .. } = json(request).await?;
    admit(&context, &spec)?;
    let vm = Vm::create(&context, spec, caller.uid, remove_when_ended)?;
    vm.until_running().await?;
    Ok((StatusCode::CREATED, Json(vm.info())))
}

/// What can be told without opening a file.
fn admit(context: &Context, spec: &VmSpec) -> Answer<()> {
    check::check(spec)?;
    check::check_memory(spec.memory_mib, context.host.memory_mib)?;
    if let (Some(limits), Err(reason)) = (&spec.limits, &context.jail.facts.cgroup)
        && limits.enforce == Enforce::Required
    {
        return Err(no_cgroup(reason).into());
    }
    Ok(())
}

/// One VM in full.
#[utoipa::path(get, path = "/v1/vms/{vm}", params(("vm" = String, Path, description = "Name or id")), responses(
    (status = 200, body = VmInfo),
    (status = 404, body = ApiError),
))]
pub async fn info(State(context): Shared, Path(key): Path<String>) -> Answer<Json<VmInfo>> {
    Ok(Json(find(&context, &key)?.vm.info()))
}

/// Forgets a VM that has ended, its console output included.
#[utoipa::path(delete, path = "/v1/vms/{vm}", params(("vm" = String, Path, description = "Name or id")), responses(
    (status = 204),
    (status = 404, body = ApiError),
    (status = 409, body = ApiError, description = "It has not ended"),
))]
pub async fn remove(State(context): Shared, Path(key): Path<String>) -> Answer<StatusCode> {
    let vm = find(&context, &key)?.vm.clone();
    if !vm.ended() {
        let name = &vm.spec.name;
        let message = format!("{name} has not ended; stop it first (vmsup stop {name})");
        return Err(Refusal::new(ErrorCode::Conflict, message));
    }
    context.registry.forget(&vm);
    Ok(StatusCode::NO_CONTENT)
}

/// Presses the power button, kills at the deadline; answers when the VM has ended.
#[utoipa::path(post, path = "/v1/vms/{vm}/stop", request_body = StopRequest,
    params(("vm" = String, Path, description = "Name or id")), responses(
    (status = 200, body = VmInfo),
    (status = 404, body = ApiError),
))]
pub async fn stop(State(context): Shared, Path(key): Path<String>, request: Request) -> Answer<Json<VmInfo>> {
    let hold = find(&context, &key)?;
    let StopRequest { deadline_s } = json(request).await?;
    hold.vm.ask(Ask::Stop(Duration::from_secs(u64::from(deadline_s.min(STOP_MAX))))).await;
    Ok(end_of(&hold).await)
}

/// Kills the VM's worker; answers when it has ended.
#[utoipa::path(post, path = "/v1/vms/{vm}/kill", params(("vm" = String, Path, description = "Name or id")), responses(
    (status = 200, body = VmInfo),
    (status = 404, body = ApiError),
))]
pub async fn kill(State(context): Shared, Path(key): Path<String>) -> Answer<Json<VmInfo>> {
    let hold = find(&context, &key)?;
    hold.vm.ask(Ask::Kill).await;
    Ok(end_of(&hold).await)
}

/// Answers when the VM has ended.
#[utoipa::path(get, path = "/v1/vms/{vm}/wait", params(("vm" = String, Path, description = "Name or id")), responses(
    (status = 200, body = VmInfo),
    (status = 404, body = ApiError),
))]
pub async fn wait(State(context): Shared, Path(key): Path<String>) -> Answer<Json<VmInfo>> {
    Ok(end_of(&find(&context, &key)?).await)
}

async fn end_of(hold: &Hold) -> Json<VmInfo> {
    hold.vm.until_ended().await;
    hold.heard();
    Json(hold.vm.info())
}

/// The console output that is kept.
#[utoipa::path(get, path = "/v1/vms/{vm}/logs", params(("vm" = String, Path, description = "Name or id")), responses(
    (status = 200, body = String, content_type = "application/octet-stream",
     description = "The bytes as the guest wrote them, control characters included",
     headers(("vmsup-written" = u64, description = "Bytes that the guest wrote"),
             ("vmsup-overwritten" = u64, description = "How many of the first of them are no longer kept"))),
    (status = 404, body = ApiError),
))]
pub async fn logs(State(context): Shared, Path(key): Path<String>) -> Answer<Response> {
    let hold = find(&context, &key)?;
    let (bytes, overwritten) = hold.vm.console().map(|console| console.kept()).unwrap_or_default();
    let written = overwritten.saturating_add(bytes.len() as u64);
    let mut response = Response::new(Body::from(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(WRITTEN_HEADER, written.into());
    headers.insert(OVERWRITTEN_HEADER, overwritten.into());
    Ok(response)
}

/// How a console is attached.
#[derive(Debug, Clone, Copy, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConsoleQuery {
    /// Begin with the output that is kept (default), or with what comes from now on.
    #[serde(default = "yes")]
    history: bool,
    /// Pass this client's bytes to the guest (default). The first who asks has it; the others only read.
    #[serde(default = "yes")]
    input: bool,
}

fn yes() -> bool {
    true
}

/// Attaches to the console: after 101 the connection carries raw bytes both ways until the VM has ended.
#[utoipa::path(get, path = "/v1/vms/{vm}/console",
    params(("vm" = String, Path, description = "Name or id"), ConsoleQuery), responses(
    (status = 101, description = "The stream begins. `Connection: upgrade` and `Upgrade: vmsup-console` are required",
     headers(("vmsup-console-input" = String, description = "Whether this client's bytes reach the guest: yes or no"))),
    (status = 400, body = ApiError),
    (status = 404, body = ApiError),
))]
pub async fn console(
    State(context): Shared,
    Path(key): Path<String>,
    query: Result<Query<ConsoleQuery>, axum::extract::rejection::QueryRejection>,
    mut request: Request,
) -> Answer<Response> {
    let Query(query) = query.map_err(|e| Refusal::new(ErrorCode::Invalid, e.body_text()))?;
    let hold = find(&context, &key)?;
    let asked = request.headers().get(header::UPGRADE).is_some_and(|v| v.as_bytes() == CONSOLE_PROTOCOL.as_bytes());
    if !asked {
        let message =
            format!("a console needs the headers \"Connection: upgrade\" and \"Upgrade: {CONSOLE_PROTOCOL}\"");
        return Err(Refusal::with_status(StatusCode::UPGRADE_REQUIRED, ErrorCode::Invalid, message));
    }
    let Some(console) = hold.vm.console().cloned() else {
        return Err(Refusal::new(ErrorCode::Conflict, "the VM is still being made; try again"));
    };
    let attached = Attached::new(hold, &console, query.history, query.input);
    let input = if attached.has_input() { "yes" } else { "no" };
    let caller = request.extensions().get::<Caller>().cloned();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        // Its place among the connections is taken as long as the stream lasts.
        let _caller = caller;
        match upgrade.await.map(|io| io.downcast::<TokioIo<UnixStream>>()) {
            Ok(Ok(parts)) => attached.run(parts.io.into_inner(), &parts.read_buf).await,
            Ok(Err(_)) => tracing::error!("a console connection that is no Unix socket"),
            Err(error) => tracing::debug!(%error, "a client asked for a console and hung up"),
        }
    });
    let headers = [
        (header::CONNECTION.as_str(), "upgrade"),
        (header::UPGRADE.as_str(), CONSOLE_PROTOCOL),
        (CONSOLE_INPUT_HEADER, input),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// Any other path.
pub async fn no_such_route() -> Refusal {
    Refusal::new(ErrorCode::NotFound, "no such path; /v1/openapi.json lists them all")
}

/// A path that is there, with a method that is not.
pub async fn no_such_method() -> Refusal {
    let message = "no such method on this path; /v1/openapi.json lists them all";
    Refusal::with_status(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Invalid, message)
}

pub(super) fn find(context: &Arc<Context>, key: &str) -> Answer<Hold> {
    let vm = context.registry.find(key).ok_or_else(|| Refusal::no_vm(key))?;
    Ok(Hold::new(context, vm))
}

/// A JSON body: bounded in size and time, nothing unknown in it.
async fn json<T: DeserializeOwned>(request: Request) -> Answer<T> {
    let body = Limited::new(request.into_body(), SPEC_MAX_BYTES as usize).collect();
    let bytes = match tokio::time::timeout(BODY_TIME, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("the body has more than {SPEC_MAX_BYTES} bytes");
            return Err(Refusal::with_status(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::Invalid, message));
        }
        Ok(Err(_)) => return Err(Refusal::new(ErrorCode::Invalid, "the body ended too early")),
        Err(_) => {
            let message = format!("the body did not come in {} s", BODY_TIME.as_secs());
            return Err(Refusal::with_status(StatusCode::REQUEST_TIMEOUT, ErrorCode::Invalid, message));
        }
    };
    let mut parser = serde_json::Deserializer::from_slice(&bytes);
    let value = serde_path_to_error::deserialize(&mut parser).map_err(|error| {
        let path = error.path().to_string();
        let field = path.strip_prefix("spec.").unwrap_or(&path);
        let field = (!matches!(field, "." | "?")).then(|| field.to_owned());
        Refusal::from(ApiError { code: ErrorCode::Invalid, message: error.into_inner().to_string(), field })
    })?;
    parser.end().map_err(|error| Refusal::new(ErrorCode::Invalid, error.to_string()))?;
    Ok(value)
}
