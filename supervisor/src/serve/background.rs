//! `vmsup serve --background`: leaving the terminal without fork(2), and telling the starter when we are ready.
//!
//! The starter waits at our stdout: `ready\n` when the socket accepts, or the end of the file without it, and then the
//! reason is on stderr and the exit status is not 0.

use super::ServeError;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The most bytes of an old log that a new supervisor appends to.
const LOG_KEPT: u64 = 1 << 20;
/// What a supervisor in the background says on stdout when its socket accepts.
pub const READY: &str = "ready\n";

/// Who started us: what is left of the stdio that they gave us.
#[derive(Debug)]
pub struct Starter {
    stdout: File,
    stderr: File,
    log: File,
}

/// True where `setsid(2)` would fail: a shell makes what it starts the leader of a process group.
pub fn needs_a_child() -> bool {
    rustix::process::getpgrp() == rustix::process::getpid()
}

/// Starts ourselves once more with the same arguments, and waits until the child is ready or has failed.
///
/// # Errors
/// The child's own error is on our stderr already; what is left is that it could not be started.
pub fn in_a_child() -> Result<(), ServeError> {
    let failed = |e| ServeError::System("starting in the background", e);
    let exe = std::env::current_exe().map_err(failed)?;
    let mut child = Command::new(exe)
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        // Bounded: the child says one line.
        let _ = stdout.take(64).read_to_string(&mut said);
    }
    if said == READY {
        print!("{READY}");
        return Ok(());
    }
    let status = child.wait().map_err(failed)?;
    // Its sentence stands on our stderr. One more would only repeat it.
    std::process::exit(status.code().filter(|c| *c != 0).unwrap_or(1));
}

/// Makes a session of its own, sends stdin to nowhere and stdout and stderr to the log. The starter's ends are kept
/// until [`Starter::ready`].
///
/// # Errors
/// The log cannot be written.
pub fn leave_terminal(log: &Path) -> Result<Starter, ServeError> {
    let failed = |source| ServeError::Path { what: "opening the log", path: log.to_owned(), source };
    let system = |e: rustix::io::Errno| ServeError::System("leaving the terminal", e.into());
    let mut options = OpenOptions::new();
    // O_NOFOLLOW, and in a directory of our own: nobody else's file is appended to.
    options.append(true).create(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
    let file = options.open(log).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() > LOG_KEPT {
        file.set_len(0).map_err(failed)?;
    }
    rustix::process::setsid().map_err(system)?;
    let keep = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
    let stdout = keep(rustix::stdio::stdout()).map_err(failed)?;
    let stderr = keep(rustix::stdio::stderr()).map_err(failed)?;
    let null = File::open("/dev/null").map_err(failed)?;
    rustix::stdio::dup2_stdin(&null).map_err(system)?;
    rustix::stdio::dup2_stdout(&file).map_err(system)?;
    Ok(Starter { stdout, stderr, log: file })
}

impl Starter {
    /// The log, for another writer.
    ///
    /// # Errors
    /// Out of fds.
    pub fn log(&self) -> Result<OwnedFd, ServeError> {
        self.log.try_clone().map(OwnedFd::from).map_err(|e| ServeError::System("the log", e))
    }

    /// Lets go of the starter before the filter is in force; what is left to say is said through the copies.
    pub fn detach(&self) -> Result<(), ServeError> {
        rustix::stdio::dup2_stderr(&self.log).map_err(|e| ServeError::System("leaving the terminal", e.into()))
    }

    /// The socket accepts.
    pub fn ready(mut self) {
        // A starter that does not wait has closed its end; that is its business.
        let _ = self.stdout.write_all(READY.as_bytes());
    }

    /// There is no supervisor, and stderr is the log already.
    pub fn failed(mut self, error: &ServeError) {
        let _ = writeln!(self.stderr, "vmsup: {error}");
    }
}
