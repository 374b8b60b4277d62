//! Leaving: the one way out of a worker. `exit_group` only, with the last words on the report pipe before it.
//!
//! Any thread may come here, under its own filter and without allocating: all text is put together on the stack.

use crate::sys;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::OnceLock;
use worker_api::exit;

/// The longest text of an [`End`], bytes.
pub const WORDS_MAX: usize = 200;
/// The longest line on the report pipe, bytes without the newline. The jailer keeps as many.
const LINE_MAX: usize = 400;

/// A short text without heap memory: a vCPU thread, which never allocates, must be able to say why its guest crashed.
/// What does not fit is cut off.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Words {
    bytes: [u8; WORDS_MAX],
    length: usize,
}

impl Words {
    /// The text that `format_args!` describes.
    pub fn new(text: fmt::Arguments<'_>) -> Self {
        let mut words = Words { bytes: [0; WORDS_MAX], length: 0 };
        // Writing to it cannot fail; a Display that fails leaves what came before.
        let _ = words.write_fmt(text);
        words
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // Only whole characters were put in.
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

impl fmt::Write for Words {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let fits = whole_characters(text, WORDS_MAX - self.length);
        self.bytes[self.length..self.length + fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.length += fits;
        Ok(())
    }
}

/// How many bytes of `text`, at most `limit`, are whole characters.
fn whole_characters(text: &str, limit: usize) -> usize {
    (0..=limit.min(text.len())).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0)
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl From<&str> for Words {
    fn from(text: &str) -> Self {
        Words::new(format_args!("{text}"))
    }
}

impl From<String> for Words {
    fn from(text: String) -> Self {
        Words::from(text.as_str())
    }
}

/// Why a VM ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest switched itself off.
    Shutdown,
    /// The guest asked for a reset.
    Reset,
    /// The guest cannot go on.
    Crash(Words),
    /// The worker could not become the VM.
    Failed(Words),
    /// Empty, and the jailer is gone.
    Orphaned,
}

impl End {
    /// The exit status, and the last words if there are any.
    pub fn parts(&self) -> (i32, &str) {
        match self {
            End::Shutdown => (exit::SHUTDOWN, ""),
            End::Reset => (exit::RESET, ""),
            End::Crash(why) => (exit::CRASH, why.as_str()),
            End::Failed(why) => (exit::FAILED, why.as_str()),
            End::Orphaned => (exit::ORPHANED, ""),
        }
    }
}

/// Ends the process: last words, then `exit_group`. Any thread may call it; no destructor runs.
pub fn leave(end: &End) -> ! {
    let (status, words) = end.parts();
    if !words.is_empty() {
        report(format_args!("{words}"));
    }
    sys::exit_group(status)
}

/// Set once the supervisor's `Start` was answered.
static ANSWERED: OnceLock<()> = OnceLock::new();

/// The supervisor's `Start` was answered: a guest may end now.
pub fn answered() {
    let _ = ANSWERED.set(());
}

/// Ends the process as the guest wants it, but not before `Start` was answered: the guest runs before the answer is
/// sent, and a short one would else be gone before its supervisor heard that it began.
pub fn after_answer(end: &End) -> ! {
    ANSWERED.wait();
    leave(end)
}

/// Makes a panic end as one line on the report pipe and SIGILL. The hook of Rust's runtime would read the environment and
/// could print a backtrace, for which it opens files: under the filters both end as SIGSYS.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or(("?", 0), |l| (l.file(), l.line()));
        let payload = info.payload();
        let message = (payload.downcast_ref::<&str>().copied())
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("panic without a message");
        report(format_args!("panic at {}:{}: {message}", place.0, place.1));
        sys::undefined_instruction()
    }));
}

/// Writes one line to the report pipe (fd 2, made for it by the jailer): at most [`LINE_MAX`] bytes, control characters
/// replaced. Never blocks for long: the jailer reads it in its loop, and where it is gone the write fails.
pub fn report(text: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; LINE_MAX + 1], length: 0 };
    let _ = line.write_fmt(text);
    line.bytes[line.length] = b'\n';
    // Nobody is left to hear of a failure.
    let _ = std::io::stderr().write_all(&line.bytes[..=line.length]);
}

struct Line {
    bytes: [u8; LINE_MAX + 1],
    length: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let fits = whole_characters(text, LINE_MAX - self.length);
        for byte in text[..fits].bytes() {
            self.bytes[self.length] = if byte.is_ascii_control() { b' ' } else { byte };
            self.length += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_too_long_are_cut_between_characters() {
        let words = Words::from("ä".repeat(150));
        assert_eq!(words.as_str(), "ä".repeat(100));
        let odd = Words::new(format_args!("x{}", "ä".repeat(150)));
        assert_eq!(odd.as_str().len(), 199);
        assert_eq!(Words::from("short").as_str(), "short");
    }

    #[test]
    fn a_line_is_one_line_of_bounded_length() {
        let mut line = Line { bytes: [0; LINE_MAX + 1], length: 0 };
        line.write_str("two\nlines\x1b[2J").unwrap();
        assert_eq!(&line.bytes[..line.length], b"two lines [2J");
        line.write_str(&"y".repeat(1000)).unwrap();
        assert_eq!(line.length, LINE_MAX);
    }

    #[test]
    fn each_end_has_a_status_of_its_own() {
        let ends = [End::Shutdown, End::Reset, End::Crash("c".into()), End::Failed("f".into()), End::Orphaned];
        let statuses: std::collections::BTreeSet<i32> = ends.iter().map(|end| end.parts().0).collect();
        assert_eq!(statuses.len(), ends.len());
        assert_eq!(ends[2].parts(), (exit::CRASH, "c"));
    }
}
