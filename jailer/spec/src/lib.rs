//! What supervisor and jailer say to each other: types only.
//!
//! The supervisor asks for a worker ([`Request::Make`]); the jailer hands one over, already confined and listening
//! ([`Reply::Made`]), and later says how it ended ([`Reply::Ended`]) until the supervisor has heard it
//! ([`Request::Forget`]). No path crosses this boundary: sockets are named by a [`Slot`] in a directory that both know.
//!
//! A jailer outlives its supervisor while it has workers that were handed over. The next supervisor finds it behind
//! [`SOCKET`] and is told, after [`Reply::Ready`], of all that it holds: [`Reply::Holds`] for each that lives,
//! [`Reply::Ended`] for each whose end nobody has heard, then [`Reply::Listed`].
#![forbid(unsafe_code)]
#![deny(missing_docs)]

use serde::{Deserialize, Serialize};

/// Name of the protocol in the opening handshake.
pub const NAME: &str = "vmsup-jailer";
/// Version of the protocol in the opening handshake.
pub const VERSION: u16 = 4;
/// File name of the socket on which a jailer waits for the next supervisor, in the directory of the workers' sockets.
pub const SOCKET: &str = "jailer.sock";
/// The most bytes of a worker's last words that are kept.
pub const LAST_WORDS_MAX: usize = 400;
/// The most workers of one jailer, warm ones included.
pub const SLOTS_MAX: u32 = 4096;

/// Number of a worker's place: its control socket, its cgroup leaf and its user namespace are named by it. Minted by
/// the jailer; used again only after the worker in it was reaped and forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Slot(pub u32);

impl Slot {
    /// File name of the worker's control socket, in the directory of the jailer's sockets.
    pub fn socket_name(self) -> String {
        format!("w{}.sock", self.0)
    }
}

/// Limits of the worker's cgroup; `None` leaves the controller's default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupLimits {
    /// `memory.max`, bytes.
    pub memory_max: Option<u64>,
    /// `pids.max`, threads.
    pub pids_max: Option<u32>,
    /// `cpu.max`, per cent of one CPU.
    pub cpu_percent: Option<u32>,
    /// Where there is no delegated cgroup: refuse (false) or go on without limits (true).
    pub best_effort: bool,
}

/// Resource limits that depend on the VM; the others are in `policies/process.json`. They are lowered from outside
/// (`prlimit(2)`) when a worker is handed over, before it knows its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimits {
    /// RLIMIT_FSIZE, bytes: the size of the largest writable disk. Guest RAM and the console's ring are written through
    /// mappings, which it does not concern.
    pub fsize: u64,
    /// RLIMIT_AS, bytes: guest RAM, the ring, and what the worker's own code, stacks and heap take.
    pub address_space: u64,
    /// RLIMIT_NPROC, threads (in the worker's user namespace, so of this worker alone).
    pub nproc: u32,
    /// RLIMIT_MEMLOCK, bytes.
    pub memlock: u64,
}

/// From the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// A confined worker, from the pool or new. Answered by `Made` or `Refused` with the same `seq`.
    Make {
        /// Chosen by the supervisor; comes back in the answer.
        seq: u64,
        /// Limits of its cgroup, if any were asked for.
        limits: Option<CgroupLimits>,
        /// Resource limits that fit its VM.
        rlimits: Rlimits,
    },
    /// The supervisor has heard how the worker of this slot ended; the slot may be used again.
    Forget {
        /// The slot of an `Ended`.
        slot: Slot,
    },
    /// Other limits for a worker that was handed over: the VM's file has changed, or the jailer is a new one that found the
    /// worker running. Answered by `Limited`.
    Limit {
        /// Which.
        slot: Slot,
        /// All of them; what is `None` here is lifted.
        limits: CgroupLimits,
    },
}

impl ipc::Message for Request {
    const MAX_BYTES: usize = 256;
    const MAX_FDS: usize = 0;
}

/// From the jailer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// First message: what this jailer can do on this host.
    Ready(Facts),
    /// A worker, confined and listening on the socket of its slot. Carries one fd: its pidfd.
    Made {
        /// Of the request.
        seq: u64,
        /// Who it is.
        worker: Worker,
        /// It waited in the pool (false: it was made for this request).
        warm: bool,
    },
    /// No worker.
    Refused {
        /// Of the request.
        seq: u64,
        /// Why.
        why: Refusal,
    },
    /// After `Ready`: a worker that was handed over to an earlier supervisor and lives. Carries its pidfd.
    Holds {
        /// Who it is.
        worker: Worker,
        /// An earlier jailer made it: this one is not its parent, and will not know how it ended.
        orphan: bool,
    },
    /// After `Ready`, `Holds` and `Ended`: that was all.
    Listed,
    /// The answer to `Limit`.
    Limited {
        /// Which.
        slot: Slot,
        /// Why not, where it was not done.
        failed: Option<Refusal>,
    },
    /// A worker that was handed over was stopped by a signal (SIGSTOP), or goes on after that. An orphan's is not seen.
    Stopped {
        /// Which.
        slot: Slot,
        /// It stands still; false: it goes on.
        stopped: bool,
    },
    /// A worker that was handed over has ended and was reaped. Said again to a supervisor that comes back, until
    /// `Forget`.
    Ended {
        /// Which.
        slot: Slot,
        /// Its pid, no longer in use by it.
        pid: i32,
        /// How.
        how: HowEnded,
        /// What it wrote to its report pipe before it ended: one line, an allegation, at most [`LAST_WORDS_MAX`] bytes.
        last_words: String,
    },
}

impl ipc::Message for Reply {
    const MAX_BYTES: usize = 2048;
    fn fd_count(&self) -> usize {
        usize::from(matches!(self, Reply::Made { .. } | Reply::Holds { .. }))
    }
}

/// What a jailer can do on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Its own pid: a supervisor that found it behind a socket, instead of starting it, learns it from here.
    pub pid: i32,
    /// Whose uids its workers run as.
    pub uids: UidSource,
    /// Its delegated cgroup v2 directory, or why there is none.
    pub cgroup: Result<String, String>,
    /// How many warm workers it keeps.
    pub pool: u32,
}

/// Whose uids the workers of a jailer run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UidSource {
    /// One subordinate uid and gid for each worker.
    Subordinate {
        /// First uid of the range.
        first_uid: u32,
        /// First gid of the range.
        first_gid: u32,
        /// Length of the shorter range.
        count: u32,
    },
    /// The user's own uid for all: no range in /etc/subuid and /etc/subgid, or no newuidmap.
    Own,
}

/// A worker that was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// Its place.
    pub slot: Slot,
    /// Its pid in the jailer's pid namespace.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`, clock ticks since boot: tells it from a later process of the same pid.
    pub start_time: u64,
    /// Its uid in the jailer's user namespace.
    pub uid: u32,
}

/// Why there is no worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Limits were asked for and there is no delegated cgroup to hold them (the reason for that).
    NoCgroup(String),
    /// All slots or all uids are in use.
    Full {
        /// How many there are.
        slots: u32,
    },
    /// A step of making the jail failed.
    Step {
        /// Name of the step, as `plan.rs` and the log have it.
        step: String,
        /// Its errno.
        errno: i32,
    },
    /// The worker ended before it listened.
    Died(HowEnded, String),
    /// The program in the worker's place was not built from the policies that the jailer was built from (how it differs).
    Program(String),
    /// The request itself is wrong; the supervisor is of another mind about limits than the jailer.
    Invalid(String),
}

/// How a process ended, as `waitid(2)` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HowEnded {
    /// It left with this status.
    Exited(i32),
    /// This signal killed it (SIGSYS: it broke its policy).
    Killed(i32),
    /// It was not this jailer's child, so nobody could say.
    Unknown,
}

/// What only the creator of a worker's user namespace may read: `vmsup-jailer inspect PID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// Entries of `/proc/PID/fd`: number and what it points to.
    pub fds: Vec<(i32, String)>,
    /// Bytes of `/proc/PID/environ`.
    pub environ_bytes: usize,
    /// `/proc/PID/root`, resolved.
    pub root: String,
    /// Entries of the root directory.
    pub root_entries: Vec<String>,
    /// Lines of `/proc/PID/mountinfo`.
    pub mounts: Vec<String>,
    /// Entries of `/proc/PID/ns`: kind and inode, `mnt:[4026532513]`.
    pub namespaces: Vec<String>,
    /// The policy section of the program that it runs, read from `/proc/PID/exe`; or why there is none.
    pub section: Result<Vec<u8>, String>,
}

impl ipc::Message for Inspection {
    const MAX_BYTES: usize = ipc::codec::FRAME_LIMIT;
}
