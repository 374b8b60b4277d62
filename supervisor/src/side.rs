//! The side socket: how a client hands open files to a supervisor that several users share.
//!
//! Such a supervisor opens no path that a caller names: it could open files that the caller may not. The client opens them,
//! with its own rights, and sends the fds over a `SOCK_SEQPACKET` socket beside the API's. It gets a ticket for them, which
//! it names in its request to the API (`"files"`).
//!
//! ```text
//! client                             supervisor
//!   header ───────────────────────▶
//!          ◀───────────────────────  header
//!   Files { fields } and the fds ─▶
//!          ◀───────────────────────  Ticket
//!   (keeps the connection until the request to the API was answered)
//! ```
//!
//! A ticket is good for the uid that handed the files over, once, for a minute, and as long as the connection stands.

use ipc::{Channel, Message};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;
use worker_api::DISKS_MAX;

/// What is spoken.
pub const NAME: &str = "vmsup-files";
/// Its version.
pub const VERSION: u16 = 1;
/// The most files of one request: kernel, initrd, disks.
pub const FILES_MAX: usize = 2 + DISKS_MAX;
/// Characters of a ticket: 128 random bits in hexadecimal digits.
pub const TICKET_DIGITS: usize = 32;
/// How long the client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Offer {
    /// Here are the files that these fields of a spec name, an fd for each, in this order.
    Files {
        /// `boot.kernel`, `disks[0].path`; at most [`FILES_MAX`].
        fields: Vec<String>,
    },
}

impl Message for Offer {
    const MAX_BYTES: usize = 256;

    fn fd_count(&self) -> usize {
        let Offer::Files { fields } = self;
        fields.len()
    }
}

/// What the supervisor answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The files can be named by this from now on.
    Ticket(String),
    /// They were not taken (why).
    Refused(String),
}

impl Message for Answer {
    const MAX_BYTES: usize = 512;
    const MAX_FDS: usize = 0;
}

/// Files that were handed over; taken back when this is dropped, unless they were used.
#[derive(Debug)]
pub struct HandedOver {
    /// What a request to the API names them by.
    pub ticket: String,
    _connection: Channel<Offer, Answer>,
}

/// Why files could not be handed over.
#[derive(Debug, thiserror::Error)]
pub enum SideError {
    /// There is no socket, or nobody behind it.
    #[error("{0}")]
    Socket(#[from] std::io::Error),
    /// The supervisor hung up, or is of another release.
    #[error("{0}")]
    Channel(#[from] ipc::Error),
    /// The supervisor did not take them.
    #[error("{0}")]
    Refused(String),
}

/// Hands files over: those that the fields of a spec name. Blocks until the supervisor has answered, half a minute at most.
///
/// # Errors
/// [`SideError`].
pub fn hand_over(socket: &Path, files: &[(String, OwnedFd)]) -> Result<HandedOver, SideError> {
    let connection = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let connection = connection.map_err(std::io::Error::from)?;
    for timeout in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
        sockopt::set_socket_timeout(&connection, timeout, Some(PATIENCE)).map_err(std::io::Error::from)?;
    }
    let address = SocketAddrUnix::new(socket).map_err(std::io::Error::from)?;
    connect(&connection, &address).map_err(std::io::Error::from)?;
    let connection = Channel::new(connection);
    connection.handshake(NAME, VERSION, 0)?;
    let fields = files.iter().map(|(field, _)| field.clone()).collect();
    let fds: Vec<BorrowedFd<'_>> = files.iter().map(|(_, fd)| fd.as_fd()).collect();
    connection.send(&Offer::Files { fields }, &fds)?;
    match connection.receive()?.0 {
        Answer::Ticket(ticket) => Ok(HandedOver { ticket, _connection: connection }),
        Answer::Refused(why) => Err(SideError::Refused(why)),
    }
}
