//! A queue of the interface's TAP, checked when it arrives. Everything about it was set by who made it; this process makes no
//! ioctl on it.

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, major, minor};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Device number of `/dev/net/tun`.
const TUN: (u32, u32) = (10, 200);

/// An fd that cannot be a TAP's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TapError {
    /// `fstat(2)` or F_GETFL failed.
    #[error("the TAP cannot be examined: {0}")]
    Examine(Errno),
    /// A file, a socket, another device.
    #[error("the interface's fd is no TAP")]
    Kind,
    /// It was not opened for both.
    #[error("the TAP was not opened for reading and writing")]
    Rights,
    /// A read could wait, and with it all devices of the VM.
    #[error("the TAP is not non-blocking")]
    Blocking,
}

/// A queue of a TAP.
#[derive(Debug)]
pub struct Tap(Arc<OwnedFd>);

impl Tap {
    /// Checks `fd`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(fd: OwnedFd) -> Result<Self, TapError> {
        let stat = fstat(&fd).map_err(TapError::Examine)?;
        let device = (major(stat.st_rdev), minor(stat.st_rdev));
        if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || device != TUN {
            return Err(TapError::Kind);
        }
        let flags = fcntl_getfl(&fd).map_err(TapError::Examine)?;
        if flags & OFlags::RWMODE != OFlags::RDWR {
            return Err(TapError::Rights);
        }
        if flags.contains(OFlags::NONBLOCK) { Ok(Self(Arc::new(fd))) } else { Err(TapError::Blocking) }
    }

    /// A socket of packets, which to `readv(2)` and `writev(2)` is a TAP.
    #[cfg(test)]
    pub(in super::super) fn double(fd: OwnedFd) -> Self {
        Self(Arc::new(fd))
    }

    /// For whoever watches it.
    pub fn share(&self) -> Arc<OwnedFd> {
        self.0.clone()
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;

    fn open(path: &str, write: bool, flags: i32) -> OwnedFd {
        OpenOptions::new().read(true).write(write).custom_flags(flags).open(path).unwrap().into()
    }

    #[test]
    fn what_is_no_tap_is_refused() {
        let pipe: OwnedFd = std::io::pipe().unwrap().0.into();
        for fd in [open("/dev/null", true, libc::O_NONBLOCK), open("/", false, 0), pipe] {
            assert_eq!(Tap::new(fd).unwrap_err(), TapError::Kind);
        }
    }

    #[test]
    fn a_tap_that_could_block_or_is_open_one_way_is_refused() {
        if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
            println!("SKIPPED a_tap_that_could_block_or_is_open_one_way_is_refused: /dev/net/tun: {error}");
            return;
        }
        assert!(Tap::new(open("/dev/net/tun", true, libc::O_NONBLOCK)).is_ok());
        assert_eq!(Tap::new(open("/dev/net/tun", true, 0)).unwrap_err(), TapError::Blocking);
        assert_eq!(Tap::new(open("/dev/net/tun", false, libc::O_NONBLOCK)).unwrap_err(), TapError::Rights);
    }
}
