//! What the threads of a running worker may do, seen from outside and tried from inside.

mod common;

use common::{Vm, Worker, button};
use policies::Filter;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use vmm_worker::{confine, leave};

/// A thread of KVM's own, which newer kernels put into the process: it runs no code of the worker's.
const KVM_THREAD: &str = "kvm-nx-lpage-re";

#[test]
fn every_thread_runs_under_its_filter_and_is_named() {
    let worker = Worker::start();
    let vm = Vm::with(button(), 2, 64);
    vm.start_on(&worker.connect()).unwrap();
    vm.wait_for("button up");
    let threads: Vec<_> = worker.threads("Seccomp").into_iter().filter(|(name, _)| name != KVM_THREAD).collect();
    let names: Vec<&str> = threads.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["reactor", "vcpu0", "vcpu1", "vmsup-worker"]);
    assert!(threads.iter().all(|(_, mode)| mode == "2"), "{threads:?}");
    // One filter of the process's start and one of each thread's own.
    let filters: Vec<_> = worker.threads("Seccomp_filters").into_iter().filter(|(n, _)| n != KVM_THREAD).collect();
    let before = std::fs::read_to_string("/proc/self/status").unwrap();
    let inherited: u32 = before
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp_filters:"))
        .map_or(0, |count| count.trim().parse().unwrap());
    assert!(filters.iter().all(|(_, count)| count.parse() == Ok(inherited + 2)), "{filters:?}");
    assert!(worker.threads("NoNewPrivs").iter().all(|(_, flag)| flag == "1"));
}

#[test]
fn an_empty_worker_is_confined_before_it_listens() {
    let worker = Worker::start();
    assert_eq!(worker.threads("Seccomp"), [("vmsup-warm".to_owned(), "2".to_owned())]);
}

#[test]
fn a_running_worker_holds_no_fd_that_it_does_not_need() {
    let worker = Worker::start();
    let peer = worker.connect();
    let vm = Vm::with(button(), 2, 64);
    vm.start_on(&peer).unwrap();
    vm.wait_for("button up");
    let mut fds: Vec<String> = std::fs::read_dir(format!("/proc/{}/fd", worker.pid()))
        .unwrap()
        .map(|fd| std::fs::read_link(fd.unwrap().path()).unwrap().to_string_lossy().into_owned())
        // Numbers of sockets and pipes are not of interest.
        .map(|to| to.split(":[").next().unwrap().to_owned())
        .collect();
    fds.sort();
    for (what, count) in [("/dev/kvm", 0), ("/dev/null", 2), ("anon_inode:kvm-vm", 1), ("socket", 2), ("pipe", 2)] {
        assert_eq!(fds.iter().filter(|to| *to == what).count(), count, "{what} in {fds:?}");
    }
    let known = ["/dev/null", "anon_inode", "socket", "pipe", "/memfd:vm (deleted)"];
    assert!(fds.iter().all(|to| known.iter().any(|known| to.starts_with(known))), "{fds:?}");
}

/// Lets `child` write a core file of any size, and gives it a reason to; true where the kernel says that it wrote one.
fn dumps_core(child: &mut Child) -> bool {
    let pid = rustix::process::Pid::from_child(child);
    let any = rustix::process::Rlimit { current: None, maximum: None };
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Core, any).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::SEGV).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGSEGV));
    status.core_dumped()
}

/// The row "core dump with guest memory" of the threats, with the jailer's limit of 0 out of the way.
#[test]
fn a_worker_that_crashes_leaves_no_core_file() {
    let mut worker = Worker::start();
    let vm = Vm::new(button());
    vm.start_on(&worker.connect()).unwrap();
    vm.wait_for("button up");
    assert!(!dumps_core(&mut worker.child));
    // Any other process would leave one here.
    let folder = std::env::temp_dir().join(format!("vmm-worker-core-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let mut other = Command::new("sleep").arg("60").current_dir(&folder).spawn().unwrap();
    if !dumps_core(&mut other) {
        println!("SKIPPED a_worker_that_crashes_leaves_no_core_file: this machine writes core files of no process");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// And if a core were written all the same, guest RAM would not be in it.
#[test]
fn guest_memory_is_marked_as_none_to_dump() {
    let worker = Worker::start();
    let vm = Vm::new(button());
    vm.start_on(&worker.connect()).unwrap();
    vm.wait_for("button up");
    let Ok(maps) = std::fs::read_to_string(format!("/proc/{}/smaps", worker.pid())) else {
        println!(
            "SKIPPED guest_memory_is_marked_as_none_to_dump: only root reads the mappings of an undumpable process"
        );
        return;
    };
    let mut ram = 0;
    // The mappings of memfds: guest RAM, and the console's ring.
    for mapping in maps.split("VmFlags:").collect::<Vec<_>>().windows(2).filter(|pair| pair[0].contains("/memfd:vm")) {
        let kib = mapping[0].lines().find_map(|line| line.strip_prefix("Size:")).unwrap();
        if kib.trim() == "65536 kB" {
            ram += 1;
            assert!(mapping[1].lines().next().unwrap().split(' ').any(|flag| flag == "dd"), "{maps}");
        }
    }
    assert_eq!(ram, 1, "{maps}");
}

/// Runs `body` in a child and gives the signal that killed it.
fn killed_by(body: impl FnOnce()) -> Option<i32> {
    // SAFETY: the child makes system calls and leaves by _exit; it takes no lock that another thread could hold.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        body();
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(0) }
    }
    let mut status = 0;
    // SAFETY: the child is ours, and `status` outlives the call.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status))
}

/// Requests of KVM's that belong to a start, and none to a running VM.
const CREATE_VM: libc::c_long = 0xae01;
const CREATE_VCPU: libc::c_long = 0xae41;
const SET_USER_MEMORY_REGION: libc::c_long = 0x4020_ae46;
const IOEVENTFD: libc::c_long = 0x4040_ae79;
const SET_REGS: libc::c_long = 0x4090_ae82;
const EXEC: libc::c_long = (libc::PROT_READ | libc::PROT_EXEC) as libc::c_long;
const ANON: libc::c_long = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as libc::c_long;

/// A system call: its name, number and first four arguments.
type Call = (&'static str, libc::c_long, [libc::c_long; 4]);

/// Ways out.
const FORBIDDEN: [Call; 17] = [
    ("openat", libc::SYS_openat, [0; 4]),
    ("socket", libc::SYS_socket, [1, 1, 0, 0]),
    ("connect", libc::SYS_connect, [0; 4]),
    ("execve", libc::SYS_execve, [0; 4]),
    ("fork", libc::SYS_fork, [0; 4]),
    ("clone", libc::SYS_clone, [0; 4]),
    ("ptrace", libc::SYS_ptrace, [0; 4]),
    ("kill", libc::SYS_kill, [0; 4]),
    ("tkill", libc::SYS_tkill, [0; 4]),
    ("tgkill", libc::SYS_tgkill, [0; 4]),
    ("mount", libc::SYS_mount, [0; 4]),
    ("unshare", libc::SYS_unshare, [0; 4]),
    ("bpf", libc::SYS_bpf, [0; 4]),
    ("userfaultfd", libc::SYS_userfaultfd, [0; 4]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [0; 4]),
    ("prlimit64", libc::SYS_prlimit64, [0; 4]),
    ("mmap PROT_EXEC", libc::SYS_mmap, [0, 4096, EXEC, ANON]),
];

/// What a start needs, and a running VM does not.
const FORBIDDEN_AFTER_THE_START: [Call; 10] = [
    ("clone3", libc::SYS_clone3, [0; 4]),
    ("seccomp", libc::SYS_seccomp, [1, 0, 0, 0]),
    ("mprotect", libc::SYS_mprotect, [0; 4]),
    ("timer_create", libc::SYS_timer_create, [1, 0, 0, 0]),
    ("fcntl F_SETFL", libc::SYS_fcntl, [-1, 4, 0x800, 0]),
    ("ioctl KVM_CREATE_VM", libc::SYS_ioctl, [-1, CREATE_VM, 0, 0]),
    ("ioctl KVM_CREATE_VCPU", libc::SYS_ioctl, [-1, CREATE_VCPU, 0, 0]),
    ("ioctl KVM_SET_USER_MEMORY_REGION", libc::SYS_ioctl, [-1, SET_USER_MEMORY_REGION, 0, 0]),
    ("ioctl KVM_IOEVENTFD", libc::SYS_ioctl, [-1, IOEVENTFD, 0, 0]),
    ("ioctl KVM_SET_REGS", libc::SYS_ioctl, [-1, SET_REGS, 0, 0]),
];

fn filters() -> [&'static Filter; 4] {
    [&policies::WORKER_VCPU, &policies::WORKER_CONTROL, &policies::WORKER_REACTOR, &policies::WORKER_IO]
}

fn kills(filter: &'static Filter, (name, number, [a, b, c, d]): Call) {
    let signal = killed_by(|| {
        confine::narrow(filter);
        // SAFETY: all pointers are null or absent, and the call is expected to kill.
        unsafe { libc::syscall(number, a, b, c, d, -1, 0) };
    });
    assert_eq!(signal, Some(libc::SIGSYS), "{}: {name}", filter.name);
}

#[test]
fn every_way_out_kills_every_thread() {
    for filter in filters() {
        for call in FORBIDDEN.into_iter().chain(FORBIDDEN_AFTER_THE_START) {
            kills(filter, call);
        }
    }
}

#[test]
fn every_way_out_kills_an_empty_worker() {
    for call in FORBIDDEN {
        kills(&policies::WORKER_STARTUP, call);
    }
}

#[test]
fn a_running_vcpu_may_run_and_nothing_else() {
    // On no fd, so that what is allowed fails and what is not kills.
    for (request, signal) in
        [(0xae80_i64, None), (0x8090_ae81, None), (0xaead, None), (0xae00, Some(libc::SIGSYS)), (0, Some(libc::SIGSYS))]
    {
        let killed = killed_by(|| {
            confine::narrow(&policies::WORKER_VCPU);
            // SAFETY: -1 is no fd, so the kernel looks at nothing else.
            unsafe { libc::syscall(libc::SYS_ioctl, -1, request, 0) };
        });
        assert_eq!(killed, signal, "ioctl {request:#x}");
    }
}

#[test]
fn a_thread_that_keeps_to_its_filter_lives() {
    for filter in filters() {
        let signal = killed_by(|| {
            confine::narrow(filter);
            // SAFETY: writes no byte.
            unsafe { libc::syscall(libc::SYS_write, 1, 0, 0) };
        });
        assert_eq!(signal, None, "{}", filter.name);
    }
}

/// Not a test by itself: the process that the next test starts.
#[test]
fn panicking_child() {
    let Ok(wanted) = std::env::var("PANIC_UNDER") else { return };
    leave::install_panic_hook();
    let filter = policies::ALL.iter().find(|filter| filter.name == wanted).unwrap();
    confine::narrow(filter);
    panic!("on purpose,\nwith {}", 2 + 2);
}

#[test]
fn a_panic_is_one_line_and_sigill_under_every_filter() {
    for filter in filters().into_iter().chain([&policies::WORKER_STARTUP]) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "panicking_child", "--nocapture"])
            .env("PANIC_UNDER", filter.name)
            .env("RUST_BACKTRACE", "full")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGILL), "{}: {:?}", filter.name, output.status);
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(words.starts_with("panic at "), "{}: {words:?}", filter.name);
        assert!(words.ends_with(": on purpose, with 4\n") && words.lines().count() == 1, "{words:?}");
    }
}

#[test]
fn nothing_in_the_worker_can_call_abort() {
    let symbols = Command::new("nm").arg(env!("CARGO_BIN_EXE_vmsup-worker")).output().expect("nm, of binutils").stdout;
    let symbols = String::from_utf8(symbols).unwrap();
    assert!(symbols.lines().any(|line| line.ends_with(" T __wrap_abort")), "the stand-in is not there");
    assert!(!symbols.lines().any(|line| line.ends_with(" abort")), "the C library's abort(3) is there");
}
