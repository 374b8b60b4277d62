//! How a worker ended, as the jailer tells it, turned into how the VM ended, as people are told.
//!
//! The exit status and the last words come from the worker: allegations. They decide about nothing but the words that
//! its owner reads.

use crate::api::types::EndKind;
use jail_spec::{HowEnded, LAST_WORDS_MAX};
use worker_api::exit;

/// A worker's end, as its jailer reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerEnd {
    /// Exit status or signal.
    pub how: HowEnded,
    /// What it said last, sanitised and bounded.
    pub last_words: String,
}

const SIGILL: i32 = 4;
const SIGKILL: i32 = 9;
const SIGSYS: i32 = 31;

impl WorkerEnd {
    /// Of what the jailer says.
    pub fn new(how: HowEnded, last_words: &str) -> WorkerEnd {
        WorkerEnd { how, last_words: plain(last_words) }
    }

    /// SIGKILL ended it.
    pub fn by_sigkill(&self) -> bool {
        self.how == HowEnded::Killed(SIGKILL)
    }

    /// The kind of end that this is when nobody asked for it.
    pub fn kind(&self) -> EndKind {
        match self.how {
            HowEnded::Exited(exit::SHUTDOWN) => EndKind::Shutdown,
            HowEnded::Exited(exit::RESET) => EndKind::Reset,
            HowEnded::Exited(exit::CRASH) => EndKind::GuestCrashed,
            HowEnded::Exited(exit::FAILED) => EndKind::StartFailed,
            HowEnded::Exited(_) | HowEnded::Killed(_) => EndKind::WorkerCrashed,
            HowEnded::Unknown => EndKind::Unknown,
        }
    }

    /// One sentence without a final full stop.
    pub fn reason(&self) -> String {
        let what = match self.how {
            HowEnded::Exited(exit::SHUTDOWN) => return "the guest switched itself off".into(),
            HowEnded::Exited(exit::RESET) => return "the guest asked for a reset".into(),
            HowEnded::Exited(exit::CRASH) => "the guest crashed".into(),
            HowEnded::Exited(exit::FAILED) => "the VM could not be set up".into(),
            HowEnded::Exited(exit::ORPHANED) => "the worker thought that its jailer was gone".into(),
            HowEnded::Exited(status) => format!("the worker left with status {status}"),
            HowEnded::Killed(SIGSYS) => "the worker broke its policy and was killed by the kernel (SIGSYS)".into(),
            HowEnded::Killed(SIGILL) => "the worker panicked (SIGILL)".into(),
            HowEnded::Killed(SIGKILL) => {
                "the worker was killed from outside (SIGKILL): out of memory, or over its limits, or by someone".into()
            }
            HowEnded::Killed(signal) => format!("the worker was killed by signal {signal}"),
            HowEnded::Unknown => "the worker ended, and its jailer had been killed before and could not say how".into(),
        };
        if self.last_words.is_empty() { what } else { format!("{what}: {}", self.last_words) }
    }
}

/// Text of a less trusted process for people: one line, no control characters (nor the invisible ones that reorder
/// text), at most [`LAST_WORDS_MAX`] bytes.
pub fn plain(text: &str) -> String {
    let mut out = String::new();
    for c in text.trim().chars() {
        let c = if c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            '?'
        } else {
            c
        };
        if out.len() + c.len_utf8() > LAST_WORDS_MAX {
            break;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(how: HowEnded) -> WorkerEnd {
        WorkerEnd::new(how, "words")
    }

    #[test]
    fn a_policy_violation_is_told_from_a_panic_and_from_a_kill() {
        for (signal, says) in [(SIGSYS, "broke its policy"), (SIGILL, "panicked"), (SIGKILL, "killed from outside")] {
            let end = end(HowEnded::Killed(signal));
            assert_eq!(end.kind(), EndKind::WorkerCrashed);
            assert!(end.reason().contains(says) && end.reason().ends_with(": words"), "{}", end.reason());
        }
    }

    #[test]
    fn exit_statuses_have_their_kinds() {
        for (status, kind) in [
            (exit::SHUTDOWN, EndKind::Shutdown),
            (exit::RESET, EndKind::Reset),
            (exit::CRASH, EndKind::GuestCrashed),
            (exit::FAILED, EndKind::StartFailed),
            (exit::ORPHANED, EndKind::WorkerCrashed),
            (77, EndKind::WorkerCrashed),
        ] {
            assert_eq!(end(HowEnded::Exited(status)).kind(), kind, "{status}");
        }
    }

    #[test]
    fn last_words_are_one_bounded_line_without_control_characters() {
        let end = WorkerEnd::new(HowEnded::Exited(exit::CRASH), "a\x1b[2J\nb\u{202e}c\r");
        assert_eq!(end.last_words, "a?[2J?b?c");
        assert!(plain(&"ä".repeat(1000)).len() <= LAST_WORDS_MAX);
    }
}
