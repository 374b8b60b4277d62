//! Faults on purpose, for tests: each step of the supervisor's work that has a name here can be made to fail, to hang, or to
//! take the whole process with it.
//!
//! Only a program built with the cargo feature `faults` can do any of it, and no release is (a test looks). Without the
//! feature a point is nothing: its call is an empty function, and no name of a step is in the program.
//!
//! ```text
//! VMSUP_FAULT=start.files=kill                 SIGKILL to itself at the first passage
//! VMSUP_FAULT=handle.placed#3=fail             the third passage fails
//! VMSUP_FAULT=start.files%10=fail,start.worker%10=fail    a tenth of all passages fail, by VMSUP_FAULT_SEED
//! VMSUP_FAULT=start.given=hang                 the step never comes to its end; other VMs go on
//! VMSUP_FAULT=?                                refused, with a sentence that names all steps
//! ```

#[cfg(feature = "faults")]
mod armed;
#[cfg(feature = "faults")]
pub use armed::{arm, here, passable, waits};

/// Defines the steps, and with the feature their names and what they can be made to do.
macro_rules! steps {
    ($($(#[$doc:meta])+ $step:ident = $name:literal, $can:ident;)+) => {
        /// A step of the supervisor's work, named after what has just been done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Step { $($(#[$doc])+ $step,)+ }

        #[cfg(feature = "faults")]
        impl Step {
            /// All of them.
            pub const ALL: &[Step] = &[$(Step::$step,)+];

            /// As `VMSUP_FAULT` and the tests name it.
            pub fn name(self) -> &'static str {
                match self { $(Step::$step => $name,)+ }
            }

            /// What it can be made to do.
            pub fn can(self) -> armed::Can {
                match self { $(Step::$step => armed::Can::$can,)+ }
            }
        }
    };
}

steps! {
    /// A name, a number and a place are a new VM's.
    CreateReserved = "create.reserved", Die;
    /// The row of a new VM is on its way to the database.
    CreateQueued = "create.queued", Die;
    /// The files of a VM are open.
    StartFiles = "start.files", Fail;
    /// The jailer has handed over a worker.
    StartWorker = "start.worker", Fail;
    /// The leases are there, and with them all that a start needs.
    StartLeased = "start.leased", Fail;
    /// The worker is connected, and has been given nothing.
    StartConnected = "start.connected", Hang;
    /// The worker says that its vCPUs run.
    StartGiven = "start.given", Hang;
    /// The VM runs and its handle is written; its row is not.
    StartRunning = "start.running", Die;
    /// The row of a VM that runs is written; who asked has not been told.
    StartConfirmed = "start.confirmed", Die;
    /// A handle is on disk, beside its place.
    HandleBeside = "handle.beside", Fail;
    /// A handle is in its place.
    HandlePlaced = "handle.placed", Fail;
    /// That a VM is to run no longer is on its way to the database.
    StopQueued = "stop.queued", Die;
    /// The power button is pressed.
    StopPressed = "stop.pressed", Die;
    /// A worker has been sent SIGKILL.
    KillSent = "kill.sent", Die;
    /// Nothing of a run is there any more, and nothing is written of that.
    EndHeard = "end.heard", Die;
    /// The row says how a run ended.
    EndWritten = "end.written", Die;
    /// The handle of a run is gone.
    EndHandleRemoved = "end.handle_removed", Die;
    /// The leases of a run are netd's again.
    EndReleased = "end.released", Die;
    /// The jailer is to forget the worker of a run, and has not been told.
    EndLetGo = "end.let_go", Die;
    /// The jailer was told to forget a worker.
    EndForgotten = "end.forgotten", Die;
    /// A VM is at rest; who waited for that has not been told.
    EndRests = "end.rests", Die;
    /// That a VM is to be forgotten was asked for.
    RemoveAsked = "remove.asked", Die;
    /// That a VM is to be forgotten is on its way to the database.
    RemoveQueued = "remove.queued", Die;
    /// A VM is forgotten; who asked has not been told.
    RemoveWritten = "remove.written", Die;
    /// A VM is what another file says, in memory.
    ChangeMade = "change.made", Die;
    /// A VM is what another file says, in the database; who asked has not been told.
    ChangeWritten = "change.written", Die;
    /// A VM that is to be started from another file has stopped.
    UpdateStopped = "update.stopped", Die;
    /// A VM that is to be started from another file is what that says.
    UpdateChanged = "update.changed", Die;
    /// A batch of changes is on its way into the database.
    StateTaken = "state.taken", Die;
    /// A batch of changes is in the database; who waited for that has not been told.
    StateCommitted = "state.committed", Die;
    /// What there is was looked at, and the process is about to be confined.
    AdoptLooked = "adopt.looked", Die;
    /// A worker was asked how it is.
    AdoptAsked = "adopt.asked", Die;
    /// What became of each VM is known.
    AdoptJudged = "adopt.judged", Die;
    /// The handle of a VM that never ran is gone; its row is there.
    AdoptForgetting = "adopt.forgetting", Die;
    /// Each VM has its actor; nobody is served yet.
    AdoptSettled = "adopt.settled", Die;
    /// What a watched directory's files take is planned.
    WatchPlanned = "watch.planned", Die;
    /// A step of that was carried out.
    WatchStepped = "watch.stepped", Die;
    /// The API's socket is gone, and starts under way have their last moment.
    LeaveWithdrawn = "leave.withdrawn", Die;
    /// All that is to be said is on its way, and the process is about to end.
    LeaveSettled = "leave.settled", Die;
}

/// A step was made to fail. Without the feature there is no such value.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[cfg_attr(feature = "faults", error("{} was made to fail (VMSUP_FAULT)", .0.name()))]
#[cfg_attr(not(feature = "faults"), error("a step was made to fail"))]
pub struct Fault(#[cfg(feature = "faults")] Step, #[cfg(not(feature = "faults"))] std::convert::Infallible);

impl From<Fault> for crate::api::types::ApiError {
    fn from(fault: Fault) -> Self {
        super::refusals::unavailable(fault.to_string())
    }
}

impl From<Fault> for std::io::Error {
    fn from(fault: Fault) -> Self {
        std::io::Error::other(fault)
    }
}

/// A step that can only be the last of this process.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn here(_: Step) {}

/// A step that can fail.
///
/// # Errors
/// It was made to.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn passable(_: Step) -> Result<(), Fault> {
    Ok(())
}

/// A step that can fail, or never come to its end.
///
/// # Errors
/// It was made to fail.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub async fn waits(_: Step) -> Result<(), Fault> {
    Ok(())
}
