//! What system calls are for: families, as people group them.

use serde::Serialize;

/// A family of system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Waiting for events.
    Waiting,
    /// Bytes in and out of what is open.
    Transfer,
    /// Names, directories, metadata, opening.
    Files,
    /// Sockets.
    Sockets,
    /// ioctl(2): KVM, TUN, file systems.
    Ioctl,
    /// Address space.
    Memory,
    /// Threads, locks, signals.
    Threads,
    /// Clocks and timers.
    Time,
    /// Processes, identity, privileges, namespaces, mounts.
    Privileges,
    /// The end.
    End,
    /// Everything else.
    Other,
}

const WAITING: &[&str] = &[
    "epoll_create",
    "epoll_create1",
    "epoll_ctl",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "poll",
    "ppoll",
    "select",
    "pselect6",
    "eventfd",
    "eventfd2",
    "signalfd",
    "signalfd4",
    "inotify_init",
    "inotify_init1",
    "inotify_add_watch",
    "inotify_rm_watch",
    "restart_syscall",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "io_setup",
    "io_submit",
    "io_getevents",
    "io_pgetevents",
    "io_destroy",
    "io_cancel",
];
const TRANSFER: &[&str] = &[
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
    "sendfile",
    "splice",
    "tee",
    "vmsplice",
    "copy_file_range",
    "lseek",
    "fsync",
    "fdatasync",
    "sync_file_range",
    "syncfs",
    "fallocate",
    "ftruncate",
    "close",
    "close_range",
    "dup",
    "dup2",
    "dup3",
    "fcntl",
    "pipe",
    "pipe2",
    "flock",
    "fadvise64",
    "readahead",
];
const FILES: &[&str] = &[
    "open",
    "openat",
    "openat2",
    "creat",
    "stat",
    "fstat",
    "lstat",
    "newfstatat",
    "fstatat",
    "statx",
    "statfs",
    "fstatfs",
    "access",
    "faccessat",
    "faccessat2",
    "readlink",
    "readlinkat",
    "getdents",
    "getdents64",
    "getcwd",
    "chdir",
    "fchdir",
    "mkdir",
    "mkdirat",
    "rmdir",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "mknod",
    "mknodat",
    "chmod",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "chown",
    "fchown",
    "lchown",
    "fchownat",
    "truncate",
    "utimensat",
    "umask",
    "memfd_create",
    "getxattr",
    "setxattr",
    "fgetxattr",
    "fsetxattr",
    "name_to_handle_at",
    "open_by_handle_at",
];
const SOCKETS: &[&str] = &[
    "socket",
    "socketpair",
    "bind",
    "listen",
    "accept",
    "accept4",
    "connect",
    "shutdown",
    "getsockname",
    "getpeername",
    "getsockopt",
    "setsockopt",
    "sendto",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "sendmmsg",
    "recvmmsg",
];
const MEMORY: &[&str] = &[
    "brk",
    "mmap",
    "munmap",
    "mprotect",
    "pkey_mprotect",
    "mremap",
    "madvise",
    "process_madvise",
    "mlock",
    "mlock2",
    "munlock",
    "mlockall",
    "munlockall",
    "msync",
    "mincore",
    "membarrier",
    "userfaultfd",
    "remap_file_pages",
    "memfd_secret",
    "mseal",
];
const THREADS: &[&str] = &[
    "futex",
    "futex_waitv",
    "clone",
    "clone3",
    "fork",
    "vfork",
    "set_robust_list",
    "get_robust_list",
    "rseq",
    "set_tid_address",
    "gettid",
    "getpid",
    "getppid",
    "tkill",
    "tgkill",
    "kill",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "rt_sigpending",
    "rt_sigqueueinfo",
    "rt_tgsigqueueinfo",
    "sigaltstack",
    "sched_yield",
    "sched_getaffinity",
    "sched_setaffinity",
    "sched_getparam",
    "sched_setscheduler",
    "sched_getscheduler",
    "wait4",
    "waitid",
    "pidfd_open",
    "pidfd_send_signal",
    "pidfd_getfd",
    "arch_prctl",
    "pause",
];
const TIME: &[&str] = &[
    "clock_gettime",
    "clock_getres",
    "clock_nanosleep",
    "clock_settime",
    "nanosleep",
    "gettimeofday",
    "settimeofday",
    "time",
    "timer_create",
    "timer_settime",
    "timer_gettime",
    "timer_getoverrun",
    "timer_delete",
    "timerfd_create",
    "timerfd_settime",
    "timerfd_gettime",
    "alarm",
    "getitimer",
    "setitimer",
    "adjtimex",
    "clock_adjtime",
    "times",
];
const PRIVILEGES: &[&str] = &[
    "prctl",
    "seccomp",
    "capget",
    "capset",
    "setuid",
    "setgid",
    "setreuid",
    "setregid",
    "setresuid",
    "setresgid",
    "setgroups",
    "setfsuid",
    "setfsgid",
    "getuid",
    "getgid",
    "geteuid",
    "getegid",
    "getresuid",
    "getresgid",
    "getgroups",
    "setsid",
    "getsid",
    "setpgid",
    "getpgid",
    "execve",
    "execveat",
    "setns",
    "unshare",
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "move_mount",
    "open_tree",
    "mount_setattr",
    "sethostname",
    "setdomainname",
    "prlimit64",
    "setrlimit",
    "getrlimit",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "kcmp",
    "bpf",
    "perf_event_open",
    "keyctl",
    "add_key",
    "request_key",
    "personality",
    "init_module",
    "finit_module",
    "delete_module",
    "kexec_load",
    "kexec_file_load",
    "reboot",
    "swapon",
    "swapoff",
    "acct",
    "iopl",
    "ioperm",
    "quotactl",
    "landlock_create_ruleset",
    "landlock_add_rule",
    "landlock_restrict_self",
];

impl Family {
    /// All, in the order in which people read them.
    pub const ALL: [Family; 11] = [
        Family::Waiting,
        Family::Transfer,
        Family::Files,
        Family::Sockets,
        Family::Ioctl,
        Family::Memory,
        Family::Threads,
        Family::Time,
        Family::Privileges,
        Family::End,
        Family::Other,
    ];

    /// A heading.
    pub fn title(self) -> &'static str {
        match self {
            Family::Waiting => "waiting for events",
            Family::Transfer => "bytes in and out of what is open",
            Family::Files => "files and directories",
            Family::Sockets => "sockets",
            Family::Ioctl => "ioctl: KVM, TUN, file systems",
            Family::Memory => "memory",
            Family::Threads => "threads, locks, signals, processes",
            Family::Time => "clocks and timers",
            Family::Privileges => "identity, privileges, namespaces, programs",
            Family::End => "the end",
            Family::Other => "other",
        }
    }
}

/// The family of a system call.
pub fn family(syscall: &str) -> Family {
    let lists = [
        (WAITING, Family::Waiting),
        (TRANSFER, Family::Transfer),
        (FILES, Family::Files),
        (SOCKETS, Family::Sockets),
        (MEMORY, Family::Memory),
        (THREADS, Family::Threads),
        (TIME, Family::Time),
        (PRIVILEGES, Family::Privileges),
        (&["ioctl"], Family::Ioctl),
        (&["exit", "exit_group"], Family::End),
    ];
    lists.iter().find(|(calls, _)| calls.contains(&syscall)).map_or(Family::Other, |(_, family)| *family)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Arch;

    #[test]
    fn every_name_in_a_family_is_one_of_the_kernels() {
        for list in [WAITING, TRANSFER, FILES, SOCKETS, MEMORY, THREADS, TIME, PRIVILEGES] {
            for name in list {
                assert!(Arch::ALL.iter().any(|arch| arch.number(name).is_some()), "{name}");
                assert_eq!(lists_with(name), 1, "{name} is of one family");
            }
        }
        assert_eq!(family("openat"), Family::Files);
        assert_eq!(family("lookup_dcookie"), Family::Other);
        assert_eq!(Family::ALL.len(), 11);
    }

    fn lists_with(name: &str) -> usize {
        [WAITING, TRANSFER, FILES, SOCKETS, MEMORY, THREADS, TIME, PRIVILEGES]
            .iter()
            .filter(|l| l.contains(&name))
            .count()
    }
}
