//! A line of the report.

use super::ids::Id;
use crate::cli::sanitize::without_errno;
use serde::Serialize;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// VMs start, but something is weaker, slower or missing.
    Warning,
    /// VMs cannot be started; in the group `network`, VMs with networks cannot.
    Failure,
    /// Only root may know, or what was asked did not answer.
    Unknown,
}

/// How one check came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What was looked at.
    pub id: Id,
    /// How it came out.
    pub state: State,
    /// What was found.
    pub found: String,
    /// Why it matters; empty where all is well.
    pub why: String,
    /// The command or change that mends it, or for an unknown the command that finds it out; empty where all is well.
    pub mend: String,
}

impl Line {
    fn new(state: State, id: Id, found: impl Into<String>, why: impl Into<String>, mend: impl Into<String>) -> Line {
        let plain = |text: String| without_errno(&text);
        Line { id, state, found: plain(found.into()), why: plain(why.into()), mend: plain(mend.into()) }
    }

    /// All is well.
    pub fn ok(id: Id, found: impl Into<String>) -> Line {
        Line::new(State::Ok, id, found, "", "")
    }

    /// Something is weaker than it could be.
    pub fn warning(id: Id, found: impl Into<String>, why: impl Into<String>, mend: impl Into<String>) -> Line {
        Line::new(State::Warning, id, found, why, mend)
    }

    /// VMs cannot be started.
    pub fn failure(id: Id, found: impl Into<String>, why: impl Into<String>, mend: impl Into<String>) -> Line {
        Line::new(State::Failure, id, found, why, mend)
    }

    /// It cannot be told; `mend` is how somebody can.
    pub fn unknown(id: Id, found: impl Into<String>, why: impl Into<String>, mend: impl Into<String>) -> Line {
        Line::new(State::Unknown, id, found, why, mend)
    }
}

/// Holds a line against how it should have come out. Whatever is not well has a reason and a command.
#[cfg(test)]
#[track_caller]
pub fn assert_line(line: &Line, state: State, mend: &str) {
    assert_eq!(line.state, state, "{line:?}");
    assert!(line.mend.contains(mend), "{line:?}");
    let silent = (line.why.is_empty(), line.mend.is_empty());
    assert_eq!(silent, (state == State::Ok, state == State::Ok), "{line:?}");
    assert!(!line.found.is_empty(), "{line:?}");
}
