//! Making one jailed worker: the outer child, the inner child, and what they need opened beforehand.

use crate::plan::{self, Failed};
use crate::section::{self, Stamp};
use crate::stages::Stages;
use crate::sys::{self, Forked};
use jail_spec::Slot;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::cell::RefCell;
use std::io::{PipeReader, PipeWriter, Read, Write};

/// Exit status of a child whose step failed; which one stands in its report.
pub const STEP_FAILED: i32 = 125;

/// The namespaces that a worker is born into, beside its user namespace.
pub const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// What all workers of this jailer share.
pub struct Workshop {
    /// `/dev/null`.
    null: OwnedFd,
    /// The worker's program, opened once: what is installed meanwhile does not mix with what runs.
    program: OwnedFd,
    /// What came of looking at the program's policy section, and what the file was when it was looked at.
    checked: RefCell<Option<(Stamp, Result<(), section::Error>)>>,
}

/// A worker that was just made; it may still fail before it listens.
pub struct Made {
    /// Its pid.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// Where it reports; non-blocking.
    pub report: PipeReader,
}

/// A worker could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call of the jailer itself.
    #[error("{0}: {1}")]
    System(&'static str, std::io::Error),
    /// What is in the worker's place may not run there.
    #[error("the worker's program is refused: {0}")]
    Program(#[from] section::Error),
    /// A step of the outer child.
    #[error("{}: {}", .0.step, std::io::Error::from_raw_os_error(.0.errno))]
    Step(Failed),
}

impl Workshop {
    /// Opens what all workers share. A program that is there and may not run is refused later, for every worker that is
    /// asked for: the workers of an earlier jailer want to be looked after meanwhile.
    ///
    /// # Errors
    /// One of the two cannot be opened.
    pub fn open(program: &str) -> Result<Workshop, Error> {
        let open = |path: &str, flags| {
            rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(std::io::Error::from)
        };
        let null = open("/dev/null", OFlags::RDWR).map_err(|e| Error::System("/dev/null", e))?;
        let program = open(program, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
            .map_err(|e| Error::System("the worker's program", e))?;
        Ok(Workshop { null: above_declared(null)?, program: above_declared(program)?, checked: RefCell::default() })
    }

    /// Holds the program's policy section against this jailer's own: the first time, and whenever its file was touched.
    ///
    /// # Errors
    /// It may not run.
    pub fn check(&self) -> Result<(), section::Error> {
        let program = self.program.as_fd();
        // Before the section is read: what is written meanwhile makes another stamp.
        let stamp = Stamp::of(program)?;
        let mut checked = self.checked.borrow_mut();
        if let Some((before, result)) = &*checked
            && *before == stamp
        {
            return result.clone();
        }
        let result = section::check(program);
        *checked = Some((stamp, result.clone()));
        result
    }

    /// Makes a worker in `slot`. Returns when the inner child exists; it reports later.
    ///
    /// # Errors
    /// Nothing is left behind but a socket file, which the next worker of this slot replaces.
    pub fn make(
        &self,
        slot: Slot,
        user_namespace: BorrowedFd<'_>,
        groups_can_be_cleared: bool,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Made, Error> {
        self.check()?;
        let socket = above_declared(bind_control_socket(slot)?)?;
        let (report, writer) = std::io::pipe().map_err(|e| Error::System("pipe", e))?;
        rustix::io::ioctl_fionbio(&report, true).map_err(|e| Error::System("FIONBIO", e.into()))?;
        let writer = PipeWriter::from(above_declared(writer.into())?);
        let (mut pid_reader, pid_writer) = std::io::pipe().map_err(|e| Error::System("pipe", e))?;
        let numbers: Vec<i32> = policies::PROCESS_WORKER.fds.iter().map(|(number, _)| *number).collect();
        let sources = [self.null.as_fd(), self.null.as_fd(), writer.as_fd(), socket.as_fd()];
        let fds: Vec<_> = sources.into_iter().zip(numbers).collect();
        let stages = Stages { user_namespace, fds: &fds, program: self.program.as_fd() };
        let forked = sys::clone3(&sys::Clone { into_cgroup: cgroup, ..Default::default() })
            .map_err(|e| Error::System("clone3", e.into()))?;
        let Forked::Parent { pid: outer, .. } = forked else {
            outer_child(stages, groups_can_be_cleared, &writer, &pid_writer)
        };
        drop((pid_writer, writer));
        let mut number = [0u8; 4];
        let got = pid_reader.read_exact(&mut number);
        let status =
            rustix::process::waitpid(rustix::process::Pid::from_raw(outer), rustix::process::WaitOptions::empty());
        status.map_err(|e| Error::System("waitpid", e.into()))?;
        if got.is_err() {
            return Err(read_failure(&report));
        }
        let pid = i32::from_le_bytes(number);
        let target =
            rustix::process::Pid::from_raw(pid).ok_or(Error::System("pid", std::io::ErrorKind::Other.into()))?;
        // Free of races: the process is our child, so its pid is not reused before we reap it.
        let pidfd = rustix::process::pidfd_open(target, rustix::process::PidfdFlags::empty())
            .map_err(|e| Error::System("pidfd_open", e.into()))?;
        Ok(Made { pid, pidfd, report })
    }
}

/// Moves an fd past the numbers that are declared for the worker, so that placing one never overwrites another's source.
fn above_declared(fd: OwnedFd) -> Result<OwnedFd, Error> {
    let least = policies::PROCESS_WORKER.fds.iter().map(|(number, _)| *number + 1).max().unwrap_or(0);
    rustix::io::fcntl_dupfd_cloexec(&fd, least).map_err(|e| Error::System("F_DUPFD_CLOEXEC", e.into()))
}

/// Binds the control socket of `slot` in the working directory (0700, the supervisor's and ours). It does not listen:
/// the worker does that, so that the peer the supervisor sees is the worker.
fn bind_control_socket(slot: Slot) -> Result<OwnedFd, Error> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|e| Error::System("socket", e.into()))?;
    let name = slot.socket_name();
    match rustix::fs::unlink(&name) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(Error::System("unlink of an old control socket", e.into())),
    }
    let address = SocketAddrUnix::new(&*name).map_err(|e| Error::System("socket address", e.into()))?;
    rustix::net::bind(&socket, &address).map_err(|e| Error::System("bind", e.into()))?;
    Ok(socket)
}

/// In the outer child: enter the user namespace, bear the inner child, say its pid, leave.
fn outer_child(mut stages: Stages<'_>, clear_groups: bool, report: &PipeWriter, pid_writer: &PipeWriter) -> ! {
    let failed = |failed: Failed| -> ! {
        say_failed(report, &failed);
        sys::exit_now(STEP_FAILED)
    };
    if let Err(step) = plan::carry_out(&plan::outer(clear_groups), &mut stages) {
        failed(step);
    }
    match sys::clone3(&sys::Clone { flags: libc::CLONE_PARENT | NAMESPACES, ..Default::default() }) {
        Err(errno) => failed(Failed { step: "clone-namespaces".into(), errno: errno.raw_os_error() }),
        Ok(Forked::Parent { pid, .. }) => {
            let mut writer = pid_writer;
            let _ = writer.write_all(&pid.to_le_bytes());
            sys::exit_now(0)
        }
        Ok(Forked::Child) => {
            let steps = plan::inner(policies::PROCESS_WORKER.rlimits);
            let Err(step) = plan::carry_out(&steps, &mut stages) else { sys::exit_now(STEP_FAILED) };
            failed(step)
        }
    }
}

/// One line for the jailer: [`parse_failed`] reads it.
fn say_failed(mut report: &PipeWriter, failed: &Failed) {
    let _ = report.write_all(format!("failed {} {}\n", failed.step, failed.errno).as_bytes());
}

/// The step in a line of [`say_failed`].
pub fn parse_failed(line: &str) -> Option<Failed> {
    let (step, errno) = line.trim_end().strip_prefix("failed ")?.rsplit_once(' ')?;
    Some(Failed { step: step.to_owned(), errno: errno.parse().ok()? })
}

/// What the outer child said before it left.
fn read_failure(mut report: &PipeReader) -> Error {
    let mut line = [0u8; 200];
    let length = report.read(&mut line).unwrap_or(0);
    match parse_failed(&String::from_utf8_lossy(&line[..length])) {
        Some(failed) => Error::Step(failed),
        None => Error::System("the outer child", std::io::Error::other("it ended without a word")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_comes_back_with_its_errno() {
        let (reader, writer) = std::io::pipe().unwrap();
        let failed = Failed { step: "empty-root".into(), errno: libc::EPERM };
        say_failed(&writer, &failed);
        assert!(matches!(read_failure(&reader), Error::Step(f) if f == failed));
    }

    #[test]
    fn last_words_are_not_taken_for_a_failed_step() {
        for line in ["ready", "failed", "failed empty-root", "failed empty-root x", "panic: failed a 1"] {
            assert_eq!(parse_failed(line), None, "{line}");
        }
    }
}
