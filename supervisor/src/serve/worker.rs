//! One worker's control socket: connected, checked, and spoken to.
//!
//! The worker parses what we send inside its jail; what comes back is an allegation and decides about its own VM only.
//! Each request has one reply, in order.
//!
//! A connection is made for the first request, and again for the next one after a hang-up. That a worker hung up does not say
//! that it ended: where all workers share one uid, another one can fill the kernel's count of that uid's fds in flight, so
//! that this one's console cannot be sent.

use super::closing;
use super::end::plain;
use super::readiness::receive;
use ipc::Channel;
use jail_spec::Worker;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use worker_api::{NAME, Offer, Reply, Request, StartFailure, StartSpec, Stats, Status, Timings, VERSION};

/// The most replies that a worker may owe: one that answers nothing is not asked again until it has answered.
const OWED_MAX: usize = 8;

/// The way to a worker.
#[derive(Debug)]
pub struct Control {
    worker: Worker,
    /// The directory of the workers' sockets.
    workers: Arc<OwnedFd>,
    /// The connection, while there is one.
    talk: Mutex<Option<Talk>>,
}

/// A connection, and how far the conversation is.
#[derive(Debug)]
struct Talk {
    channel: Channel<Request, Reply>,
    /// Our header went out.
    greeted: bool,
    /// Its header came.
    met: bool,
    /// The replies that are still to come: whether they carry fds. Those of a worker may be its disks, on a file system of
    /// whoever it likes, and none is taken but where it was asked for.
    owed: VecDeque<bool>,
}

/// Why a worker could not be spoken to, or what it said no to.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A system call failed.
    #[error("the worker's control socket: {0}")]
    Io(#[from] io::Error),
    /// Somebody else listens where the worker should.
    #[error("the control socket is not the worker's: pid {pid}, uid {uid} listens, pid {} and uid {} should", .worker.pid, .worker.uid)]
    Impostor {
        /// Pid of who listens.
        pid: i32,
        /// Their uid.
        uid: u32,
        /// Who should.
        worker: Worker,
    },
    /// It hung up, spoke nonsense, or is of another release.
    #[error("the worker: {0}")]
    Channel(#[from] ipc::Error),
    /// It answered something that is no answer to what was asked.
    #[error("the worker answered something else than it was asked")]
    Confused,
    /// It gave no answer in time.
    #[error("the worker does not answer")]
    Silent,
    /// It says that it cannot.
    #[error("{}", plain(&.0.detail))]
    Failed(StartFailure),
}

impl ControlError {
    /// The worker only went away.
    pub fn is_hang_up(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
        match self {
            ControlError::Channel(ipc::Error::Closed) => true,
            ControlError::Io(error) | ControlError::Channel(ipc::Error::Io(error)) => {
                matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | NotFound)
            }
            _ => false,
        }
    }

    /// The worker does not look at its socket: as many wait there as it has room for, or it leaves what it is sent unread.
    pub fn is_full(&self) -> bool {
        match self {
            ControlError::Io(error) => error.kind() == io::ErrorKind::WouldBlock,
            ControlError::Channel(error) => error.would_block(),
            _ => false,
        }
    }
}

/// Connects to a worker in the directory of the workers' sockets, and hangs up again.
///
/// # Errors
/// [`ControlError::Io`]; [`ControlError::Impostor`] where the listener is not this worker.
pub fn knock(workers: &OwnedFd, worker: &Worker) -> Result<(), ControlError> {
    dial(workers, worker).map(drop)
}

/// Connects to a worker in the directory of the workers' sockets.
fn dial(workers: &OwnedFd, worker: &Worker) -> Result<OwnedFd, ControlError> {
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
            .map_err(io::Error::from)?;
    // Through the fd of the directory that was checked: whatever its path leads to by now, and however long it is.
    let path = format!("/proc/self/fd/{}/{}", workers.as_raw_fd(), worker.slot.socket_name());
    let address = SocketAddrUnix::new(path).map_err(io::Error::from)?;
    connect(&socket, &address).map_err(io::Error::from)?;
    let peer = sockopt::socket_peercred(&socket).map_err(io::Error::from)?;
    let (pid, uid) = (peer.pid.as_raw_nonzero().get(), peer.uid.as_raw());
    if (pid, uid) != (worker.pid, worker.uid) {
        return Err(ControlError::Impostor { pid, uid, worker: *worker });
    }
    Ok(socket)
}

impl Control {
    /// The way to a worker in the directory of the workers' sockets.
    pub fn new(workers: &Arc<OwnedFd>, worker: &Worker) -> Control {
        Control { worker: *worker, workers: workers.clone(), talk: Mutex::default() }
    }

    /// Connects, where there is no connection: what is asked does that by itself.
    ///
    /// # Errors
    /// [`ControlError::Io`]; [`ControlError::Impostor`] where the listener is not this worker.
    pub async fn connect(&self) -> Result<(), ControlError> {
        let mut talk = self.talk.lock().await;
        if talk.is_none() {
            *talk = Some(Talk::new(dial(&self.workers, &self.worker)?));
        }
        Ok(())
    }

    /// Makes the worker the VM. Our header and the spec go out together, which saves a turn; a worker of another
    /// release refuses at the header and says so in its last words.
    ///
    /// # Errors
    /// [`ControlError::Failed`] where it says that it cannot, else the channel's.
    pub async fn start(&self, spec: StartSpec, fds: &[BorrowedFd<'_>]) -> Result<Timings, ControlError> {
        match self.ask(&Request::Start(spec), fds).await?.0 {
            Reply::Started(timings) => Ok(timings),
            Reply::Failed(failure) => Err(ControlError::Failed(failure)),
            _ => Err(ControlError::Confused),
        }
    }

    /// Asks an empty worker what KVM offers on this host: before anything of a guest's reaches it, so that its word can be
    /// passed on to others.
    ///
    /// # Errors
    /// The channel's.
    pub async fn offer(&self, kvm: BorrowedFd<'_>) -> Result<Offer, ControlError> {
        match self.ask(&Request::Offer, &[kvm]).await?.0 {
            Reply::Offer(offer) if offer.check().is_ok() => Ok(offer),
            _ => Err(ControlError::Confused),
        }
    }

    /// Presses the guest's power button.
    ///
    /// # Errors
    /// The channel's.
    pub async fn press_power_button(&self) -> Result<(), ControlError> {
        done(self.ask(&Request::PowerButton, &[]).await?.0)
    }

    /// Asks how far it is, and by that whether it answers at all.
    ///
    /// # Errors
    /// [`ControlError::Silent`] where there is no answer until the deadline, else the channel's.
    pub async fn status(&self, deadline: Duration) -> Result<Status, ControlError> {
        match self.ask_until(deadline, &Request::Status).await?.0 {
            Reply::Status(status) => Ok(status),
            _ => Err(ControlError::Confused),
        }
    }

    /// Has all vCPUs stand still.
    ///
    /// # Errors
    /// As [`Control::status`].
    pub async fn pause(&self, deadline: Duration) -> Result<(), ControlError> {
        done(self.ask_until(deadline, &Request::Pause).await?.0)
    }

    /// Has the vCPUs go on.
    ///
    /// # Errors
    /// As [`Control::status`].
    pub async fn resume(&self, deadline: Duration) -> Result<(), ControlError> {
        done(self.ask_until(deadline, &Request::Resume).await?.0)
    }

    /// Asks for the ends of the VM's console: ring, notify eventfd and input pipe, or so the worker says. What they are
    /// [`super::console::Console::adopted`] looks at.
    ///
    /// # Errors
    /// As [`Control::status`].
    pub async fn console(&self, deadline: Duration) -> Result<[OwnedFd; 3], ControlError> {
        match self.ask_until(deadline, &Request::Console).await? {
            (Reply::Console, fds) => fds.try_into().map_err(|fds: Vec<OwnedFd>| {
                closing::later(fds);
                ControlError::Confused
            }),
            _ => Err(ControlError::Confused),
        }
    }

    /// Asks what vCPUs and devices did: bounded, and allegations all of it.
    ///
    /// # Errors
    /// As [`Control::status`].
    pub async fn stats(&self, deadline: Duration) -> Result<Stats, ControlError> {
        match self.ask_until(deadline, &Request::Stats).await?.0 {
            Reply::Stats(counted) if counted.check().is_ok() => Ok(*counted),
            _ => Err(ControlError::Confused),
        }
    }

    async fn ask_until(&self, deadline: Duration, request: &Request) -> Result<(Reply, Vec<OwnedFd>), ControlError> {
        tokio::time::timeout(deadline, self.ask(request, &[])).await.map_err(|_| ControlError::Silent)?
    }

    /// Sends a request and takes the answer, over a new connection where there is none (any more).
    async fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(Reply, Vec<OwnedFd>), ControlError> {
        let mut talk = self.talk.lock().await;
        let answer = match &mut *talk {
            Some(talk) => talk.ask(request, fds).await,
            none => none.insert(Talk::new(dial(&self.workers, &self.worker)?)).ask(request, fds).await,
        };
        if answer.as_ref().is_err_and(ControlError::is_hang_up) {
            *talk = None;
        }
        answer
    }
}

impl Talk {
    fn new(socket: OwnedFd) -> Talk {
        Talk { channel: Channel::new(socket), greeted: false, met: false, owed: VecDeque::new() }
    }

    /// Sends a request, behind our header where it is the first, and takes the answer. One after the other; where somebody
    /// gave up waiting, the next one first takes what came for them.
    async fn ask(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(Reply, Vec<OwnedFd>), ControlError> {
        if self.owed.len() >= OWED_MAX {
            self.collect()?;
        }
        if self.owed.len() >= OWED_MAX {
            return Err(ControlError::Silent);
        }
        let greeting =
            if std::mem::replace(&mut self.greeted, true) { Ok(()) } else { self.channel.greet(NAME, VERSION, 0) };
        let sent = greeting.and_then(|()| self.channel.send(request, fds));
        if sent.is_ok() {
            self.owed.push_back(matches!(request, Request::Console));
        }
        if !self.met && matches!(sent, Ok(()) | Err(ipc::Error::Closed)) {
            // One of another release hangs up at our header. Its own is still to be read, and says why.
            receive(&self.channel, |channel| channel.meet(NAME, VERSION, 0)).await?;
            self.met = true;
        }
        sent?;
        loop {
            let fds = self.owed.front() == Some(&true);
            let (reply, fds) = receive(&self.channel, |channel| answer(channel, fds)).await?;
            self.owed.pop_front();
            if self.owed.is_empty() {
                return Ok((reply, fds));
            }
            closing::later(fds);
        }
    }

    /// Takes the answers that have come since somebody gave up waiting: a worker that stood still and goes on is asked again.
    fn collect(&mut self) -> Result<(), ControlError> {
        while self.met
            && let Some(fds) = self.owed.front()
        {
            match answer(&self.channel, *fds) {
                Ok((_, fds)) => {
                    self.owed.pop_front();
                    closing::later(fds);
                }
                Err(error) if error.would_block() => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// A worker's answer, with fds where they are due.
fn answer(channel: &Channel<Request, Reply>, fds: bool) -> Result<(Reply, Vec<OwnedFd>), ipc::Error> {
    if fds { channel.receive_or(closing::later) } else { channel.receive_bare().map(|reply| (reply, Vec::new())) }
}

fn done(reply: Reply) -> Result<(), ControlError> {
    if reply == Reply::Done { Ok(()) } else { Err(ControlError::Confused) }
}
