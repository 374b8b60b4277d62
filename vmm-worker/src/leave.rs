//! Leaving: the one way out of a worker. `exit_group` only, with the last words on the report pipe before it.

use std::io::Write;

/// Why a VM ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest switched itself off.
    Shutdown,
    /// The guest asked for a reset.
    Reset,
    /// The guest cannot go on.
    Crash(String),
    /// The worker could not become the VM.
    Failed(String),
    /// Empty, and the jailer is gone.
    Orphaned,
}

impl End {
    /// The exit status, and the last words if there are any.
    pub fn parts(&self) -> (i32, &str) {
        use worker_api::exit;
        match self {
            End::Shutdown => (exit::SHUTDOWN, ""),
            End::Reset => (exit::RESET, ""),
            End::Crash(why) => (exit::CRASH, why),
            End::Failed(why) => (exit::FAILED, why),
            End::Orphaned => (exit::ORPHANED, ""),
        }
    }
}

/// Ends the process: last words, then `exit_group`. Any thread may call it; no destructor runs.
pub fn leave(end: &End) -> ! {
    let (status, words) = end.parts();
    if !words.is_empty() {
        last_words(words);
    }
    crate::sys::exit_group(status)
}

/// Writes one line to the report pipe (fd 2, made for it by the jailer). Never blocks for long: the jailer reads it in
/// its loop, and where it is gone the write fails.
pub fn last_words(words: &str) {
    let mut line = [0u8; 401];
    let mut length = 0;
    for byte in words.bytes().take(400) {
        line[length] = if byte == b'\n' { b' ' } else { byte };
        length += 1;
    }
    line[length] = b'\n';
    // Nobody is left to hear of a failure.
    let _ = std::io::stderr().write_all(&line[..=length]);
}
