//! One worker's control socket: connected, checked, and spoken to.
//!
//! The worker parses what we send inside its jail; what comes back is an allegation and decides about its own VM only.
//! Each request has one reply, in order.

use super::end::plain;
use super::readiness::watch;
use ipc::Channel;
use jail_spec::Worker;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::Interest;
use worker_api::{NAME, Offer, Reply, Request, StartFailure, StartSpec, Timings, VERSION};

/// A connected worker.
#[derive(Debug)]
pub struct Control {
    channel: Channel<Request, Reply>,
    /// Our header went out.
    met: AtomicBool,
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
}

impl Control {
    /// Connects to a worker in the directory of the workers' sockets.
    ///
    /// # Errors
    /// [`ControlError::Io`]; [`ControlError::Impostor`] where the listener is not this worker.
    pub fn connect(workers: BorrowedFd<'_>, worker: &Worker) -> Result<Control, ControlError> {
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
        Ok(Control { channel: Channel::new(socket), met: AtomicBool::new(false) })
    }

    /// Makes the worker the VM. Our header and the spec go out together, which saves a turn; a worker of another
    /// release refuses at the header and says so in its last words.
    ///
    /// # Errors
    /// [`ControlError::Failed`] where it says that it cannot, else the channel's.
    pub async fn start(&self, spec: StartSpec, fds: &[BorrowedFd<'_>]) -> Result<Timings, ControlError> {
        match self.ask_first(&Request::Start(spec), fds).await? {
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
        match self.ask_first(&Request::Offer, &[kvm]).await? {
            Reply::Offer(offer) if offer.check().is_ok() => Ok(offer),
            _ => Err(ControlError::Confused),
        }
    }

    /// Sends a request, behind our header where it is the first, and takes the answer.
    async fn ask_first(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, ControlError> {
        let first = !self.met.swap(true, Ordering::Relaxed);
        if first {
            self.channel.greet(NAME, VERSION, 0)?;
        }
        self.channel.send(request, fds)?;
        if first {
            self.read(|channel| channel.meet(NAME, VERSION, 0)).await?;
        }
        Ok(self.read(|channel| channel.receive()).await?.0)
    }

    /// Presses the guest's power button.
    ///
    /// # Errors
    /// The channel's.
    pub async fn press_power_button(&self) -> Result<(), ControlError> {
        self.channel.send(&Request::PowerButton, &[])?;
        match self.read(|channel| channel.receive()).await?.0 {
            Reply::Done => Ok(()),
            _ => Err(ControlError::Confused),
        }
    }

    /// Receives one frame. The socket is registered only meanwhile: a worker that sends without being asked wakes
    /// nobody and fills its own socket.
    async fn read<T>(
        &self,
        mut receive: impl FnMut(&Channel<Request, Reply>) -> Result<T, ipc::Error>,
    ) -> Result<T, ControlError> {
        // Whatever is there already comes before anything else that may have happened since.
        match receive(&self.channel) {
            Err(error) if error.would_block() => {}
            other => return Ok(other?),
        }
        let ready = watch(self.channel.as_fd(), Interest::READABLE)?;
        loop {
            let mut guard = ready.readable().await?;
            match receive(&self.channel) {
                Err(error) if error.would_block() => guard.clear_ready(),
                other => return Ok(other?),
            }
        }
    }
}
