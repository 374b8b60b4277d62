//! What every process of vmsup may do. The data is in `seccomp/`, `landlock.json` and `process.json`; build.rs turns it
//! into the constants here; [`apply`] puts it in force, in debug and release alike. [`section`] is where a program's file
//! shows what it would put in force.
//!
//! Unsafe: an attribute in each of `section.rs` and `files_section.rs`, and `trace/sys.rs`, which only a trace build has.
#![deny(unsafe_code)]
#![deny(missing_docs)]

use seccompiler::sock_filter;

pub mod apply;
mod files_section;
pub mod section;
/// What a trace build does instead of filtering.
#[cfg(feature = "trace")]
pub mod trace {
    pub mod sys;
}

/// True in a trace build, which announces every system call to a tracer and filters none.
pub const TRACE: bool = cfg!(feature = "trace");

/// A compiled seccomp filter. Default action: kill the process.
#[derive(Debug)]
pub struct Filter {
    /// Name of its file without the suffix, `worker-vcpu`.
    pub name: &'static str,
    /// The system calls that it allows at all, sorted.
    pub syscalls: &'static [&'static str],
    /// The BPF program.
    pub program: &'static [sock_filter],
}

/// What `process.json` says of one process.
#[derive(Debug)]
pub struct Process {
    /// `worker`, `jailer`, …
    pub name: &'static str,
    /// Capabilities that it keeps.
    pub capabilities: &'static [&'static str],
    /// Namespaces of its own, as `/proc/PID/ns` names them.
    pub namespaces: &'static [&'static str],
    /// Resource limits: name without `RLIMIT_`, in lower case, and the value of both limits.
    pub rlimits: &'static [(&'static str, u64)],
    /// Fds that it is born with.
    pub fds: &'static [(i32, &'static str)],
}

include!(concat!(env!("OUT_DIR"), "/policies.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use policy_set::arch::Arch;
    use policy_set::model::Set;
    use std::collections::BTreeMap;

    /// `process.json` has the budgets, x86_64.
    #[test]
    fn budgets_hold() {
        let set =
            Set::from_texts("compiled in", FILES.iter().map(|(f, t)| ((*f).to_owned(), (*t).to_owned()))).unwrap();
        let calls = |name: &str| ALL.iter().find(|f| f.name == name).unwrap().syscalls.len();
        let budgets: BTreeMap<&str, usize> =
            set.processes.values().flat_map(|p| &p.budgets).map(|(name, most)| (name.as_str(), *most)).collect();
        let listed = ["netd", "worker", "worker-control", "worker-reactor", "worker-startup", "worker-vcpu"];
        assert_eq!(budgets.keys().copied().collect::<Vec<_>>(), listed);
        for (name, most) in budgets {
            let count = if name == "worker" { set.narrowed(Arch::X86_64, "worker").len() } else { calls(name) };
            assert!(count > 0 && count <= most, "{name}: {count} > {most}");
        }
    }

    /// Filters stack: what the start-up filter does not allow, no thread gets back.
    #[test]
    fn a_thread_filter_is_a_subset_of_the_startup_filter() {
        for filter in [&WORKER_VCPU, &WORKER_REACTOR, &WORKER_CONTROL, &WORKER_IO] {
            for call in filter.syscalls {
                assert!(WORKER_STARTUP.syscalls.contains(call), "{} allows {call}, start-up does not", filter.name);
            }
        }
    }

    /// `FILES` stands in this program's file, in the section that `vmsup policy diff` reads, once.
    #[test]
    fn the_files_are_in_the_programs_own_section() {
        let set = policy_set::program::read(std::path::Path::new("/proc/self/exe")).unwrap();
        let files: Vec<(String, String)> = FILES.iter().map(|(f, t)| ((*f).to_owned(), (*t).to_owned())).collect();
        assert!(set == Set::from_texts("/proc/self/exe", files.clone()).unwrap(), "the section has what `FILES` has");
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(policy_set::read::texts_of(root).unwrap() == files, "the files are those of the folder, in its order");
        let program = std::fs::read("/proc/self/exe").unwrap();
        let longest = FILES.iter().max_by_key(|(_, text)| text.len()).unwrap().1.as_bytes();
        assert_eq!(program.windows(longest.len()).filter(|w| *w == longest).count(), 1);
    }

    #[test]
    fn the_default_action_is_to_kill_the_process() {
        const SECCOMP_RET_KILL_PROCESS: u32 = 0x8000_0000;
        assert_eq!(ALL.len(), 7);
        for filter in ALL {
            let last_returns: Vec<u32> = filter.program.iter().filter(|i| i.code == 0x06).map(|i| i.k).collect();
            assert!(last_returns.contains(&SECCOMP_RET_KILL_PROCESS), "{}", filter.name);
            assert!(
                last_returns.iter().all(|k| *k == SECCOMP_RET_KILL_PROCESS || *k == 0x7fff_0000),
                "{}: an action that is neither kill nor allow",
                filter.name
            );
        }
    }

    /// To another program, process, identity or privilege, or past the kernel's own checks: no confined process has these.
    const WAYS_OUT: &[&str] = &[
        "connect",
        "socket",
        "bind",
        "execve",
        "execveat",
        "fork",
        "vfork",
        "clone",
        "mount",
        "mknod",
        "mknodat",
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
        "kill",
        "tkill",
        "tgkill",
        "unshare",
        "setns",
        "bpf",
        "userfaultfd",
        "io_uring_setup",
        "prlimit64",
        "capset",
        "setuid",
        "setresuid",
        "perf_event_open",
        "keyctl",
        "memfd_create",
        "pidfd_open",
        "pidfd_getfd",
    ];

    /// The system calls that no worker thread may make, ever: each is a way out of the jail.
    #[test]
    fn no_worker_filter_allows_a_way_out() {
        for filter in ALL.iter().filter(|f| f.name.starts_with("worker")) {
            for call in WAYS_OUT.iter().chain(&["open", "openat", "openat2", "creat", "io_uring_register", "setrlimit"])
            {
                assert!(!filter.syscalls.contains(call), "{} allows {call}", filter.name);
            }
        }
    }

    /// netd holds a capability: it neither becomes another program, nor makes a process, a socket or a mount, nor touches
    /// another process, nor changes who it is.
    #[test]
    fn netd_has_no_way_to_another_program_or_identity() {
        for call in WAYS_OUT.iter().chain(&[
            "clone3",
            "socketpair",
            "listen",
            "fsopen",
            "move_mount",
            "symlinkat",
            "linkat",
            "chmod",
            "fchmod",
            "fchmodat",
            "chown",
            "fchown",
            "prctl",
            "setgroups",
            "mprotect",
            "init_module",
            "finit_module",
            "setgid",
            "unlink",
            "symlink",
            "link",
            "chroot",
            "dup2",
            "dup3",
        ]) {
            assert!(!NETD.syscalls.contains(call), "{call}");
        }
    }

    /// Only CAP_NET_ADMIN, and only in netd.
    #[test]
    fn netd_alone_keeps_a_capability() {
        assert_eq!(PROCESS_NETD.capabilities, ["CAP_NET_ADMIN"]);
        for other in [&PROCESS_WORKER, &PROCESS_JAILER, &PROCESS_SUPERVISOR] {
            assert!(other.capabilities.is_empty(), "{}", other.name);
        }
    }

    /// A right to run or to make devices, links and sockets stands in no exception.
    #[test]
    fn landlocks_exceptions_are_netds_and_name_each_place_once() {
        assert!(LANDLOCK_WORKER_RULES.is_empty());
        let mut places: Vec<_> = LANDLOCK_NETD_RULES.iter().map(|(what, _)| *what).collect();
        places.dedup();
        assert_eq!(places, ["journal directory", "/dev/net/tun", "configuration directory", "accounts directory"]);
        assert!(LANDLOCK_NETD_RULES.iter().all(|(_, access)| !access.contains(&landlock::AccessFs::Execute)));
    }

    #[test]
    fn a_place_without_a_rule_and_a_rule_without_a_place_are_refused() {
        let here = std::fs::File::open("/").unwrap();
        let unknown = apply::landlock_netd(&[("home directory", std::os::fd::AsFd::as_fd(&here))]);
        assert!(matches!(unknown, Err(apply::Error::Place(what)) if what == "home directory"));
        let missing = apply::landlock_netd(&[("/dev/net/tun", std::os::fd::AsFd::as_fd(&here))]);
        assert!(matches!(missing, Err(apply::Error::Place(what)) if what == "journal directory"));
    }
}
