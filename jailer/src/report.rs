//! What a worker writes to its report pipe: `ready`, and later one line of last words. An allegation, bounded.

use jail_spec::LAST_WORDS_MAX;
use rustix::io::Errno;
use std::io::PipeReader;

/// The word by which a worker says that it listens.
const READY: &str = "ready\n";

/// The read end, and what was kept of what came.
pub struct Report {
    pipe: PipeReader,
    kept: Vec<u8>,
    ready: bool,
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// The worker listens.
    Ready,
    /// More bytes, or none.
    Nothing,
    /// Nothing more will be read: the pipe has ended, or enough was kept. A worker that goes on writing then waits for
    /// itself.
    Over,
}

impl Report {
    /// Over the non-blocking read end of a worker's report pipe.
    pub fn new(pipe: PipeReader) -> Report {
        Report { pipe, kept: Vec::new(), ready: false }
    }

    /// The pipe, for the poll set.
    pub fn pipe(&self) -> &PipeReader {
        &self.pipe
    }

    /// Reads once.
    pub fn read(&mut self) -> News {
        let mut buffer = [0u8; LAST_WORDS_MAX + READY.len()];
        let room = buffer.len() - self.kept.len().min(buffer.len());
        if room == 0 {
            return News::Over;
        }
        match rustix::io::read(&self.pipe, &mut buffer[..room]) {
            Ok(0) => News::Over,
            Ok(length) => {
                self.kept.extend_from_slice(&buffer[..length]);
                if !self.ready && self.kept.starts_with(READY.as_bytes()) {
                    self.kept.drain(..READY.len());
                    self.ready = true;
                    return News::Ready;
                }
                News::Nothing
            }
            Err(Errno::AGAIN | Errno::INTR) => News::Nothing,
            Err(_) => News::Over,
        }
    }

    /// The last words: the first line, without control characters, at most [`LAST_WORDS_MAX`] bytes.
    pub fn last_words(&mut self) -> String {
        while !matches!(self.read(), News::Over) {
            let mut set = [rustix::event::PollFd::new(&self.pipe, rustix::event::PollFlags::IN)];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            if !matches!(rustix::event::poll(&mut set, Some(&now)), Ok(n) if n > 0) {
                break;
            }
        }
        let text = String::from_utf8_lossy(&self.kept);
        let line: String = text.lines().next().unwrap_or("").chars().filter(|c| !c.is_control()).collect();
        let mut end = line.len().min(LAST_WORDS_MAX);
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line[..end].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn pipe() -> (Report, std::io::PipeWriter) {
        let (reader, writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        (Report::new(reader), writer)
    }

    #[test]
    fn ready_comes_once_and_is_no_last_word() {
        let (mut report, mut writer) = pipe();
        assert_eq!(report.read(), News::Nothing);
        writer.write_all(b"ready\n").unwrap();
        assert_eq!(report.read(), News::Ready);
        writer.write_all(b"ready\n").unwrap();
        assert_eq!(report.read(), News::Nothing);
        assert_eq!(report.last_words(), "ready");
    }

    #[test]
    fn a_flood_is_bounded() {
        let (mut report, mut writer) = pipe();
        writer.write_all(&[b'x'; 60_000]).unwrap();
        while report.read() != News::Over {}
        assert_eq!(report.last_words().len(), LAST_WORDS_MAX);
        assert!(report.kept.len() <= LAST_WORDS_MAX + READY.len());
    }

    #[test]
    fn control_characters_and_further_lines_are_left_out() {
        let (mut report, mut writer) = pipe();
        writer.write_all(b"ready\nboom \x1b[31mred\x07\nmore\n").unwrap();
        assert_eq!(report.read(), News::Ready);
        assert_eq!(report.last_words(), "boom [31mred");
    }

    #[test]
    fn words_cut_within_a_character_stay_valid() {
        let (mut report, mut writer) = pipe();
        writer.write_all("é".repeat(400).as_bytes()).unwrap();
        let words = report.last_words();
        assert!(words.len() <= LAST_WORDS_MAX && !words.is_empty());
    }
}
