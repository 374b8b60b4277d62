//! Workers that a killed jailer has left behind: found by their sockets in the working directory, when this process
//! starts and is alone in it.
//!
//! A worker listens on the socket of its slot itself, so the kernel says who it is to whoever connects (SO_PEERCRED).
//! Its uid must be the one that its slot has; then it is kept as an orphan, and told to the supervisor. Empty ones have
//! seen their report pipe break, and leave by themselves.
//!
//! One that is stopped or hung may have no room for another who asks. For it there is a record beside the socket, made
//! when it was handed over: a symbolic link to nowhere, made by one call, that says its pid and start time.

use crate::identity;
use crate::places::{Phase, Place, Places};
use crate::reap::start_time;
use jail_spec::{SLOTS_MAX, Slot, UidSource, Worker};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How often a listener may hang up while it is asked who it is.
const TRIES: u32 = 5;

/// Who listens on a socket.
enum Listener {
    /// Nobody.
    Nobody,
    /// This process.
    Is { pid: Pid, uid: u32, pidfd: OwnedFd },
    /// Somebody; why it cannot be said who.
    Hidden(String),
}

/// Looks at every worker's socket of the working directory: orphans get their places, sockets that nobody listens on are
/// removed, and the slots of all others are blocked.
pub(crate) fn find(uids: UidSource) -> std::io::Result<Places> {
    let mut places = Places::default();
    for entry in std::fs::read_dir(".")? {
        let Some(slot) = entry?.file_name().to_str().and_then(slot_of) else { continue };
        match known(slot, uids) {
            Ok(Some(place)) => {
                complain!("worker {} in slot {} outlived its jailer; it is kept", place.worker.pid, slot.0);
                places.insert(place);
            }
            Ok(None) => {}
            Err(why) => {
                complain!("{} is left alone and its slot not used: {why}", slot.socket_name());
                places.block(slot);
            }
        }
    }
    Ok(places)
}

/// The slot whose socket has this name.
fn slot_of(name: &str) -> Option<Slot> {
    let number = name.strip_prefix('w')?.strip_suffix(".sock")?.parse().ok()?;
    Some(Slot(number)).filter(|slot| number < SLOTS_MAX && slot.socket_name() == name)
}

/// The orphan in a slot; `None` where there is nothing any more.
fn known(slot: Slot, uids: UidSource) -> Result<Option<Place>, String> {
    let own = rustix::process::getuid().as_raw();
    let expected = identity::outer_ids(uids, slot).map(|(uid, _)| uid);
    let (pid, uid, pidfd) = match listener(slot)? {
        Listener::Is { pid, uid, pidfd } => (pid, uid, pidfd),
        Listener::Hidden(why) => recorded(slot, &[own, expected.unwrap_or(own)]).ok_or(why)?,
        Listener::Nobody => {
            let removed = remove_names(slot);
            return removed.map(|()| None).map_err(|e| format!("it cannot be removed: {e}"));
        }
    };
    if uid != own && Some(uid) != expected {
        return Err(format!("process {} of uid {uid} listens on it", pid.as_raw_nonzero()));
    }
    let pid = pid.as_raw_nonzero().get();
    Ok(Some(Place {
        worker: Worker { slot, pid, start_time: start_time(pid), uid },
        pidfd,
        report: None,
        leaf: None,
        phase: Phase::Taken,
        orphan: true,
        stopped: false,
        last_words: String::new(),
    }))
}

/// Asks the kernel who listens on the socket of `slot`.
fn listener(slot: Slot) -> Result<Listener, String> {
    let failed = |what: &str, e: Errno| format!("{what}: {e}");
    let address = SocketAddrUnix::new(slot.socket_name()).map_err(|e| failed("its address", e))?;
    for _ in 0..TRIES {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|e| failed("socket", e))?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => {}
            Err(Errno::CONNREFUSED) => return Ok(Listener::Nobody),
            // As many have knocked as it has room for, and it does not look: stopped, or hung.
            Err(Errno::AGAIN) => return Ok(Listener::Hidden("who listens on it does not answer".into())),
            Err(e) => return Err(failed("connecting to it", e)),
        }
        let peer = sockopt::socket_peercred(&socket).map_err(|e| failed("SO_PEERCRED", e))?;
        match pidfd_open(peer.pid, PidfdFlags::empty()) {
            // It is the process that was named only if that one has not ended since: then it would have hung up.
            Ok(pidfd) if !hung_up(&socket) => {
                return Ok(Listener::Is { pid: peer.pid, uid: peer.uid.as_raw(), pidfd });
            }
            Ok(_) | Err(Errno::SRCH) => {}
            Err(e) => return Err(failed("pidfd_open", e)),
        }
    }
    Ok(Listener::Hidden("who listens on it hangs up at once".into()))
}

fn hung_up(socket: &OwnedFd) -> bool {
    let mut set = [PollFd::new(socket, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut set, Some(&now)) {
        Ok(_) => set[0].revents().intersects(PollFlags::HUP | PollFlags::ERR),
        Err(_) => true,
    }
}

/// The name of a worker's record.
fn record_name(slot: Slot) -> String {
    format!("w{}.pid", slot.0)
}

/// Records who is in a slot. Where that fails, only a worker that does not answer is not found again.
pub(crate) fn record(worker: &Worker) {
    let name = record_name(worker.slot);
    let text = format!("{} {}", worker.pid, worker.start_time);
    let _ = rustix::fs::unlink(&name);
    if let Err(errno) = rustix::fs::symlink(text, &name) {
        complain!("{name}: {errno}");
    }
}

/// Removes what stands in the directory for a worker that has ended.
pub(crate) fn remove_names(slot: Slot) -> Result<(), Errno> {
    let _ = rustix::fs::unlink(record_name(slot));
    match rustix::fs::unlink(slot.socket_name()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Who is recorded for a slot, where that process lives and has one of these uids.
fn recorded(slot: Slot, uids: &[u32]) -> Option<(Pid, u32, OwnedFd)> {
    let text = std::fs::read_link(record_name(slot)).ok()?;
    let (pid, begun) = text.to_str()?.split_once(' ')?;
    let pid = Pid::from_raw(pid.parse().ok()?)?;
    // Opened before it is looked at: what is read is then of the process that the pidfd holds, or of none.
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let uid = uids.iter().find(|uid| is_of(&status, **uid))?;
    let same = begun.parse() == Ok(start_time(pid.as_raw_nonzero().get()));
    same.then_some((pid, *uid, pidfd))
}

/// Whether a `/proc/PID/status` is of a process with this uid, real, effective and all.
fn is_of(status: &str, uid: u32) -> bool {
    let uid = uid.to_string();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    line.is_some_and(|ids| ids.split_whitespace().count() == 4 && ids.split_whitespace().all(|id| id == uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_names_of_sockets_are_slots() {
        assert_eq!(slot_of("w0.sock"), Some(Slot(0)));
        assert_eq!(slot_of("w4095.sock"), Some(Slot(4095)));
        for name in
            ["w4096.sock", "w.sock", "w01.sock", "w+1.sock", "w-1.sock", "w1.sock.new", "x1.sock", "jailer.sock"]
        {
            assert_eq!(slot_of(name), None, "{name}");
        }
    }

    #[test]
    fn a_process_is_of_a_uid_by_all_four() {
        assert!(is_of("Name:\tx\nUid:\t100001\t100001\t100001\t100001\nGid:\t5\t5\t5\t5\n", 100_001));
        assert!(!is_of("Uid:\t100001\t100001\t0\t100001\n", 100_001));
        assert!(!is_of("Name:\tUid: 1 1 1 1\nUid:\t2\t2\t2\t2\n", 1));
        assert!(!is_of("", 0));
    }
}
