//! What `VMSUP_FAULT` armed, in programs built with the feature `faults`.

use super::{Fault, Step};
use crate::serve::ServeError;
use rustix::process::{PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a step can be made to do; each can do what those before it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Can {
    /// Kill the process.
    Die,
    /// Fail.
    Fail,
    /// Never come to its end.
    Hang,
}

const ACTIONS: [(&str, Can); 3] = [("kill", Can::Die), ("fail", Can::Fail), ("hang", Can::Hang)];

/// At which passages something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// At this one, counted from 1.
    Nth(u64),
    /// At this many of 100, chosen by the seed and the passage's number.
    Percent(u64),
}

/// One thing that is done.
#[derive(Debug)]
struct Armed {
    step: Step,
    when: When,
    action: Can,
    seed: u64,
    passed: AtomicU64,
}

/// All of them, and this process for its own SIGKILL: the filter lets it be sent by pidfd only.
static ARMED: OnceLock<(Vec<Armed>, OwnedFd)> = OnceLock::new();

/// Reads `VMSUP_FAULT` and `VMSUP_FAULT_SEED`. Before the process is confined.
///
/// # Errors
/// What is wrong with them, and which steps there are.
pub fn arm() -> Result<(), ServeError> {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let seed = variable("VMSUP_FAULT_SEED");
    let armed = parse(&variable("VMSUP_FAULT"), seed.parse().unwrap_or(1)).map_err(ServeError::Fault)?;
    let own = pidfd_open(getpid(), PidfdFlags::empty()).map_err(|e| ServeError::System("opening a pidfd", e.into()))?;
    let _ = ARMED.set((armed, own));
    Ok(())
}

fn parse(text: &str, seed: u64) -> Result<Vec<Armed>, String> {
    let wrong = |part: &str, why: &str| format!("VMSUP_FAULT: {part:?} {why}; the steps are {}", steps());
    let parts = text.split(',').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (at, action) =
                part.split_once('=').ok_or_else(|| wrong(part, "is not STEP[#NTH|%PERCENT]=kill|fail|hang"))?;
            let number = |text: &str| {
                text.parse()
                    .ok()
                    .filter(|n| *n > 0)
                    .ok_or_else(|| wrong(part, "has no number where there should be one"))
            };
            let (name, when) = match (at.split_once('#'), at.split_once('%')) {
                (Some((name, nth)), _) => (name, When::Nth(number(nth)?)),
                (None, Some((name, percent))) => (name, When::Percent(number(percent)?)),
                (None, None) => (at, When::Nth(1)),
            };
            let step = Step::ALL.iter().copied().find(|step| step.name() == name);
            let step = step.ok_or_else(|| wrong(part, "names no step"))?;
            let action = ACTIONS.iter().find(|(word, can)| *word == action && *can <= step.can());
            let (_, action) = action.ok_or_else(|| wrong(part, "is nothing that this step can be made to do"))?;
            Ok(Armed { step, when, action: *action, seed, passed: AtomicU64::new(0) })
        })
        .collect()
}

/// All steps, each with what it can be made to do.
fn steps() -> String {
    let words = |step: &Step| {
        let can: Vec<&str> = ACTIONS.iter().filter(|(_, can)| *can <= step.can()).map(|(word, _)| *word).collect();
        format!("{} ({})", step.name(), can.join(" "))
    };
    Step::ALL.iter().map(words).collect::<Vec<_>>().join(", ")
}

impl Armed {
    /// One more passage: whether it is one of those.
    fn strikes(&self) -> bool {
        let passage = self.passed.fetch_add(1, Ordering::AcqRel) + 1;
        match self.when {
            When::Nth(nth) => passage == nth,
            When::Percent(percent) => mixed(self.seed, self.step as u64, passage) % 100 < percent,
        }
    }
}

/// A number that looks random and is the same each time (the finaliser of splitmix64).
fn mixed(seed: u64, step: u64, passage: u64) -> u64 {
    let mut z = seed.wrapping_add((step << 32 | passage).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What is to be done at this passage of a step, if anything is. Does not come back where that is to die.
fn struck(step: Step) -> Option<Can> {
    let (armed, own) = ARMED.get()?;
    let mut struck = None;
    for one in armed.iter().filter(|one| one.step == step) {
        if one.strikes() {
            struck = Some(one.action);
        }
    }
    if struck == Some(Can::Die) {
        eprintln!("vmsup: ends at {} (VMSUP_FAULT)", step.name());
        let _ = pidfd_send_signal(own, Signal::KILL);
        // The signal comes before the next instruction.
        std::process::abort();
    }
    struck
}

/// A step that can only be the last of this process.
pub fn here(step: Step) {
    let _ = struck(step);
}

/// A step that can fail.
///
/// # Errors
/// It was made to.
pub fn passable(step: Step) -> Result<(), Fault> {
    match struck(step) {
        None => Ok(()),
        Some(_) => Err(Fault(step)),
    }
}

/// A step that can fail, or never come to its end.
///
/// # Errors
/// It was made to fail.
pub async fn waits(step: Step) -> Result<(), Fault> {
    match struck(step) {
        None => Ok(()),
        Some(Can::Hang) => {
            eprintln!("vmsup: hangs at {} (VMSUP_FAULT)", step.name());
            std::future::pending().await
        }
        Some(_) => Err(Fault(step)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strikes(text: &str, seed: u64, passages: usize) -> Vec<bool> {
        let armed = parse(text, seed).unwrap();
        (0..passages).map(|_| armed[0].strikes()).collect()
    }

    #[test]
    fn a_fault_strikes_at_the_passage_that_it_names() {
        assert_eq!(strikes("start.files=kill", 1, 3), [true, false, false]);
        assert_eq!(strikes("start.files#3=fail", 1, 4), [false, false, true, false]);
        assert_eq!(strikes("start.given%100=hang", 1, 3), [true; 3]);
        assert_eq!(parse("", 1).unwrap().len(), 0);
        assert_eq!(parse("start.files=kill,end.heard#2=kill", 1).unwrap().len(), 2);
    }

    #[test]
    fn a_share_of_passages_is_struck_and_the_same_ones_for_the_same_seed() {
        let some = strikes("start.worker%30=fail", 7, 1000);
        let count = some.iter().filter(|struck| **struck).count();
        assert!((250..350).contains(&count), "{count}");
        assert_eq!(some, strikes("start.worker%30=fail", 7, 1000));
        assert_ne!(some, strikes("start.worker%30=fail", 8, 1000));
        assert_ne!(some, strikes("start.files%30=fail", 7, 1000));
    }

    #[test]
    fn what_names_no_step_or_nothing_that_it_can_do_is_refused_with_all_that_there_is() {
        for wrong in [
            "?",
            "start=kill",
            "start.files",
            "start.files=leave",
            "end.heard=fail",
            "handle.placed=hang",
            "start.files#0=kill",
            "start.files%x=fail",
        ] {
            let why = parse(wrong, 1).unwrap_err();
            assert!(why.contains("start.given (kill fail hang)"), "{why}");
            assert!(Step::ALL.iter().all(|step| why.contains(step.name())), "{why}");
        }
    }

    #[test]
    fn no_two_steps_have_one_name() {
        let names: std::collections::BTreeSet<_> = Step::ALL.iter().map(|step| step.name()).collect();
        assert_eq!(names.len(), Step::ALL.len());
    }
}
