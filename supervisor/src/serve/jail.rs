//! The supervisor's end of the jailer's channel: asks for workers, hears how they ended.
//!
//! One task reads. It hands each worker to who asked for it, and each end to who holds the worker. A worker that
//! nobody holds any more is killed, and the jailer forgets an end only when who heard it has let go of the worker: a
//! supervisor that dies before the end was recorded is followed by one that is told again. When the jailer is gone, or when
//! this supervisor leaves, the workers that were handed over live on.

use super::end::WorkerEnd;
use super::fault::{self, Step};
use super::readiness::watch;
use ipc::Channel;
use jail_spec::{CgroupLimits, Facts, Refusal, Reply, Request, Rlimits, Slot, Worker};
use rustix::process::{Signal, pidfd_send_signal};
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};

/// What to say when there is no jailer any more.
pub const GONE: &str = "the jailer is gone and this supervisor, being confined, cannot make another: it leaves, your VMs go \
                        on, and the next command starts both anew (or restart vmsup serve yourself)";

/// The way to the jailer.
#[derive(Debug)]
pub struct Jail {
    channel: Channel<Request, Reply>,
    /// A copy of the channel's socket, registered with the reactor.
    ready: AsyncFd<OwnedFd>,
    pidfd: AsyncFd<OwnedFd>,
    /// What it can do on this host.
    pub facts: Facts,
    inner: Mutex<Inner>,
    alive: watch::Sender<bool>,
    farewells: Arc<Farewells>,
}

#[derive(Debug, Default)]
struct Inner {
    next_seq: u64,
    waiting: HashMap<u64, oneshot::Sender<Result<Held, MakeError>>>,
    living: HashMap<Slot, Watched>,
    /// Who waits for the answers to `Limit`, in the order of the questions.
    limits: HashMap<Slot, VecDeque<oneshot::Sender<Result<(), Refusal>>>>,
    gone: bool,
}

/// The other end of a [`Held`].
#[derive(Debug)]
struct Watched {
    end: oneshot::Sender<WorkerEnd>,
    stopped: watch::Sender<bool>,
}

/// What becomes of workers that are let go.
#[derive(Debug)]
struct Farewells {
    /// Slots whose end was heard, on their way to the jailer.
    forget: mpsc::UnboundedSender<Slot>,
    /// How many of these are on their way.
    pending: watch::Sender<usize>,
    /// This supervisor leaves: nobody is killed or forgotten any more.
    leaving: AtomicBool,
}

impl Farewells {
    /// Not sent from here: the jailer may be waiting for us to read before it reads.
    fn forget(&self, slot: Slot) {
        self.pending.send_modify(|n| *n += 1);
        if self.forget.send(slot).is_err() {
            self.pending.send_modify(|n| *n -= 1);
        }
    }
}

/// Why there is no worker.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The jailer said no.
    #[error("the jailer refused")]
    Refused(Refusal),
    /// There is no jailer.
    #[error("{GONE}")]
    Gone,
}

/// What a jailer said between `Ready` and `Listed`.
#[derive(Debug, Default)]
pub struct Listing {
    /// Workers that live.
    pub living: Vec<ListedWorker>,
    /// Ends that nobody has heard.
    pub ended: Vec<ListedEnd>,
}

/// A worker of an earlier supervisor.
#[derive(Debug)]
pub struct ListedWorker {
    /// Who it is.
    pub worker: Worker,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// It stands still.
    pub stopped: bool,
    /// Its jailer leaves it alone: its handle named it, and nobody will tell its end.
    pub unlisted: bool,
}

/// The end of a worker of an earlier supervisor.
#[derive(Debug)]
pub struct ListedEnd {
    /// Which slot it had.
    pub slot: Slot,
    /// Which pid it had.
    pub pid: i32,
    /// How it ended.
    pub end: WorkerEnd,
}

/// What there is of an earlier supervisor's, each to be kept or let go.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Workers that live.
    pub living: Vec<Held>,
    /// Workers that have ended. Of these the jailer knows slot and pid only; the rest of [`Held::worker`] is 0.
    pub ended: Vec<(Held, WorkerEnd)>,
}

/// A worker that is ours. Dropping it before its end was heard kills it; dropping it afterwards lets its jailer forget it.
#[derive(Debug)]
pub struct Held {
    /// Who it is.
    pub worker: Worker,
    /// It waited in the pool.
    pub warm: bool,
    /// `None` for one that had ended before we knew it.
    pidfd: Option<OwnedFd>,
    /// `None` once the jailer is gone.
    end: Option<oneshot::Receiver<WorkerEnd>>,
    stopped: watch::Receiver<bool>,
    /// There is nothing to be killed any more.
    over: bool,
    /// The jailer told its end, and is to forget it.
    told: bool,
    farewells: Arc<Farewells>,
}

impl Held {
    fn new(worker: Worker, warm: bool, pidfd: Option<OwnedFd>, farewells: &Arc<Farewells>) -> (Held, Watched) {
        let (end, ended) = oneshot::channel();
        let (stopped, watching) = watch::channel(false);
        let farewells = farewells.clone();
        let held =
            Held { worker, warm, pidfd, end: Some(ended), stopped: watching, over: false, told: false, farewells };
        (held, Watched { end, stopped })
    }

    /// SIGKILL.
    pub fn kill(&self) {
        if let Some(pidfd) = &self.pidfd {
            // ESRCH: it ended by itself, which its end says.
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }

    /// Waits until nothing of it is there any more, for so long at most.
    pub async fn gone(&mut self, most: Duration) {
        if !self.over {
            let _ = tokio::time::timeout(most, self.ended()).await;
        }
    }

    /// Its pidfd, while it may live.
    pub fn pidfd(&self) -> Option<&OwnedFd> {
        self.pidfd.as_ref()
    }

    /// Whether a signal has stopped it (SIGSTOP), as it changes. Nothing changes any more once the jailer is gone.
    pub fn stopped(&self) -> watch::Receiver<bool> {
        self.stopped.clone()
    }

    /// Waits for its end: as the jailer tells it, or `None` where only the end itself could be seen. May be dropped
    /// and called again.
    pub async fn ended(&mut self) -> Option<WorkerEnd> {
        if let Some(end) = &mut self.end {
            let told = end.await;
            self.end = None;
            if let Ok(end) = told {
                (self.over, self.told) = (true, true);
                return Some(end);
            }
        }
        // The jailer is gone: the pidfd still says when.
        if let Some(pidfd) = &self.pidfd {
            match watch(pidfd.as_fd(), Interest::READABLE) {
                Ok(pidfd) => drop(pidfd.readable().await),
                // Out of memory for the registration: it is killed so that there is an end to be told.
                Err(error) => {
                    tracing::error!(%error, pid = self.worker.pid, "cannot watch a worker; killing it");
                    self.kill();
                }
            }
        }
        self.over = true;
        None
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.farewells.leaving.load(Ordering::Acquire) {
            return;
        }
        // What was told and never taken; closed first, so that an end comes either here or back to the one who tells it.
        if let Some(end) = &mut self.end {
            end.close();
            self.told |= end.try_recv().is_ok();
        }
        if self.told {
            self.farewells.forget(self.worker.slot);
        } else if !self.over {
            self.kill();
        }
    }
}

impl Jail {
    /// Takes over a channel on which the jailer has said `Listed`, and what it said until then; `ready` is a copy of its
    /// socket. Needs a runtime.
    ///
    /// # Errors
    /// What the registration with the reactor says.
    pub fn new(
        channel: Channel<Request, Reply>,
        ready: OwnedFd,
        facts: Facts,
        pidfd: OwnedFd,
        listing: Listing,
    ) -> std::io::Result<(Arc<Jail>, Inherited)> {
        let flags = rustix::fs::fcntl_getfl(&channel)?;
        rustix::fs::fcntl_setfl(&channel, flags | rustix::fs::OFlags::NONBLOCK)?;
        let ready = watch(ready, Interest::READABLE | Interest::WRITABLE)?;
        let pidfd = watch(pidfd, Interest::READABLE)?;
        let (forget, mut forgotten) = mpsc::unbounded_channel();
        let (pending, leaving) = (watch::Sender::new(0), AtomicBool::new(false));
        let farewells = Arc::new(Farewells { forget, pending, leaving });
        let (inner, alive) = (Mutex::default(), watch::Sender::new(true));
        let jail = Arc::new(Jail { channel, ready, pidfd, facts, inner, alive, farewells });
        let inherited = jail.inherit(listing);
        tokio::spawn({
            let jail = jail.clone();
            async move {
                while let Some(slot) = forgotten.recv().await {
                    let sent = jail.send(&Request::Forget { slot }).await;
                    fault::here(Step::EndForgotten);
                    jail.farewells.pending.send_modify(|n| *n -= 1);
                    if let Err(error) = sent {
                        jail.lost(&error);
                    }
                }
            }
        });
        tokio::spawn({
            let jail = jail.clone();
            async move { jail.read().await }
        });
        Ok((jail, inherited))
    }

    fn inherit(&self, listing: Listing) -> Inherited {
        let mut inherited = Inherited::default();
        for ListedWorker { worker, pidfd, stopped, unlisted } in listing.living {
            let (held, watched) = Held::new(worker, false, Some(pidfd), &self.farewells);
            watched.stopped.send_replace(stopped);
            // Of one that is not its own the jailer says nothing: who waits for its end looks at its pidfd.
            if !unlisted {
                self.lock().living.insert(worker.slot, watched);
            }
            inherited.living.push(held);
        }
        for ListedEnd { slot, pid, end } in listing.ended {
            let worker = Worker { slot, pid, start_time: 0, uid: 0 };
            let (mut held, watched) = Held::new(worker, false, None, &self.farewells);
            (held.over, held.told) = (true, true);
            let _ = watched.end.send(end.clone());
            inherited.ended.push((held, end));
        }
        inherited
    }

    /// From here on nobody is killed or forgotten by being let go: the next supervisor finds them all.
    pub fn leave(&self) {
        self.farewells.leaving.store(true, Ordering::Release);
    }

    /// Waits until the jailer was told of all that it is to forget.
    pub async fn settled(&self) {
        let _ = self.farewells.pending.subscribe().wait_for(|n| *n == 0).await;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a worker; the receiver gets it. A receiver that was dropped meanwhile has the worker killed.
    pub async fn make(
        &self,
        limits: Option<CgroupLimits>,
        rlimits: Rlimits,
    ) -> oneshot::Receiver<Result<Held, MakeError>> {
        let (sender, receiver) = oneshot::channel();
        let seq = {
            let mut inner = self.lock();
            if inner.gone {
                let _ = sender.send(Err(MakeError::Gone));
                return receiver;
            }
            inner.next_seq += 1;
            let seq = inner.next_seq;
            inner.waiting.insert(seq, sender);
            seq
        };
        if let Err(error) = self.send(&Request::Make { seq, limits, rlimits }).await {
            self.lost(&error);
        }
        receiver
    }

    /// Other limits for a worker that lives.
    ///
    /// # Errors
    /// Why they were not set; also where there is no jailer any more.
    pub async fn limit(&self, slot: Slot, limits: CgroupLimits) -> Result<(), Refusal> {
        let gone = || Refusal::Invalid(GONE.into());
        let (sender, receiver) = oneshot::channel();
        {
            let mut inner = self.lock();
            if inner.gone {
                return Err(gone());
            }
            inner.limits.entry(slot).or_default().push_back(sender);
        }
        if let Err(error) = self.send(&Request::Limit { slot, limits }).await {
            self.lost(&error);
        }
        receiver.await.unwrap_or_else(|_| Err(gone()))
    }

    /// True while there is a jailer; changes once.
    pub fn alive(&self) -> watch::Receiver<bool> {
        self.alive.subscribe()
    }

    async fn send(&self, request: &Request) -> Result<(), ipc::Error> {
        loop {
            match self.channel.send(request, &[]) {
                Err(error) if error.would_block() => self.ready.writable().await?.clear_ready(),
                other => return other,
            }
        }
    }

    /// Reads until there is nothing to come any more: a hang-up, nonsense, or the jailer's end (a child that it forked
    /// at a bad moment may hold its socket open).
    async fn read(&self) {
        let mut ended = false;
        let error = loop {
            let mut guard = tokio::select! {
                biased;
                guard = self.ready.readable() => match guard {
                    Ok(guard) => guard,
                    Err(error) => break error.into(),
                },
                _ = self.pidfd.readable(), if !ended => {
                    ended = true;
                    continue;
                }
                () = std::future::ready(()), if ended => break ipc::Error::Closed,
            };
            match self.channel.receive() {
                Ok((reply, fds)) => {
                    if let Err(error) = self.handle(reply, fds) {
                        break error;
                    }
                }
                Err(error) if error.would_block() => guard.clear_ready(),
                Err(error) => break error,
            }
        };
        self.lost(&error);
    }

    fn handle(&self, reply: Reply, fds: Vec<OwnedFd>) -> Result<(), ipc::Error> {
        match reply {
            Reply::Made { seq, worker, warm } => {
                let Some(pidfd) = fds.into_iter().next() else {
                    return Err(ipc::Error::Fds { declared: 1, got: 0 });
                };
                let (held, watched) = Held::new(worker, warm, Some(pidfd), &self.farewells);
                let mut inner = self.lock();
                if inner.living.contains_key(&worker.slot) {
                    return Err(ipc::Error::Malformed("second worker in one slot"));
                }
                inner.living.insert(worker.slot, watched);
                let asked = inner.waiting.remove(&seq);
                drop(inner);
                // Where nobody takes it, dropping it kills it.
                if let Some(asked) = asked {
                    drop(asked.send(Ok(held)));
                }
            }
            Reply::Refused { seq, why } => {
                if let Some(asked) = self.lock().waiting.remove(&seq) {
                    let _ = asked.send(Err(MakeError::Refused(why)));
                }
            }
            Reply::Ended { slot, how, last_words, .. } => {
                let mut inner = self.lock();
                let holder = inner.living.remove(&slot);
                for asked in inner.limits.remove(&slot).unwrap_or_default() {
                    let _ = asked.send(Err(Refusal::Invalid("the worker has ended".into())));
                }
                drop(inner);
                let end = WorkerEnd::new(how, &last_words);
                // Who holds it lets it be forgotten; where nobody does, we do.
                if holder.is_none_or(|holder| holder.end.send(end).is_err()) {
                    self.farewells.forget(slot);
                }
            }
            Reply::Limited { slot, failed } => {
                let asked = self.lock().limits.get_mut(&slot).and_then(VecDeque::pop_front);
                if let Some(asked) = asked {
                    let _ = asked.send(failed.map_or(Ok(()), Err));
                }
            }
            Reply::Stopped { slot, stopped } => {
                if let Some(watched) = self.lock().living.get(&slot) {
                    watched.stopped.send_replace(stopped);
                }
            }
            Reply::Ready(_) | Reply::Holds { .. } | Reply::Listed => {
                return Err(ipc::Error::Malformed("a second list of what it has"));
            }
        }
        Ok(())
    }

    /// Tells everybody that the jailer is gone. One that only spoke nonsense sees us hang up when we leave, and meets the next
    /// supervisor.
    fn lost(&self, error: &ipc::Error) {
        let mut inner = self.lock();
        if !std::mem::replace(&mut inner.gone, true) {
            tracing::error!(%error, pid = self.facts.pid, "the jailer is gone: running VMs live on, this supervisor leaves");
        }
        for (_, asked) in inner.waiting.drain() {
            let _ = asked.send(Err(MakeError::Gone));
        }
        inner.living.clear();
        inner.limits.clear();
        drop(inner);
        self.alive.send_replace(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jail_spec::{HowEnded, UidSource};

    #[tokio::test]
    async fn a_jailer_that_tells_of_many_ends_before_it_reads_is_heard_out() {
        let (ours, theirs) = Channel::<Request, Reply>::pair().unwrap();
        let facts = Facts { pid: std::process::id() as i32, uids: UidSource::Own, cgroup: Err("none".into()), pool: 0 };
        let own = rustix::process::getpid();
        let pidfd = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap();
        let ready = ours.as_fd().try_clone_to_owned().unwrap();
        let (jail, _) = Jail::new(ours, ready, facts, pidfd, Listing::default()).unwrap();
        // More than both sockets hold.
        let ends = 2000;
        let jailer = tokio::task::spawn_blocking(move || {
            for slot in 0..ends {
                let ended =
                    Reply::Ended { slot: Slot(slot), pid: 1, how: HowEnded::Exited(0), last_words: String::new() };
                theirs.send(&ended, &[]).unwrap();
            }
            let mut forgotten: Vec<u32> = (0..ends)
                .map(|_| match theirs.receive().unwrap().0 {
                    Request::Forget { slot } => slot.0,
                    other => panic!("{other:?}"),
                })
                .collect();
            forgotten.sort_unstable();
            forgotten
        });
        assert_eq!(jailer.await.unwrap(), (0..ends).collect::<Vec<_>>());
        drop(jail);
    }
}
