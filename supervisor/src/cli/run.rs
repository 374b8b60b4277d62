//! `vmsup run`: start, console, wait; and nothing left behind when the user breaks it off.
//!
//! The path to the guest's first byte is the shortest there is: one connection, on which the answer to the start is
//! followed by the console from byte 0. All else (waiting for the end, stopping) comes on connections of its own, later.

use super::acts::{How, ended, rests};
use super::client::{Api, Client, vm_target};
use super::failure::{FAILED, Failure, notice};
use super::keys::Keys;
use super::sanitize::line;
use super::session::{self, Ended, Flow, Interrupt, Options};
use super::terminal;
use super::vms::{create, signals};
use std::path::Path;
use vmsup::api::types::{EndKind, VmInfo};
use vmsup::spec::Restart;
use vmsup::vmjson::SpecFile;

/// Seconds between the power button and the kill when the user breaks a run off.
const STOP_DEADLINE_S: u32 = 5;

/// `vmsup run FILE`.
pub fn run(client: &Client, file: &Path, rm: bool) -> Result<(), Failure> {
    let file = SpecFile::load(file)?;
    let wants_input = file.spec.console.as_ref().is_none_or(|c| c.input) && terminal::has_input();
    // A supervisor that must be started first is, before signals are blocked; from then on no signal can leave a VM
    // behind that was asked for.
    let api = client.connect()?;
    let signals = signals()?;
    let (api, info) = create(api, &file, rm, Some(&signals))?;
    let id = info.summary.id.clone();
    let (stream, early) = api.console(&id, true, wants_input)?;
    let keys = Keys::new(true);
    if wants_input && terminal::could_be_raw() {
        notice(&format!("console of {}: {}", info.summary.name, keys.help()));
    }
    let raw = if wants_input { terminal::Raw::enter() } else { None };
    let options = Options { input: wants_input, keys: raw.is_some().then_some(keys), ..Options::default() };
    let mut stop = Stop { client, id: &id, name: &info.summary.name, requests: Vec::new(), status: None };
    let how = session::run(&stream, early, options, &signals, &mut |interrupt| stop.interrupted(interrupt));
    drop(raw);
    if how? == Ended::Detached {
        notice(&format!("{0} goes on; its console: vmsup console {0}", info.summary.name));
        return Ok(());
    }
    match stop.status {
        // The stream's end says that the VM has ended; how is no news to who broke it off.
        Some(status) => Err(Failure::status(status)),
        None if file.spec.restart != Restart::No => first_of_many(client, &id),
        None => verdict(&outcome(client, &id)?),
    }
}

/// A run that its file has followed by others is over: the next ones have consoles of their own.
fn first_of_many(client: &Client, id: &str) -> Result<(), Failure> {
    let info: VmInfo = client.connect_again()?.call("GET", &vm_target(id, ""))?;
    if rests(info.summary.state) {
        return verdict(&info);
    }
    let end = info.summary.end.as_ref().map_or("it ended", |end| end.reason.as_str());
    let name = &info.summary.name;
    notice(&line(&format!("{name}: {end}; it is started again, as its file says; its console: vmsup console {name}")));
    Ok(())
}

/// Asks how the VM ended. The stream's end says that it has; a VM that is to be forgotten (`--rm`) is still known for a
/// while.
fn outcome(client: &Client, id: &str) -> Result<VmInfo, Failure> {
    let mut api = client.connect_again()?;
    How::Wait.ask(&mut api, id)?;
    Ok(api.answer()?)
}

/// The exit status of a run that nobody broke off, and the reason of one that failed.
fn verdict(info: &VmInfo) -> Result<(), Failure> {
    match info.summary.end.as_ref().map(|e| e.kind) {
        Some(EndKind::Shutdown | EndKind::Reset) => Ok(()),
        _ => Err(Failure { status: FAILED, sentence: Some(ended(info)) }),
    }
}

/// Breaking a run off: the first time politely, the second time not.
struct Stop<'a> {
    client: &'a Client,
    id: &'a str,
    name: &'a str,
    /// Requests under way: their connections stay open, since a request whose asker has gone may be dropped.
    requests: Vec<Api>,
    /// The exit status, once the run was broken off.
    status: Option<u8>,
}

impl Stop<'_> {
    fn interrupted(&mut self, interrupt: Interrupt) -> Result<Flow, Failure> {
        let status = match interrupt {
            Interrupt::Signal(status) => status,
            Interrupt::StopKey => 130,
            Interrupt::OutputClosed => 141,
        };
        let again = self.status.is_some();
        self.status.get_or_insert(status);
        // Who closed our output does not want to hear more.
        if interrupt != Interrupt::OutputClosed {
            notice(&match again {
                false => format!(
                    "stopping {}: its power button is pressed, and it is killed after {STOP_DEADLINE_S} s or at a second interrupt",
                    self.name
                ),
                true => format!("killing {}", self.name),
            });
        }
        let how = if again { How::Kill } else { How::Stop(STOP_DEADLINE_S) };
        let mut api = self.client.connect_again()?;
        how.ask(&mut api, self.id)?;
        self.requests.push(api);
        Ok(Flow::Continue)
    }
}
