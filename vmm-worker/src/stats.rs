//! What a VM did so far, for people. Written by the threads that do it, read by the control thread; each number is right by
//! itself, and nothing is decided by them.

use crate::devices::virtio::{block, net};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use worker_api::{Stats, VcpuCounters};

/// One number, which only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more.
    pub fn one(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many it is.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a vCPU left the guest; what each means says [`VcpuCounters`]. Two cache lines of its own (processors fetch them in
/// pairs): no vCPU waits for another one's counting.
#[derive(Debug, Default)]
#[repr(align(128))]
#[allow(missing_docs)]
pub struct Exits {
    pub pio: Count,
    pub mmio: Count,
    pub interrupted: Count,
    pub other: Count,
}

impl Exits {
    fn snapshot(&self) -> VcpuCounters {
        VcpuCounters {
            pio: self.pio.now(),
            mmio: self.mmio.now(),
            interrupted: self.interrupted.now(),
            other: self.other.now(),
        }
    }
}

/// All that counts in one VM.
#[derive(Debug)]
pub struct Meters {
    /// One for each vCPU.
    pub vcpus: Arc<[Exits]>,
    /// One for each disk.
    pub disks: Vec<Arc<block::counters::Counters>>,
    /// One for each network interface.
    pub nets: Vec<Arc<net::counters::Counters>>,
}

impl Meters {
    /// All of them, each as it is when it is read.
    pub fn read(&self) -> Stats {
        Stats {
            vcpus: self.vcpus.iter().map(Exits::snapshot).collect(),
            disks: self.disks.iter().map(|disk| disk.snapshot()).collect(),
            nets: self.nets.iter().map(|net| net.snapshot()).collect(),
        }
    }
}
