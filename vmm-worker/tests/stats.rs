//! What a worker counts is what its guest did.

mod common;

use common::{Peer, Vm, Worker, ask, guest, sealed_memfd};
use std::time::{Duration, Instant};
use worker_api::{DiskSpec, Engine, Latency, Reply, Request, Stats};

fn stats(peer: &Peer) -> Stats {
    let Reply::Stats(stats) = ask(peer, &Request::Stats) else { panic!("stats") };
    stats.check().unwrap();
    *stats
}

fn total(latency: &Latency) -> u64 {
    latency.buckets.iter().sum()
}

#[test]
fn every_request_to_a_disk_is_counted_once() {
    let worker = Worker::start();
    let mut vm = Vm::new(guest("requests"));
    vm.spec.cmdline = "reads=11 writes=7 flushes=3 bad=2".into();
    for serial in ["used", "unused"] {
        vm.spec.disks.push(DiskSpec { readonly: false, serial: serial.into(), engine: Engine::Threads });
        vm.fds.push(sealed_memfd(1 << 20));
    }
    let peer = worker.connect();
    vm.start_on(&peer).unwrap();
    vm.wait_for("requests done");
    let stats = stats(&peer);
    assert_eq!((stats.vcpus.len(), stats.disks.len(), stats.nets.len()), (1, 2, 0));
    let disk = stats.disks[0];
    assert_eq!((disk.reads, disk.read_bytes), (11, 11 * 512));
    assert_eq!((disk.writes, disk.written_bytes), (7, 7 * 1024));
    assert_eq!((disk.flushes, disk.errors), (3, 2));
    let latencies = [disk.read_latency, disk.write_latency, disk.flush_latency];
    assert_eq!(latencies.map(|latency| total(&latency)), [11, 7, 3]);
    // The sum is no less than the lower bounds of the buckets that the requests are in, and no time at all is not enough.
    for latency in latencies {
        let bounds = [0].into_iter().chain(worker_api::LATENCY_BUCKET_US);
        let least: u64 = bounds.zip(latency.buckets).map(|(bound, count)| bound * count).sum();
        assert!(latency.sum_us >= least && latency.sum_us > 0, "{latency:?}");
    }
    assert_eq!(stats.disks[1], worker_api::DiskCounters::default());
    assert!(stats.vcpus[0].mmio > 0 && stats.vcpus[0].pio > 0, "a driver, and a console: {stats:?}");
}

#[test]
fn each_vcpus_exits_are_its_own() {
    let worker = Worker::start();
    // The first one prints; the second one waits to be started, and is never.
    let mut vm = Vm::with(guest("counter"), 2, 64);
    vm.spec.cmdline = "cpus=1 exits=1".into();
    let peer = worker.connect();
    vm.start_on(&peer).unwrap();
    vm.wait_for("counter up");
    let (before, deadline) = (stats(&peer), Instant::now() + Duration::from_secs(60));
    while stats(&peer).vcpus[0].pio < before.vcpus[0].pio + 1000 {
        assert!(Instant::now() < deadline, "its port accesses are not counted: {:?}", stats(&peer));
    }
    let after = stats(&peer);
    assert_eq!((after.vcpus[1].pio, after.vcpus[1].mmio, after.vcpus[1].other), (0, 0, 0));
    // A pause is an exit for another reason, of both.
    assert_eq!(ask(&peer, &Request::Pause), Reply::Done);
    let paused = stats(&peer);
    assert!(paused.vcpus[1].interrupted > before.vcpus[1].interrupted, "{before:?}, then {paused:?}");
    assert_eq!(stats(&peer), paused, "a paused VM does nothing that is counted");
}
