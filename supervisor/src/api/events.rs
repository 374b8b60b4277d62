//! The stream of events.
//!
//! Who follows has one place among the connections, a small buffer and a place in the ring, and nothing else: one that does not
//! read costs nobody anything. Followers, and whoever else waits, have at most half of the places.

use super::error::Refusal;
use super::handlers::{Answer, Shared};
use super::listen::Caller;
use super::types::{ApiError, ErrorCode, Event, EventKind};
use crate::serve::events::{Lost, Place};
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use hyper::body::Frame;
use serde::Deserialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::{SystemTime, UNIX_EPOCH};

/// The most events that are put into one piece.
const PIECE: usize = 16;

/// Which events.
#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Begin behind this cursor; without one, with the oldest that is kept.
    after: Option<u64>,
    /// Go on with what comes.
    #[serde(default)]
    follow: bool,
    /// Only those about this VM: its name or its id.
    vm: Option<String>,
}

/// What happened to the caller's VMs, and to the supervisor: those that are kept, or with `follow` also what comes.
///
/// Who reads too slowly, or comes back too late, gets an event of the kind `lost`, and what is still kept.
#[utoipa::path(get, path = "/v1/events", params(EventsQuery), responses(
    (status = 200, body = Event, content_type = "application/x-ndjson", description = "One object a line"),
    (status = 400, body = ApiError),
    (status = 503, body = ApiError, description = "Too many clients follow already"),
))]
pub async fn events(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Answer<Response> {
    let Query(query) = query.map_err(|e| Refusal::new(ErrorCode::Invalid, e.body_text()))?;
    let waits = if query.follow { Some(caller.waits()?) } else { None };
    let place = context.events.listen(query.after.filter(|cursor| *cursor > 0));
    let lines = Lines { caller, place, query, _waits: waits };
    let mut response = Response::new(Body::new(Stream { next: Box::pin(lines.next()) }));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

/// A client's view of the events.
struct Lines {
    caller: Caller,
    place: Place,
    query: EventsQuery,
    _waits: Option<super::listen::Waits>,
}

impl Lines {
    /// The next piece, and what comes behind it; none at the end.
    async fn next(mut self) -> Option<(Bytes, Lines)> {
        loop {
            let batch = self.place.now(PIECE);
            if batch.lost.is_none() && batch.events.is_empty() {
                if self.query.follow && self.place.more().await {
                    continue;
                }
                return None;
            }
            let mut text = Vec::new();
            for event in batch.lost.map(lost).into_iter().chain(batch.events).filter_map(|event| self.told(event)) {
                if serde_json::to_writer(&mut text, &event).is_ok() {
                    text.push(b'\n');
                }
            }
            if !text.is_empty() {
                return Some((text.into(), self));
            }
            // None of them was for this client; the others are to have their turn.
            tokio::task::yield_now().await;
        }
    }

    /// An event as this client is told it, where it is.
    fn told(&self, event: Event) -> Option<Event> {
        let about = |vm: &String| event.vm.as_ref() == Some(vm) || event.id.as_ref() == Some(vm);
        if event.kind != EventKind::Lost && !self.query.vm.as_ref().is_none_or(about) {
            return None;
        }
        match event.owner {
            Some(owner) => self.caller.sees(owner).then_some(event),
            None if self.caller.who().all => Some(event),
            None => without_others(event),
        }
    }
}

/// What concerns the supervisor, as it is told to those whose it is not: that it came and went, and that there is more than
/// they were told. How much there is of others' nobody tells them, nor what is wrong with it.
fn without_others(event: Event) -> Option<Event> {
    let cause = match event.kind {
        EventKind::SupervisorStarted => "a supervisor began to serve",
        EventKind::SupervisorLeft => "this supervisor leaves; VMs go on",
        EventKind::JailerLost => "the jailer is gone; VMs go on",
        EventKind::Lost => "what came before is no longer kept",
        _ => return None,
    };
    Some(Event { cause: cause.into(), ..event })
}

/// The event that says that there were others.
fn lost(lost: Lost) -> Event {
    let cause = match lost.count {
        Some(1) => "one event came in between, and is no longer kept".into(),
        Some(count) => format!("{count} events came in between, and are no longer kept"),
        None => "what came before is no longer kept".into(),
    };
    let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    Event { cursor: lost.cursor, at_ms, kind: EventKind::Lost, vm: None, id: None, owner: None, cause }
}

type Next = Pin<Box<dyn Future<Output = Option<(Bytes, Lines)>> + Send>>;

/// A body that is made while it is read.
struct Stream {
    next: Next,
}

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.next.as_mut().poll(task).map(|piece| {
            let (bytes, lines) = piece?;
            self.next = Box::pin(lines.next());
            Some(Ok(Frame::data(bytes)))
        })
    }
}
