//! The control socket: the only way in. One peer at a time, a supervisor; its requests are bounded frames.
//!
//! Runs on the main thread: under the start-up filter until the VM begins, then under `worker-control.json`. A peer that
//! hangs up makes room for the next; one that says something malformed, or does not read its replies, is dropped. No
//! call here blocks but the one `poll(2)`, and a pause for as long as a vCPU needs to leave the guest.
//!
//! A VM does not end because nobody looks after it: jailer and supervisor may both be gone, and find it again by this socket.

use crate::leave::{self, End, Words, leave};
use crate::start::{self, Controls, Machine};
use crate::sys;
use crate::vm::{self, Offer, VmError};
use ipc::Channel;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType, accept_with, getsockname, listen, sockopt};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use worker_api::{NAME, Reply, Request, StartFailure, StartSpec, Status, VERSION};

/// The number that the control socket is born with (`policies/process.json`).
const SOCKET: i32 = 3;

/// Supervisors that may come and go while this process is stopped: the next one could not connect, and would have to take it
/// for one that does not want to be spoken to.
const BACKLOG: i32 = 64;

type Peer = Channel<Reply, Request>;

/// This program was not started by the jailer: fd 3 is not a bound Unix socket that nobody listens on yet.
#[derive(Debug, thiserror::Error)]
#[error("vmsup-worker is started by vmsup-jailer, which passes it a control socket; start a VM with `vmsup start`")]
pub struct NotAJail;

/// The control socket.
pub struct Listener(OwnedFd);

impl Listener {
    /// The socket that this process was born with. Once, before confinement.
    ///
    /// # Errors
    /// There is none.
    pub fn inherited() -> Result<Self, NotAJail> {
        let fd = sys::inherited_fd(SOCKET).ok_or(NotAJail)?;
        let fits = sockopt::socket_type(&fd) == Ok(SocketType::SEQPACKET)
            && sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX)
            && sockopt::socket_acceptconn(&fd) == Ok(false)
            && getsockname(&fd).is_ok_and(|address| is_bound(&address));
        if fits { Ok(Listener(fd)) } else { Err(NotAJail) }
    }

    /// Begins to listen. After confinement: from here on peers see this process's pid and uid as the socket's.
    pub fn listen(&self) {
        if let Err(error) = listen(&self.0, BACKLOG) {
            leave(&End::Failed(Words::new(format_args!("the control socket cannot listen: {error}"))));
        }
    }

    /// Waits for a supervisor and its VM, becomes that VM, and serves it to its end.
    pub fn serve(self) -> ! {
        let mut connection = Connection { listener: self, peer: None, met: false };
        let (spec, fds) = connection.wait_for_start();
        // From here on the jailer takes this process for a VM.
        sys::name_thread(c"vmsup-worker");
        let machine = match start::prepare(&spec, fds) {
            Ok(machine) => machine,
            Err(failure) => connection.fail(failure),
        };
        let controls = connection.begin(machine);
        loop {
            let (request, _) = connection.next(false);
            connection.serve(request, &controls);
        }
    }
}

fn is_bound(address: &SocketAddrAny) -> bool {
    // An unbound Unix socket has an address of the family alone.
    usize::try_from(address.addr_len()).is_ok_and(|length| length > size_of::<u16>())
}

/// The socket and the peer of the moment.
struct Connection {
    listener: Listener,
    peer: Option<Peer>,
    /// The peer has said that it speaks this protocol.
    met: bool,
}

impl Connection {
    /// Serves an empty worker until it is told which VM it is.
    fn wait_for_start(&mut self) -> (StartSpec, Vec<OwnedFd>) {
        loop {
            match self.next(true) {
                (Request::Start(spec), fds) => return (spec, fds),
                (Request::Status, _) => self.reply(&Reply::Status(Status::Empty)),
                (Request::Offer, fds) => match fds.into_iter().next().map(offer) {
                    Some(Ok(offer)) => self.reply(&Reply::Offer(offer)),
                    _ => self.drop_peer(),
                },
                // There is no guest yet.
                _ => self.drop_peer(),
            }
        }
    }

    /// Carries out a request to the VM that runs here.
    fn serve(&mut self, request: Request, controls: &Controls) {
        let Controls { power_button, console, gate, meters } = controls;
        match request {
            Request::Status if gate.is_closed() => self.reply(&Reply::Status(Status::Paused)),
            Request::Status => self.reply(&Reply::Status(Status::Running)),
            // The answer first: a guest may switch itself off before this thread comes to anything else. Nothing can
            // fail after it.
            Request::PowerButton => {
                self.reply(&Reply::Done);
                power_button.press();
            }
            Request::Pause => {
                gate.close();
                self.reply(&Reply::Done);
            }
            Request::Resume => {
                self.reply(&Reply::Done);
                gate.open();
            }
            Request::Console => self.reply_with(&Reply::Console, &console.fds()),
            Request::Stats => self.reply(&Reply::Stats(Box::new(meters.read()))),
            // A worker is one VM, once.
            Request::Start(_) | Request::Offer => self.drop_peer(),
        }
    }

    /// The next request of any peer. While the worker is `empty` it leaves when nobody holds the other end of its report
    /// pipe: with the jailer gone nobody will send it a VM.
    fn next(&mut self, empty: bool) -> (Request, Vec<OwnedFd>) {
        loop {
            self.wait(empty);
            match &self.peer {
                None => self.accept(),
                Some(peer) if !self.met => match peer.meet(NAME, VERSION, 0) {
                    Ok(_) => self.met = true,
                    Err(error) if error.would_block() => (),
                    Err(_) => self.drop_peer(),
                },
                Some(peer) => match peer.receive() {
                    Ok(request) => return request,
                    Err(error) if error.would_block() => (),
                    Err(_) => self.drop_peer(),
                },
            }
        }
    }

    /// Blocks until the peer, or where there is none the listening socket, has news.
    fn wait(&self, empty: bool) {
        let report = std::io::stderr();
        let source = self.peer.as_ref().map_or(self.listener.0.as_fd(), AsFd::as_fd);
        // The write end of a pipe asks for nothing: POLLERR is always told.
        let mut fds = [PollFd::from_borrowed_fd(source, PollFlags::IN), PollFd::new(&report, PollFlags::empty())];
        let watched = if empty { 2 } else { 1 };
        match poll(&mut fds[..watched], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => (),
            Err(error) => leave(&End::Failed(Words::new(format_args!("the control thread cannot wait: {error}")))),
        }
        if fds[1].revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
            leave(&End::Orphaned);
        }
    }

    /// Takes the next peer and greets it. Non-blocking, so that no peer can hold this thread.
    fn accept(&mut self) {
        if let Ok(socket) = accept_with(&self.listener.0, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            let peer = Peer::new(socket);
            self.met = false;
            self.peer = peer.greet(NAME, VERSION, 0).is_ok().then_some(peer);
        }
    }

    /// Sends a reply; a peer that does not take it is dropped.
    fn reply(&mut self, reply: &Reply) {
        self.reply_with(reply, &[]);
    }

    /// The same, with fds.
    fn reply_with(&mut self, reply: &Reply, fds: &[BorrowedFd<'_>]) {
        if self.peer.as_ref().is_some_and(|peer| peer.send(reply, fds).is_err()) {
            self.drop_peer();
        }
    }

    fn drop_peer(&mut self) {
        self.peer = None;
    }

    /// Lets the guest begin, and only then tells of it.
    fn begin(&mut self, machine: Machine) -> Controls {
        let Machine { crew, controls, mut timings, mut clock, vm } = machine;
        // KVM forgets a VM's irqfds when its fd is closed; this process never closes it.
        Box::leak(Box::new(vm));
        crew.go();
        timings.threads += clock.lap();
        self.reply(&Reply::Started(timings));
        leave::answered();
        controls
    }

    fn fail(&mut self, failure: StartFailure) -> ! {
        let words = Words::from(failure.detail.as_str());
        self.reply(&Reply::Failed(bounded(failure)));
        leave(&End::Failed(words))
    }
}

/// What the KVM of this fd offers.
fn offer(kvm: OwnedFd) -> Result<worker_api::Offer, VmError> {
    Ok(Offer::ask(&vm::kvm(kvm)?)?.to_wire())
}

/// A failure whose text fits a reply.
fn bounded(mut failure: StartFailure) -> StartFailure {
    const DETAIL_MAX: usize = 900;
    while failure.detail.len() > DETAIL_MAX {
        failure.detail.pop();
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::Message;
    use worker_api::Part;

    #[test]
    fn the_longest_failure_fits_a_reply() {
        for text in ["x".repeat(5000), "ä".repeat(3000)] {
            let failure = bounded(StartFailure { part: Part::Disk(7), detail: text });
            let bytes = ipc::codec::encode(&Reply::Failed(failure), Reply::MAX_BYTES).unwrap();
            assert!(bytes.len() > 890);
        }
    }
}
