//! The supervisor confines itself: one function, in order, and any failure is the end.

use super::ServeError;
use rustix::process::{Resource, Rlimit};

/// As many fds as the host lets us have; says how many that are.
pub fn raise_nofile() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    // Where it fails, the old limit holds: fewer VMs, and a sentence when there are too many.
    let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// No new privileges, no core dumps and no debugger, and the filter: for this thread, the only one there is, and so
/// for every thread that it makes.
///
/// # Errors
/// Any step that does not hold.
pub fn confine() -> Result<(), ServeError> {
    let failed = |what: &str, e: &dyn std::fmt::Display| ServeError::Confine(format!("{what}: {e}"));
    let threads = std::fs::read_dir("/proc/self/task").map_err(|e| failed("/proc/self/task", &e))?.count();
    if threads != 1 {
        return Err(failed("threads", &format!("{threads} are there, and a filter would hold one of them only")));
    }
    for (name, value) in policies::PROCESS_SUPERVISOR.rlimits {
        let resource = match *name {
            "core" => Resource::Core,

            other => return Err(failed("rlimits", &format!("process.json names {other}, which is not known here"))),
        };
        let both = Rlimit { current: Some(*value), maximum: Some(*value) };
        rustix::process::setrlimit(resource, both).map_err(|e| failed("rlimits", &e))?;
    }
    // A trace build is read by its own user's tracer.
    nix::sys::prctl::set_dumpable(policies::TRACE).map_err(|e| failed("dumpable", &e))?;
    nix::sys::prctl::set_no_new_privs().map_err(|e| failed("no_new_privs", &e))?;
    policies::apply::seccomp(&policies::SUPERVISOR).map_err(|e| failed("filter", &e))
}
