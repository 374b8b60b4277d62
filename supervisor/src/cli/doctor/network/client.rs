//! The doctor's own connection to netd: asks as this user, so that what it hears is what a supervisor of this user would.

use super::super::super::inspect::proc::{Process, parse_start_time, read};
use netd_api::{NetworkInfo, Reply, Request, Status};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::io;
use std::path::Path;
use std::time::Duration;

/// How long netd may take for an answer; what it is asked takes it far less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(5);
/// netd's name as the kernel has it.
const COMM: &str = "vmsup-netd";

/// What netd says, and what the kernel says of netd.
#[derive(Debug)]
pub struct Netd {
    /// Its pid; 0 where it is in a pid namespace that this one does not see.
    pub pid: i32,
    /// Its process; why it cannot be seen, where it cannot.
    pub process: Result<Process, String>,
    /// How it is.
    pub status: Status,
    /// The networks that this user may use.
    pub networks: Vec<NetworkInfo>,
}

/// Why netd says nothing.
#[derive(Debug)]
pub enum Silence {
    /// Nobody listens there.
    Absent,
    /// Somebody listens, and does not answer as netd of this release would.
    Failed(String),
}

impl From<ipc::Error> for Silence {
    fn from(error: ipc::Error) -> Self {
        match error {
            ipc::Error::Io(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Silence::Failed(format!("it does not answer within {} s", PATIENCE.as_secs()))
            }
            other => Silence::Failed(other.to_string()),
        }
    }
}

impl From<io::Error> for Silence {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Silence::Absent,
            io::ErrorKind::WouldBlock => Silence::from(ipc::Error::Io(error)),
            _ => Silence::Failed(error.to_string()),
        }
    }
}

/// Asks the netd that listens on `path`.
///
/// # Errors
/// Why there is no answer.
pub fn ask(path: &Path) -> Result<Netd, Silence> {
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(io::Error::from)?;
    // The time to send is also that to connect: a backlog that is full would block for ever.
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&socket, direction, Some(PATIENCE)).map_err(io::Error::from)?;
    }
    let address = SocketAddrUnix::new(path).map_err(io::Error::from)?;
    connect(&socket, &address).map_err(io::Error::from)?;
    let pid = getsockopt(&socket, PeerCredentials).map_err(io::Error::from)?.pid();
    let channel = ipc::Channel::<Request, Reply>::new(socket);
    channel.handshake(netd_api::NAME, netd_api::VERSION, 0)?;
    let status = match answer(&channel, &Request::Status)? {
        Reply::Status(status) => status,
        other => return Err(unexpected(&other)),
    };
    let networks = match answer(&channel, &Request::Networks)? {
        Reply::Networks(networks) => networks,
        other => return Err(unexpected(&other)),
    };
    // While the connection is open the pid is hardly anybody else's: netd holds the other end.
    Ok(Netd { pid, process: process(pid), status, networks })
}

fn answer(channel: &ipc::Channel<Request, Reply>, request: &Request) -> Result<Reply, Silence> {
    channel.send(request, &[])?;
    Ok(channel.receive()?.0)
}

fn unexpected(reply: &Reply) -> Silence {
    Silence::Failed(match reply {
        Reply::Refused(_) => "it refuses to say how it is".to_owned(),
        _ => "it answers another question than it was asked".to_owned(),
    })
}

/// netd's process, as far as `/proc` shows it to this user. Who listens was written down by the kernel at listen(2): a
/// service manager that did it for netd must not be taken for netd.
fn process(pid: i32) -> Result<Process, String> {
    if pid <= 0 {
        return Err("it is in a pid namespace that cannot be seen from here".into());
    }
    let text = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
    let hidden = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
            format!("/proc does not show process {pid} to this user (hidepid)")
        }
        _ => format!("/proc/{pid} cannot be read ({e})"),
    };
    let comm = text("comm").map_err(hidden)?;
    if comm.trim_end() != COMM {
        return Err(format!("process {pid}, which listens, is {:?} and not {COMM}", comm.trim_end()));
    }
    let start = text("stat").map_err(hidden)?;
    let start = parse_start_time(&start).ok_or_else(|| format!("/proc/{pid}/stat makes no sense"))?;
    read(pid, start).map_err(hidden)
}
