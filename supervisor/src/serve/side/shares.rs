//! What one user may have of the supervisor's fds, threads and connections for their files, so that nobody takes all of it.
//!
//! Whatever is done with an fd that a tenant opened can take as long as the tenant likes: a file may be on a file system that
//! a program of theirs serves, and even close(2) waits for that. So all of it is done on threads, a few for each user, and a
//! user whose threads hang waits for them alone.

use crate::api::types::ApiError;
use crate::serve::refusals::internal;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Threads of one user that look at files, and of all.
const LOOKING: (usize, usize) = (2, 32);
/// Threads of one user that copy files, and of all.
const COPYING: (usize, usize) = (2, 16);

/// Connections of all users, where they may have so many fds; one user may have a quarter of them.
pub fn connections(fds: usize) -> usize {
    (fds / 2).min(128)
}

/// What there is for all users.
#[derive(Debug)]
pub struct Shares {
    shares: Mutex<HashMap<u32, Weak<Share>>>,
    connections: Arc<Semaphore>,
    fds: Arc<Semaphore>,
    looking: Arc<Semaphore>,
    copying: Arc<Semaphore>,
    /// Fds of one user, and their connections.
    each: (usize, usize),
}

/// What one user has of it.
#[derive(Debug)]
pub struct Share {
    connections: Both,
    fds: Both,
    looking: Both,
    copying: Both,
}

/// Places of one user among the places of all.
#[derive(Debug)]
struct Both {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// Places that are taken, given back when this is dropped.
#[derive(Debug)]
pub struct Places {
    own: OwnedSemaphorePermit,
    all: OwnedSemaphorePermit,
}

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// To receive, to look at and to close files: moments, but for those that hang.
    Look,
    /// To copy them: as long as that takes.
    Copy,
}

/// Who closes fds that a user opened.
#[derive(Debug)]
pub struct Back {
    share: Arc<Share>,
    places: Places,
}

impl Shares {
    /// `fds` of all users; each may have a quarter of them.
    pub fn new(fds: usize) -> Shares {
        let places = |count| Arc::new(Semaphore::new(count));
        Shares {
            shares: Mutex::default(),
            connections: places(connections(fds)),
            fds: places(fds),
            looking: places(LOOKING.1),
            copying: places(COPYING.1),
            each: ((fds / 4).max(ipc::MAX_FDS.min(fds)), connections(fds).div_ceil(4)),
        }
    }

    /// The share of this user.
    pub fn of(&self, uid: u32) -> Arc<Share> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(&uid).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let both = |own, all: &Arc<Semaphore>| Both { own: Arc::new(Semaphore::new(own)), all: all.clone() };
        let share = Arc::new(Share {
            connections: both(self.each.1, &self.connections),
            fds: both(self.each.0, &self.fds),
            looking: both(LOOKING.0, &self.looking),
            copying: both(COPYING.0, &self.copying),
        });
        shares.insert(uid, Arc::downgrade(&share));
        share
    }
}

impl Both {
    /// Waits for so many places.
    async fn take(&self, count: u32) -> Option<Places> {
        // One's own first: who waits for those holds none that others wait for.
        let own = self.own.clone().acquire_many_owned(count).await.ok()?;
        let all = self.all.clone().acquire_many_owned(count).await.ok()?;
        Some(Places { own, all })
    }

    fn try_take(&self) -> Option<Places> {
        let own = self.own.clone().try_acquire_owned().ok()?;
        let all = self.all.clone().try_acquire_owned().ok()?;
        Some(Places { own, all })
    }
}

impl Places {
    /// Keeps `count` of them.
    pub fn keep(&mut self, count: usize) {
        for permit in [&mut self.own, &mut self.all] {
            drop(permit.split(permit.num_permits().saturating_sub(count)));
        }
    }
}

impl Share {
    /// A place for one more connection.
    pub fn connection(&self) -> Option<Places> {
        self.connections.try_take()
    }

    /// Waits for places for the fds of one frame, however many come.
    pub async fn frame(&self) -> Option<Places> {
        self.fds.take(ipc::MAX_FDS as u32).await
    }

    /// Places that nobody has taken.
    #[cfg(test)]
    pub fn free_fds(&self) -> usize {
        self.fds.own.available_permits()
    }

    /// The same of threads that copy.
    #[cfg(test)]
    pub fn free_copies(&self) -> usize {
        self.copying.own.available_permits()
    }

    /// The same of connections.
    #[cfg(test)]
    pub fn free_connections(&self) -> usize {
        self.connections.own.available_permits()
    }

    /// Does `work` on a thread of this user, and waits for it. What comes of work that nobody waits for any more is dropped
    /// on its thread.
    ///
    /// # Errors
    /// There are no threads any more.
    pub async fn run<T: Send + 'static>(
        &self,
        task: Task,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (places, name) = match task {
            Task::Look => (&self.looking, "vmsup-look"),
            Task::Copy => (&self.copying, "vmsup-copy"),
        };
        let places = places.take(1).await;
        let (told, answer) = oneshot::channel();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            let _places = places;
            drop(told.send(work()));
        });
        thread.map_err(|error| internal(format!("no thread for the VM's files: {error}")))?;
        answer.await.map_err(|_| internal("a thread that looks at files died"))
    }
}

impl Back {
    /// Closes fds of `share`, which have these places.
    pub fn new(share: Arc<Share>, places: Places) -> Back {
        Back { share, places }
    }

    /// Closes them on a thread, when there is one; their places are free after that.
    pub fn close(self, fds: impl Iterator<Item = OwnedFd>) {
        let fds: Vec<OwnedFd> = fds.collect();
        let Back { share, places } = self;
        // A thread of blocking work closes them itself.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return drop((fds, places)) };
        runtime.spawn(async move { share.run(Task::Look, move || drop((fds, places))).await });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_user_whose_threads_hang_waits_alone() {
        let shares = Shares::new(256);
        let (mine, others) = (shares.of(1), shares.of(2));
        let (release, hangs) = mpsc::channel::<()>();
        let hangs = Arc::new(Mutex::new(hangs));
        let hang = || {
            let (mine, hangs) = (mine.clone(), hangs.clone());
            tokio::spawn(async move { mine.run(Task::Look, move || hangs.lock().unwrap().recv()).await })
        };
        let hung: Vec<_> = (0..LOOKING.0 + 3).map(|_| hang()).collect();
        while mine.looking.own.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        // A thread gives its place back a moment after its answer.
        while shares.looking.available_permits() < LOOKING.1 - LOOKING.0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(shares.looking.available_permits(), LOOKING.1 - LOOKING.0);
        assert_eq!(others.run(Task::Look, || 7).await.unwrap(), 7);
        drop(release);
        for hung in hung {
            hung.await.unwrap().unwrap().unwrap_err();
        }
        assert_eq!(mine.run(Task::Look, || 8).await.unwrap(), 8);
    }

    #[tokio::test]
    async fn a_user_has_their_own_places_and_no_others() {
        let shares = Shares::new(256);
        let (mine, others) = (shares.of(1), shares.of(2));
        let taken: Vec<_> = std::iter::from_fn(|| mine.connection()).collect();
        assert_eq!(taken.len(), 32);
        assert!(others.connection().is_some());
        drop(taken);
        assert!(mine.connection().is_some());
        let mut frames = vec![mine.frame().await.unwrap(), mine.frame().await.unwrap()];
        assert_eq!(mine.fds.own.available_permits(), 0, "a quarter of 256");
        frames[0].keep(3);
        assert_eq!((mine.fds.own.available_permits(), shares.fds.available_permits()), (29, 256 - 35));
        drop(frames);
        assert_eq!((mine.fds.own.available_permits(), shares.fds.available_permits()), (64, 256));
    }

    #[tokio::test]
    async fn a_share_is_there_as_long_as_somebody_has_it() {
        let shares = Shares::new(64);
        let first = shares.of(1);
        assert!(Arc::ptr_eq(&first, &shares.of(1)));
        drop(first);
        for uid in 0..1000 {
            drop(shares.of(uid));
        }
        assert_eq!(shares.shares.lock().unwrap().len(), 1);
    }
}
