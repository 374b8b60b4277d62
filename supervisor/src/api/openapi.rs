//! The OpenAPI document, made from the handlers' own annotations.

use super::{console, events, handlers, metrics, nets, ops, quotas, vms};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;

/// The document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "vmsup",
        description = "Virtual machines for people who do not trust what runs in them. On a Unix socket; the peer's uid is the identity."
    ),
    paths(
        handlers::version,
        handlers::list,
        vms::create,
        handlers::info,
        vms::update,
        vms::remove,
        vms::start,
        vms::stop,
        vms::kill,
        vms::pause,
        vms::resume,
        handlers::wait,
        handlers::logs,
        console::console,
        metrics::vm_stats,
        metrics::stats,
        metrics::prometheus,
        events::events,
        ops::list,
        ops::operation,
        ops::cancel,
        nets::net_stats,
        nets::networks,
        nets::leases,
        quotas::own,
        quotas::all,
        document
    )
)]
pub struct Document;

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json")))]
pub async fn document() -> Response {
    let json = Document::openapi().to_json().unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}
