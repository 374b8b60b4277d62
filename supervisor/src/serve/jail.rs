//! The supervisor's end of the jailer's channel: asks for workers, hears how they ended.
//!
//! One task reads. It hands each worker to who asked for it, and each end to who holds the worker. A worker that
//! nobody waits for any more is killed. When the jailer is gone, the workers that were handed over live on; there is
//! just no new one.

use super::end::WorkerEnd;
use super::readiness::watch;
use ipc::Channel;
use jail_spec::{CgroupLimits, Facts, Refusal, Reply, Request, Rlimits, Slot, Worker};
use rustix::process::{Signal, pidfd_send_signal};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};

/// What to say when there is no jailer any more.
pub const GONE: &str = "the jailer is gone and this supervisor, being confined, cannot make another: stop your VMs or \
                        let them end, then the next command starts both anew (or restart vmsup serve yourself)";

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
    /// Slots whose end was heard, on their way to the jailer.
    forget: mpsc::UnboundedSender<Slot>,
}

#[derive(Debug, Default)]
struct Inner {
    next_seq: u64,
    waiting: HashMap<u64, oneshot::Sender<Result<Held, MakeError>>>,
    living: HashMap<Slot, oneshot::Sender<WorkerEnd>>,
    gone: bool,
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

/// A worker that is ours. Dropping it before its end was heard kills it.
#[derive(Debug)]
pub struct Held {
    /// Who it is.
    pub worker: Worker,
    /// It waited in the pool.
    pub warm: bool,
    pidfd: OwnedFd,
    /// `None` once the jailer is gone.
    end: Option<oneshot::Receiver<WorkerEnd>>,
    over: bool,
}

impl Held {
    /// SIGKILL.
    pub fn kill(&self) {
        // ESRCH: it ended by itself, which its end says.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Waits for its end: as the jailer tells it, or `None` where only the end itself could be seen. May be dropped
    /// and called again.
    pub async fn ended(&mut self) -> Option<WorkerEnd> {
        if let Some(end) = &mut self.end {
            let told = end.await;
            self.end = None;
            if let Ok(end) = told {
                self.over = true;
                return Some(end);
            }
        }
        // The jailer is gone: the pidfd still says when.
        match watch(self.pidfd.as_fd(), Interest::READABLE) {
            Ok(pidfd) => drop(pidfd.readable().await),
            // Out of memory for the registration: it is killed so that there is an end to be told.
            Err(error) => {
                tracing::error!(%error, pid = self.worker.pid, "cannot watch a worker; killing it");
                self.kill();
            }
        }
        self.over = true;
        None
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.over {
            self.kill();
        }
    }
}

impl Jail {
    /// Takes over a channel on which the jailer has said `Ready`; `ready` is a copy of its socket. Needs a runtime.
    ///
    /// # Errors
    /// What the registration with the reactor says.
    pub fn new(
        channel: Channel<Request, Reply>,
        ready: OwnedFd,
        facts: Facts,
        pidfd: OwnedFd,
    ) -> std::io::Result<Arc<Jail>> {
        let flags = rustix::fs::fcntl_getfl(&channel)?;
        rustix::fs::fcntl_setfl(&channel, flags | rustix::fs::OFlags::NONBLOCK)?;
        let ready = watch(ready, Interest::READABLE | Interest::WRITABLE)?;
        let pidfd = watch(pidfd, Interest::READABLE)?;
        let (forget, mut forgotten) = mpsc::unbounded_channel();
        let (inner, alive) = (Mutex::default(), watch::Sender::new(true));
        let jail = Arc::new(Jail { channel, ready, pidfd, facts, inner, alive, forget });
        tokio::spawn({
            let jail = jail.clone();
            async move {
                while let Some(slot) = forgotten.recv().await {
                    if let Err(error) = jail.send(&Request::Forget { slot }).await {
                        return jail.lost(&error);
                    }
                }
            }
        });
        tokio::spawn({
            let jail = jail.clone();
            async move { jail.read().await }
        });
        Ok(jail)
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
                let (sender, receiver) = oneshot::channel();
                let held = Held { worker, warm, pidfd, end: Some(receiver), over: false };
                let mut inner = self.lock();
                if inner.living.contains_key(&worker.slot) {
                    return Err(ipc::Error::Malformed("second worker in one slot"));
                }
                inner.living.insert(worker.slot, sender);
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
                let holder = self.lock().living.remove(&slot);
                if let Some(holder) = holder {
                    let _ = holder.send(WorkerEnd::new(how, &last_words));
                }
                // Not sent from here: the jailer may be waiting for us to read before it reads.
                let _ = self.forget.send(slot);
            }
            Reply::Ready(_) => return Err(ipc::Error::Malformed("second Ready")),
            Reply::Holds { .. } | Reply::Listed | Reply::Limited { .. } | Reply::Stopped { .. } => {}
        }
        Ok(())
    }

    /// Tells everybody that the jailer is gone. The socket stays open until we leave: a jailer that only spoke
    /// nonsense must not take the running VMs along, as it would at a hang-up.
    fn lost(&self, error: &ipc::Error) {
        let mut inner = self.lock();
        if !std::mem::replace(&mut inner.gone, true) {
            tracing::error!(%error, pid = self.facts.pid, "the jailer is gone: running VMs live on, new ones are refused");
        }
        for (_, asked) in inner.waiting.drain() {
            let _ = asked.send(Err(MakeError::Gone));
        }
        inner.living.clear();
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
        let jail = Jail::new(ours, ready, facts, pidfd).unwrap();
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
