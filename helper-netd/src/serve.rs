//! netd's one loop: its listener, its peers, its signals, and the kernel's events.
//!
//! Any local user can connect and send anything. So a peer has few connections and little time, one request of it is served
//! a turn, and whatever is not a request of this protocol ends its connection and nobody else's. The loop never waits for a
//! peer; it has a timeout only while something is due.

use crate::log;
use crate::netd::Netd;
use crate::ops::Ops;
use crate::permit::Caller;
use ipc::Channel;
use netd_api::{NAME, Reply, Request, VERSION};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a peer may be silent.
const SILENCE: Duration = Duration::from_secs(5);
/// How long the listener rests when there are no fds for a peer.
const REST: Duration = Duration::from_secs(1);
/// How long no peer must have said anything before a pool is filled: whoever just got its lease has the CPU first. And how
/// long a pool waits at most.
const QUIET: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_millis(20);
/// The most connections of all peers, and of one uid.
const PEERS: usize = 64;
const PEERS_OF_UID: usize = 8;
/// The most newcomers of one turn: so few that those who hung up since are gone before they count against their uid.
const NEWCOMERS: usize = 4;
/// The most events of one turn: all peers, and what else is watched.
const EVENTS: usize = PEERS + 4;
/// The most uids whose offences are counted one by one.
const OFFENDERS: usize = 256;

const LISTENER: u64 = 0;
const SIGNALS: u64 = 1;
const LINKS: u64 = 2;
const RULES: u64 = 3;
const FIRST_PEER: u64 = 16;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGTERM, SIGINT.
    Leave,
}

/// Says who is at the other end of a connection.
pub type Identify = fn(BorrowedFd<'_>) -> io::Result<Caller>;

struct Peer {
    channel: Channel<Reply, Request>,
    caller: Caller,
    /// It has greeted.
    met: bool,
    deadline: Instant,
}

/// What the loop needs and could not open once netd is confined.
pub struct Fds {
    /// For its waiting.
    pub epoll: OwnedFd,
    /// Where supervisors connect: listening, non-blocking.
    pub listener: OwnedFd,
    /// A signalfd of SIGHUP, SIGTERM and SIGINT, non-blocking.
    pub signals: OwnedFd,
}

/// The loop and all that it watches.
pub struct Server<O> {
    /// What the loop serves.
    pub netd: Netd<O>,
    epoll: OwnedFd,
    listener: OwnedFd,
    signals: OwnedFd,
    identify: Identify,
    peers: BTreeMap<u64, Peer>,
    next_peer: u64,
    /// How many events of peers there were.
    served: u64,
    /// The listener is not watched until then: accepting failed for want of fds.
    resting: Option<Instant>,
    /// How many connections of each uid ended for nonsense.
    offences: BTreeMap<u32, u64>,
}

impl<O: Ops> Server<O> {
    /// Watches everything.
    ///
    /// # Errors
    /// What `epoll` says.
    pub fn new(netd: Netd<O>, fds: Fds, identify: Identify) -> io::Result<Server<O>> {
        let Fds { epoll, listener, signals } = fds;
        let watch =
            |fd: BorrowedFd<'_>, token| epoll::add(&epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN);
        watch(listener.as_fd(), LISTENER)?;
        watch(signals.as_fd(), SIGNALS)?;
        watch(netd.ops.link_events_fd(), LINKS)?;
        watch(netd.ops.rule_events_fd(), RULES)?;
        let (peers, offences) = (BTreeMap::new(), BTreeMap::new());
        let next_peer = FIRST_PEER;
        Ok(Server { netd, epoll, listener, signals, identify, peers, next_peer, served: 0, resting: None, offences })
    }

    /// One turn: waits for events, `at_most` so long where that is given, and handles them. Returns what a signal asked.
    ///
    /// # Errors
    /// The loop itself is broken.
    pub fn turn(&mut self, at_most: Option<Duration>) -> io::Result<Option<Wish>> {
        let due = self.peers.values().map(|p| p.deadline).chain(self.resting).chain(self.netd.due()).min();
        let due = due.map(|at| at.saturating_duration_since(Instant::now()));
        // A millisecond more: waiting ends when it is due, not just before.
        let timeout = at_most.into_iter().chain(due.map(|d| d + Duration::from_millis(1))).min();
        let timeout = timeout.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: t.subsec_nanos().into() });
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; EVENTS];
        let count = match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let tokens: Vec<u64> = events[..count].iter().map(|e| e.data.u64()).collect();
        let mut wish = None;
        // What the kernel tells first: a request is answered by how things are.
        if tokens.contains(&LINKS) {
            self.netd.link_events();
        }
        if tokens.contains(&RULES) {
            self.netd.rule_events();
        }
        if tokens.contains(&SIGNALS) {
            wish = self.signal();
        }
        for peer in tokens.iter().filter(|token| **token >= FIRST_PEER) {
            self.served += 1;
            self.peer_event(*peer);
        }
        if tokens.contains(&LISTENER) {
            self.accept()?;
        }
        self.expire()?;
        Ok(wish)
    }

    /// Serves until a signal asks for something.
    ///
    /// # Errors
    /// The loop itself is broken.
    pub fn run(&mut self) -> io::Result<Wish> {
        let mut wanting: Option<Instant> = None;
        let mut quiet = false;
        loop {
            let now = Instant::now();
            wanting = self.netd.wanting(now).and(wanting.or(Some(now)));
            let pause = wanting.map(|_| if quiet { Duration::ZERO } else { QUIET });
            let served = self.served;
            if let Some(wish) = self.turn(pause)? {
                return Ok(wish);
            }
            let now = Instant::now();
            self.netd.tick(now);
            quiet = served == self.served;
            // Not beside a request, and not beside what it is for; but not never.
            if wanting.is_some_and(|since| quiet || now - since > PATIENCE) {
                self.netd.refill(now);
                wanting = None;
            }
        }
    }

    fn signal(&mut self) -> Option<Wish> {
        // struct signalfd_siginfo; the signal's number is its first field.
        let mut info = [0u8; 128];
        match rustix::io::read(&self.signals, &mut info) {
            Ok(128) => Some(if info[0] == libc::SIGHUP as u8 { Wish::Reload } else { Wish::Leave }),
            _ => None,
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..NEWCOMERS {
            match rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => self.newcomer(socket),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => return self.rest(true),
                // The newcomer is gone already.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Watches the listener no longer, or again: without fds it would be ready for ever.
    fn rest(&mut self, rest: bool) -> io::Result<()> {
        let flags = if rest { epoll::EventFlags::empty() } else { epoll::EventFlags::IN };
        if rest {
            log!("no file descriptors for another peer; trying again in a second");
        }
        self.resting = rest.then(|| Instant::now() + REST);
        Ok(epoll::modify(&self.epoll, &self.listener, epoll::EventData::new_u64(LISTENER), flags)?)
    }

    fn newcomer(&mut self, socket: OwnedFd) {
        let Ok(caller) = (self.identify)(socket.as_fd()) else { return };
        let of_uid = self.peers.values().filter(|p| p.caller.uid == caller.uid).count();
        if of_uid >= PEERS_OF_UID {
            return self.offence(caller.uid, &"more connections than one user may have");
        }
        if self.peers.len() >= PEERS {
            // Whoever was silent longest makes room: many uids together do not lock out one.
            let silent = self.peers.iter().min_by_key(|(_, p)| p.deadline).map(|(token, _)| *token);
            silent.map(|token| self.peers.remove(&token));
        }
        let channel = Channel::new(socket);
        let token = self.next_peer;
        let watched = epoll::add(&self.epoll, &channel, epoll::EventData::new_u64(token), epoll::EventFlags::IN);
        if watched.is_ok() && channel.greet(NAME, VERSION, 0).is_ok() {
            self.next_peer += 1;
            let deadline = Instant::now() + SILENCE;
            self.peers.insert(token, Peer { channel, caller, met: false, deadline });
        }
    }

    fn peer_event(&mut self, token: u64) {
        let Some(peer) = self.peers.get_mut(&token) else { return };
        let handled = if peer.met {
            serve_request(&mut self.netd, peer)
        } else {
            peer.channel.meet(NAME, VERSION, 0).map(|_| peer.met = true)
        };
        match handled {
            Ok(()) => peer.deadline = Instant::now() + SILENCE,
            Err(error) if error.would_block() => {}
            Err(error) => {
                let uid = peer.caller.uid;
                self.peers.remove(&token);
                if !matches!(error, ipc::Error::Closed) {
                    self.offence(uid, &error);
                }
            }
        }
    }

    /// Counts it, and logs the first, second, fourth, … of a uid: a log that a peer can fill hides what matters.
    fn offence(&mut self, uid: u32, what: &dyn std::fmt::Display) {
        if self.offences.len() >= OFFENDERS && !self.offences.contains_key(&uid) {
            self.offences.clear();
        }
        let count = self.offences.entry(uid).or_default();
        *count += 1;
        if count.is_power_of_two() {
            log!("uid {uid}: {what}; connection closed ({count} of this user so far)");
        }
    }

    fn expire(&mut self) -> io::Result<()> {
        let now = Instant::now();
        self.peers.retain(|_, p| p.deadline > now);
        if self.resting.is_some_and(|at| at <= now) { self.rest(false) } else { Ok(()) }
    }

    /// How many peers there are.
    pub fn peers(&self) -> usize {
        self.peers.len()
    }
}

/// One request: receive; permit, validate and act; reply.
fn serve_request<O: Ops>(netd: &mut Netd<O>, peer: &mut Peer) -> Result<(), ipc::Error> {
    let (request, _none) = peer.channel.receive()?;
    let (reply, queues) = netd.answer(&peer.caller, &request);
    let fds: Vec<BorrowedFd<'_>> = queues.iter().map(OwnedFd::as_fd).collect();
    match peer.channel.send(&reply, &fds) {
        Ok(()) => {
            // Closed here, when the peer holds them: the last one to close a TAP waits for 16 ms.
            drop(queues);
            netd.delivered(&peer.caller, &reply);
            Ok(())
        }
        Err(error) => {
            netd.undelivered(&peer.caller, &request, &reply, queues);
            // A full socket is a peer that does not read.
            Err(if error.would_block() { ipc::Error::Closed } else { error })
        }
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
