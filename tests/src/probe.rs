//! What the test and the probe in the worker's place say to each other, and what the probe tries.

use serde::{Deserialize, Serialize};

/// One attempt, under one set of filters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Try {
    /// A name of [`ATTEMPTS`].
    pub attempt: String,
    /// A name of [`FILTERS`].
    pub filter: String,
    /// Pid of another worker, as the host knows it.
    pub other: i32,
}

impl ipc::Message for Try {
    const MAX_BYTES: usize = 256;
    fn fd_count(&self) -> usize {
        1
    }
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It worked: the jail has a hole.
    Succeeded,
    /// It was refused with this errno.
    Refused(i32),
    /// This signal ended who tried.
    Killed(i32),
}

impl ipc::Message for Outcome {
    const MAX_BYTES: usize = 64;
}

/// Under what an attempt is made: the jail alone, then what the worker itself puts on top, thread by thread.
pub const FILTERS: [&str; 6] =
    ["jail", "worker-startup", "worker-control", "worker-reactor", "worker-io", "worker-vcpu"];

/// What is attempted.
pub const ATTEMPTS: [&str; 30] = [
    "open-host-file",
    "open-root-directory",
    "open-proc-self-mem",
    "create-file",
    "connect-unix",
    "connect-tcp",
    "bind-unix",
    "bind-tcp",
    "exec-shell",
    "exec-memfd",
    "mount",
    "mknod",
    "ptrace-other",
    "signal-other",
    "read-memory-of-other",
    "new-user-namespace",
    "new-net-namespace",
    "new-vm",
    "io-uring",
    "userfaultfd",
    "bpf",
    "raise-a-limit",
    "gain-capability",
    "become-another-uid",
    "executable-memory",
    "make-memory-executable",
    "fork",
    "perf-event",
    "keyring",
    "steal-fd",
];
