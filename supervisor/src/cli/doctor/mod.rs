//! `vmsup doctor`: what this host can do, what is in the way, why it matters, and what mends it.
//!
//! Starts no supervisor and changes nothing; needs no root, and says so where only root could tell. Each check is a function of
//! what was read, so that a test can show it broken; reading is bounded in size and time.

mod ids;
mod install;
mod isolation;
mod jail;
mod kernel;
mod kvm;
mod limits;
mod line;
mod network;
mod places;
mod read;
mod render;
mod supervisor;
mod units;
mod user;

use super::client::Client;
use super::failure::{FAILED, Failure};
use super::output::{print, print_json};
use ids::{Group, Id};
use line::{Line, State};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use supervisor::Supervisor;
use user::User;

/// How long all of it may take: longer than any answer that is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// All lines, in the order of [`Id::ALL`].
#[derive(Debug)]
struct Report {
    lines: Vec<Line>,
}

/// A line as `--json` prints it.
#[derive(Debug, Serialize)]
struct Row<'a> {
    id: &'static str,
    group: &'static str,
    state: State,
    found: &'a str,
    why: &'a str,
    mend: &'a str,
}

impl Report {
    /// VMs can be started, those with networks too.
    fn ok(&self) -> bool {
        self.lines.iter().all(|line| line.state != State::Failure)
    }

    fn rows(&self) -> Vec<Row<'_>> {
        self.lines.iter().map(Row::from).collect()
    }
}

impl<'a> From<&'a Line> for Row<'a> {
    fn from(line: &'a Line) -> Self {
        let Line { id, state, found, why, mend } = line;
        Row { id: id.name(), group: id.group().name(), state: *state, found, why, mend }
    }
}

/// `vmsup doctor`.
pub fn doctor(client: &Client, json: bool) -> Result<(), Failure> {
    // Others need its answer, which is waited for a bounded time.
    let supervisor = supervisor::ask(client);
    let host = Arc::new(Host { user: User::current(), supervisor, socket: client.socket().to_owned() });
    // All at the same time.
    let begin_on = |(ids, look): (Vec<Id>, Look)| {
        let host = host.clone();
        begin(ids, move || look(&host))
    };
    let begun: Vec<Begun> = looks().into_iter().map(begin_on).collect();
    let until = Instant::now() + PATIENCE;
    let report = Report { lines: begun.into_iter().flat_map(|one| finish(one, until)).collect() };
    if json {
        print_json(&report.rows())?;
    } else {
        print(render::render(&report, render::Page::of_stdout()))?;
    }
    if report.ok() { Ok(()) } else { Err(Failure::status(FAILED)) }
}

/// What several looks need.
#[derive(Debug)]
struct Host {
    user: User,
    supervisor: Supervisor,
    /// The supervisor's.
    socket: PathBuf,
}

/// Reads, and judges what was read.
type Look = fn(&Host) -> Vec<Line>;

/// All that is looked at. What could hang for a reason of its own is a look of its own.
fn looks() -> Vec<(Vec<Id>, Look)> {
    let of = |group: Group| Id::ALL.iter().copied().filter(|id| id.group() == group).collect();
    vec![
        (of(Group::Kernel), |_| kernel::lines(&kernel::Facts::read())),
        (of(Group::Kvm), |host| kvm::lines(&kvm::Facts::read(), &host.user)),
        (of(Group::Jail), |host| jail::lines(&host.user, &host.supervisor)),
        (of(Group::Isolation), |_| isolation::lines(&isolation::Facts::read())),
        (of(Group::Limits), |_| limits::lines(&limits::Facts::read())),
        (vec![Id::User, Id::Programs], |host| install::lines(&host.user)),
        (vec![Id::Supervisor, Id::State], |host| supervisor::lines(&host.supervisor, &host.socket)),
        (vec![Id::Units], |_| vec![units::line(&units::Facts::read())]),
        (vec![Id::RuntimeDirectory], |host| vec![places::runtime(&places::Runtime::read(&host.user), &host.user)]),
        (vec![Id::StateDirectory], |host| vec![places::state(&places::State::read(), &host.user)]),
        (of(Group::Network), |host| network::lines(&host.user)),
    ]
}

/// A look under way: what at, and what comes of it.
type Begun = (Vec<Id>, mpsc::Receiver<Vec<Line>>);

fn begin(ids: Vec<Id>, look: impl FnOnce() -> Vec<Line> + Send + 'static) -> Begun {
    let (done, lines) = mpsc::sync_channel(1);
    std::thread::spawn(move || drop(done.send(look())));
    (ids, lines)
}

/// What came of it by then. What hangs (a file system whose server is gone) is left to itself, and said to be unknown.
fn finish((ids, lines): Begun, until: Instant) -> Vec<Line> {
    let left = until.saturating_duration_since(Instant::now());
    lines.recv_timeout(left).unwrap_or_else(|_| ids.into_iter().map(hangs).collect())
}

fn hangs(id: Id) -> Line {
    Line::unknown(
        id,
        format!("could not be looked at within {} s", PATIENCE.as_secs()),
        "what it is read from does not answer (a file system whose server is gone, a service manager)",
        "look for what hangs: ps -eo pid,stat,wchan:20,cmd | grep ' D'",
    )
}

#[cfg(test)]
mod tests {
    use super::line::assert_line;
    use super::*;

    #[test]
    fn a_look_that_hangs_is_said_to_be_unknown_and_holds_up_no_other() {
        let (_never, silence) = mpsc::channel::<()>();
        let hung = begin(vec![Id::Netd, Id::Nft], move || {
            let _ = silence.recv();
            Vec::new()
        });
        let good = begin(vec![Id::Kvm], || vec![Line::ok(Id::Kvm, "good")]);
        let lines = finish(hung, Instant::now());
        assert_eq!(lines.iter().map(|line| line.id).collect::<Vec<_>>(), [Id::Netd, Id::Nft]);
        assert_line(&lines[0], State::Unknown, "ps -eo");
        assert_eq!(finish(good, Instant::now() + PATIENCE), [Line::ok(Id::Kvm, "good")]);
    }

    #[test]
    fn a_report_is_an_array_of_objects_for_programs() {
        let good = Report { lines: vec![Line::ok(Id::Kvm, "good")] };
        let bad = Report { lines: vec![Line::failure(Id::Netd, "bad", "it matters", "mend it")] };
        let unknown = Report { lines: vec![Line::unknown(Id::Netd, "who knows", "it matters", "ask root")] };
        assert_eq!((good.ok(), bad.ok(), unknown.ok()), (true, false, true));
        assert_eq!(
            serde_json::to_value(bad.rows()).unwrap(),
            serde_json::json!([{
                "id": "netd", "group": "network", "state": "failure", "found": "bad", "why": "it matters", "mend": "mend it"
            }])
        );
        let refused = Line::warning(Id::Kvm, std::io::Error::from_raw_os_error(13).to_string(), "a", "b");
        assert_eq!(refused.found, "Permission denied");
    }
}
