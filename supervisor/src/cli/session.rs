//! An attached console: bytes from the VM to stdout, from stdin to the VM, until one of them ends it.
//!
//! One thread, one `poll(2)`. Nothing here blocks anywhere else, so that a signal is heard while a reader of our output
//! or the guest stalls: output is written only where poll says that there is room, input is read only when the last of
//! it was taken.

use super::failure::{Failure, notice};
use super::keys::{Action, Keys};
use super::sanitize::Sanitizer;
use super::signals::Signals;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::io::{stdin, stdout};
use std::os::unix::net::UnixStream;

/// How much is moved at once: what a pipe that polls as writable takes without blocking (PIPE_BUF).
const PIECE: usize = 4096;

/// Something that may end the session; who runs it decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// A signal; the exit status that it stands for.
    Signal(u8),
    /// The key that stops the VM.
    StopKey,
    /// Nobody reads our output any more.
    OutputClosed,
}

/// Whether the session goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// It goes on, to the VM's end.
    Continue,
    /// It ends here.
    End,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The supervisor closed the stream: the VM has ended and this was all of its output.
    ByVm,
    /// The user left.
    Detached,
    /// An interrupt ended it.
    Interrupted(Interrupt),
}

/// What a session does beyond moving bytes.
#[derive(Debug, Default)]
pub struct Options {
    /// Forward stdin.
    pub input: bool,
    /// The keys of a raw terminal; without them all of stdin is for the guest.
    pub keys: Option<Keys>,
    /// Leave at the end of stdin.
    pub detach_on_eof: bool,
    /// Make the output harmless for a terminal.
    pub sanitizer: Option<Sanitizer>,
}

/// The session in motion.
struct Session<'a> {
    stream: &'a UnixStream,
    options: Options,
    /// Output not written yet.
    output: Vec<u8>,
    /// Input not sent yet.
    input: Vec<u8>,
    /// Stdin may still give something.
    stdin_open: bool,
    /// The stream has ended; what is left of the output goes out.
    stream_ended: bool,
    /// Nobody reads the output; it is dropped.
    discard: bool,
    detach: bool,
}

/// What poll found ready.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ready {
    Signals,
    Output,
    Stream,
    Input,
}

/// Runs a session on `stream`, of which `early` came already. `interrupted` is told of what may end it.
///
/// # Errors
/// A failure of stdin, stdout or the stream, or of `interrupted`.
pub fn run(
    stream: &UnixStream,
    early: Vec<u8>,
    options: Options,
    signals: &Signals,
    interrupted: &mut dyn FnMut(Interrupt) -> Result<Flow, Failure>,
) -> Result<Ended, Failure> {
    let stdin_open = options.input;
    let mut session = Session {
        stream,
        options,
        output: Vec::new(),
        input: Vec::new(),
        stdin_open,
        stream_ended: false,
        discard: false,
        detach: false,
    };
    session.take_output(&early);
    loop {
        // What there is goes out before anything else: mostly there is room, and a poll is saved.
        if session.is_over() {
            return Ok(if session.stream_ended { Ended::ByVm } else { Ended::Detached });
        }
        for ready in session.wait(signals)? {
            let interrupt = match ready {
                Ready::Signals => signals.next_status().map(Interrupt::Signal),
                Ready::Output => session.write_output()?,
                Ready::Stream => session.read_stream()?,
                Ready::Input => session.read_input()?,
            };
            let Some(interrupt) = interrupt else { continue };
            if interrupted(interrupt)? == Flow::End {
                return Ok(Ended::Interrupted(interrupt));
            }
        }
    }
}

impl Session<'_> {
    fn is_over(&self) -> bool {
        let flushed = self.output.is_empty() || self.discard;
        flushed && (self.stream_ended || (self.detach && self.input.is_empty()))
    }

    /// Waits for the next thing to do. An fd that nothing is wanted of is left out: poll reports a hang-up always.
    fn wait(&self, signals: &Signals) -> Result<Vec<Ready>, Failure> {
        let (stdin, stdout) = (stdin(), stdout());
        let mut fds = vec![(Ready::Signals, PollFd::new(signals, PollFlags::IN))];
        if !self.discard {
            let room = if self.output.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            fds.push((Ready::Output, PollFd::new(&stdout, room)));
        }
        let mut stream = PollFlags::empty();
        stream.set(PollFlags::IN, self.output.is_empty() && !self.stream_ended);
        stream.set(PollFlags::OUT, !self.input.is_empty() && !self.stream_ended);
        if !stream.is_empty() {
            fds.push((Ready::Stream, PollFd::new(self.stream, stream)));
        }
        if self.stdin_open && self.input.is_empty() && !self.stream_ended {
            fds.push((Ready::Input, PollFd::new(&stdin, PollFlags::IN)));
        }
        let (sources, mut polled): (Vec<Ready>, Vec<PollFd<'_>>) = fds.into_iter().unzip();
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(Failure::failed(format!("the console cannot be waited for ({e})"))),
        }
        Ok(sources.into_iter().zip(&polled).filter(|(_, fd)| !fd.revents().is_empty()).map(|(s, _)| s).collect())
    }

    fn take_output(&mut self, bytes: &[u8]) {
        if self.discard {
            return;
        }
        match &mut self.options.sanitizer {
            Some(sanitizer) => self.output.extend_from_slice(sanitizer.feed(bytes).as_bytes()),
            None => self.output.extend_from_slice(bytes),
        }
    }

    fn write_output(&mut self) -> Result<Option<Interrupt>, Failure> {
        if self.output.is_empty() {
            // Nothing was to be written, yet poll reports: the reader is gone.
            self.discard = true;
            return Ok(Some(Interrupt::OutputClosed));
        }
        let piece = &self.output[..self.output.len().min(PIECE)];
        match rustix::io::write(stdout(), piece) {
            Ok(written) => {
                self.output.drain(..written);
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(Errno::PIPE | Errno::IO) => {
                self.discard = true;
                self.output.clear();
                return Ok(Some(Interrupt::OutputClosed));
            }
            Err(e) => return Err(Failure::output(&e.into())),
        }
        Ok(None)
    }

    /// The stream is ready for one of both directions; each is tried, and neither blocks.
    fn read_stream(&mut self) -> Result<Option<Interrupt>, Failure> {
        if !self.input.is_empty() {
            match send(self.stream, &self.input, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    self.input.drain(..sent);
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                // The VM is ending; the read below sees the end of its output.
                Err(_) => {
                    self.input.clear();
                    self.stdin_open = false;
                }
            }
        }
        if !self.output.is_empty() {
            return Ok(None);
        }
        let mut piece = [0u8; PIECE];
        match recv(self.stream, piece.as_mut_slice(), RecvFlags::DONTWAIT).map(|(n, _)| n) {
            Ok(0) | Err(Errno::CONNRESET) => self.stream_ended = true,
            Ok(n) => {
                self.take_output(&piece[..n]);
                if !self.output.is_empty() {
                    // Usually there is room; where there is none, poll says when.
                    return self.write_if_room();
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(e) => return Err(Failure::failed(format!("the console was lost ({e})"))),
        }
        Ok(None)
    }

    fn write_if_room(&mut self) -> Result<Option<Interrupt>, Failure> {
        let stdout = stdout();
        let mut fds = [PollFd::new(&stdout, PollFlags::OUT)];
        match poll(&mut fds, Some(&rustix::event::Timespec::default())) {
            Ok(1..) => self.write_output(),
            _ => Ok(None),
        }
    }

    fn read_input(&mut self) -> Result<Option<Interrupt>, Failure> {
        let mut piece = [0u8; PIECE];
        let count = match rustix::io::read(stdin(), piece.as_mut_slice()) {
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(None),
            // A terminal that is gone reads as EIO.
            Err(_) => 0,
        };
        if count == 0 {
            self.stdin_open = false;
            self.detach |= self.options.detach_on_eof;
            return Ok(None);
        }
        let Some(keys) = &mut self.options.keys else {
            self.input.extend_from_slice(&piece[..count]);
            return Ok(None);
        };
        let (forward, actions) = keys.feed(&piece[..count]);
        self.input.extend(forward);
        let mut interrupt = None;
        for action in actions {
            match action {
                Action::Detach => self.detach = true,
                Action::Stop => interrupt = Some(Interrupt::StopKey),
                Action::Help => notice(keys.help()),
            }
        }
        Ok(interrupt)
    }
}
