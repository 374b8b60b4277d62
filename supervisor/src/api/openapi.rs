//! The OpenAPI document, made from the handlers' own annotations.

use super::{events, handlers, metrics, nets, ops};
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
        handlers::create,
        handlers::info,
        handlers::remove,
        handlers::stop,
        handlers::kill,
        handlers::wait,
        handlers::logs,
        handlers::console,
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
