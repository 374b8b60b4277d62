//! The files of a VM, opened with the rights of who runs this command, for a supervisor that several users share: it opens
//! no path of theirs ([`vmsup::side`]). Also how far it is with its copies of them.

use super::client::{Api, CallError};
use super::failure::Failure;
use super::signals::Signals;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{IsTerminal, Write, stderr};
use std::os::fd::OwnedFd;
use std::path::Path;
use vmsup::api::types::{ApiError, ErrorCode, Operation, OperationState, VersionInfo};
use vmsup::guestfile::{self, Purpose};
use vmsup::side::{self, HandedOver};
use vmsup::spec::VmSpec;

/// How long it is waited until it is asked again how far an operation is, at first and at last.
const FIRST_NS: i64 = 5_000_000;
const LAST_NS: i64 = 250_000_000;

/// Opens the files of `spec` and hands them over, where the supervisor wants that. What comes back is kept until the request
/// that names its ticket was answered.
///
/// # Errors
/// A file that cannot be opened, with its field; the supervisor does not take them.
pub fn hand_over(api: &mut Api, spec: &VmSpec, purpose: Purpose) -> Result<Option<HandedOver>, CallError> {
    let files = guestfile::of(spec);
    // A supervisor of one's own opens them itself, and need not be asked.
    if files.is_empty() || api.is_own() {
        return Ok(None);
    }
    let version: VersionInfo = api.call("GET", "/v1/version")?;
    let Some(socket) = version.files else { return Ok(None) };
    let open = |file: &guestfile::GuestFile| Ok::<_, ApiError>((file.field.clone(), file.open(purpose)?.fd));
    let opened: Vec<(String, OwnedFd)> = files.iter().map(open).collect::<Result<_, _>>().map_err(CallError::Api)?;
    let handed = side::hand_over(Path::new(&socket), &opened).map_err(|error| {
        let message = format!("the VM's files could not be handed to the supervisor ({error}); try again");
        CallError::Api(ApiError { code: ErrorCode::Unavailable, message, field: None })
    })?;
    Ok(Some(handed))
}

/// Follows an operation to its end, and shows on a terminal how far it is. A signal cancels it.
///
/// # Errors
/// Why it failed, as `located` says it; the status of the signal.
pub fn follow(
    api: &mut Api,
    operation: &Operation,
    signals: Option<&Signals>,
    located: impl Fn(CallError) -> Failure,
) -> Result<(), Failure> {
    let mut shown = Shown(false);
    let target = format!("/v1/ops/{}", operation.id);
    let mut pause = FIRST_NS;
    while signals.is_some() || stderr().is_terminal() {
        let now: Operation = api.call("GET", &target)?;
        if now.state != OperationState::Running {
            break;
        }
        shown.tell(&now);
        if let Some(status) = wait(signals, pause) {
            let cancelled: Result<Operation, CallError> = api.call("DELETE", &target);
            let over = ended(api, &target)?;
            // Where it was over already, the VM runs, and whoever still wants its end says so once more.
            return if cancelled.is_ok() || over.state != OperationState::Done {
                Err(Failure::status(status))
            } else {
                Ok(())
            };
        }
        pause = (2 * pause).min(LAST_NS);
    }
    let over = ended(api, &target)?;
    drop(shown);
    match (over.state, over.error) {
        (OperationState::Done, _) => Ok(()),
        (_, Some(error)) => Err(located(CallError::Api(error))),
        (_, None) => Err(Failure::failed(format!("the start of {} was cancelled", over.vm))),
    }
}

fn ended(api: &mut Api, target: &str) -> Result<Operation, CallError> {
    api.be_patient()?;
    api.call("GET", &format!("{target}?wait=true"))
}

/// Waits for a moment; the exit status of a signal that came meanwhile.
fn wait(signals: Option<&Signals>, ns: i64) -> Option<u8> {
    let moment = Timespec { tv_sec: 0, tv_nsec: ns };
    let mut fds: Vec<PollFd<'_>> = signals.iter().map(|signals| PollFd::new(*signals, PollFlags::IN)).collect();
    let _ = poll(&mut fds, Some(&moment));
    signals.and_then(Signals::next_status)
}

/// A line on the terminal that says how far it is, where there is one.
struct Shown(bool);

impl Shown {
    fn tell(&mut self, operation: &Operation) {
        let Some(percent) = operation.percent.filter(|_| stderr().is_terminal()) else { return };
        self.0 = true;
        let name = super::sanitize::line(&operation.vm);
        // Where even that cannot be written there is nobody to tell.
        let _ = write!(stderr(), "\rvmsup: importing the files of {name}: {percent} %");
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if self.0 {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
