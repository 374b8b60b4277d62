//! The side socket's end in the supervisor: takes open files of a client's, and gives a ticket for them ([`crate::side`]).
//!
//! There is one only where several users share the supervisor. Who may speak to the API may connect here, and is known by the
//! same uid (SO_PEERCRED). Frames are bounded by [`ipc`]; what comes with them is received, looked at and closed on threads of
//! the user who sent it ([`shares`]), since all of that may wait for them.

use super::readiness::watch;
use super::{Context, ServeError};
use crate::api::types::ApiError;
use crate::paths::FILES_SOCKET;
use crate::side::{Answer, NAME, Offer, VERSION};
use ipc::Channel;
use ipc::peer::Peer;
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, acceptfrom_with, socket_with};
use shares::{Places, Share, Shares, Task};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tickets::Tickets;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

pub mod shares;
mod tickets;

pub use shares::Back;
pub use tickets::Received;

/// How long a client may take for its header, and for its files after that.
const TALK: Duration = Duration::from_secs(10);
/// How long files are kept for a request that names them.
const KEPT: Duration = Duration::from_secs(60);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// How long nothing is accepted after the host ran out of something.
const BACK_OFF: Duration = Duration::from_millis(100);

/// What is there of files that were handed over.
#[derive(Debug)]
pub struct Side {
    /// The socket's path; none where this supervisor takes no files.
    path: Option<PathBuf>,
    shares: Shares,
    tickets: Tickets,
}

impl Side {
    /// With room for so many open files of users.
    pub fn new(path: Option<PathBuf>, fds: usize) -> Side {
        Side { path, shares: Shares::new(fds), tickets: Tickets::default() }
    }

    /// What this user may have of fds and threads.
    #[cfg(test)]
    pub fn share(&self, uid: u32) -> Arc<Share> {
        self.shares.of(uid)
    }

    /// Where clients hand their files over.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The files that `uid` handed over under this ticket.
    ///
    /// # Errors
    /// There are none.
    pub fn redeem(&self, ticket: &str, uid: u32) -> Result<Received, ApiError> {
        self.tickets.redeem(ticket, uid)
    }
}

/// The socket, bound.
#[derive(Debug)]
pub struct Bound {
    /// It, non-blocking.
    pub listener: OwnedFd,
    /// Where.
    pub path: PathBuf,
}

/// Binds the socket in the runtime directory, in place of a dead predecessor's; whoever may enter the directory may connect,
/// and is asked who they are. Before the supervisor is confined.
///
/// # Errors
/// Something else is there.
pub fn bind(rundir: &Path) -> Result<Bound, ServeError> {
    let path = rundir.join(FILES_SOCKET);
    let failed = |what| move |error: Errno| (what, error);
    let bound = || {
        match rustix::fs::lstat(&path) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => {
                rustix::fs::unlink(&path).map_err(failed("removing the old socket"))?;
            }
            Ok(_) => return Err(("binding the socket", Errno::EXIST)),
            Err(_) => {}
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let listener = listener.map_err(failed("making the socket"))?;
        let address = SocketAddrUnix::new(&path).map_err(failed("naming the socket"))?;
        net::bind(&listener, &address).map_err(failed("binding the socket"))?;
        net::listen(&listener, BACKLOG).map_err(failed("listening on the socket"))?;
        Ok(listener)
    };
    match bound() {
        Ok(listener) => {
            super::rundir::open_to_all(&path)?;
            Ok(Bound { listener, path })
        }
        Err((what, error)) => Err(ServeError::path(what, &path, error)),
    }
}

/// Accepts connections for ever, also on a host that runs out of file descriptors now and then.
///
/// # Errors
/// The reactor cannot take the socket.
pub async fn accept(listener: OwnedFd, context: Arc<Context>) -> std::io::Result<()> {
    let listener = watch(listener, Interest::READABLE)?;
    let mut exhausted = false;
    loop {
        let mut ready = listener.readable().await?;
        match acceptfrom_with(listener.get_ref(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok((connection, _)) => {
                exhausted = false;
                // Who may not, and who has too many already, is dropped: the API has the sentences for them.
                let Some(peer) = Peer::of(&connection).ok().filter(|peer| context.tenants.standing(peer).is_some())
                else {
                    continue;
                };
                let share = context.side.shares.of(peer.uid);
                if let Some(place) = share.connection() {
                    tokio::spawn(serve(context.clone(), Channel::new(connection), peer, share, place));
                }
            }
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::CONNABORTED | Errno::INTR) => {}
            Err(error) => {
                // Once, not for each attempt: a log that fills the disk helps nobody.
                if !std::mem::replace(&mut exhausted, true) {
                    tracing::warn!(%error, "cannot accept a connection for files; trying again until it works");
                }
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

/// Serves one connection.
async fn serve(context: Arc<Context>, channel: Channel<Answer, Offer>, peer: Peer, share: Arc<Share>, _place: Places) {
    let channel = Arc::new(channel);
    let uid = peer.uid;
    let received = match receive(&channel, peer, share).await {
        Ok(received) => received,
        Err(why) => {
            tracing::debug!(uid, why, "files were not taken");
            let _ = channel.send(&Answer::Refused(why), &[]);
            return;
        }
    };
    let mut issued = match context.side.tickets.issue(received) {
        Ok(issued) => issued,
        Err(error) => return tracing::warn!(%error, "no ticket for files"),
    };
    if channel.send(&Answer::Ticket(issued.ticket.clone()), &[]).is_err() {
        return;
    }
    let Ok(ready) = watch(channel.as_fd(), Interest::READABLE) else { return };
    tokio::select! {
        // It hung up, or says more than it should.
        _ = ready.readable() => {}
        _ = &mut issued.used => {}
        () = tokio::time::sleep(KEPT) => {}
    }
}

/// The files that a client sends.
async fn receive(channel: &Arc<Channel<Answer, Offer>>, peer: Peer, share: Arc<Share>) -> Result<Received, String> {
    channel.greet(NAME, VERSION, 0).map_err(|error| error.to_string())?;
    // Beside a header no fd ever becomes ours.
    let met = super::readiness::receive(channel, |channel| channel.meet(NAME, VERSION, 0));
    timeout(TALK, met).await.map_err(|_| "nothing came in time")?.map_err(|error| error.to_string())?;
    let ready = watch(channel.as_fd(), Interest::READABLE).map_err(|error| error.to_string())?;
    let frame = async {
        readable(&ready).await?;
        // All that can come has a place before it comes.
        share.frame().await.ok_or_else(|| "this supervisor is leaving".to_owned())
    };
    let places = timeout(TALK, frame).await.map_err(|_| "no files came in time, or too many of yours are open")??;
    drop(ready);
    let (theirs, own) = (channel.clone(), share.clone());
    // The fds are theirs, so that closing those of a frame that is refused may take its time, too.
    let work = move || match theirs.receive() {
        Ok((Offer::Files { fields }, fds)) => Received::new(fields, fds, peer, own, places).map_err(str::to_owned),
        Err(error) => Err(error.to_string()),
    };
    match timeout(TALK, share.run(Task::Look, work)).await {
        Ok(Ok(received)) => received,
        Ok(Err(error)) => Err(error.message),
        Err(_) => Err("the files could not be taken in time; are their file systems there?".into()),
    }
}

async fn readable<F: super::readiness::StdFd>(ready: &AsyncFd<F>) -> Result<(), String> {
    ready.readable().await.map(|mut guard| guard.retain_ready()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
