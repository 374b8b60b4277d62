//! Starting the jailer, or finding the one that a service manager starts, before the supervisor confines itself:
//! afterwards it could start nothing any more.
//!
//! A jailer of ours gets its end of a socket pair as stdin, the directory of the workers' sockets as its working directory,
//! our log as its stdout and stderr, and an environment of three variables.
//! A service manager (`packaging/systemd/system/vmsup-jailer.socket`) gives it the same: the connection as stdin and the
//! directory. It is needed where the supervisor's own unit takes away what a jailer's child (newuidmap) has to gain.

use super::ServeError;
use super::rundir::RunDir;
use ipc::Channel;
use jail_spec::{Facts, NAME, Reply, Request, VERSION};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a jailer may take to say that it is ready.
const READY: Duration = Duration::from_secs(10);

/// Which programs, and how.
#[derive(Debug)]
pub struct JailerOptions {
    /// `vmsup-jailer`.
    pub jailer: PathBuf,
    /// `vmsup-worker`.
    pub worker: PathBuf,
    /// How many warm workers it keeps.
    pub pool: u32,
    /// The delegated cgroup that it was told to use.
    pub cgroup: Option<PathBuf>,
    /// Its working directory: the workers' sockets.
    pub dir: PathBuf,
    /// Its stdout and stderr; ours where there is none.
    pub log: Option<OwnedFd>,
}

/// A jailer that is ready.
#[derive(Debug)]
pub struct Jailer {
    /// To it.
    pub channel: Channel<Request, Reply>,
    /// To reap it, and a copy of the pidfd to see when; `None` where it is a service manager's.
    pub child: Option<(Child, OwnedFd)>,
    /// Copy of the channel's socket, to wait for.
    pub ready: OwnedFd,
    /// Readable once it has ended.
    pub pidfd: OwnedFd,
    /// What it can do on this host.
    pub facts: Facts,
}

/// Starts a jailer and waits until it is ready: in a delegated scope of the user's service manager where there is one
/// (so that there are cgroups for limits), else plainly.
///
/// # Errors
/// It cannot be started, is of another release, or says nothing.
pub fn start(options: &JailerOptions) -> Result<Jailer, ServeError> {
    for program in [&options.jailer, &options.worker] {
        if !program.is_file() {
            return Err(ServeError::NoProgram(program.clone()));
        }
    }
    if options.cgroup.is_none()
        && let Some(scoped) = scope()
        && let Ok(jailer) = start_as(scoped, options)
    {
        return Ok(jailer);
    }
    start_as(Command::new(&options.jailer), options)
}

/// `systemd-run` that becomes the program after it (same pid) in a scope of its own, where a user manager runs.
fn scope() -> Option<Command> {
    let manager = Path::new(&std::env::var_os("XDG_RUNTIME_DIR")?).join("systemd/private");
    if !manager.exists() {
        return None;
    }
    let mut command = Command::new("systemd-run");
    command.args(["--user", "--scope", "--quiet", "--collect", "-p", "Delegate=yes", "--"]);
    Some(command)
}

fn start_as(mut command: Command, options: &JailerOptions) -> Result<Jailer, ServeError> {
    let (channel, theirs) = Channel::<Request, Reply>::pair().map_err(ServeError::Handshake)?;
    if command.get_program() != options.jailer.as_os_str() {
        command.arg(&options.jailer);
    }
    command.arg("serve").arg("--worker").arg(&options.worker).args(["--pool", &options.pool.to_string()]);
    if let Some(cgroup) = &options.cgroup {
        command.arg("--cgroup").arg(cgroup);
    }
    command.current_dir(&options.dir).stdin(Stdio::from(theirs.into_fd()));
    command.env_clear();
    for name in ["PATH", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    if let Some(log) = &options.log {
        let copy = || log.try_clone().map(Stdio::from).map_err(ServeError::Start);
        command.stdout(copy()?).stderr(copy()?);
    }
    let mut child = command.spawn().map_err(ServeError::Start)?;
    // Drops our copy of the jailer's end: a jailer that dies must be seen to hang up.
    drop(command);
    match meet(&channel).and_then(|facts| Ok((pidfd(child.id() as i32)?, facts))) {
        Ok((pidfd, facts)) => {
            // All that the supervisor holds for good is there before its socket is.
            let ready = channel.as_fd().try_clone_to_owned().map_err(ServeError::Start)?;
            let reaper = pidfd.try_clone().map_err(ServeError::Start)?;
            Ok(Jailer { channel, child: Some((child, reaper)), ready, pidfd, facts })
        }
        Err(error) => {
            // By its own pid, which cannot be another's: it is our child and not reaped yet.
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// Connects to a socket where a service manager starts a jailer for each connection, and waits until it is ready.
///
/// # Errors
/// Nobody listens; it is neither root's nor ours; the jailer is of another release, says nothing, or does not work in our
/// directory of workers' sockets.
pub fn connect(socket: &Path, rundir: &RunDir) -> Result<Jailer, ServeError> {
    let failed = |why: String| ServeError::JailerSocket { path: socket.to_owned(), why };
    let away = |e: rustix::io::Errno| failed(format!("{e}; start it (systemctl start vmsup-jailer.socket)"));
    let ours = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(away)?;
    rustix::net::connect(&ours, &SocketAddrUnix::new(socket).map_err(away)?).map_err(away)?;
    // Who listens, which is the service manager. Whoever it is sees all that VMs are started with.
    let peer = sockopt::socket_peercred(&ours).map_err(away)?.uid;
    if !peer.is_root() && peer != rustix::process::geteuid() {
        return Err(failed(format!("uid {} listens there, who is neither root nor this user", peer.as_raw())));
    }
    let channel = Channel::new(ours);
    let facts = meet(&channel)?;
    let pidfd = pidfd(facts.pid)?;
    // Where it works somewhere else no worker would be found. The look at it also shows that the pid is a process which
    // this user may look into; it still lives, for the channel is open.
    let theirs = rustix::fs::stat(format!("/proc/{}/cwd", facts.pid))
        .map_err(|e| failed(format!("it says it is process {}, which cannot be looked at: {e}", facts.pid)))?;
    let workers = rustix::fs::fstat(&rundir.workers).map_err(away)?;
    if (theirs.st_dev, theirs.st_ino) != (workers.st_dev, workers.st_ino) {
        let dir = rundir.workers_path();
        return Err(failed(format!("it does not work in {} (WorkingDirectory= of its unit)", dir.display())));
    }
    let ready = channel.as_fd().try_clone_to_owned().map_err(ServeError::Start)?;
    Ok(Jailer { channel, child: None, ready, pidfd, facts })
}

fn pidfd(pid: i32) -> Result<OwnedFd, ServeError> {
    let pid = Pid::from_raw(pid).filter(|_| pid > 0).ok_or(ServeError::Silent)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|e| ServeError::Start(e.into()))
}

fn meet(channel: &Channel<Request, Reply>) -> Result<Facts, ServeError> {
    let until = Instant::now() + READY;
    channel.greet(NAME, VERSION, 0).map_err(ServeError::Handshake)?;
    wait(channel, until)?;
    channel.meet(NAME, VERSION, 0).map_err(ServeError::Handshake)?;
    wait(channel, until)?;
    match channel.receive().map_err(ServeError::Handshake)?.0 {
        Reply::Ready(facts) => Ok(facts),
        _ => Err(ServeError::Handshake(ipc::Error::Malformed("answer before the jailer was ready"))),
    }
}

/// Waits until the jailer says something or hangs up.
fn wait(channel: &Channel<Request, Reply>, until: Instant) -> Result<(), ServeError> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let socket = channel.as_fd();
        match rustix::event::poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(ServeError::Silent),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(ServeError::Start(e.into())),
        }
    }
}
