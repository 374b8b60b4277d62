//! One packet with its fds, out and in.

use crate::Error;
use rustix::io::{Errno, IoSlice, IoSliceMut, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

/// The most fds that any frame may carry. The kernel's own limit is 253 (SCM_MAX_FD).
pub const MAX_FDS: usize = 32;

/// What one `recvmsg(2)` brought.
pub(crate) struct Received {
    /// Bytes of the packet that fit the buffer.
    pub bytes: usize,
    /// The packet or its control data did not fit.
    pub truncated: bool,
    /// All the fds that came, owned and close-on-exec: dropping this closes them.
    pub fds: Vec<OwnedFd>,
}

/// Receives one packet and its fds. Without `want_fds` the kernel drops those that came, and says `truncated`.
///
/// # Errors
/// What `recvmsg(2)` says. Fds are never leaked: they are owned before anything about the packet is looked at.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], want_fds: bool) -> Result<Received, Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = if want_fds { RecvAncillaryBuffer::new(&mut space) } else { RecvAncillaryBuffer::default() };
    let message =
        retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC))
            .map_err(std::io::Error::from)?;
    let mut fds = Vec::new();
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = item {
            fds.extend(received);
        }
    }
    let truncated = message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok(Received { bytes: message.bytes, truncated, fds })
}

/// Sends one packet with its fds. A closed peer is `EPIPE`, never a signal.
///
/// # Errors
/// What `sendmsg(2)` says.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Error::Fds { declared: MAX_FDS, got: fds.len() });
    }
    match retry_on_intr(|| sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) => Err(Error::Malformed("packet that was sent in part")),
        Err(Errno::PIPE | Errno::CONNRESET) => Err(Error::Closed),
        Err(error) => Err(Error::Io(error.into())),
    }
}
