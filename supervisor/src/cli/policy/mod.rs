//! `vmsup policy`: what every process may do, as an auditor asks it.
//!
//! Reads the set that is compiled in, or one on disk; no supervisor is needed for that, and none is started.

pub mod args;
pub mod trace;
mod which;

use super::client::Client;
use super::failure::Failure;
use args::Policy;

/// `vmsup policy …`.
pub fn policy(client: &Client, what: &Policy) -> Result<(), Failure> {
    match what {
        Policy::Trace { which, options } => trace::trace(client, &which.set()?, which.arch()?, options),
    }
}
