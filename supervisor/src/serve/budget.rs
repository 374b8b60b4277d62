//! How many of each the limit on open files allows, shared out once at start.
//!
//! Running out of file descriptors in the middle of things would cost more than a refusal at the door: a reply of the
//! jailer whose pidfd finds no place is lost, and the channel with it. So everything that holds fds has a bound, and
//! the bounds together fit the limit.

use super::side::shares::connections as places;

/// The supervisor's own: stdio, locks, directories, the state and its log, KVM, reactor, jailer, signals, socket, built-in guests, the connection to
/// netd on which leases are released, the listener of metrics with its connections, those who are told that they may not, and the files that
/// one answer reads.
const FIXED: u64 = 53 + crate::api::listen::REFUSALS as u64;
/// A running VM: console ring, eventfd and input, pidfd, control socket.
const VM: u64 = 5;
/// A start under way: its files, memfds and both ends of what will be the worker's; the queues of its TAPs and the
/// connection to netd that brings them.
const START: u64 = 24 + TAPS + 1;
/// The most queues of all TAPs of one VM.
const TAPS: u64 = worker_api::NETS_MAX as u64 * worker_api::NET_QUEUES_MAX as u64;
/// A connection: its socket, and for a question to netd that one's, or for a console a copy that notices the hang-up and the
/// console of a VM that is forgotten.
const CONNECTION: u64 = 5;
/// A VM that has ended and is kept: its console.
const ENDED: u64 = 3;

/// How many of each there may be at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The limit that was shared out.
    pub nofile: u64,
    /// VMs that run or are about to.
    pub vms: usize,
    /// Starts under way; the next ones wait.
    pub starts: usize,
    /// Looks at guests' ports, each a socket; the next ones wait.
    pub looks: usize,
    /// Connections; the next ones wait in the socket's backlog.
    pub connections: usize,
    /// VMs that have ended and whose console is kept, and as many that are retired; the oldest go.
    pub kept: usize,
    /// Open files that users handed over, or hand over just now; the next ones wait. Of a shared supervisor only.
    pub files: usize,
}

impl Budget {
    /// VMs that may be taken over: a release that keeps more fds for other things still takes what an earlier one started.
    pub fn most(&self) -> usize {
        usize::try_from(self.nofile.saturating_sub(FIXED) / VM).unwrap_or(usize::MAX)
    }

    /// Of a process that may open `nofile` files.
    pub fn of(nofile: u64, shared: bool) -> Budget {
        let files = if shared { (nofile / 16).clamp(32, 2048) } else { 0 };
        let starts = (nofile / 320).clamp(2, 16);
        let connections = (nofile / 32).clamp(8, 1024);
        let looks = (nofile / 128).clamp(2, 256);
        let kept = (nofile / 36).clamp(4, 64);
        let rest = nofile.saturating_sub(
            FIXED
                + files
                + places(files as usize) as u64
                + looks
                + starts * START
                + connections * CONNECTION
                + 2 * kept * ENDED,
        );
        let vms = (rest / VM).min(u64::from(jail_spec::SLOTS_MAX));
        Budget {
            nofile,
            vms: vms as usize,
            starts: starts as usize,
            looks: looks as usize,
            connections: connections as usize,
            kept: kept as usize,
            files: files as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_out_fits_the_limit() {
        for nofile in (256..5000).chain([20_000, 65_536, 1 << 20, u64::MAX]) {
            // One that is shared needs more, for what its users hand over.
            for shared in [false, true].into_iter().filter(|shared| !shared || nofile >= 512) {
                let b = Budget::of(nofile, shared);
                let sum = FIXED
                    + (b.files + places(b.files)) as u64
                    + b.vms as u64 * VM
                    + b.looks as u64
                    + b.starts as u64 * START
                    + b.connections as u64 * CONNECTION
                    + 2 * b.kept as u64 * ENDED;
                assert!(sum <= nofile, "{b:?}: {sum}");
                assert!(b.vms > 0 && (b.files >= ipc::MAX_FDS) == shared, "{b:?}");
            }
        }
    }

    #[test]
    fn the_usual_limits_are_enough_for_many_vms() {
        assert!(Budget::of(1024, false).vms >= 100);
        assert_eq!(Budget::of(524_288, false).vms, jail_spec::SLOTS_MAX as usize);
        assert_eq!(Budget::of(20, false).vms, 0);
    }
}
