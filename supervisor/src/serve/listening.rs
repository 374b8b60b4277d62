//! The API's socket: bound by us, or by a service manager that listens for us.
//!
//! A service manager (`packaging/systemd/system/vmsup.socket`) gives the listening socket as our standard input
//! (StandardInput=socket), as it gives the jailer its own. It stays there when we leave, and clients wait in its backlog for
//! the next supervisor.

use super::ServeError;
use super::rundir::RunDir;
use rustix::net::{AddressFamily, SocketType, sockopt};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// A socket that accepts clients.
#[derive(Debug)]
pub struct Listening {
    /// It, non-blocking.
    pub listener: UnixListener,
    /// Whose it is.
    pub place: Place,
}

/// Where we bound it; `None` where it is a service manager's.
#[derive(Debug)]
pub struct Place(Option<PathBuf>);

impl Listening {
    /// The socket on our standard input, where one listens there; else a new one at `socket`.
    ///
    /// # Errors
    /// Something else is at `socket`, or somebody answers there.
    pub fn take(rundir: &RunDir, socket: &Path) -> Result<Listening, ServeError> {
        let Some(listener) = given(rustix::stdio::stdin())? else {
            return Ok(Listening { listener: rundir.bind(socket)?, place: Place(Some(socket.to_owned())) });
        };
        // Ours is a copy: nobody who is started by us has the other one as its stdin by mistake.
        let nowhere = std::fs::File::open("/dev/null").map_err(|e| ServeError::System("opening /dev/null", e))?;
        rustix::stdio::dup2_stdin(&nowhere)
            .map_err(|e| ServeError::System("taking the service manager's socket", e.into()))?;
        Ok(Listening { listener, place: Place(None) })
    }
}

impl Place {
    /// Removes the socket, where it is ours: who finds none starts a new supervisor, which waits for our lock.
    pub fn withdraw(&self) {
        if let Some(socket) = &self.0
            && let Err(error) = rustix::fs::unlink(socket)
        {
            tracing::warn!(socket = %socket.display(), %error, "removing the socket");
        }
    }
}

/// A copy of `fd`, where that is a Unix stream socket which listens.
fn given(fd: impl AsFd) -> Result<Option<UnixListener>, ServeError> {
    let listens = sockopt::socket_acceptconn(&fd) == Ok(true)
        && sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&fd) == Ok(SocketType::STREAM);
    if !listens {
        return Ok(None);
    }
    let failed = |e| ServeError::System("taking the service manager's socket", e);
    let listener = UnixListener::from(fd.as_fd().try_clone_to_owned().map_err(failed)?);
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(Some(listener))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::testing::TempDir;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn a_socket_that_listens_is_taken_and_nothing_else() {
        let temp = TempDir::new();
        let path = temp.path().join("api.sock");
        let theirs = UnixListener::bind(&path).unwrap();
        let ours = given(&theirs).unwrap().expect("it listens");
        let _client = UnixStream::connect(&path).unwrap();
        ours.accept().unwrap();
        let other = ours.accept().unwrap_err();
        assert_eq!(other.kind(), std::io::ErrorKind::WouldBlock, "it does not block");

        let (stream, _peer) = UnixStream::pair().unwrap();
        let datagram = UnixDatagram::unbound().unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        for fd in [stream.as_fd(), datagram.as_fd(), tcp.as_fd(), file.as_fd()] {
            assert!(given(fd).unwrap().is_none());
        }
    }

    #[test]
    fn a_socket_of_the_service_managers_stays_when_we_leave() {
        let temp = TempDir::new();
        let path = temp.path().join("api.sock");
        drop(UnixListener::bind(&path).unwrap());
        Place(None).withdraw();
        assert!(path.exists());
        Place(Some(path.clone())).withdraw();
        assert!(!path.exists());
    }
}
