//! Whether a VM that has ended is started again, and when: a pure function of its file, its end and what came before.

use crate::api::types::EndKind;
use crate::spec::{Backoff, Restart};
use std::time::Duration;

/// What is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It stays as it is.
    Rest,
    /// It would be started again, had it not been so often already: this many restarts in a row.
    GiveUp(u32),
    /// It is started again.
    Again {
        /// After this time.
        after: Duration,
        /// Which restart in a row that is, from 1 on.
        nth: u32,
    },
}

/// Decides. `row` is how many restarts came in a row before the run that ended, `ran` how long that run took.
pub fn decide(policy: Restart, backoff: &Backoff, kind: EndKind, row: u32, ran: Duration) -> Decision {
    let wanted = match policy {
        Restart::No => false,
        Restart::OnFailure => !kind.is_clean(),
        // Who was killed was killed by its owner.
        Restart::Always => kind != EndKind::Killed,
    };
    if !wanted {
        return Decision::Rest;
    }
    let row = if ran >= Duration::from_secs(backoff.reset_after_s.into()) { 0 } else { row };
    if backoff.attempts.is_some_and(|attempts| row >= attempts) {
        return Decision::GiveUp(row);
    }
    // Past 2^17 s even the shortest first time has reached the longest cap that a file can name.
    let seconds = u64::from(backoff.first_s) << row.min(17);
    let after = Duration::from_secs(seconds.min(backoff.max_s.into()));
    Decision::Again { after, nth: row.saturating_add(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [EndKind; 9] = [
        EndKind::Shutdown,
        EndKind::Reset,
        EndKind::Killed,
        EndKind::GuestCrashed,
        EndKind::WorkerCrashed,
        EndKind::Unhealthy,
        EndKind::HostDown,
        EndKind::StartFailed,
        EndKind::Unknown,
    ];
    const POLICIES: [Restart; 3] = [Restart::No, Restart::OnFailure, Restart::Always];

    fn again(decision: Decision) -> Option<(u64, u32)> {
        match decision {
            Decision::Again { after, nth } => Some((after.as_secs(), nth)),
            Decision::Rest | Decision::GiveUp(_) => None,
        }
    }

    #[test]
    fn the_policy_says_which_ends_are_followed_by_a_start() {
        for policy in POLICIES {
            for kind in KINDS {
                let wanted = match (policy, kind) {
                    (Restart::No, _) | (_, EndKind::Killed) => false,
                    (Restart::OnFailure, EndKind::Shutdown | EndKind::Reset) => false,
                    (Restart::OnFailure | Restart::Always, _) => true,
                };
                let decision = decide(policy, &Backoff::default(), kind, 0, Duration::ZERO);
                assert_eq!(again(decision).is_some(), wanted, "{policy:?} {kind:?}");
            }
        }
    }

    /// All policies, all ends, and every back-off at and around its bounds.
    #[test]
    fn the_time_before_a_restart_grows_to_its_cap_and_begins_anew_after_a_good_run() {
        let rows = (0..70).chain([1000, u32::MAX]);
        for row in rows {
            for (first_s, max_s) in [(0, 1), (1, 1), (1, 300), (7, 300), (3600, 86_400), (3600, 1), (1, 86_400)] {
                for attempts in [None, Some(1), Some(5), Some(u32::MAX)] {
                    for ran in [0, 59, 60, u64::MAX] {
                        let backoff = Backoff { first_s, max_s, reset_after_s: 60, attempts };
                        let ran = Duration::from_secs(ran);
                        let decision = decide(Restart::Always, &backoff, EndKind::GuestCrashed, row, ran);
                        let row = if ran.as_secs() >= 60 { 0 } else { row };
                        if attempts.is_some_and(|most| row >= most) {
                            assert_eq!(decision, Decision::GiveUp(row));
                            continue;
                        }
                        let (after, nth) = again(decision).unwrap();
                        assert_eq!(nth, row.saturating_add(1));
                        let exact = u128::from(first_s) * 2u128.checked_pow(row.min(100)).unwrap();
                        assert_eq!(u128::from(after), exact.min(max_s.into()), "{backoff:?} {row}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_vm_that_keeps_crashing_is_given_up_after_its_attempts() {
        let backoff = Backoff { attempts: Some(3), ..Backoff::default() };
        let (mut row, mut waited) = (0, Vec::new());
        while let Decision::Again { after, nth } =
            decide(Restart::OnFailure, &backoff, EndKind::GuestCrashed, row, Duration::ZERO)
        {
            waited.push(after.as_secs());
            row = nth;
        }
        assert_eq!(waited, [1, 2, 4]);
    }
}
