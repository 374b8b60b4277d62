//! Finding the VMs of a supervisor that is gone: what the database says they are, what the handle files say they run as, and
//! what jailer and kernel say is true.

use super::console::Console;
use super::end::WorkerEnd;
use super::jail::Held;
use super::nets::Interfaces;
use super::state::Intent;
use super::worker::Control;
use std::sync::Arc;

/// What became of a VM while there was no supervisor.
#[derive(Debug)]
pub enum Fate {
    /// It runs, and is ours again.
    Runs(Box<Found>),
    /// It ran, and ended.
    Ended {
        /// What it is.
        intent: Box<Intent>,
        /// How, where the jailer could say.
        how: How,
        /// Kept until the end is recorded: then the jailer forgets the worker, too.
        held: Option<Held>,
    },
    /// It did not run.
    Rests(Box<Intent>),
}

/// How a VM ended while there was no supervisor.
#[derive(Debug)]
pub enum How {
    /// As its jailer tells it.
    Told(WorkerEnd),
    /// The host went down under it: its handle is of another boot.
    HostDown,
    /// It is gone, and nobody could say how; or what was found in its place was not it, and why.
    Unknown(String),
    /// Its worker ran and was not believed (what it said or handed over cannot be), and was killed for that.
    NotBelieved(String),
}

/// A VM that was found running, and everything that its actor has of a VM that it started itself.
#[derive(Debug)]
pub struct Found {
    /// What it is.
    pub intent: Intent,
    /// Its worker.
    pub held: Held,
    /// The way to it.
    pub control: Control,
    /// Its vCPUs stand still because its owner paused it.
    pub paused: bool,
    /// Its console, with the history that its worker kept. None where its worker hangs: it is asked again
    /// ([`Control::console`], [`Console::adopted`]) when it answers.
    pub console: Option<Arc<Console>>,
    /// Its network interfaces: what is shown, and the leases. Nothing for the worker, which has it.
    pub nets: Interfaces,
    /// When its vCPUs began to run, seconds since 1970.
    pub started_at: u64,
}
