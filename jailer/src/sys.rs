//! System calls without a safe wrapper: making processes, closing ranges of fds, exec. The only unsafe of the crate.

use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use std::ffi::CStr;

/// `CLONE_INTO_CGROUP` of linux/sched.h; libc's constant is of a type too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What a fork returns.
pub enum Forked {
    /// In the new process.
    Child,
    /// In the calling process.
    Parent {
        /// The new process's pid, as the caller's pid namespace has it.
        pid: i32,
        /// Its pidfd, where one was asked for.
        pidfd: Option<OwnedFd>,
    },
}

/// Options of [`clone3`].
#[derive(Default)]
pub struct Clone<'a> {
    /// `CLONE_NEW*` and `CLONE_PARENT`; none that shares memory or the fd table.
    pub flags: i32,
    /// The new process is born in this cgroup.
    pub into_cgroup: Option<BorrowedFd<'a>>,
    /// Return a pidfd.
    pub pidfd: bool,
}

/// `clone3(2)` with the semantics of a fork: the child has a copy of everything.
///
/// # Errors
/// The errno of the call.
///
/// # Panics
/// Where the process has more than one thread (checked by the debug assertion only) the child's copy of a lock could be
/// held for ever; the jailer is single-threaded throughout.
pub fn clone3(options: &Clone<'_>) -> Result<Forked, Errno> {
    let allowed = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_PARENT;
    if options.flags & !allowed != 0 {
        return Err(Errno::INVAL);
    }
    let mut pidfd: libc::c_int = -1;
    let mut flags = u64::from(options.flags as u32);
    // SAFETY: clone_args is plain data for which all zeroes is a valid value (clone(2)).
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // With CLONE_PARENT the kernel takes the exit signal from the parent and wants none here.
    if options.flags & libc::CLONE_PARENT == 0 {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if options.pidfd {
        flags |= libc::CLONE_PIDFD as u64;
        args.pidfd = (&raw mut pidfd) as u64;
    }
    if let Some(cgroup) = options.into_cgroup {
        flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    args.flags = flags;
    // SAFETY: no flag shares memory (checked above), so that the child runs on its own copy of this stack, as after
    // fork; `args` and `pidfd` outlive the call, and the size is that of the struct. The process has one thread, so no
    // lock of the allocator or of std can be held by another at this moment.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(last()),
        0 => Ok(Forked::Child),
        pid => {
            // SAFETY: with CLONE_PIDFD the kernel has stored a new fd of ours there, which nothing else owns.
            let pidfd = options.pidfd.then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
            Ok(Forked::Parent { pid: pid as i32, pidfd })
        }
    }
}

/// `dup2(2)` to a number that nothing in this process owns as an [`OwnedFd`]: for a child that is about to exec.
///
/// # Errors
/// The errno of the call.
pub fn place_fd(from: BorrowedFd<'_>, to: i32) -> Result<(), Errno> {
    // SAFETY: the callee only changes our fd table. What stood at `to` belongs to the parent's copy of the table; in this
    // process nothing uses it any more, as the caller execs or leaves without running destructors.
    match unsafe { libc::dup2(from.as_raw_fd(), to) } {
        -1 => Err(last()),
        _ => Ok(()),
    }
}

/// Marks every fd from `first` on close-on-exec (`close_range(2)`).
///
/// # Errors
/// The errno of the call.
pub fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: CLOSE_RANGE_CLOEXEC closes nothing now, so no owned fd of this process becomes invalid.
    match unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) } {
        -1 => Err(last()),
        _ => Ok(()),
    }
}

/// `execveat(2)` of an fd with one argument and no environment. Returns only on an error.
pub fn exec_fd(program: BorrowedFd<'_>, name: &CStr) -> Errno {
    let argv = [name.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null::<libc::c_char>()];
    // SAFETY: both vectors end with a null pointer and, like the strings, live until the call returns; the empty path
    // with AT_EMPTY_PATH names the fd itself.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    last()
}

/// Drops capability `number` from the bounding set (`PR_CAPBSET_DROP`).
///
/// # Errors
/// `EINVAL` for a number that the kernel does not know.
pub fn drop_from_bounding_set(number: u32) -> Result<(), Errno> {
    // SAFETY: this prctl takes plain numbers and touches no memory of ours.
    match unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) } {
        -1 => Err(last()),
        _ => Ok(()),
    }
}

/// Empties the calling thread's signal mask.
///
/// # Errors
/// The errno of the call.
pub fn clear_signal_mask() -> Result<(), Errno> {
    // SAFETY: an all-zero sigset_t is initialised by sigemptyset before use; the old mask is not asked for.
    #[allow(clippy::multiple_unsafe_ops_per_block)]
    let result = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut())
    };
    if result == -1 { Err(last()) } else { Ok(()) }
}

/// Blocks these signals, and returns an fd on which they are read instead (signalfd(2)): close-on-exec, non-blocking.
///
/// # Errors
/// The errno of the call.
pub fn signals_as_fd(signals: &[i32]) -> Result<OwnedFd, Errno> {
    // SAFETY: all zeroes is a valid sigset_t, which sigemptyset initialises besides.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is a live local; sigaddset refuses a number that is no signal.
    #[allow(clippy::multiple_unsafe_ops_per_block)]
    let blocked = unsafe {
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
    };
    if blocked == -1 {
        return Err(last());
    }
    // SAFETY: the set outlives the call, which only reads it; -1 asks for a new fd.
    match unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) } {
        -1 => Err(last()),
        // SAFETY: the kernel has just made this fd, and nothing else owns it.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// Leaves at once: no destructor, no buffered output of the parent's copy.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

/// The standard input as an owned fd. Once: the second call has nothing.
///
/// # Panics
/// When called twice.
pub fn take_stdin() -> OwnedFd {
    use std::sync::atomic::{AtomicBool, Ordering};
    static TAKEN: AtomicBool = AtomicBool::new(false);
    assert!(!TAKEN.swap(true, Ordering::SeqCst), "the standard input was taken before");
    // SAFETY: std never closes fd 0 and this program never reads std::io::stdin; the flag above makes this its only
    // owner.
    unsafe { OwnedFd::from_raw_fd(0) }
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
