//! The API over a real socket: routes, errors, bounds, console streams.

use super::openapi::Document;
use super::types::*;
use crate::serve::testing::{Act, Bench, FakeVm};
use crate::spec::SPEC_MAX_BYTES;
use std::collections::BTreeSet;
use std::path::PathBuf;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use utoipa::OpenApi;

pub(super) struct Server {
    pub bench: Bench,
    pub socket: PathBuf,
}

/// An answer: status, head, body.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

impl Server {
    pub fn new() -> Server {
        let bench = Bench::new();
        let socket = bench.dir.path().join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(super::listen::accept(listener, bench.context.clone(), super::listen::Connections::new(64)));
        Server { bench, socket }
    }

    async fn send(&self, request: &[u8]) -> Answer {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        // A server that has refused already may not read to the end.
        let _ = stream.write_all(request).await;
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        let at = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| panic!("no head: {bytes:?}"));
        let head = String::from_utf8(bytes[..at].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head, body: bytes[at + 4..].to_vec() }
    }

    pub async fn ask(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        self.send(&[head.as_bytes(), body].concat()).await
    }

    async fn create(&self, name: &str) -> (Answer, FakeVm) {
        let answer = self.ask("POST", "/v1/vms", body(name).as_bytes()).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        (answer, self.bench.started().await)
    }

    async fn attach(&self, vm: &str, query: &str) -> (String, UnixStream) {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        let head = format!(
            "GET /v1/vms/{vm}/console{query} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: vmsup-console\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        (String::from_utf8(head).unwrap(), stream)
    }
}

fn body(name: &str) -> String {
    format!(r#"{{"spec":{{"name":"{name}","cpus":1,"memory_mib":32,"boot":{{"builtin":"hello"}}}}}}"#)
}

#[tokio::test]
async fn a_vm_is_made_listed_shown_awaited_and_removed() {
    let server = Server::new();
    let (answer, fake) = server.create("web").await;
    let made: VmInfo = answer.json();
    assert_eq!((made.summary.state, made.summary.name.as_str()), (VmState::Running, "web"));
    let listed: Vec<VmSummary> = server.ask("GET", "/v1/vms", b"").await.json();
    assert_eq!(listed, std::slice::from_ref(&made.summary));
    for key in ["web", &made.summary.id] {
        let info: VmInfo = server.ask("GET", &format!("/v1/vms/{key}"), b"").await.json();
        assert_eq!(info, made);
    }
    assert_eq!(server.ask("DELETE", "/v1/vms/web", b"").await.status, 409);
    fake.print(b"bye");
    fake.exit(0);
    let ended: VmInfo = server.ask("GET", "/v1/vms/web/wait", b"").await.json();
    assert_eq!(ended.summary.end.unwrap().kind, EndKind::Shutdown);
    let logs = server.ask("GET", "/v1/vms/web/logs", b"").await;
    assert_eq!(logs.body, b"bye");
    assert!(logs.head.contains("vmsup-written: 3") && logs.head.contains("vmsup-overwritten: 0"), "{logs:?}");
    assert_eq!(server.ask("DELETE", "/v1/vms/web", b"").await.status, 204);
    assert_eq!(server.ask("GET", "/v1/vms/web", b"").await.status, 404);
}

#[tokio::test]
async fn a_kill_and_a_stop_answer_when_the_vm_has_ended() {
    let server = Server::new();
    let (_, fake) = server.create("a").await;
    let killed: VmInfo = server.ask("POST", "/v1/vms/a/kill", b"").await.json();
    assert_eq!(killed.summary.end.unwrap().kind, EndKind::Killed);
    drop(fake);
    let (_, _deaf) = server.create("a").await;
    let stopped: VmInfo = server.ask("POST", "/v1/vms/a/stop", br#"{"deadline_s":0}"#).await.json();
    assert_eq!(stopped.summary.state, VmState::Stopped);
}

#[tokio::test]
async fn a_vm_that_ended_is_started_by_its_name_paused_and_resumed() {
    use worker_api::{Reply::Done, Request};
    let server = Server::new();
    let (answer, fake) = server.create("a").await;
    let made: VmInfo = answer.json();
    assert_eq!(server.ask("POST", "/v1/vms/a/start", b"").await.status, 409);
    fake.exit(0);
    let _: VmInfo = server.ask("GET", "/v1/vms/a/wait", b"").await.json();
    let again: VmInfo = server.ask("POST", "/v1/vms/a/start", b"").await.json();
    assert_eq!((again.summary.state, &again.summary.id), (VmState::Running, &made.summary.id));
    let fake = server.bench.started().await;
    for (path, asked, state) in
        [("/v1/vms/a/pause", Request::Pause, VmState::Paused), ("/v1/vms/a/resume", Request::Resume, VmState::Running)]
    {
        let worker = fake.copy();
        let worker = tokio::task::spawn_blocking(move || worker.answer(&Done));
        let answer: VmInfo = server.ask("POST", path, b"").await.json();
        assert_eq!((worker.await.unwrap(), answer.summary.state), (asked, state));
    }
    fake.exit(0);
    let _: VmInfo = server.ask("GET", "/v1/vms/a/wait", b"").await.json();
    assert_eq!(server.ask("POST", "/v1/vms/a/pause", b"").await.status, 409);
}

#[tokio::test]
async fn a_request_that_takes_time_says_which_operation_it_is_and_need_not_be_waited_for() {
    let server = Server::new();
    let answer = server.ask("POST", "/v1/vms?wait=false", body("a").as_bytes()).await;
    let op: Operation = answer.json();
    assert_eq!((answer.status, op.kind, op.state), (202, OperationKind::Create, OperationState::Running));
    assert!(answer.head.contains(&format!("vmsup-operation: {}", op.id)), "{answer:?}");
    let fake = server.bench.started().await;
    let operations = &server.bench.context.operations;
    while operations.get(op.id).unwrap().borrow().state == OperationState::Running {
        tokio::task::yield_now().await;
    }
    assert_eq!(operations.get(op.id).unwrap().borrow().state, OperationState::Done);
    let answer = server.ask("POST", "/v1/vms", body("a").as_bytes()).await;
    assert_eq!(answer.status, 409);
    let failed = operations.list().pop().unwrap();
    assert_eq!(failed.error.map(|error| error.code), Some(ErrorCode::Conflict));
    assert!(answer.head.contains(&format!("vmsup-operation: {}", failed.id)), "{answer:?}");
    assert_eq!(server.ask("POST", "/v1/vms/a/stop?wait=perhaps", br#"{"deadline_s":0}"#).await.status, 400);
    fake.exit(0);
}

#[tokio::test]
async fn a_client_that_hangs_up_changes_nothing_of_what_it_asked_for() {
    let server = Server::new();
    let (_, fake) = server.create("a").await;
    let mut stream = UnixStream::connect(&server.socket).await.unwrap();
    let body = br#"{"deadline_s":600}"#;
    let head = format!("POST /v1/vms/a/stop HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    let worker = fake.copy();
    let asked = tokio::task::spawn_blocking(move || worker.answer(&worker_api::Reply::Done)).await.unwrap();
    assert_eq!(asked, worker_api::Request::PowerButton);
    drop(stream);
    let listed: Vec<VmSummary> = server.ask("GET", "/v1/vms", b"").await.json();
    assert_eq!(listed[0].state, VmState::Stopping);
    fake.exit(0);
    let ended: VmInfo = server.ask("GET", "/v1/vms/a/wait", b"").await.json();
    assert_eq!(ended.summary.end.unwrap().kind, EndKind::Shutdown);
    let operations = &server.bench.context.operations;
    while operations.list().iter().any(|op| op.state == OperationState::Running) {
        tokio::task::yield_now().await;
    }
    assert_eq!(operations.list().pop().unwrap().state, OperationState::Done);
}

#[tokio::test]
async fn another_file_is_put_in_the_place_of_the_first() {
    let server = Server::new();
    let (_, fake) = server.create("a").await;
    let put = |spec: &str, more: &str| format!(r#"{{"spec":{spec},"deadline_s":600{more}}}"#);
    let hello = r#"{"name":"a","cpus":1,"memory_mib":32,"boot":{"builtin":"hello"}"#;
    let always = put(&format!(r#"{hello},"restart":"always"}}"#), r#","source":"/etc/vms","if_generation":1"#);
    let answer: UpdateAnswer = server.ask("PUT", "/v1/vms/a", always.as_bytes()).await.json();
    assert_eq!((answer.done, answer.vm.summary.generation), (UpdateDone::InPlace, 2));
    assert_eq!(answer.vm.summary.source.as_deref(), Some("/etc/vms"));
    for (body, status, says) in [
        (always.clone(), 409, "changed by somebody else"),
        (put(&format!("{}}}", hello.replace("\"a\"", "\"b\"")), ""), 400, "keeps its name"),
        (put(&format!(r#"{hello},"health":{{"tcp":80}}}}"#), ""), 400, "nets"),
        (put(&format!("{hello}}}"), r#","source":"a\u001bb""#), 400, "a source is"),
    ] {
        let answer = server.ask("PUT", "/v1/vms/a", body.as_bytes()).await;
        let error: ApiError = answer.json();
        assert!(answer.status == status && error.message.contains(says), "{answer:?}");
    }
    assert_eq!(server.ask("PUT", "/v1/vms/nobody", always.as_bytes()).await.status, 404);
    let killed: VmInfo = server.ask("POST", "/v1/vms/a/kill", b"").await.json();
    assert_eq!((killed.summary.generation, killed.summary.desired), (2, Desired::Stopped));
    drop(fake);
}

#[tokio::test]
async fn every_route_is_documented_and_every_documented_route_is_there() {
    let server = Server::new();
    let document: serde_json::Value = server.ask("GET", "/v1/openapi.json", b"").await.json();
    let documented: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| item.as_object().unwrap().keys().map(move |m| (m.to_uppercase(), path.clone())))
        .collect();
    let expected: BTreeSet<(String, String)> = [
        ("GET", "/v1/version"),
        ("GET", "/v1/openapi.json"),
        ("GET", "/v1/vms"),
        ("POST", "/v1/vms"),
        ("GET", "/v1/vms/{vm}"),
        ("PUT", "/v1/vms/{vm}"),
        ("DELETE", "/v1/vms/{vm}"),
        ("POST", "/v1/vms/{vm}/start"),
        ("POST", "/v1/vms/{vm}/stop"),
        ("POST", "/v1/vms/{vm}/kill"),
        ("POST", "/v1/vms/{vm}/pause"),
        ("POST", "/v1/vms/{vm}/resume"),
        ("GET", "/v1/vms/{vm}/wait"),
        ("GET", "/v1/vms/{vm}/logs"),
        ("GET", "/v1/vms/{vm}/console"),
        ("GET", "/v1/vms/{vm}/net"),
        ("GET", "/v1/vms/{vm}/stats"),
        ("GET", "/v1/stats"),
        ("GET", "/metrics"),
        ("GET", "/v1/events"),
        ("GET", "/v1/ops"),
        ("GET", "/v1/ops/{id}"),
        ("DELETE", "/v1/ops/{id}"),
        ("GET", "/v1/networks"),
        ("GET", "/v1/leases"),
        ("GET", "/v1/quota"),
        ("GET", "/v1/quotas"),
    ]
    .map(|(m, p)| (m.to_owned(), p.to_owned()))
    .into();
    assert_eq!(documented, expected);
    for (method, path) in &documented {
        let answer = server.ask(method, &path.replace("{vm}", "nobody"), b"{}").await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(answer.status != 405 && !text.contains("no such path"), "{method} {path}: {answer:?}");
        for other in ["GET", "POST", "DELETE", "PUT"] {
            if !documented.contains(&(other.to_owned(), path.clone())) {
                let answer = server.ask(other, &path.replace("{vm}", "nobody"), b"{}").await;
                assert_eq!(answer.status, 405, "{other} {path}");
            }
        }
    }
    // The document names the types that are sent.
    let schemas = &document["components"]["schemas"];
    let names = "VmInfo VmSummary VmSpec ApiError CreateRequest UpdateRequest UpdateAnswer Event Operation StopRequest VersionInfo \
         VmNet Network LeaseEntry NetStats";
    for name in names.split(' ') {
        assert!(schemas[name].is_object(), "{name}");
    }
    assert!(Document::openapi().to_json().is_ok());
}

#[tokio::test]
async fn wrong_bodies_get_a_sentence_and_their_field() {
    let server = Server::new();
    let deep = format!(r#"{{"spec":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let cases: [(&[u8], Option<&str>, &str); 12] = [
        (b"", None, "EOF"),
        (b"{", None, "EOF"),
        (b"\xff\xfe{}", None, "expected"),
        (b"{\"spec\":{\"name\":\"\xff\"}}", Some("name"), "unicode"),
        (deep.as_bytes(), Some("spec[0]"), "sequence"),
        (
            br#"{"spec":{"name":"a","cpus":1,"memory_mib":32,"boot":{"builtin":"hello"},"mem":1}}"#,
            Some("mem"),
            "unknown",
        ),
        (
            br#"{"spec":{"name":"a","cpus":"1","memory_mib":32,"boot":{"builtin":"hello"}}}"#,
            Some("cpus"),
            "invalid type",
        ),
        (br#"{"spec":{"name":"a","cpus":0,"memory_mib":32,"boot":{"builtin":"hello"}}}"#, Some("cpus"), "1 to 32"),
        (br#"{"spec":{"name":"a/b","cpus":1,"memory_mib":32,"boot":{"builtin":"hello"}}}"#, Some("name"), "'/'"),
        (br#"{"spec":{"name":"a","cpus":1,"memory_mib":5000,"boot":{"builtin":"hello"}}}"#, Some("memory_mib"), "4096"),
        (
            br#"{"spec":{"name":"a","cpus":1,"memory_mib":32,"boot":{"builtin":"hello"},"limits":{"pids_max":64}}}"#,
            Some("limits"),
            "no delegated cgroup",
        ),
        (
            br#"{"spec":{"name":"a","cpus":1,"memory_mib":32,"boot":{"builtin":"hello"},"disks":[{"path":"/no/x"}]}}"#,
            Some("disks[0].path"),
            "no such file",
        ),
    ];
    for (body, field, says) in cases {
        let answer = server.ask("POST", "/v1/vms", body).await;
        let error: ApiError = answer.json();
        assert_eq!((answer.status, error.code), (400, ErrorCode::Invalid), "{error:?}");
        assert_eq!(error.field.as_deref(), field, "{error:?}");
        assert!(error.message.contains(says), "{error:?}");
    }
    assert!(server.bench.context.registry.list().is_empty());
}

#[tokio::test]
async fn a_body_past_the_limit_is_refused_whether_it_says_so_or_not() {
    let server = Server::new();
    let big = vec![b' '; SPEC_MAX_BYTES as usize + 1];
    assert_eq!(server.ask("POST", "/v1/vms", &big).await.status, 413);
    let mut chunked = b"POST /v1/vms HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..5 {
        chunked.extend_from_slice(format!("{:x}\r\n", 65536).as_bytes());
        chunked.extend_from_slice(&[b' '; 65536]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(server.send(&chunked).await.status, 413);
    let (_, fake) = server.create("a").await;
    fake.exit(0);
}

#[tokio::test]
async fn a_head_without_end_is_cut_off() {
    let server = Server::new();
    let mut head = b"GET /v1/vms HTTP/1.1\r\n".to_vec();
    for n in 0..10_000 {
        head.extend_from_slice(format!("x{n}: {}\r\n", "y".repeat(100)).as_bytes());
    }
    assert_eq!(server.send(&head).await.status, 431);
}

#[tokio::test]
async fn what_is_not_there_is_said_so() {
    let server = Server::new();
    for (method, path, status) in [
        ("GET", "/v1/vms/nobody", 404),
        ("GET", "/v1/vms/nobody/wait", 404),
        ("GET", "/v1/vms/nobody/logs", 404),
        ("GET", "/v1/vms/nobody/console", 404),
        ("POST", "/v1/vms/nobody/kill", 404),
        ("DELETE", "/v1/vms/%1b%5b2J", 404),
        ("GET", "/v2", 404),
        ("PUT", "/v1/vms", 405),
    ] {
        let answer = server.ask(method, path, b"").await;
        let error: ApiError = answer.json();
        assert_eq!(answer.status, status, "{method} {path}: {error:?}");
        assert!(!error.message.contains('\x1b'), "{error:?}");
    }
}

#[tokio::test]
async fn a_console_carries_bytes_both_ways_and_ends_with_the_vm() {
    let server = Server::new();
    let (_, fake) = server.create("a").await;
    fake.print(b"boot ");
    let (head, mut stream) = server.attach("a", "").await;
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("vmsup-console-input: yes"), "{head}");
    // The second gets no input, and its bytes go nowhere.
    let (head, mut second) = server.attach("a", "?history=false").await;
    assert!(head.contains("vmsup-console-input: no"), "{head}");
    second.write_all(b"lost").await.unwrap();
    stream.write_all(b"ls\n").await.unwrap();
    let mut typed = [0; 16];
    let got = loop {
        match rustix::io::read(fake.fd(worker_api::FdRole::ConsoleInput), &mut typed) {
            Ok(n) => break n,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    assert_eq!(&typed[..got], b"ls\n");
    // The end of the client's input is not the end of its output.
    stream.shutdown().await.unwrap();
    fake.print(b"login");
    fake.exit(0);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"boot login");
    let mut all = Vec::new();
    second.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"login");
}

#[tokio::test]
async fn a_client_that_hangs_up_gives_the_input_back_though_the_guest_is_silent() {
    let server = Server::new();
    let (_, _fake) = server.create("a").await;
    let (_, mut stream) = server.attach("a", "").await;
    stream.shutdown().await.unwrap();
    drop(stream);
    loop {
        let (head, stream) = server.attach("a", "").await;
        drop(stream);
        if head.contains("vmsup-console-input: yes") {
            break;
        }
    }
}

#[tokio::test]
async fn a_client_that_never_reads_holds_up_nobody_and_is_told_what_it_lost() {
    let server = Server::new();
    let (_, fake) = server.create("a").await;
    let (_, mut stuck) = server.attach("a", "").await;
    let (_, mut reader) = server.attach("a", "").await;
    let total = 4 << 20;
    let mut got = 0;
    let mut buffer = vec![0; 64 << 10];
    // In pieces that the reader keeps up with; the stuck one cannot.
    while got < total {
        fake.print(&[b'x'; 16 << 10]);
        let goal = got + (16 << 10);
        while got < goal {
            got += reader.read(&mut buffer).await.unwrap();
        }
    }
    fake.exit(0);
    let mut all = Vec::new();
    stuck.read_to_end(&mut all).await.unwrap();
    let text = String::from_utf8(all).unwrap();
    assert!(text.len() < total / 2, "{} bytes", text.len());
    let lost: usize =
        text.split("[vmsup: ").skip(1).map(|part| part.split(' ').next().unwrap().parse::<usize>().unwrap()).sum();
    let kept = text.bytes().filter(|b| *b == b'x').count();
    assert_eq!(kept + lost, total);
}

#[tokio::test]
async fn a_console_without_an_upgrade_is_refused() {
    let server = Server::new();
    let (_, _fake) = server.create("a").await;
    assert_eq!(server.ask("GET", "/v1/vms/a/console", b"").await.status, 426);
    assert_eq!(server.ask("GET", "/v1/vms/a/console?history=perhaps", b"").await.status, 400);
}

#[tokio::test]
async fn a_second_start_of_a_running_name_is_a_conflict() {
    let server = Server::new();
    let (_, _fake) = server.create("a").await;
    let answer = server.ask("POST", "/v1/vms", body("a").as_bytes()).await;
    let error: ApiError = answer.json();
    assert_eq!((answer.status, error.field.as_deref()), (409, Some("name")));
    assert!(error.message.contains("vmsup stop a"), "{error:?}");
}

#[tokio::test]
async fn a_jailer_that_died_is_told_by_version_and_by_start() {
    let server = Server::new();
    let before: VersionInfo = server.ask("GET", "/v1/version", b"").await.json();
    assert!(before.jailer.pid.is_some());
    server.bench.acts(Act::NoAnswer);
    server.bench.kill_jailer();
    let answer = server.ask("POST", "/v1/vms", body("a").as_bytes()).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    let after: VersionInfo = server.ask("GET", "/v1/version", b"").await.json();
    assert_eq!(after.jailer.pid, None);
}
