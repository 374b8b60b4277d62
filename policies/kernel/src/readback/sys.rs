//! ptrace(2), as far as reading filters back needs it. With what else this crate asks of the kernel, all its unsafe.

#![allow(unsafe_code)]

use policy_set::bpf::Instruction;
use rustix::io::Errno;

/// `BPF_MAXINSNS`: the most instructions of a filter.
const MAX_INSTRUCTIONS: usize = 4096;
/// `PTRACE_SECCOMP_GET_FILTER` of linux/ptrace.h.
const GET_FILTER: libc::c_uint = 0x420c;

/// What `waitpid(2)` told of a thread that is traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// No news.
    Nothing,
    /// It stands still because it was asked to.
    Stopped,
    /// It stands still before a signal is delivered.
    Signalled(i32),
    /// It has ended.
    Ended,
}

/// Traces a thread without stopping it.
///
/// # Errors
/// The errno of the call.
pub fn seize(tid: i32) -> Result<(), Errno> {
    request(libc::PTRACE_SEIZE, tid, 0)
}

/// Asks a traced thread to stop.
///
/// # Errors
/// The errno of the call.
pub fn interrupt(tid: i32) -> Result<(), Errno> {
    request(libc::PTRACE_INTERRUPT, tid, 0)
}

/// Lets a traced thread that stands still go on, untraced, with a signal that was held back; 0: none.
///
/// # Errors
/// The errno of the call.
pub fn detach(tid: i32, signal: i32) -> Result<(), Errno> {
    request(libc::PTRACE_DETACH, tid, signal as usize)
}

/// What became of a traced thread.
///
/// # Errors
/// The errno of the call.
pub fn look(tid: i32) -> Result<Seen, Errno> {
    let mut status = 0;
    // SAFETY: status is a live local that the call writes to.
    match unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) } {
        -1 => Err(last()),
        0 => Ok(Seen::Nothing),
        _ if !libc::WIFSTOPPED(status) => Ok(Seen::Ended),
        _ if status >> 16 == libc::PTRACE_EVENT_STOP => Ok(Seen::Stopped),
        _ => Ok(Seen::Signalled(libc::WSTOPSIG(status))),
    }
}

/// A filter of a traced thread that stands still, by its number from 0; `None` past the last.
///
/// # Errors
/// `EACCES` where this process may not see filters, or is filtered itself; `EINVAL` for a thread without any; `EIO` where the
/// kernel was built without this; `EMEDIUMTYPE` for a filter that is no classic BPF.
pub fn filter(tid: i32, number: usize) -> Result<Option<Vec<Instruction>>, Errno> {
    let nothing = libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 };
    let mut buffer = vec![nothing; MAX_INSTRUCTIONS];
    // SAFETY: the kernel writes the filter's instructions to the buffer, of which no filter has more than fit (linux/filter.h,
    // BPF_MAXINSNS, checked by seccomp(2) at installation); the buffer outlives the call.
    let count = unsafe { libc::ptrace(GET_FILTER, tid, number, buffer.as_mut_ptr()) };
    match usize::try_from(count) {
        Ok(count) => Ok(Some(
            buffer.iter().take(count).map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect(),
        )),
        Err(_) => match last() {
            Errno::NOENT => Ok(None),
            errno => Err(errno),
        },
    }
}

fn request(what: libc::c_uint, tid: i32, data: usize) -> Result<(), Errno> {
    // SAFETY: these requests take plain numbers and touch no memory of ours.
    match unsafe { libc::ptrace(what, tid, std::ptr::null_mut::<libc::c_void>(), data) } {
        -1 => Err(last()),
        _ => Ok(()),
    }
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
