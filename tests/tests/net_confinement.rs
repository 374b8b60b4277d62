//! netd's confinement, tried from inside: the shipped one, put in force by the code that netd puts it in force by, in a child
//! that then attempts what must not work. Needs root, as netd's own start does.

use helper_netd::confine::{Open, confine};
use helper_netd::places::Place;
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use vmsup_tests::as_root;

/// Nobody in particular: netd's user in these tests.
const NOBODY: u32 = 65534;
const EXEC: i64 = (libc::PROT_READ | libc::PROT_EXEC) as i64;
const ANON: i64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as i64;
/// linux/if_tun.h, TUNSETPERSIST and TUNSETQUEUE.
const TUNSETPERSIST: i64 = 0x4004_54cb;
const TUNSETQUEUE: i64 = 0x4004_54d9;

/// A system call that must kill: its name, number and first four arguments.
const FORBIDDEN: [(&str, i64, [i64; 4]); 24] = [
    ("socket", libc::SYS_socket, [16, 3, 0, 0]),
    ("connect", libc::SYS_connect, [0; 4]),
    ("bind", libc::SYS_bind, [0; 4]),
    ("execve", libc::SYS_execve, [0; 4]),
    ("execveat", libc::SYS_execveat, [0; 4]),
    ("fork", libc::SYS_fork, [0; 4]),
    ("clone", libc::SYS_clone, [0; 4]),
    ("clone3", libc::SYS_clone3, [0; 4]),
    ("ptrace", libc::SYS_ptrace, [0; 4]),
    ("kill", libc::SYS_kill, [0; 4]),
    ("mount", libc::SYS_mount, [0; 4]),
    ("unshare", libc::SYS_unshare, [0; 4]),
    ("setns", libc::SYS_setns, [0; 4]),
    ("setresuid", libc::SYS_setresuid, [0; 4]),
    ("capset", libc::SYS_capset, [0; 4]),
    ("bpf", libc::SYS_bpf, [0; 4]),
    ("prctl", libc::SYS_prctl, [0; 4]),
    ("ioctl TUNSETPERSIST", libc::SYS_ioctl, [-1, TUNSETPERSIST, 0, 0]),
    ("ioctl TUNSETQUEUE", libc::SYS_ioctl, [-1, TUNSETQUEUE, 0, 0]),
    ("getsockopt SO_ERROR", libc::SYS_getsockopt, [-1, 1, 4, 0]),
    ("mmap PROT_EXEC", libc::SYS_mmap, [0, 4096, EXEC, ANON]),
    ("mmap MAP_SHARED", libc::SYS_mmap, [0, 4096, 0, (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as i64]),
    ("openat O_CREAT", libc::SYS_openat, [-1, 0, (libc::O_RDWR | libc::O_CREAT) as i64, 0o600]),
    ("recvmsg MSG_OOB", libc::SYS_recvmsg, [-1, 0, libc::MSG_OOB as i64, 0]),
];

/// A directory as netd's, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("vmsup-confinement-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("netd.toml"), "").unwrap();
        std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Confines a child as netd is, runs `body` in it, and gives its wait status.
fn confined(folder: &Path, body: impl FnOnce() -> i32) -> i32 {
    let journal = Place::open(&folder.join("journal")).unwrap();
    let config = Place::open(&folder.join("netd.toml")).unwrap();
    let accounts = Place::open(Path::new("/etc/passwd")).unwrap();
    let tun = openat(CWD, "/dev/net/tun", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    // SAFETY: the child makes system calls and leaves by _exit; it takes no lock that another thread could hold but malloc's,
    // which the C library hands over whole.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let open = Open { journal: &journal, tun: tun.as_fd(), config: &config, accounts: &accounts };
        let status = if confine(Some((NOBODY, NOBODY)), &open).is_ok() { body() } else { 99 };
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(status) }
    }
    let mut status = 0;
    // SAFETY: the child is ours, and `status` outlives the call.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    status
}

/// The errno of opening a file, 0 where it opened.
fn open_errno(path: &str, flags: OFlags) -> i32 {
    openat(CWD, path, flags, Mode::from_raw_mode(0o600)).map_or_else(|e| e.raw_os_error(), |_| 0)
}

#[test]
fn netd_dies_of_every_call_that_is_none_of_its() {
    if !as_root("netd_dies_of_every_call_that_is_none_of_its") {
        return;
    }
    let folder = Folder::new("calls");
    for (name, number, [a, b, c, d]) in FORBIDDEN {
        let status = confined(&folder.0, || {
            // SAFETY: all pointers are null or absent, and the call is expected to kill.
            unsafe { libc::syscall(number, a, b, c, d, -1, 0) };
            0
        });
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS, "{name}: status {status:#x}");
    }
    // The child dies of nothing else.
    assert_eq!(confined(&folder.0, || 7), 7 << 8);
}

#[test]
fn netd_opens_nothing_but_its_places() {
    if !as_root("netd_opens_nothing_but_its_places") {
        return;
    }
    let folder = Folder::new("places");
    let journal = folder.0.join("journal").display().to_string();
    let elsewhere = folder.0.with_extension("elsewhere").display().to_string();
    // As journal.rs makes one; its filter lets nothing else be created.
    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let tries: [(&str, OFlags, i32); 9] = [
        ("/etc/passwd", OFlags::RDONLY, 0),
        (&journal, create, 0),
        ("/etc/passwd", OFlags::RDWR, libc::EACCES),
        ("/dev/null", OFlags::RDWR, libc::EACCES),
        ("/dev/zero", OFlags::RDONLY, libc::EACCES),
        ("/proc/self/status", OFlags::RDONLY, libc::EACCES),
        ("/usr/bin/env", OFlags::RDONLY, libc::EACCES),
        ("/", OFlags::RDONLY | OFlags::DIRECTORY, libc::EACCES),
        (&elsewhere, create, libc::EACCES),
    ];
    for (path, flags, errno) in tries {
        // All but the third any user may open who is not confined.
        let status = confined(&folder.0, || open_errno(path, flags));
        assert!(libc::WIFEXITED(status), "{path}: status {status:#x}");
        assert_eq!(libc::WEXITSTATUS(status), errno, "{path}");
    }
    assert!(!Path::new(&elsewhere).exists());
}
