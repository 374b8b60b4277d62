//! The way to the database.

use super::writer::{Shared, Writer};
use super::{Change, Intent, open};
use crate::api::types::{Event, Operation};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

/// Why the state cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StateError {
    /// A newer release wrote it.
    #[error(
        "{} was written by a newer release of vmsup (schema {found}, where this release knows {known}); start that release, \
         or name another --state-dir", .path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// Another supervisor has it.
    #[error("another supervisor uses {}; stop it first, or name another --state-dir", .0.display())]
    Locked(PathBuf),
    /// It cannot be read or written.
    #[error("{}: {why}", .path.display())]
    Unusable {
        /// The database or its directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl StateError {
    pub(super) fn unusable(path: &Path, why: impl Into<String>) -> StateError {
        StateError::Unusable { path: path.to_owned(), why: why.into() }
    }
}

/// What was in the database.
#[derive(Debug, Default)]
pub struct Loaded {
    /// All VMs.
    pub vms: Vec<Intent>,
    /// The events that are kept, oldest first.
    pub events: Vec<Event>,
    /// The operations that are kept, oldest first.
    pub operations: Vec<Operation>,
    /// What was wrong with it, for people: a database that was corrupt is kept aside, and the new one is empty.
    pub trouble: Option<String>,
}

/// The way to the database.
#[derive(Debug, Clone)]
pub struct Store(Arc<Handle>);

#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.0.stop();
    }
}

impl Store {
    /// Opens the database in `dir`, makes it where there is none, brings its schema up to date. Before the process is confined;
    /// the thread begins with the first [`Store::write`].
    ///
    /// Where it cannot be written (a disk that is full or read-only), what can be read of it is loaded, and changes are kept in
    /// memory only: [`Loaded::trouble`] and [`Store::trouble`] say so.
    ///
    /// # Errors
    /// [`StateError`]: who the state belongs to is not clear, or a newer release wrote it.
    pub fn open(dir: &Path) -> Result<(Store, Loaded), StateError> {
        let (writer, loaded, lasting) = open::open(dir)?;
        Ok((Store::of(writer, lasting), loaded))
    }

    /// Leaves it open until the process ends: closing takes system calls that the supervisor's filter forbids, and the end of
    /// the process does all that closing would.
    pub fn keep_open(&self) {
        static KEPT: OnceLock<Store> = OnceLock::new();
        let _ = KEPT.set(self.clone());
    }

    /// One that forgets everything; for tests.
    #[cfg(test)]
    pub fn in_memory() -> Store {
        let (writer, _) = open::in_memory(Path::new("memory")).unwrap();
        Store::of(writer, None)
    }

    pub(super) fn of(writer: Writer, lasting: Option<String>) -> Store {
        Store(Arc::new(Handle(Shared::new(writer, lasting))))
    }

    /// Writes changes, all or none of them. They are queued when this returns, behind what was queued before; awaited, it
    /// says whether they are in the database: then a supervisor that is killed has not lost them, and a host that goes down
    /// loses them only in the moment until they are synced.
    ///
    /// # Errors
    /// The database cannot be written. The changes stay queued, and are tried again with the next.
    pub fn write(&self, changes: Vec<Change>) -> impl Future<Output = Result<(), StateError>> + use<> {
        let outcome = self.0.0.write(changes);
        // The writer ends with the process; there is nobody to wait for it then.
        async { outcome.await.unwrap_or(Ok(())) }
    }

    /// Writes what only tells of what was: with the next row, or a moment later. Nobody can wait for it but by
    /// [`Store::settled`].
    pub fn queue(&self, change: Change) {
        self.0.0.queue(change);
    }

    /// What is wrong with the database now, for people; none while it can be written.
    pub fn trouble(&self) -> Option<String> {
        self.0.0.trouble().borrow().clone()
    }

    /// The same, as it changes.
    pub fn troubles(&self) -> watch::Receiver<Option<String>> {
        self.0.0.trouble()
    }

    /// Waits until all that was queued is written and synced, or given up.
    pub async fn settled(&self) {
        self.0.0.settled().await;
    }

    /// Writes what is queued and closes the database. A supervisor never does ([`Store::keep_open`]).
    #[cfg(test)]
    pub fn close(self) {
        if let Some(thread) = self.0.0.stop() {
            thread.join().unwrap();
        }
    }

    /// How many commits there were.
    #[cfg(test)]
    pub fn commits(&self) -> u64 {
        self.0.0.commits()
    }

    /// How many commits are not synced.
    #[cfg(test)]
    pub fn unsynced(&self) -> u64 {
        self.0.0.unsynced()
    }
}
