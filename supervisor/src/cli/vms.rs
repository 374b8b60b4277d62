//! The commands about VMs that are one request each.

use super::client::{Api, CallError, Client, status_of, vm_target};
use super::failure::{FAILED, Failure, notice};
use super::output::{age, mib, now, print, print_json, table};
use super::sanitize::{Sanitizer, line};
use super::session::{self, Ended, Flow, Interrupt, Options};
use super::signals::Signals;
use super::{keys::Keys, net, terminal};
use std::io::IsTerminal;
use vmsup::api::types::{ApiError, CreateRequest, StopRequest, VmInfo, VmState, VmSummary};
use vmsup::vmjson::SpecFile;

/// `vmsup start FILE`.
pub fn start(client: &Client, file: &std::path::Path, json: bool) -> Result<(), Failure> {
    let file = SpecFile::load(file)?;
    let (_, info) = create(client.connect()?, &file, false)?;
    if json {
        return print_json(&info);
    }
    let (name, id) = (line(&info.summary.name), line(&info.summary.id));
    print(format!("{name} started (id {id}); its console: vmsup console {name}\n"))
}

/// Asks for a VM, and gives the connection back for more.
pub fn create(mut api: Api, file: &SpecFile, rm: bool) -> Result<(Api, VmInfo), Failure> {
    let request = CreateRequest { spec: file.spec.clone(), remove_when_ended: rm, source: None };
    let located = |error: CallError| match error {
        CallError::Api(ApiError { field: Some(field), message, code }) => {
            Failure { status: status_of(code), sentence: Some(file.error(&field, message).to_string()) }
        }
        error => Failure::from(error),
    };
    api.ask("POST", "/v1/vms", Some(&request))?;
    let info: VmInfo = api.answer().map_err(located)?;
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
    let now = now();
    let rows: Vec<Vec<String>> = vms.iter().map(|vm| row(vm, now)).collect();
    print(table(&["NAME", "STATE", "PID", "CPUS", "MEMORY", "OWNER", "AGE", "ID", "NET", "END"], &rows))
}

fn row(vm: &VmSummary, now: u64) -> Vec<String> {
    let dash = || "-".to_owned();
    vec![
        vm.name.clone(),
        state(vm.state).into(),
        vm.pid.map_or_else(dash, |p| p.to_string()),
        vm.cpus.to_string(),
        mib(vm.memory_mib),
        vm.owner.to_string(),
        vm.started_at.map_or_else(dash, |at| age(now.saturating_sub(at))),
        vm.id.clone(),
        net::joined(vm.nets.iter().map(net::brief), ", "),
        vm.end.as_ref().map(|e| e.reason.clone()).unwrap_or_default(),
    ]
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

/// `vmsup stop VM`, `vmsup kill VM` and `vmsup wait VM`: they are answered when the VM has ended.
pub fn end(client: &Client, vm: &str, how: How, json: bool) -> Result<(), Failure> {
    let mut api = client.connect()?;
    api.be_patient()?;
    how.ask(&mut api, vm)?;
    let info: VmInfo = api.answer()?;
    let failed = how == How::Wait && info.summary.end.as_ref().is_some_and(|e| !e.kind.is_clean());
    if json {
        print_json(&info)?;
    } else {
        print(format!("{}\n", line(&ended(&info))))?;
    }
    if failed { Err(Failure::status(FAILED)) } else { Ok(()) }
}

/// A way to a VM's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Power button, and a kill after so many seconds.
    Stop(u32),
    /// At once.
    Kill,
    /// By itself.
    Wait,
}

impl How {
    /// Sends the request; its answer is a [`VmInfo`], once the VM has ended.
    ///
    /// # Errors
    /// The supervisor is gone.
    pub fn ask(self, api: &mut Api, vm: &str) -> Result<(), CallError> {
        match self {
            How::Stop(deadline_s) => api.ask("POST", &vm_target(vm, "/stop"), Some(&StopRequest { deadline_s })),
            How::Kill => api.ask("POST", &vm_target(vm, "/kill"), None::<&()>),
            How::Wait => api.ask("GET", &vm_target(vm, "/wait"), None::<&()>),
        }
    }
}

/// How a VM ended, in one sentence without a final full stop.
pub fn ended(info: &VmInfo) -> String {
    let name = &info.summary.name;
    match &info.summary.end {
        Some(end) => format!("{name}: {}", end.reason.trim_end_matches('.')),
        None => format!("{name}: {}", state(info.summary.state)),
    }
}

/// `vmsup rm VM`.
pub fn rm(client: &Client, vm: &str, force: bool) -> Result<(), Failure> {
    let mut api = client.connect()?;
    if force {
        let info: VmInfo = api.call("GET", &vm_target(vm, ""))?;
        if info.summary.end.is_none() {
            How::Kill.ask(&mut api, vm)?;
            let _: VmInfo = api.answer()?;
        }
    }
    api.raw("DELETE", &vm_target(vm, ""))?;
    Ok(())
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
