//! One handler a route, named after what it does: here those that look. What they answer is in [`super::types`].

use super::error::Refusal;
use super::listen::Caller;
use super::types::{ApiError, ErrorCode, JailerInfo, VersionInfo, VmInfo, VmSummary};
use super::{OVERWRITTEN_HEADER, WRITTEN_HEADER};
use crate::serve::Context;
use crate::serve::vm::Hold;
use crate::spec::SPEC_MAX_BYTES;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use jail_spec::UidSource;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// How long a client may take to send a body.
const BODY_TIME: Duration = Duration::from_secs(10);

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
    let files = context.side.path().map(|path| path.to_string_lossy().into_owned());
    Json(VersionInfo { version, pid: std::process::id() as i32, uid: context.host.uid, files, jailer })
}

/// All VMs, by name.
#[utoipa::path(get, path = "/v1/vms", responses((status = 200, body = Vec<VmSummary>)))]
pub async fn list(State(context): Shared, Extension(caller): Extension<Caller>) -> Json<Vec<VmSummary>> {
    Json(context.registry.list_for(caller.who()).iter().map(|vm| vm.summary()).collect())
}

/// One VM in full.
#[utoipa::path(get, path = "/v1/vms/{vm}", params(("vm" = String, Path, description = "Name or id")), responses(
    (status = 200, body = VmInfo),
    (status = 404, body = ApiError),
))]
pub async fn info(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Path(key): Path<String>,
) -> Answer<Json<VmInfo>> {
    Ok(Json(find(&context, &caller, &key)?.vm.info()))
}

/// Answers when the VM has ended and is not started again by itself.
#[utoipa::path(get, path = "/v1/vms/{vm}/wait", params(("vm" = String, Path, description = "Name or id")), responses(
    (status = 200, body = VmInfo),
    (status = 404, body = ApiError),
))]
pub async fn wait(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Path(key): Path<String>,
) -> Answer<Json<VmInfo>> {
    let hold = find(&context, &caller, &key)?;
    hold.vm.until_ended().await;
    hold.heard();
    Ok(Json(hold.vm.info()))
}

/// The console output that is kept.
#[utoipa::path(get, path = "/v1/vms/{vm}/logs", params(("vm" = String, Path, description = "Name or id")), responses(
    (status = 200, body = String, content_type = "application/octet-stream",
     description = "The bytes as the guest wrote them, control characters included",
     headers(("vmsup-written" = u64, description = "Bytes that the guest wrote"),
             ("vmsup-overwritten" = u64, description = "How many of the first of them are no longer kept"))),
    (status = 404, body = ApiError),
    (status = 409, body = ApiError, description = "There is none yet, or it is no longer kept"),
))]
pub async fn logs(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Path(key): Path<String>,
) -> Answer<Response> {
    let hold = find(&context, &caller, &key)?;
    let (bytes, overwritten) = hold.vm.console()?.kept();
    let written = overwritten.saturating_add(bytes.len() as u64);
    let mut response = Response::new(Body::from(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(WRITTEN_HEADER, written.into());
    headers.insert(OVERWRITTEN_HEADER, overwritten.into());
    Ok(response)
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

/// The caller's VM of this name or id.
pub(super) fn find(context: &Arc<Context>, caller: &Caller, key: &str) -> Answer<Hold> {
    Hold::find(context, caller.who(), key).ok_or_else(|| Refusal::no_vm(key))
}

/// A JSON body: bounded in size and time, nothing unknown in it.
pub(super) async fn json<T: DeserializeOwned>(request: Request) -> Answer<T> {
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
