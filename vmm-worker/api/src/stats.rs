//! What a worker counts. All of it comes from a process that may be compromised: allegations, shown to people, never acted on.

use crate::NetCounters;
use serde::{Deserialize, Serialize};

/// Upper bounds of the latency buckets, µs, inclusive; what took longer is in the last bucket.
pub const LATENCY_BUCKET_US: [u64; 11] = [20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 100_000, 1_000_000];
/// How many buckets there are: one for each bound, and one for all that took longer.
pub const LATENCY_BUCKETS: usize = LATENCY_BUCKET_US.len() + 1;

/// What a VM did so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// One for each vCPU, in order; at most [`crate::CPUS_MAX`].
    pub vcpus: Vec<VcpuCounters>,
    /// One for each disk, in order; at most [`crate::DISKS_MAX`].
    pub disks: Vec<DiskCounters>,
    /// One for each network interface, in order; at most [`crate::NETS_MAX`].
    pub nets: Vec<NetCounters>,
}

/// Why a vCPU left the guest, how often.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuCounters {
    /// Reads and writes of I/O ports that a device here answered.
    pub pio: u64,
    /// Reads and writes of memory that a device here answered.
    pub mmio: u64,
    /// A signal, or nothing to do for us.
    pub interrupted: u64,
    /// Everything else.
    pub other: u64,
}

/// What a disk did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCounters {
    /// Requests to read that were carried out.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Requests to write that were carried out.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Requests to flush that were carried out.
    pub flushes: u64,
    /// Requests that failed, or made no sense.
    pub errors: u64,
    /// From a request's arrival to its completion: reads.
    pub read_latency: Latency,
    /// The same: writes.
    pub write_latency: Latency,
    /// The same: flushes.
    pub flush_latency: Latency,
}

/// A histogram of durations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// How many were no longer than [`LATENCY_BUCKET_US`] of the same index (and longer than the one before).
    pub buckets: [u64; LATENCY_BUCKETS],
    /// Sum of all durations, µs.
    pub sum_us: u64,
}

impl Stats {
    /// Checks what the types do not hold.
    ///
    /// # Errors
    /// One sentence without a final full stop.
    pub fn check(&self) -> Result<(), String> {
        let (vcpus, disks, nets) = (self.vcpus.len(), self.disks.len(), self.nets.len());
        if vcpus > usize::from(crate::CPUS_MAX) || disks > crate::DISKS_MAX || nets > crate::NETS_MAX {
            return Err(format!("counters of {vcpus} vCPUs, {disks} disks and {nets} interfaces"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_counters_fit_a_reply() {
        let latency = Latency { buckets: [u64::MAX; LATENCY_BUCKETS], sum_us: u64::MAX };
        let disk = DiskCounters {
            reads: u64::MAX,
            read_bytes: u64::MAX,
            writes: u64::MAX,
            written_bytes: u64::MAX,
            flushes: u64::MAX,
            errors: u64::MAX,
            read_latency: latency,
            write_latency: latency,
            flush_latency: latency,
        };
        let vcpu = VcpuCounters { pio: u64::MAX, mmio: u64::MAX, interrupted: u64::MAX, other: u64::MAX };
        let net = NetCounters {
            received_packets: u64::MAX,
            received_bytes: u64::MAX,
            sent_packets: u64::MAX,
            sent_bytes: u64::MAX,
            dhcp_answers: u64::MAX,
            dropped_length: u64::MAX,
            dropped_header: u64::MAX,
            dropped_tap: u64::MAX,
            dropped_dhcp: u64::MAX,
            dropped_buffer: u64::MAX,
            dropped_offload: u64::MAX,
        };
        let stats = Stats {
            vcpus: vec![vcpu; usize::from(crate::CPUS_MAX)],
            disks: vec![disk; crate::DISKS_MAX],
            nets: vec![net; crate::NETS_MAX],
        };
        assert_eq!(stats.check(), Ok(()));
        let reply = crate::Reply::Stats(Box::new(stats.clone()));
        ipc::codec::encode(&reply, <crate::Reply as ipc::Message>::MAX_BYTES).unwrap();
        let more = Stats { disks: vec![DiskCounters::default(); crate::DISKS_MAX + 1], ..stats };
        assert!(more.check().is_err());
    }
}
