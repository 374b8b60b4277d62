//! Finding the VMs of a supervisor that is gone: what the database says they are, what the handle files say they run as, and
//! what jailer and kernel say is true.
//!
//! [`look`] runs before the supervisor is confined and judges by what can be read ([`judge`]). [`fates`] then asks the workers,
//! all at the same time: each has its control socket checked (the listener is the very process that the handle names), says
//! how far it is, and hands its console back. Nobody is served before that is over, which one that is slow, hangs or ends
//! meanwhile delays by [`PATIENCE`] at most, and not again for the next.
//!
//! - A worker that was given no VM is killed: its start was not over, and nobody was told of it. A VM that was there before
//!   that start, and is to run, is started anew.
//! - One whose words or fds cannot be is compromised: it is killed, and the VM has crashed.
//! - One that answers nothing, or that speaks another release's protocol, goes on, without a console: it hangs, which its
//!   health shows, and what its file says is done.
//! - One that hangs up is asked again; one that hangs up and lives goes on in the same way. It need not be its own fault
//!   ([`super::worker`]).
//! - One that its jailer leaves alone (its uid is not in the jailer's range any more, say), and that its handle names, goes
//!   on; how it ends nobody will tell.
//! - One that nobody knows is killed: nobody could reach what it runs.

use super::Context;
use super::console::Console;
use super::end::WorkerEnd;
use super::fault::{self, Step};
use super::handle::{self, Handle};
use super::jail::{Held, Inherited};
use super::nets::Interfaces;
use super::start::cgroup_limits;
use super::state::{self, Intent};
use super::worker::{Control, ControlError};
use jail_spec::{CgroupLimits, Worker};
use netd_api::{LeaseId, VmId};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use worker_api::Status;

mod judge;
mod look;

pub use judge::{Verdict, Verdicts};
pub use look::look;

/// How many workers are asked at the same time.
const AT_ONCE: usize = 256;
/// How long a worker may take for all that it is asked, or until its end is told. One that takes longer hangs.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long the jailer may take to say that limits are in force.
const LIMITED: Duration = Duration::from_secs(1);
/// How long netd may take to say which leases there are.
const LEASES: Duration = Duration::from_secs(1);

/// What became of a VM while there was no supervisor.
#[derive(Debug)]
pub enum Fate {
    /// It never ran: its row and its handle go.
    Never(Box<Intent>),
    /// It runs, and is ours again.
    Runs(Box<Found>),
    /// It ran, and ended.
    Ended {
        /// What it is.
        intent: Box<Intent>,
        /// How, where the jailer could say.
        how: How,
        /// Kept until the end is recorded: then the jailer forgets the worker, too.
        held: Option<Held>,
    },
    /// It did not run.
    Rests(Box<Intent>),
}

/// How a VM ended while there was no supervisor.
#[derive(Debug)]
pub enum How {
    /// As its jailer tells it.
    Told(WorkerEnd),
    /// The host went down under it: its handle is of another boot.
    HostDown,
    /// It is gone, and nobody could say how; or what was found in its place was not it, and why.
    Unknown(String),
    /// Its worker ran and was not believed (what it said or handed over cannot be), and was killed for that.
    NotBelieved(String),
}

/// A VM that was found running, and everything that its actor has of a VM that it started itself.
#[derive(Debug)]
pub struct Found {
    /// What it is.
    pub intent: Intent,
    /// Its worker.
    pub held: Held,
    /// The way to it.
    pub control: Control,
    /// Its vCPUs stand still because its owner paused it.
    pub paused: bool,
    /// Its console, with the history that its worker kept. None where its worker hangs: it is asked again
    /// ([`Control::console`], [`Console::adopted`]) when it answers.
    pub console: Option<Arc<Console>>,
    /// Its network interfaces: what is shown, and the leases. Nothing for the worker, which has it.
    pub nets: Interfaces,
    /// Why the limits of its file are not in force, though there is a cgroup for them.
    pub unlimited: Option<String>,
    /// When its vCPUs began to run, seconds since 1970.
    pub started_at: u64,
    /// How long they have run.
    pub ran: Duration,
}

/// Asks all workers, and says what became of each VM. Workers that are nobody's are killed, ends that are nobody's forgotten.
///
/// # Errors
/// This process is short of fds or memory: then nothing that a worker seems to say is its fault, and all of them are let be.
pub async fn fates(context: &Arc<Context>, inherited: Inherited, verdicts: Verdicts) -> std::io::Result<Vec<Fate>> {
    let mut living: HashMap<u32, Held> = inherited.living.into_iter().map(|held| (held.worker.slot.0, held)).collect();
    let mut ended: HashMap<u32, (Held, WorkerEnd)> =
        inherited.ended.into_iter().map(|(held, end)| (held.worker.slot.0, (held, end))).collect();
    let leases = leases(context, &verdicts).await;
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut asked = JoinSet::new();
    let mut fates: Vec<Fate> = Vec::new();
    for (intent, verdict) in verdicts.vms {
        let how = match verdict {
            Verdict::Ask(handle) => {
                // judge() has seen it among the living.
                let Some(held) = living.remove(&handle.slot) else { continue };
                let nets = interfaces(context, &handle, leases.as_ref());
                let (context, places) = (context.clone(), places.clone());
                asked.spawn(async move {
                    let _place = places.acquire_owned().await;
                    found(&context, intent, *handle, held, nets).await
                });
                continue;
            }
            Verdict::Rests => {
                // That of a run whose end was written down.
                remove_handle(context, &intent);
                fates.push(Fate::Rests(Box::new(intent)));
                continue;
            }
            Verdict::Told(slot) => {
                let Some((held, end)) = ended.remove(&slot.0) else { continue };
                fates.push(Fate::Ended { intent: Box::new(intent), how: How::Told(end), held: Some(held) });
                continue;
            }
            Verdict::HostDown => How::HostDown,
            Verdict::Lost(why) => How::Unknown(why),
        };
        fates.push(Fate::Ended { intent: Box::new(intent), how, held: None });
    }
    for held in living.into_values() {
        let Worker { slot, pid, .. } = held.worker;
        tracing::warn!(pid, slot = slot.0, "a worker that no handle names is killed: what it runs is not known");
    }
    fates.extend(verdicts.removed.into_iter().map(|(intent, why)| {
        tracing::info!(id = intent.id(), name = intent.spec.name, why, "removed");
        Fate::Never(Box::new(intent))
    }));
    for fate in asked.join_all().await {
        fates.push(fate?);
    }
    Ok(fates)
}

/// How long the VM of a handle of this boot has run.
fn ran(handle: &Handle) -> Duration {
    handle::uptime().saturating_sub(Duration::from_millis(handle.began_ms))
}

/// What a worker said of itself.
enum Said {
    Runs {
        paused: bool,
        console: Option<Arc<Console>>,
    },
    Empty,
    HungUp,
    Lied(String),
    /// Nothing: it is this process that lacks fds or memory.
    Short(std::io::Error),
}

async fn found(
    context: &Context,
    mut intent: Intent,
    handle: Handle,
    mut held: Held,
    nets: Interfaces,
) -> std::io::Result<Fate> {
    let until = Instant::now() + PATIENCE;
    let with_input = intent.spec.console.as_ref().is_none_or(|console| console.input);
    held.warm = handle.warm;
    let worker = held.worker;
    let control = Control::new(&context.host.workers, &worker);
    let interview = interview(context, &control, with_input, until);
    let (mut said, unlimited) = tokio::join!(interview, limit_again(context, &intent, &worker));
    fault::here(Step::AdoptAsked);
    if matches!(said, Said::HungUp) {
        match timeout_at(until, held.ended()).await {
            Ok(Some(end)) => {
                return Ok(Fate::Ended { intent: Box::new(intent), how: How::Told(end), held: Some(held) });
            }
            Ok(None) => {
                let how = How::Unknown("its worker ended, and its jailer is gone and could not say how".into());
                return Ok(Fate::Ended { intent: Box::new(intent), how, held: Some(held) });
            }
            // It lives.
            Err(_) => said = Said::Runs { paused: false, console: None },
        }
    }
    let how = match said {
        Said::Runs { paused, console } => {
            // Whoever asked for it may not have been told: now it is there.
            intent.confirmed = true;
            let (started_at, ran) = (handle.started_at, ran(&handle));
            let found = Found { intent, held, control, paused, console, nets, unlimited, started_at, ran };
            return Ok(Fate::Runs(Box::new(found)));
        }
        // Nobody was told of a first start that was not over; a restart is one of a VM that is there.
        Said::Empty if intent.ends.is_empty() && !intent.confirmed => return Ok(Fate::Never(Box::new(intent))),
        // That it hung up was dealt with.
        Said::Empty | Said::HungUp => {
            held.kill();
            let _ = timeout_at(until, held.ended()).await;
            remove_handle(context, &intent);
            // Nothing ran: what it is to do, it is still to do.
            intent.runs = intent.over;
            return Ok(Fate::Rests(Box::new(intent)));
        }
        Said::Short(error) => {
            // Before anything is let go: no VM pays for it.
            context.jail.leave();
            return Err(error);
        }
        Said::Lied(why) => How::NotBelieved(format!("its worker was not believed and was killed: {why}")),
    };
    // Its actor waits for its end before it records the VM's.
    held.kill();
    Ok(Fate::Ended { intent: Box::new(intent), how, held: Some(held) })
}

/// Sees to it that the limits of its file hold; why they do not. They are in force, unless its jailer is a new one: a service
/// manager lets that one in only where the cgroups below it have no controllers, and limits go with these.
async fn limit_again(context: &Context, intent: &Intent, worker: &Worker) -> Option<String> {
    let limits = intent.spec.limits.as_ref().map(cgroup_limits)?;
    // Where there is none, that says it all, and of best-effort limits it was known at the start.
    if limits.best_effort && context.jail.facts.cgroup.is_err() {
        return None;
    }
    // What cannot be held is to be known, whether it may be so or not.
    let asked = CgroupLimits { best_effort: false, ..limits };
    match timeout(LIMITED, context.jail.limit(worker.slot, asked)).await {
        Ok(Ok(())) => None,
        Ok(Err(why)) => Some(super::refusals::no_worker(super::jail::MakeError::Refused(why)).message),
        Err(_) => Some("the jailer does not say whether they are".into()),
    }
}

/// Asks a worker how far it is, and for its console. One that hangs up is asked again; then only how far it is, which takes no
/// fds of it.
async fn interview(context: &Context, control: &Control, with_input: bool, until: Instant) -> Said {
    for console in [true, true, false] {
        match ask(context, control, with_input, console, until).await {
            Said::HungUp => {}
            said => return said,
        }
    }
    Said::HungUp
}

async fn ask(context: &Context, control: &Control, with_input: bool, console: bool, until: Instant) -> Said {
    let left = || until.saturating_duration_since(Instant::now());
    let paused = match control.status(left()).await {
        Ok(Status::Empty) => return Said::Empty,
        Ok(status) => status == Status::Paused,
        Err(error) => return no_answer(context, false, &error),
    };
    if !console {
        return Said::Runs { paused, console: None };
    }
    match control.console(left()).await.map(|ends| Console::adopted(ends, with_input)) {
        Ok(Ok(console)) => Said::Runs { paused, console: Some(console) },
        // An errno is ours; what is wrong with its ends has none.
        Ok(Err(error)) if error.raw_os_error().is_some() => Said::Short(error),
        Ok(Err(error)) => Said::Lied(error.to_string()),
        Err(error) => no_answer(context, paused, &error),
    }
}

fn no_answer(context: &Context, paused: bool, error: &ControlError) -> Said {
    if let Some(short) = shortage(context, error) {
        return Said::Short(short);
    }
    match error {
        ControlError::Silent | ControlError::Channel(ipc::Error::Version { .. }) => {
            Said::Runs { paused, console: None }
        }
        error if error.is_full() => Said::Runs { paused, console: None },
        error if error.is_hang_up() => Said::HungUp,
        // Not what was asked for, or somebody else listens there.
        error => Said::Lied(error.to_string()),
    }
}

/// The error says that this process lacks something, not that the worker did wrong.
fn shortage(context: &Context, error: &ControlError) -> Option<std::io::Error> {
    use rustix::io::Errno;
    let lacks = |errno: Errno| {
        [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::NOSPC].contains(&errno).then(|| errno.into())
    };
    match error {
        ControlError::Io(error) | ControlError::Channel(ipc::Error::Io(error)) => lacks(Errno::from_io_error(error)?),
        // Fds that came and found no place are dropped by the kernel, which says that the frame was cut.
        ControlError::Channel(ipc::Error::Fds { .. } | ipc::Error::TooLarge(_)) => {
            let places: Result<Vec<_>, _> = (0..3).map(|_| context.host.kvm.try_clone()).collect();
            lacks(Errno::from_io_error(&places.err()?)?)
        }
        _ => None,
    }
}

/// What netd says that there is; none where no VM has a network, or where netd is away.
async fn leases(context: &Context, verdicts: &Verdicts) -> Option<BTreeSet<(u64, u64)>> {
    let nets = |verdict: &Verdict| matches!(verdict, Verdict::Ask(handle) if !handle.nets.is_empty());
    if !verdicts.vms.iter().any(|(_, verdict)| nets(verdict)) {
        return None;
    }
    match timeout(LEASES, context.netd.leases()).await {
        Ok(Ok(leases)) => Some(leases.into_iter().map(|lease| (lease.id.0, lease.vm.0)).collect()),
        Ok(Err(error)) => {
            tracing::warn!(%error, "netd does not say which leases there are; those of the handles are believed");
            None
        }
        Err(_) => {
            tracing::warn!("netd does not say in time which leases there are; those of the handles are believed");
            None
        }
    }
}

/// A VM's interfaces as its handle has them, with the leases that netd has, too.
fn interfaces(context: &Context, handle: &Handle, told: Option<&BTreeSet<(u64, u64)>>) -> Interfaces {
    let VmId(vm) = VmId(handle.intent.number);
    let mut interfaces = Interfaces { shown: handle.nets.clone(), ..Interfaces::default() };
    for net in &handle.nets {
        if told.is_none_or(|told| told.contains(&(net.lease, vm))) {
            interfaces.leases.push(context.netd.adopt(LeaseId(net.lease)));
        } else {
            let name = &handle.intent.spec.name;
            tracing::warn!(name, interface = net.interface, "netd has no lease of this interface any more");
        }
    }
    interfaces
}

/// Takes the row and the handle of a VM that never ran.
pub fn forget(context: &Context, intent: &Intent) {
    remove_handle(context, intent);
    fault::here(Step::AdoptForgetting);
    drop(context.store.write(vec![state::Change::Remove(intent.number)]));
}

fn remove_handle(context: &Context, intent: &Intent) {
    if let Err(error) = context.handles.remove(intent.number) {
        tracing::warn!(id = intent.id(), %error, "removing a handle");
    }
}

#[cfg(test)]
#[path = "adopt/tests.rs"]
mod tests;
