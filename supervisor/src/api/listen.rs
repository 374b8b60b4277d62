//! Connections: who may, how many, for how long.
//!
//! Who is at the other end is what the kernel says. What they may is asked anew for each request, and a connection of
//! somebody whose rights have changed is closed: the configuration may be read again at any time.

use super::error::Refusal;
use super::patient::Patient;
use super::shares::{Share, Shares, Wait};
use super::types::ErrorCode;
use crate::serve::Context;
use crate::serve::registry::Who;
use crate::serve::tenants::{Tenants, Terms};
use axum::response::IntoResponse;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ipc::peer::Peer;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a client may take to send a request's head, the wait for the next request included.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// The largest head of a request, bytes.
const HEAD_MAX: usize = 16 << 10;
/// How long nothing is accepted after the host ran out of something.
pub(super) const BACK_OFF: Duration = Duration::from_millis(100);
/// How many of those who are refused are told so at a time; the budget of files knows of them. The others are hung up on.
pub const REFUSALS: usize = 8;
/// How long one of them may take to hear it.
const REFUSAL_TIME: Duration = Duration::from_secs(2);
/// How many users the log names who were turned away.
const STRANGERS: usize = 256;

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Caller {
    peer: Arc<Peer>,
    who: Who,
    /// The place among the connections; given back when the last copy goes.
    _place: Arc<OwnedSemaphorePermit>,
    /// A tenant's among those of all tenants.
    share: Option<Arc<Share>>,
    /// The places of those who wait.
    waiting: Arc<Semaphore>,
    /// They get what comes when it comes, and may take it when they like.
    follows: Arc<AtomicBool>,
}

/// A place among those whose answers come when something happens. As long as it is kept, and no longer, its client may take
/// its time with what it is told.
#[derive(Debug)]
pub struct Waits {
    _place: OwnedSemaphorePermit,
    _share: Option<Wait>,
    follows: Arc<AtomicBool>,
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.follows.store(false, Ordering::Relaxed);
    }
}

impl Caller {
    /// Uid, as the kernel says.
    pub fn uid(&self) -> u32 {
        self.peer.uid
    }

    /// Whose VMs they see.
    pub fn who(&self) -> Who {
        self.who
    }

    /// Whether what belongs to `owner` is this caller's business.
    pub fn sees(&self, owner: u32) -> bool {
        self.who.sees(owner)
    }

    /// Whose the VMs are that they make, and what they are held to: an administrator to nothing, whosever VM it is about.
    pub fn terms(&self, context: &Context) -> Terms {
        Terms { owner: self.peer.uid, limit: context.tenants.limit(&self.peer) }
    }

    /// A place among those whose answers come when something happens.
    ///
    /// # Errors
    /// All of them are taken; the other connections are for who gets an answer at once.
    pub fn waits(&self) -> Result<Waits, Refusal> {
        let full = |whose: &str| {
            let message = format!("{whose} follow events or wait for operations already; end some of them");
            Refusal::new(ErrorCode::Unavailable, message)
        };
        let own = self.share.as_ref().map(|share| share.wait().ok_or_else(|| full("too many of your clients")));
        let place = self.waiting.clone().try_acquire_owned().map_err(|_| full("too many clients"))?;
        let share = own.transpose()?;
        self.follows.store(true, Ordering::Relaxed);
        Ok(Waits { _place: place, _share: share, follows: self.follows.clone() })
    }

    /// Waits until they may no longer what they may now.
    pub async fn until_denied(&self, tenants: &Tenants) {
        tenants.until_other_than(&self.peer, self.who).await;
    }
}

/// The places of all connections, waiting and attached ones included. The next ones wait in the socket's backlog.
#[derive(Debug, Clone)]
pub struct Connections {
    places: Arc<Semaphore>,
    count: usize,
    /// Half of them.
    waiting: Arc<Semaphore>,
    /// What tenants may have of them.
    shares: Arc<Shares>,
    refusals: Arc<Semaphore>,
    strangers: Arc<Mutex<BTreeSet<u32>>>,
}

impl Connections {
    /// `count` places.
    pub fn new(count: usize) -> Connections {
        Connections {
            places: Arc::new(Semaphore::new(count)),
            count,
            waiting: Arc::new(Semaphore::new(count.div_ceil(2))),
            shares: Shares::of(count),
            refusals: Arc::new(Semaphore::new(REFUSALS)),
            strangers: Arc::default(),
        }
    }

    /// A place, for who comes in by another door.
    #[cfg(test)]
    pub(super) async fn place(&self) -> OwnedSemaphorePermit {
        self.places.clone().acquire_owned().await.unwrap()
    }

    /// Waits until no connection is left.
    pub async fn all_closed(&self) {
        let _ = self.places.acquire_many(u32::try_from(self.count).unwrap_or(u32::MAX)).await;
    }

    /// What becomes of who connects.
    fn admit(&self, peer: Peer, tenants: &Tenants, place: OwnedSemaphorePermit) -> Admission {
        let Some(who) = tenants.standing(&peer) else { return Admission::Stranger(peer.uid) };
        // Who sees everything is nobody's competitor.
        let share = if who.all { None } else { self.shares.enter(who.uid).map(Arc::new) };
        if !who.all && share.is_none() {
            return Admission::TooMany;
        }
        let (peer, waiting) = (Arc::new(peer), self.waiting.clone());
        Admission::Caller(Caller { peer, who, _place: Arc::new(place), share, waiting, follows: Arc::default() })
    }

    /// Says in the log who was turned away, each of them once: nobody is to fill it.
    fn note(&self, uid: u32) {
        let mut known = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < STRANGERS && known.insert(uid) {
            tracing::warn!(uid, "refused a connection of another user");
        }
    }

    /// Answers one request with a sentence, where there is room for that, and hangs up.
    fn refuse(&self, stream: UnixStream, refusal: fn() -> Refusal) {
        let Ok(place) = self.refusals.clone().try_acquire_owned() else { return };
        tokio::spawn(async move {
            let _ = tokio::time::timeout(REFUSAL_TIME, answer_once(stream, refusal)).await;
            drop(place);
        });
    }
}

/// What becomes of who connects.
enum Admission {
    Caller(Caller),
    Stranger(u32),
    TooMany,
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
                match Peer::of(&stream) {
                    Ok(peer) => receive(stream, peer, place, &context, &router, &connections),
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

/// Serves `peer`, or says why not.
pub(super) fn receive(
    stream: UnixStream,
    peer: Peer,
    place: OwnedSemaphorePermit,
    context: &Arc<Context>,
    router: &axum::Router,
    connections: &Connections,
) {
    match connections.admit(peer, &context.tenants, place) {
        Admission::Caller(caller) => drop(tokio::spawn(serve(stream, context.clone(), router.clone(), caller))),
        Admission::Stranger(uid) => {
            connections.note(uid);
            connections.refuse(stream, if context.shared() { not_invited } else { not_yours });
        }
        Admission::TooMany => connections.refuse(stream, too_many),
    }
}

fn not_yours() -> Refusal {
    Refusal::new(ErrorCode::Forbidden, "this supervisor serves another user; start your own (vmsup serve)")
}

fn not_invited() -> Refusal {
    let message = "you are not among the users of this supervisor; ask its administrator ([access] in its configuration), or use \
                   your own (vmsup without --system and --socket)";
    Refusal::new(ErrorCode::Forbidden, message)
}

fn too_many() -> Refusal {
    Refusal::new(
        ErrorCode::Unavailable,
        "too many connections of yours are open already; end some of them, and try again",
    )
}

/// A server's side of HTTP, with bounds.
pub(super) fn http() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_MAX);
    builder
}

/// Serves one connection, as long as its client's rights stay what they are.
async fn serve(stream: UnixStream, context: Arc<Context>, router: axum::Router, caller: Caller) {
    let (router, theirs) = (TowerToHyperService::new(router), caller.clone());
    // Not by a layer: each would make all routes anew.
    let service = service_fn(move |mut request| {
        request.extensions_mut().insert(theirs.clone());
        router.call(request)
    });
    let stream = TokioIo::new(Patient::new(stream, caller.follows.clone()));
    let connection = http().serve_connection(stream, service).with_upgrades();
    let ended = tokio::select! {
        ended = connection => ended,
        () = caller.until_denied(&context.tenants) => {
            tracing::info!(uid = caller.uid(), "a client's rights have changed; it is hung up on");
            return;
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended badly");
    }
}

/// Answers one request of somebody who gets nothing else.
async fn answer_once(stream: UnixStream, refusal: fn() -> Refusal) {
    let answer = service_fn(move |_| async move { Ok::<_, std::convert::Infallible>(refusal().into_response()) });
    let _ = http().keep_alive(false).serve_connection(TokioIo::new(stream), answer).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn another_user_gets_a_sentence_and_no_second_request() {
        let (mut client, server) = UnixStream::pair().unwrap();
        Connections::new(8).refuse(server, not_yours);
        client.write_all(b"GET /v1/vms HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("forbidden"), "{answer}");
    }

    #[tokio::test]
    async fn who_has_waited_once_may_not_take_its_time_with_every_later_answer() {
        let bench = crate::serve::testing::Bench::new();
        let connections = Connections::new(8);
        let (_client, server) = UnixStream::pair().unwrap();
        let place = connections.places.clone().acquire_owned().await.unwrap();
        let Admission::Caller(caller) = connections.admit(Peer::of(&server).unwrap(), &bench.context.tenants, place)
        else {
            panic!("the supervisor's own user is turned away")
        };
        let patient = || caller.follows.load(Ordering::Relaxed);
        assert!(!patient());
        let waits = caller.waits().unwrap();
        assert!(patient());
        drop(waits);
        assert!(!patient());
    }

    #[tokio::test]
    async fn strangers_who_say_nothing_take_no_place_from_anybody() {
        let connections = Connections::new(2);
        let mut strangers = Vec::new();
        for _ in 0..4 * REFUSALS {
            let (client, server) = UnixStream::pair().unwrap();
            connections.refuse(server, not_invited);
            strangers.push(client);
        }
        assert_eq!(connections.places.available_permits(), 2);
        // Those for whom there is no room for a sentence are hung up on at once, the others soon.
        for mut stranger in strangers {
            assert_eq!(stranger.read(&mut [0; 64]).await.unwrap_or(0), 0);
        }
    }
}
