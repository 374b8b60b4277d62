//! Being the only jailer: in a directory of workers' sockets, and below a delegated cgroup. Two would give out the same names,
//! uids and leaves, and each would take the other's for leftovers.
//!
//! A lock on the directory says who it is. It is held until this process ends; children lose it by exec.

use ipc::holder::flock_holder;
use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a predecessor may take to be gone: it reaps its workers, and its children have not executed their program yet.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at whether it is.
const PACE: Duration = Duration::from_millis(5);

/// Waits until no other jailer works in this directory: one whose supervisor is leaving may still be reaping workers that
/// have the names, uids and cgroup leaves which this one is about to give out.
pub(crate) fn in_this_directory() -> Result<OwnedFd, Errno> {
    let directory = open(Path::new("."))?;
    if !lock(&directory)? {
        let who = holder(&directory);
        complain!(
            "{who} works in this directory, and this one waits until it has left: when its last VM has ended (vmsup stop \
             --all), or when it is killed (its VMs go on)"
        );
        rustix::io::retry_on_intr(|| flock(&directory, FlockOperation::LockExclusive))?;
    }
    Ok(directory)
}

/// A directory that is this jailer's alone from now on; else who has it.
pub(crate) fn below(directory: &Path) -> Result<Result<OwnedFd, String>, Errno> {
    let directory = open(directory)?;
    Ok(if lock(&directory)? { Ok(directory) } else { Err(holder(&directory)) })
}

fn open(directory: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn holder(directory: &OwnedFd) -> String {
    flock_holder(directory).map_or_else(|| "another jailer".into(), |pid| format!("another jailer (process {pid})"))
}

/// Takes a directory's lock, where its holder is gone in time.
fn lock(directory: &OwnedFd) -> Result<bool, Errno> {
    let until = Instant::now() + PATIENCE;
    loop {
        match flock(directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(PACE),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(errno) => return Err(errno),
        }
    }
}
