//! Requests that take time: each runs as an operation, whoever waits for it.

use super::OPERATION_HEADER;
use super::error::Refusal;
use super::handlers::Answer;
use super::types::ApiError;
use crate::serve::Context;
use crate::serve::ops::Running;
use crate::serve::refusals::internal;
use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// Whether the answer waits.
#[derive(Debug, Clone, Copy, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// Answer when it is done (default); false: at once, with the operation (202), which `GET /v1/ops/{id}` follows.
    #[serde(default = "yes")]
    wait: bool,
}

fn yes() -> bool {
    true
}

/// The query of a request that may wait.
pub(super) type Waits = Result<Query<WaitQuery>, QueryRejection>;

/// Whether the answer waits, or what is wrong with the query.
pub(super) fn waits(query: Waits) -> Answer<bool> {
    let Query(WaitQuery { wait }) =
        query.map_err(|error| Refusal::new(super::types::ErrorCode::Invalid, error.body_text()))?;
    Ok(wait)
}

/// Has `work` done by a task of its own, so that a client that hangs up changes nothing, and answers with what it brings
/// (`done` is that answer's status), or at once.
pub(super) async fn operate<T, F>(
    context: &Context,
    wait: bool,
    done: StatusCode,
    op: Running,
    work: impl FnOnce(Running) -> F,
) -> Response
where
    T: Serialize + Send + 'static,
    F: Future<Output = Result<T, ApiError>> + Send + 'static,
{
    let id = op.id();
    let begun = context.operations.get(id).map(|op| op.borrow().clone());
    let task = tokio::spawn(work(op));
    let mut response = match (wait, begun) {
        (false, Some(begun)) => (StatusCode::ACCEPTED, Json(begun)).into_response(),
        _ => match task.await.unwrap_or_else(|_| Err(internal("this supervisor is leaving"))) {
            Ok(value) if done == StatusCode::NO_CONTENT => {
                drop(value);
                done.into_response()
            }
            Ok(value) => (done, Json(value)).into_response(),
            Err(error) => Refusal::from(error).into_response(),
        },
    };
    response.headers_mut().insert(OPERATION_HEADER, id.into());
    response
}
