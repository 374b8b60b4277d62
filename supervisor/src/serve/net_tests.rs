//! VMs with network interfaces from start to end, with fakes of netd, jailer and workers: no lease outlives its VM.

use super::registry::Entry;
use super::testing::netd::{FakeNetd, NetAct};
use super::testing::{Act, Bench, FakeVm, OWNER, PLACES, request, spec_in, terms};
use super::vm::{Ask, Vm};
use crate::api::types::{ApiError, ErrorCode, VmState};
use crate::spec::VmSpec;
use netd_api::{Refusal, Request, VmId, Wanted};
use std::sync::Arc;
use std::time::Duration;
use worker_api::{FdRole, NetCounters, Part, StartFailure, exit};

async fn create(bench: &Bench, spec: VmSpec) -> Result<Arc<Vm>, ApiError> {
    Vm::create(&bench.context, request(spec), terms())?.until_running().await
}

async fn run(bench: &Bench, networks: &[&str]) -> (Arc<Vm>, FakeVm) {
    (create(bench, spec_in("web.1", networks)).await.unwrap(), bench.started().await)
}

/// A start fails, says why, and leaves neither lease nor worker; the next one succeeds.
async fn refused(bench: &Bench, netd: &FakeNetd, networks: &[&str], code: ErrorCode, field: Option<&str>, says: &str) {
    let error = create(bench, spec_in("a", networks)).await.unwrap_err();
    assert_eq!((error.code, error.field.as_deref()), (code, field), "{error:?}");
    assert!(error.message.contains(says), "{error:?}");
    assert!(!error.message.contains(char::is_control), "{error:?}");
    netd.nothing_leased().await;
    bench.nothing_left().await;
    assert!(bench.context.registry.list().is_empty());
    netd.acts(NetAct::Good);
    bench.acts(Act::Good);
    let (vm, fake) = run(bench, &["default"]).await;
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    bench.context.registry.remove(&vm);
    netd.nothing_leased().await;
}

#[tokio::test]
async fn a_worker_gets_the_taps_and_the_words_of_its_leases() {
    let bench = Bench::new();
    let netd = bench.netd();
    let mut spec = spec_in("web.1", &["blue", "green"]);
    spec.nets[0].queues = 4;
    spec.nets[1].offloads = false;
    spec.nets[1].mac_suffix = Some("0a:0B:0c".into());
    spec.nets[1].forwards = serde_json::from_str(r#"[{"host":80,"guest":8080,"protocol":"udp"}]"#).unwrap();
    let vm = create(&bench, spec).await.unwrap();
    let fake = bench.started().await;
    let [blue, green] = &fake.spec.nets[..] else { panic!("{:?}", fake.spec.nets) };
    assert_eq!((blue.queues, blue.offloads, blue.hostname.as_str()), (4, true, "web-1"));
    assert_eq!((green.queues, green.offloads, green.mac), (1, false, [2, 0x76, 0x6d, 0x0a, 0x0b, 0x0c]));
    assert_eq!((blue.gateway.to_string(), blue.address.to_string()), ("10.77.0.1".into(), "10.77.0.2".into()));
    for (net, queues) in [(0, 4), (1, 1)] {
        for queue in 0..queues {
            let tap = rustix::fs::fstat(fake.fd(FdRole::Tap { net, queue })).unwrap();
            assert_eq!((rustix::fs::major(tap.st_rdev), rustix::fs::minor(tap.st_rdev)), (1, 3));
        }
    }
    // netd was told what the file says.
    let asked: Vec<Wanted> = netd.leases.lock().unwrap().values().cloned().collect();
    assert_eq!(asked.iter().map(|w| w.vm).collect::<Vec<_>>(), [VmId(vm.number()); 2]);
    assert_eq!(asked[1].forwards, [netd_api::Forward { protocol: netd_api::Protocol::Udp, host: 80, guest: 8080 }]);
    // People see it while the VM has it.
    let shown = vm.summary().nets;
    assert_eq!(shown.iter().map(|n| n.interface.as_str()).collect::<Vec<_>>(), ["vt1", "vt2"]);
    assert_eq!((shown[1].mac.as_str(), shown[1].forwards.len()), ("02:76:6d:0a:0b:0c", 1));
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    assert!(vm.summary().nets.is_empty());
    netd.nothing_leased().await;
}

#[tokio::test]
async fn an_end_of_any_kind_releases_the_leases_after_the_worker_is_gone() {
    let bench = Bench::new();
    let netd = bench.netd();
    for end in 0..3 {
        let (vm, fake) = run(&bench, &["a", "b"]).await;
        assert_eq!(netd.leases.lock().unwrap().len(), 2);
        match end {
            0 => fake.exit(exit::CRASH),
            1 => vm.ask(Ask::Kill).await,
            _ => vm.ask(Ask::Stop(Duration::ZERO)).await,
        }
        vm.until_ended().await;
        netd.nothing_leased().await;
        bench.nothing_left().await;
    }
}

#[tokio::test]
async fn a_vm_without_interfaces_needs_no_netd_and_asks_none() {
    let bench = Bench::new();
    let (vm, fake) = run(&bench, &[]).await;
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    let netd = bench.netd();
    let (vm, fake) = run(&bench, &[]).await;
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    bench.context.netd.settled().await;
    assert!(netd.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn running_vms_keep_their_network_while_netd_is_away_and_new_ones_get_a_sentence() {
    let bench = Bench::new();
    let netd = bench.netd();
    let (vm, fake) = run(&bench, &["a"]).await;
    drop(netd);
    let error = create(&bench, spec_in("b", &["a"])).await.unwrap_err();
    assert_eq!((error.code, error.field.as_deref()), (ErrorCode::Unavailable, Some("nets")));
    assert!(error.message.contains("systemctl start vmsup-netd"), "{error:?}");
    assert_eq!((vm.summary().state, vm.summary().nets.len()), (VmState::Running, 1));
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    bench.context.netd.settled().await;
    bench.nothing_left().await;
}

#[tokio::test]
async fn what_netd_refuses_is_told_with_its_field_and_the_first_lease_is_released() {
    let bench = Bench::new();
    let netd = bench.netd();
    let refusals: [(Refusal, ErrorCode, &str); 3] = [
        (Refusal::NoSuchNetwork, ErrorCode::Invalid, "no network \"b\" for uid"),
        (Refusal::Quota { limit: 3 }, ErrorCode::Unavailable, "all 3 leases"),
        (Refusal::NoRules, ErrorCode::Unavailable, "not loaded"),
    ];
    for (why, code, says) in refusals {
        netd.acts(NetAct::Refuse("b", why));
        let before = netd.asked();
        refused(&bench, &netd, &["a", "b"], code, Some("nets[1].network"), says).await;
        assert_eq!(netd.asked() - before, 3);
    }
}

#[tokio::test]
async fn a_netd_that_is_no_use_is_told_as_such() {
    let bench = Bench::impatient();
    let netd = bench.netd();
    for (act, code, says) in [
        (NetAct::Silent, ErrorCode::Unavailable, "did not answer"),
        (NetAct::HangUp, ErrorCode::Unavailable, "closed the connection"),
        (NetAct::OldRelease, ErrorCode::Unavailable, "one release"),
        (NetAct::NoTaps, ErrorCode::Internal, "no TAP"),
        (NetAct::Lie(|l| l.dns = vec![l.gateway; 4]), ErrorCode::Internal, "4 DNS servers"),
    ] {
        netd.acts(act);
        // Releases wait for a netd that is silent, and so do we: the good one is to answer again.
        let error = create(&bench, spec_in("a", &["a"])).await.unwrap_err();
        assert_eq!((error.code, error.field.as_deref()), (code, Some("nets")), "{error:?}");
        assert!(error.message.contains(says), "{error:?}");
        bench.nothing_left().await;
        netd.nothing_leased().await;
    }
}

#[tokio::test]
async fn a_start_that_fails_elsewhere_leaves_no_lease() {
    let bench = Bench::new();
    let netd = bench.netd();
    let no_tap = StartFailure { part: Part::Net(0), detail: "nets[0]: no TAP".into() };
    for (act, code, field, says) in [
        (Act::Die(77), ErrorCode::Internal, None, "status 77"),
        (Act::Garbage, ErrorCode::Internal, None, "malformed"),
        (Act::Fail(no_tap), ErrorCode::Invalid, Some("nets[0]"), "no TAP"),
        (Act::Refused(jail_spec::Refusal::Full { slots: 7 }), ErrorCode::Unavailable, None, "all 7 places"),
    ] {
        bench.acts(act);
        refused(&bench, &netd, &["a"], code, field, says).await;
    }
    let mut spec = spec_in("a", &["a"]);
    spec.disks = serde_json::from_str(r#"[{"path":"/no/such"}]"#).unwrap();
    assert_eq!(create(&bench, spec).await.unwrap_err().field.as_deref(), Some("disks[0].path"));
    bench.context.netd.settled().await;
    netd.nothing_leased().await;
}

#[tokio::test]
async fn a_kill_at_any_moment_of_a_start_leaves_no_lease() {
    let bench = Bench::new();
    let netd = bench.netd();
    for (n, act) in [Act::Good, Act::Silent, Act::Good, Act::Silent, Act::Good].into_iter().enumerate() {
        bench.acts(act);
        let vm = Vm::create(&bench.context, request(spec_in("a", &["a", "b"])), terms()).unwrap().vm;
        for _ in 0..n * 3 {
            tokio::task::yield_now().await;
        }
        vm.ask(Ask::Kill).await;
        vm.until_ended().await;
        bench.nothing_left().await;
        // The place of the start is given back when whatever netd answers has come.
        let mut places = Vec::new();
        for _ in 0..PLACES {
            places.push(bench.context.starts.turn(OWNER.uid).await.unwrap());
        }
        netd.nothing_leased().await;
    }
}

#[tokio::test]
async fn netd_and_jailer_are_asked_at_the_same_time() {
    let bench = Bench::new();
    let netd = bench.netd();
    bench.acts(Act::NoAnswer);
    let starting = Vm::create(&bench.context, request(spec_in("a", &["a"])), terms()).unwrap();
    // The lease is there although no worker is.
    while netd.leases.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(starting.vm.summary().state, VmState::Starting);
    bench.kill_jailer();
    assert!(starting.until_running().await.unwrap_err().message.contains("the jailer is gone"));
    netd.nothing_leased().await;
}

fn counters(nets: Vec<NetCounters>) -> worker_api::Reply {
    worker_api::Reply::Stats(Box::new(worker_api::Stats { nets, ..Default::default() }))
}

fn counted(dropped_tap: u64) -> NetCounters {
    NetCounters { received_packets: 5, dropped_tap, ..NetCounters::default() }
}

#[tokio::test]
async fn what_a_worker_counts_is_told_beside_its_interface_or_not_at_all() {
    let bench = Bench::new();
    let _netd = bench.netd();
    let (vm, fake) = run(&bench, &["a", "b"]).await;
    for (reply, says) in [
        (counters(vec![counted(1)]), "1 interfaces, where it has 2"),
        (counters(vec![counted(1); 5]), "something else"),
        (worker_api::Reply::Done, "something else"),
    ] {
        let other = fake.copy();
        let (error, asked) = tokio::join!(vm.net_stats(), tokio::task::spawn_blocking(move || other.answer(&reply)));
        assert_eq!(asked.unwrap(), worker_api::Request::Stats);
        assert!(error.unwrap_err().message.contains(says));
    }
    let good = counters(vec![counted(0), counted(3)]);
    let other = fake.copy();
    let (stats, _) = tokio::join!(vm.net_stats(), tokio::task::spawn_blocking(move || other.answer(&good)));
    let stats = stats.unwrap();
    assert_eq!((stats[0].network.as_str(), stats[1].interface.as_str()), ("a", "vt2"));
    assert_eq!((stats[0].received_packets, stats[0].dropped.len(), stats[1].dropped["tap"]), (5, 0, 3));
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    assert_eq!(vm.net_stats().await.unwrap_err().code, ErrorCode::Conflict);
}

#[tokio::test]
async fn an_answer_that_came_too_late_is_not_taken_for_the_next_one() {
    let bench = Bench::curt();
    let _netd = bench.netd();
    let (vm, fake) = run(&bench, &["a"]).await;
    // Nobody answers in time.
    let error = vm.net_stats().await.unwrap_err();
    assert!(error.message.contains("does not answer"), "{error:?}");
    let other = fake.copy();
    let answers = tokio::task::spawn_blocking(move || {
        for reply in [counters(vec![counted(1)]), counters(vec![counted(2)])] {
            assert_eq!(other.answer(&reply), worker_api::Request::Stats);
        }
    });
    assert_eq!(vm.net_stats().await.unwrap()[0].dropped["tap"], 2);
    answers.await.unwrap();
    let other = fake.copy();
    let pressed = tokio::task::spawn_blocking(move || other.answer(&worker_api::Reply::Done));
    vm.ask(Ask::Stop(Duration::from_secs(600))).await;
    assert_eq!(pressed.await.unwrap(), worker_api::Request::PowerButton);
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
}

#[tokio::test]
async fn a_worker_that_never_answers_is_not_asked_for_ever_and_can_still_be_stopped() {
    let bench = Bench::curt();
    let _netd = bench.netd();
    let (vm, fake) = run(&bench, &["a"]).await;
    for _ in 0..12 {
        assert!(vm.net_stats().await.unwrap_err().message.contains("does not answer"));
    }
    let mut asked = 0;
    while fake.copy().asked() {
        asked += 1;
    }
    assert_eq!(asked, 8);
    vm.ask(Ask::Stop(Duration::ZERO)).await;
    vm.until_ended().await;
    bench.nothing_left().await;
}

#[tokio::test]
async fn what_is_released_is_what_was_leased() {
    let bench = Bench::new();
    let netd = bench.netd();
    let (vm, fake) = run(&bench, &["a", "b"]).await;
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    bench.context.netd.settled().await;
    let released: Vec<u64> = netd
        .seen
        .lock()
        .unwrap()
        .iter()
        .filter_map(|r| if let Request::Release { lease } = r { Some(lease.0) } else { None })
        .collect();
    assert_eq!(released, [1, 2]);
}
