//! `vmsup policy`: what every process may do, as an auditor asks it.
//!
//! Reads the set that is compiled in, or one on disk; no supervisor is needed for that, and none is started.

pub mod args;
mod audit;
mod check;
mod diff;
mod ls;
mod names;
mod report;
mod show;
mod sides;
pub mod trace;
mod which;

use super::client::Client;
use super::failure::Failure;
use args::Policy;

/// `vmsup policy …`.
pub fn policy(client: &Client, what: &Policy) -> Result<(), Failure> {
    match what {
        Policy::Ls { which, json } => ls::ls(which, json.json),
        Policy::Show { name, which, json } => show::show(which, name, json.json),
        Policy::Check { name, syscall: Some(syscall), args, which, json, .. } => {
            check::one(which, name, syscall, args, json.json)
        }
        Policy::Check { name, which, json, .. } => check::all(which, name, json.json),
        Policy::Diff(options) => diff::show(options),
        Policy::Report { options } => report::report(options),
        Policy::Audit { which, options } => audit::run(which, options),
        Policy::Trace { which, options } => trace::trace(client, &which.set()?, which.arch()?, options),
    }
}
