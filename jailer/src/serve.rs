//! The jailer's one loop: requests of the supervisor, reports of workers, ends of workers, and the pool when all is
//! quiet.
//!
//! When the supervisor hangs up, every worker is killed and reaped and its socket and cgroup leaf removed: nobody could
//! reach those VMs any more. When the jailer itself is killed, the VMs that run go on; what is empty or half made sees
//! its report pipe close, and leaves.

use crate::cgroup::Delegated;
use crate::identity::{self, Prepared};
use crate::make::{self, Workshop, parse_failed};
use crate::options::Options;
use crate::places::{Order, Phase, Place, Places};
use crate::reap::{kill_and_reap, limit_resources, reap, start_time};
use crate::report::{News, Report};
use crate::sys;
use ipc::Channel;
use jail_spec::{Facts, Refusal, Reply, Request, SLOTS_MAX, Slot, UidSource, Worker};
use rustix::event::{Timespec, epoll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::{Resource, Rlimit, Signal};

/// How long all must be quiet before the pool is filled again: a worker is not made beside a VM's start.
const QUIET: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
/// The most warm workers.
pub const POOL_MAX: u32 = 64;
/// Token of the supervisor's channel in the poll set; workers' are made by [`token`].
const CHANNEL: u64 = 0;

/// Why the jailer leaves.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// The supervisor is not one, or spoke nonsense.
    #[error("the channel to the supervisor: {0}")]
    Channel(#[from] ipc::Error),
    /// No jail can be made on this host.
    #[error("{0}")]
    Make(#[from] make::Error),
    /// A system call of the loop itself.
    #[error("{0}: {1}")]
    System(&'static str, std::io::Error),
    /// `inspect` could not read what it should.
    #[error("{0}")]
    Inspect(String),
}

/// Serves the supervisor on the standard input until it hangs up.
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
            "serve is started by vmsup serve or by vmsup-jailer.socket, with a channel as its standard input".into(),
        ));
    }
    let channel = Channel::new(stdin);
    let _alone = alone_in_this_directory()?;
    channel.handshake(jail_spec::NAME, jail_spec::VERSION, 0)?;
    let workshop = Workshop::open(&options.worker)?;
    let cgroup = Delegated::prepare(options.cgroup.as_deref());
    let mut uids = identity::uid_source();
    let mut prepared = Prepared::default();
    if let Err(error) = prepared.get(uids, Slot(0)) {
        if uids == UidSource::Own {
            return Err(Error::System("user namespace", std::io::Error::other(error.to_string())));
        }
        eprintln!("vmsup-jailer: {error}; workers run as the user's own uid");
        uids = UidSource::Own;
        prepared = Prepared::default();
    }
    let facts = Facts {
        pid: rustix::process::getpid().as_raw_nonzero().get(),
        uids,
        cgroup: cgroup.as_ref().map(|c| c.path().display().to_string()).map_err(Clone::clone),
        pool: options.pool,
    };
    channel.send(&Reply::Ready(facts), &[])?;
    let events = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| Error::System("epoll", e.into()))?;
    let watch = epoll::EventData::new_u64(CHANNEL);
    epoll::add(&events, &channel, watch, epoll::EventFlags::IN).map_err(|e| Error::System("epoll", e.into()))?;
    let mut jailer = Jailer {
        channel,
        workshop,
        cgroup,
        uids,
        prepared,
        places: Places::default(),
        pool: options.pool,
        refill: true,
        events,
    };
    let result = jailer.run();
    jailer.end_all();
    result
}

/// Waits until no other jailer works in this directory: one whose supervisor was killed may still be reaping workers that
/// have the names, uids and cgroup leaves which this one is about to give out. Held until this process ends; children
/// lose it by exec.
fn alone_in_this_directory() -> Result<OwnedFd, Error> {
    let failed = |e: rustix::io::Errno| Error::System("the directory of the workers' sockets", e.into());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(".", flags, Mode::empty()).map_err(failed)?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&directory, FlockOperation::LockExclusive)).map_err(failed)?;
    Ok(directory)
}

/// Raises the soft limit of open files to the hard one: a worker costs four. Workers have a limit of their own.
fn allow_all_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

struct Jailer {
    channel: Channel<Reply, Request>,
    workshop: Workshop,
    cgroup: Result<Delegated, String>,
    uids: UidSource,
    prepared: Prepared,
    places: Places,
    pool: u32,
    /// False after a pooled worker could not be made or ended by itself, until the next request: no busy loop.
    refill: bool,
    events: OwnedFd,
}

/// Which fd of which slot an event is about.
fn token(slot: Slot, end: bool) -> u64 {
    (u64::from(slot.0) + 1) << 1 | u64::from(end)
}

impl Jailer {
    /// Until the supervisor hangs up.
    fn run(&mut self) -> Result<(), Error> {
        loop {
            let short = self.refill && self.places.pooled() < self.pool;
            let mut ready =
                [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 32];
            let count = match epoll::wait(&self.events, &mut ready[..], short.then_some(&QUIET)) {
                Ok(count) => count,
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(Error::System("epoll_wait", e.into())),
            };
            if count == 0 && short {
                if let Err(refusal) = self.make(None) {
                    eprintln!("vmsup-jailer: the pool is not filled: {refusal:?}");
                    self.refill = false;
                }
                continue;
            }
            for event in &ready[..count] {
                let data = event.data.u64();
                if data == CHANNEL {
                    match self.channel.receive() {
                        Ok((request, _)) => self.request(request)?,
                        Err(ipc::Error::Closed) => return Ok(()),
                        Err(error) => return Err(error.into()),
                    }
                    continue;
                }
                let slot = Slot((data >> 1) as u32 - 1);
                if data & 1 == 1 { self.ended(slot)? } else { self.reported(slot)? }
            }
        }
    }

    fn request(&mut self, request: Request) -> Result<(), Error> {
        match request {
            Request::Forget { slot } => {
                self.places.forget(slot);
                Ok(())
            }
            Request::Limit { slot, limits } => {
                let done = match self.places.get(slot) {
                    Some(Place { leaf: Some(leaf), phase: Phase::Taken, .. }) => {
                        leaf.limit(&limits).map_err(Refusal::Invalid)
                    }
                    _ => Err(Refusal::Invalid("no worker in that slot that a cgroup could hold".into())),
                };
                self.say(&Reply::Limited { slot, failed: done.err() })
            }
            Request::Make { seq, limits, rlimits } => {
                self.refill = true;
                let order = Order { seq, limits, rlimits };
                match self.place_order(order) {
                    Ok(()) => Ok(()),
                    Err(why) => self.say(&Reply::Refused { seq, why }),
                }
            }
        }
    }

    /// Gives the order to a warm worker, to one that boots, or to a new one.
    fn place_order(&mut self, order: Order) -> Result<(), Refusal> {
        if let (Some(limits), Err(reason)) = (&order.limits, &self.cgroup)
            && !limits.best_effort
        {
            return Err(Refusal::NoCgroup(reason.clone()));
        }
        match self.places.candidate() {
            Some((slot, Phase::Warm)) => self.hand_over(slot, order, true),
            Some((slot, _)) => {
                if let Some(place) = self.places.get(slot) {
                    place.phase = Phase::Booting(Some(order));
                }
                Ok(())
            }
            None => self.make(Some(order)),
        }
    }

    /// Makes a worker, for an order or for the pool.
    fn make(&mut self, order: Option<Order>) -> Result<(), Refusal> {
        let count = match self.uids {
            UidSource::Subordinate { count, .. } => count.min(SLOTS_MAX),
            UidSource::Own => SLOTS_MAX,
        };
        let slot = self.places.free(count).ok_or(Refusal::Full { slots: count })?;
        let failed = |step: &str, errno: i32| Refusal::Step { step: step.to_owned(), errno };
        let (uid, _) = identity::outer_ids(self.uids, slot).ok_or(Refusal::Full { slots: count })?;
        let leaf = match &self.cgroup {
            Ok(cgroup) => Some(cgroup.leaf(slot).map_err(Refusal::Invalid)?),
            Err(_) => None,
        };
        let clear_groups = matches!(self.uids, UidSource::Subordinate { .. });
        let user_namespace = self
            .prepared
            .get(self.uids, slot)
            .map_err(|e| Refusal::Invalid(e.to_string().chars().take(300).collect()))?;
        let made = self.workshop.make(slot, user_namespace, clear_groups, leaf.as_ref().map(|l| l.as_fd()));
        let made = made.map_err(|error| match error {
            make::Error::Step(step) => failed(&step.step, step.errno),
            make::Error::System(what, error) => failed(what, error.raw_os_error().unwrap_or(0)),
        })?;
        let worker = Worker { slot, pid: made.pid, start_time: start_time(made.pid), uid };
        let place =
            Place { worker, pidfd: made.pidfd, report: Report::new(made.report), leaf, phase: Phase::Booting(order) };
        let watch = |fd: rustix::fd::BorrowedFd<'_>, end| {
            epoll::add(&self.events, fd, epoll::EventData::new_u64(token(slot, end)), epoll::EventFlags::IN)
        };
        let watched = watch(place.report.pipe().as_fd(), false).and_then(|()| watch(place.pidfd.as_fd(), true));
        if let Err(errno) = watched {
            kill_and_reap(&place);
            return Err(failed("epoll_ctl", errno.raw_os_error()));
        }
        self.places.insert(place);
        Ok(())
    }

    /// Limits first, then the worker is the supervisor's.
    fn hand_over(&mut self, slot: Slot, order: Order, warm: bool) -> Result<(), Refusal> {
        let Some(place) = self.places.get(slot) else { return Err(Refusal::Invalid("no such slot".into())) };
        let limited = (|| {
            if let (Some(limits), Some(leaf)) = (&order.limits, &place.leaf) {
                leaf.limit(limits).map_err(Refusal::Invalid)?;
            }
            limit_resources(place.worker.pid, &order)
        })();
        if let Err(why) = limited {
            // Still nobody's; its end is handled as that of a pooled worker.
            place.phase = Phase::Booting(None);
            let _ = rustix::process::pidfd_send_signal(&place.pidfd, Signal::KILL);
            return Err(why);
        }
        place.phase = Phase::Taken;
        let reply = Reply::Made { seq: order.seq, worker: place.worker, warm };
        // Where the supervisor is gone the loop sees that next.
        let _ = self.channel.send(&reply, &[place.pidfd.as_fd()]);
        Ok(())
    }

    /// Something stands in a report pipe.
    fn reported(&mut self, slot: Slot) -> Result<(), Error> {
        let Some(place) = self.places.get(slot) else { return Ok(()) };
        match place.report.read() {
            News::Nothing => Ok(()),
            News::Over => {
                // Level-triggered: what will not be read any more must leave the poll set.
                let _ = epoll::delete(&self.events, place.report.pipe());
                Ok(())
            }
            News::Ready => match place.phase {
                Phase::Booting(None) => {
                    place.phase = Phase::Warm;
                    Ok(())
                }
                Phase::Booting(Some(order)) => match self.hand_over(slot, order, false) {
                    Ok(()) => Ok(()),
                    Err(why) => self.say(&Reply::Refused { seq: order.seq, why }),
                },
                Phase::Warm | Phase::Taken | Phase::Ended(_) => Ok(()),
            },
        }
    }

    /// A worker has ended: reap it, remove what was its, tell who waits.
    fn ended(&mut self, slot: Slot) -> Result<(), Error> {
        let Some(place) = self.places.get(slot) else { return Ok(()) };
        let Some(how) = reap(place) else { return Ok(()) };
        let _ = epoll::delete(&self.events, &place.pidfd);
        let _ = epoll::delete(&self.events, place.report.pipe());
        let last_words = place.report.last_words();
        place.leaf = None;
        remove_socket(slot);
        let (phase, pid) = (place.phase, place.worker.pid);
        match phase {
            Phase::Taken => {
                place.phase = Phase::Ended(how);
                return self.say(&Reply::Ended { slot, pid, how, last_words });
            }
            Phase::Booting(Some(order)) => {
                self.places.remove(slot);
                let why = match parse_failed(&last_words) {
                    Some(failed) => Refusal::Step { step: failed.step, errno: failed.errno },
                    None => Refusal::Died(how, last_words),
                };
                return self.say(&Reply::Refused { seq: order.seq, why });
            }
            Phase::Booting(None) | Phase::Warm => {
                eprintln!("vmsup-jailer: an empty worker ended: {how:?} {last_words}");
                self.places.remove(slot);
                self.refill = false;
            }
            Phase::Ended(_) => {}
        }
        Ok(())
    }

    /// A reply. Where the supervisor has hung up, the loop ends at the next turn.
    fn say(&self, reply: &Reply) -> Result<(), Error> {
        match self.channel.send(reply, &[]) {
            Ok(()) | Err(ipc::Error::Closed) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Leaves nothing: no process, socket or cgroup leaf.
    fn end_all(&mut self) {
        let slots = self.places.slots();
        for slot in &slots {
            if let Some(place) = self.places.get(*slot) {
                let _ = rustix::process::pidfd_send_signal(&place.pidfd, Signal::KILL);
            }
        }
        for slot in slots {
            if let Some(place) = self.places.remove(slot) {
                if !matches!(place.phase, Phase::Ended(_)) {
                    kill_and_reap(&place);
                }
                remove_socket(slot);
            }
        }
    }
}

fn remove_socket(slot: Slot) {
    let _ = rustix::fs::unlink(slot.socket_name());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_tell_slots_and_kinds_apart_and_never_name_the_channel() {
        let mut all = vec![CHANNEL];
        for slot in [0, 1, 77, SLOTS_MAX - 1] {
            for end in [false, true] {
                let token = token(Slot(slot), end);
                assert_eq!((token >> 1) as u32 - 1, slot);
                assert_eq!(token & 1 == 1, end);
                all.push(token);
            }
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
