//! Signals as events of the one loop: a child that was stopped or goes on (SIGCHLD), and the service manager's wish that
//! this process leaves (SIGTERM).
//!
//! Blocked, so that no call of the loop is interrupted. A worker unblocks them before it is one (`stages`); newuidmap
//! inherits the mask, and is not run for long enough to matter.

use crate::sys;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;

/// Bytes of a `signalfd_siginfo` (signalfd(2)); its first four are the signal's number.
const INFO: usize = 128;

/// The fd that they are read from.
pub(crate) struct Signals(OwnedFd);

/// What came since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Came {
    /// Something became of a child, of one or of several.
    pub child: bool,
    /// SIGTERM.
    pub leave: bool,
}

impl Signals {
    /// From here on they are events.
    pub fn take() -> Result<Signals, Errno> {
        sys::signals_as_fd(&[libc::SIGCHLD, libc::SIGTERM]).map(Signals)
    }

    /// Reads what came.
    pub fn read(&self) -> Came {
        let mut came = Came::default();
        let mut info = [0u8; INFO * 2];
        if let Ok(length) = rustix::io::read(&self.0, &mut info) {
            for one in info[..length].chunks_exact(INFO) {
                match one.first_chunk().map(|number| i32::from_ne_bytes(*number)) {
                    Some(libc::SIGCHLD) => came.child = true,
                    Some(libc::SIGTERM) => came.leave = true,
                    _ => {}
                }
            }
        }
        came
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
