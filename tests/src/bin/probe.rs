//! Runs in the worker's place: jailed by the jailer as a worker is, it tries to get out, under each thread's filter.
//!
//! Each attempt is made in a child that first puts the filters on, so that a kill ends the child alone; the table of
//! outcomes is the test's to judge.

use ipc::Channel;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use vmsup_tests::probe::{Outcome, Try};

fn main() {
    // SAFETY: the jailer placed the control socket there, and nothing else of this program owns it.
    let listener = unsafe { OwnedFd::from_raw_fd(3) };
    rustix::net::listen(&listener, 1).expect("listen");
    eprintln!("ready");
    loop {
        let peer = rustix::net::accept(&listener).expect("accept");
        let channel: Channel<Outcome, Try> = Channel::new(peer);
        while let Ok((request, fds)) = channel.receive() {
            let outcome = in_a_child(&request, fds[0].as_raw_fd());
            if channel.send(&outcome, &[]).is_err() {
                break;
            }
        }
    }
}

fn in_a_child(request: &Try, kvm: RawFd) -> Outcome {
    // SAFETY: this program has one thread, so the child may do whatever a single-threaded process may.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            let errno = child(request, kvm);
            // SAFETY: _exit has no preconditions.
            unsafe { libc::_exit(errno) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: status is valid for the call; the pid is our child's.
            unsafe { libc::waitpid(pid, &raw mut status, 0) };
            if libc::WIFSIGNALED(status) {
                Outcome::Killed(libc::WTERMSIG(status))
            } else {
                match libc::WEXITSTATUS(status) {
                    0 => Outcome::Succeeded,
                    errno => Outcome::Refused(errno),
                }
            }
        }
    }
}

/// Puts the filters on and tries; 0 where it worked, else the errno.
fn child(request: &Try, kvm: RawFd) -> i32 {
    use policies::apply;
    if request.filter != "jail" {
        apply::landlock_deny_all().expect("landlock");
        apply::seccomp(&policies::WORKER_STARTUP).expect("start-up filter");
        let thread = policies::ALL.iter().find(|f| f.name == request.filter).expect("a filter of that name");
        if thread.name != policies::WORKER_STARTUP.name {
            apply::seccomp(thread).expect("thread filter");
        }
    }
    // SAFETY: see `attempt`: what succeeds harms nothing but this child.
    match unsafe { attempt(&request.attempt, request.other, kvm) } {
        -1 => std::io::Error::last_os_error().raw_os_error().unwrap_or(255),
        _ => 0,
    }
}

const SHELL: &CStr = c"/bin/sh";

/// One attempt; -1 and errno where it is refused.
///
/// # Safety
/// Only in a child that leaves right after: a success may have changed the whole process.
#[allow(clippy::multiple_unsafe_ops_per_block, clippy::too_many_lines)]
unsafe fn attempt(name: &str, other: i32, kvm: RawFd) -> i64 {
    // SAFETY: all pointers are to live locals or literals; the calls are meant to be refused, and where one succeeds the
    // caller leaves at once.
    unsafe {
        match name {
            "open-host-file" => i64::from(libc::open(c"/etc/passwd".as_ptr(), libc::O_RDONLY)),
            "open-root-directory" => i64::from(libc::open(c"/".as_ptr(), libc::O_RDONLY)),
            "open-proc-self-mem" => i64::from(libc::open(c"/proc/self/mem".as_ptr(), libc::O_RDWR)),
            "create-file" => i64::from(libc::open(c"/x".as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o600)),
            "connect-unix" => socket_call(libc::AF_UNIX, libc::connect),
            "connect-tcp" => socket_call(libc::AF_INET, libc::connect),
            "bind-unix" => socket_call(libc::AF_UNIX, libc::bind),
            "bind-tcp" => socket_call(libc::AF_INET, libc::bind),
            "exec-shell" => {
                let argv = [SHELL.as_ptr(), std::ptr::null()];
                i64::from(libc::execv(SHELL.as_ptr(), argv.as_ptr()))
            }
            "exec-memfd" => {
                let fd = libc::memfd_create(c"x".as_ptr(), 0);
                if fd < 0 {
                    return -1;
                }
                let script = b"#!/bin/sh\n";
                libc::write(fd, script.as_ptr().cast(), script.len());
                let argv = [SHELL.as_ptr(), std::ptr::null()];
                let envp = [std::ptr::null::<libc::c_char>()];
                libc::syscall(libc::SYS_execveat, fd, c"".as_ptr(), argv.as_ptr(), envp.as_ptr(), libc::AT_EMPTY_PATH)
            }
            "mount" => {
                let what = c"tmpfs".as_ptr();
                i64::from(libc::mount(what, c"/".as_ptr(), what, 0, std::ptr::null()))
            }
            "mknod" => i64::from(libc::mknod(c"/kvm".as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(10, 232))),
            "ptrace-other" => libc::ptrace(libc::PTRACE_ATTACH, other, 0, 0),
            "signal-other" => i64::from(libc::kill(other, 0)),
            "read-memory-of-other" => {
                let mut byte = 0u8;
                let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
                let remote = libc::iovec { iov_base: SHELL.as_ptr() as *mut libc::c_void, iov_len: 1 };
                libc::process_vm_readv(other, &raw const local, 1, &raw const remote, 1, 0) as i64
            }
            "new-user-namespace" => i64::from(libc::unshare(libc::CLONE_NEWUSER)),
            "new-net-namespace" => i64::from(libc::unshare(libc::CLONE_NEWNET)),
            "new-vm" => i64::from(libc::ioctl(kvm, 0xae01, 0)),
            "io-uring" => {
                let mut parameters = [0u8; 120];
                libc::syscall(libc::SYS_io_uring_setup, 4, parameters.as_mut_ptr())
            }
            "userfaultfd" => libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | 1),
            "bpf" => {
                // BPF_MAP_CREATE of an array of one.
                let mut attributes = [0u32; 32];
                (attributes[0], attributes[1], attributes[2], attributes[3]) = (2, 4, 4, 1);
                libc::syscall(libc::SYS_bpf, 0, attributes.as_mut_ptr(), size_of_val(&attributes))
            }
            "raise-a-limit" => {
                let limit = libc::rlimit { rlim_cur: 100_000, rlim_max: 100_000 };
                i64::from(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit))
            }
            "gain-capability" => {
                let header = [0x2008_0522u32, 0];
                let data = [u32::MAX; 6];
                libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr())
            }
            "become-another-uid" => i64::from(libc::setresuid(1, 1, 1)),
            "executable-memory" => {
                let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) as i64
            }
            "make-memory-executable" => {
                let page = libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                );
                i64::from(libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_EXEC))
            }
            "fork" => match libc::fork() {
                0 => libc::_exit(0),
                other => i64::from(other),
            },
            "perf-event" => {
                let mut attributes = [0u8; 128];
                attributes[4] = 128;
                libc::syscall(libc::SYS_perf_event_open, attributes.as_mut_ptr(), 0, -1, -1, 0)
            }
            "keyring" => libc::syscall(libc::SYS_keyctl, 0, -3, 1),
            "steal-fd" => {
                let pidfd = libc::syscall(libc::SYS_pidfd_open, other, 0);
                if pidfd < 0 { -1 } else { libc::syscall(libc::SYS_pidfd_getfd, pidfd, 0, 0) }
            }
            unknown => panic!("no attempt {unknown}"),
        }
    }
}

type SocketCall = unsafe extern "C" fn(libc::c_int, *const libc::sockaddr, libc::socklen_t) -> libc::c_int;

/// A socket of `family`, and `call` on it with the address of something that a host has: a Unix socket in the root, or
/// port 22 of the loopback interface.
///
/// # Safety
/// As [`attempt`].
unsafe fn socket_call(family: i32, call: SocketCall) -> i64 {
    // SAFETY: plain numbers.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM, 0) };
    if fd < 0 {
        return -1;
    }
    if family == libc::AF_UNIX {
        // SAFETY: all zeroes is a valid sockaddr_un.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        address.sun_family = libc::AF_UNIX as u16;
        for (to, from) in address.sun_path.iter_mut().zip(b"/s") {
            *to = *from as libc::c_char;
        }
        // SAFETY: the address lives through the call and the length is its own.
        i64::from(unsafe { call(fd, (&raw const address).cast(), size_of::<libc::sockaddr_un>() as u32) })
    } else {
        // SAFETY: all zeroes is a valid sockaddr_in.
        let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        address.sin_family = libc::AF_INET as u16;
        address.sin_port = 22u16.to_be();
        address.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
        // SAFETY: the address lives through the call and the length is its own.
        i64::from(unsafe { call(fd, (&raw const address).cast(), size_of::<libc::sockaddr_in>() as u32) })
    }
}
