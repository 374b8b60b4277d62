//! Connections: who may, how many, for how long.

use super::error::Refusal;
use super::types::ErrorCode;
use crate::serve::Context;
use axum::response::IntoResponse;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections at the same time, waiting and attached ones included. The next ones wait in the socket's backlog.
const CONNECTIONS: usize = 1024;
/// How long a client may take to send a request's head, the wait for the next request included.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// The largest head of a request, bytes.
const HEAD_MAX: usize = 16 << 10;
/// How long nothing is accepted after the host ran out of something.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Uid, as the kernel says.
    pub uid: u32,
    /// The place among the connections; given back when the last copy goes.
    _place: Arc<OwnedSemaphorePermit>,
}

/// The places of all connections.
#[derive(Debug, Clone)]
pub struct Connections(Arc<Semaphore>);

impl Default for Connections {
    fn default() -> Self {
        Connections(Arc::new(Semaphore::new(CONNECTIONS)))
    }
}

impl Connections {
    /// Waits until no connection is left.
    pub async fn all_closed(&self) {
        let _ = self.0.acquire_many(CONNECTIONS as u32).await;
    }
}

/// Accepts connections for ever, also on a host that runs out of file descriptors now and then.
pub async fn accept(listener: UnixListener, context: Arc<Context>, connections: Connections) {
    let router = super::router(context.clone());
    let mut exhausted = false;
    loop {
        let Ok(place) = connections.0.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                exhausted = false;
                tokio::spawn(connection(stream, router.clone(), context.host.uid, place));
            }
            Err(error) => {
                // Once, not for each attempt: a log that fills the disk helps nobody.
                if !std::mem::replace(&mut exhausted, true) {
                    tracing::warn!(%error, "cannot accept a connection; trying again until it works");
                }
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

/// Serves one connection.
async fn connection(stream: UnixStream, router: axum::Router, own_uid: u32, place: OwnedSemaphorePermit) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_MAX);
    let uid = match stream.peer_cred() {
        Ok(peer) => peer.uid(),
        Err(error) => return tracing::warn!(%error, "a connection without a peer"),
    };
    let io = TokioIo::new(stream);
    let result = if uid == own_uid || uid == 0 {
        let caller = Caller { uid, _place: Arc::new(place) };
        let router = router.layer(axum::Extension(caller));
        builder.serve_connection(io, TowerToHyperService::new(router)).with_upgrades().await
    } else {
        tracing::warn!(uid, "refused a connection of another user");
        let refuse = service_fn(|_| async {
            let message = "this supervisor serves another user; start your own (vmsup serve)";
            Ok::<_, std::convert::Infallible>(Refusal::new(ErrorCode::Forbidden, message).into_response())
        });
        builder.keep_alive(false).serve_connection(io, refuse).await
    };
    if let Err(error) = result {
        tracing::debug!(%error, uid, "a connection ended badly");
    }
}
