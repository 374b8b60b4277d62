//! The jailer: makes one jail per VM and reaps what ends in it.
//!
//! Runs as the supervisor's user, unfiltered (a filter would stack onto every worker and needs no_new_privs, under which
//! newuidmap fails), single-threaded, without a capability in the host's user namespace. Only the supervisor can send to
//! it, over the socketpair on its standard input; what workers write to their report pipes is kept as a bounded line and
//! never interpreted, but for the one word that says that a worker listens.
//!
//! Unsafe: `sys.rs` only.
#![deny(unsafe_code)]

pub mod cgroup;
pub mod identity;
pub mod inspect;
pub mod make;
pub mod options;
pub mod places;
pub mod plan;
mod reap;
pub mod report;
pub mod serve;
pub mod stages;
#[allow(unsafe_code)]
pub mod sys;
