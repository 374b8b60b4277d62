//! How many of which outcome: one sentence that leaves nothing out. Pure.

use super::steps::Outcome;
use serde::Serialize;

/// How many VMs had which outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Made.
    pub created: usize,
    /// Changed, and the guest did not notice.
    pub updated_in_place: usize,
    /// Changed, stopped and started.
    pub restarted: usize,
    /// Changed, and at rest.
    pub stored: usize,
    /// Started; where its file had changed, too, with the new one.
    pub started: usize,
    /// Another source's before, or nobody's.
    pub taken_over: usize,
    /// Removed.
    pub removed: usize,
    /// As they were wanted.
    pub unchanged: usize,
    /// Not as they are wanted.
    pub failed: usize,
}

impl Counts {
    /// Counts one more.
    pub fn add(&mut self, outcome: &Outcome) {
        let one = match outcome {
            Outcome::Created => &mut self.created,
            Outcome::InPlace => &mut self.updated_in_place,
            Outcome::Restarted => &mut self.restarted,
            Outcome::Stored => &mut self.stored,
            Outcome::Started => &mut self.started,
            Outcome::TakenOver => &mut self.taken_over,
            Outcome::Removed => &mut self.removed,
            Outcome::Unchanged => &mut self.unchanged,
            Outcome::Failed(_) => &mut self.failed,
        };
        *one += 1;
    }

    /// How many were changed.
    pub fn done(&self) -> usize {
        self.all() - self.unchanged - self.failed
    }

    /// All of them.
    pub fn all(&self) -> usize {
        self.created
            + self.updated_in_place
            + self.restarted
            + self.stored
            + self.started
            + self.taken_over
            + self.removed
            + self.unchanged
            + self.failed
    }
}

impl std::fmt::Display for Counts {
    /// What is common is always said, the rest where there is some.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            (self.created, "created", true),
            (self.updated_in_place, "updated in place", true),
            (self.restarted, "restarted", true),
            (self.stored, "updated at rest", false),
            (self.started, "started", false),
            (self.taken_over, "taken over", false),
            (self.removed, "removed", true),
            (self.unchanged, "unchanged", true),
            (self.failed, "failed", true),
        ];
        let said = parts.iter().filter(|(count, _, always)| *always || *count > 0);
        let said: Vec<String> = said.map(|(count, what, _)| format!("{count} {what}")).collect();
        f.write_str(&said.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_says_what_is_common_always_and_the_rest_where_there_is_some() {
        let mut counts = Counts::default();
        assert_eq!(counts.to_string(), "0 created, 0 updated in place, 0 restarted, 0 removed, 0 unchanged, 0 failed");
        let outcomes = [
            Outcome::Created,
            Outcome::Created,
            Outcome::Started,
            Outcome::Stored,
            Outcome::TakenOver,
            Outcome::Unchanged,
            Outcome::Failed("x".into()),
        ];
        outcomes.iter().for_each(|outcome| counts.add(outcome));
        assert_eq!(
            counts.to_string(),
            "2 created, 0 updated in place, 0 restarted, 1 updated at rest, 1 started, 1 taken over, 0 removed, \
             1 unchanged, 1 failed"
        );
        assert_eq!((counts.all(), counts.done()), (7, 5));
    }
}
