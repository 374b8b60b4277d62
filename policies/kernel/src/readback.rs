//! Reads the filters of a running process back from the kernel, thread by thread, instruction by instruction.
//!
//! For root: the kernel shows filters to CAP_SYS_ADMIN of the host's own user namespace only, and to no process that is filtered
//! itself. The thread that is looked at stands still meanwhile, for some tens of microseconds, [`PATIENCE`] at most; it goes
//! on whatever happens, for who traces is a thread of this process that lives for this one look, and the kernel lets go of all
//! that an ended thread traced.

mod sys;

use policy_set::bpf::Instruction;
use rustix::io::Errno;
use std::time::{Duration, Instant};
use sys::Seen;

/// How long a thread may take to stand still. One that is inside the kernel where nothing interrupts it is let go.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// The most filters of a thread that are read; ours have two.
const FILTERS_MAX: usize = 32;

/// Why there are no filters to see.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It ended, before or meanwhile.
    #[error("thread {0} has ended")]
    Gone(i32),
    /// Only the host's own root may.
    #[error("the kernel shows installed filters to root only (CAP_SYS_ADMIN and CAP_SYS_PTRACE of the host)")]
    NotPermitted,
    /// The kernel was built without it.
    #[error("the kernel shows no installed filters (CONFIG_CHECKPOINT_RESTORE is off)")]
    NotBuilt,
    /// It did not stand still in time.
    #[error("thread {0} did not stand still within {n} ms; is it traced, or does it wait for a device?", n = PATIENCE.as_millis())]
    Busy(i32),
    /// Something else.
    #[error("thread {0}: {1}: {error}", error = std::io::Error::from(*.2))]
    System(i32, &'static str, Errno),
}

/// A thread and its filters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadFilters {
    /// Thread id.
    pub tid: i32,
    /// Its name.
    pub comm: String,
    /// The oldest first: they stack, and all have a say.
    pub filters: Vec<Vec<Instruction>>,
}

/// The filters of every thread of a process. Threads of the kernel's own, which KVM adds and nobody may trace, are left out.
///
/// # Errors
/// Those of [`thread`]; a thread that ends meanwhile is left out.
pub fn readback(pid: i32) -> Result<Vec<ThreadFilters>, Error> {
    let folder = format!("/proc/{pid}/task");
    let mut tids: Vec<i32> = std::fs::read_dir(&folder)
        .map_err(|_| Error::Gone(pid))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    tids.sort_unstable();
    let mut all = Vec::new();
    for tid in tids {
        let read = |name: &str| std::fs::read_to_string(format!("{folder}/{tid}/{name}"));
        let (Ok(comm), Ok(stat)) = (read("comm"), read("stat")) else { continue };
        if is_the_kernels(&stat) {
            continue;
        }
        match thread(tid) {
            Ok(filters) => all.push(ThreadFilters { tid, comm: comm.trim_end().to_owned(), filters }),
            Err(Error::Gone(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// `PF_USER_WORKER` among the flags of a task (field 9 of its stat): the kernel sets it, no program can.
fn is_the_kernels(stat: &str) -> bool {
    const USER_WORKER: u32 = 0x4000;
    let flags = || stat.rsplit_once(')')?.1.split_whitespace().nth(6)?.parse::<u32>().ok();
    // The flag had another meaning before Linux 6.4; the name has to fit, too.
    stat.contains("(kvm-") && flags().is_some_and(|flags| flags & USER_WORKER != 0)
}

/// The filters of a thread, the oldest first; none where it is not filtered.
///
/// # Errors
/// It cannot be looked at, or has ended.
pub fn thread(tid: i32) -> Result<Vec<Vec<Instruction>>, Error> {
    // What this thread traces is let go when it ends, panics included.
    let tracer = std::thread::Builder::new().name("readback".into()).spawn(move || look(tid));
    let tracer = tracer.map_err(|e| Error::System(tid, "a thread to trace it", errno(&e)))?;
    tracer.join().unwrap_or(Err(Error::System(tid, "the thread that traces it", Errno::IO)))
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// In the thread that traces.
fn look(tid: i32) -> Result<Vec<Vec<Instruction>>, Error> {
    let failed = |what: &'static str| {
        move |errno| match errno {
            Errno::SRCH | Errno::CHILD => Error::Gone(tid),
            Errno::PERM | Errno::ACCESS => Error::NotPermitted,
            errno => Error::System(tid, what, errno),
        }
    };
    sys::seize(tid).map_err(failed("PTRACE_SEIZE"))?;
    sys::interrupt(tid).map_err(failed("PTRACE_INTERRUPT"))?;
    let until = Instant::now() + PATIENCE;
    let held_back = loop {
        match sys::look(tid).map_err(failed("waitpid"))? {
            Seen::Stopped => break 0,
            Seen::Signalled(signal) => break signal,
            Seen::Ended => return Err(Error::Gone(tid)),
            // This thread's end lets it go, stopped by then or not.
            Seen::Nothing if Instant::now() > until => return Err(Error::Busy(tid)),
            Seen::Nothing => std::thread::sleep(Duration::from_micros(50)),
        }
    };
    let filters = filters(tid);
    // Where this fails it has been killed.
    let _ = sys::detach(tid, held_back);
    filters
}

fn filters(tid: i32) -> Result<Vec<Vec<Instruction>>, Error> {
    let mut all = Vec::new();
    while all.len() < FILTERS_MAX {
        match sys::filter(tid, all.len()) {
            Ok(Some(filter)) => all.push(filter),
            Ok(None) => break,
            Err(Errno::INVAL) if all.is_empty() => break,
            Err(Errno::SRCH) => return Err(Error::Gone(tid)),
            Err(Errno::ACCESS | Errno::PERM) => return Err(Error::NotPermitted),
            Err(Errno::IO) => return Err(Error::NotBuilt),
            Err(errno) => return Err(Error::System(tid, "PTRACE_SECCOMP_GET_FILTER", errno)),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_not_there_is_gone() {
        assert_eq!(thread(i32::MAX), Err(Error::Gone(i32::MAX)));
        assert_eq!(readback(i32::MAX), Err(Error::Gone(i32::MAX)));
    }

    #[test]
    fn an_unfiltered_process_has_no_filters_and_goes_on() {
        let mut child =
            std::process::Command::new("sleep").arg("1000").stdout(std::process::Stdio::null()).spawn().unwrap();
        let pid = child.id().cast_signed();
        match readback(pid) {
            Ok(threads) => {
                assert_eq!(threads.len(), 1);
                assert!(threads[0].filters.is_empty(), "{threads:?}");
            }
            // Who is not root.
            Err(error) => assert!(matches!(error, Error::NotPermitted | Error::NotBuilt), "{error}"),
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(status.contains("TracerPid:\t0") && !status.contains("State:\tt"), "{status}");
    }

    #[test]
    fn a_thread_is_the_kernels_by_its_flag_and_not_by_its_name() {
        let stat = |name: &str, flags: u32| format!("9 ({name}) S 1 2 3 0 -1 {flags} 0 0");
        assert!(is_the_kernels(&stat("kvm-nx-lpage-re", 0x0040_4040)));
        assert!(!is_the_kernels(&stat("kvm-nx-lpage-re", 0x0040_0040)));
        assert!(!is_the_kernels(&stat("vcpu0", 0x0040_4040)));
    }
}
