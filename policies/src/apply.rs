//! Putting a policy in force. Each function fails hard: who calls it leaves on an error.

use crate::Filter;
use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope};

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
}

/// Installs `filter` for the calling thread and what it makes from now on. Sets no_new_privs.
///
/// # Errors
/// What `seccomp(2)` says.
pub fn seccomp(filter: &'static Filter) -> Result<(), Error> {
    seccompiler::apply_filter(filter.program).map_err(|e| Error::Seccomp(filter.name, e))
}

/// Denies the calling thread everything that landlock knows to deny: every right of the running ABI is handled and no
/// rule gives one back. `landlock.json` says which ABI is the floor; newer rights are handled where the kernel has them.
///
/// # Errors
/// [`Error::NotEnforced`] where the kernel does not enforce at least ABI 2.
pub fn landlock_deny_all() -> Result<(), Error> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(crate::LANDLOCK_WORKER_FLOOR))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(crate::LANDLOCK_WORKER_NEWEST))?
        .handle_access(AccessNet::from_all(crate::LANDLOCK_WORKER_NEWEST))?
        .scope(Scope::from_all(crate::LANDLOCK_WORKER_NEWEST))?
        .create()?
        .restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(Error::NotEnforced);
    }
    Ok(())
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
