//! How a command fails: one sentence on stderr and an exit status.

use std::process::ExitCode;

/// Exit status of a command that failed at what it was to do.
pub const FAILED: u8 = 1;
/// Exit status of a command that was given something wrong: a file, an argument.
pub const BAD_INPUT: u8 = 2;
/// Exit status of `serve` where another supervisor holds the runtime directory. Told apart because who started this one
/// can go on with the other.
pub const ALREADY_SERVED: u8 = 3;
/// What a shell reports of a program that a closed pipe ended (128 + SIGPIPE).
const CLOSED_PIPE: u8 = 141;

/// Why a command ends with another status than 0.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit status.
    pub status: u8,
    /// One sentence without a final full stop; `None` where there is nothing to say.
    pub sentence: Option<String>,
}

impl Failure {
    /// The operation failed.
    pub fn failed(sentence: impl Into<String>) -> Self {
        Failure { status: FAILED, sentence: Some(sentence.into()) }
    }

    /// The user gave something wrong.
    pub fn input(sentence: impl Into<String>) -> Self {
        Failure { status: BAD_INPUT, sentence: Some(sentence.into()) }
    }

    /// A status and nothing more to say.
    pub fn status(status: u8) -> Self {
        Failure { status, sentence: None }
    }

    /// Output that could not be written. A reader that went away (`vmsup ls | head`) is no news.
    pub fn output(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::status(CLOSED_PIPE),
            _ => Failure::failed(format!("the output cannot be written ({error}); check where it goes")),
        }
    }

    /// Says the sentence, if there is one, and gives the status.
    pub fn report(self) -> ExitCode {
        if let Some(sentence) = self.sentence {
            notice(&sentence);
        }
        ExitCode::from(self.status)
    }
}

impl From<vmsup::vmjson::InputError> for Failure {
    fn from(error: vmsup::vmjson::InputError) -> Self {
        Failure::input(error.to_string())
    }
}

/// One line on stderr. Where even that cannot be written there is nobody to tell.
pub fn notice(sentence: &str) {
    use std::io::Write;
    // A raw terminal does not return the carriage by itself.
    let end = if super::terminal::is_raw() { "\r\n" } else { "\n" };
    let line = format!("vmsup: {}{end}", super::sanitize::line(&super::sanitize::without_errno(sentence)));
    let _ = std::io::stderr().write_all(line.as_bytes());
}
