//! A jailer to talk to, with any program in the worker's place.

use crate::{Scratch, user::User};
use ipc::Channel;
use jail_spec::{CgroupLimits, Facts, HowEnded, NAME, Reply, Request, Rlimits, VERSION, Worker};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Stdio};

/// A running jailer; its workers end with it.
pub struct Jailer {
    /// Its process.
    pub child: Child,
    /// The channel to it.
    pub channel: Channel<Request, Reply>,
    /// What it said of the host.
    pub facts: Facts,
    /// Where it binds its sockets.
    pub folder: Scratch,
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
        let jailer = crate::program("vmsup-jailer");
        let mut command = match wrapper {
            [] => user.command(&jailer),
            [first, rest @ ..] => {
                let mut command = user.command(first);
                command.args(rest).arg(&jailer);
                command
            }
        };
        let folder = Scratch::new(user);
        let (channel, theirs) = Channel::<Request, Reply>::pair().unwrap();
        let child = command
            .args(["serve", "--pool", &pool.to_string(), "--worker"])
            .arg(program)
            .current_dir(folder.path())
            .stdin(Stdio::from(theirs.into_fd()))
            .spawn()
            .unwrap();
        channel.handshake(NAME, VERSION, 0).unwrap();
        let Reply::Ready(facts) = channel.receive().unwrap().0 else { panic!("Ready comes first") };
        Jailer { child, channel, facts, folder }
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
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let path = self.folder.path().join(worker.slot.socket_name());
        rustix::net::connect(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
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

impl Drop for Jailer {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.channel, rustix::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}
