//! The two threads behind a [`super::Store`]: one owns the database and makes the changes, the other one has the disk catch
//! up.
//!
//! A row is written as soon as it comes, and with it all that waits. What only tells of what was (an event, an operation)
//! waits for the next row, or for [`LATER`]: a transaction costs as much as a good part of a VM's start.
//!
//! A change is in the kernel's hands when the first thread has made it: a killed supervisor loses nothing of it. The second
//! then syncs the log that the change is in, [`SYNC_LATER`] after the first that is not synced, so that a host that goes down
//! loses no more than the last moment. Nobody waits for a sync, not even the next change; but once in a while, when there is
//! nothing else to do, the log is emptied into the database, and that does sync.
//!
//! Both threads wait on a futex while there is nothing to do, without a timeout.

use super::StateError;
use super::pending::Pending;
use super::rows;
use crate::serve::fault::{self, Step};
use rusqlite::Connection;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// How large the log may be before it is emptied into the database in a quiet moment, bytes.
const LOG_MAX: i64 = 2 << 20;
/// How long what only tells of what was may wait to be written.
const LATER: Duration = Duration::from_millis(50);
/// How long what is written may wait to be synced.
const SYNC_LATER: Duration = Duration::from_millis(100);

/// A database and what its thread needs to know of it.
#[derive(Debug)]
pub struct Writer {
    pub connection: Connection,
    /// The database; for messages.
    pub path: PathBuf,
    /// Its write-ahead log, to sync and to measure it; none of a database in memory.
    pub log: Option<Arc<File>>,
    /// Numbers of the rows in it.
    pub present: BTreeSet<u64>,
    /// How many events are in it.
    pub events: usize,
    /// Of the directory; none of a database in memory.
    pub lock: Option<OwnedFd>,
}

impl Writer {
    /// All or nothing, and not yet synced.
    fn commit(&mut self, changes: &Pending) -> rusqlite::Result<()> {
        let mut events = self.events;
        let transaction = self.connection.transaction()?;
        rows::apply(&transaction, changes, &mut events)?;
        transaction.commit()?;
        self.events = events;
        for (number, row) in &changes.rows {
            if row.is_some() {
                self.present.insert(*number)
            } else {
                self.present.remove(number)
            };
        }
        Ok(())
    }

    /// Empties a long log. Where that fails, it grows until it works again or a commit fails, which is said.
    fn checkpoint(&self) {
        let size = |log: &Arc<File>| rustix::fs::fstat(log).map_or(0, |stat| stat.st_size);
        if self.log.as_ref().map_or(0, size) < LOG_MAX {
            return;
        }
        if let Err(error) = empty_log(&self.connection) {
            tracing::warn!(database = %self.path.display(), %error, "emptying the log of the state");
        }
    }
}

/// Brings all that is in the log into the database, and begins the log anew: SQLite syncs a log's beginning, and nobody is to
/// wait for that later.
///
/// # Errors
/// The database cannot be written.
pub fn empty_log(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    begin_log(connection)
}

/// Writes something that says nothing.
///
/// # Errors
/// The database cannot be written.
pub fn begin_log(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute("INSERT OR REPLACE INTO facts VALUES ('log_begun_at', unixepoch())", []).map(drop)
}

/// What is wrong, if anything is.
#[derive(Debug, Default)]
struct Troubles {
    /// Since the start, and until the next one.
    lasting: Option<String>,
    /// The last write failed.
    write: Option<String>,
    /// The last sync failed.
    sync: Option<String>,
}

/// What is between a store's users and its threads.
#[derive(Debug)]
pub struct Shared {
    path: PathBuf,
    queue: Mutex<Queue>,
    wake_writer: Condvar,
    syncing: Mutex<Syncing>,
    wake_syncer: Condvar,
    troubles: Mutex<Troubles>,
    trouble: watch::Sender<Option<String>>,
    /// How many commits are synced.
    synced: watch::Sender<u64>,
}

/// Who wants to know whether it is written.
type Waiter = oneshot::Sender<Result<(), StateError>>;

#[derive(Debug)]
struct Queue {
    pending: Pending,
    waiters: Vec<Waiter>,
    /// Something came since the writer last looked that is to be written now. What could not be written waits for it, too.
    fresh: bool,
    /// When what may wait has waited enough.
    due: Option<Instant>,
    stop: bool,
    /// Until the first write, which makes the thread.
    idle: Option<Box<Writer>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Syncing {
    committed: u64,
    /// Somebody waits for it.
    hurry: bool,
    stop: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Of a database that nobody uses yet. `lasting` is what is wrong with it for good.
    pub fn new(writer: Writer, lasting: Option<String>) -> Arc<Shared> {
        let path = writer.path.clone();
        let queue = Queue {
            pending: Pending::default(),
            waiters: Vec::new(),
            fresh: false,
            due: None,
            stop: false,
            idle: Some(Box::new(writer)),
            thread: None,
        };
        Arc::new(Shared {
            path,
            queue: Mutex::new(queue),
            wake_writer: Condvar::new(),
            syncing: Mutex::default(),
            wake_syncer: Condvar::new(),
            trouble: watch::Sender::new(lasting.clone()),
            troubles: Mutex::new(Troubles { lasting, ..Troubles::default() }),
            synced: watch::Sender::new(0),
        })
    }

    /// Queues changes to be written at once, and says where to hear what became of them; begins the thread where there is none
    /// yet.
    pub fn write(self: &Arc<Self>, changes: Vec<super::Change>) -> oneshot::Receiver<Result<(), StateError>> {
        let (waiter, outcome) = oneshot::channel();
        self.add(changes, |queue| {
            queue.waiters.push(waiter);
            !std::mem::replace(&mut queue.fresh, true)
        });
        outcome
    }

    /// Queues a change that may wait for others.
    pub fn queue(self: &Arc<Self>, change: super::Change) {
        self.add(vec![change], |queue| {
            let first = !queue.fresh && queue.due.is_none();
            queue.due.get_or_insert_with(|| Instant::now() + LATER);
            first
        });
    }

    /// Queues changes, and wakes the thread where `news` says that it has to know.
    fn add(self: &Arc<Self>, changes: Vec<super::Change>, news: impl FnOnce(&mut Queue) -> bool) {
        let mut queue = locked(&self.queue);
        changes.into_iter().for_each(|change| queue.pending.add(change));
        let news = news(&mut queue);
        if let Some(writer) = queue.idle.take() {
            self.begin(&mut queue, writer);
        }
        drop(queue);
        if news {
            self.wake_writer.notify_one();
        }
    }

    fn begin(self: &Arc<Self>, queue: &mut Queue, writer: Box<Writer>) {
        // Handed over by a cell: where no thread can be made, the database is still there for the next try.
        let cell = Arc::new(Mutex::new(Some(writer)));
        let (shared, taken) = (self.clone(), cell.clone());
        let run = move || {
            let writer = locked(&taken).take();
            if let Some(writer) = writer {
                shared.run(*writer);
            }
        };
        match std::thread::Builder::new().name("vmsup-state".into()).spawn(run) {
            Ok(thread) => queue.thread = Some(thread),
            Err(error) => {
                queue.idle = locked(&cell).take();
                let error = StateError::unusable(&self.path, format!("no thread can be made for it ({error})"));
                self.say(|troubles| troubles.write = Some(error.to_string()));
                queue.waiters.drain(..).for_each(|waiter| drop(waiter.send(Err(error.clone()))));
            }
        }
    }

    /// The writer's thread.
    fn run(self: Arc<Self>, mut writer: Writer) {
        let syncer = writer.log.clone().and_then(|log| {
            let shared = self.clone();
            let made = std::thread::Builder::new().name("vmsup-sync".into()).spawn(move || shared.sync(&log));
            made.inspect_err(|error| tracing::warn!(%error, "no thread for syncing the state")).ok()
        });
        while let Some((changes, waiters)) = self.next() {
            fault::here(Step::StateTaken);
            let outcome = match writer.commit(&changes) {
                Ok(()) => {
                    self.committed(syncer.is_some());
                    self.say(|troubles| troubles.write = None);
                    Ok(())
                }
                Err(error) => {
                    let error = StateError::unusable(&self.path, format!("it cannot be written ({error})"));
                    self.say(|troubles| troubles.write = Some(error.to_string()));
                    locked(&self.queue).pending.take_back(changes, &writer.present);
                    Err(error)
                }
            };
            fault::here(Step::StateCommitted);
            waiters.into_iter().for_each(|waiter| drop(waiter.send(outcome.clone())));
            if !locked(&self.queue).fresh {
                writer.checkpoint();
            }
        }
        locked(&self.syncing).stop = true;
        self.wake_syncer.notify_one();
        if let Some(syncer) = syncer {
            let _ = syncer.join();
        }
    }

    /// Waits for changes and takes all that there are; none once the store is closed.
    fn next(&self) -> Option<(Pending, Vec<Waiter>)> {
        let nothing = |queue: &mut Queue| !queue.fresh && !queue.stop && queue.due.is_none();
        let queue = self.wake_writer.wait_while(locked(&self.queue), nothing);
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
        if let Some(due) = queue.due {
            let waits = |queue: &mut Queue| !queue.fresh && !queue.stop;
            let left = due.saturating_duration_since(Instant::now());
            queue = self.wake_writer.wait_timeout_while(queue, left, waits).unwrap_or_else(PoisonError::into_inner).0;
        }
        let (fresh, due) = (std::mem::take(&mut queue.fresh), queue.due.take());
        (fresh || due.is_some()).then(|| (std::mem::take(&mut queue.pending), std::mem::take(&mut queue.waiters)))
    }

    fn committed(&self, synced_later: bool) {
        let mut syncing = locked(&self.syncing);
        syncing.committed += 1;
        if synced_later {
            // It waits for more once it knows of one.
            if syncing.committed == *self.synced.borrow() + 1 {
                self.wake_syncer.notify_one();
            }
        } else {
            self.synced.send_replace(syncing.committed);
        }
    }

    /// The syncer's thread.
    fn sync(&self, log: &File) {
        loop {
            let done = *self.synced.borrow();
            let nothing = |syncing: &mut Syncing| syncing.committed == done && !syncing.stop;
            let syncing = self.wake_syncer.wait_while(locked(&self.syncing), nothing);
            let syncing = syncing.unwrap_or_else(PoisonError::into_inner);
            let waits = |syncing: &mut Syncing| !syncing.hurry && !syncing.stop;
            let syncing = self.wake_syncer.wait_timeout_while(syncing, SYNC_LATER, waits);
            let mut syncing = syncing.unwrap_or_else(PoisonError::into_inner).0;
            syncing.hurry = false;
            let goal = syncing.committed;
            drop(syncing);
            if goal == done {
                return;
            }
            let failed = log.sync_data().err();
            self.say(|troubles| {
                troubles.sync = failed.map(|error| {
                    let why =
                        format!("it cannot be synced ({error}); what a host that goes down now forgets is not known");
                    StateError::unusable(&self.path, why).to_string()
                });
            });
            self.synced.send_replace(goal);
        }
    }

    fn say(&self, change: impl FnOnce(&mut Troubles)) {
        let mut troubles = locked(&self.troubles);
        change(&mut troubles);
        let all = [&troubles.lasting, &troubles.write, &troubles.sync];
        let now = all.into_iter().flatten().next().cloned();
        self.trouble.send_if_modified(|told| {
            let news = *told != now;
            *told = now;
            news
        });
    }

    /// What is wrong, as it changes.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    /// Waits until all that was queued before is written and synced, or has failed to be.
    pub async fn settled(self: &Arc<Self>) {
        if locked(&self.queue).idle.is_some() {
            return;
        }
        let _ = self.write(Vec::new()).await;
        let goal = {
            let mut syncing = locked(&self.syncing);
            syncing.hurry = syncing.committed != *self.synced.borrow();
            syncing.committed
        };
        self.wake_syncer.notify_one();
        let _ = self.synced.subscribe().wait_for(|synced| *synced >= goal).await;
    }

    /// How many commits there were.
    #[cfg(test)]
    pub fn commits(&self) -> u64 {
        locked(&self.syncing).committed
    }

    /// How many commits are not synced.
    #[cfg(test)]
    pub fn unsynced(&self) -> u64 {
        locked(&self.syncing).committed - *self.synced.borrow()
    }

    /// Lets the thread write what is queued, and end.
    pub fn stop(&self) -> Option<JoinHandle<()>> {
        let mut queue = locked(&self.queue);
        queue.stop = true;
        self.wake_writer.notify_one();
        queue.thread.take()
    }
}
