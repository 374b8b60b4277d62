//! What an earlier supervisor did not live to see through: starts, and stops that were the first half of one.

use super::life_tests::{answers, found, old, patient, until};
use super::*;
use crate::api::types::{EndKind, UpdateRequest};
use crate::serve::end::WorkerEnd;
use crate::serve::tasks;
use crate::serve::testing::{Act, Bench, request, spec, terms};
use jail_spec::HowEnded;
use std::time::Duration;
use worker_api::{Reply::Done, Request::PowerButton, exit};

fn again(intent: Intent) -> Intent {
    Intent { again: true, ..intent }
}

#[tokio::test]
async fn a_vm_at_rest_that_is_to_run_is_started() {
    let bench = Bench::new();
    // Also one that its owner had killed, and then started.
    for (spec, ends) in [(spec("a"), &[EndKind::Shutdown][..]), (spec("a"), &[]), (patient(), &[EndKind::Killed])] {
        let vm = Vm::resting(&bench.context, old(spec, Desired::Running, ends));
        let fake = bench.started().await;
        until(&vm, VmState::Running).await;
        assert_eq!((vm.summary().desired, vm.intent().ends.len()), (Desired::Running, ends.len()));
        vm.ask(Ask::Kill).await;
        vm.until_ended().await;
        drop(fake);
        vm.remove(&bench.context).await.unwrap();
    }
}

#[tokio::test]
async fn a_start_that_supervisors_do_not_survive_comes_later_each_time() {
    let bench = Bench::new();
    let mut intent = old(spec("a"), Desired::Running, &[EndKind::Shutdown]);
    intent.restarts = 20;
    let vm = Vm::resting(&bench.context, intent.clone());
    assert_eq!(vm.summary().state, VmState::Restarting, "its back-off is not over");
    vm.ask(Ask::Kill).await;
    vm.until_ended().await;
    vm.remove(&bench.context).await.unwrap();
    intent.spec.backoff = Some(crate::spec::Backoff { attempts: Some(20), ..Default::default() });
    let vm = Vm::resting(&bench.context, intent);
    assert_eq!((vm.summary().state, vm.summary().desired), (VmState::Stopped, Desired::Stopped), "given up");
}

#[tokio::test]
async fn an_owed_start_that_fails_is_an_end_and_not_tried_again() {
    let bench = Bench::new();
    bench.acts(Act::Die(77));
    let vm = Vm::resting(&bench.context, old(spec("a"), Desired::Running, &[]));
    vm.watch().wait_for(|phase| !phase.intent.ends.is_empty()).await.unwrap();
    vm.until_ended().await;
    assert_eq!((vm.intent().ends[0].kind, vm.summary().desired), (EndKind::StartFailed, Desired::Stopped));
    bench.nothing_left().await;
}

#[tokio::test]
async fn a_vm_that_was_being_stopped_to_be_started_is_stopped_and_started() {
    let bench = Bench::new();
    let (mut found, fake) = found(&bench, spec("a"), Desired::Running, false).await;
    found.intent = again(found.intent);
    let vm = Vm::adopted(&bench.context, found);
    answers(&fake, PowerButton, Done).await;
    fake.exit(exit::SHUTDOWN);
    let fake = bench.started().await;
    until(&vm, VmState::Running).await;
    let intent = vm.intent();
    assert_eq!((intent.again, intent.desired, intent.ends.len()), (false, Desired::Running, 1));
    // Its next end is its own again.
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    assert_eq!(vm.summary().desired, Desired::Stopped);
    bench.nothing_left().await;
}

#[tokio::test]
async fn a_vm_that_ended_meanwhile_to_be_started_is_started_however_it_ended() {
    let bench = Bench::new();
    for (how, kind) in [(exit::SHUTDOWN, EndKind::Shutdown), (exit::CRASH, EndKind::GuestCrashed)] {
        let how = How::Told(WorkerEnd::new(HowEnded::Exited(how), ""));
        let vm = Vm::ended_meanwhile(&bench.context, again(old(spec("a"), Desired::Running, &[])), how, None);
        let fake = bench.started().await;
        until(&vm, VmState::Running).await;
        assert_eq!((vm.intent().ends[0].kind, vm.intent().ends.len()), (kind, 1));
        vm.ask(Ask::Kill).await;
        vm.until_ended().await;
        drop(fake);
        assert_eq!(vm.summary().desired, Desired::Stopped);
        vm.remove(&bench.context).await.unwrap();
    }
}

/// All that the row says until the VM runs again, in the words of who would take over.
#[tokio::test]
async fn a_vm_is_to_run_all_the_while_that_an_update_stops_and_starts_it() {
    let bench = Bench::new();
    let vm = Vm::create(&bench.context, request(spec("a")), terms()).unwrap().until_running().await.unwrap();
    let fake = bench.started().await;
    let seen = tokio::spawn({
        let mut phase = vm.watch();
        async move {
            let mut seen = Vec::new();
            while !(phase.borrow().state == VmState::Running && phase.borrow().intent.generation == 2) {
                phase.changed().await.unwrap();
                let now = phase.borrow_and_update();
                seen.push((now.intent.desired, now.intent.again, now.intent.is_over(now.intent.runs)));
            }
            seen
        }
    });
    let hold = Hold::new(&bench.context, vm.clone());
    let op = tasks::begin(&bench.context, crate::api::types::OperationKind::Update, "a", 1000);
    let other = VmSpec { memory_mib: 40, ..spec("a") };
    let update = UpdateRequest { spec: other, source: None, if_generation: None, deadline_s: 600, files: None };
    let context = bench.context.clone();
    let task = tokio::spawn(async move { tasks::update(&context, &hold, update, None, &None, op).await });
    answers(&fake, PowerButton, Done).await;
    fake.exit(exit::SHUTDOWN);
    let fake = bench.started().await;
    task.await.unwrap().unwrap();
    for (desired, again, over) in seen.await.unwrap() {
        assert_eq!(desired, Desired::Running);
        assert!(!(again && over), "what comes after an end is said by `desired` alone");
    }
    assert_eq!((vm.summary().memory_mib, vm.intent().again), (40, false));
    drop(fake);
}

#[tokio::test]
async fn an_owner_who_stops_a_vm_in_the_middle_of_that_has_the_last_word() {
    let bench = Bench::new();
    let (mut found, fake) = found(&bench, spec("a"), Desired::Running, false).await;
    found.intent = again(found.intent);
    let vm = Vm::adopted(&bench.context, found);
    answers(&fake, PowerButton, Done).await;
    vm.ask(Ask::Stop(Duration::from_secs(600))).await;
    // What is asked later is answered later.
    vm.pause().await.unwrap_err();
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
    assert_eq!((vm.summary().desired, vm.intent().again), (Desired::Stopped, false));
    bench.nothing_left().await;
}
