//! The jailer: makes one jail per VM and reaps what ends in it.
//!
//! Runs as the supervisor's user, unfiltered (a filter would stack onto every worker and needs no_new_privs, under which
//! newuidmap fails), single-threaded, without a capability in the host's user namespace. Only a supervisor can send to it,
//! one at a time: over the socketpair on its standard input, or through a socket to which only root and its own user may
//! connect (`line`). What workers write to their report pipes is kept as a bounded line and never interpreted, but for the
//! one word that says that a worker listens.
//!
//! It outlives its supervisor while there are workers that were handed over, and is outlived by them.
//!
//! Unsafe: `sys.rs` only.
#![deny(unsafe_code)]

/// Says something on standard error, which may be closed by now: the jailer outlives who started it.
macro_rules! complain {
    ($($words:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "vmsup-jailer: {}", format_args!($($words)*));
    }};
}

mod alone;
pub mod cgroup;
pub mod identity;
pub mod inspect;
mod line;
pub mod make;
pub mod options;
mod orphans;
pub mod places;
pub mod plan;
mod reap;
pub mod report;
pub mod section;
pub mod serve;
mod signals;
pub mod stages;
#[allow(unsafe_code)]
pub mod sys;
pub mod trial;
mod workers;
