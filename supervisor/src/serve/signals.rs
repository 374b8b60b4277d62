//! SIGTERM, SIGINT and SIGHUP as readable events: no handler runs in this process, and the filter needs no rule for one.

use super::ServeError;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::{AsFd, OwnedFd};

/// Blocks the signals and opens the fd that tells of them. Before any thread is there, so that none gets them.
///
/// # Errors
/// Out of fds.
pub fn block() -> Result<OwnedFd, ServeError> {
    let failed = |e: nix::Error| ServeError::System("waiting for signals", e.into());
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block().map_err(failed)?;
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)?;
    signals.as_fd().try_clone_to_owned().map_err(|e| ServeError::System("waiting for signals", e))
}
