//! The typed channel over one connected `SOCK_SEQPACKET` socket.

use crate::{Error, MAX_FDS, codec, fds};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A message that a channel carries: the request or the reply enum of one boundary.
pub trait Message: Serialize + DeserializeOwned {
    /// The largest frame of this type, in bytes. A larger one is refused by sender and receiver.
    const MAX_BYTES: usize;
    /// The most fds that any message of this type carries. Where it is 0, fds that come all the same never become the
    /// receiver's: closing one can wait for whoever serves its file (FUSE), for ever.
    const MAX_FDS: usize = fds::MAX_FDS;

    /// How many fds travel with this very message. The receiver closes them all where another number came.
    fn fd_count(&self) -> usize {
        0
    }
}

/// Name, version and features of what is spoken on a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protocol {
    /// For people: `vmsup-worker`, say.
    pub name: String,
    /// Peers of different versions refuse each other.
    pub version: u16,
    /// Bits that both sides may use; the intersection of both words holds.
    pub features: u64,
}

impl Message for Protocol {
    const MAX_BYTES: usize = 128;
    const MAX_FDS: usize = 0;
}

/// Both ends of a connection.
pub type Pair<S, R> = (Channel<S, R>, Channel<R, S>);

/// Sends `S`, receives `R`; the peer's end is a `Channel<R, S>`.
#[derive(Debug)]
pub struct Channel<S, R> {
    socket: OwnedFd,
    direction: PhantomData<fn(S) -> R>,
}

impl<S: Message, R: Message> Channel<S, R> {
    /// Wraps a connected `SOCK_SEQPACKET` socket.
    pub fn new(socket: OwnedFd) -> Self {
        Channel { socket, direction: PhantomData }
    }

    /// Both ends of a new connection, close-on-exec.
    ///
    /// # Errors
    /// What `socketpair(2)` says.
    pub fn pair() -> Result<Pair<S, R>, Error> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(std::io::Error::from)?;
        Ok((Channel::new(ours), Channel::new(theirs)))
    }

    /// Sends one message with exactly the fds that it declares.
    ///
    /// # Errors
    /// [`Error::TooLarge`] and [`Error::Fds`] before anything is sent; [`Error::Closed`] where the peer is gone;
    /// [`Error::Io`] with `WouldBlock` on a non-blocking socket that is full.
    pub fn send(&self, message: &S, with: &[BorrowedFd<'_>]) -> Result<(), Error> {
        if with.len() != message.fd_count() || with.len() > MAX_FDS {
            return Err(Error::Fds { declared: message.fd_count(), got: with.len() });
        }
        fds::send(self.socket.as_fd(), &codec::encode(message, S::MAX_BYTES)?, with)
    }

    /// Receives one message with exactly the fds that it declares.
    ///
    /// # Errors
    /// [`Error::Closed`] at the end of the connection. After [`Error::Malformed`], [`Error::TooLarge`] and
    /// [`Error::Fds`] the caller drops the channel; no fd of the refused frame stays open.
    pub fn receive(&self) -> Result<(R, Vec<OwnedFd>), Error> {
        self.receive_or(drop)
    }

    /// As [`Channel::receive`]; the fds of a frame that is refused go to `refused`, who may close them where that can take
    /// its time.
    ///
    /// # Errors
    /// As [`Channel::receive`].
    pub fn receive_or(&self, refused: impl FnOnce(Vec<OwnedFd>)) -> Result<(R, Vec<OwnedFd>), Error> {
        receive_message(self.socket.as_fd(), R::MAX_FDS > 0, refused)
    }

    /// As [`Channel::receive`], where no fds are due: those that come all the same never become this process's.
    ///
    /// # Errors
    /// As [`Channel::receive`]; [`Error::TooLarge`] where fds came.
    pub fn receive_bare(&self) -> Result<R, Error> {
        receive_message(self.socket.as_fd(), false, drop).map(|(message, _)| message)
    }

    /// Exchanges protocol headers; both sides call it first, in either order. Returns the features both have.
    ///
    /// # Errors
    /// [`Error::Version`] where name or version differ.
    pub fn handshake(&self, name: &str, version: u16, features: u64) -> Result<u64, Error> {
        self.greet(name, version, features)?;
        self.meet(name, version, features)
    }

    /// The first half of [`Channel::handshake`]: sends our header. For non-blocking callers.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn greet(&self, name: &str, version: u16, features: u64) -> Result<(), Error> {
        let own = Protocol { name: name.to_owned(), version, features };
        fds::send(self.socket.as_fd(), &codec::encode(&own, Protocol::MAX_BYTES)?, &[])
    }

    /// The second half: receives the peer's header and compares.
    ///
    /// # Errors
    /// [`Error::Version`] where name or version differ.
    pub fn meet(&self, name: &str, version: u16, features: u64) -> Result<u64, Error> {
        let (peer, _) = receive_message::<Protocol>(self.socket.as_fd(), false, drop)?;
        if peer.name != name || peer.version != version {
            return Err(Error::Version {
                peer: format!("{} {}", peer.name.escape_debug(), peer.version),
                own: format!("{name} {version}"),
            });
        }
        Ok(peer.features & features)
    }

    /// The socket itself, to hand it on.
    pub fn into_fd(self) -> OwnedFd {
        self.socket
    }
}

impl<S, R> AsFd for Channel<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn receive_message<M: Message>(
    socket: BorrowedFd<'_>,
    want_fds: bool,
    refused: impl FnOnce(Vec<OwnedFd>),
) -> Result<(M, Vec<OwnedFd>), Error> {
    // One byte more than allowed, so that a frame of exactly the limit is told from a longer one.
    let mut buffer = vec![0u8; M::MAX_BYTES.min(codec::FRAME_LIMIT) + 1];
    let received = fds::receive(socket, &mut buffer, want_fds)?;
    if received.bytes == 0 && received.fds.is_empty() {
        return Err(Error::Closed);
    }
    let decoded = if received.truncated {
        Err(Error::TooLarge(M::MAX_BYTES))
    } else {
        codec::decode(&buffer[..received.bytes], M::MAX_BYTES)
    };
    let fitting = decoded.and_then(|message: M| {
        let (declared, got) = (message.fd_count(), received.fds.len());
        if got == declared { Ok(message) } else { Err(Error::Fds { declared, got }) }
    });
    match fitting {
        Ok(message) => Ok((message, received.fds)),
        Err(error) => {
            refused(received.fds);
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Ask {
        Plain(u32),
        WithFds { count: u8 },
        Big(Vec<u8>),
    }
    impl Message for Ask {
        const MAX_BYTES: usize = 1000;
        fn fd_count(&self) -> usize {
            match self {
                Ask::WithFds { count } => usize::from(*count),
                _ => 0,
            }
        }
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Answer {
        Yes,
    }
    impl Message for Answer {
        const MAX_BYTES: usize = 16;
        const MAX_FDS: usize = 0;
    }

    fn pipes(count: usize) -> Vec<(std::io::PipeReader, std::io::PipeWriter)> {
        (0..count).map(|_| std::io::pipe().unwrap()).collect()
    }

    /// Sends raw bytes and fds past the typed end.
    fn raw(to: &impl AsFd, bytes: &[u8], with: &[BorrowedFd<'_>]) {
        fds::send(to.as_fd(), bytes, with).unwrap();
    }

    /// True where every copy of the write end is closed: the reader sees the end of the pipe.
    fn all_closed(pipe: (std::io::PipeReader, std::io::PipeWriter)) -> bool {
        let (mut reader, writer) = pipe;
        drop(writer);
        reader.read(&mut [0u8; 1]).unwrap() == 0
    }

    #[test]
    fn messages_and_their_fds_arrive() {
        let (a, b) = Channel::<Ask, Answer>::pair().unwrap();
        let pipes = pipes(2);
        let fds: Vec<_> = pipes.iter().map(|(_, w)| w.as_fd()).collect();
        a.send(&Ask::WithFds { count: 2 }, &fds).unwrap();
        let (message, received) = b.receive().unwrap();
        assert_eq!((message, received.len()), (Ask::WithFds { count: 2 }, 2));
        b.send(&Answer::Yes, &[]).unwrap();
        assert_eq!(a.receive().unwrap().0, Answer::Yes);
    }

    #[test]
    fn received_fds_are_close_on_exec() {
        let (a, b) = Channel::<Ask, Answer>::pair().unwrap();
        let pipe = std::io::pipe().unwrap();
        a.send(&Ask::WithFds { count: 1 }, &[pipe.1.as_fd()]).unwrap();
        let (_, received) = b.receive().unwrap();
        assert!(rustix::io::fcntl_getfd(&received[0]).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn undeclared_fds_are_closed_and_refused() {
        let (a, b) = Channel::<Ask, Answer>::pair().unwrap();
        let mut pipes = pipes(3);
        let fds: Vec<_> = pipes.iter().map(|(_, w)| w.as_fd()).collect();
        raw(&a, &codec::encode(&Ask::Plain(1), 100).unwrap(), &fds);
        assert!(matches!(b.receive(), Err(Error::Fds { declared: 0, got: 3 })));
        assert!(all_closed(pipes.remove(0)));
    }

    #[test]
    fn fds_that_are_not_due_are_never_this_process_s_and_refused_ones_go_where_they_may_be_closed() {
        let (a, b) = Channel::<Ask, Answer>::pair().unwrap();
        let mut pipes = pipes(2);
        a.send(&Ask::WithFds { count: 1 }, &[pipes[0].1.as_fd()]).unwrap();
        assert!(matches!(b.receive_bare(), Err(Error::TooLarge(_))));
        assert!(all_closed(pipes.remove(0)));
        a.send(&Ask::Plain(7), &[]).unwrap();
        assert_eq!(b.receive_bare().unwrap(), Ask::Plain(7));
        for bytes in [codec::encode(&Ask::Plain(1), 100).unwrap(), vec![0xff; 40], vec![0; 2000]] {
            raw(&a, &bytes, &[pipes[0].1.as_fd()]);
            let mut refused = Vec::new();
            assert!(b.receive_or(|fds| refused = fds).is_err());
            assert_eq!(refused.len(), 1);
        }
        assert!(all_closed(pipes.remove(0)));
    }

    #[test]
    fn a_flood_of_fds_is_truncated_closed_and_refused() {
        let (a, b) = Channel::<Ask, Answer>::pair().unwrap();
        let pipe = std::io::pipe().unwrap();
        let with = vec![pipe.1.as_fd(); 200];
        let bytes = codec::encode(&Ask::Plain(1), 100).unwrap();
        let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(200))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&with)));
        rustix::net::sendmsg(
            a.as_fd(),
            &[rustix::io::IoSlice::new(&bytes)],
            &mut control,
            rustix::net::SendFlags::NOSIGNAL,
        )
        .unwrap();
        assert!(matches!(b.receive(), Err(Error::TooLarge(_))));
        drop(with);
        assert!(all_closed(pipe));
    }

    #[test]
    fn fds_beside_a_message_that_carries_none_never_become_the_receivers() {
        use rustix::fs::{FlockOperation, fcntl_lock};
        let (a, b) = Channel::<Ask, Answer>::pair().unwrap();
        let path = std::env::temp_dir().join(format!("vmsup-ipc-lock-{}", std::process::id()));
        let file = std::fs::File::create_new(&path).unwrap();
        // A process loses its record locks on a file when it closes any fd of it: that is how one is seen to be closed
        // by this process, and not by the kernel on its own.
        fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
        std::fs::remove_file(&path).unwrap();
        let locked = || std::fs::read_to_string("/proc/locks").unwrap().contains(&format!(":{inode} "));
        assert!(locked());
        raw(&b, &codec::encode(&Answer::Yes, 16).unwrap(), &[file.as_fd(); 3]);
        assert!(matches!(a.receive(), Err(Error::TooLarge(_))));
        raw(&b, &[0; 20], &[file.as_fd()]);
        assert!(a.meet("x", 1, 0).is_err());
        assert!(locked());
        // Where fds are expected they do.
        raw(&a, &codec::encode(&Ask::Plain(1), 100).unwrap(), &[file.as_fd()]);
        assert!(b.receive().is_err());
        assert!(!locked());
    }

    #[test]
    fn missing_fds_are_refused() {
        let (a, b) = Channel::<Ask, Answer>::pair().unwrap();
        raw(&a, &codec::encode(&Ask::WithFds { count: 2 }, 100).unwrap(), &[]);
        assert!(matches!(b.receive(), Err(Error::Fds { declared: 2, got: 0 })));
        assert!(matches!(a.send(&Ask::WithFds { count: 1 }, &[]), Err(Error::Fds { declared: 1, got: 0 })));
    }

    #[test]
    fn a_frame_past_the_limit_is_refused_on_both_sides() {
        let (a, b) = Channel::<Ask, Answer>::pair().unwrap();
        assert!(matches!(a.send(&Ask::Big(vec![0; 2000]), &[]), Err(Error::TooLarge(1000))));
        raw(&a, &vec![0; 5000], &[]);
        assert!(matches!(b.receive(), Err(Error::TooLarge(1000))));
    }

    #[test]
    fn a_closed_peer_is_told_apart_from_a_malformed_one() {
        let (a, b) = Channel::<Ask, Answer>::pair().unwrap();
        raw(&a, &[200, 1, 2], &[]);
        assert!(matches!(b.receive(), Err(Error::Malformed(_))));
        drop(a);
        assert!(matches!(b.receive(), Err(Error::Closed)));
        assert!(matches!(b.send(&Answer::Yes, &[]), Err(Error::Closed)));
    }

    #[test]
    fn peers_of_two_releases_refuse_each_other() {
        let (a, b) = Channel::<Ask, Answer>::pair().unwrap();
        a.greet("vmsup-test", 2, 1).unwrap();
        assert!(matches!(b.handshake("vmsup-test", 1, 1), Err(Error::Version { .. })));
        let error = a.meet("vmsup-test", 2, 1).unwrap_err().to_string();
        assert!(error.contains("vmsup-test 1") && error.contains("vmsup-test 2"), "{error}");
    }

    #[test]
    fn the_features_both_sides_have_hold() {
        let (a, b) = Channel::<Ask, Answer>::pair().unwrap();
        a.greet("x", 1, 0b110).unwrap();
        assert_eq!(b.handshake("x", 1, 0b011).unwrap(), 0b010);
        assert_eq!(a.meet("x", 1, 0b110).unwrap(), 0b010);
    }
}
