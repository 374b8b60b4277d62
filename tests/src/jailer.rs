//! A jailer to talk to, with any program in the worker's place.

use crate::host::children;
use crate::{Scratch, names, user::User};
use ipc::Channel;
use jail_spec::{CgroupLimits, Facts, HowEnded, NAME, Reply, Request, Rlimits, SOCKET, VERSION, Worker};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, kill_process};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running jailer; its workers end when this is dropped.
pub struct Jailer {
    /// Its process.
    pub child: Child,
    /// The channel to it.
    pub channel: Channel<Request, Reply>,
    /// What it said of the host.
    pub facts: Facts,
    /// Where it binds its sockets.
    pub folder: Scratch,
    user: User,
    worker: PathBuf,
}

/// What a jailer tells a supervisor that has just come.
#[derive(Debug)]
pub struct Known {
    /// The workers that live, whether an earlier jailer made them, and their pidfds.
    pub living: Vec<(Worker, bool, OwnedFd)>,
    /// Ends that nobody has heard.
    pub ended: Vec<Reply>,
}

/// A connection to what listens at `path`.
///
/// # Panics
/// Where nobody does.
pub fn connect_to(path: &Path) -> OwnedFd {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

/// Shakes hands as a supervisor does, and hears what there is to know.
///
/// # Panics
/// Where the jailer says something else.
pub fn meet(channel: &Channel<Request, Reply>) -> (Facts, Known) {
    channel.handshake(NAME, VERSION, 0).unwrap();
    let Reply::Ready(facts) = channel.receive().unwrap().0 else { panic!("Ready comes first") };
    let mut known = Known { living: Vec::new(), ended: Vec::new() };
    loop {
        match channel.receive().unwrap() {
            (Reply::Holds { worker, orphan }, mut fds) => known.living.push((worker, orphan, fds.remove(0))),
            (ended @ Reply::Ended { .. }, _) => known.ended.push(ended),
            (Reply::Listed, _) => return (facts, known),
            (other, _) => panic!("{other:?}"),
        }
    }
}

/// What `vmsup-jailer inspect` says of a worker to `user`.
///
/// # Panics
/// Where it cannot be read.
pub fn inspect(user: &User, pid: i32) -> jail_spec::Inspection {
    let mut command = user.command(crate::program("vmsup-jailer"));
    let output = command.args(["inspect", &pid.to_string(), "--wire"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ipc::codec::decode(&output.stdout, ipc::codec::FRAME_LIMIT).unwrap()
}

/// Limits that are in no test's way.
pub const ROOMY: Rlimits = Rlimits { fsize: 1 << 40, address_space: 1 << 40, nproc: 64, memlock: 65536 };

impl Jailer {
    /// Starts it as `user` with `program` in the worker's place.
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn start(user: &User, program: &Path, pool: u32) -> Jailer {
        Jailer::start_wrapped(user, &[], program, pool)
    }

    /// As [`Jailer::start`], with a program in front that runs the jailer (`strace`, say).
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn start_wrapped(user: &User, wrapper: &[&str], program: &Path, pool: u32) -> Jailer {
        let mut command = wrapped(user, wrapper);
        command.args(["serve", "--pool", &pool.to_string(), "--worker"]).arg(program);
        let folder = Scratch::new(user);
        let (child, channel) = spawn(command, &folder);
        let (facts, known) = meet(&channel);
        assert!(known.living.is_empty() && known.ended.is_empty(), "{known:?}");
        Jailer { child, channel, facts, folder, user: user.clone(), worker: program.to_owned() }
    }

    /// Kills the jailer, and starts the next one in its directory.
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn replace(&mut self) -> Known {
        self.replace_wrapped(&[])
    }

    /// As [`Jailer::replace`], with a program in front of the next one.
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn replace_wrapped(&mut self, wrapper: &[&str]) -> Known {
        if self.child.try_wait().unwrap().is_none() {
            kill_process(Pid::from_raw(self.facts.pid).unwrap(), Signal::KILL).unwrap();
            // And what stands in front, which would go on for the workers' sake.
            let _ = self.child.kill();
            self.child.wait().unwrap();
        }
        let mut command = wrapped(&self.user, wrapper);
        command.args(["serve", "--pool", "0", "--worker"]).arg(&self.worker);
        (self.child, self.channel) = spawn(command, &self.folder);
        let known;
        (self.facts, known) = meet(&self.channel);
        known
    }

    /// Hangs up.
    pub fn hang_up(&self) {
        rustix::net::shutdown(&self.channel, rustix::net::Shutdown::Both).unwrap();
    }

    /// Comes to the jailer's door, as the next supervisor does.
    pub fn come_back(&mut self) -> Known {
        self.channel = Channel::new(connect_to(&self.folder.path().join(SOCKET)));
        meet(&self.channel).1
    }

    /// The workers' sockets that are there.
    pub fn sockets(&self) -> Vec<String> {
        names(self.folder.path()).into_iter().filter(|n| n.ends_with(".sock") && n != SOCKET).collect()
    }

    /// Asks for a worker.
    pub fn ask(&self, seq: u64, limits: Option<CgroupLimits>) {
        self.channel.send(&Request::Make { seq, limits, rlimits: ROOMY }, &[]).unwrap();
    }

    /// The next reply.
    pub fn reply(&self) -> (Reply, Vec<OwnedFd>) {
        self.channel.receive().unwrap()
    }

    /// Asks for a worker and gets it.
    ///
    /// # Panics
    /// Where it is refused.
    pub fn make(&self, seq: u64) -> (Worker, OwnedFd) {
        self.ask(seq, None);
        match self.reply() {
            (Reply::Made { worker, .. }, mut fds) => (worker, fds.remove(0)),
            (other, _) => panic!("{other:?}"),
        }
    }

    /// Connects to a worker, and checks as the supervisor does that its peer is the worker.
    ///
    /// # Panics
    /// Where it cannot be reached or is somebody else.
    pub fn connect(&self, worker: &Worker) -> OwnedFd {
        let socket = connect_to(&self.folder.path().join(worker.slot.socket_name()));
        let peer = rustix::net::sockopt::socket_peercred(socket.as_fd()).unwrap();
        assert_eq!(peer.pid.as_raw_nonzero().get(), worker.pid);
        assert_eq!(peer.uid.as_raw(), worker.uid);
        socket
    }
}

impl Jailer {
    /// Its pid: `setpriv` becomes the jailer, it does not fork.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Kills a worker, hears of its end and has it forgotten.
    ///
    /// # Panics
    /// Where anything else than its end is heard.
    pub fn end(&self, worker: &Worker, pidfd: &OwnedFd) -> (HowEnded, String) {
        rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL).unwrap();
        match self.reply().0 {
            Reply::Ended { slot, pid, how, last_words } => {
                assert_eq!((slot, pid), (worker.slot, worker.pid));
                self.channel.send(&Request::Forget { slot }, &[]).unwrap();
                (how, last_words)
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The jailer as `user`, with a program in front that runs it.
fn wrapped(user: &User, wrapper: &[&str]) -> Command {
    let jailer = crate::program("vmsup-jailer");
    match wrapper {
        [] => user.command(&jailer),
        [first, rest @ ..] => {
            let mut command = user.command(first);
            command.args(rest).arg(&jailer);
            command
        }
    }
}

/// Starts a jailer with one end of a new channel as its standard input, in `folder`.
fn spawn(mut command: Command, folder: &Scratch) -> (Child, Channel<Request, Reply>) {
    let (channel, theirs) = Channel::<Request, Reply>::pair().unwrap();
    let child = command.current_dir(folder.path()).stdin(Stdio::from(theirs.into_fd())).spawn().unwrap();
    (child, channel)
}

impl Drop for Jailer {
    /// The jailer goes with its last worker, whose end nobody needs to hear; orphans are nobody's children.
    fn drop(&mut self) {
        let mut pids = children(self.facts.pid);
        for name in self.sockets() {
            let socket =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None);
            let address = SocketAddrUnix::new(self.folder.path().join(name));
            if let (Ok(socket), Ok(address)) = (socket, address)
                && rustix::net::connect(&socket, &address).is_ok()
                && let Ok(peer) = rustix::net::sockopt::socket_peercred(&socket)
                && peer.pid != rustix::process::getpid()
            {
                pids.push(peer.pid.as_raw_nonzero().get());
            }
        }
        if let (Ok(None), Some(jailer)) = (self.child.try_wait(), Pid::from_raw(self.facts.pid)) {
            let _ = kill_process(jailer, Signal::TERM);
        }
        for pid in pids.into_iter().filter_map(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
        // strace, where it stands in front, ends with the last that it sees.
        let _ = self.child.wait();
    }
}
