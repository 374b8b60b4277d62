//! The line to the supervisor: one at a time, and a door at which the next one knocks.
//!
//! The standard input is the connection to a supervisor that started this process, which then opens a door of its own
//! ([`SOCKET`] in the working directory), or it is the door itself: a service manager's listening socket. Who comes by
//! the door is root or of this user, else it is turned away. While one is connected, the others wait in the door's
//! backlog, where nobody looks.
//!
//! No call here waits for the peer, but for one that does not read what it is told: for [`PATIENCE`], and then it is
//! dropped, like one that connects and does not say within [`PATIENCE`] what it speaks.

use crate::serve::Error;
use ipc::Channel;
use jail_spec::{NAME, Reply, Request, SOCKET, VERSION};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::time::{Duration, Instant};

/// How long a peer may keep the others waiting without a word, and how long this process waits for a first one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long the door is left alone after a connection could not be accepted for want of fds or memory.
const REST: Duration = Duration::from_secs(1);
/// How many wait.
const BACKLOG: i32 = 16;
/// Token of the peer in the poll set.
pub(crate) const PEER: u64 = 0;
/// Token of the door in the poll set.
pub(crate) const DOOR: u64 = 1;

/// What a look at the line brought.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Nothing whole yet.
    Nothing,
    /// The peer has said what it speaks: a supervisor.
    Supervisor,
    /// A supervisor's request.
    Request(Request),
    /// The peer has hung up, or spoke nonsense (this is why).
    Gone(Option<String>),
}

/// The door, and who came in.
pub(crate) struct Line {
    door: OwnedFd,
    /// We have bound the door, so we remove it.
    own: bool,
    /// When the door is looked at again; `None`: it is in the poll set, or somebody is in.
    rests: Option<Instant>,
    peer: Option<Peer>,
    /// Until when this process waits for a first peer; past, once there was one.
    first_by: Instant,
}

struct Peer {
    channel: Channel<Reply, Request>,
    /// When it must have said what it speaks; `None` once it has.
    due: Option<Instant>,
}

impl Line {
    /// Over the standard input. To be called by whoever is alone in the working directory: a dead predecessor's door is
    /// replaced.
    pub fn open(stdin: OwnedFd) -> Result<Line, Error> {
        let first_by = Instant::now() + PATIENCE;
        if sockopt::socket_acceptconn(&stdin) == Ok(true) {
            rustix::io::ioctl_fionbio(&stdin, true).map_err(|e| Error::System("FIONBIO", e.into()))?;
            return Ok(Line { door: stdin, own: false, rests: None, peer: None, first_by });
        }
        let peer = Some(Peer::greeted(stdin)?);
        Ok(Line { door: bind()?, own: true, rests: None, peer, first_by })
    }

    /// Puts what there is into the poll set.
    pub fn watch(&mut self, events: &OwnedFd) -> Result<(), Errno> {
        match &self.peer {
            Some(peer) => add(events, peer.channel.as_fd(), PEER),
            None => {
                self.rests = None;
                add(events, self.door.as_fd(), DOOR)
            }
        }
    }

    /// True while a supervisor is connected that has said what it speaks.
    pub fn serves(&self) -> bool {
        matches!(self.peer, Some(Peer { due: None, .. }))
    }

    /// When the loop has to look again though nothing came: at a peer that says nothing, at a door that rests, at
    /// nobody ever having come.
    pub fn due(&self) -> Option<Instant> {
        match &self.peer {
            Some(peer) => peer.due,
            None => self.rests.or(Some(self.first_by).filter(|by| *by > Instant::now())),
        }
    }

    /// True where the peer has kept silent for too long.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.peer.as_ref().and_then(|peer| peer.due).is_some_and(|due| due <= now)
    }

    /// True where nobody is connected, and the time for a first one is over.
    pub fn is_alone(&self, now: Instant) -> bool {
        self.peer.is_none() && self.first_by <= now
    }

    /// Looks at the door again after it rested.
    pub fn after_rest(&mut self, events: &OwnedFd, now: Instant) -> Result<(), Errno> {
        if self.peer.is_none() && self.rests.is_some_and(|until| until <= now) {
            return self.watch(events);
        }
        Ok(())
    }

    /// Lets in who knocks, and shuts the door to the others.
    pub fn admit(&mut self, events: &OwnedFd, now: Instant) -> Result<(), Errno> {
        if self.peer.is_some() {
            return Ok(());
        }
        match self.accept() {
            Ok(Some(peer)) => {
                let _ = epoll::delete(events, &self.door);
                self.peer = Some(peer);
                self.watch(events)
            }
            Ok(None) => Ok(()),
            Err(errno) => {
                complain!("nobody can be let in for now: {errno}");
                let _ = epoll::delete(events, &self.door);
                self.rests = Some(now + REST);
                Ok(())
            }
        }
    }

    /// One who waits at the door, if there is one that may come in.
    fn accept(&mut self) -> Result<Option<Peer>, Errno> {
        let socket = match rustix::net::accept_with(&self.door, SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let who = sockopt::socket_peercred(&socket)?.uid;
        if !who.is_root() && who != rustix::process::getuid() {
            complain!("uid {} was turned away: it is not the user of this jailer", who.as_raw());
            return Ok(None);
        }
        // One that has hung up already is no reason to complain.
        Ok(Peer::greeted(socket).ok())
    }

    /// What the peer has to say.
    pub fn hear(&mut self) -> Heard {
        let Some(peer) = &mut self.peer else { return Heard::Nothing };
        let heard = if peer.due.is_some() {
            peer.channel.meet(NAME, VERSION, 0).map(|_| {
                peer.due = None;
                Heard::Supervisor
            })
        } else {
            peer.channel.receive().map(|(request, _)| Heard::Request(request))
        };
        match heard {
            Ok(heard) => heard,
            Err(error) if error.would_block() => Heard::Nothing,
            Err(ipc::Error::Closed) => Heard::Gone(None),
            // It left without having read all that it was told.
            Err(ipc::Error::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => Heard::Gone(None),
            Err(error) => Heard::Gone(Some(error.to_string())),
        }
    }

    /// Tells the supervisor something. Where that cannot be done it counts as having hung up, which the loop sees next;
    /// false then.
    pub fn say(&self, reply: &Reply, with: &[BorrowedFd<'_>]) -> bool {
        let Some(Peer { channel, due: None }) = &self.peer else { return false };
        loop {
            let error = match channel.send(reply, with) {
                Ok(()) => return true,
                Err(error) if error.would_block() && writable(channel.as_fd()) => continue,
                Err(error) => error,
            };
            if !matches!(error, ipc::Error::Closed) {
                complain!("the supervisor does not hear: {error}");
            }
            let _ = rustix::net::shutdown(channel, Shutdown::Both);
            return false;
        }
    }

    /// Hangs up, if anybody is there, and opens the door.
    pub fn hang_up(&mut self, events: &OwnedFd) -> Result<(), Errno> {
        let Some(peer) = self.peer.take() else { return Ok(()) };
        // A child that was forked and has not executed its program yet may hold a copy of the socket, with which it would
        // stay in the poll set.
        let _ = epoll::delete(events, &peer.channel);
        self.first_by = Instant::now();
        self.watch(events)
    }

    /// Shuts the door for good, unless somebody waits at it. True where nobody did: nobody can come any more.
    pub fn close(&mut self, events: &OwnedFd) -> Result<bool, Error> {
        if self.own {
            self.remove();
        }
        // Nobody can knock from here on (the service manager's door lives on: it starts another of us). Who has is served.
        let Ok(Some(peer)) = self.accept() else { return Ok(true) };
        let _ = epoll::delete(events, &self.door);
        if self.own {
            self.door = bind()?;
        }
        self.peer = Some(peer);
        self.watch(events).map_err(|e| Error::System("epoll", e.into()))?;
        Ok(false)
    }

    /// Removes the door's name, where it is ours to remove.
    pub fn remove(&self) {
        if self.own {
            let _ = rustix::fs::unlink(SOCKET);
        }
    }
}

impl Peer {
    fn greeted(socket: OwnedFd) -> Result<Peer, Error> {
        rustix::io::ioctl_fionbio(&socket, true).map_err(|e| Error::System("FIONBIO", e.into()))?;
        let channel = Channel::new(socket);
        channel.greet(NAME, VERSION, 0)?;
        Ok(Peer { channel, due: Some(Instant::now() + PATIENCE) })
    }
}

/// Binds the door in the working directory (0700, the supervisor's and ours) and listens.
fn bind() -> Result<OwnedFd, Error> {
    let failed = |e: Errno| Error::System(SOCKET, e.into());
    match rustix::fs::unlink(SOCKET) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(failed(e)),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(failed)?;
    let address = SocketAddrUnix::new(SOCKET).map_err(failed)?;
    rustix::net::bind(&socket, &address).map_err(failed)?;
    // Before it listens: nobody connects while it is open to more.
    rustix::fs::chmod(SOCKET, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    rustix::net::listen(&socket, BACKLOG).map_err(failed)?;
    Ok(socket)
}

fn add(events: &OwnedFd, fd: BorrowedFd<'_>, token: u64) -> Result<(), Errno> {
    epoll::add(events, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
}

/// Waits until the peer has read something, for as long as it has our patience.
fn writable(socket: BorrowedFd<'_>) -> bool {
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let ready = || poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&patience));
    matches!(rustix::io::retry_on_intr(ready), Ok(1))
}
