//! Counters and gauges of VMs as the API sends them. Counters only grow while a VM has the same worker; they begin at zero
//! with each start. What changes per second is for the reader to say, from two answers and their `at_ms`.

use super::{NetStats, VmState};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a VM uses and did: the answer to `GET /v1/vms/{vm}/stats`, an element of `GET /v1/stats`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmStats {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Uid of its owner.
    pub owner: u32,
    /// Where it is in its life.
    pub state: VmState,
    /// When this was read, milliseconds since 1970.
    pub at_ms: u64,
    /// Its worker as the kernel sees it; none while there is no worker, or where the kernel does not show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessStats>,
    /// Its worker's cgroup; none where workers have none of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<CgroupStats>,
    /// What its worker counted: the word of a process that is not trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestStats>,
    /// Its network interfaces as the host's kernel counted them, in the order of its file; none where netd does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interfaces: Option<Vec<InterfaceStats>>,
    /// Why a worker that is there told nothing: one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<String>,
}

/// A network interface as the host's kernel counted it, from its making on. Received is what went to the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InterfaceStats {
    /// Its network.
    pub network: String,
    /// Its name.
    pub interface: String,
    /// Packets that went to the guest.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Packets for the guest that the interface dropped: its worker did not take them in time.
    pub received_dropped: u64,
    /// Packets that came from the guest, those that the rules then dropped included.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets from the guest that the interface dropped.
    pub sent_dropped: u64,
}

/// A worker as `/proc` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessStats {
    /// Processor time in user mode, µs; without the guest's.
    pub user_us: u64,
    /// Processor time in the kernel, µs.
    pub system_us: u64,
    /// Processor time of the guest, µs, where the host's KVM tells it apart; else it is part of `user_us` or `system_us`.
    pub guest_us: u64,
    /// Threads.
    pub threads: u32,
    /// Guest memory that the worker has touched, bytes (RssShmem).
    pub guest_resident_bytes: u64,
    /// The worker's own memory, bytes (RssAnon and RssFile).
    pub own_resident_bytes: u64,
    /// One for each vCPU, in order.
    pub vcpus: Vec<VcpuTime>,
}

/// A vCPU's thread as the scheduler sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VcpuTime {
    /// Time on a processor, ns.
    pub run_ns: u64,
    /// Time ready to run without a processor to run on, ns: what the host, not the guest, took.
    pub steal_ns: u64,
}

/// The leaf of the cgroup tree that holds one worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CgroupStats {
    /// Processor time, µs (cpu.stat).
    pub cpu_us: u64,
    /// Periods of cpu.max that have passed.
    pub periods: u64,
    /// Those of them in which it was held back.
    pub throttled_periods: u64,
    /// For how long it was held back, µs.
    pub throttled_us: u64,
    /// Memory that is charged to it, bytes (memory.current).
    pub memory_bytes: u64,
    /// memory.events: how often it met each of its limits.
    pub memory_events: std::collections::BTreeMap<String, u64>,
    /// Threads (pids.current).
    pub pids: u64,
    /// *.pressure, where the kernel has it.
    pub pressure: Vec<Pressure>,
}

/// How long a cgroup's threads waited for a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pressure {
    /// `cpu`, `memory` or `io`.
    pub resource: String,
    /// Time in which at least one thread waited, µs.
    pub some_us: u64,
    /// Time in which all waited, µs.
    pub full_us: u64,
}

/// What a worker counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestStats {
    /// One for each vCPU, in order.
    pub vcpus: Vec<VcpuExits>,
    /// One for each disk, in the order of its file.
    pub disks: Vec<DiskStats>,
    /// One for each network interface, in the order of its file.
    pub nets: Vec<NetStats>,
}

/// How often a vCPU left the guest, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VcpuExits {
    /// I/O ports.
    pub pio: u64,
    /// Memory of devices.
    pub mmio: u64,
    /// A signal, or nothing to do.
    pub interrupted: u64,
    /// Everything else.
    pub other: u64,
}

impl VcpuExits {
    /// All of them, with their names.
    pub fn by_reason(&self) -> [(&'static str, u64); 4] {
        [("pio", self.pio), ("mmio", self.mmio), ("interrupted", self.interrupted), ("other", self.other)]
    }
}

/// What a disk did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskStats {
    /// Reads that were carried out.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Writes that were carried out.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Flushes that were carried out.
    pub flushes: u64,
    /// Requests that failed, or made no sense.
    pub errors: u64,
    /// How long reads took.
    pub read_latency: LatencyStats,
    /// How long writes took.
    pub write_latency: LatencyStats,
    /// How long flushes took.
    pub flush_latency: LatencyStats,
}

/// A histogram of durations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LatencyStats {
    /// Upper bounds of the buckets, µs, inclusive and rising.
    pub le_us: Vec<u64>,
    /// How many durations are in each bucket, and last those that were longer than every bound.
    pub counts: Vec<u64>,
    /// Sum of all durations, µs.
    pub sum_us: u64,
}
