//! What the jailer does to a worker from outside: limits when it is handed over, the end, the reaping.

use crate::places::{Order, Place};
use jail_spec::{HowEnded, Refusal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions};

/// What a worker without a VM is called (`vmm-worker/src/main.rs`).
const EMPTY: &str = "vmsup-warm";

/// Lowers the limits that depend on the VM; hard limits can only go down.
pub(crate) fn limit_resources(pid: i32, order: &Order) -> Result<(), Refusal> {
    let target = Pid::from_raw(pid);
    for (resource, name, value) in [
        (Resource::Fsize, "limit-fsize", order.rlimits.fsize),
        (Resource::As, "limit-as", order.rlimits.address_space),
        (Resource::Nproc, "limit-nproc", u64::from(order.rlimits.nproc)),
        (Resource::Memlock, "limit-memlock", order.rlimits.memlock),
    ] {
        let limit = Rlimit { current: Some(value), maximum: Some(value) };
        rustix::process::prlimit(target, resource, limit)
            .map_err(|e| Refusal::Step { step: name.into(), errno: e.raw_os_error() })?;
    }
    Ok(())
}

/// How the worker ended, reaping it; `None` while it lives. Of an orphan only the end itself can be seen: somebody else
/// reaps it.
pub(crate) fn reap(place: &Place) -> Option<HowEnded> {
    if place.orphan {
        return readable(&place.pidfd).then_some(HowEnded::Unknown);
    }
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = rustix::process::waitid(WaitId::PidFd(place.pidfd.as_fd()), options).ok()??;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(HowEnded::Exited(code)),
        (None, Some(signal)) => Some(HowEnded::Killed(signal)),
        (None, None) => None,
    }
}

/// Whether the worker was stopped by a signal, or goes on, since this was asked last; `None` where neither.
pub(crate) fn stopped(place: &Place) -> Option<bool> {
    let options = WaitIdOptions::STOPPED | WaitIdOptions::CONTINUED | WaitIdOptions::NOHANG;
    let status = rustix::process::waitid(WaitId::PidFd(place.pidfd.as_fd()), options).ok()??;
    if status.stopped() { Some(true) } else { status.continued().then_some(false) }
}

/// True where a pidfd's process has ended.
fn readable(pidfd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)), Ok(1))
}

pub(crate) fn kill_and_reap(place: &Place) {
    let _ = rustix::process::pidfd_send_signal(&place.pidfd, Signal::KILL);
    let _ = rustix::process::waitid(WaitId::PidFd(place.pidfd.as_fd()), WaitIdOptions::EXITED);
}

/// Whether a child of this process, which is not reaped yet, has never been told which VM it is: a worker goes by another name
/// from then on. One that has ended keeps its name, and one that a guest has taken over can only shorten its own life.
pub(crate) fn is_empty(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == EMPTY)
}

/// Field 22 of `/proc/PID/stat` (proc(5)); 0 where it cannot be read.
pub(crate) fn start_time(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command's name, field 2, may hold spaces and parentheses: count from the last one.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_ascii_whitespace().nth(19).and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_of_a_process_is_read() {
        let own = std::process::id() as i32;
        assert!(start_time(own) > 0);
        assert_eq!(start_time(own), start_time(own));
        assert_eq!(start_time(-1), 0);
    }
}
