//! Networks, leases and counters over a real socket, with a fake netd.

use super::tests::Server;
use super::types::*;
use crate::serve::testing::netd::{FakeNetd, NetAct};
use netd_api::{Refusal, VmId, Wanted};

const BODY: &str = r#"{"spec":{"name":"web","cpus":1,"memory_mib":32,"boot":{"builtin":"hello"},
    "nets":[{"network":"default","forwards":[{"host":8080,"guest":80}]}]}}"#;

/// A server whose netd is there.
fn server() -> (Server, FakeNetd) {
    let server = Server::new();
    let netd = server.bench.netd();
    (server, netd)
}

#[tokio::test]
async fn a_vm_is_listed_with_its_interfaces_while_it_has_them() {
    let (server, _netd) = server();
    let answer = server.ask("POST", "/v1/vms", BODY.as_bytes()).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let made: VmInfo = answer.json();
    let net = &made.summary.nets[0];
    assert_eq!((net.network.as_str(), net.interface.as_str(), net.lease), ("default", "vt1", 1));
    assert_eq!((net.address.as_str(), net.mac.as_str(), net.mtu), ("10.77.0.2", "02:76:6d:00:00:01", 1500));
    let listed: Vec<VmSummary> = server.ask("GET", "/v1/vms", b"").await.json();
    assert_eq!(listed[0].nets, made.summary.nets);
    server.bench.started().await.exit(0);
    let ended: VmInfo = server.ask("GET", "/v1/vms/web/wait", b"").await.json();
    assert!(ended.summary.nets.is_empty());
    assert_eq!(ended.spec.nets.len(), 1);
}

#[tokio::test]
async fn leases_carry_the_names_of_our_vms_and_of_nobody_elses() {
    let (server, netd) = server();
    assert_eq!(server.ask("POST", "/v1/vms", BODY.as_bytes()).await.status, 201);
    // Of another supervisor of the same user.
    let foreign = Wanted {
        network: "default".into(),
        vm: VmId(1),
        queues: 1,
        offloads: true,
        mac_suffix: None,
        forwards: Vec::new(),
    };
    netd.leases.lock().unwrap().insert(9, foreign);
    let answer = server.ask("GET", "/v1/leases", b"").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let leases: Vec<LeaseEntry> = answer.json();
    assert_eq!(leases.iter().map(|l| (l.id, l.vm.as_deref())).collect::<Vec<_>>(), [(1, Some("web")), (9, None)]);
    assert_eq!((leases[0].address.as_str(), leases[0].forwards[0].host), ("10.77.0.2", 8080));
    server.bench.started().await.exit(0);
}

#[tokio::test]
async fn networks_are_told_as_netd_has_them() {
    let (server, _netd) = server();
    let answer = server.ask("GET", "/v1/networks", b"").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let networks: Vec<Network> = answer.json();
    assert_eq!((networks[0].name.as_str(), networks[0].gateway.as_str()), ("default", "10.77.0.1"));
    assert_eq!((networks[0].limit, networks[0].forward_ports.as_slice()), (16, &[(8000, 8999)][..]));
}

#[tokio::test]
async fn without_netd_there_is_a_sentence_and_the_rest_goes_on() {
    let server = Server::new();
    for path in ["/v1/networks", "/v1/leases"] {
        let answer = server.ask("GET", path, b"").await;
        let error: ApiError = answer.json();
        assert_eq!((answer.status, error.code), (503, ErrorCode::Unavailable), "{error:?}");
        assert!(error.message.contains("no network helper at") && error.message.contains("doctor"), "{error:?}");
    }
    let answer = server.ask("POST", "/v1/vms", BODY.as_bytes()).await;
    assert_eq!((answer.status, answer.json::<ApiError>().field.as_deref()), (503, Some("nets")));
    assert_eq!(server.ask("GET", "/v1/vms", b"").await.json::<Vec<VmSummary>>(), []);
}

#[tokio::test]
async fn a_refusal_of_netds_has_the_status_and_the_field_that_fit() {
    let (server, netd) = server();
    let cases: [(Refusal, u16, &str); 4] = [
        (Refusal::NoSuchNetwork, 400, "nets[0].network"),
        (Refusal::PortNotAllowed { port: 8080 }, 403, "nets[0].forwards[0].host"),
        (Refusal::PortTaken { port: 8080 }, 409, "nets[0].forwards[0].host"),
        (Refusal::NetworkFull, 503, "nets[0].network"),
    ];
    for (why, status, field) in cases {
        netd.acts(NetAct::Refuse("default", why));
        let answer = server.ask("POST", "/v1/vms", BODY.as_bytes()).await;
        assert_eq!((answer.status, answer.json::<ApiError>().field.as_deref()), (status, Some(field)));
    }
}

#[tokio::test]
async fn interfaces_that_cannot_be_are_refused_before_netd_is_asked() {
    let (server, netd) = server();
    let body = BODY.replace("\"host\":8080", "\"host\":0");
    let answer = server.ask("POST", "/v1/vms", body.as_bytes()).await;
    assert_eq!((answer.status, answer.json::<ApiError>().field.as_deref()), (400, Some("nets[0].forwards[0].host")));
    assert_eq!(netd.asked(), 0);
}

#[tokio::test]
async fn counters_of_a_vm_are_told_and_one_that_does_not_run_has_none() {
    let (server, _netd) = server();
    assert_eq!(server.ask("GET", "/v1/vms/web/net", b"").await.status, 404);
    assert_eq!(server.ask("POST", "/v1/vms", BODY.as_bytes()).await.status, 201);
    let fake = server.bench.started().await;
    let counted = worker_api::NetCounters { sent_packets: 3, dropped_dhcp: 1, ..Default::default() };
    let worker = fake.copy();
    let (answer, _) = tokio::join!(
        server.ask("GET", "/v1/vms/web/net", b""),
        tokio::task::spawn_blocking(move || worker.answer(&worker_api::Reply::Stats(Box::new(worker_api::Stats {
            nets: vec![counted],
            ..Default::default()
        }))))
    );
    let stats: Vec<NetStats> = answer.json();
    assert_eq!((stats[0].interface.as_str(), stats[0].sent_packets), ("vt1", 3));
    assert_eq!(stats[0].dropped, [("dhcp".to_owned(), 1)].into());
    fake.exit(0);
    let _ended: VmInfo = server.ask("GET", "/v1/vms/web/wait", b"").await.json();
    assert_eq!(server.ask("GET", "/v1/vms/web/net", b"").await.status, 409);
}
