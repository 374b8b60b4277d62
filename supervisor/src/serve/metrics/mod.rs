//! What VMs use and do, and how the supervisor itself is: told to who asks, and read only then. Where nobody asks, nothing
//! here runs.
//!
//! ```text
//! GET /v1/stats, /v1/vms/{vm}/stats ──┐                  ┌── worker: Ask::Stats, with a deadline   (allegations)
//!                                     ├── [`collect`] ───┤
//! GET /metrics ── [`exposition`] ─────┘                  └── /proc/PID, its cgroup's leaf          ([`proc`], [`cgroup`])
//!                     └── [`text`], a table of names in [`family`]
//! ```
//!
//! A worker that hangs holds up one answer, by its deadline, and no other worker; the files are read on a thread of their own.

pub mod cgroup;
mod collect;
pub mod family;
mod proc;
mod text;

pub use collect::collect;

use super::Context;
use super::vm::Vm;
use crate::api::types::{EndKind, OperationState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Semaphore;

/// How many answers may be reading files at a time; the next ones wait.
const READERS: usize = 1;

/// The kinds of ends, as the label `kind` has them.
const ENDS: [(EndKind, &str); 9] = [
    (EndKind::Shutdown, "shutdown"),
    (EndKind::Reset, "reset"),
    (EndKind::Killed, "killed"),
    (EndKind::GuestCrashed, "guest_crashed"),
    (EndKind::WorkerCrashed, "worker_crashed"),
    (EndKind::Unhealthy, "unhealthy"),
    (EndKind::HostDown, "host_down"),
    (EndKind::StartFailed, "start_failed"),
    (EndKind::Unknown, "unknown"),
];

/// What this supervisor counted since it began.
#[derive(Debug)]
pub struct Metrics {
    starts: AtomicU64,
    /// In the order of [`ENDS`].
    ends: [AtomicU64; ENDS.len()],
    readers: Arc<Semaphore>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics { starts: AtomicU64::new(0), ends: Default::default(), readers: Arc::new(Semaphore::new(READERS)) }
    }
}

impl Metrics {
    /// A VM's vCPUs began to run.
    pub fn started(&self) {
        self.starts.fetch_add(1, Ordering::Relaxed);
    }

    /// A VM ended.
    pub fn ended(&self, kind: EndKind) {
        if let Some(at) = ENDS.iter().position(|(of, _)| *of == kind) {
            self.ends[at].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What is told of the supervisor itself.
#[derive(Debug, Clone, Default)]
struct Own {
    starts: u64,
    /// By the names of [`ENDS`].
    ends: Vec<(&'static str, u64)>,
    operations: u64,
    operations_running: u64,
    events: u64,
    state_trouble: bool,
    jailer_up: bool,
    /// Processor time, µs, and memory, bytes, where the kernel shows them.
    process: Option<(u64, u64)>,
}

/// These VMs, and this supervisor where `own` is wanted, in Prometheus' text format.
pub async fn exposition(context: &Arc<Context>, vms: Vec<Arc<Vm>>, own: bool) -> String {
    let samples = collect(context, vms).await;
    if !own {
        return text::render(None, &samples);
    }
    let process = tokio::task::spawn_blocking(proc::own).await.ok().flatten();
    let all = context.operations.list();
    let metrics = &context.metrics;
    let own = Own {
        starts: metrics.starts.load(Ordering::Relaxed),
        ends: ENDS.iter().zip(&metrics.ends).map(|((_, name), n)| (*name, n.load(Ordering::Relaxed))).collect(),
        operations: all.iter().map(|operation| operation.id).max().unwrap_or(0),
        operations_running: all.iter().filter(|operation| operation.state == OperationState::Running).count() as u64,
        events: context.events.count(),
        state_trouble: context.store.trouble().is_some(),
        jailer_up: *context.jail.alive().borrow(),
        process,
    };
    text::render(Some(&own), &samples)
}

#[cfg(test)]
mod tests;
