//! Connections: who may, how many, for how long.

use super::error::Refusal;
use super::types::ErrorCode;
use crate::serve::Context;
use crate::serve::registry::Who;
use axum::response::IntoResponse;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a client may take to send a request's head, the wait for the next request included.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// The largest head of a request, bytes.
const HEAD_MAX: usize = 16 << 10;
/// How long nothing is accepted after the host ran out of something.
pub(super) const BACK_OFF: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Uid, as the kernel says.
    pub uid: u32,
    /// The place among the connections; given back when the last copy goes.
    _place: Arc<OwnedSemaphorePermit>,
    /// The places of those who wait.
    waiting: Arc<Semaphore>,
}

impl Caller {
    /// Whether what belongs to `owner` is this caller's business: their own, and all of it to root and to the supervisor's own
    /// user, who could read it anyway.
    pub fn sees(&self, owner: u32, context: &Context) -> bool {
        self.uid == owner || may(self.uid, context.host.uid)
    }

    /// A place among those whose answers come when something happens.
    ///
    /// # Errors
    /// All of them are taken; the other connections are for who gets an answer at once.
    pub fn waits(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        self.waiting.clone().try_acquire_owned().map_err(|_| {
            let message = "too many clients follow events or wait for operations already; end some of them";
            Refusal::new(ErrorCode::Unavailable, message)
        })
    }
}

impl Caller {
    /// Whose VMs they see: their own; all of them where they are root, or whom the supervisor (of uid `own`) belongs to.
    pub fn who(&self, own: u32) -> Who {
        Who { uid: self.uid, all: self.uid == 0 || self.uid == own }
    }
}

/// The places of all connections, waiting and attached ones included. The next ones wait in the socket's backlog.
#[derive(Debug, Clone)]
pub struct Connections {
    places: Arc<Semaphore>,
    count: usize,
    /// Half of them.
    waiting: Arc<Semaphore>,
}

impl Connections {
    /// `count` places.
    pub fn new(count: usize) -> Connections {
        let half = Arc::new(Semaphore::new(count.div_ceil(2)));
        Connections { places: Arc::new(Semaphore::new(count)), count, waiting: half }
    }

    /// Waits until no connection is left.
    pub async fn all_closed(&self) {
        let _ = self.places.acquire_many(u32::try_from(self.count).unwrap_or(u32::MAX)).await;
    }
}

/// Accepts connections for ever, also on a host that runs out of file descriptors now and then.
pub async fn accept(listener: UnixListener, context: Arc<Context>, connections: Connections) {
    let router = super::router(context.clone());
    let mut exhausted = false;
    loop {
        let Ok(place) = connections.places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                exhausted = false;
                match stream.peer_cred() {
                    Ok(peer) if may(peer.uid(), context.host.uid) => {
                        let waiting = connections.waiting.clone();
                        let caller = Caller { uid: peer.uid(), _place: Arc::new(place), waiting };
                        tokio::spawn(serve(stream, router.clone(), caller));
                    }
                    Ok(peer) => drop(tokio::spawn(refuse(stream, peer.uid(), place))),
                    Err(error) => tracing::warn!(%error, "a connection without a peer"),
                }
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

/// Who may: the supervisor's own user, and root, who may everything anyway.
fn may(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

/// A server's side of HTTP, with bounds.
pub(super) fn http() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_MAX);
    builder
}

/// Serves one connection.
async fn serve(stream: UnixStream, router: axum::Router, caller: Caller) {
    let router = TowerToHyperService::new(router);
    // Not by a layer: each would make all routes anew.
    let service = service_fn(move |mut request| {
        request.extensions_mut().insert(caller.clone());
        router.call(request)
    });
    if let Err(error) = http().serve_connection(TokioIo::new(stream), service).with_upgrades().await {
        tracing::debug!(%error, "a connection ended badly");
    }
}

/// Answers one request of somebody else with a sentence.
async fn refuse(stream: UnixStream, uid: u32, _place: OwnedSemaphorePermit) {
    tracing::warn!(uid, "refused a connection of another user");
    let answer = service_fn(|_| async {
        let message = "this supervisor serves another user; start your own (vmsup serve)";
        Ok::<_, std::convert::Infallible>(Refusal::new(ErrorCode::Forbidden, message).into_response())
    });
    let _ = http().keep_alive(false).serve_connection(TokioIo::new(stream), answer).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn the_supervisors_user_and_root_may_and_nobody_else() {
        assert!(may(1000, 1000) && may(0, 1000) && may(0, 0));
        assert!(!may(1001, 1000) && !may(1000, 0));
    }

    #[tokio::test]
    async fn a_caller_sees_their_own_and_the_supervisors_user_sees_all() {
        let bench = crate::serve::testing::Bench::new();
        let own = bench.context.host.uid;
        let caller = async |uid| {
            let place = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
            Caller { uid, _place: Arc::new(place), waiting: Arc::new(Semaphore::new(1)) }
        };
        let (tenant, other) = (own + 77, own + 78);
        assert!(caller(tenant).await.sees(tenant, &bench.context));
        assert!(!caller(tenant).await.sees(other, &bench.context) && !caller(tenant).await.sees(own, &bench.context));
        assert!(caller(own).await.sees(tenant, &bench.context) && caller(0).await.sees(tenant, &bench.context));
    }

    #[tokio::test]
    async fn another_user_gets_a_sentence_and_no_second_request() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let place = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        tokio::spawn(refuse(server, 1001, place));
        client.write_all(b"GET /v1/vms HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("forbidden"), "{answer}");
    }
}
