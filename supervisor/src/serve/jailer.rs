//! Finding the jailer of an earlier supervisor or of a service manager, or starting one, before the supervisor confines
//! itself: afterwards it could start nothing any more.
//!
//! A jailer that has VMs outlives its supervisor and listens in the directory of the workers' sockets, which is this user's
//! alone; where nobody listens there is none, and a new one is started, which finds the workers of a killed predecessor by
//! itself. Either says what it has before it is asked for anything.
//!
//! A jailer of ours gets its end of a socket pair as stdin, the directory of the workers' sockets as its working directory,
//! our log as its stdout and stderr, and an environment of three variables.
//! A service manager (`packaging/systemd/system/vmsup-jailer.socket`) gives it the same directory, and a listening socket as
//! stdin. That is needed where the supervisor's own unit takes away what a jailer's child (newuidmap) has to gain.

use super::ServeError;
use super::end::WorkerEnd;
use super::jail::{ListedEnd, ListedWorker, Listing};
use super::rundir::RunDir;
use ipc::Channel;
use ipc::holder::flock_holder;
use jail_spec::{Facts, NAME, Reply, Request, SLOTS_MAX, SOCKET, Slot, VERSION};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags};
use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
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
    /// What it has of an earlier supervisor's.
    pub listing: Listing,
}

/// The jailer that an earlier supervisor left with its VMs, else a new one.
///
/// # Errors
/// As [`start`]; one that listens and cannot be used.
pub fn find_or_start(options: &JailerOptions, rundir: &RunDir) -> Result<Jailer, ServeError> {
    // Through the fd of the directory that was checked: whatever its path leads to by now, and however long it is.
    let address = format!("/proc/self/fd/{}/{SOCKET}", rundir.workers.as_raw_fd());
    let shown = rundir.workers_path().join(SOCKET);
    let failed = |why: String| ServeError::JailerSocket { path: shown.clone(), why };
    let helps = |pid: i32| format!("kill it (kill -9 {pid}): its VMs go on, and the next command takes them over");
    let silent =
        |pid: i32| format!("process {pid} does not answer; is it stopped? (kill -CONT {pid}) Else {}", helps(pid));
    let socket = match dial(Path::new(&address)) {
        // It may leave while we come: it had nothing any more.
        Err(Errno::NOENT | Errno::CONNREFUSED | Errno::CONNRESET) => return start(options),
        Err(Errno::AGAIN) => {
            let nobody = || "it does not answer; is it stopped? (pkill -CONT vmsup-jailer)".into();
            return Err(failed(flock_holder(&rundir.workers).map_or_else(nobody, silent)));
        }
        Err(error) => return Err(failed(error.to_string())),
        Ok(socket) => socket,
    };
    let peer = sockopt::socket_peercred(&socket).map_err(|e| failed(e.to_string()))?;
    let (pid, uid) = (peer.pid.as_raw_nonzero().get(), peer.uid);
    if uid != rustix::process::geteuid() {
        return Err(failed(format!("uid {} listens there, who is not this user", uid.as_raw())));
    }
    let channel = Channel::new(socket);
    // With what it has: one that was killed, or had nothing any more, may hang up at any moment until then.
    let met = meet(&channel).and_then(|facts| Ok((pidfd(pid)?, facts, listing(&channel)?)));
    match met {
        Ok((pidfd, facts, listing)) if facts.pid == pid => {
            let ready = channel.as_fd().try_clone_to_owned().map_err(ServeError::Start)?;
            Ok(Jailer { channel, child: None, ready, pidfd, facts, listing })
        }
        Ok((_, facts, _)) => Err(failed(format!("process {pid} listens there and says it is {}", facts.pid))),
        Err(ServeError::Handshake(error)) if is_hang_up(&error) => start(options),
        Err(ServeError::Handshake(error @ ipc::Error::Version { .. })) => {
            Err(failed(format!("process {pid} is of another release ({error}); {}", helps(pid))))
        }
        Err(ServeError::Silent) => Err(failed(silent(pid))),
        Err(error) => Err(error),
    }
}

/// It went away. A socket that is closed with something unread in it is reset.
fn is_hang_up(error: &ipc::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    match error {
        ipc::Error::Closed => true,
        ipc::Error::Io(error) => matches!(error.kind(), BrokenPipe | ConnectionReset),
        _ => false,
    }
}

/// Connects. Does not wait for a place at the door: one who was stopped takes nobody in, and then there is none (`EAGAIN`).
fn dial(socket: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let ours = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&ours, &SocketAddrUnix::new(socket)?)?;
    rustix::io::ioctl_fionbio(&ours, false)?;
    Ok(ours)
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
    match meet(&channel).and_then(|facts| Ok((pidfd(child.id() as i32)?, facts, listing(&channel)?))) {
        Ok((pidfd, facts, listing)) => {
            // All that the supervisor holds for good is there before its socket is.
            let ready = channel.as_fd().try_clone_to_owned().map_err(ServeError::Start)?;
            let reaper = pidfd.try_clone().map_err(ServeError::Start)?;
            Ok(Jailer { channel, child: Some((child, reaper)), ready, pidfd, facts, listing })
        }
        Err(error) => {
            // By its own pid, which cannot be another's: it is our child and not reaped yet.
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// Connects to a socket behind which a service manager starts one jailer for all supervisors to come, and waits until it is
/// ready.
///
/// # Errors
/// Nobody listens; it is neither root's nor ours; the jailer is of another release, says nothing, or does not work in our
/// directory of workers' sockets.
pub fn connect(socket: &Path, rundir: &RunDir) -> Result<Jailer, ServeError> {
    let failed = |why: String| ServeError::JailerSocket { path: socket.to_owned(), why };
    let away = |e: rustix::io::Errno| failed(format!("{e}; start it (systemctl start vmsup-jailer.socket)"));
    let silent = || {
        let who = flock_holder(&rundir.workers)
            .map_or_else(|| "it".into(), |pid| format!("process {pid}, which has the VMs,"));
        failed(format!(
            "{who} does not answer; is it stopped (kill -CONT, or systemctl restart vmsup-jailer), or was it started by hand \
             (kill -9: its VMs go on, and the service takes them over)?"
        ))
    };
    let ours = dial(socket).map_err(|errno| if errno == Errno::AGAIN { silent() } else { away(errno) })?;
    // Who listens, which is the service manager. Whoever it is sees all that VMs are started with.
    let peer = sockopt::socket_peercred(&ours).map_err(away)?.uid;
    if !peer.is_root() && peer != rustix::process::geteuid() {
        return Err(failed(format!("uid {} listens there, who is neither root nor this user", peer.as_raw())));
    }
    let channel = Channel::new(ours);
    let facts = match meet(&channel) {
        Err(ServeError::Silent) => return Err(silent()),
        met => met?,
    };
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
    let listing = listing(&channel)?;
    let ready = channel.as_fd().try_clone_to_owned().map_err(ServeError::Start)?;
    Ok(Jailer { channel, child: None, ready, pidfd, facts, listing })
}

/// Takes what a jailer has, until it says that this was all. Bounded: each slot comes once.
fn listing(channel: &Channel<Request, Reply>) -> Result<Listing, ServeError> {
    // A pidfd for each VM comes now. A jailer of ours was started before, and does not inherit it.
    super::confine::raise_nofile();
    let until = Instant::now() + READY;
    let malformed = |why| Err(ServeError::Handshake(ipc::Error::Malformed(why)));
    let (mut listing, mut slots) = (Listing::default(), HashSet::new());
    let mut first = |slot: Slot, pid: i32| slot.0 < SLOTS_MAX && pid > 0 && slots.insert(slot);
    loop {
        wait(channel, until)?;
        let (reply, fds) = channel.receive().map_err(ServeError::Handshake)?;
        match (reply, fds.into_iter().next()) {
            (Reply::Holds { worker, .. }, Some(pidfd)) if first(worker.slot, worker.pid) => {
                listing.living.push(ListedWorker { worker, pidfd, stopped: false, unlisted: false });
            }
            (Reply::Ended { slot, pid, how, last_words }, _) => {
                // It may end while the list is told.
                let before = listing.living.len();
                listing.living.retain(|listed| listed.worker.slot != slot);
                if listing.living.len() == before && !first(slot, pid) {
                    return malformed("a slot that cannot be, or twice");
                }
                listing.ended.push(ListedEnd { slot, pid, end: WorkerEnd::new(how, &last_words) });
            }
            (Reply::Stopped { slot, stopped }, _) => {
                for listed in listing.living.iter_mut().filter(|listed| listed.worker.slot == slot) {
                    listed.stopped = stopped;
                }
            }
            (Reply::Listed, _) => return Ok(listing),
            (Reply::Holds { .. }, _) => return malformed("a slot that cannot be, or twice"),
            _ => return malformed("an answer before the jailer was asked for anything"),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use jail_spec::{HowEnded, Worker};

    fn list(replies: &[Reply]) -> Result<Listing, ServeError> {
        let (ours, theirs) = Channel::<Request, Reply>::pair().unwrap();
        let pidfd = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        for reply in replies {
            let fds = [pidfd.as_fd()];
            theirs.send(reply, &fds[..usize::from(matches!(reply, Reply::Holds { .. }))]).unwrap();
        }
        // Whoever goes on waiting hears that nobody is there.
        drop(theirs);
        listing(&ours)
    }

    #[test]
    fn a_jailer_that_takes_nobody_in_is_not_waited_for() {
        let dir = crate::serve::testing::TempDir::new();
        let path = dir.path().join("door");
        let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            match dial(&path) {
                Ok(socket) => waiting.push(socket),
                Err(errno) => break errno,
            }
        };
        assert_eq!(full, Errno::AGAIN);
        // And whoever is in is spoken to in turn, without looking again and again.
        assert!(!rustix::fs::fcntl_getfl(&waiting[0]).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
    }

    fn holds(slot: u32, pid: i32) -> Reply {
        Reply::Holds { worker: Worker { slot: Slot(slot), pid, start_time: 1, uid: 1 }, orphan: false }
    }

    fn ended(slot: u32) -> Reply {
        Reply::Ended { slot: Slot(slot), pid: 7, how: HowEnded::Exited(0), last_words: "a\nb".into() }
    }

    #[test]
    fn a_list_ends_with_the_word_that_it_does() {
        let stopped = |slot| Reply::Stopped { slot: Slot(slot), stopped: true };
        let all =
            list(&[holds(1, 5), holds(2, 6), stopped(2), ended(3), holds(4, 8), ended(4), Reply::Listed]).unwrap();
        let living: Vec<_> = all.living.iter().map(|l| (l.worker.slot.0, l.stopped)).collect();
        assert_eq!(living, [(1, false), (2, true)]);
        assert_eq!(all.ended.iter().map(|e| e.slot.0).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(all.ended[0].end.last_words, "a?b");
        assert!(matches!(list(&[holds(1, 5)]), Err(ServeError::Handshake(ipc::Error::Closed))));
    }

    #[test]
    fn a_list_that_cannot_be_is_refused() {
        let lists: [&[Reply]; 6] = [
            &[holds(1, 5), holds(1, 6)],
            &[ended(1), ended(1)],
            &[ended(1), holds(1, 5)],
            &[holds(SLOTS_MAX, 5)],
            &[holds(1, 0)],
            &[Reply::Limited { slot: Slot(1), failed: None }],
        ];
        for (n, replies) in lists.into_iter().enumerate() {
            let error = list(&[replies, &[Reply::Listed]].concat()).unwrap_err();
            assert!(matches!(error, ServeError::Handshake(ipc::Error::Malformed(_))), "{n}: {error}");
        }
    }
}
