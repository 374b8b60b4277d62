//! The one way in which vmsup's processes talk: a `SOCK_SEQPACKET` Unix socket that carries one typed frame a packet,
//! with the fds that the frame declares and no others.
//!
//! Unsafe: `fds.rs` only, for two socket options. rustix turns received numbers into owned fds, also those of a truncated
//! message, where nix returns an error and leaks them (the lesson of CVE-2020-12049).
//!
//! - The direction is in the type: the peer of a [`Channel<S, R>`] is a `Channel<R, S>`.
//! - [`codec`] alone knows the encoding. A frame is bounded before anything is allocated for it.
//! - A frame with another number of fds than its message declares, a truncated one, and one with bytes left over are
//!   errors after which the caller drops the channel; the fds that came with it are closed by then.
//! - [`peer`] says who is at the other end of a socket, and whom a configuration means by a name.
//! - [`Channel::handshake`] opens each connection: binaries of two releases refuse each other with a sentence.
#![deny(unsafe_code)]

mod channel;
pub mod codec;
mod fds;
pub mod holder;
pub mod peer;

pub use channel::{Channel, Message, Pair, Protocol};
pub use fds::{MAX_FDS, peer_groups, peer_ids};

/// Why a frame could not be sent or was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system call failed; `WouldBlock` on a non-blocking channel included.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// What came (or was to be sent) is not a frame of this protocol. The channel is of no use after it.
    #[error("malformed frame: {0}")]
    Malformed(&'static str),
    /// The frame is larger than its message type allows.
    #[error("frame of more than {0} bytes")]
    TooLarge(usize),
    /// The frame carried another number of fds than its message declares; all of them are closed.
    #[error("frame with {got} file descriptors where {declared} are declared")]
    Fds {
        /// What the message declares.
        declared: usize,
        /// What came.
        got: usize,
    },
    /// The peer speaks another protocol or another version of this one.
    #[error("the peer speaks {peer}, this program speaks {own}: both must be of one release")]
    Version {
        /// Name and version of the peer's protocol.
        peer: String,
        /// Name and version of ours.
        own: String,
    },
    /// The peer closed the connection.
    #[error("the peer closed the connection")]
    Closed,
}

impl Error {
    /// True where a non-blocking channel has nothing to read, or no room to write.
    pub fn would_block(&self) -> bool {
        matches!(self, Error::Io(e) if e.kind() == std::io::ErrorKind::WouldBlock)
    }
}
