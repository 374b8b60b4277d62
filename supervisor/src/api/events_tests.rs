//! Events and operations over a real socket.

use super::tests::Server;
use super::types::*;
use crate::serve::events::{About, KEPT};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// A client that follows: lines of a chunked body.
struct Follower(BufReader<UnixStream>);

impl Follower {
    async fn new(server: &Server, query: &str) -> Follower {
        let mut stream = UnixStream::connect(&server.socket).await.unwrap();
        let head = format!("GET /v1/events?follow=true{query} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        Follower(BufReader::new(stream))
    }

    /// The next event; none at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        let mut line = String::new();
        loop {
            line.clear();
            let read =
                tokio::time::timeout(Duration::from_secs(20), self.0.read_line(&mut line)).await.unwrap().unwrap();
            if read == 0 || line == "0\r\n" {
                return None;
            }
            if line.starts_with('{') {
                return Some(serde_json::from_str(&line).unwrap());
            }
            assert!(!line.starts_with("HTTP") || line.starts_with("HTTP/1.1 200"), "{line}");
        }
    }
}

fn emit(server: &Server, vm: &str, owner: u32, cause: &str) {
    let about = About { name: vm, id: "00000000000000ff", owner };
    server.bench.context.events.emit(EventKind::Started, Some(about), cause);
}

fn lines(body: &[u8]) -> Vec<Event> {
    let text = String::from_utf8(body.to_vec()).unwrap();
    text.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn causes(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.cause.as_str()).collect()
}

fn own(server: &Server) -> u32 {
    server.bench.context.host.uid
}

#[tokio::test]
async fn events_are_told_from_a_cursor_on_by_vm_and_as_they_come() {
    let server = Server::new();
    let uid = own(&server);
    for (vm, cause) in [("a", "one"), ("b", "two"), ("a", "three")] {
        emit(&server, vm, uid, cause);
    }
    let all = lines(&server.ask("GET", "/v1/events", b"").await.body);
    assert_eq!(causes(&all), ["one", "two", "three"]);
    let path = format!("/v1/events?after={}", all[0].cursor);
    assert_eq!(causes(&lines(&server.ask("GET", &path, b"").await.body)), ["two", "three"]);
    assert_eq!(causes(&lines(&server.ask("GET", "/v1/events?vm=b", b"").await.body)), ["two"]);
    let by_id = server.ask("GET", "/v1/events?vm=00000000000000ff", b"").await;
    assert_eq!(lines(&by_id.body).len(), 3);
    assert_eq!(server.ask("GET", "/v1/events?after=x", b"").await.status, 400);
    assert_eq!(server.ask("GET", "/v1/events?since=1", b"").await.status, 400);

    let mut follower = Follower::new(&server, &format!("&vm=a&after={}", all[0].cursor)).await;
    assert_eq!(follower.next().await.unwrap().cause, "three");
    emit(&server, "b", uid, "four");
    emit(&server, "a", uid, "five");
    assert_eq!(follower.next().await.unwrap().cause, "five");
    // A supervisor that leaves ends the stream, in good order.
    server.bench.context.events.close();
    assert_eq!(follower.next().await, None);
}

#[tokio::test]
async fn a_follower_that_never_reads_costs_nobody_and_is_told_what_it_lost() {
    let server = Server::new();
    let uid = own(&server);
    emit(&server, "a", uid, "first");
    let mut stuck = Follower::new(&server, "").await;
    assert_eq!(stuck.next().await.unwrap().cause, "first");
    let mut reader = Follower::new(&server, "").await;
    let long = "x".repeat(900);
    for n in 0..3 * KEPT {
        emit(&server, "a", uid, &format!("{n} {long}"));
        if n % 64 == 0 {
            // The reader keeps up.
            while !reader.next().await.unwrap().cause.starts_with(&format!("{n} ")) {}
        }
    }
    server.bench.context.events.close();
    let (mut got, mut lost) = (Vec::new(), 0);
    while let Some(event) = stuck.next().await {
        match event.kind {
            EventKind::Lost => lost += event.cause.split(' ').next().unwrap().parse::<usize>().unwrap(),
            _ => got.push(event.cursor),
        }
    }
    assert!(lost > KEPT, "{lost}");
    assert_eq!(got.len() + lost, 3 * KEPT);
    assert!(got.is_sorted());
    // What it was sent ahead is bounded by its socket's buffer, not by what came.
    assert!(got.len() < KEPT + 2000, "{}", got.len());
}

#[tokio::test]
async fn followers_leave_half_of_the_connections_to_others_and_give_their_places_back() {
    let server = Server::new();
    let mut followers = Vec::new();
    emit(&server, "a", own(&server), "x");
    for _ in 0..32 {
        let mut follower = Follower::new(&server, "").await;
        assert!(follower.next().await.is_some());
        followers.push(follower);
    }
    let refused = server.ask("GET", "/v1/events?follow=true", b"").await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(server.ask("GET", "/v1/events", b"").await.status, 200);
    assert_eq!(server.ask("GET", "/v1/vms", b"").await.status, 200);
    followers.pop();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let mut stream = UnixStream::connect(&server.socket).await.unwrap();
        stream.write_all(b"GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        if status.ends_with(b"200") {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "the place is not given back");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn operations_are_listed_awaited_and_cancelled() {
    let server = Server::new();
    let operations = &server.bench.context.operations;
    let mut running = operations.begin(OperationKind::Create, "a", own(&server), "files");
    running.stage("guest", Some(30));
    let listed: Vec<Operation> = server.ask("GET", "/v1/ops", b"").await.json();
    assert_eq!((listed.len(), listed[0].stage.as_str(), listed[0].percent), (1, "guest", Some(30)));
    let path = format!("/v1/ops/{}", running.id());
    let one: Operation = server.ask("GET", &path, b"").await.json();
    assert_eq!(one, listed[0]);
    let answer = server.ask("DELETE", &path, b"").await;
    assert_eq!(answer.status, 202);
    let waiting = format!("{path}?wait=true");
    let (ended, ()) = tokio::join!(server.ask("GET", &waiting, b""), async {
        running.cancelled().await;
        drop(running);
    });
    assert_eq!(ended.json::<Operation>().state, OperationState::Cancelled);
    assert_eq!(server.ask("DELETE", &path, b"").await.status, 409);
    for path in ["/v1/ops/77", "/v1/ops/x%1b", "/v1/ops/-1"] {
        let answer = server.ask("GET", path, b"").await;
        let error: ApiError = answer.json();
        assert!(answer.status == 404 && !error.message.contains('\x1b'), "{path}: {error:?}");
    }
}

#[tokio::test]
async fn who_waits_for_an_operation_is_not_held_by_a_supervisor_that_leaves() {
    let server = Server::new();
    let running = server.bench.context.operations.begin(OperationKind::Create, "a", own(&server), "files");
    let path = format!("/v1/ops/{}?wait=true", running.id());
    let (answer, ()) = tokio::join!(server.ask("GET", &path, b""), async {
        tokio::task::yield_now().await;
        server.bench.context.events.close();
    });
    assert_eq!(answer.json::<Operation>().state, OperationState::Running);
}
