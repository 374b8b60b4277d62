//! Putting a policy in force. Each function fails hard: who calls it leaves on an error.

use crate::Filter;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use std::os::fd::BorrowedFd;

/// A policy that could not be put in force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused the filter.
    #[error("seccomp filter {0}: {1}")]
    Seccomp(&'static str, seccompiler::Error),
    /// The kernel refused the ruleset.
    #[error("landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// Landlock is not there, or older than the ABI that is the floor.
    #[error("landlock is not in force: the kernel has no ABI 2 or later, or it is off (boot parameter lsm=)")]
    NotEnforced,
    /// The caller and `landlock.json` do not know the same places.
    #[error("landlock: no rule, or no place, for {0}")]
    Place(String),
    /// A trace build could not announce its system calls.
    #[cfg(feature = "trace")]
    #[error("trace build: system calls cannot be announced to a tracer in place of filter {0}: {1}")]
    Trace(&'static str, std::io::Error),
}

/// Installs `filter` for the calling thread and what it makes from now on. Sets no_new_privs.
///
/// # Errors
/// What `seccomp(2)` says.
#[cfg(not(feature = "trace"))]
pub fn seccomp(filter: &'static Filter) -> Result<(), Error> {
    seccompiler::apply_filter(filter.program).map_err(|e| Error::Seccomp(filter.name, e))
}

/// Has every system call announced to a tracer, which is told of `filter` and has to be there already: a trace build.
///
/// # Errors
/// What `seccomp(2)` says.
#[cfg(feature = "trace")]
pub fn seccomp(filter: &'static Filter) -> Result<(), Error> {
    // The program's file shows them in its section, in force or not.
    std::hint::black_box(filter.program);
    crate::trace::sys::stand_in(filter.name).map_err(|e| Error::Trace(filter.name, e))
}

/// Denies the calling thread everything that landlock knows to deny: every right of the running ABI is handled and no
/// rule gives one back. `landlock.json` says which ABI is the floor; newer rights are handled where the kernel has them.
///
/// # Errors
/// [`Error::NotEnforced`] where the kernel does not enforce at least ABI 2.
pub fn landlock_deny_all() -> Result<(), Error> {
    restrict(everything(crate::LANDLOCK_WORKER_FLOOR, crate::LANDLOCK_WORKER_NEWEST)?)
}

/// Denies netd everything but what `landlock.json` allows at these places, each given by its role there and an fd
/// (O_PATH will do). Rights that the running ABI does not know are left out of a rule; none is denied for that.
///
/// # Errors
/// [`Error::Place`] unless each role has its place and each place its role; [`Error::NotEnforced`] as above.
pub fn landlock_netd(places: &[(&str, BorrowedFd<'_>)]) -> Result<(), Error> {
    let rules = crate::LANDLOCK_NETD_RULES;
    if let Some((role, _)) = places.iter().find(|(role, _)| rules.iter().all(|(what, _)| what != role)) {
        return Err(Error::Place((*role).to_owned()));
    }
    let mut ruleset = everything(crate::LANDLOCK_NETD_FLOOR, crate::LANDLOCK_NETD_NEWEST)?;
    for (what, access) in rules {
        let place = places.iter().find(|(role, _)| role == what).ok_or_else(|| Error::Place((*what).to_owned()))?;
        let access: BitFlags<AccessFs> = access.iter().copied().collect();
        ruleset = ruleset.add_rule(PathBeneath::new(place.1, access))?;
    }
    restrict(ruleset)
}

/// A ruleset that handles every right of `floor`, and those up to `newest` that the kernel has.
fn everything(floor: ABI, newest: ABI) -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(floor))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(newest))?
        .handle_access(AccessNet::from_all(newest))?
        .scope(Scope::from_all(newest))?
        .create()
}

fn restrict(ruleset: RulesetCreated) -> Result<(), Error> {
    match ruleset.restrict_self()?.ruleset {
        RulesetStatus::NotEnforced => Err(Error::NotEnforced),
        _ => Ok(()),
    }
}

/// The newest landlock ABI, up to 7, whose every right the running kernel has; 0 where there is none. Restricts nothing.
pub fn landlock_abi() -> i32 {
    let has = |abi: ABI| -> Result<(), landlock::RulesetError> {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(abi))?;
        if abi >= ABI::V4 {
            ruleset = ruleset.handle_access(AccessNet::from_all(abi))?;
        }
        if abi >= ABI::V6 {
            ruleset = ruleset.scope(Scope::from_all(abi))?;
        }
        ruleset.create().map(drop)
    };
    [ABI::V7, ABI::V6, ABI::V5, ABI::V4, ABI::V3, ABI::V2, ABI::V1]
        .into_iter()
        .find(|abi| has(*abi).is_ok())
        .map_or(0, |abi| abi as i32)
}
