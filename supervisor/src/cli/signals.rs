//! The signals that ask a session to end, read from an fd like everything else that a session waits for.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::{AsFd, BorrowedFd};

/// SIGINT, SIGTERM, SIGHUP and SIGQUIT, blocked and read from an fd. Programs started afterwards do not inherit the
/// mask: the standard library clears it.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks them from now on. Called while this is the only thread.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn block() -> nix::Result<Signals> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
            set.add(signal);
        }
        set.thread_block()?;
        Ok(Signals(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// The exit status that the next pending signal stands for, as shells count: 128 and its number. Signals that this
    /// process was started to ignore (`nohup`, a background job of a script) are passed over: to a blocked signal the
    /// kernel does not apply that.
    pub fn next_status(&self) -> Option<u8> {
        while let Some(signal) = self.0.read_signal().ok().flatten() {
            if !is_ignored(signal.ssi_signo) {
                return Some(128 + u8::try_from(signal.ssi_signo).unwrap_or(0));
            }
        }
        None
    }
}

/// Whether the signal is in the mask `SigIgn` of our status.
fn is_ignored(signal: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:")).map(|m| u64::from_str_radix(m.trim(), 16));
    matches!(mask, Some(Ok(mask)) if signal > 0 && mask & (1 << (signal - 1)) != 0)
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
