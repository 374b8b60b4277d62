//! A tracer for trace builds: finds their processes, and answers each of their system calls with "go on", having told who
//! made it under which filters.
//!
//! A process of a trace build (cargo feature `trace` of `policies`) cannot hand its listener to anybody: the call that
//! would do so waits for an answer itself. So it is fetched from outside: by `/proc`, then `pidfd_getfd(2)`, which the
//! kernel grants as it grants ptrace. A worker's user namespace was made by the user whose VM it is, who therefore may; netd
//! is root's. Nothing is held back and nothing is changed, but for the marks that tell of a filter: those end here.
//!
//! One tracer at a time. What it leaves behind waits for the next one.

mod sys;

use policy_set::bpf::Data;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};
use sys::{Answer, Sizes, Waiting};

/// First argument of the `prctl(2)` by which a trace build marks a filter (`policies/src/trace/sys.rs`).
const MARK: u32 = 0x564d_5452;
/// How often `/proc` is searched for new processes, which wait until they are found.
const SEARCH: Duration = Duration::from_millis(3);
/// Searches after which a filtered process without a listener is taken for one of no trace build.
const MISSES: u32 = 20;
/// Fds among which a listener is searched where `/proc/PID/fd` is closed to us. It is made early, and takes the lowest.
const PROBED: i32 = 64;

/// A tracer that cannot work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel cannot tell of calls.
    #[error("this kernel does not tell of system calls (seccomp user notification): {0}")]
    Kernel(io::Error),
    /// `/proc` or `poll(2)`.
    #[error("processes cannot be watched: {0}")]
    Watch(io::Error),
}

/// A system call that was made.
#[derive(Debug)]
pub struct Call<'a> {
    /// The process.
    pub pid: i32,
    /// The thread.
    pub tid: i32,
    /// The filters that would be in force for it, in the order in which they were put there.
    pub filters: &'a [String],
    /// What a filter would be given.
    pub data: Data,
}

/// Serves all processes of trace builds that this user may trace.
#[derive(Debug)]
pub struct Tracer {
    sizes: Sizes,
    traced: BTreeMap<i32, Traced>,
    missed: BTreeMap<i32, u32>,
    refused: BTreeSet<i32>,
    own_filters: u32,
    searched: Option<Instant>,
    found: usize,
}

/// A process.
#[derive(Debug)]
struct Traced {
    listener: OwnedFd,
    threads: Threads,
}

/// Which filters hold the threads of a process, as its marks tell.
#[derive(Debug, Default)]
struct Threads {
    /// Of the first thread, and of those that are made before they narrow.
    base: Option<Rc<Vec<String>>>,
    by_tid: BTreeMap<i32, Rc<Vec<String>>>,
}

impl Threads {
    fn mark(&mut self, tid: i32, name: String) {
        let Some(base) = &self.base else {
            self.base = Some(Rc::new(vec![name]));
            return;
        };
        let mut filters = self.by_tid.get(&tid).unwrap_or(base).as_ref().clone();
        filters.push(name);
        self.by_tid.insert(tid, Rc::new(filters));
    }

    /// `name`: asked for where an earlier tracer heard the marks, and this one has to go by the threads' names.
    fn of(&mut self, tid: i32, name: impl FnOnce() -> String) -> Rc<Vec<String>> {
        let known = self.by_tid.get(&tid).or(self.base.as_ref());
        if let Some(known) = known {
            return known.clone();
        }
        let filters: &[&str] = match name().trim_end() {
            n if n.starts_with("vcpu") => &["worker-startup", "worker-vcpu"],
            "reactor" => &["worker-startup", "worker-reactor"],
            n if n.starts_with("io") => &["worker-startup", "worker-io"],
            "vmsup-warm" => &["worker-startup"],
            "vmsup-worker" => &["worker-startup", "worker-control"],
            "vmsup-netd" => &["netd"],
            _ => &["supervisor"],
        };
        let filters = Rc::new(filters.iter().map(|f| (*f).to_owned()).collect());
        self.by_tid.insert(tid, Rc::clone(&filters));
        filters
    }
}

impl Tracer {
    /// Begins; nothing is served before the first [`Tracer::turn`].
    ///
    /// # Errors
    /// [`Error::Kernel`]
    pub fn new() -> Result<Tracer, Error> {
        Ok(Tracer {
            sizes: Sizes::ask().map_err(Error::Kernel)?,
            traced: BTreeMap::new(),
            missed: BTreeMap::new(),
            refused: BTreeSet::new(),
            own_filters: filters("self").unwrap_or(0),
            searched: None,
            found: 0,
        })
    }

    /// Looks for new processes if it is time to, waits for calls, some milliseconds at most, or for `other` to become
    /// readable, and answers the calls.
    ///
    /// # Errors
    /// [`Error::Watch`]
    pub fn turn(&mut self, other: BorrowedFd<'_>, mut on: impl FnMut(&Call<'_>)) -> Result<(), Error> {
        if self.searched.is_none_or(|at| at.elapsed() >= SEARCH) {
            self.search().map_err(Error::Watch)?;
            self.searched = Some(Instant::now());
        }
        let ready: Vec<(i32, PollFlags)> = {
            let listeners = self.traced.values().map(|t| t.listener.as_fd());
            let mut fds: Vec<PollFd<'_>> =
                [other].into_iter().chain(listeners).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
            let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(SEARCH.subsec_nanos()) };
            match poll(&mut fds, Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::Watch(e.into())),
            }
            self.traced.keys().copied().zip(fds[1..].iter().map(PollFd::revents)).collect()
        };
        for (pid, events) in ready {
            if events.contains(PollFlags::IN) {
                self.serve(pid, &mut on);
            } else if !events.is_empty() {
                self.traced.remove(&pid);
            }
        }
        Ok(())
    }

    /// How many processes were served until now.
    pub fn found(&self) -> usize {
        self.found
    }

    /// Processes that are served now.
    pub fn traced(&self) -> impl Iterator<Item = i32> {
        self.traced.keys().copied()
    }

    /// Processes of ours that have filters, and no listener: of no trace build.
    pub fn foreign(&self) -> impl Iterator<Item = i32> {
        self.missed.iter().filter(|(_, n)| **n >= MISSES).map(|(pid, _)| *pid)
    }

    /// Those, and processes in which no listener was found yet.
    pub fn silent(&self) -> impl Iterator<Item = i32> {
        self.missed.keys().copied()
    }

    /// Processes of ours that the kernel does not let us trace.
    pub fn refused(&self) -> impl Iterator<Item = i32> {
        self.refused.iter().copied()
    }

    fn serve(&mut self, pid: i32, on: &mut impl FnMut(&Call<'_>)) {
        let Some(traced) = self.traced.get_mut(&pid) else { return };
        let listener = traced.listener.as_fd();
        // A thread that was killed needs no answer.
        let Ok(call) = self.sizes.receive(listener) else { return };
        let answer = match marked(&call) {
            Some(name) => {
                traced.threads.mark(call.tid, name);
                Answer::Done
            }
            None => Answer::Continue,
        };
        let filters = (answer == Answer::Continue).then(|| {
            let comm = || std::fs::read_to_string(format!("/proc/{pid}/task/{}/comm", call.tid)).unwrap_or_default();
            traced.threads.of(call.tid, comm)
        });
        let _ = self.sizes.answer(traced.listener.as_fd(), call.id, answer);
        if let Some(filters) = filters {
            let Waiting { nr, arch, instruction_pointer, args, .. } = call;
            on(&Call { pid, tid: call.tid, filters: &filters, data: Data { nr, arch, instruction_pointer, args } });
        }
    }

    fn search(&mut self) -> io::Result<()> {
        let mut alive = BTreeSet::new();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            if self.traced.contains_key(&pid) || !is_ours(pid) {
                continue;
            }
            if filters(&pid.to_string()).is_none_or(|n| n <= self.own_filters) {
                continue;
            }
            alive.insert(pid);
            if self.missed.get(&pid).is_some_and(|n| *n >= MISSES) {
                continue;
            }
            match listener(pid) {
                Ok(Some(listener)) => {
                    self.missed.remove(&pid);
                    self.refused.remove(&pid);
                    self.found += 1;
                    self.traced.insert(pid, Traced { listener, threads: Threads::default() });
                }
                Ok(None) => *self.missed.entry(pid).or_default() += 1,
                Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
                    self.refused.insert(pid);
                }
                // Gone.
                Err(_) => {}
            }
        }
        self.missed.retain(|pid, n| *n >= MISSES || alive.contains(pid));
        Ok(())
    }
}

/// The name in a mark.
fn marked(call: &Waiting) -> Option<String> {
    let number = u32::try_from(libc::SYS_prctl).ok();
    if Some(call.nr) != number || call.args[0] & 0xffff_ffff != u64::from(MARK) {
        return None;
    }
    let bytes: Vec<u8> = call.args[1..5].iter().flat_map(|word| word.to_le_bytes()).take_while(|b| *b != 0).collect();
    String::from_utf8(bytes).ok()
}

fn is_ours(pid: i32) -> bool {
    std::fs::read(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.starts_with(b"vmsup"))
}

/// How many filters a process has.
fn filters(pid: &str) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"))?.trim().parse().ok()
}

/// The listener of a process; `None` where it has none.
fn listener(pid: i32) -> io::Result<Option<OwnedFd>> {
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    let pidfd = pidfd_open(Pid::from_raw(pid).ok_or_else(gone)?, PidfdFlags::empty())?;
    let is_listener =
        |link: &str| std::fs::read_link(link).is_ok_and(|to| to.as_os_str() == "anon_inode:seccomp notify");
    let fetch = |fd: i32| pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty());
    if let Ok(fds) = std::fs::read_dir(format!("/proc/{pid}/fd")) {
        for fd in fds.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok()) {
            if is_listener(&format!("/proc/{pid}/fd/{fd}")) {
                return Ok(Some(fetch(fd)?));
            }
        }
        return Ok(None);
    }
    // The directory is the process's, and another user's where it has a user namespace. Fetching does not look at that.
    for fd in 0..PROBED {
        match fetch(fd) {
            Ok(copy) => {
                use std::os::fd::AsRawFd;
                if is_listener(&format!("/proc/self/fd/{}", copy.as_raw_fd())) {
                    return Ok(Some(copy));
                }
            }
            Err(rustix::io::Errno::BADF) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(nr: i64, args: [u64; 6]) -> Waiting {
        Waiting { id: 1, tid: 1, nr: u32::try_from(nr).unwrap(), arch: 0, instruction_pointer: 0, args }
    }

    #[test]
    fn a_mark_says_its_filter_and_other_calls_say_none() {
        let mut text = [0u8; 32];
        text[..11].copy_from_slice(b"worker-vcpu");
        let word = |n: usize| u64::from_le_bytes(text[n * 8..n * 8 + 8].try_into().unwrap());
        let args = [u64::from(MARK), word(0), word(1), word(2), word(3), 0];
        assert_eq!(marked(&call(libc::SYS_prctl, args)).as_deref(), Some("worker-vcpu"));
        assert_eq!(marked(&call(libc::SYS_read, args)), None);
        assert_eq!(marked(&call(libc::SYS_prctl, [15, 0, 0, 0, 0, 0])), None);
    }

    /// Filters stack, threads inherit what their process had, and one thread's narrowing is no other's.
    #[test]
    fn a_thread_has_what_its_process_had_and_what_it_narrowed_to() {
        let mut threads = Threads::default();
        let none = || unreachable!("the marks tell");
        threads.mark(10, "worker-startup".into());
        assert_eq!(*threads.of(11, none), ["worker-startup"]);
        threads.mark(11, "worker-vcpu".into());
        threads.mark(10, "worker-control".into());
        assert_eq!(*threads.of(11, none), ["worker-startup", "worker-vcpu"]);
        assert_eq!(*threads.of(10, none), ["worker-startup", "worker-control"]);
        assert_eq!(*threads.of(12, none), ["worker-startup"]);
    }

    #[test]
    fn without_marks_a_threads_name_tells() {
        let mut threads = Threads::default();
        assert_eq!(*threads.of(1, || "io0\n".into()), ["worker-startup", "worker-io"]);
        assert_eq!(*threads.of(2, || "tokio-runtime-w\n".into()), ["supervisor"]);
    }
}
