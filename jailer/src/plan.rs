//! What is done to make a jail, in which order: pure, so that the order is tested without privileges.
//!
//! ```text
//! jailer ── clone3 (into the cgroup leaf) ──> outer child           [`outer`]
//!                                              enter the prepared user namespace, be its only uid
//!           <── CLONE_PARENT, six namespaces ─ inner child           [`inner`]
//!                                              empty root, limits, fds, privileges, exec
//! ```
//!
//! The outer child exists because a process enters a pid namespace only by being born into it; it leaves at once. The
//! inner child is the jailer's own child, so that the jailer reaps it.

use crate::identity::INNER_ID;

/// The namespaces of the inner child besides its user namespace, as `/proc/PID/ns` names them.
pub const INNER_NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];

/// One step. Its name ([`Step::name`]) is what the log and a refusal say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `setns(2)` into the prepared user namespace: every capability in there, none outside.
    EnterUserNamespace,
    /// `setgroups(2)` to none. Impossible (and left out) where the map was written without privileges.
    ClearGroups,
    /// `setresgid(2)`: all three.
    SetGid(u32),
    /// `setresuid(2)`: all three.
    SetUid(u32),
    /// `setsid(2)`: no controlling terminal to inject into.
    NewSession,
    /// Signal mask empty.
    ClearSignalMask,
    /// Host name that says nothing of the host.
    SetHostname,
    /// Mount events neither come from the host nor reach it.
    PrivateMounts,
    /// An empty tmpfs, read-only as a file system and as a mount, no devices, no set-uid, no exec, becomes `/`; the
    /// host's tree is detached.
    EmptyRoot,
    /// `setrlimit(2)`, soft and hard.
    Limit(&'static str, u64),
    /// The declared fds to their numbers, in order.
    PlaceFds,
    /// All other fds are closed by exec.
    CloseOthersOnExec,
    /// Securebits: root is nobody special, and that is locked.
    LockSecurebits,
    /// No capability in the bounding set, so that no exec can bring one.
    DropBoundingSet,
    /// No capability in the ambient, inheritable, permitted and effective sets.
    DropCapabilities,
    /// `no_new_privs`.
    NoNewPrivs,
    /// `execveat(2)` of the worker's fd, no environment.
    Exec,
}

impl Step {
    /// For the log and for refusals.
    pub fn name(&self) -> String {
        match self {
            Step::EnterUserNamespace => "enter-user-namespace".into(),
            Step::ClearGroups => "clear-groups".into(),
            Step::SetGid(_) => "set-gid".into(),
            Step::SetUid(_) => "set-uid".into(),
            Step::NewSession => "new-session".into(),
            Step::ClearSignalMask => "clear-signal-mask".into(),
            Step::SetHostname => "set-hostname".into(),
            Step::PrivateMounts => "private-mounts".into(),
            Step::EmptyRoot => "empty-root".into(),
            Step::Limit(name, _) => format!("limit-{name}"),
            Step::PlaceFds => "place-fds".into(),
            Step::CloseOthersOnExec => "close-others-on-exec".into(),
            Step::LockSecurebits => "lock-securebits".into(),
            Step::DropBoundingSet => "drop-bounding-set".into(),
            Step::DropCapabilities => "drop-capabilities".into(),
            Step::NoNewPrivs => "no-new-privs".into(),
            Step::Exec => "exec".into(),
        }
    }
}

/// The outer child's steps. `groups_can_be_cleared`: the maps were written by newuidmap and newgidmap.
pub fn outer(groups_can_be_cleared: bool) -> Vec<Step> {
    let mut steps = vec![Step::EnterUserNamespace];
    if groups_can_be_cleared {
        steps.push(Step::ClearGroups);
    }
    // The uid last: without it the groups could no longer be changed.
    steps.extend([Step::SetGid(INNER_ID), Step::SetUid(INNER_ID)]);
    steps
}

/// The inner child's steps. `limits`: those of `policies/process.json`.
pub fn inner(limits: &[(&'static str, u64)]) -> Vec<Step> {
    let mut steps =
        vec![Step::NewSession, Step::ClearSignalMask, Step::SetHostname, Step::PrivateMounts, Step::EmptyRoot];
    steps.extend(limits.iter().map(|(name, value)| Step::Limit(name, *value)));
    steps.extend([
        Step::PlaceFds,
        Step::CloseOthersOnExec,
        Step::LockSecurebits,
        Step::DropBoundingSet,
        Step::DropCapabilities,
        Step::NoNewPrivs,
        Step::Exec,
    ]);
    steps
}

/// Carries out steps; the tests have a double that records.
pub trait Perform {
    /// Does one step.
    ///
    /// # Errors
    /// The errno of the system call that failed.
    fn perform(&mut self, step: &Step) -> Result<(), i32>;
}

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Its name.
    pub step: String,
    /// Its errno.
    pub errno: i32,
}

/// Carries out `steps` in order and stops at the first that fails: a jail is whole or not at all.
///
/// # Errors
/// The step that failed.
pub fn carry_out(steps: &[Step], performer: &mut impl Perform) -> Result<(), Failed> {
    for step in steps {
        performer.perform(step).map_err(|errno| Failed { step: step.name(), errno })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records, and fails at step number `fail_at`.
    struct Recorder {
        done: Vec<Step>,
        fail_at: Option<usize>,
    }
    impl Perform for Recorder {
        fn perform(&mut self, step: &Step) -> Result<(), i32> {
            if self.fail_at == Some(self.done.len()) {
                return Err(libc::EPERM);
            }
            self.done.push(step.clone());
            Ok(())
        }
    }

    fn position(steps: &[Step], wanted: &Step) -> usize {
        let at: Vec<usize> = steps.iter().enumerate().filter(|(_, s)| *s == wanted).map(|(n, _)| n).collect();
        assert_eq!(at.len(), 1, "{wanted:?} stands there once");
        at[0]
    }

    #[test]
    fn privileges_go_after_everything_that_needs_them_and_before_exec() {
        let steps = inner(policies::PROCESS_WORKER.rlimits);
        let order = [
            Step::PrivateMounts,
            Step::EmptyRoot,
            Step::PlaceFds,
            Step::CloseOthersOnExec,
            Step::LockSecurebits,
            Step::DropBoundingSet,
            Step::DropCapabilities,
            Step::NoNewPrivs,
            Step::Exec,
        ];
        let positions: Vec<usize> = order.iter().map(|s| position(&steps, s)).collect();
        assert!(positions.is_sorted(), "{positions:?}");
        assert_eq!(steps.last(), Some(&Step::Exec));
    }

    #[test]
    fn every_limit_of_the_policy_is_set_before_exec() {
        let steps = inner(policies::PROCESS_WORKER.rlimits);
        assert!(!policies::PROCESS_WORKER.rlimits.is_empty());
        for (name, value) in policies::PROCESS_WORKER.rlimits {
            assert!(position(&steps, &Step::Limit(name, *value)) < position(&steps, &Step::Exec));
        }
    }

    #[test]
    fn the_uid_changes_after_groups_and_gid() {
        let steps = outer(true);
        assert_eq!(
            steps,
            [Step::EnterUserNamespace, Step::ClearGroups, Step::SetGid(INNER_ID), Step::SetUid(INNER_ID)]
        );
        assert!(!outer(false).contains(&Step::ClearGroups));
    }

    #[test]
    fn the_namespaces_are_those_of_the_policy() {
        let mut all: Vec<&str> = INNER_NAMESPACES.to_vec();
        all.push("user");
        all.sort_unstable();
        assert_eq!(all, policies::PROCESS_WORKER.namespaces);
    }

    #[test]
    fn nothing_is_done_after_a_step_that_failed() {
        let steps = inner(&[("core", 0)]);
        for fail_at in 0..steps.len() {
            let mut recorder = Recorder { done: Vec::new(), fail_at: Some(fail_at) };
            let failed = carry_out(&steps, &mut recorder).unwrap_err();
            assert_eq!(failed, Failed { step: steps[fail_at].name(), errno: libc::EPERM });
            assert_eq!(recorder.done, steps[..fail_at]);
        }
    }

    #[test]
    fn step_names_are_distinct() {
        let mut names: Vec<String> = outer(true).iter().chain(&inner(&[("core", 0)])).map(Step::name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
