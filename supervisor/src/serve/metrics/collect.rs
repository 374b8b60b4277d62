//! Reading what VMs use and did: of each worker from itself and from the kernel, of all at the same time.

use super::super::vm::{Ask, Vm};
use super::super::{Context, nets};
use super::proc::{self, Which};
use crate::api::types::{
    CgroupStats, DiskStats, GuestStats, HealthState, InterfaceStats, LatencyStats, ProcessStats, VcpuExits, VmInfo,
    VmNet, VmState, VmStats, VmSummary,
};
use netd_api::Traffic;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use worker_api::{LATENCY_BUCKET_US, Latency, Stats};

/// What the kernel shows of one worker.
type Looked = Option<(ProcessStats, Option<CgroupStats>)>;

/// A VM, and what was read of it. There is one for each VM, in their order.
pub type Sample = (VmSummary, VmStats);

/// Reads all of these VMs. Who gives up waiting for it stops it.
pub async fn collect(context: &Arc<Context>, vms: Vec<Arc<Vm>>) -> Vec<Sample> {
    let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let infos: Vec<VmInfo> = vms.iter().map(|vm| vm.info()).collect();
    let deadline = context.deadlines.stats;
    let mut asking = JoinSet::new();
    let mut counted: Vec<Option<Result<GuestStats, String>>> = vec![None; vms.len()];
    for (n, (vm, info)) in vms.into_iter().zip(&infos).enumerate() {
        match &info.summary.health {
            _ if !has_guest(info) => {}
            Some(HealthState::Hung(why)) => counted[n] = Some(Err(why.clone())),
            _ => drop(asking.spawn(async move { (n, ask(&vm, deadline).await) })),
        }
    }
    let looking = tokio::time::timeout(deadline, look(&infos, context.metrics.readers.clone()));
    let (looked, interfaces, ()) = tokio::join!(looking, interfaces(context, &infos), async {
        while let Some(answer) = asking.join_next().await {
            if let Ok((n, answer)) = answer {
                counted[n] = Some(answer.and_then(|stats| guest(&infos[n], &stats)));
            }
        }
    });
    let looked = looked.unwrap_or_default();
    let told = looked.into_iter().chain(std::iter::repeat_with(|| None)).zip(counted);
    let sample = |(info, (looked, counted)): (VmInfo, _)| {
        let interfaces = interfaces.as_ref().map(|counted| interfaces_of(&info, counted));
        let interfaces = interfaces.filter(|all| !all.is_empty());
        sample(info, at_ms, interfaces, looked, counted)
    };
    infos.into_iter().zip(told).map(sample).collect()
}

/// What netd has of the interfaces of all leases, by lease; none where no VM has one, or where netd does not say.
async fn interfaces(context: &Context, infos: &[VmInfo]) -> Option<HashMap<u64, Traffic>> {
    if infos.iter().all(|info| info.summary.nets.is_empty() || !has_guest(info)) {
        return None;
    }
    let counted = tokio::time::timeout(context.deadlines.stats, context.netd.traffic()).await.ok()?;
    let counted =
        counted.inspect_err(|error| tracing::debug!(%error, "netd does not say what interfaces counted")).ok()?;
    Some(counted.into_iter().map(|traffic| (traffic.id.0, traffic)).collect())
}

fn interfaces_of(info: &VmInfo, counted: &HashMap<u64, Traffic>) -> Vec<InterfaceStats> {
    let of = |net: &VmNet| {
        let Traffic { sent, received, .. } = counted.get(&net.lease)?;
        Some(InterfaceStats {
            network: net.network.clone(),
            interface: net.interface.clone(),
            received_packets: received.packets,
            received_bytes: received.bytes,
            received_dropped: received.dropped,
            sent_packets: sent.packets,
            sent_bytes: sent.bytes,
            sent_dropped: sent.dropped,
        })
    };
    info.summary.nets.iter().filter(|_| has_guest(info)).filter_map(of).collect()
}

/// There is a worker, and it was given its VM.
fn has_guest(info: &VmInfo) -> bool {
    info.worker.is_some() && matches!(info.summary.state, VmState::Running | VmState::Paused | VmState::Stopping)
}

/// Looks at the processes, on a thread for files. A file system that hangs may hold all of those: who waits has a deadline.
fn look(infos: &[VmInfo], readers: Arc<Semaphore>) -> impl Future<Output = Vec<Looked>> + use<> {
    let which = |info: &VmInfo| {
        let worker = info.worker.as_ref()?;
        let (pid, start_time, slot) = (worker.pid, worker.start_time, worker.slot);
        Some(Which { pid, start_time, slot, cpus: info.summary.cpus })
    };
    let all: Vec<Option<Which>> = infos.iter().map(which).collect();
    async move {
        let Ok(turn) = readers.acquire_owned().await else { return Vec::new() };
        let looking = tokio::task::spawn_blocking(move || {
            // Until the last file is closed, whoever has given up waiting.
            let _turn = turn;
            let mount = all.iter().any(Option::is_some).then(proc::cgroup_mount).flatten();
            all.into_iter().map(|which| proc::look(which?, mount.as_deref())).collect()
        });
        looking.await.unwrap_or_default()
    }
}

/// Asks a worker what it counted.
async fn ask(vm: &Vm, deadline: Duration) -> Result<Stats, String> {
    let (sender, answer) = oneshot::channel();
    let asked = async {
        vm.ask(Ask::Stats(sender)).await;
        answer.await
    };
    // The actor has the same deadline for the worker; this one is for an actor that is busy.
    match tokio::time::timeout(deadline.saturating_mul(2), asked).await {
        Ok(Ok(counted)) => counted.map_err(|error| error.to_string()),
        Ok(Err(_)) => Err("it has just ended, or is about to".into()),
        Err(_) => Err("it does not answer".into()),
    }
}

/// What a worker counted, beside what is known of its devices. One that speaks of others than it has is not believed.
fn guest(info: &VmInfo, stats: &Stats) -> Result<GuestStats, String> {
    let (nets, cpus, disks) = (&info.summary.nets, usize::from(info.summary.cpus), info.spec.disks.len());
    if stats.nets.len() != nets.len() || stats.vcpus.len() > cpus || stats.disks.len() > disks {
        return Err(format!(
            "it speaks of {} vCPUs, {} disks and {} interfaces, where it has {cpus}, {disks} and {}",
            stats.vcpus.len(),
            stats.disks.len(),
            stats.nets.len(),
            nets.len()
        ));
    }
    let exits = |v: &worker_api::VcpuCounters| VcpuExits {
        pio: v.pio,
        mmio: v.mmio,
        interrupted: v.interrupted,
        other: v.other,
    };
    Ok(GuestStats {
        vcpus: stats.vcpus.iter().map(exits).collect(),
        disks: stats.disks.iter().map(disk).collect(),
        nets: nets.iter().zip(&stats.nets).map(|(net, counted)| nets::stats(net, counted)).collect(),
    })
}

fn disk(disk: &worker_api::DiskCounters) -> DiskStats {
    DiskStats {
        reads: disk.reads,
        read_bytes: disk.read_bytes,
        writes: disk.writes,
        written_bytes: disk.written_bytes,
        flushes: disk.flushes,
        errors: disk.errors,
        read_latency: latency(&disk.read_latency),
        write_latency: latency(&disk.write_latency),
        flush_latency: latency(&disk.flush_latency),
    }
}

fn latency(latency: &Latency) -> LatencyStats {
    LatencyStats { le_us: LATENCY_BUCKET_US.into(), counts: latency.buckets.into(), sum_us: latency.sum_us }
}

fn sample(
    info: VmInfo,
    at_ms: u64,
    interfaces: Option<Vec<InterfaceStats>>,
    looked: Looked,
    counted: Option<Result<GuestStats, String>>,
) -> Sample {
    let (process, cgroup) = looked.unzip();
    let (guest, unanswered) = match counted {
        Some(Ok(guest)) => (Some(guest), None),
        Some(Err(why)) => (None, Some(why)),
        None => (None, None),
    };
    let summary = info.summary;
    let stats = VmStats {
        name: summary.name.clone(),
        id: summary.id.clone(),
        owner: summary.owner,
        state: summary.state,
        at_ms,
        process,
        cgroup: cgroup.flatten(),
        guest,
        interfaces,
        unanswered,
    };
    (summary, stats)
}
