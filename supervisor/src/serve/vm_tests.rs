//! VMs from start to end, with a fake jailer and fake workers: what goes wrong stays that VM's, and nothing is left.

use super::*;
use crate::api::types::ErrorCode;
use crate::api::types::{End, EndKind};
use crate::serve::testing::{Act, Bench, OWNER, TempDir, request, spec, terms};
use crate::spec::{Builtin, Disk};
use jail_spec::{HowEnded, Refusal};
use std::time::Duration;
use worker_api::{FdRole, Part, StartFailure, console, exit};

async fn create(bench: &Bench, name: &str) -> Result<Arc<Vm>, ApiError> {
    Vm::create(&bench.context, request(spec(name)), terms())?.until_running().await
}

async fn refused(bench: &Bench, act: Act, code: ErrorCode, says: &str) {
    bench.acts(act);
    let error = create(bench, "a").await.unwrap_err();
    assert_eq!(error.code, code, "{error:?}");
    assert!(error.message.contains(says), "{error:?}");
    assert!(!error.message.contains('\x1b'), "{error:?}");
    // Nothing is left, and the next start works.
    bench.nothing_left().await;
    assert!(bench.context.registry.list().is_empty());
    bench.acts(Act::Good);
    let vm = create(bench, "a").await.unwrap();
    bench.started().await.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    bench.context.registry.remove(&vm);
}

fn end(vm: &Vm) -> End {
    vm.summary().end.unwrap()
}

#[tokio::test]
async fn a_vm_runs_and_ends_as_its_guest_wants() {
    let bench = Bench::new();
    for (status, kind, state) in [
        (exit::SHUTDOWN, EndKind::Shutdown, VmState::Stopped),
        (exit::RESET, EndKind::Reset, VmState::Stopped),
        (exit::CRASH, EndKind::GuestCrashed, VmState::Crashed),
        (99, EndKind::WorkerCrashed, VmState::Crashed),
    ] {
        let vm = create(&bench, "a").await.unwrap();
        let info = vm.info();
        assert_eq!((info.summary.state, info.worker.is_some()), (VmState::Running, true));
        bench.started().await.exit(status);
        vm.until_ended().await;
        assert_eq!((end(&vm).kind, vm.summary().state), (kind, state));
        assert_eq!(vm.info().worker, None);
    }
    // One VM all along, with the history of its ends.
    let all = bench.context.registry.list();
    assert_eq!((all.len(), all[0].intent().ends.len(), all[0].intent().generation), (1, 4, 1));
    let last = end(&bench.context.registry.find(OWNER, "a").unwrap());
    assert_eq!(last.reason, "the worker left with status 99: last?[2J words");
    bench.nothing_left().await;
}

#[tokio::test]
async fn a_worker_gets_what_its_spec_says_and_sealed_memory() {
    let bench = Bench::new();
    let dir = TempDir::new();
    let disk = dir.path().join("disk");
    std::fs::write(&disk, [1; 1024]).unwrap();
    let mut spec = spec("a");
    let path = disk.to_str().unwrap().to_owned();
    spec.disks = vec![Disk { path, readonly: true, engine: Default::default(), serial: None }];
    let vm = Vm::create(&bench.context, request(spec), terms()).unwrap().until_running().await.unwrap();
    let fake = bench.started().await;
    let size = |role| rustix::fs::fstat(fake.fd(role)).unwrap().st_size;
    assert_eq!(size(FdRole::Ram), 32 << 20);
    assert_eq!(size(FdRole::ConsoleRing) as u64, console::RING_BYTES);
    assert_eq!(size(FdRole::Disk(0)), 1024);
    assert_eq!(fake.spec.disks[0].serial, "vmsup-disk0");
    for role in [FdRole::Ram, FdRole::ConsoleRing] {
        assert_eq!(rustix::fs::ftruncate(fake.fd(role), 0), Err(rustix::io::Errno::PERM));
    }
    assert_eq!(rustix::io::write(fake.fd(FdRole::Kernel), b"x"), Err(rustix::io::Errno::BADF));
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    // The lock went with the worker's copy of the fd.
    drop(bench);
    let mut writer = crate::serve::testing::spec("b");
    writer.disks =
        vec![Disk { path: disk.to_str().unwrap().into(), readonly: false, engine: Default::default(), serial: None }];
    crate::serve::files::GuestFiles::open(&writer).unwrap();
}

#[tokio::test]
async fn a_worker_gets_the_built_in_guest_that_its_spec_names() {
    let bench = Bench::new();
    for (builtin, bytes) in [(Builtin::Hello, &b"guest"[..]), (Builtin::Net, b"net guest")] {
        let mut spec = spec("a");
        spec.boot.builtin = Some(builtin);
        spec.boot.cmdline = Some("fetch=10.77.0.1:80/".into());
        let vm = Vm::create(&bench.context, request(spec), terms()).unwrap().until_running().await.unwrap();
        let fake = bench.started().await;
        let mut kernel = [0; 16];
        let read = rustix::io::pread(fake.fd(FdRole::Kernel), &mut kernel, 0).unwrap();
        assert_eq!((&kernel[..read], fake.spec.cmdline.as_str()), (bytes, "fetch=10.77.0.1:80/"));
        fake.exit(exit::SHUTDOWN);
        vm.until_ended().await;
    }
}

#[tokio::test]
async fn a_guest_that_ends_before_its_start_is_told_has_run() {
    let bench = Bench::new();
    for (status, kind) in
        [(exit::RESET, EndKind::Reset), (exit::SHUTDOWN, EndKind::Shutdown), (exit::CRASH, EndKind::GuestCrashed)]
    {
        bench.acts(Act::Quick(status));
        let vm = create(&bench, "a").await.unwrap();
        vm.until_ended().await;
        assert_eq!(end(&vm).kind, kind);
        assert!(vm.summary().started_at.is_some());
        assert_eq!(bench.context.registry.find(OWNER, "a").unwrap().summary().id, vm.summary().id);
    }
    bench.nothing_left().await;
}

#[tokio::test]
async fn a_worker_that_never_answers_is_killed() {
    refused(&Bench::impatient(), Act::Silent, ErrorCode::Internal, "did not start the VM in time").await;
}

#[tokio::test]
async fn a_worker_that_answers_garbage_is_killed() {
    refused(&Bench::new(), Act::Garbage, ErrorCode::Internal, "malformed").await;
}

#[tokio::test]
async fn a_worker_of_another_release_is_refused() {
    let bench = Bench::new();
    bench.acts(Act::OldRelease);
    let error = create(&bench, "a").await.unwrap_err();
    // Whichever comes first: its header, or its end with its last words.
    assert!(error.message.contains("one release") || error.message.contains("last?[2J words"), "{error:?}");
    bench.nothing_left().await;
}

#[tokio::test]
async fn a_listener_that_is_not_the_worker_gets_nothing() {
    refused(&Bench::new(), Act::LieAboutPid, ErrorCode::Internal, "not the worker's").await;
}

#[tokio::test]
async fn a_worker_that_dies_before_its_spec_says_how() {
    refused(&Bench::new(), Act::Die(77), ErrorCode::Internal, "status 77: last?[2J words").await;
}

#[tokio::test]
async fn what_a_worker_says_no_to_is_told_with_its_field() {
    let bench = Bench::new();
    let failure = StartFailure { part: Part::Memory, detail: "no \x1b[2J memory".into() };
    bench.acts(Act::Fail(failure.clone()));
    assert_eq!(create(&bench, "a").await.unwrap_err().field.as_deref(), Some("memory_mib"));
    refused(&bench, Act::Fail(failure), ErrorCode::Invalid, "no ?[2J memory").await;
    let lie = StartFailure { part: Part::Disk(200), detail: "disk".into() };
    bench.acts(Act::Fail(lie));
    assert_eq!(create(&bench, "a").await.unwrap_err().field, None);
}

#[tokio::test]
async fn what_the_jailer_refuses_is_told() {
    let bench = Bench::new();
    let step = Refusal::Step { step: "pivot".into(), errno: 1 };
    for (why, code, says) in [
        (Refusal::Full { slots: 7 }, ErrorCode::Unavailable, "all 7 places"),
        (Refusal::NoCgroup("no systemd".into()), ErrorCode::Invalid, "best-effort"),
        (step, ErrorCode::Internal, "step pivot"),
        (Refusal::Died(HowEnded::Killed(31), String::new()), ErrorCode::Internal, "broke its policy"),
    ] {
        refused(&bench, Act::Refused(why), code, says).await;
    }
}

#[tokio::test]
async fn a_jailer_that_never_answers_is_not_waited_for_for_ever() {
    refused(&Bench::impatient(), Act::NoAnswer, ErrorCode::Unavailable, "in time").await;
}

#[tokio::test]
async fn a_missing_disk_costs_no_worker() {
    let bench = Bench::new();
    let mut spec = spec("a");
    spec.disks = vec![Disk { path: "/no/such".into(), readonly: false, engine: Default::default(), serial: None }];
    let starting = Vm::create(&bench.context, request(spec), terms()).unwrap();
    let vm = starting.vm.clone();
    assert_eq!(starting.until_running().await.unwrap_err().field.as_deref(), Some("disks[0].path"));
    vm.until_ended().await;
    assert!(bench.slots.lock().unwrap().is_empty());
    assert!(bench.context.registry.find(OWNER, "a").is_none());
}

#[tokio::test]
async fn a_stop_presses_the_power_button() {
    let bench = Bench::new();
    let vm = create(&bench, "a").await.unwrap();
    let fake = bench.started().await;
    vm.ask(Ask::Stop(Duration::from_secs(60))).await;
    let fake = tokio::task::spawn_blocking(move || {
        assert_eq!(fake.request(), worker_api::Request::PowerButton);
        fake
    })
    .await
    .unwrap();
    assert_eq!(vm.summary().state, VmState::Stopping);
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    assert_eq!(end(&vm).kind, EndKind::Shutdown);
}

#[tokio::test]
async fn a_guest_that_ignores_the_power_button_is_killed_at_the_deadline() {
    let bench = Bench::new();
    let vm = create(&bench, "a").await.unwrap();
    let _deaf = bench.started().await;
    // A second, shorter stop shortens the first.
    vm.ask(Ask::Stop(Duration::from_secs(600))).await;
    vm.ask(Ask::Stop(Duration::ZERO)).await;
    vm.until_ended().await;
    assert_eq!((end(&vm).kind, vm.summary().state), (EndKind::Killed, VmState::Stopped));
    assert!(end(&vm).reason.contains("ignored the power button"), "{}", end(&vm).reason);
    bench.nothing_left().await;
}

#[tokio::test]
async fn a_kill_ends_a_vm_at_any_moment_of_its_start() {
    let bench = Bench::new();
    for (n, act) in [Act::Good, Act::Silent, Act::Good].into_iter().enumerate() {
        bench.acts(act);
        let vm = Vm::create(&bench.context, request(spec("a")), terms()).unwrap().vm;
        for _ in 0..n * 3 {
            tokio::task::yield_now().await;
        }
        vm.ask(Ask::Kill).await;
        vm.until_ended().await;
        assert!(matches!(end(&vm).kind, EndKind::Killed), "{:?}", end(&vm));
        bench.nothing_left().await;
    }
}

#[tokio::test]
async fn a_worker_that_is_killed_from_outside_is_a_crash() {
    let bench = Bench::new();
    let vm = create(&bench, "a").await.unwrap();
    // 137 is not SIGKILL: only how the jailer reaped it counts.
    bench.started().await.exit(137);
    vm.until_ended().await;
    assert_eq!(end(&vm).kind, EndKind::WorkerCrashed);
}

#[tokio::test]
async fn of_two_vms_of_one_name_at_once_one_wins() {
    let bench = Bench::new();
    let results = tokio::join!(create(&bench, "a"), create(&bench, "a"), create(&bench, "a"));
    let results = [results.0, results.1, results.2];
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    for result in results {
        match result {
            Ok(vm) => assert_eq!(vm.summary().state, VmState::Running),
            Err(error) => assert_eq!(error.code, ErrorCode::Conflict),
        }
    }
}

#[tokio::test]
async fn running_vms_outlive_the_jailer_and_new_ones_are_refused_with_a_sentence() {
    let bench = Bench::new();
    let (a, b) = (create(&bench, "a").await.unwrap(), create(&bench, "b").await.unwrap());
    let (fake, other) = (bench.started().await, bench.started().await);
    bench.kill_jailer();
    let _ = bench.context.jail.alive().wait_for(|alive| !alive).await;
    assert_eq!(a.summary().state, VmState::Running);
    let error = create(&bench, "c").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(error.message.contains("the jailer is gone") && error.message.contains("your VMs go on"), "{error:?}");
    // Nobody is left to say how it ended; that it ended is still seen, and a kill still works.
    fake.exit(exit::SHUTDOWN);
    a.until_ended().await;
    assert_eq!(end(&a).kind, EndKind::Unknown);
    b.ask(Ask::Kill).await;
    b.until_ended().await;
    assert_eq!(end(&b).kind, EndKind::Killed);
    drop(other);
    assert_eq!(*bench.context.registry.living().borrow(), 0);
}

#[tokio::test]
async fn a_vm_that_is_to_be_forgotten_is_found_until_its_waiter_has_heard() {
    let bench = Bench::new();
    let request = CreateRequest { remove_when_ended: true, ..request(spec("a")) };
    let vm = Vm::create(&bench.context, request, terms()).unwrap().until_running().await.unwrap();
    bench.started().await.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    assert!(bench.context.registry.list().is_empty());
    let hold = Hold::new(&bench.context, bench.context.registry.find(OWNER, "a").unwrap());
    drop(hold);
    assert!(bench.context.registry.find(OWNER, "a").is_some(), "nobody has heard yet");
    let hold = Hold::new(&bench.context, bench.context.registry.find(OWNER, "a").unwrap());
    hold.heard();
    drop(hold);
    assert!(bench.context.registry.find(OWNER, "a").is_none());
}

#[tokio::test]
async fn a_start_that_fails_leaves_a_vm_that_was_there_as_it_was() {
    let bench = Bench::new();
    let first = create(&bench, "a").await.unwrap();
    bench.started().await.exit(exit::CRASH);
    first.until_ended().await;
    bench.acts(Act::Refused(Refusal::Full { slots: 1 }));
    let before = first.summary();
    let console = first.console().unwrap().kept();
    let other = VmSpec { cpus: 2, ..spec("a") };
    let starting = Vm::create(&bench.context, request(other.clone()), terms()).unwrap();
    starting.until_running().await.unwrap_err();
    assert_eq!(bench.context.registry.find(OWNER, "a").unwrap().summary(), before);
    assert_eq!(first.console().unwrap().kept(), console);
    bench.acts(Act::Good);
    let second = Vm::create(&bench.context, request(other), terms()).unwrap().until_running().await.unwrap();
    let now = second.summary();
    assert_eq!((&now.id, now.cpus, now.generation), (&before.id, 2, 2));
    assert_eq!(now.end.unwrap().kind, EndKind::GuestCrashed, "its history stays");
}

#[tokio::test]
async fn limits_without_a_cgroup_are_told_in_inspect() {
    let bench = Bench::new();
    let mut spec = spec("a");
    spec.limits = Some(serde_json::from_str(r#"{"pids_max":64,"enforce":"best-effort"}"#).unwrap());
    let vm = Vm::create(&bench.context, request(spec), terms()).unwrap().until_running().await.unwrap();
    assert_eq!(vm.info().worker.unwrap().limits, "not held: the test has none");
}
