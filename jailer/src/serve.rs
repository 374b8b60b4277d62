//! The jailer's one loop: requests of the supervisor, reports of workers, ends of workers, and the pool when all is
//! quiet.
//!
//! ```text
//!   start ──> Alone ── somebody comes ──> Silent ── says what it speaks ──> Serves ──┐
//!               ^  ^                        │ says nothing, or nonsense              │ hangs up, or speaks nonsense
//!               │  └────────────────────────┘                                        │
//!               └──────────── the empty workers are killed and reaped ───────────────┘
//!   Alone, with no worker that was handed over and no end that nobody heard: leaves.
//! ```
//!
//! When the supervisor hangs up, the VMs go on, and the next supervisor is told of them: who lives (with its pidfd), how
//! others ended, again and again until it says that it has heard. A worker that was handed over and not told yet which VM it is
//! goes with the supervisor. Where nothing is left to keep, the jailer leaves.
//!
//! When the jailer itself is killed, the VMs go on as well; what is empty or half made sees its report pipe close, and
//! leaves. The next jailer in the directory finds those that go on (`orphans`). SIGTERM is a service manager's: the
//! jailer leaves at once, and only the empty workers go with it.

use crate::alone;
use crate::cgroup::{Delegated, NoCgroup};
use crate::identity::{self, Prepared};
use crate::line::{self, Heard, Line};
use crate::make::{self, Workshop};
use crate::options::Options;
use crate::places::{Order, Phase, Place, Places};
use crate::reap::{is_empty, stopped};
use crate::signals::Signals;
use crate::{orphans, sys};
use jail_spec::{CgroupLimits, Facts, Refusal, Reply, Request, Slot, UidSource};
use rustix::event::{Timespec, epoll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::process::{Resource, Rlimit, Signal};
use std::time::{Duration, Instant};

/// How long all must be quiet before the pool is filled again: a worker is not made beside a VM's start.
const QUIET: Duration = Duration::from_millis(5);
/// The most warm workers.
pub const POOL_MAX: u32 = 64;
/// Token of the signals in the poll set; the line's are in `line`, workers' are made by [`token`].
const SIGNALS: u64 = 2;

/// Why the jailer leaves.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// The supervisor is not one.
    #[error("the channel to the supervisor: {0}")]
    Channel(#[from] ipc::Error),
    /// No jail can be made on this host.
    #[error("{0}")]
    Make(#[from] make::Error),
    /// Its cgroup is another jailer's.
    #[error("{0}")]
    Cgroup(#[from] NoCgroup),
    /// A system call of the loop itself.
    #[error("{0}: {1}")]
    System(&'static str, std::io::Error),
    /// `inspect` could not read what it should.
    #[error("{0}")]
    Inspect(String),
}

/// Serves one supervisor after another until there is nothing left to keep.
///
/// # Errors
/// Before the first request; afterwards a failure is an answer.
pub fn serve(options: Options) -> Result<(), Error> {
    // Of its own session: a Ctrl-C at the supervisor's terminal is the supervisor's to handle. Fails harmlessly where
    // the jailer leads its group already.
    let _ = rustix::process::setsid();
    allow_all_files();
    let stdin = sys::take_stdin();
    if rustix::net::sockopt::socket_type(&stdin) != Ok(rustix::net::SocketType::SEQPACKET) {
        return Err(Error::Usage(
            "serve is started by vmsup serve, with a channel as its standard input, or by a service manager, with a \
             listening socket (vmsup-jailer.socket)"
                .into(),
        ));
    }
    let in_directory = |e: rustix::io::Errno| Error::System("the directory of the workers' sockets", e.into());
    let _alone = alone::in_this_directory().map_err(in_directory)?;
    let mut line = Line::open(stdin)?;
    let workshop = Workshop::open(&options.worker)?;
    if let Err(why) = workshop.check() {
        complain!("{} is refused: {why}; no worker will be made", options.worker);
    }
    let source = identity::uid_source();
    let mut uids = source;
    let mut prepared = Prepared::default();
    if let Err(error) = prepared.get(uids, Slot(0)) {
        if uids == UidSource::Own {
            return Err(Error::System("user namespace", std::io::Error::other(error.to_string())));
        }
        complain!("{error}; workers run as the user's own uid");
        uids = UidSource::Own;
        prepared = Prepared::default();
    }
    // A predecessor's workers have uids of the range, whether this jailer can use it or not.
    let mut places = orphans::find(source).map_err(|e| Error::System("the directory of the workers' sockets", e))?;
    let cgroup = match Delegated::prepare(options.cgroup.as_deref(), |slot| places.vacant(slot)) {
        Err(error @ NoCgroup::Shared { .. }) => return Err(error.into()),
        cgroup => cgroup.map_err(|error| error.to_string()),
    };
    let facts = Facts {
        pid: rustix::process::getpid().as_raw_nonzero().get(),
        uids,
        cgroup: cgroup.as_ref().map(|c| c.path().display().to_string()).map_err(Clone::clone),
        pool: options.pool,
    };
    let failed = |e: rustix::io::Errno| Error::System("epoll", e.into());
    let events = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
    let signals = Signals::take().map_err(|e| Error::System("signalfd", e.into()))?;
    let watch = |fd: rustix::fd::BorrowedFd<'_>, token| {
        epoll::add(&events, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN).map_err(failed)
    };
    watch(signals.as_fd(), SIGNALS)?;
    line.watch(&events).map_err(failed)?;
    for place in places.iter_mut() {
        watch(place.pidfd.as_fd(), token(place.worker.slot, true))?;
        place.leaf = cgroup.as_ref().ok().and_then(|c| c.leaf_of(place.worker.slot, place.worker.pid));
    }
    let pool = options.pool;
    let mut jailer =
        Jailer { line, workshop, cgroup, uids, prepared, facts, places, pool, refill: true, events, signals };
    let result = jailer.run();
    jailer.discard_empty();
    jailer.line.remove();
    result
}

/// Raises the soft limit of open files to the hard one: a worker costs four. Workers have a limit of their own.
fn allow_all_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

pub(crate) struct Jailer {
    pub line: Line,
    pub workshop: Workshop,
    pub cgroup: Result<Delegated, String>,
    pub uids: UidSource,
    pub prepared: Prepared,
    pub facts: Facts,
    pub places: Places,
    pub pool: u32,
    /// False after a pooled worker could not be made or ended by itself, until the next request: no busy loop.
    pub refill: bool,
    pub events: OwnedFd,
    pub signals: Signals,
}

/// Which fd of which slot an event is about.
pub(crate) fn token(slot: Slot, end: bool) -> u64 {
    (u64::from(slot.0) + 2) << 1 | u64::from(end)
}

/// What [`token`] was made of.
fn of_token(token: u64) -> (Slot, bool) {
    (Slot(((token >> 1) - 2) as u32), token & 1 == 1)
}

impl Jailer {
    /// Until nothing is left to keep, or SIGTERM.
    fn run(&mut self) -> Result<(), Error> {
        let failed = |e: rustix::io::Errno| Error::System("epoll", e.into());
        loop {
            let now = Instant::now();
            if self.line.is_overdue(now) {
                complain!("whoever connected says nothing, and is dropped");
                self.hang_up()?;
            }
            self.line.after_rest(&self.events, now).map_err(failed)?;
            if self.places.is_empty() && self.line.is_alone(now) && self.line.close(&self.events)? {
                return Ok(());
            }
            let short = self.line.serves() && self.refill && self.places.pooled() < self.pool;
            let wait = if short { Some(QUIET) } else { self.line.due().map(|due| due.saturating_duration_since(now)) };
            let mut ready =
                [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 32];
            let count = match epoll::wait(&self.events, &mut ready[..], wait.map(timespec).as_ref()) {
                Ok(count) => count,
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(Error::System("epoll_wait", e.into())),
            };
            if count == 0
                && short
                && let Err(refusal) = self.make(None)
            {
                complain!("the pool is not filled: {refusal:?}");
                self.refill = false;
            }
            for event in &ready[..count] {
                match event.data.u64() {
                    line::PEER => self.heard()?,
                    line::DOOR => self.line.admit(&self.events, now).map_err(failed)?,
                    SIGNALS => {
                        let came = self.signals.read();
                        if came.leave {
                            return Ok(());
                        }
                        if came.child {
                            self.stopped();
                        }
                    }
                    worker => match of_token(worker) {
                        (slot, true) => self.ended(slot),
                        (slot, false) => self.reported(slot),
                    },
                }
            }
        }
    }

    fn heard(&mut self) -> Result<(), Error> {
        match self.line.hear() {
            Heard::Nothing => Ok(()),
            Heard::Supervisor => {
                self.welcome();
                Ok(())
            }
            Heard::Request(request) => {
                self.request(request);
                Ok(())
            }
            Heard::Gone(why) => {
                if let Some(why) = why {
                    complain!("the channel to the supervisor: {why}");
                }
                self.hang_up()
            }
        }
    }

    /// Tells a supervisor that has just come all that it may have to know.
    fn welcome(&mut self) {
        self.refill = true;
        let mut heard = self.line.say(&Reply::Ready(self.facts.clone()), &[]);
        for place in self.places.iter_mut() {
            // One that does not listen is not told more: each of these may wait for it.
            let Some(known) = place.known().filter(|_| heard) else { continue };
            let pidfd = matches!(known, Reply::Holds { .. }).then(|| place.pidfd.as_fd());
            heard = self.line.say(&known, pidfd.as_slice());
        }
        heard = heard && self.line.say(&Reply::Listed, &[]);
        for place in self.places.iter_mut().filter(|p| p.stopped && p.phase == Phase::Taken) {
            heard = heard && self.line.say(&Reply::Stopped { slot: place.worker.slot, stopped: true }, &[]);
        }
    }

    /// The supervisor is gone: what is empty goes as well, orders included, and the next one may come in. Empty is also what
    /// was handed over and not told which VM it is: nobody comes back for it, and it would keep this process for ever.
    fn hang_up(&mut self) -> Result<(), Error> {
        let taken = |place: &&mut Place| place.phase == Phase::Taken && !place.orphan;
        for place in self.places.iter_mut().filter(taken) {
            if is_empty(place.worker.pid) {
                place.phase = Phase::Warm;
            }
        }
        self.discard_empty();
        self.line.hang_up(&self.events).map_err(|e| Error::System("epoll", e.into()))
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Forget { slot } => {
                self.places.forget(slot);
            }
            Request::Limit { slot, limits } => {
                let failed = self.limit(slot, &limits).err();
                self.line.say(&Reply::Limited { slot, failed }, &[]);
            }
            Request::Make { seq, limits, rlimits } => {
                self.refill = true;
                if let Err(why) = self.place_order(Order { seq, limits, rlimits }) {
                    self.line.say(&Reply::Refused { seq, why }, &[]);
                }
            }
        }
    }

    fn limit(&mut self, slot: Slot, limits: &CgroupLimits) -> Result<(), Refusal> {
        let Some(place) = self.places.get(slot).filter(|place| place.phase == Phase::Taken) else {
            return Err(Refusal::Invalid(format!("there is no worker in slot {}", slot.0)));
        };
        match (&place.leaf, &self.cgroup) {
            (Some(leaf), _) => leaf.limit_anew(limits).map_err(Refusal::Invalid),
            (None, _) if limits.best_effort => Ok(()),
            (None, Err(reason)) => Err(Refusal::NoCgroup(reason.clone())),
            (None, Ok(cgroup)) => Err(Refusal::NoCgroup(format!(
                "the worker was made by an earlier jailer, in a cgroup that is not below {}",
                cgroup.path().display()
            ))),
        }
    }

    /// Looks which children a signal has stopped, or goes on.
    fn stopped(&mut self) {
        let Jailer { places, line, .. } = self;
        for place in places.iter_mut().filter(|p| !p.orphan && !matches!(p.phase, Phase::Ended(_))) {
            let Some(stopped) = stopped(place) else { continue };
            place.stopped = stopped;
            if place.phase == Phase::Taken {
                line.say(&Reply::Stopped { slot: place.worker.slot, stopped }, &[]);
            } else if stopped {
                // Nobody would know why the VM that is given to it does not start. Its end is seen like any other.
                let _ = rustix::process::pidfd_send_signal(&place.pidfd, Signal::KILL);
            }
        }
    }

    /// Kills and reaps a worker that was never handed over, and removes what was its.
    pub(crate) fn discard(&mut self, slot: Slot) {
        let Some(place) = self.places.remove(slot) else { return };
        self.forget_fds(&place);
        crate::reap::kill_and_reap(&place);
        let _ = orphans::remove_names(slot);
    }

    /// Kills and reaps all workers that were never handed over.
    fn discard_empty(&mut self) {
        let slots = self.places.empty();
        // All at once first: they end side by side.
        for slot in &slots {
            if let Some(place) = self.places.get(*slot) {
                let _ = rustix::process::pidfd_send_signal(&place.pidfd, Signal::KILL);
            }
        }
        slots.into_iter().for_each(|slot| self.discard(slot));
    }

    /// Takes a worker's fds from the poll set. Closing them would not do while a child that was forked and has not
    /// executed its program yet holds copies.
    pub(crate) fn forget_fds(&self, place: &Place) {
        let _ = epoll::delete(&self.events, &place.pidfd);
        if let Some(report) = &place.report {
            let _ = epoll::delete(&self.events, report.pipe());
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jail_spec::SLOTS_MAX;

    #[test]
    fn tokens_tell_slots_and_kinds_apart_and_never_name_the_line_or_the_signals() {
        let mut all = vec![line::PEER, line::DOOR, SIGNALS];
        for slot in [0, 1, 77, SLOTS_MAX - 1] {
            for end in [false, true] {
                let token = token(Slot(slot), end);
                assert_eq!(of_token(token), (Slot(slot), end));
                all.push(token);
            }
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
