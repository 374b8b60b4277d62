//! Operations that take time: which there are, how far they are, and their end before the time.

use super::error::Refusal;
use super::handlers::{Answer, Shared};
use super::listen::Caller;
use super::types::{ApiError, ErrorCode, Operation, OperationState};
use crate::serve::Context;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use tokio::sync::watch;

/// The caller's operations, oldest first: those under way, and the last that are over.
#[utoipa::path(get, path = "/v1/ops", responses((status = 200, body = Vec<Operation>)))]
pub async fn list(State(context): Shared, Extension(caller): Extension<Caller>) -> Json<Vec<Operation>> {
    let mut all = context.operations.list();
    all.retain(|operation| caller.sees(operation.owner));
    Json(all)
}

/// When the answer is to come.
#[derive(Debug, Clone, Copy, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OperationQuery {
    /// When it is over, not now.
    #[serde(default)]
    wait: bool,
}

/// One operation.
#[utoipa::path(get, path = "/v1/ops/{id}", params(("id" = u64, Path, description = "Its number"), OperationQuery), responses(
    (status = 200, body = Operation),
    (status = 400, body = ApiError),
    (status = 404, body = ApiError),
    (status = 503, body = ApiError, description = "Too many clients wait already"),
))]
pub async fn operation(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    query: Result<Query<OperationQuery>, QueryRejection>,
) -> Answer<Json<Operation>> {
    let Query(query) = query.map_err(|e| Refusal::new(ErrorCode::Invalid, e.body_text()))?;
    let mut record = find(&context, &caller, &id)?;
    if query.wait {
        let _waits = caller.waits()?;
        tokio::select! {
            _ = record.wait_for(|operation| operation.state != OperationState::Running) => {}
            () = context.events.closed() => {}
        }
    }
    let operation = record.borrow().clone();
    Ok(Json(operation))
}

/// Cancels an operation: nothing of it is left then. It is over a moment later (`?wait=true` tells when), and may have been done
/// in that moment.
#[utoipa::path(delete, path = "/v1/ops/{id}", params(("id" = u64, Path, description = "Its number")), responses(
    (status = 202, body = Operation),
    (status = 404, body = ApiError),
    (status = 409, body = ApiError, description = "It is over"),
))]
pub async fn cancel(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer<(StatusCode, Json<Operation>)> {
    let record = find(&context, &caller, &id)?;
    let operation = record.borrow().clone();
    if !context.operations.cancel(operation.id) {
        let message = format!("operation {} is over; vmsup ops shows how it ended", operation.id);
        return Err(Refusal::new(ErrorCode::Conflict, message));
    }
    Ok((StatusCode::ACCEPTED, Json(operation)))
}

/// Somebody else's is not there.
fn find(context: &Context, caller: &Caller, id: &str) -> Answer<watch::Receiver<Operation>> {
    let record = id.parse().ok().and_then(|id| context.operations.get(id));
    record.filter(|record| caller.sees(record.borrow().owner)).ok_or_else(|| {
        let shown: String = id.chars().flat_map(char::escape_debug).take(40).collect();
        Refusal::new(
            ErrorCode::NotFound,
            format!("there is no operation {shown}; vmsup ops shows those that there are"),
        )
    })
}
