//! One packet with its fds, out and in; and who is at the other end. The only unsafe of the crate: two socket options without
//! a safe wrapper.
#![allow(unsafe_code, reason = "getsockopt(2) for options that rustix does not know")]

use crate::Error;
use rustix::io::{Errno, IoSlice, IoSliceMut, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The most fds that any frame may carry. The kernel's own limit is 253 (SCM_MAX_FD).
pub const MAX_FDS: usize = 32;
/// The most groups that a peer's list is read for; the kernel's own limit (NGROUPS_MAX).
const GROUPS_MAX: usize = 65536;

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
            .map_err(io::Error::from)?;
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

/// `SO_PEERCRED`: uid and gid of a Unix socket's peer, as they were when it connected. Not by rustix 1.1, whose type has no
/// room for the pid 0 of a peer in another pid namespace, a host's to a netd in a container.
///
/// # Errors
/// It is no Unix socket.
pub fn peer_ids(socket: impl AsFd) -> io::Result<(u32, u32)> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut bytes = size_of_val(&peer) as libc::socklen_t;
    // SAFETY: the kernel writes at most `bytes` bytes, which is the size of `peer`, and any bit pattern is a valid ucred.
    check(unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut bytes,
        )
    })?;
    // To a socket that is connected to nobody the kernel says the same.
    if peer.uid == u32::MAX { Err(io::Error::from_raw_os_error(libc::ENOTCONN)) } else { Ok((peer.uid, peer.gid)) }
}

/// `SO_PEERGROUPS`: the supplementary groups of a Unix socket's peer, as they were when it connected.
///
/// # Errors
/// `ERANGE` where there are more than the kernel allows a process to have.
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; 64];
    loop {
        let mut bytes = (groups.len() * size_of::<u32>()) as libc::socklen_t;
        // SAFETY: the kernel writes at most `bytes` bytes, which is the size of the vector's initialised elements, and
        // any bit pattern is a valid u32.
        let result = check(unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        });
        let count = bytes as usize / size_of::<u32>();
        match result {
            // Too many for the buffer: `bytes` says how many there are, and they never become more.
            Err(e) if e.raw_os_error() == Some(libc::ERANGE) && (groups.len()..=GROUPS_MAX).contains(&count) => {
                groups.resize(count + 1, 0);
            }
            result => {
                result?;
                groups.truncate(count);
                return Ok(groups);
            }
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::Gid;
    use std::os::unix::net::UnixStream;

    #[test]
    fn all_groups_of_a_peer_are_told_however_many() {
        if !rustix::process::geteuid().is_root() {
            return println!("SKIPPED all_groups_of_a_peer_are_told_however_many: not root");
        }
        // On a thread of its own: groups are the thread's.
        std::thread::spawn(|| {
            for count in [0u32, 1, 63, 64, 65, 1000] {
                let groups: Vec<Gid> = (0..count).map(|n| Gid::from_raw(5000 + n)).collect();
                rustix::thread::set_thread_groups(&groups).unwrap();
                let (_ours, theirs) = UnixStream::pair().unwrap();
                assert_eq!(peer_groups(&theirs).unwrap(), (5000..5000 + count).collect::<Vec<_>>(), "{count}");
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_ids_of_a_peer_are_told_whatever_its_pid_and_of_nobody_are_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        assert_eq!(peer_ids(&ours).unwrap(), own);
        drop(theirs);
        assert_eq!(peer_ids(&ours).unwrap(), own, "also of one that is gone");
        let alone = std::os::unix::net::UnixDatagram::unbound().unwrap();
        assert_eq!(peer_ids(&alone).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
        assert!(peer_ids(std::fs::File::open("/dev/null").unwrap()).is_err());
    }

    #[test]
    fn the_groups_of_what_is_no_unix_socket_are_an_error() {
        let tcp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(peer_groups(&tcp).is_err());
        assert!(peer_groups(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
