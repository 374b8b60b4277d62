//! Reading what is there, bounded in size and time: a doctor that hangs helps nobody.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The most of a file that is read: /proc/cpuinfo of a large host has a few hundred KiB.
const FILE_MAX: u64 = 1 << 20;
/// The most that a program may say.
const SAID_MAX: u64 = 64 << 10;
/// How long a program may take to say it; what is asked takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// A file's text without the blanks around it; `None` where it cannot be read.
pub fn read(path: impl AsRef<Path>) -> Option<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(FILE_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// The number in a file.
pub fn number(path: impl AsRef<Path>) -> Option<u64> {
    read(path)?.parse().ok()
}

/// The names in a directory, sorted; empty where it cannot be read.
pub fn names(dir: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Where a program is: in one of `first`, else in PATH.
pub fn program(name: &str, first: &[&str]) -> Option<PathBuf> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let mut places = first.iter().map(PathBuf::from).chain(std::env::split_paths(&search));
    places.find_map(|dir| Some(dir.join(name)).filter(|path| path.is_file()))
}

/// What a program says on its standard output until it ends. One that takes too long is killed.
///
/// # Errors
/// A sentence's end: why there is no answer.
pub fn say(command: &mut Command) -> Result<String, String> {
    say_within(PATIENCE, command)
}

fn say_within(patience: Duration, command: &mut Command) -> Result<String, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|e| format!("it does not run ({e})"))?;
    let stdout = child.stdout.take();
    let said = within(patience, move || {
        let mut bytes = Vec::new();
        let _ = stdout.map(|stdout| stdout.take(SAID_MAX).read_to_end(&mut bytes));
        bytes
    });
    // Whoever closed its standard output or said too much has nothing more to say.
    let _ = child.kill();
    let _ = within(patience, move || child.wait());
    let said = said.ok_or_else(|| format!("it does not answer within {} s", patience.as_secs()))?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// What `work` comes to, where it does so in time. Work that hangs (a file system whose server is gone) is left to itself: it
/// ends with this process.
pub fn within<T: Send + 'static>(patience: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = mpsc::sync_channel(1);
    std::thread::spawn(move || drop(done.send(work())));
    result.recv_timeout(patience).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_end_is_read_up_to_the_bound() {
        assert_eq!(read("/dev/zero").map(|text| text.len() as u64), Some(FILE_MAX));
        assert_eq!(read("/no/such/file"), None);
    }

    #[test]
    fn a_program_is_heard_and_one_that_hangs_or_never_stops_talking_is_ended() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        assert_eq!(say(&mut shell("echo said; echo complaint >&2")), Ok("said\n".into()));
        assert_eq!(say(&mut shell("yes")).map(|text| text.len() as u64), Ok(SAID_MAX));
        let hangs = say_within(Duration::ZERO, &mut shell("exec sleep 1000"));
        assert_eq!(hangs, Err("it does not answer within 0 s".into()));
        assert!(say(&mut Command::new("/no/such/program")).unwrap_err().starts_with("it does not run ("));
    }

    #[test]
    fn work_that_hangs_is_left_behind() {
        let (_never, silence) = mpsc::channel::<()>();
        assert_eq!(within(Duration::ZERO, move || silence.recv()), None);
        assert_eq!(within(Duration::from_secs(60), || 7), Some(7));
    }
}
