//! How dangerous a system call is to allow, and why: what findings are graded by, and what the report colours by.
//!
//! The grade is that of the call with *any* arguments, in a process that may be someone else's by then. Conditions can make
//! a call harmless; that is for who asks to look at (`audit.rs` does).

use serde::Serialize;

/// How dangerous a system call is, whatever its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Works on what the process has.
    Plain,
    /// Gives a little more than that, or is rarely needed and so rarely tested.
    Low,
    /// A wide right: files by name, sockets, devices, other processes' attention.
    Medium,
    /// A way out: another program, identity, namespace, process or kernel.
    High,
}

/// The grade of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Risk {
    /// How dangerous.
    pub level: Level,
    /// What it gives.
    pub why: &'static str,
}

/// Of a system call, by its name.
pub fn risk(call: &str) -> Risk {
    let found = TABLE.iter().find(|(_, _, calls)| calls.contains(&call));
    found.map_or(
        Risk { level: Level::Low, why: "seldom needed: code of the kernel that few have tested" },
        |(level, why, _)| Risk { level: *level, why },
    )
}

/// Every call of the table, with its grade.
pub fn graded() -> impl Iterator<Item = (&'static str, Risk)> {
    TABLE.iter().flat_map(|(level, why, calls)| calls.iter().map(|call| (*call, Risk { level: *level, why })))
}

type Row = (Level, &'static str, &'static [&'static str]);

/// Grade, reason, calls. A call stands once.
const TABLE: &[Row] = &[
    // Another program, another process.
    (Level::High, "becomes another program", &["execve", "execveat", "uselib"]),
    (
        Level::High,
        "makes processes, and with the right flags namespaces and capabilities in them",
        &["clone", "clone3"],
    ),
    (Level::High, "makes processes", &["fork", "vfork"]),
    (
        Level::High,
        "reads and writes other processes' memory and registers",
        &["ptrace", "process_vm_readv", "process_vm_writev"],
    ),
    (Level::High, "takes fds out of other processes", &["pidfd_getfd"]),
    (Level::High, "reaches other processes' memory", &["process_madvise", "process_mrelease"]),
    (Level::High, "compares other processes' kernel objects", &["kcmp"]),
    // Another identity, other privileges.
    (
        Level::High,
        "changes who the process is",
        &["setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups"],
    ),
    (Level::High, "changes capabilities", &["capset"]),
    (Level::High, "enters or makes namespaces", &["setns", "unshare"]),
    (
        Level::High,
        "keys of the kernel, which other processes of the same user share",
        &["keyctl", "add_key", "request_key"],
    ),
    // The kernel itself.
    (Level::High, "loads programs into the kernel", &["bpf"]),
    (Level::High, "loads code into the kernel", &["init_module", "finit_module", "delete_module", "create_module"]),
    (Level::High, "starts another kernel", &["kexec_load", "kexec_file_load"]),
    (Level::High, "stops the host", &["reboot"]),
    (Level::High, "measures other programs, and a large part of the kernel that had many faults", &["perf_event_open"]),
    (
        Level::High,
        "stalls the kernel in the middle of a copy, which turns small faults into large ones",
        &["userfaultfd"],
    ),
    (Level::High, "system calls that no filter sees", &["io_uring_setup", "io_uring_enter", "io_uring_register"]),
    (Level::High, "ports of the hardware", &["iopl", "ioperm"]),
    (Level::High, "memory of the host", &["swapon", "swapoff"]),
    (Level::High, "the clock of the host", &["settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "stime"]),
    (Level::High, "the name of the host", &["sethostname", "setdomainname"]),
    (Level::High, "what the host keeps of its programs, or its log", &["acct", "syslog", "quotactl", "quotactl_fd"]),
    (Level::High, "talks to the terminals of all", &["vhangup"]),
    (Level::High, "segments of memory below the checks of the kernel", &["modify_ldt"]),
    (Level::High, "changes how system calls and addresses work, among them where code may be", &["personality"]),
    (Level::High, "watches all files of a host", &["fanotify_init", "fanotify_mark", "lookup_dcookie"]),
    (Level::High, "opens files by a handle, past the permissions of the path", &["open_by_handle_at"]),
    (Level::High, "memory that outlives the checks on it, between processes", &["remap_file_pages"]),
    // File systems.
    (
        Level::High,
        "changes what is mounted",
        &[
            "mount",
            "umount2",
            "umount",
            "pivot_root",
            "chroot",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "fsopen",
            "fsconfig",
            "fsmount",
            "fspick",
            "mount_setattr",
            "nfsservctl",
        ],
    ),
    (Level::High, "makes devices", &["mknod", "mknodat"]),
    (Level::Medium, "opens files by name", &["open", "openat", "openat2", "creat"]),
    (
        Level::Medium,
        "changes names in directories",
        &[
            "rename",
            "renameat",
            "renameat2",
            "unlink",
            "unlinkat",
            "rmdir",
            "mkdir",
            "mkdirat",
            "link",
            "linkat",
            "symlink",
            "symlinkat",
        ],
    ),
    (
        Level::Medium,
        "changes who may use a file",
        &[
            "chmod",
            "fchmod",
            "fchmodat",
            "fchmodat2",
            "chown",
            "fchown",
            "lchown",
            "fchownat",
            "setxattr",
            "lsetxattr",
            "fsetxattr",
            "setxattrat",
            "removexattr",
            "lremovexattr",
            "fremovexattr",
            "removexattrat",
            "file_setattr",
        ],
    ),
    (Level::Medium, "changes files by name", &["truncate", "utime", "utimes", "utimensat", "futimesat"]),
    // Sockets.
    (Level::Medium, "makes sockets, of any family that the kernel knows", &["socket"]),
    (Level::Medium, "reaches other programs and hosts", &["connect"]),
    (Level::Medium, "offers itself to other programs and hosts", &["bind"]),
    (Level::Medium, "options of sockets, a large part of the kernel that had many faults", &["setsockopt"]),
    // Devices and memory.
    (Level::Medium, "whatever a device or a file system has: thousands of requests", &["ioctl"]),
    (Level::Medium, "makes memory executable, unless PROT_EXEC is denied", &["mmap", "mprotect", "pkey_mprotect"]),
    (Level::Medium, "maps memory that others share", &["shmat", "shmget", "shmctl", "shmdt"]),
    (Level::Medium, "attributes of the process, among them its privileges and its seccomp", &["prctl"]),
    (Level::Medium, "the processor's own state of the process", &["arch_prctl", "map_shadow_stack"]),
    (Level::Medium, "filters of itself; with a listener, of what it makes", &["seccomp"]),
    (Level::Medium, "a file without a name, which can be executed", &["memfd_create"]),
    (Level::Medium, "a file without a name that the kernel itself cannot read", &["memfd_secret"]),
    // Other processes' attention.
    (
        Level::Medium,
        "signals to other processes",
        &["kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal"],
    ),
    (Level::Medium, "a handle on another process", &["pidfd_open"]),
    (
        Level::Medium,
        "limits and priorities, of other processes of its user, too",
        &[
            "prlimit64",
            "setrlimit",
            "setpriority",
            "sched_setscheduler",
            "sched_setparam",
            "sched_setattr",
            "sched_setaffinity",
            "ioprio_set",
            "migrate_pages",
            "move_pages",
        ],
    ),
    (Level::Medium, "leaves its session or process group", &["setsid", "setpgid"]),
    (
        Level::Medium,
        "objects between processes that stay when all have gone",
        &["msgget", "msgsnd", "msgrcv", "msgctl", "semget", "semop", "semctl", "semtimedop", "mq_open", "mq_unlink"],
    ),
    // A little more than what the process has.
    (
        Level::Low,
        "what there is in the file system, by name",
        &[
            "stat",
            "lstat",
            "newfstatat",
            "statx",
            "access",
            "faccessat",
            "faccessat2",
            "readlink",
            "readlinkat",
            "statfs",
            "getxattr",
            "lgetxattr",
            "getxattrat",
            "listxattr",
            "llistxattr",
            "listxattrat",
            "chdir",
            "getcwd",
            "inotify_add_watch",
            "name_to_handle_at",
            "statmount",
            "listmount",
        ],
    ),
    (Level::Low, "moves in the file system through an open directory", &["fchdir", "getdents", "getdents64"]),
    (Level::Low, "waits for connections", &["listen"]),
    (Level::Low, "sends to an address that the call names", &["sendto", "sendmsg", "sendmmsg"]),
    (
        Level::Low,
        "moves bytes between fds within the kernel",
        &["splice", "tee", "vmsplice", "sendfile", "copy_file_range"],
    ),
    (Level::Low, "looks at other processes", &["getpgid", "getsid", "get_robust_list", "getpriority", "ioprio_get"]),
    (Level::Low, "what its own handlers of signals do", &["rt_sigaction", "sigaction", "signalfd", "signalfd4"]),
    (
        Level::Low,
        "its own landlock rules; they only narrow",
        &["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"],
    ),
    (Level::Low, "locks memory down", &["mlock", "mlock2", "mlockall", "munlock", "munlockall"]),
    (Level::Low, "timers, which signal", &["timer_create", "setitimer", "alarm"]),
    (Level::Low, "sessions and modes of files that it makes", &["umask"]),
    // What the process has.
    (
        Level::Plain,
        "reads and writes fds that it has",
        &[
            "read",
            "write",
            "readv",
            "writev",
            "pread64",
            "pwrite64",
            "preadv",
            "pwritev",
            "preadv2",
            "pwritev2",
            "lseek",
            "close",
            "close_range",
            "fsync",
            "fdatasync",
            "sync_file_range",
            "ftruncate",
            "fallocate",
            "readahead",
            "fadvise64",
            "flock",
        ],
    ),
    (Level::Plain, "fds that it has", &["dup", "dup2", "dup3", "fcntl", "fstat", "fstatfs", "fgetxattr", "flistxattr"]),
    (Level::Plain, "pipes and counters of its own", &["pipe", "pipe2", "eventfd", "eventfd2", "socketpair"]),
    (
        Level::Plain,
        "waits for fds that it has",
        &[
            "poll",
            "ppoll",
            "select",
            "pselect6",
            "epoll_create",
            "epoll_create1",
            "epoll_ctl",
            "epoll_wait",
            "epoll_pwait",
            "epoll_pwait2",
            "inotify_init",
            "inotify_init1",
            "inotify_rm_watch",
        ],
    ),
    (
        Level::Plain,
        "sockets that it has",
        &[
            "accept",
            "accept4",
            "recvfrom",
            "recvmsg",
            "recvmmsg",
            "getsockopt",
            "getsockname",
            "getpeername",
            "shutdown",
        ],
    ),
    (Level::Plain, "its own memory", &["brk", "munmap", "mremap", "madvise", "mincore", "msync", "membarrier"]),
    (
        Level::Plain,
        "its own threads",
        &[
            "futex",
            "futex_wake",
            "futex_wait",
            "futex_requeue",
            "futex_waitv",
            "set_tid_address",
            "set_robust_list",
            "rseq",
            "sched_yield",
            "sched_getaffinity",
            "sched_getparam",
            "sched_getscheduler",
            "sched_getattr",
            "sched_get_priority_max",
            "sched_get_priority_min",
            "sched_rr_get_interval",
            "getcpu",
        ],
    ),
    (
        Level::Plain,
        "its own signals",
        &[
            "rt_sigprocmask",
            "rt_sigreturn",
            "rt_sigpending",
            "rt_sigtimedwait",
            "rt_sigsuspend",
            "sigaltstack",
            "restart_syscall",
            "pause",
        ],
    ),
    (
        Level::Plain,
        "the time",
        &[
            "clock_gettime",
            "clock_getres",
            "clock_nanosleep",
            "nanosleep",
            "gettimeofday",
            "time",
            "timer_settime",
            "timer_gettime",
            "timer_getoverrun",
            "timer_delete",
            "timerfd_create",
            "timerfd_settime",
            "timerfd_gettime",
            "getitimer",
            "times",
        ],
    ),
    (
        Level::Plain,
        "who and what it is",
        &[
            "getpid",
            "getppid",
            "gettid",
            "getuid",
            "geteuid",
            "getgid",
            "getegid",
            "getresuid",
            "getresgid",
            "getgroups",
            "getpgrp",
            "capget",
            "getrlimit",
            "getrusage",
            "uname",
            "sysinfo",
        ],
    ),
    (Level::Plain, "its own children's ends", &["wait4", "waitid"]),
    (Level::Plain, "random bytes", &["getrandom"]),
    (Level::Plain, "the end", &["exit", "exit_group"]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use policy_set::arch::Arch;
    use std::collections::BTreeSet;

    /// Names that neither table of the crate has, because no kernel of these architectures has them, or only newer ones.
    const ELSEWHERE: &[&str] = &["umount", "stime", "sigaction"];

    #[test]
    fn every_name_of_the_table_is_a_system_call_and_stands_once() {
        let mut seen = BTreeSet::new();
        for (call, _) in graded() {
            assert!(seen.insert(call), "{call} stands twice");
            let known = Arch::ALL.iter().any(|arch| arch.number(call).is_some());
            assert!(known || ELSEWHERE.contains(&call), "{call}: no such system call");
        }
    }

    #[test]
    fn what_leads_out_is_graded_high_and_what_is_not_graded_is_not_plain() {
        for call in ["execve", "ptrace", "bpf", "setns", "io_uring_setup", "mount", "init_module", "clone3"] {
            assert_eq!(risk(call).level, Level::High, "{call}");
        }
        for call in ["read", "futex", "exit_group", "epoll_wait"] {
            assert_eq!(risk(call).level, Level::Plain, "{call}");
        }
        assert_eq!(risk("vserver").level, Level::Low);
        assert_eq!(risk("openat").level, Level::Medium);
    }
}
