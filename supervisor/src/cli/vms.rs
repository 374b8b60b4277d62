//! The commands that show VMs: list, output, console.

use super::client::{Api, CallError, Client, status_of, vm_target};
use super::failure::{Failure, notice};
use super::output::{age, mib, now, print, print_json, table};
use super::owners::Owners;
use super::sanitize::Sanitizer;
use super::session::{self, Ended, Flow, Interrupt, Options};
use super::signals::Signals;
use super::{files, keys::Keys, net, terminal};
use std::io::IsTerminal;
use vmsup::api::types::{ApiError, CreateRequest, HealthState, Operation, VmInfo, VmState, VmSummary};
use vmsup::guestfile::Purpose;
use vmsup::vmjson::SpecFile;

/// Asks for a VM, and gives the connection back for more. While its files are imported, `signals` break that off.
pub fn create(mut api: Api, file: &SpecFile, rm: bool, signals: Option<&Signals>) -> Result<(Api, VmInfo), Failure> {
    let located = |error: CallError| match error {
        CallError::Api(ApiError { field: Some(field), message, code }) => {
            Failure { status: status_of(code), sentence: Some(file.error(&field, message).to_string()) }
        }
        error => Failure::from(error),
    };
    let purpose = if rm { Purpose::Use } else { Purpose::Copy };
    let handed = files::hand_over(&mut api, &file.spec, purpose).map_err(located)?;
    let ticket = handed.as_ref().map(|handed| handed.ticket.clone());
    let request = CreateRequest { spec: file.spec.clone(), remove_when_ended: rm, source: None, files: ticket };
    let info: VmInfo = if handed.is_some() && !rm {
        api.ask("POST", "/v1/vms?wait=false", Some(&request))?;
        let begun: Operation = api.answer().map_err(located)?;
        files::follow(&mut api, &begun, signals, located)?;
        api.call("GET", &vm_target(&begun.vm, ""))?
    } else {
        api.ask("POST", "/v1/vms", Some(&request))?;
        api.answer().map_err(located)?
    };
    note_limits(&info);
    Ok((api, info))
}

/// Says where limits are not held. Only best-effort ones can be left so; whoever wrote them down should know.
pub fn note_limits(info: &VmInfo) {
    if let Some(reason) = info.worker.as_ref().and_then(|worker| worker.limits.strip_prefix("not held: ")) {
        notice(&format!("the limits of {} are not held: {reason}", info.summary.name));
    }
}

/// `vmsup ls`.
pub fn ls(client: &Client, json: bool) -> Result<(), Failure> {
    let vms: Vec<VmSummary> = client.connect()?.call("GET", "/v1/vms")?;
    if json {
        return print_json(&vms);
    }
    let (now, owners) = (now(), Owners::read());
    // Most VMs have neither.
    let restarts = vms.iter().any(|vm| vm.restarts > 0);
    let health = vms.iter().any(|vm| vm.health.is_some());
    let mut head = vec!["NAME", "STATE", "PID", "CPUS", "MEMORY", "OWNER", "AGE", "ID", "NET"];
    head.extend(restarts.then_some("RESTARTS"));
    head.extend(health.then_some("HEALTH"));
    head.push("END");
    let rows: Vec<Vec<String>> = vms.iter().map(|vm| row(vm, &owners, now, restarts, health)).collect();
    print(table(&head, &rows))
}

fn row(vm: &VmSummary, owners: &Owners, now: u64, restarts: bool, health: bool) -> Vec<String> {
    let dash = || "-".to_owned();
    let mut cells = vec![
        vm.name.clone(),
        state(vm.state).into(),
        vm.pid.map_or_else(dash, |p| p.to_string()),
        vm.cpus.to_string(),
        mib(vm.memory_mib),
        owners.name(vm.owner),
        vm.started_at.map_or_else(dash, |at| age(now.saturating_sub(at))),
        vm.id.clone(),
        net::joined(vm.nets.iter().map(net::brief), ", "),
    ];
    cells.extend(restarts.then(|| vm.restarts.to_string()));
    cells.extend(health.then(|| vm.health.as_ref().map_or_else(dash, self::health)));
    cells.push(vm.end.as_ref().map(|e| e.reason.clone()).unwrap_or_default());
    cells
}

/// How a VM is, as tables have it.
pub fn health(health: &HealthState) -> String {
    match health {
        HealthState::Starting => "starting".into(),
        HealthState::Healthy => "healthy".into(),
        HealthState::Unhealthy(why) => format!("unhealthy: {why}"),
        HealthState::Hung(why) => format!("hung: {why}"),
        HealthState::Unknown(why) => format!("unknown: {why}"),
    }
}

/// A state, as tables have it.
pub fn state(state: VmState) -> &'static str {
    match state {
        VmState::Starting => "starting",
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::Restarting => "restarting",
        VmState::Stopping => "stopping",
        VmState::Stopped => "stopped",
        VmState::Crashed => "crashed",
    }
}

/// `vmsup logs VM`.
pub fn logs(client: &Client, vm: &str, follow: bool, raw: bool) -> Result<(), Failure> {
    let harmless = !raw && std::io::stdout().is_terminal();
    if follow {
        let api = client.connect()?;
        let signals = signals()?;
        let (stream, early) = api.console(vm, true, false)?;
        let options = Options { sanitizer: harmless.then(Sanitizer::default), ..Options::default() };
        let ended = session::run(&stream, early, options, &signals, &mut |_| Ok(Flow::End))?;
        return left(ended);
    }
    let response = client.connect()?.raw("GET", &vm_target(vm, "/logs"))?;
    let lost = response.header("vmsup-overwritten").and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
    if lost > 0 {
        notice(&format!("the first {lost} bytes of {vm}'s console are no longer kept"));
    }
    if harmless { print(Sanitizer::default().feed(&response.body)) } else { print(&response.body) }
}

/// What `vmsup console` was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Attach {
    /// Leave at the end of stdin.
    pub detach_on_eof: bool,
    /// Begin with what is kept.
    pub history: bool,
    /// Forward stdin.
    pub input: bool,
}

/// `vmsup console VM`.
pub fn console(client: &Client, vm: &str, how: Attach) -> Result<(), Failure> {
    let input = how.input && terminal::has_input();
    let api = client.connect()?;
    let signals = signals()?;
    let (stream, early) = api.console(vm, how.history, input)?;
    let keys = Keys::new(false);
    if input && terminal::could_be_raw() {
        notice(&format!("console of {vm}: {}", keys.help()));
    }
    let raw = if input { terminal::Raw::enter() } else { None };
    let options =
        Options { input, keys: raw.is_some().then_some(keys), detach_on_eof: how.detach_on_eof, sanitizer: None };
    let ended = session::run(&stream, early, options, &signals, &mut |_| Ok(Flow::End))?;
    if raw.is_some() {
        drop(raw);
        let what = if ended == Ended::ByVm { "has ended" } else { "goes on" };
        notice(&format!("left the console of {vm}, which {what}"));
    }
    left(ended)
}

/// Blocks the signals that end a session.
pub fn signals() -> Result<Signals, Failure> {
    Signals::block().map_err(|e| Failure::failed(format!("signals cannot be received ({e})")))
}

/// The end of a session that leaves its VM alone.
fn left(ended: Ended) -> Result<(), Failure> {
    match ended {
        Ended::ByVm | Ended::Detached => Ok(()),
        Ended::Interrupted(Interrupt::Signal(status)) => Err(Failure::status(status)),
        Ended::Interrupted(_) => Err(Failure::output(&std::io::ErrorKind::BrokenPipe.into())),
    }
}
