//! One connection to netd: opened, greeted, and spoken to, with a deadline on every answer.

use crate::serve::readiness;
use ipc::Channel;
use netd_api::{NAME, Refusal, Reply, Request, VERSION};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long to wait before connecting again to a socket whose backlog is full: the kernel offers no event for it.
const BACK_OFF: Duration = Duration::from_millis(5);

/// Why netd did not do it.
#[derive(Debug, thiserror::Error)]
pub enum NetdError {
    /// Nobody serves the socket.
    #[error("{0}")]
    Away(io::Error),
    /// Its backlog is full.
    #[error("too many connections wait for it")]
    Busy,
    /// No answer in time.
    #[error("it did not answer in {} s", .0.as_secs().max(1))]
    Silent(Duration),
    /// It hung up, spoke nonsense, or is of another release.
    #[error("{0}")]
    Channel(ipc::Error),
    /// What it said cannot be.
    #[error("it said {0}")]
    Confused(String),
    /// It said no.
    #[error("it refused: {0:?}")]
    Refused(Refusal),
}

impl From<ipc::Error> for NetdError {
    fn from(error: ipc::Error) -> Self {
        NetdError::Channel(error)
    }
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    channel: Channel<Request, Reply>,
    deadline: Duration,
    /// Our header went out.
    greeted: bool,
    /// Its header came.
    met: bool,
}

impl Connection {
    /// Connects, without waiting.
    ///
    /// # Errors
    /// [`NetdError::Away`], [`NetdError::Busy`].
    pub fn open(path: &Path, deadline: Duration) -> Result<Connection, NetdError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let away = |error: Errno| NetdError::Away(error.into());
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(away)?;
        connect(&socket, &SocketAddrUnix::new(path).map_err(away)?).map_err(|error| match error {
            Errno::AGAIN => NetdError::Busy,
            error => away(error),
        })?;
        Ok(Connection { channel: Channel::new(socket), deadline, greeted: false, met: false })
    }

    /// Connects; tries again while the backlog is full, until the deadline.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub async fn open_patiently(path: &Path, deadline: Duration) -> Result<Connection, NetdError> {
        let until = Instant::now() + deadline;
        loop {
            match Connection::open(path, deadline) {
                Err(NetdError::Busy) if Instant::now() < until => tokio::time::sleep(BACK_OFF).await,
                other => return other,
            }
        }
    }

    /// Sends a request, behind our header where it is the first: that saves a turn, and a netd of another release refuses
    /// at the header.
    ///
    /// # Errors
    /// The channel's.
    pub fn send(&mut self, request: &Request) -> Result<(), NetdError> {
        if !std::mem::replace(&mut self.greeted, true) {
            self.channel.greet(NAME, VERSION, 0)?;
        }
        match self.channel.send(request, &[]) {
            // It closed at our header. What it said before that, its own header, is still to be read and says why.
            Err(ipc::Error::Closed) => Ok(()),
            other => Ok(other?),
        }
    }

    /// The answer to the request that was sent.
    ///
    /// # Errors
    /// [`NetdError::Silent`], or the channel's.
    pub async fn answer(&mut self) -> Result<(Reply, Vec<OwnedFd>), NetdError> {
        let Connection { channel, deadline, met, .. } = self;
        let answer = async {
            if !*met {
                readiness::receive(channel, |channel| channel.meet(NAME, VERSION, 0)).await?;
                *met = true;
            }
            readiness::receive(channel, Channel::receive).await
        };
        match timeout(*deadline, answer).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(NetdError::Silent(*deadline)),
        }
    }

    /// Sends a request and takes the answer.
    ///
    /// # Errors
    /// As [`Connection::answer`]. The connection is of no use after an error.
    pub async fn ask(&mut self, request: &Request) -> Result<(Reply, Vec<OwnedFd>), NetdError> {
        self.send(request)?;
        self.answer().await
    }
}
