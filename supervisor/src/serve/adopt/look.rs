//! What can be read before the supervisor is confined: handles, processes, sockets. What the jailer does not name and a handle
//! does is looked for here.

use super::judge::{Evidence, Living, Verdicts, judge};
use crate::serve::Host;
use crate::serve::handle::{self, Handle, Left};
use crate::serve::jail::{ListedWorker, Listing};
use crate::serve::state::Intent;
use crate::serve::worker;
use jail_spec::{Slot, Worker};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::os::fd::OwnedFd;

/// Judges by what can be read, before the supervisor is confined. What a handle names and the jailer does not is put into its
/// list where it can be reached, else ended.
pub fn look(host: &Host, new: bool, rows: Vec<Intent>, left: Left, listing: &mut Listing) -> Verdicts {
    let mut said = Vec::new();
    for handle in left.handles.iter().filter(|handle| handle.boot_id == host.boot_id) {
        said.extend(unlisted(&host.workers, handle, listing));
    }
    let living = |listed: &ListedWorker| Living {
        worker: listed.worker,
        start_time: start_time(listed.worker.pid),
        inode: handle::pidfd_inode(&listed.pidfd),
    };
    let evidence = Evidence {
        boot_id: host.boot_id.clone(),
        new,
        rows,
        handles: left.handles,
        living: listing.living.iter().map(living).collect(),
        ended: listing.ended.iter().map(|ended| (ended.slot, ended.pid)).collect(),
    };
    let mut verdicts = judge(&evidence);
    verdicts.said.extend(left.trouble.into_iter().chain(said));
    verdicts
}

/// What becomes of a worker that a handle of this boot names and that the jailer has not named: where it lives and is behind
/// its socket, the jailer has left it alone and gives its slot to nobody. It goes on. Says what people should know.
pub(super) fn unlisted(workers: &OwnedFd, handle: &Handle, listing: &mut Listing) -> Option<String> {
    if listing.living.iter().any(|listed| listed.worker.pid == handle.pid) {
        return None;
    }
    let pidfd = process_of(handle)?;
    let (name, pid) = (&handle.intent.spec.name, handle.pid);
    let worker = Worker { slot: Slot(handle.slot), pid, start_time: handle.start_time, uid: handle.uid };
    let there = worker::knock(workers, &worker).map_or_else(|error| error.is_full(), |()| true);
    if there && !listing.living.iter().any(|listed| listed.worker.slot == worker.slot) {
        listing.living.push(ListedWorker { worker, pidfd, stopped: false, unlisted: true });
        return Some(format!(
            "the jailer leaves the worker of {name} (pid {pid}, uid {}) alone; it goes on without limits, and nobody will \
             tell how it ends: were the ranges of this user in /etc/subuid and /etc/subgid changed? Stop {name} and start it \
             again when it suits you",
            handle.uid
        ));
    }
    rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).ok()?;
    Some(format!("the worker of {name} (pid {pid}) could not be reached and was killed"))
}

/// Field 22 of `/proc/PID/stat`; none where there is no such process, or where we may not see it.
pub(super) fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses, which may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The process of a handle of this boot, while it lives. Pid and start time name one process of a boot, and the pidfd is that
/// process's where they still agree after it was opened.
fn process_of(handle: &Handle) -> Option<OwnedFd> {
    let it_is = || start_time(handle.pid) == Some(handle.start_time);
    if !it_is() {
        return None;
    }
    let pid = Pid::from_raw(handle.pid).filter(|_| handle.pid > 0)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
    (it_is() && handle::pidfd_inode(&pidfd) == handle.pidfd_inode).then_some(pidfd)
}
