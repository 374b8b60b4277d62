//! What a trace build (cargo feature `trace`) puts in force instead of filters: every system call is announced to a tracer,
//! `vmsup policy trace`, and waits until that lets it go on. No release has it: nothing here holds a process to anything.
//!
//! The first filter of a process becomes one that answers `SECCOMP_RET_USER_NOTIF` to all calls. Its listener stays open
//! in the process, where the tracer fetches it from (`pidfd_getfd(2)`); a task has one listener at most, and processes
//! cannot hand theirs to anybody without making a call that would wait. A later filter, of a thread, becomes one that
//! allows everything, so that the calls which install it are made and seen. After each comes a [`mark`]: a `prctl(2)`
//! that no kernel has, which tells the tracer, and the tracer answers, which filter holds the thread from there on.
//!
//! There is no deadline. A process without a tracer waits at its first call until one comes: start the tracer first.
//! Between two tracers it waits, too; a tracer that is killed between a call and its answer leaves that one call waiting.

#![allow(unsafe_code)]

use std::io::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// First argument of the `prctl(2)` that marks a filter; the other four are its name, filled up with zeros. Known to
/// `policy_kernel::notify`.
pub const MARK: u32 = 0x564d_5452;

/// Set by the first filter.
static ANNOUNCED: AtomicBool = AtomicBool::new(false);

/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;

/// Stands in for the filter of this name, in the calling thread and in those that it makes.
///
/// # Errors
/// What `seccomp(2)` says; `NotFound` where the mark was answered by no tracer.
pub fn stand_in(name: &str) -> Result<()> {
    if ANNOUNCED.swap(true, Relaxed) {
        let all = [seccompiler::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW }];
        seccompiler::apply_filter(&all).map_err(Error::other)?;
    } else {
        announce()?;
    }
    mark(name)
}

/// Installs the filter that announces every call.
fn announce() -> Result<()> {
    let mut filter = [libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_USER_NOTIF }];
    let program = libc::sock_fprog { len: 1, filter: filter.as_mut_ptr() };
    // A signal does not take back a call that the tracer has seen: each is announced once.
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    // SAFETY: PR_SET_NO_NEW_PRIVS takes integers and no pointer.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: `program` and the one instruction that it points to are on this stack until the call returns; the kernel
    // copies both. The fd that comes back is kept open on purpose, and nobody here uses it.
    let listener =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, std::ptr::from_ref(&program)) };
    if listener < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Tells the tracer which filter would hold the calling thread from here on.
fn mark(name: &str) -> Result<()> {
    let mut text = [0u8; 32];
    let len = name.len().min(text.len());
    text[..len].copy_from_slice(&name.as_bytes()[..len]);
    let word = |n: usize| u64::from_le_bytes(text[n * 8..n * 8 + 8].try_into().unwrap_or_default());
    // SAFETY: prctl(2) takes five integers here; a kernel that sees the call knows no such option and does nothing.
    let answer = unsafe { libc::prctl(MARK.cast_signed(), word(0), word(1), word(2), word(3)) };
    if answer == 0 { Ok(()) } else { Err(std::io::ErrorKind::NotFound.into()) }
}
