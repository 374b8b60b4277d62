//! Making VMs be what files say: `vmsup apply`, `vmsup diff`, `vmsup serve --watch`.
//!
//! Runs in the CLI, as the user, and in the supervisor, for the directories that its owner told it to watch. Nothing here
//! speaks to anyone: what is wanted and what is there go in, steps come out, and the two that carry them out (the CLI over
//! the API, the supervisor on its own VMs) tell what came of each call.
//!
//! ```text
//! source.rs   directory or files -> what is wanted   all of it, or nothing and every error
//! plan.rs     wanted, there -> one step for each VM  pure
//! steps.rs    a step -> calls, one after the other   pure; what a step's outcome is
//! counts.rs   outcomes -> one honest sentence        pure
//! changes.rs  two files of a VM -> fields that differ  pure
//! ```
//!
//! A *source* is who keeps a VM: the canonical path of a directory, or of a file. The supervisor keeps its name with the VM.
//! A source removes only VMs that are its own, and changes no VM of another without being told to (`--adopt`). A source that
//! cannot be read in full changes nothing: that no answer came does not mean that nothing is wanted.

mod changes;
mod counts;
mod plan;
mod source;
mod steps;

pub use changes::{Change, changes};
pub use counts::Counts;
pub use plan::{Action, Conflict, Plan, Scope, Step, There, Wanted, plan};
pub use source::{Host, Place, Sources};
pub use steps::{AT_ONCE, Answer, Call, Next, Outcome, after, first, turns};

#[cfg(test)]
mod model;
