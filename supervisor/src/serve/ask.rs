//! What can be asked of a VM's actor.

use super::registry::Place;
use super::side::Received;
use super::tenants::Claim;
use super::worker::ControlError;
use crate::api::types::{ApiError, CreateRequest};
use crate::spec::VmSpec;
use std::time::Duration;
use tokio::sync::oneshot;
use worker_api::Stats;

/// Where the answer to something that was asked goes.
pub type Reply = oneshot::Sender<Result<(), ApiError>>;

/// What can be asked of a VM.
#[derive(Debug)]
pub enum Ask {
    /// To run; one that rests or waits for its restart.
    Start(Box<Start>),
    /// To give up the start that was asked for, while it is under way.
    CancelStart,
    /// Power button; SIGKILL when the time is over.
    Stop(Duration),
    /// The same, because the host goes down: it is started again when it is back, where its file says so.
    StopForShutdown(Duration),
    /// Power button and SIGKILL, by who starts it then. Where their supervisor does not live to see it through, the next one does.
    StopToStart(Duration),
    /// To go on, where it is being stopped and has not ended yet.
    CancelStop,
    /// SIGKILL.
    Kill,
    /// To stand still.
    Pause(Reply),
    /// To go on after that.
    Resume(Reply),
    /// To be what another file says, without a restart.
    Change(Box<Change>),
    /// To be forgotten; one that rests.
    Remove(Reply),
    /// What its vCPUs and devices did.
    Stats(oneshot::Sender<Result<Stats, ControlError>>),
}

/// A VM that is wanted.
#[derive(Debug)]
pub struct Order {
    /// What it is.
    pub request: CreateRequest,
    /// Its files, where its owner handed them over.
    pub files: Option<Received>,
}

impl From<CreateRequest> for Order {
    fn from(request: CreateRequest) -> Order {
        Order { request, files: None }
    }
}

/// A start that was asked for.
#[derive(Debug)]
pub struct Start {
    /// Another file than before.
    pub file: Option<Order>,
    /// Its place among the VMs that run.
    pub place: Place,
    /// Its part of its owner's quota.
    pub claim: Claim,
    /// Told when it runs, or why it does not.
    pub told: Reply,
}

/// Another file for a VM.
#[derive(Debug)]
pub struct Change {
    /// The file.
    pub spec: VmSpec,
    /// Who keeps the VM from now on.
    pub source: Option<String>,
    /// What it was when this was decided: a VM that somebody else changed meanwhile stays as it is.
    pub generation: u64,
    /// It may run on.
    pub in_place: bool,
    /// What it takes of its owner's quota from now on, where it waits for its restart.
    pub claim: Option<Claim>,
    /// Told when it is written down.
    pub told: Reply,
}
