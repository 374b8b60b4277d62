//! Starting this user's supervisor in the background, for a command that found none.

use super::failure::{ALREADY_SERVED, Failure, notice};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What `vmsup serve --background` writes to its stdout once its socket accepts.
pub const READY: &[u8] = b"ready\n";
/// How long a supervisor may take until then.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long the winner of two that were started at once may take until its socket accepts.
const RACE_LIMIT: Duration = Duration::from_secs(10);
/// The most of its error message that is repeated, bytes.
const MESSAGE_MAX: u64 = 2000;

/// Starts `vmsup serve --background` and returns once it accepts connections, or once another one does that was
/// started at the same time (`reachable` tells).
///
/// # Errors
/// What the supervisor said when it gave up.
pub fn start(reachable: impl Fn() -> bool) -> Result<(), Failure> {
    let failed =
        |what: &str, e: &std::io::Error| Failure::failed(format!("a supervisor cannot be started: {what} ({e})"));
    let program = std::env::current_exe().map_err(|e| failed("/proc/self/exe cannot be read", &e))?;
    // Not a process group of its own here: it makes itself a session, which the leader of a group could not.
    let mut child = Command::new(program)
        .args(["serve", "--background"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed("the program does not run", &e))?;
    if is_ready(&mut child) {
        let uid = rustix::process::getuid().as_raw();
        notice(&format!("started a supervisor for uid {uid} (log: {})", vmsup::paths::log_file().display()));
        return Ok(());
    }
    // Its stdout is closed without a word: it is leaving, or hangs and is not waited for.
    let said = last_words(&mut child);
    if child.wait().is_ok_and(|status| status.code() == Some(i32::from(ALREADY_SERVED))) {
        return other_wins(reachable);
    }
    Err(Failure::failed(match said.as_str() {
        "" => format!("a supervisor was started and left without a word; see {}", vmsup::paths::log_file().display()),
        said => said.to_owned(),
    }))
}

/// Waits for the line on the child's stdout; its end means that there will be none.
fn is_ready(child: &mut Child) -> bool {
    let Some(stdout) = child.stdout.as_mut() else { return false };
    let deadline = Instant::now() + START_LIMIT;
    let mut seen = Vec::new();
    while seen.len() < READY.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::new(&*stdout, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(0) | Err(_) => {
                // Neither ready nor gone: a supervisor that hangs helps nobody.
                let _ = child.kill();
                return false;
            }
            Ok(_) => {}
        }
        let mut byte = [0u8; 64];
        match stdout.read(&mut byte) {
            Ok(0) | Err(_) => return false,
            Ok(n) => seen.extend_from_slice(&byte[..n]),
        }
    }
    seen.starts_with(READY)
}

/// What it wrote to stderr, as one sentence without the program's name.
fn last_words(child: &mut Child) -> String {
    let mut text = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // Bounded, and its end comes: who closed stdout without a word is leaving.
        let _ = stderr.take(MESSAGE_MAX).read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    let last = text.lines().rfind(|l| !l.trim().is_empty()).unwrap_or_default();
    last.strip_prefix("vmsup: ").unwrap_or(last).trim().to_owned()
}

/// Two commands at once started one each; the other one holds the directory and is about to listen.
fn other_wins(reachable: impl Fn() -> bool) -> Result<(), Failure> {
    let deadline = Instant::now() + RACE_LIMIT;
    while !reachable() {
        if Instant::now() >= deadline {
            return Err(Failure::failed(format!(
                "another supervisor holds {} and does not answer; see {}",
                vmsup::paths::runtime_dir().display(),
                vmsup::paths::log_file().display()
            )));
        }
        // There is nothing to wait on: the socket's file comes before its listen(2).
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
