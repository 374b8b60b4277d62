//! Registering an fd with the reactor, and waiting for a frame.

use ipc::{Channel, Message};
use std::io::{ErrorKind, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
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

/// Receives something from a non-blocking channel, waiting for it. The socket is registered only meanwhile: a peer that
/// sends without being asked wakes nobody and fills its own socket. Dropped before the end, nothing was received.
///
/// # Errors
/// The channel's; out of memory or epoll watches.
pub async fn receive<S: Message, R: Message, T>(
    channel: &Channel<S, R>,
    mut once: impl FnMut(&Channel<S, R>) -> std::result::Result<T, ipc::Error>,
) -> std::result::Result<T, ipc::Error> {
    // The kernel reports that a peer closed without reading all that we sent before it hands out what the peer had sent:
    // the header of another release, say, which tells more.
    let mut once = |channel: &Channel<S, R>| match once(channel) {
        Err(ipc::Error::Io(error)) if error.kind() == ErrorKind::ConnectionReset => once(channel),
        other => other,
    };
    // Whatever is there already comes before anything else that may have happened since.
    match once(channel) {
        Err(error) if error.would_block() => {}
        other => return other,
    }
    let ready = watch(channel.as_fd(), Interest::READABLE)?;
    loop {
        let mut guard = ready.readable().await?;
        match once(channel) {
            Err(error) if error.would_block() => guard.clear_ready(),
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netd_api::{Reply, Request};

    #[tokio::test]
    async fn a_header_is_read_though_its_sender_closed_without_reading_ours() {
        let (ours, theirs) = Channel::<Request, Reply>::pair().unwrap();
        theirs.greet("x", 2, 0).unwrap();
        ours.greet("x", 1, 0).unwrap();
        drop(theirs);
        let error = receive(&ours, |channel| channel.meet("x", 1, 0)).await.unwrap_err();
        assert!(matches!(error, ipc::Error::Version { .. }), "{error}");
    }
}
