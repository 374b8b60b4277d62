//! Several users of one supervisor: what each sees, may, and gets; and what one could try to learn of another, or to take away.

use super::listen::{Connections, receive};
use super::openapi::Document;
use super::types::*;
use crate::serve::testing::{Act, Bench, FakeVm};
use ipc::peer::Peer;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use utoipa::OpenApi;

const CONFIG: &str = r#"
[access]
groups = ["tenants"]
administrators = "admin"
[quota]
vms = 3
vcpus = 4
memory_mib = 1024
leases = 2
networks = ["blue"]
forwards = ["8000-8099"]
[quota.users.bob]
networks = []
"#;
const ALICE: (u32, u32) = (1000, 50);
const BOB: (u32, u32) = (1001, 50);
const CAROL: (u32, u32) = (1002, 51);
const OPS: (u32, u32) = (1003, 52);

/// A shared supervisor, and a door through which anybody comes as whom they say.
struct House {
    bench: Bench,
    connections: Connections,
    router: axum::Router,
}

#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    body: String,
}

impl Answer {
    fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    fn error(&self) -> (ErrorCode, String) {
        let error: ApiError = self.json();
        (error.code, error.message)
    }
}

impl House {
    fn new() -> House {
        House::of(CONFIG)
    }

    fn of(config: &str) -> House {
        let bench = Bench::shared(config);
        let router = super::router(bench.context.clone());
        House { bench, connections: Connections::new(64), router }
    }

    /// A connection of somebody's.
    async fn connect(&self, (uid, gid): (u32, u32)) -> UnixStream {
        let (client, server) = UnixStream::pair().unwrap();
        let (peer, place) = (Peer { uid, groups: vec![gid] }, self.connections.place().await);
        receive(server, peer, place, &self.bench.context, &self.router, &self.connections);
        client
    }

    async fn ask(&self, who: (u32, u32), method: &str, path: &str, body: &str) -> Answer {
        let mut stream = self.connect(who).await;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let _ = stream.write_all(head.as_bytes()).await;
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text).await;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, body: body.to_owned() }
    }

    async fn get(&self, who: (u32, u32), path: &str) -> Answer {
        self.ask(who, "GET", path, "").await
    }

    async fn create(&self, who: (u32, u32), name: &str) -> (VmInfo, FakeVm) {
        let answer = self.ask(who, "POST", "/v1/vms", &body(name, 1, Value::Null)).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        (answer.json(), self.bench.started().await)
    }

    /// Writes another configuration, and has it read.
    fn reload(&self, config: &str) {
        std::fs::write(self.bench.dir.path().join("supervisor.toml"), config).unwrap();
        self.bench.context.tenants.reload().unwrap();
    }

    async fn names(&self, who: (u32, u32)) -> Vec<String> {
        self.get(who, "/v1/vms").await.json::<Vec<VmSummary>>().into_iter().map(|vm| vm.name).collect()
    }
}

fn spec(name: &str, cpus: u8, more: Value) -> Value {
    let mut spec = json!({ "name": name, "cpus": cpus, "memory_mib": 32, "boot": { "builtin": "hello" } });
    for (field, value) in more.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    spec
}

fn body(name: &str, cpus: u8, more: Value) -> String {
    json!({ "spec": spec(name, cpus, more) }).to_string()
}

fn put(name: &str, cpus: u8, more: Value) -> String {
    json!({ "spec": spec(name, cpus, more), "deadline_s": 1 }).to_string()
}

/// A restart that is far away.
fn restarting() -> Value {
    json!({ "restart": "always", "backoff": { "first_s": 3600, "max_s": 3600 } })
}

/// The body that a request needs to get past its parser.
fn fitting(method: &str, path: &str, name: &str) -> String {
    match (method, path) {
        ("put", _) => put(name, 1, Value::Null),
        (_, path) if path.ends_with("/stop") => json!({ "deadline_s": 1 }).to_string(),
        _ => String::new(),
    }
}

#[tokio::test]
async fn what_belongs_to_somebody_else_is_answered_exactly_as_what_is_not_there() {
    let house = House::new();
    let (vm, fake) = house.create(ALICE, "secret").await;
    let id = vm.summary.id.clone();
    // As long, and nobody's.
    let no_id = format!("{:016x}", u64::from_str_radix(&id, 16).unwrap() ^ 0xff00);
    let document = serde_json::to_value(Document::openapi()).unwrap();
    let mut tried = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys().filter(|_| path.contains('{')) {
            let pairs = if path.contains("{vm}") {
                vec![("secret".to_owned(), "nobody".to_owned()), (id.clone(), no_id.clone())]
            } else {
                vec![("1".to_owned(), "9".to_owned())]
            };
            for (theirs, none) in pairs {
                let ask = async |key: &str| {
                    let path = path.replace("{vm}", key).replace("{id}", key);
                    let answer = house.ask(BOB, &method.to_uppercase(), &path, &fitting(method, &path, "secret")).await;
                    (answer.status, answer.body.replace(key, "KEY"))
                };
                let (there, not_there) = (ask(&theirs).await, ask(&none).await);
                assert_eq!(there, not_there, "{method} {path} of {theirs}");
                assert_eq!(there.0, 404, "{method} {path}: {there:?}");
                tried += 1;
            }
        }
    }
    assert!(tried >= 2 * 13 + 2, "all routes of one VM or operation were tried, not {tried}");
    // Nothing of that did anything to it.
    assert_eq!(house.get(ALICE, "/v1/vms/secret").await.json::<VmInfo>().summary.state, VmState::Running);
    assert!(!fake.copy().asked(), "its worker heard nothing");
    fake.exit(0);
}

#[tokio::test]
async fn what_is_listed_counted_and_told_is_the_callers_own() {
    let house = House::new();
    let (secret, one) = house.create(ALICE, "secret").await;
    let (_, two) = house.create(BOB, "mine").await;
    for path in ["/v1/vms", "/v1/stats", "/v1/ops", "/v1/events", "/metrics", "/v1/quota", "/v1/quotas", "/v1/version"]
    {
        let bobs = house.get(BOB, path).await;
        assert_eq!(bobs.status, 200, "{path}: {bobs:?}");
        for word in ["secret", &secret.summary.id, ":1000", "\"1000\"", "taken on 2"] {
            assert!(!bobs.body.contains(word), "{path} tells Bob {word}: {}", bobs.body);
        }
    }
    // What all do together is not told to one of them, either.
    let metrics = house.get(BOB, "/metrics").await.body;
    assert!(metrics.contains("vm=\"mine\"") && metrics.contains("vmsup_vms{state=\"running\"} 1"), "{metrics}");
    for family in ["vmsup_vm_starts_total", "vmsup_operations_total", "vmsup_events_total", "vmsup_vm_ends_total"] {
        assert!(!metrics.contains(family), "{family}");
    }
    assert!(house.get(OPS, "/metrics").await.body.contains("vmsup_events_total"));
    assert_eq!((house.names(ALICE).await, house.names(BOB).await), (vec!["secret".into()], vec!["mine".to_owned()]));
    assert_eq!(house.names(OPS).await, ["secret", "mine"]);
    one.exit(0);
    two.exit(0);
}

#[tokio::test]
async fn what_happens_to_the_supervisor_is_told_to_tenants_without_others() {
    let house = House::new();
    let events = &house.bench.context.events;
    events.emit(EventKind::SupervisorStarted, None, "7 VMs found running, 0 that ended meanwhile, 3 that did not run");
    events.emit(EventKind::StateTrouble, None, "the worker of secret could not be reached");
    events.emit(EventKind::SourceApplied, None, "/srv/alice: 2 created");
    // Each in a line of its own, between the sizes of pieces.
    let told = async |who| {
        let body = house.get(who, "/v1/events").await.body;
        body.lines().filter(|line| line.starts_with('{')).map(str::to_owned).collect::<Vec<String>>()
    };
    let ops = told(OPS).await;
    let told = told(BOB).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("\"cause\":\"a supervisor began to serve\""), "{told:?}");
    assert_eq!(ops.len(), 3);
    for n in 0..5000 {
        events.emit(EventKind::StateTrouble, None, n.to_string());
    }
    let lost = house.get(BOB, &format!("/v1/events?after={}", u64::MAX)).await.body;
    assert!(lost.contains("no longer kept") && !lost.contains("events came in between"), "{lost}");
}

#[tokio::test]
async fn a_name_belongs_to_each_owner_by_itself() {
    let house = House::new();
    let (alices, one) = house.create(ALICE, "web").await;
    let (bobs, two) = house.create(BOB, "web").await;
    assert_ne!(alices.summary.id, bobs.summary.id);
    assert_eq!(house.ask(BOB, "POST", "/v1/vms/web/kill", "").await.status, 200);
    assert_eq!(house.get(ALICE, "/v1/vms/web").await.json::<VmInfo>().summary.state, VmState::Running);
    drop(two);
    // Of two an administrator is asked which one.
    assert_eq!(house.get(OPS, "/v1/vms/web").await.status, 404);
    let killed = house.ask(OPS, "POST", &format!("/v1/vms/{}/kill", alices.summary.id), "").await;
    assert_eq!(killed.json::<VmInfo>().summary.end.unwrap().kind, EndKind::Killed);
    drop(one);
}

#[tokio::test]
async fn who_is_not_named_gets_one_sentence_and_nothing_else() {
    let house = House::new();
    for path in ["/v1/vms", "/v1/version", "/metrics", "/v1/openapi.json", "/"] {
        let (code, message) = house.get(CAROL, path).await.error();
        assert_eq!(code, ErrorCode::Forbidden, "{path}");
        assert!(message.contains("ask its administrator"), "{message}");
    }
    for (uid, gid) in [(0, 0), (900, 900), OPS] {
        assert_eq!(house.get((uid, gid), "/v1/vms").await.status, 200, "{uid}");
    }
}

#[tokio::test]
async fn parallel_creates_get_no_more_than_the_quota_and_say_what_it_is() {
    let house = House::new();
    let all: Vec<Answer> = {
        let bodies: Vec<String> = (0..20).map(|n| body(&format!("v{n}"), 1, Value::Null)).collect();
        let mut asking = Vec::new();
        for body in &bodies {
            asking.push(house.ask(ALICE, "POST", "/v1/vms", body));
        }
        let mut answers = Vec::new();
        for answer in join_all(asking).await {
            answers.push(answer);
        }
        answers
    };
    let made = all.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(made, 3, "{all:?}");
    for refused in all.iter().filter(|answer| answer.status != 201) {
        let (code, message) = refused.error();
        assert_eq!((refused.status, code), (403, ErrorCode::Forbidden));
        assert!(message.contains("your quota is 3 VMs, you use 3, and this takes 1"), "{message}");
    }
    assert_eq!(house.names(ALICE).await.len(), 3, "what was refused is nowhere");
    let (_, bobs) = house.create(BOB, "mine").await;
    let quota: QuotaInfo = house.get(ALICE, "/v1/quota").await.json();
    assert_eq!((quota.used.vms, quota.used.vcpus, quota.allowed.unwrap().most.vms), (3, 3, 3));
    let everybody: Vec<QuotaInfo> = house.get(OPS, "/v1/quotas").await.json();
    let used: BTreeMap<u32, u64> = everybody.iter().map(|one| (one.owner, one.used.vms)).collect();
    assert_eq!(used, [(1000, 3), (1001, 1)].into());
    assert_eq!(house.get(BOB, "/v1/quotas").await.json::<Vec<QuotaInfo>>().len(), 1);
    drop(bobs);
}

/// All of them at the same time.
async fn join_all<T: Send + 'static>(asking: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut asking: Vec<_> = asking.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|task| {
        let mut pending = false;
        for (future, answer) in asking.iter_mut().filter(|(_, answer)| answer.is_none()) {
            match future.as_mut().poll(task) {
                std::task::Poll::Ready(value) => *answer = Some(value),
                std::task::Poll::Pending => pending = true,
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    asking.into_iter().filter_map(|(_, answer)| answer).collect()
}

#[tokio::test]
async fn what_stands_still_costs_no_processor_and_what_waits_for_its_restart_does() {
    let house = House::new();
    let big = |name: &str| body(name, 3, Value::Null);
    assert_eq!(house.ask(ALICE, "POST", "/v1/vms", &big("a")).await.status, 201);
    let a = house.bench.started().await;
    let (code, message) = house.ask(ALICE, "POST", "/v1/vms", &big("b")).await.error();
    assert_eq!(code, ErrorCode::Forbidden);
    assert!(message.contains("4 vCPUs, you use 3, and this takes 3"), "{message}");
    assert_eq!(house.names(ALICE).await, ["a"], "b is nowhere, and costs no name");
    a.exit(0);
    house.get(ALICE, "/v1/vms/a/wait").await;
    // The very one that was refused, in place of the one that has ended.
    let again = body("b", 3, restarting());
    assert_eq!(house.ask(ALICE, "POST", "/v1/vms", &again).await.status, 201);
    house.bench.started().await.exit(1);
    loop {
        let b: VmInfo = house.get(ALICE, "/v1/vms/b").await.json();
        if b.summary.state == VmState::Restarting {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(house.ask(ALICE, "POST", "/v1/vms/a/start", "").await.status, 403, "b is to run again");
    // What waits is no reason against its own start, as it is or as another.
    assert_eq!(house.ask(ALICE, "POST", "/v1/vms", &body("b", 4, Value::Null)).await.status, 201);
    house.bench.started().await.exit(0);
    house.get(ALICE, "/v1/vms/b/wait").await;
    let used = house.get(ALICE, "/v1/quota").await.json::<QuotaInfo>().used;
    assert_eq!((used.vms, used.vcpus, used.memory_mib), (2, 0, 0));
    for name in ["a", "b"] {
        assert_eq!(house.ask(ALICE, "DELETE", &format!("/v1/vms/{name}"), "").await.status, 204);
    }
    assert_eq!(house.bench.context.tenants.all_used(), BTreeMap::new());
}

#[tokio::test]
async fn a_vm_is_not_made_larger_behind_its_quota() {
    let house = House::new();
    assert_eq!(house.ask(ALICE, "POST", "/v1/vms", &body("a", 1, restarting())).await.status, 201);
    let fake = house.bench.started().await;
    let put = |cpus| put("a", cpus, restarting());
    // While it runs: it is not even stopped.
    assert_eq!(house.ask(ALICE, "PUT", "/v1/vms/a", &put(9)).await.status, 403);
    assert_eq!(house.get(ALICE, "/v1/vms/a").await.json::<VmInfo>().summary.state, VmState::Running);
    fake.exit(1);
    loop {
        let a: VmInfo = house.get(ALICE, "/v1/vms/a").await.json();
        if a.summary.state == VmState::Restarting {
            break;
        }
        tokio::task::yield_now().await;
    }
    // While it waits for its restart, which nobody would ask for again.
    assert_eq!(house.ask(ALICE, "PUT", "/v1/vms/a", &put(9)).await.status, 403);
    let stored = house.ask(ALICE, "PUT", "/v1/vms/a", &put(4)).await;
    assert_eq!(stored.status, 200, "{stored:?}");
    assert_eq!(house.get(ALICE, "/v1/quota").await.json::<QuotaInfo>().used.vcpus, 4);
    // Stored while it rests, and refused when it is to run.
    assert_eq!(house.ask(ALICE, "POST", "/v1/vms/a/kill", "").await.status, 200);
    assert_eq!(house.get(ALICE, "/v1/quota").await.json::<QuotaInfo>().used.vcpus, 0);
    assert_eq!(house.ask(ALICE, "PUT", "/v1/vms/a", &put(9)).await.status, 200);
    assert_eq!(house.ask(ALICE, "POST", "/v1/vms/a/start", "").await.status, 403);
}

#[tokio::test]
async fn a_start_that_fails_costs_nothing() {
    let house = House::new();
    house.bench.acts(Act::NoAnswer);
    house.bench.acts(Act::Die(3));
    for _ in 0..5 {
        assert_eq!(house.ask(ALICE, "POST", "/v1/vms", &body("a", 4, Value::Null)).await.status, 500);
    }
    assert_eq!(house.bench.context.tenants.all_used(), BTreeMap::new());
    house.bench.acts(Act::Good);
    drop(house.create(ALICE, "a").await);
}

#[tokio::test]
async fn an_administrator_is_held_to_no_quota_and_what_they_start_counts_for_its_owner() {
    let house = House::new();
    for n in 0..5 {
        drop(house.create(OPS, &format!("v{n}")).await);
    }
    let (a, fake) = house.create(ALICE, "a").await;
    fake.exit(0);
    house.get(ALICE, "/v1/vms/a/wait").await;
    assert_eq!(house.ask(ALICE, "POST", "/v1/vms", &body("b", 4, Value::Null)).await.status, 201);
    let _b = house.bench.started().await;
    assert_eq!(house.ask(ALICE, "POST", "/v1/vms/a/start", "").await.status, 403);
    let started = house.ask(OPS, "POST", &format!("/v1/vms/{}/start", a.summary.id), "").await;
    assert_eq!(started.status, 200, "{started:?}");
    let _a = house.bench.started().await;
    assert_eq!(house.get(ALICE, "/v1/quota").await.json::<QuotaInfo>().used.vcpus, 5);
}

#[tokio::test]
async fn only_networks_and_ports_of_the_quota_are_used_and_others_are_not_told_of() {
    let house = House::new();
    let netd = house.bench.netd();
    let net = |network: &str, port: u16| {
        let forward = json!({ "host": port, "guest": 80 });
        body("a", 1, json!({ "nets": [{ "network": network, "forwards": [forward] }] }))
    };
    // "default" is there, as netd has it, "gone" is nowhere: Alice cannot tell.
    let refusal = async |network: &str| {
        let answer = house.ask(ALICE, "POST", "/v1/vms", &net(network, 8000)).await;
        (answer.status, answer.body.replace(network, "NETWORK"))
    };
    assert_eq!(refusal("default").await, refusal("gone").await);
    let (code, message) = house.ask(ALICE, "POST", "/v1/vms", &net("blue", 22)).await.error();
    assert_eq!(code, ErrorCode::Forbidden);
    assert!(message.contains("port 22"), "{message}");
    assert_eq!(house.ask(BOB, "POST", "/v1/vms", &net("blue", 8000)).await.status, 400, "Bob has none");
    let three = body("a", 1, json!({ "nets": vec![json!({ "network": "blue" }); 3] }));
    let (_, message) = house.ask(ALICE, "POST", "/v1/vms", &three).await.error();
    assert!(message.contains("2 network interfaces, you use 0, and this takes 3"), "{message}");
    assert_eq!(house.ask(ALICE, "POST", "/v1/vms", &net("blue", 8000)).await.status, 201);
    let leases = async |who| house.get(who, "/v1/leases").await.json::<Vec<LeaseEntry>>();
    assert_eq!((leases(ALICE).await.len(), leases(BOB).await.len(), leases(OPS).await.len()), (1, 0, 1));
    let networks = async |who| house.get(who, "/v1/networks").await.json::<Vec<Network>>();
    assert!(networks(ALICE).await.is_empty(), "netd's are not hers");
    assert_eq!(networks(OPS).await[0].name, "default");
    house.reload(&CONFIG.replace("networks = [\"blue\"]", "networks = [\"default\"]"));
    let hers = networks(ALICE).await;
    assert_eq!((hers[0].leases, hers[0].limit), (0, 2), "not those of all tenants together");
    assert!(hers[0].forward_ports.iter().all(|(first, last)| (8000..=8099).contains(first) && *last <= 8099));
    house.bench.started().await.exit(0);
    drop(netd);
}

#[tokio::test]
async fn who_is_taken_off_the_list_is_hung_up_on_and_a_wrong_list_changes_nothing() {
    let house = House::new();
    let (_, fake) = house.create(ALICE, "a").await;
    let mut follows = house.connect(ALICE).await;
    follows.write_all(b"GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut console = house.connect(ALICE).await;
    let head = "GET /v1/vms/a/console HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: vmsup-console\r\n\r\n";
    console.write_all(head.as_bytes()).await.unwrap();
    let mut bobs = house.connect(BOB).await;
    for stream in [&mut follows, &mut console] {
        assert_eq!(stream.read_u8().await.unwrap(), b'H');
    }
    std::fs::write(house.bench.dir.path().join("supervisor.toml"), "[access]\nuser = []\n").unwrap();
    assert!(house.bench.context.tenants.reload().is_err());
    assert_eq!(house.get(ALICE, "/v1/vms").await.status, 200);
    house.reload("[access]\nusers = [\"bob\"]\n");
    for mut stream in [follows, console] {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
    assert_eq!(house.get(ALICE, "/v1/vms").await.status, 403);
    bobs.write_all(b"GET /v1/vms HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_eq!(bobs.read_u8().await.unwrap(), b'H', "whose rights are what they were goes on");
    // Her VM goes on, too: that is the administrator's to end.
    assert_eq!(house.get(OPS, "/v1/vms").await.status, 403, "nor is anybody an administrator now");
    assert_eq!(house.names((0, 0)).await, ["a"]);
    fake.exit(0);
}

#[tokio::test]
async fn one_tenants_connections_leave_room_for_others_and_for_administrators() {
    let house = House::new();
    let mut hers = Vec::new();
    // All that are hers of 64, and then one more.
    for _ in 0..24 {
        hers.push(house.connect(ALICE).await);
    }
    let (code, message) = house.get(ALICE, "/v1/vms").await.error();
    assert_eq!(code, ErrorCode::Unavailable);
    assert!(message.contains("too many connections of yours"), "{message}");
    assert_eq!(house.get(BOB, "/v1/vms").await.status, 200);
    let mut his = Vec::new();
    for _ in 0..64 {
        his.push(house.connect(BOB).await);
    }
    assert_eq!(house.get(OPS, "/v1/vms").await.status, 200);
    // Followers, too.
    let house = House::new();
    let follow = b"GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut followers = Vec::new();
    loop {
        let mut stream = house.connect(ALICE).await;
        stream.write_all(follow).await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        if &head != b"HTTP/1.1 200" {
            break;
        }
        followers.push(stream);
    }
    let mut stream = house.connect(BOB).await;
    stream.write_all(follow).await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
}
