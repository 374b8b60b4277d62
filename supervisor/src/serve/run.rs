//! The supervisor at work: from the first connection until it leaves, in good order.
//!
//! One thread runs everything but the opening of guest files. It leaves when it is told to, or when its jailer is gone:
//! being confined it could not start another. Either way VMs go on, and the next supervisor takes them over.

use super::adopt::{self, Fate};
use super::events::About;
use super::events::Events;
use super::fault::{self, Step};
use super::listening::Listening;
use super::ops::Operations;
use super::readiness::watch;
use super::registry::Registry;
use super::side::Side;
use super::starts::Starts;
use super::vm::Vm;
use super::watch::{Own, PACE};
use super::{Context, Jail, Netd, Ready, ServeError, netd};
use crate::api::types::{EventKind, VmState};
use crate::api::{listen, loopback};
use nix::sys::signal::Signal;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

/// Time that starts under way get to come to an end when the supervisor leaves. What is not over then the next one ends.
const UNDER_WAY: Duration = Duration::from_secs(3);
/// Time that clients get to read the last answers, jailer, netd and the disk to take what is on its way.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Threads that open guest files at the same time, at most: one for each start that may be under way.
const FILE_THREADS: usize = 16;

/// The runtime: this thread, and a few for file systems that take their time.
///
/// # Errors
/// Out of fds.
pub fn runtime() -> Result<Runtime, ServeError> {
    Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(FILE_THREADS)
        .thread_name("vmsup-files")
        .build()
        .map_err(|e| ServeError::System("making the runtime", e))
}

/// Takes over what there is, and serves until it is time to leave. `serving` is called when clients are.
///
/// # Errors
/// The reactor could not take the fds.
pub async fn run(ready: Ready, serving: impl FnOnce()) -> Result<(), ServeError> {
    let system = |e| ServeError::System("registering with the reactor", e);
    let Ready { tenants, jailer, host, netd, budget, store, loaded, handles, verdicts, .. } = ready;
    let Ready { listening, metrics, notify, watched, signals, terminal, storage, side, .. } = ready;
    let super::jailer::Jailer { channel, child, ready, pidfd, facts, listing } = jailer;
    let (jail, inherited) = Jail::new(channel, ready, facts, pidfd, listing).map_err(system)?;
    let _leaving = Leaving(jail.clone());
    let (found, places) = (inherited.living.len(), budget.most());
    if found > places {
        return Err(ServeError::TooMany { found, places, nofile: budget.nofile });
    }
    let netd = Netd::new(netd, netd::DEADLINE, netd::TUN);
    let registry = Registry::new(host.first_id, &budget);
    let starts = Starts::new(budget.starts, tenants.is_shared());
    // Who lost the database does not know any more whose files are whose.
    let complete = loaded.trouble.is_none() && !loaded.events.is_empty();
    let events = Events::new(loaded.events, store.clone());
    let operations = Operations::new(loaded.operations, store.clone());
    if let Some(trouble) = &loaded.trouble {
        tracing::error!(trouble, "the state is not as it should be");
        events.emit(EventKind::StateTrouble, None, trouble.as_str());
    }
    tokio::spawn(events.clone().tell_troubles(store.clone()));
    let context = Arc::new(Context {
        host,
        jail,
        netd,
        store,
        handles,
        events,
        operations,
        tenants,
        registry,
        metrics: Default::default(),
        deadlines: Default::default(),
        tick: super::tick::Tick::new(super::tick::PERIOD),
        looks: Arc::new(Semaphore::new(budget.looks)),
        starts,
        storage: Arc::new(storage),
        side: Side::new(side.as_ref().map(|side| side.path.clone()), budget.files),
    });
    if let Some((child, pidfd)) = child {
        tokio::spawn(reap(child, pidfd));
    }
    for said in &verdicts.said {
        tracing::error!("{said}");
        context.events.emit(EventKind::StateTrouble, None, said.as_str());
    }
    let fates = adopt::fates(&context, inherited, verdicts).await;
    fault::here(Step::AdoptJudged);
    settle(&context, fates.map_err(|e| ServeError::System("taking over the VMs that run (they go on)", e))?);

    fault::here(Step::AdoptSettled);
    let vms: Vec<_> = context.registry.list().iter().map(|vm| vm.intent()).collect();
    context.storage.charge_all(&context.tenants, &vms);
    tokio::spawn({
        let context = context.clone();
        async move { context.storage.clean(&context.tenants, vms, complete).await }
    });
    let (side, side_place) = side.map(|side| (side.listener, side.path)).unzip();
    let handing = side.map(|listener| tokio::spawn(super::side::accept(listener, context.clone())));

    let Listening { listener, place } = listening;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(system)?;
    let connections = listen::Connections::new(budget.connections);
    let accepting = tokio::spawn(listen::accept(listener, context.clone(), connections.clone()));
    if let Some(metrics) = metrics {
        let metrics = tokio::net::TcpListener::from_std(metrics).map_err(system)?;
        tokio::spawn(loopback::accept(metrics, context.clone(), loopback::WHOLE));
    }
    for watched in watched {
        tokio::spawn(watched.keep(Own::new(&context), PACE));
    }
    let signals = watch(signals, Interest::READABLE).map_err(system)?;
    notify.ready();
    let notify = Arc::new(notify);
    let (teller, living, tick) = (notify.clone(), context.registry.living(), context.tick.clone());
    tokio::spawn(async move { teller.keep_told(living, &tick).await });
    serving();

    let mut alive = context.jail.alive();
    let why = tokio::select! {
        () = told_to_leave(&signals, &context) => {
            context.registry.close("this supervisor is leaving; try again in a moment");
            "it was told to"
        }
        _ = alive.wait_for(|alive| !alive) => {
            context.registry.close(super::jail::GONE);
            context.events.emit(EventKind::JailerLost, None, super::jail::GONE);
            "its jailer is gone"
        }
    };
    notify.stopping();
    // The socket first: who finds none starts a new supervisor, which waits for our lock.
    place.withdraw();
    accepting.abort();
    if let (Some(handing), Some(path)) = (handing, side_place) {
        handing.abort();
        let _ = rustix::fs::unlink(path);
    }
    fault::here(Step::LeaveWithdrawn);
    tokio::select! {
        _ = tokio::time::timeout(UNDER_WAY, nothing_starts(&context)) => {}
        () = told_to_leave(&signals, &context) => {}
    }
    let sentence = farewell(why, *context.registry.living().borrow());
    context.events.emit(EventKind::SupervisorLeft, None, sentence.as_str());
    // Who listens has heard that, and is let go.
    context.events.close();
    let last = async {
        let (jail, netd) = (context.jail.settled(), context.netd.settled());
        tokio::join!(connections.all_closed(), jail, netd, context.store.settled())
    };
    let _ = tokio::time::timeout(LAST_ANSWERS, last).await;
    fault::here(Step::LeaveSettled);
    if terminal {
        eprintln!("vmsup: {sentence}");
    } else {
        tracing::info!("{sentence}");
    }
    Ok(())
}

/// However this supervisor comes to its end: what goes with its process is not to take a VM along.
struct Leaving(Arc<Jail>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// One sentence about what becomes of the VMs.
fn farewell(why: &str, living: usize) -> String {
    match living {
        0 => format!("this supervisor leaves ({why}); no VM runs"),
        1 => format!("this supervisor leaves ({why}); 1 VM goes on: vmsup ls shows it, vmsup stop --all ends it"),
        n => format!("this supervisor leaves ({why}); {n} VMs go on: vmsup ls shows them, vmsup stop --all ends them"),
    }
}

/// Gives every VM that was found its actor.
pub(super) fn settle(context: &Arc<Context>, fates: Vec<Fate>) {
    let (mut runs, mut ended, mut rests) = (0, 0, 0);
    for fate in fates {
        match fate {
            Fate::Runs(found) => {
                runs += 1;
                let (id, name, owner) = (found.intent.id(), found.intent.spec.name.clone(), found.intent.owner);
                let pid = found.held.worker.pid;
                let cause = match &found.console {
                    Some(_) => format!("found running as process {pid}"),
                    None => format!("found as process {pid}, which does not answer, or does not hand its console over"),
                };
                let unlimited = found.unlimited.clone();
                tracing::info!(id, name, pid, answers = found.console.is_some(), "adopted");
                Vm::adopted(context, *found);
                let about = || Some(About { name: &name, id: &id, owner });
                context.events.emit(EventKind::Adopted, about(), cause);
                if let Some(why) = unlimited {
                    tracing::error!(id, name, pid, why, "runs without the limits of its file");
                    let cause = format!("it runs without the limits of its file: {why}");
                    context.events.emit(EventKind::Unlimited, about(), cause);
                }
            }
            Fate::Ended { intent, how, held } => {
                ended += 1;
                Vm::ended_meanwhile(context, *intent, how, held);
            }
            Fate::Rests(intent) => {
                rests += 1;
                Vm::resting(context, *intent);
            }
            Fate::Never(intent) => adopt::forget(context, &intent),
        }
    }
    let counts = format!("{runs} VMs found running, {ended} that ended meanwhile, {rests} that did not run");
    tracing::info!("{counts}");
    context.events.emit(EventKind::SupervisorStarted, None, counts);
}

/// Waits until no VM is being started: each runs by then, or is gone.
async fn nothing_starts(context: &Context) {
    for vm in context.registry.list() {
        let _ = vm.phase.subscribe().wait_for(|phase| phase.state != VmState::Starting).await;
    }
}

/// Waits for a signal that says so. SIGHUP does not where there is a configuration: that is read again.
async fn told_to_leave(signals: &AsyncFd<OwnedFd>, context: &Context) {
    while next_signal(signals).await == Some(Signal::SIGHUP as u32) && context.shared() {
        match context.tenants.reload() {
            Ok(()) => tracing::info!("the configuration was read again, and holds from now on"),
            Err(error) => tracing::error!("{error}; nothing of it is used, and what was read before goes on"),
        }
    }
}

/// Waits for a signal, and says which one it was.
async fn next_signal(signals: &AsyncFd<OwnedFd>) -> Option<u32> {
    loop {
        let mut guard = signals.readable().await.ok()?;
        // One record of signalfd(2); its number comes first.
        let mut record = [0; 128];
        match rustix::io::read(signals.get_ref(), &mut record) {
            Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
            Ok(_) => return record.first_chunk().map(|number| u32::from_ne_bytes(*number)),
            Err(_) => return None,
        }
    }
}

/// Leaves no zombie of the jailer.
async fn reap(mut child: Child, pidfd: OwnedFd) {
    match watch(pidfd, Interest::READABLE) {
        Ok(pidfd) => drop(pidfd.readable().await),
        Err(error) => return tracing::warn!(%error, "cannot watch the jailer"),
    }
    match child.try_wait() {
        Ok(Some(status)) => tracing::warn!(%status, "the jailer ended"),
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "reaping the jailer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_ends_a_supervisor_is_told_what_goes_on_and_how_to_end_it() {
        assert!(!farewell("x", 0).contains("stop"));
        assert!(farewell("x", 1).contains("1 VM goes on") && farewell("x", 7).contains("7 VMs go on"));
        assert!(farewell("x", 7).contains("vmsup stop --all"));
    }
}
