//! Collecting from workers that answer, that do not, and that lie.

use super::*;
use crate::api::types::{InterfaceStats, VmStats};
use crate::serve::testing::netd::NetAct;
use crate::serve::testing::{Bench, FakeVm, request, spec, spec_in, terms};
use worker_api::{NetCounters, Reply, Stats, VcpuCounters};

async fn running(bench: &Bench, name: &str) -> (Arc<Vm>, FakeVm) {
    let vm = Vm::create(&bench.context, request(spec(name)), terms()).unwrap().until_running().await.unwrap();
    (vm, bench.started().await)
}

/// Collects while a worker gives `reply`.
async fn while_it_says(bench: &Bench, vm: &Arc<Vm>, fake: &FakeVm, reply: Reply) -> VmStats {
    let worker = fake.copy();
    let answering = tokio::task::spawn_blocking(move || worker.answer(&reply));
    let mut samples = collect(&bench.context, vec![vm.clone()]).await;
    assert_eq!(answering.await.unwrap(), worker_api::Request::Stats);
    samples.remove(0).1
}

#[tokio::test]
async fn what_a_worker_counted_is_told_beside_what_it_is() {
    let bench = Bench::new();
    let (vm, fake) = running(&bench, "web").await;
    let vcpus = vec![VcpuCounters { pio: 7, ..Default::default() }];
    let stats = while_it_says(&bench, &vm, &fake, Reply::Stats(Box::new(Stats { vcpus, ..Default::default() }))).await;
    assert_eq!((stats.name.as_str(), stats.owner, stats.unanswered), ("web", 1000, None));
    assert_eq!(stats.guest.unwrap().vcpus[0].pio, 7);
    // The double's worker has this process' pid and another start time: it is not the worker.
    assert_eq!(stats.process, None);
    fake.exit(0);
}

#[tokio::test]
async fn a_worker_that_speaks_of_devices_that_it_does_not_have_is_not_believed() {
    let bench = Bench::new();
    let (vm, fake) = running(&bench, "web").await;
    for stats in [
        Stats { nets: vec![NetCounters::default()], ..Default::default() },
        Stats { vcpus: vec![VcpuCounters::default(); 2], ..Default::default() },
        Stats { disks: vec![Default::default()], ..Default::default() },
    ] {
        let told = while_it_says(&bench, &vm, &fake, Reply::Stats(Box::new(stats))).await;
        assert_eq!(told.guest, None);
        assert!(told.unanswered.unwrap().contains("where it has 1, 0 and 0"));
    }
    let told = while_it_says(&bench, &vm, &fake, Reply::Done).await;
    assert!(told.guest.is_none() && told.unanswered.is_some());
    fake.exit(0);
}

#[tokio::test]
async fn a_worker_that_does_not_answer_is_left_out_and_counted_and_the_others_are_told() {
    let bench = Bench::curt();
    let (silent, silents) = running(&bench, "silent").await;
    let (good, goods) = running(&bench, "good").await;
    let worker = goods.copy();
    let answering = tokio::task::spawn_blocking(move || worker.answer(&Reply::Stats(Box::default())));
    let text = exposition(&bench.context, vec![silent, good], true).await;
    answering.await.unwrap();
    assert!(text.contains("\nvmsup_worker_unanswered 1\n"), "{text}");
    assert!(text.contains("vmsup_vm_vcpus{vm=\"silent\""), "{text}");
    silents.exit(0);
    goods.exit(0);
}

#[tokio::test]
async fn a_vm_that_has_ended_is_asked_nothing_and_the_supervisor_is_told() {
    let bench = Bench::new();
    let (vm, fake) = running(&bench, "web").await;
    fake.exit(0);
    vm.until_ended().await;
    bench.context.metrics.started();
    bench.context.metrics.ended(EndKind::Unhealthy);
    let text = exposition(&bench.context, vec![vm], true).await;
    for line in [
        "vmsup_vms{state=\"stopped\"} 1",
        "vmsup_worker_unanswered 0",
        "vmsup_jailer_up 1",
        "vmsup_vms_ended_total{kind=\"unhealthy\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
    assert!(text.contains("vmsup_supervisor_resident_bytes "), "{text}");
    bench.kill_jailer();
    let _ = bench.context.jail.alive().wait_for(|alive| !alive).await;
    assert!(exposition(&bench.context, Vec::new(), true).await.contains("\nvmsup_jailer_up 0\n"));
}

#[tokio::test]
async fn a_worker_that_stood_still_for_many_questions_is_told_of_again_when_it_goes_on() {
    let bench = Bench::curt();
    let (vm, fake) = running(&bench, "web").await;
    let mut asked = 0;
    loop {
        let samples = collect(&bench.context, vec![vm.clone()]).await;
        assert!(samples[0].1.unanswered.is_some());
        if !fake.copy().asked() {
            break;
        }
        asked += 1;
        assert!(asked < 100, "it is not asked for ever");
    }
    // It answers all that it was asked, and what it is asked from now on.
    let worker = fake.copy();
    (0..asked).for_each(|_| worker.send(&Reply::Stats(Box::default())));
    std::thread::spawn(move || while worker.try_answer(&Reply::Stats(Box::default())) {});
    let mut told = false;
    // On a busy host an answer may still come too late.
    for _ in 0..100 {
        told = told || collect(&bench.context, vec![vm.clone()]).await[0].1.guest.is_some();
    }
    assert!(told);
    fake.exit(0);
}

#[tokio::test]
async fn what_the_kernel_counted_on_interfaces_is_told_whatever_the_worker_says() {
    let bench = Bench::new();
    let netd = bench.netd();
    let (spec_of, stats) = (|name| spec_in(name, &["blue", "green"]), |nets| Stats { nets, ..Default::default() });
    let vm = Vm::create(&bench.context, request(spec_of("web")), terms()).unwrap().until_running().await.unwrap();
    let fake = bench.started().await;
    // It speaks of one of two.
    let lie = stats(vec![NetCounters::default()]);
    let told = while_it_says(&bench, &vm, &fake, Reply::Stats(Box::new(lie))).await;
    assert!(told.guest.is_none() && told.unanswered.is_some());
    let interfaces = told.interfaces.unwrap();
    let shown = |i: &InterfaceStats| (i.network.clone(), i.interface.clone(), i.sent_packets, i.received_packets);
    let two = [("blue".to_owned(), "vt1".to_owned(), 1, 2), ("green".to_owned(), "vt2".to_owned(), 2, 4)];
    assert_eq!(interfaces.iter().map(shown).collect::<Vec<_>>(), two);
    // netd that does not answer, or what cannot be, is left out, and costs nothing else.
    let page = |_: &netd_api::Request| netd_api::Reply::Traffic(vec![traffic(2), traffic(1)]);
    for act in [NetAct::HangUp, NetAct::OldRelease, NetAct::Invent(page)] {
        netd.acts(act);
        let good = stats(vec![NetCounters::default(); 2]);
        let told = while_it_says(&bench, &vm, &fake, Reply::Stats(Box::new(good))).await;
        assert_eq!((told.interfaces, told.guest.unwrap().nets.len()), (None, 2));
    }
    netd.acts(NetAct::Good);
    fake.exit(0);
}

fn traffic(id: u64) -> netd_api::Traffic {
    netd_api::Traffic { id: netd_api::LeaseId(id), sent: Default::default(), received: Default::default() }
}
