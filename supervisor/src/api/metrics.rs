//! The handlers of what VMs use and did. Nothing is read until somebody asks.

use super::handlers::{Answer, Shared, find};
use super::listen::Caller;
use super::types::{ApiError, VmStats};
use crate::serve::metrics;
use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};

/// What Prometheus calls its text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a VM uses and did so far.
#[utoipa::path(get, path = "/v1/vms/{vm}/stats", params(("vm" = String, Path, description = "Name or id")), responses(
    (status = 200, body = VmStats),
    (status = 404, body = ApiError),
))]
pub async fn vm_stats(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Path(key): Path<String>,
) -> Answer<Json<VmStats>> {
    let hold = find(&context, &caller, &key)?;
    let samples = metrics::collect(&context, vec![hold.vm.clone()]).await;
    Ok(Json(samples.into_iter().map(|(_, stats)| stats).next().ok_or_else(|| super::error::Refusal::no_vm(&key))?))
}

/// The same of all VMs, by name.
#[utoipa::path(get, path = "/v1/stats", responses((status = 200, body = Vec<VmStats>)))]
pub async fn stats(State(context): Shared, Extension(caller): Extension<Caller>) -> Json<Vec<VmStats>> {
    let vms = context.registry.list_for(caller.who());
    let samples = metrics::collect(&context, vms).await;
    Json(samples.into_iter().map(|(_, stats)| stats).collect())
}

/// The same and, for who sees all VMs, the supervisor's own, for Prometheus.
#[utoipa::path(get, path = "/metrics", responses(
    (status = 200, body = String, content_type = "text/plain", description = "Prometheus' text format, version 0.0.4"),
))]
pub async fn prometheus(State(context): Shared, caller: Option<Extension<Caller>>) -> Response {
    // Over the loopback listener, which knows no callers and says so where it is asked for, there is none.
    let who = caller.map(|Extension(caller)| caller.who()).filter(|who| !who.all);
    let vms = who.map_or_else(|| context.registry.list(), |who| context.registry.list_for(who));
    // What the supervisor counts is everybody's: one tenant would read the others' days from it.
    let text = metrics::exposition(&context, vms, who.is_none()).await;
    ([(header::CONTENT_TYPE, TEXT)], text).into_response()
}
