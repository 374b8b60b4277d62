//! VMs over several runs: pauses, restarts, health, other files, and supervisors that come and go; with a fake jailer and
//! fake workers.

use super::*;
use crate::api::types::{EndKind, EventKind, OperationState};
use crate::serve::end::WorkerEnd;
use crate::serve::provide::Source;
use crate::serve::start;
use crate::serve::tasks;
use crate::serve::testing::{Act, Bench, FakeVm, OWNER, request, spec, terms};
use crate::spec::{Backoff, Health, OnFailure};
use jail_spec::HowEnded;
use jail_spec::Slot;
use netd_api::VmId;
use std::time::Duration;
use worker_api::exit;

/// A VM whose restart waits for nothing.
fn restarting(restart: Restart) -> VmSpec {
    VmSpec { restart, backoff: Some(Backoff { first_s: 0, ..Backoff::default() }), ..spec("a") }
}

/// A VM whose restart is far away.
pub(super) fn patient() -> VmSpec {
    VmSpec {
        backoff: Some(Backoff { first_s: 3600, max_s: 3600, ..Backoff::default() }),
        ..restarting(Restart::Always)
    }
}

async fn run(bench: &Bench, spec: VmSpec) -> (Arc<Vm>, FakeVm) {
    let vm = Vm::create(&bench.context, request(spec), terms()).unwrap().until_running().await.unwrap();
    (vm, bench.started().await)
}

pub(super) async fn until(vm: &Vm, state: VmState) {
    vm.watch().wait_for(|phase| phase.state == state).await.unwrap();
}

/// The fake worker answers the next request, which is this one.
pub(super) async fn answers(fake: &FakeVm, expected: worker_api::Request, reply: worker_api::Reply) {
    let fake = fake.copy();
    let asked = tokio::task::spawn_blocking(move || fake.answer(&reply)).await.unwrap();
    assert_eq!(asked, expected);
}

fn events(bench: &Bench) -> Vec<crate::api::types::Event> {
    bench.context.events.listen(None).now(1000).events
}

fn kinds(bench: &Bench) -> Vec<EventKind> {
    events(bench).into_iter().map(|event| event.kind).collect()
}

async fn until_event(bench: &Bench, kind: EventKind) {
    let mut place = bench.context.events.listen(None);
    while !place.now(1000).events.iter().any(|event| event.kind == kind) {
        assert!(place.more().await);
    }
}

fn handles(bench: &Bench) -> Vec<String> {
    let dir = std::fs::read_dir(bench.dir.path().join("handles")).unwrap();
    dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_vm_is_paused_until_it_is_resumed() {
    use worker_api::{Reply::Done, Request};
    let bench = Bench::new();
    let (vm, fake) = run(&bench, spec("a")).await;
    let (paused, ()) = tokio::join!(vm.pause(), answers(&fake, Request::Pause, Done));
    paused.unwrap();
    assert_eq!(vm.summary().state, VmState::Paused);
    // Done already is done, and asks the worker nothing.
    vm.pause().await.unwrap();
    let (resumed, ()) = tokio::join!(vm.resume(), answers(&fake, Request::Resume, Done));
    resumed.unwrap();
    assert_eq!(vm.summary().state, VmState::Running);
    vm.resume().await.unwrap();
    assert!(!fake.copy().asked());
    assert!(kinds(&bench).ends_with(&[EventKind::Paused, EventKind::Resumed]));
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    assert_eq!(vm.pause().await.unwrap_err().code, ErrorCode::Conflict);
}

#[tokio::test]
async fn a_worker_that_does_not_pause_leaves_its_vm_running() {
    let bench = Bench::curt();
    let (vm, fake) = run(&bench, spec("a")).await;
    let error = vm.pause().await.unwrap_err();
    assert!(error.message.contains("could not be paused: the worker does not answer"), "{error:?}");
    assert_eq!(vm.summary().state, VmState::Running);
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
}

#[tokio::test]
async fn a_paused_guest_is_resumed_to_hear_its_power_button() {
    use worker_api::{Reply::Done, Request};
    let bench = Bench::new();
    let (vm, fake) = run(&bench, spec("a")).await;
    let (paused, ()) = tokio::join!(vm.pause(), answers(&fake, Request::Pause, Done));
    paused.unwrap();
    vm.ask(Ask::Stop(Duration::from_secs(600))).await;
    answers(&fake, Request::PowerButton, Done).await;
    answers(&fake, Request::Resume, Done).await;
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    assert_eq!(vm.summary().end.unwrap().kind, EndKind::Shutdown);
}

#[tokio::test]
async fn a_vm_that_is_stopped_because_its_host_goes_down_comes_back_as_its_file_says() {
    for (policy, back) in [(Restart::Always, true), (Restart::OnFailure, true), (Restart::No, false)] {
        for ends in [exit::SHUTDOWN, exit::CRASH] {
            let bench = Bench::new();
            let (vm, fake) = run(&bench, restarting(policy)).await;
            vm.ask(Ask::StopForShutdown(Duration::from_secs(600))).await;
            answers(&fake, worker_api::Request::PowerButton, worker_api::Reply::Done).await;
            fake.exit(ends);
            vm.until_ended().await;
            bench.nothing_left().await;
            let intent = Intent::clone(&vm.intent());
            assert_eq!(intent.desired == Desired::Running, back, "{policy:?} {ends}");
            // Not by this supervisor.
            assert!(!kinds(&bench).contains(&EventKind::Restarting));
            let kind = vm.summary().end.unwrap().kind;
            assert_eq!(kind == EndKind::HostDown, back && ends == exit::SHUTDOWN, "{kind:?}");
            // But by the next one, or by its owner before that.
            let next = Bench::new();
            let vm = Vm::resting(&next.context, intent);
            if back {
                until(&vm, VmState::Running).await;
                assert_eq!(vm.summary().end.unwrap().kind, kind);
                next.started().await.exit(exit::SHUTDOWN);
            } else {
                assert_eq!(vm.summary().desired, Desired::Stopped);
            }
        }
    }
}

#[tokio::test]
async fn a_vm_that_its_owner_stops_while_the_host_goes_down_stays_stopped() {
    for then in [Ask::Stop(Duration::ZERO), Ask::Kill] {
        let bench = Bench::new();
        let (vm, fake) = run(&bench, restarting(Restart::Always)).await;
        vm.ask(Ask::StopForShutdown(Duration::from_secs(600))).await;
        answers(&fake, worker_api::Request::PowerButton, worker_api::Reply::Done).await;
        vm.ask(then).await;
        vm.until_ended().await;
        assert_eq!(vm.summary().desired, Desired::Stopped);
    }
}

#[tokio::test]
async fn a_vm_that_waits_for_its_restart_while_the_host_goes_down_waits_for_the_next_boot() {
    let bench = Bench::new();
    let (vm, fake) = run(&bench, patient()).await;
    fake.exit(exit::CRASH);
    until(&vm, VmState::Restarting).await;
    vm.ask(Ask::StopForShutdown(Duration::from_secs(600))).await;
    vm.until_ended().await;
    assert_eq!(vm.summary().desired, Desired::Running);
}

#[tokio::test]
async fn a_vm_that_crashes_is_started_again_and_one_that_ends_well_is_not() {
    let bench = Bench::new();
    let (vm, fake) = run(&bench, restarting(Restart::OnFailure)).await;
    let id = vm.summary().id;
    fake.exit(exit::CRASH);
    let fake = bench.started().await;
    until(&vm, VmState::Running).await;
    let summary = vm.summary();
    assert_eq!((summary.id, summary.restarts, summary.desired), (id, 1, Desired::Running));
    assert_eq!(summary.end.unwrap().kind, EndKind::GuestCrashed, "its last end is shown");
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    let summary = vm.summary();
    assert_eq!((summary.state, summary.desired, summary.restarts), (VmState::Stopped, Desired::Stopped, 1));
    use EventKind::*;
    assert_eq!(kinds(&bench), [Created, Starting, Started, Ended, Restarting, Starting, Started, Ended]);
    bench.nothing_left().await;
    // Its owner's next start counts anew.
    vm.start(&bench.context, &None).unwrap().until_running().await.unwrap();
    assert_eq!(vm.summary().restarts, 0);
}

#[tokio::test]
async fn a_guest_that_ends_before_its_start_is_told_is_told_to_have_started() {
    use EventKind::*;
    let bench = Bench::new();
    bench.acts(Act::Quick(exit::SHUTDOWN));
    let vm = Vm::create(&bench.context, request(spec("a")), terms()).unwrap().until_running().await.unwrap();
    vm.until_ended().await;
    assert_eq!(kinds(&bench), [Created, Starting, Started, Ended]);
}

#[tokio::test]
async fn a_vm_that_keeps_crashing_is_given_up() {
    let bench = Bench::new();
    let mut spec = restarting(Restart::Always);
    spec.backoff.as_mut().unwrap().attempts = Some(2);
    let (vm, fake) = run(&bench, spec).await;
    fake.exit(exit::RESET);
    bench.started().await.exit(exit::RESET);
    bench.started().await.exit(exit::RESET);
    vm.until_ended().await;
    let last = events(&bench).pop().unwrap();
    assert!(last.cause.contains("given up after 2 restarts"), "{last:?}");
    assert_eq!(vm.intent().ends.len(), 3);
}

#[tokio::test]
async fn a_restart_that_fails_is_an_end_of_its_own_and_tried_again() {
    let bench = Bench::new();
    let (vm, fake) = run(&bench, restarting(Restart::OnFailure)).await;
    bench.acts(Act::Die(77));
    fake.exit(exit::CRASH);
    vm.watch().wait_for(|phase| phase.intent.ends.len() > 2).await.unwrap();
    assert_eq!(vm.intent().ends[1].kind, EndKind::StartFailed);
    bench.acts(Act::Good);
    let fake = bench.started().await;
    vm.ask(Ask::Kill).await;
    vm.until_ended().await;
    drop(fake);
    assert_eq!(vm.summary().desired, Desired::Stopped);
    bench.nothing_left().await;
}

#[tokio::test]
async fn a_vm_that_waits_for_its_restart_rests_at_once_when_it_is_stopped() {
    let bench = Bench::new();
    for ask in [Ask::Stop(Duration::from_secs(600)), Ask::Kill] {
        let (vm, fake) = run(&bench, patient()).await;
        fake.exit(exit::CRASH);
        until(&vm, VmState::Restarting).await;
        assert_eq!(*bench.context.registry.living().borrow(), 0, "it holds no place meanwhile");
        vm.ask(ask).await;
        vm.until_ended().await;
        let summary = vm.summary();
        assert_eq!((summary.state, summary.desired), (VmState::Crashed, Desired::Stopped));
        vm.remove(&bench.context).await.unwrap();
        assert!(bench.context.registry.list().is_empty());
    }
}

#[tokio::test]
async fn who_waits_for_a_vm_waits_for_its_last_end_and_who_starts_it_waits_for_no_back_off() {
    let bench = Bench::new();
    let (vm, fake) = run(&bench, patient()).await;
    let run = vm.run();
    fake.exit(exit::CRASH);
    vm.until_run_over(run).await;
    until(&vm, VmState::Restarting).await;
    let waiter = tokio::spawn({
        let vm = vm.clone();
        async move { vm.until_ended().await }
    });
    vm.start(&bench.context, &None).unwrap().until_running().await.unwrap();
    assert!(!waiter.is_finished());
    let _fake = bench.started().await;
    vm.ask(Ask::Kill).await;
    waiter.await.unwrap();
    assert_eq!(vm.summary().end.unwrap().kind, EndKind::Killed);
}

#[tokio::test]
async fn a_vm_that_is_to_be_forgotten_is_not_one_that_is_started_again() {
    let bench = Bench::new();
    let request = CreateRequest { remove_when_ended: true, ..request(restarting(Restart::Always)) };
    let error = Vm::create(&bench.context, request, terms()).unwrap_err();
    assert_eq!((error.code, error.field.as_deref()), (ErrorCode::Invalid, Some("restart")));
    assert!(bench.context.registry.list().is_empty());
}

#[tokio::test]
async fn a_running_vm_has_a_handle_that_says_what_it_is() {
    let bench = Bench::new();
    let (vm, fake) = run(&bench, spec("a")).await;
    assert_eq!(handles(&bench), [format!("{}.json", vm.summary().id)]);
    let text = std::fs::read(bench.dir.path().join("handles").join(&handles(&bench)[0])).unwrap();
    let handle: crate::serve::handle::Handle = serde_json::from_slice(&text).unwrap();
    let worker = vm.info().worker.unwrap();
    assert_eq!((handle.pid, handle.start_time, handle.slot), (worker.pid, worker.start_time, worker.slot));
    assert_eq!((handle.intent.spec.name.as_str(), handle.intent.runs, handle.intent.over), ("a", 1, 0));
    fake.exit(exit::CRASH);
    vm.until_ended().await;
    assert!(handles(&bench).is_empty());
}

#[tokio::test]
async fn a_vm_whose_handle_cannot_be_written_does_not_start() {
    let bench = Bench::new();
    std::fs::remove_dir(bench.dir.path().join("handles")).unwrap();
    let error = Vm::create(&bench.context, request(spec("a")), terms()).unwrap().until_running().await.unwrap_err();
    assert!(error.message.contains("handle could not be written"), "{error:?}");
    bench.nothing_left().await;
    assert!(bench.context.registry.list().is_empty());
}

#[tokio::test]
async fn a_guest_that_writes_its_marker_is_healthy() {
    let bench = Bench::new();
    let health = Health { console: Some("login:".into()), ..Health::default() };
    let (vm, fake) = run(&bench, VmSpec { health: Some(health), ..spec("a") }).await;
    assert_eq!(vm.summary().health, Some(HealthState::Starting));
    fake.print(b"booting ... log");
    fake.print(b"in: ");
    vm.watch().wait_for(|phase| phase.health == Some(HealthState::Healthy)).await.unwrap();
    assert!(kinds(&bench).ends_with(&[EventKind::Healthy]));
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    assert_eq!(vm.summary().health, None);
}

#[tokio::test]
async fn a_guest_that_does_not_come_up_is_killed_and_started_again_where_its_file_says_so() {
    let bench = Bench::new();
    let health = Health { console: Some("up".into()), start_s: 0, on_failure: OnFailure::Kill, ..Health::default() };
    let (vm, fake) = run(&bench, VmSpec { health: Some(health), ..restarting(Restart::OnFailure) }).await;
    bench.context.tick.beat();
    let fresh = bench.started().await;
    drop(fake);
    let end = vm.summary().end.unwrap();
    assert_eq!(end.kind, EndKind::Unhealthy);
    assert!(end.reason.contains("did not write \"up\""), "{end:?}");
    fresh.print(b"up");
    vm.watch().wait_for(|phase| phase.health == Some(HealthState::Healthy)).await.unwrap();
    bench.context.tick.beat();
    fresh.exit(exit::SHUTDOWN);
    vm.until_ended().await;
}

#[tokio::test]
async fn a_worker_that_leaves_two_looks_without_an_answer_hangs_until_it_answers() {
    let bench = Bench::curt();
    let (vm, fake) = run(&bench, spec("a")).await;
    let mut phase = vm.watch();
    // The first look is over when its answer is.
    while !fake.copy().asked() {
        bench.context.tick.beat();
        tokio::task::yield_now().await;
    }
    while !matches!(phase.borrow_and_update().health, Some(HealthState::Hung(_))) {
        bench.context.tick.beat();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let other = fake.copy();
    let answering = tokio::task::spawn_blocking(move || {
        // One for the look whose request was taken without an answer; the rest as they come.
        other.send(&worker_api::Reply::Status(worker_api::Status::Running));
        while other.try_answer(&worker_api::Reply::Status(worker_api::Status::Running)) {}
    });
    while phase.borrow_and_update().health.is_some() {
        bench.context.tick.beat();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let seen = kinds(&bench);
    assert!(seen.contains(&EventKind::Hung) && seen.contains(&EventKind::Recovered), "{seen:?}");
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    answering.await.unwrap();
}

#[tokio::test]
async fn a_worker_that_was_stopped_by_a_signal_hangs_at_once() {
    let bench = Bench::new();
    let (vm, fake) = run(&bench, spec("a")).await;
    let slot = Slot(vm.info().worker.unwrap().slot);
    for (stopped, kind) in [(true, EventKind::Hung), (false, EventKind::Recovered)] {
        bench.says.send(&jail_spec::Reply::Stopped { slot, stopped }, &[]).unwrap();
        until_event(&bench, kind).await;
        vm.watch().wait_for(|phase| phase.health.is_some() == stopped).await.unwrap();
    }
    vm.ask(Ask::Kill).await;
    vm.until_ended().await;
    drop(fake);
}

fn update(spec: VmSpec) -> crate::api::types::UpdateRequest {
    crate::api::types::UpdateRequest { spec, source: None, if_generation: None, deadline_s: 600, files: None }
}

async fn updated(bench: &Bench, vm: &Arc<Vm>, spec: VmSpec) -> Result<crate::api::types::UpdateDone, ApiError> {
    let op = tasks::begin(&bench.context, crate::api::types::OperationKind::Update, "a", 1000);
    tasks::update(&bench.context, &Hold::new(&bench.context, vm.clone()), update(spec), None, &None, op).await
}

#[tokio::test]
async fn another_file_takes_what_it_takes_and_no_more() {
    use crate::api::types::UpdateDone;
    let bench = Bench::new();
    let (vm, fake) = run(&bench, spec("a")).await;
    let before = vm.summary();
    assert_eq!(updated(&bench, &vm, spec("a")).await.unwrap(), UpdateDone::Nothing);
    assert_eq!(vm.summary(), before);
    // In place: the same worker goes on.
    assert_eq!(updated(&bench, &vm, patient()).await.unwrap(), UpdateDone::InPlace);
    let now = vm.summary();
    assert_eq!((now.generation, now.pid, &now.spec_hash), (2, before.pid, &hash::of(&patient())));
    let limited = VmSpec {
        limits: Some(serde_json::from_str(r#"{"pids_max":64,"enforce":"best-effort"}"#).unwrap()),
        ..patient()
    };
    assert_eq!(updated(&bench, &vm, limited).await.unwrap(), UpdateDone::InPlace);
    // What the guest sees takes a stop and a start.
    let other = VmSpec { cpus: 2, ..spec("a") };
    let (done, fake) = tokio::join!(updated(&bench, &vm, other.clone()), async {
        answers(&fake, worker_api::Request::PowerButton, worker_api::Reply::Done).await;
        fake.exit(exit::SHUTDOWN);
        bench.started().await
    });
    assert_eq!((done.unwrap(), fake.spec.cpus), (UpdateDone::Restarted, 2));
    assert_eq!((vm.summary().generation, vm.summary().state), (4, VmState::Running));
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    assert_eq!(updated(&bench, &vm, spec("a")).await.unwrap(), UpdateDone::Stored);
    assert_eq!((vm.summary().generation, vm.summary().state), (5, VmState::Stopped));
}

#[tokio::test]
async fn a_vm_that_somebody_else_changed_meanwhile_stays_as_it_is() {
    let bench = Bench::new();
    let (vm, fake) = run(&bench, spec("a")).await;
    let hold = Hold::new(&bench.context, vm.clone());
    let op = tasks::begin(&bench.context, crate::api::types::OperationKind::Update, "a", 1000);
    let request = crate::api::types::UpdateRequest { if_generation: Some(7), ..update(patient()) };
    let error = tasks::update(&bench.context, &hold, request, None, &None, op).await.unwrap_err();
    assert_eq!((error.code, vm.summary().generation), (ErrorCode::Conflict, 1));
    // Nor does a decision that was made for another one.
    assert_eq!(vm.change(patient(), None, 7, true, None).await.unwrap_err().code, ErrorCode::Conflict);
    assert_eq!(
        vm.change(VmSpec { cpus: 2, ..spec("a") }, None, 1, false, None).await.unwrap_err().code,
        ErrorCode::Conflict
    );
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
}

#[tokio::test]
async fn a_create_that_is_cancelled_leaves_nothing_at_any_moment() {
    let bench = Bench::new();
    for n in 0..6 {
        bench.acts(Act::Silent);
        let op = tasks::begin(&bench.context, crate::api::types::OperationKind::Create, "a", 1000);
        let id = op.id();
        let context = bench.context.clone();
        let task = tokio::spawn(async move { tasks::create(&context, request(spec("a")), terms(), op).await });
        for _ in 0..n * 3 {
            tokio::task::yield_now().await;
        }
        assert!(bench.context.operations.cancel(id));
        task.await.unwrap().unwrap_err();
        assert_eq!(bench.context.operations.get(id).unwrap().borrow().state, OperationState::Cancelled);
        bench.nothing_left().await;
        assert!(bench.context.registry.list().is_empty() && handles(&bench).is_empty());
    }
}

#[tokio::test]
async fn a_stop_that_is_cancelled_leaves_the_vm_running() {
    let bench = Bench::new();
    let (vm, fake) = run(&bench, spec("a")).await;
    let op = tasks::begin(&bench.context, crate::api::types::OperationKind::Stop, "a", 1000);
    let id = op.id();
    let hold = Hold::new(&bench.context, vm.clone());
    let task = tokio::spawn(async move { tasks::stop(&hold, Ask::Stop(Duration::from_secs(600)), op).await });
    until(&vm, VmState::Stopping).await;
    assert_eq!(vm.summary().desired, Desired::Stopped);
    assert!(bench.context.operations.cancel(id));
    assert_eq!(task.await.unwrap().unwrap_err().code, ErrorCode::Conflict);
    let summary = vm.summary();
    assert_eq!((summary.state, summary.desired), (VmState::Running, Desired::Running));
    assert_eq!(bench.context.operations.get(id).unwrap().borrow().state, OperationState::Cancelled);
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
}

pub(super) fn old(spec: VmSpec, desired: Desired, ends: &[EndKind]) -> Intent {
    let end = |kind: &EndKind| crate::api::types::End { kind: *kind, reason: "long ago".into(), at: 1 };
    Intent { desired, confirmed: true, ends: ends.iter().map(end).collect(), ..intent(0x77, 1000, &request(spec)) }
}

/// A worker that an earlier supervisor left.
pub(super) async fn found(bench: &Bench, spec: VmSpec, desired: Desired, paused: bool) -> (Found, FakeVm) {
    let prepared = start::prepare(&bench.context, VmId(0x77), OWNER.uid, &spec, Source::Paths).await.unwrap();
    let (control, _) = start::hand_over(&bench.context, prepared.parcel, prepared.held.worker).await.unwrap();
    let fake = bench.started().await;
    let found = Found {
        intent: old(spec, desired, &[]),
        held: prepared.held,
        control,
        paused,
        console: Some(prepared.console),
        nets: prepared.nets,
        unlimited: None,
        started_at: 1000,
        ran: Duration::from_secs(3600),
    };
    (found, fake)
}

#[tokio::test]
async fn a_vm_that_was_found_running_goes_on_as_it_was() {
    let bench = Bench::new();
    for (paused, state) in [(false, VmState::Running), (true, VmState::Paused)] {
        let (found, fake) = found(&bench, spec("a"), Desired::Running, paused).await;
        let vm = Vm::adopted(&bench.context, found);
        let summary = vm.summary();
        assert_eq!((summary.state, summary.started_at, summary.id.as_str()), (state, Some(1000), "0000000000000077"));
        assert!(summary.pid.is_some() && vm.console().is_ok());
        assert_eq!(bench.context.registry.find(OWNER, "a").unwrap().number(), 0x77);
        fake.exit(exit::SHUTDOWN);
        vm.until_ended().await;
        assert_eq!(vm.summary().end.unwrap().kind, EndKind::Shutdown);
        vm.remove(&bench.context).await.unwrap();
        bench.nothing_left().await;
    }
}

#[tokio::test]
async fn a_stop_that_an_earlier_supervisor_began_is_carried_on() {
    let bench = Bench::new();
    let (found, fake) = found(&bench, restarting(Restart::Always), Desired::Stopped, false).await;
    let vm = Vm::adopted(&bench.context, found);
    answers(&fake, worker_api::Request::PowerButton, worker_api::Reply::Done).await;
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    assert_eq!(vm.summary().restarts, 0, "nobody starts it again");
}

#[tokio::test]
async fn an_end_that_nobody_saw_is_recorded_and_the_policy_decides() {
    let bench = Bench::new();
    let told = |how| How::Told(WorkerEnd::new(how, "words"));
    for (how, kind, desired, again) in [
        (How::HostDown, EndKind::HostDown, Desired::Running, true),
        (How::HostDown, EndKind::HostDown, Desired::Stopped, false),
        (How::Unknown("who knows".into()), EndKind::Unknown, Desired::Running, true),
        (How::NotBelieved("it lied".into()), EndKind::WorkerCrashed, Desired::Running, true),
        (told(HowEnded::Exited(exit::SHUTDOWN)), EndKind::Shutdown, Desired::Running, false),
        (told(HowEnded::Killed(9)), EndKind::Killed, Desired::Stopped, false),
        (told(HowEnded::Killed(9)), EndKind::WorkerCrashed, Desired::Running, true),
    ] {
        let case = format!("{how:?} {desired:?}");
        let vm = Vm::ended_meanwhile(&bench.context, old(restarting(Restart::OnFailure), desired, &[]), how, None);
        if again {
            let fake = bench.started().await;
            until(&vm, VmState::Running).await;
            vm.ask(Ask::Kill).await;
            drop(fake);
        }
        vm.until_ended().await;
        let intent = vm.intent();
        assert_eq!((intent.ends[0].kind, intent.ends.len()), (kind, 1 + usize::from(again)), "{case}");
        assert_eq!(intent.desired, Desired::Stopped, "{case}");
        vm.remove(&bench.context).await.unwrap();
    }
}

#[tokio::test]
async fn a_back_off_that_an_earlier_supervisor_began_is_carried_on() {
    let bench = Bench::new();
    let crashed = [EndKind::GuestCrashed];
    for (spec, desired, ends, state) in [
        (patient(), Desired::Running, &crashed[..], VmState::Restarting),
        (patient(), Desired::Stopped, &crashed, VmState::Crashed),
        (spec("a"), Desired::Stopped, &crashed, VmState::Crashed),
        (patient(), Desired::Stopped, &[], VmState::Stopped),
    ] {
        let vm = Vm::resting(&bench.context, old(spec, desired, ends));
        assert_eq!(vm.summary().state, state);
        assert!(vm.console().unwrap_err().message.contains("no longer kept"));
        vm.remove(&bench.context).await.unwrap();
    }
    let vm = Vm::resting(&bench.context, old(restarting(Restart::OnFailure), Desired::Running, &crashed));
    bench.started().await.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    assert_eq!((vm.summary().restarts, vm.intent().ends.len()), (1, 2));
}
