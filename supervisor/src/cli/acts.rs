//! The commands that move VMs from one state to another: start, stop, kill, pause, resume, wait, rm.
//!
//! Several VMs are asked side by side, so that the time that each has runs for all at once. One that cannot be moved costs
//! the others nothing: what is wrong is said, and the exit status is 1.

use super::args::Vms;
use super::client::{Api, CallError, Client, vm_target};
use super::failure::{FAILED, Failure, notice};
use super::output::{print, print_json};
use super::sanitize::line;
use super::vms::{create, note_limits, state};
use std::path::Path;
use vmsup::api::types::{ErrorCode, StopRequest, VersionInfo, VmInfo, VmState, VmSummary};
use vmsup::vmjson::{SpecFile, check};

/// How many VMs are asked at the same time; the supervisor has room for more connections than that.
const TOGETHER: usize = 16;

/// `vmsup start FILE` and `vmsup start VM`.
pub fn start(client: &Client, what: &str, json: bool) -> Result<(), Failure> {
    let info = if is_name(what) {
        let mut api = client.connect()?;
        let info: VmInfo = api.call("POST", &vm_target(what, "/start")).map_err(|error| neither(error, what))?;
        note_limits(&info);
        info
    } else {
        let file = SpecFile::load(Path::new(what))?;
        create(client.connect()?, &file, false, None)?.1
    };
    if json {
        return print_json(&info);
    }
    let (name, id) = (line(&info.summary.name), line(&info.summary.id));
    print(format!("{name} started (id {id}); its console: vmsup console {name}\n"))
}

/// A VM's name or id, and no file's: there is no such file, and it does not look like one.
fn is_name(what: &str) -> bool {
    let path = Path::new(what);
    !what.contains('/')
        && !what.ends_with(".json")
        && (!path.exists() || path.is_dir())
        && check::check_name(what).is_ok()
}

fn neither(error: CallError, what: &str) -> Failure {
    match error {
        CallError::Api(error) if error.code == ErrorCode::NotFound => {
            Failure::failed(format!("there is neither a VM nor a file named {what}; vmsup ls shows the VMs"))
        }
        error => error.into(),
    }
}

/// A way to a VM's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Power button, and a kill after so many seconds.
    Stop(u32),
    /// The same, because the host goes down.
    StopForShutdown(u32),
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
            How::Stop(deadline_s) | How::StopForShutdown(deadline_s) => {
                let for_shutdown = matches!(self, How::StopForShutdown(_));
                api.ask("POST", &vm_target(vm, "/stop"), Some(&StopRequest { deadline_s, for_shutdown }))
            }
            How::Kill => api.ask("POST", &vm_target(vm, "/kill"), None::<&()>),
            How::Wait => api.ask("GET", &vm_target(vm, "/wait"), None::<&()>),
        }
    }
}

/// True where nothing of a VM runs and nothing will by itself.
pub fn rests(state: VmState) -> bool {
    matches!(state, VmState::Stopped | VmState::Crashed)
}

/// `vmsup wait VM`.
pub fn wait(client: &Client, vm: &str, json: bool) -> Result<(), Failure> {
    let mut api = client.connect()?;
    api.be_patient()?;
    How::Wait.ask(&mut api, vm)?;
    let info: VmInfo = api.answer()?;
    if json {
        print_json(&info)?;
    } else {
        print(format!("{}\n", line(&ended(&info))))?;
    }
    match &info.summary.end {
        Some(end) if !end.kind.is_clean() => Err(Failure::status(FAILED)),
        _ => Ok(()),
    }
}

/// `vmsup stop VM…` and `vmsup kill VM…`: they are answered when the VMs have ended.
pub fn end(client: &Client, vms: &Vms, how: How, json: bool) -> Result<(), Failure> {
    let ask = |api: &mut Api, vm: &str| how.ask(api, vm);
    let chosen = chosen(client, vms, |vm| !rests(vm.state))?;
    told(each(client, &chosen, ask, Api::answer)?, vms, json, |info| line(&ended(info)))
}

/// `vmsup pause VM…`
pub fn pause(client: &Client, vms: &Vms, json: bool) -> Result<(), Failure> {
    let ask = |api: &mut Api, vm: &str| api.ask("POST", &vm_target(vm, "/pause"), None::<&()>);
    let chosen = chosen(client, vms, |vm| vm.state == VmState::Running)?;
    told(each(client, &chosen, ask, Api::answer)?, vms, json, now)
}

/// `vmsup resume VM…`
pub fn resume(client: &Client, vms: &Vms, json: bool) -> Result<(), Failure> {
    let ask = |api: &mut Api, vm: &str| api.ask("POST", &vm_target(vm, "/resume"), None::<&()>);
    let chosen = chosen(client, vms, |vm| vm.state == VmState::Paused)?;
    told(each(client, &chosen, ask, Api::answer)?, vms, json, now)
}

fn now(info: &VmInfo) -> String {
    format!("{}: {}", line(&info.summary.name), state(info.summary.state))
}

/// `vmsup rm VM…`
pub fn rm(client: &Client, vms: &Vms, force: bool) -> Result<(), Failure> {
    let chosen = chosen(client, vms, |vm| force || rests(vm.state))?;
    let mut failed = None;
    let chosen = if force {
        let (running, mut go): (Vec<String>, Vec<String>) = running(client, &chosen, &mut failed)?;
        let ask = |api: &mut Api, vm: &str| How::Kill.ask(api, vm);
        for (vm, killed) in each(client, &running, ask, Api::answer::<VmInfo>)? {
            match killed {
                Ok(_) => go.push(vm),
                Err(error) => failed = Some(say(&chosen, error)),
            }
        }
        go
    } else {
        chosen
    };
    let ask = |api: &mut Api, vm: &str| api.ask("DELETE", &vm_target(vm, ""), None::<&()>);
    for (_, removed) in each(client, &chosen, ask, Api::done)? {
        if let Err(error) = removed {
            failed = Some(say(&chosen, error));
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Parts those that have to be killed first from those that rest.
fn running(
    client: &Client,
    chosen: &[String],
    failed: &mut Option<Failure>,
) -> Result<(Vec<String>, Vec<String>), Failure> {
    let ask = |api: &mut Api, vm: &str| api.ask("GET", &vm_target(vm, ""), None::<&()>);
    let (mut running, mut resting) = (Vec::new(), Vec::new());
    for (vm, info) in each(client, chosen, ask, Api::answer::<VmInfo>)? {
        match info {
            Ok(info) if rests(info.summary.state) => resting.push(vm),
            Ok(_) => running.push(vm),
            Err(error) => *failed = Some(say(chosen, error)),
        }
    }
    Ok((running, resting))
}

/// Those that were named; all that `fits` where all were asked for, by their ids.
fn chosen(client: &Client, vms: &Vms, fits: impl Fn(&VmSummary) -> bool) -> Result<Vec<String>, Failure> {
    if !vms.all {
        return Ok(vms.vms.clone());
    }
    let mut api = client.connect()?;
    let mut all: Vec<VmSummary> = api.call("GET", "/v1/vms")?;
    all.retain(fits);
    let me = rustix::process::getuid().as_raw();
    let others = all.iter().filter(|vm| vm.owner != me).count();
    if others > 0 && me != 0 && api.call::<VersionInfo>("GET", "/v1/version")?.uid != me {
        // An administrator says which ones; to root and to the supervisor's own user, who shut the host down, they are all one.
        all.retain(|vm| vm.owner == me);
        notice(&format!("{others} VMs of others are left as they are; name those that you mean (vmsup ls)"));
    }
    Ok(all.into_iter().map(|vm| vm.id).collect())
}

type Answers<T> = Vec<(String, Result<T, CallError>)>;

/// Asks for each of them, some at a time, and collects the answers.
fn each<T>(
    client: &Client,
    vms: &[String],
    ask: impl Fn(&mut Api, &str) -> Result<(), CallError>,
    answer: impl Fn(&mut Api) -> Result<T, CallError>,
) -> Result<Answers<T>, Failure> {
    let mut answers = Vec::with_capacity(vms.len());
    for some in vms.chunks(TOGETHER) {
        let mut asked = Vec::with_capacity(some.len());
        for vm in some {
            let mut api = client.connect()?;
            api.be_patient()?;
            let sent = ask(&mut api, vm);
            asked.push((vm, api, sent));
        }
        for (vm, mut api, sent) in asked {
            let answer = sent.and_then(|()| answer(&mut api));
            answers.push((vm.clone(), answer));
        }
    }
    Ok(answers)
}

/// Prints what came of it: an object for one VM that was named, a list for several or for all.
fn told(answers: Answers<VmInfo>, vms: &Vms, json: bool, text: impl Fn(&VmInfo) -> String) -> Result<(), Failure> {
    let names: Vec<String> = answers.iter().map(|(vm, _)| vm.clone()).collect();
    let (mut infos, mut failed) = (Vec::new(), None);
    for (_, answer) in answers {
        match answer {
            Ok(info) if json => infos.push(info),
            Ok(info) => print(format!("{}\n", text(&info)))?,
            Err(error) => failed = Some(say(&names, error)),
        }
    }
    match (json, &infos[..]) {
        (true, [one]) if !vms.all && names.len() == 1 => print_json(one)?,
        (true, []) if failed.is_some() && names.len() == 1 => {}
        (true, all) => print_json(&all)?,
        _ => {}
    }
    failed.map_or(Ok(()), Err)
}

/// What went wrong with one of several is said at once; with the only one, as the command's own end.
fn say(all: &[String], error: CallError) -> Failure {
    let failure = Failure::from(error);
    if all.len() == 1 {
        return failure;
    }
    if let Some(sentence) = &failure.sentence {
        notice(sentence);
    }
    Failure::status(FAILED)
}

/// How a VM ended, in one sentence without a final full stop.
pub fn ended(info: &VmInfo) -> String {
    let name = &info.summary.name;
    match &info.summary.end {
        Some(end) => format!("{name}: {}", end.reason.trim_end_matches('.')),
        None => format!("{name}: {}", state(info.summary.state)),
    }
}
