//! Starting the jailer, before the supervisor confines itself: afterwards it could start nothing any more.
//!
//! The jailer gets its end of a socket pair as stdin, the directory of the workers' sockets as its working directory,
//! our log as its stdout and stderr, and an environment of three variables.

use super::ServeError;
use ipc::Channel;
use jail_spec::{Facts, NAME, Reply, Request, VERSION};
use rustix::event::{PollFd, PollFlags, Timespec};
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
    /// To reap it.
    pub child: Child,
    /// Copy of the channel's socket, to wait for.
    pub ready: OwnedFd,
    /// Readable once it has ended.
    pub pidfd: OwnedFd,
    /// Copy of the pidfd, for who reaps it.
    pub reaper: OwnedFd,
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
    match meet(&channel, &child) {
        Ok((facts, pidfd)) => {
            // All that the supervisor holds for good is there before its socket is.
            let ready = channel.as_fd().try_clone_to_owned().map_err(ServeError::Start)?;
            let reaper = pidfd.try_clone().map_err(ServeError::Start)?;
            Ok(Jailer { channel, child, ready, pidfd, reaper, facts })
        }
        Err(error) => {
            // By its own pid, which cannot be another's: it is our child and not reaped yet.
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

fn meet(channel: &Channel<Request, Reply>, child: &Child) -> Result<(Facts, OwnedFd), ServeError> {
    let until = Instant::now() + READY;
    let pid = Pid::from_raw(child.id() as i32).ok_or(ServeError::Silent)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|e| ServeError::Start(e.into()))?;
    channel.greet(NAME, VERSION, 0).map_err(ServeError::Handshake)?;
    wait(channel, until)?;
    channel.meet(NAME, VERSION, 0).map_err(ServeError::Handshake)?;
    wait(channel, until)?;
    match channel.receive().map_err(ServeError::Handshake)?.0 {
        Reply::Ready(facts) => Ok((facts, pidfd)),
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
