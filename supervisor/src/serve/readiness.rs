//! Registering an fd with the reactor.

use std::io::Result;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The standard library's own fd types: open and the same for as long as they live.
pub trait StdFd: AsRawFd {}
impl StdFd for OwnedFd {}
impl StdFd for BorrowedFd<'_> {}

/// Registers `fd` for `interest`, for as long as the result lives. Needs a runtime.
///
/// # Errors
/// Out of memory or epoll watches.
#[expect(deprecated, reason = "the constructor is unsound for an AsRawFd that lies, which the types of StdFd cannot")]
pub fn watch<F: StdFd>(fd: F, interest: Interest) -> Result<AsyncFd<F>> {
    AsyncFd::with_interest(fd, interest)
}
