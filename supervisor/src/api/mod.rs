//! The API: HTTP/JSON on a Unix socket.
//!
//! Spoken to by clients with the supervisor's uid, by root, and by whom its configuration names, whom [`listen`] knows by what
//! the kernel says of a socket's peer. Each sees their own VMs, and of others not that they are there. Bodies, heads,
//! times and connections are bounded; a body is parsed by serde with unknown fields refused, and what it says is
//! checked again although the CLI has checked it.

use axum::Router;
use axum::routing::{get, post};
use std::sync::Arc;

pub(crate) mod console;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod handlers;
pub(crate) mod listen;
pub mod loopback;
pub(crate) mod metrics;
pub(crate) mod nets;
pub(crate) mod openapi;
pub(crate) mod operate;
pub(crate) mod ops;
mod patient;
pub(crate) mod quotas;
mod shares;
pub mod types;
pub(crate) mod vms;

use crate::serve::Context;

/// Protocol name of the console stream in `Upgrade:`.
pub const CONSOLE_PROTOCOL: &str = "vmsup-console";
/// Header of the console stream's answer: whether this client's bytes reach the guest, `yes` or `no`.
pub const CONSOLE_INPUT_HEADER: &str = "vmsup-console-input";
/// Header of `logs`: bytes that the guest wrote.
pub const WRITTEN_HEADER: &str = "vmsup-written";
/// Header of `logs`: how many of them are no longer kept.
pub const OVERWRITTEN_HEADER: &str = "vmsup-overwritten";

/// Header of the answers to requests that take time: the number of the operation.
pub const OPERATION_HEADER: &str = "vmsup-operation";

/// All routes. `openapi.rs` documents each of them; a test holds the two together.
pub(crate) fn router(context: Arc<Context>) -> Router {
    Router::new()
        .route("/v1/version", get(handlers::version))
        .route("/v1/openapi.json", get(openapi::document))
        .route("/v1/vms", get(handlers::list).post(vms::create))
        .route("/v1/vms/{vm}", get(handlers::info).put(vms::update).delete(vms::remove))
        .route("/v1/vms/{vm}/start", post(vms::start))
        .route("/v1/vms/{vm}/stop", post(vms::stop))
        .route("/v1/vms/{vm}/kill", post(vms::kill))
        .route("/v1/vms/{vm}/pause", post(vms::pause))
        .route("/v1/vms/{vm}/resume", post(vms::resume))
        .route("/v1/vms/{vm}/wait", get(handlers::wait))
        .route("/v1/vms/{vm}/logs", get(handlers::logs))
        .route("/v1/vms/{vm}/console", get(console::console))
        .route("/v1/vms/{vm}/net", get(nets::net_stats))
        .route("/v1/vms/{vm}/stats", get(metrics::vm_stats))
        .route("/v1/stats", get(metrics::stats))
        .route("/metrics", get(metrics::prometheus))
        .route("/v1/events", get(events::events))
        .route("/v1/ops", get(ops::list))
        .route("/v1/ops/{id}", get(ops::operation).delete(ops::cancel))
        .route("/v1/networks", get(nets::networks))
        .route("/v1/leases", get(nets::leases))
        .route("/v1/quota", get(quotas::own))
        .route("/v1/quotas", get(quotas::all))
        .fallback(handlers::no_such_route)
        .method_not_allowed_fallback(handlers::no_such_method)
        .with_state(context)
}

#[cfg(test)]
mod events_tests;
#[cfg(test)]
mod net_tests;
#[cfg(test)]
mod tenant_tests;
#[cfg(test)]
mod tests;
