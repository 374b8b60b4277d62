//! The handler of console streams.

use super::error::Refusal;
use super::handlers::{Answer, Shared, find};
use super::listen::Caller;
use super::patient::Patient;
use super::types::{ApiError, ErrorCode};
use super::{CONSOLE_INPUT_HEADER, CONSOLE_PROTOCOL};
use crate::serve::stream::Attached;
use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;

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

/// Attaches to the console: after 101 the connection carries raw bytes both ways until this run of the VM is over.
#[utoipa::path(get, path = "/v1/vms/{vm}/console",
    params(("vm" = String, Path, description = "Name or id"), ConsoleQuery), responses(
    (status = 101, description = "The stream begins. `Connection: upgrade` and `Upgrade: vmsup-console` are required",
     headers(("vmsup-console-input" = String, description = "Whether this client's bytes reach the guest: yes or no"))),
    (status = 400, body = ApiError),
    (status = 404, body = ApiError),
    (status = 409, body = ApiError, description = "There is none yet, or it is no longer kept"),
))]
pub async fn console(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Path(key): Path<String>,
    query: Result<Query<ConsoleQuery>, axum::extract::rejection::QueryRejection>,
    mut request: Request,
) -> Answer<Response> {
    let Query(query) = query.map_err(|e| Refusal::new(ErrorCode::Invalid, e.body_text()))?;
    let hold = find(&context, &caller, &key)?;
    let asked = request.headers().get(header::UPGRADE).is_some_and(|v| v.as_bytes() == CONSOLE_PROTOCOL.as_bytes());
    if !asked {
        let message =
            format!("a console needs the headers \"Connection: upgrade\" and \"Upgrade: {CONSOLE_PROTOCOL}\"");
        return Err(Refusal::with_status(StatusCode::UPGRADE_REQUIRED, ErrorCode::Invalid, message));
    }
    let console = hold.vm.console()?;
    let attached = Attached::new(hold, &console, query.history, query.input);
    let input = if attached.has_input() { "yes" } else { "no" };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        // Its place among the connections is taken as long as the stream lasts, and that as long as its client may.
        let streaming = stream(upgrade, attached);
        tokio::select! {
            () = streaming => {}
            () = caller.until_denied(&context.tenants) => {}
        }
    });
    let headers = [
        (header::CONNECTION.as_str(), "upgrade"),
        (header::UPGRADE.as_str(), CONSOLE_PROTOCOL),
        (CONSOLE_INPUT_HEADER, input),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// Moves bytes once the connection is ours.
async fn stream(upgrade: hyper::upgrade::OnUpgrade, attached: Attached) {
    match upgrade.await.map(|io| io.downcast::<TokioIo<Patient>>()) {
        Ok(Ok(parts)) => attached.run(parts.io.into_inner().into_inner(), &parts.read_buf).await,
        Ok(Err(_)) => tracing::error!("a console connection that is no Unix socket"),
        Err(error) => tracing::debug!(%error, "a client asked for a console and hung up"),
    }
}
