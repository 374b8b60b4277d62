//! Durable intent: what each VM is, in SQLite. What is true at the moment (pids, sockets, leases) is in a handle file for
//! each VM ([`super::handle`]) and never here.
//!
//! ```text
//! <state>/vmsup.db        the database
//! <state>/vmsup.db-wal    its write-ahead log
//! <state>/lock            held by the supervisor whose state it is
//! ```
//!
//! What was said to be written survives the end of this process, whatever ends it; of events and operations, which only tell
//! of what was, the last moment may be missing. A host that goes down forgets at most what was written in the moment before: it
//! is synced soon, and nobody waits for that.
//!
//! One thread owns the database: a disk that is slow, full or gone makes nobody wait but who asked to be told when it is
//! written. A database that cannot be written does not stop a VM; it is said loudly ([`Store::trouble`]), and tried again with
//! the next change.

use crate::api::types::{Desired, End, Event, Operation};
use crate::spec::{Restart, VmSpec};
use serde::{Deserialize, Serialize};

pub mod hash;
#[cfg(test)]
mod loaded_tests;
mod open;
mod pending;
mod rows;
mod schema;
mod store;
#[cfg(test)]
pub(crate) mod store_tests;
#[cfg(test)]
mod surroundings_tests;
mod writer;

pub use store::{Loaded, StateError, Store};

/// The most ends of a VM that are kept.
pub const ENDS_MAX: usize = 16;
/// The most events that are kept.
pub const EVENTS_KEPT: usize = 4096;
/// The most operations that are kept, but for those that are under way.
pub const OPERATIONS_KEPT: usize = 256;

/// What a VM is: one row. Nothing in it is about a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Its id; the API shows it as 16 hexadecimal digits. Never used again.
    pub number: u64,
    /// Uid of its owner.
    pub owner: u32,
    /// Its file, with absolute paths.
    pub spec: VmSpec,
    /// [`hash::of`] its file.
    pub spec_hash: String,
    /// Which version of its file this is, from 1 on.
    pub generation: u64,
    /// Whether it is to run.
    pub desired: Desired,
    /// Who keeps it (`vmsup apply`).
    pub source: Option<String>,
    /// It is forgotten as soon as it has ended.
    pub remove_when_ended: bool,
    /// It ran at least once. One that never did was never promised to anybody: where the supervisor died while it was being
    /// made, the next one removes it.
    pub confirmed: bool,
    /// When it was taken on, seconds since 1970.
    pub created_at: u64,
    /// How often it was started again since its owner last started it.
    pub restarts: u32,
    /// How it ended, the last one last; at most [`ENDS_MAX`].
    pub ends: Vec<End>,
    /// The number of its last run: how often a worker was given it. 0 where that is not known.
    #[serde(default)]
    pub runs: u64,
    /// The number of the last run whose end is written down. Where it is behind `runs`, that run may go on.
    #[serde(default)]
    pub over: u64,
    /// It is being stopped to be started anew: whatever this run's end is, a start comes after it.
    #[serde(default)]
    pub again: bool,
}

impl Intent {
    /// Its id as the API shows it.
    pub fn id(&self) -> String {
        id(self.number)
    }

    /// True for one that is started again after the host went down under it.
    pub fn comes_back(&self) -> bool {
        self.desired == Desired::Running && self.spec.restart != Restart::No && !self.remove_when_ended
    }

    /// True where the end of this run is written down already.
    pub fn is_over(&self, run: u64) -> bool {
        run > 0 && self.over >= run
    }

    /// Adds an end, and drops the oldest of too many.
    pub fn ended(&mut self, end: End) {
        self.over = self.runs;
        self.ends.push(end);
        let more = self.ends.len().saturating_sub(ENDS_MAX);
        self.ends.drain(..more);
    }
}

/// A VM's number as the API shows it.
pub fn id(number: u64) -> String {
    format!("{number:016x}")
}

/// What is written. In the order in which it is given.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// This row, new or instead of the one with its number.
    Put(Box<Intent>),
    /// No row with this number.
    Remove(u64),
    /// One more event; the oldest go.
    Event(Event),
    /// This operation, new or instead of the one with its number; the oldest that are over go.
    Operation(Operation),
}
