//! The supervisor that runs, asked: its release, its jailer, its durable state.

use super::ids::Id;
use super::line::Line;
use super::read::within;
use crate::cli::client::{Client, Lines};
use crate::cli::documents::VERSION;
use crate::cli::failure::Failure;
use std::io;
use std::path::Path;
use std::time::Duration;
use vmsup::api::types::{Event, EventKind, VersionInfo};

/// How long it may take for its answers, which take it a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// The metric that tells of its durable state.
const TROUBLE: &str = "vmsup_state_trouble";

/// What it says.
#[derive(Debug)]
pub struct Answer {
    /// Who it is.
    pub version: VersionInfo,
    /// Its durable state cannot be written (why), if it tells.
    pub trouble: Option<Result<(), String>>,
}

/// What it says, or why it does not.
pub type Supervisor = io::Result<Answer>;

/// Asks the supervisor, where one is.
pub fn ask(client: &Client) -> Supervisor {
    let client = client.clone();
    within(PATIENCE, move || answer(&client)).unwrap_or_else(|| {
        let silent = format!("it does not answer within {} s", PATIENCE.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, silent))
    })
}

fn answer(client: &Client) -> Supervisor {
    let mut api = client.try_connect()?;
    let version: VersionInfo =
        api.call("GET", "/v1/version").map_err(|e| io::Error::other(Failure::from(e).sentence.unwrap_or_default()))?;
    // It goes into a command to be copied, where -1 and 1 mean something else than a supervisor.
    if version.pid <= 1 {
        return Err(io::Error::other(format!("it says that it is process {}", version.pid)));
    }
    let metrics = api.raw("GET", "/metrics").ok().map(|response| String::from_utf8_lossy(&response.body).into_owned());
    let trouble = metrics.and_then(|text| {
        let value = text.lines().find_map(|line| line.strip_prefix(TROUBLE)?.strip_prefix(' '))?.trim().to_owned();
        Some(if value == "0" { Ok(()) } else { Err(cause(client).unwrap_or_else(|| "its log says why".into())) })
    });
    Ok(Answer { version, trouble })
}

/// What the last event of trouble says.
fn cause(client: &Client) -> Option<String> {
    let mut events: Lines = client.try_connect().ok()?.lines("/v1/events").ok()?;
    let mut last = None;
    while let Ok(Some(event)) = events.next::<Event>() {
        if event.kind == EventKind::StateTrouble {
            last = Some(event.cause);
        }
    }
    last
}

/// All lines of this file.
pub fn lines(supervisor: &Supervisor, socket: &Path) -> Vec<Line> {
    vec![running(supervisor, socket), state(supervisor)]
}

fn running(supervisor: &Supervisor, socket: &Path) -> Line {
    const ID: Id = Id::Supervisor;
    let socket = vmsup::vmjson::check::escaped_path(socket);
    match supervisor.as_ref().map(|answer| &answer.version) {
        Ok(info) if info.version != VERSION => Line::warning(
            ID,
            format!("one of release {} runs (pid {}), and this is {VERSION}", info.version, info.pid),
            "requests of this release may be refused",
            format!("kill {} (its VMs go on); the next command starts one of this release", info.pid),
        ),
        Ok(info) => match info.jailer.pid {
            None => Line::failure(
                ID,
                format!("runs (pid {}), but its jailer is gone", info.pid),
                "it cannot start another VM; the running ones go on",
                format!("kill {} (its VMs go on); the next command starts a supervisor with a jailer", info.pid),
            ),
            Some(jailer) => {
                let uids = match info.jailer.uids.as_str() {
                    "subordinate" => "each VM has a uid of its own",
                    _ => "all VMs have your uid",
                };
                let (pid, pool) = (info.pid, info.jailer.pool);
                Line::ok(ID, format!("answers on {socket} (pid {pid}, jailer {jailer}); {uids}; {pool} warm workers"))
            }
        },
        Err(e) if is_absent(e) => Line::ok(ID, "none runs; the next command starts one"),
        Err(e) => Line::failure(
            ID,
            format!("cannot be reached on {socket} ({e})"),
            "all commands about VMs go through it",
            format!("see {}, then end it (its VMs go on) and try again", vmsup::paths::log_file().display()),
        ),
    }
}

/// Nobody listens.
pub fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// What it says of its database.
fn state(supervisor: &Supervisor) -> Line {
    const ID: Id = Id::State;
    const WHY: &str = "what VMs are is in the state: what cannot be written is forgotten with this supervisor, and who asked for it is \
                       told so";
    match supervisor.as_ref().map(|answer| &answer.trouble) {
        Ok(Some(Ok(()))) => Line::ok(ID, "the supervisor writes what its VMs are"),
        Ok(Some(Err(why))) => Line::warning(
            ID,
            format!("the supervisor cannot write what its VMs are: {why}"),
            WHY,
            "make room or give the directory back (see state-directory); it is tried again with the next change",
        ),
        Ok(None) => {
            let found = format!("the supervisor does not tell ({TROUBLE} in its metrics)");
            Line::unknown(ID, found, WHY, "vmsup version tells which release it is; vmsup events tells of trouble")
        }
        Err(e) if is_absent(e) => Line::ok(ID, "no supervisor runs that would have it open"),
        Err(_) => Line::unknown(ID, "the supervisor does not tell", WHY, "see what is said of it (supervisor)"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::State::{Failure, Ok as Fine, Unknown, Warning};
    use super::super::line::assert_line;
    use super::*;

    fn answers(version: &str, jailer: Option<i32>) -> Answer {
        let jailer = vmsup::api::types::JailerInfo {
            pid: jailer,
            uids: "own".into(),
            cgroup: None,
            cgroup_reason: None,
            pool: 2,
        };
        let version = VersionInfo { version: version.into(), pid: 7, uid: 1000, files: None, jailer };
        Answer { version, trouble: Some(Ok(())) }
    }

    #[test]
    fn a_supervisor_is_judged_by_its_answer() {
        let judge = |answer: Supervisor| running(&answer, Path::new("/s"));
        let good = judge(Ok(answers(VERSION, Some(8))));
        assert_line(&good, Fine, "");
        assert!(good.found.contains("pid 7, jailer 8"), "{good:?}");
        assert_line(&judge(Ok(answers("0.0.1", Some(8)))), Warning, "kill 7 ");
        assert_line(&judge(Ok(answers(VERSION, None))), Failure, "kill 7 ");
        assert_line(&judge(Err(io::ErrorKind::NotFound.into())), Fine, "");
        assert_line(&judge(Err(io::ErrorKind::ConnectionRefused.into())), Fine, "");
        assert_line(&judge(Err(io::ErrorKind::PermissionDenied.into())), Failure, "supervisor.log");
        assert_line(&judge(Err(io::ErrorKind::TimedOut.into())), Failure, "supervisor.log");
    }

    #[test]
    fn a_state_that_cannot_be_written_is_a_warning() {
        let judge = |trouble| state(&Ok(Answer { trouble, ..answers(VERSION, Some(8)) }));
        assert_line(&judge(Some(Ok(()))), Fine, "");
        let full = judge(Some(Err("the disk is full".into())));
        assert_line(&full, Warning, "make room");
        assert!(full.found.contains("the disk is full"), "{full:?}");
        assert_line(&judge(None), Unknown, "vmsup version");
        assert_line(&state(&Err(io::ErrorKind::NotFound.into())), Fine, "");
        assert_line(&state(&Err(io::ErrorKind::TimedOut.into())), Unknown, "supervisor");
    }
}
