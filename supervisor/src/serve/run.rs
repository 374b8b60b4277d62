//! The supervisor at work: from the first connection until it leaves, in good order.
//!
//! One thread runs everything but the opening of guest files. It leaves when it is told to (the VMs get a power button
//! and five seconds), or when its jailer is gone and the last VM has ended: being confined it could not start another.

use super::events::Events;
use super::listening::Listening;
use super::ops::Operations;
use super::readiness::watch;
use super::registry::Registry;
use super::vm::{Ask, Vm};
use super::watch::{Own, PACE};
use super::{Context, Jail, Netd, Ready, ServeError, netd};
use crate::api::types::EventKind;
use crate::api::{listen, loopback};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

/// Time that guests get to switch themselves off when the supervisor leaves.
const FAREWELL: Duration = Duration::from_secs(5);
/// Time that clients get to read the last answers, and netd to take the last leases back.
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

/// Serves until it is time to leave.
///
/// # Errors
/// The reactor could not take the fds.
pub async fn run(ready: Ready) -> Result<(), ServeError> {
    let system = |e| ServeError::System("registering with the reactor", e);
    let Ready { jailer, host, netd, budget, store, loaded, handles, listening, metrics, notify, watched, signals } =
        ready;
    let super::jailer::Jailer { channel, child, ready, pidfd, facts } = jailer;
    let (jail, _) = Jail::new(channel, ready, facts, pidfd, Default::default()).map_err(system)?;
    let netd = Netd::new(netd, netd::DEADLINE, netd::TUN);
    let registry = Registry::new(host.first_id, &budget);
    let starts = Arc::new(Semaphore::new(budget.starts));
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
        registry,
        metrics: Default::default(),
        deadlines: Default::default(),
        tick: super::tick::Tick::new(super::tick::PERIOD),
        looks: Arc::new(Semaphore::new(budget.looks)),
        starts,
    });
    if let Some((child, pidfd)) = child {
        tokio::spawn(reap(child, pidfd));
    }
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
    let (teller, living) = (notify.clone(), context.registry.living());
    tokio::spawn(async move { teller.keep_told(living).await });

    tokio::select! {
        () = signalled(&signals) => {
            tracing::info!("leaving: told to by a signal");
            notify.stopping();
            context.registry.close("this supervisor is leaving; try again in a moment");
            end_all(&context, &signals).await;
        }
        () = nothing_left(&context) => tracing::info!("leaving: the jailer is gone and no VM is left"),
    }
    place.withdraw();
    accepting.abort();
    context.events.close();
    let last = async { tokio::join!(connections.all_closed(), context.netd.settled(), context.store.settled()) };
    let _ = tokio::time::timeout(LAST_ANSWERS, last).await;
    Ok(())
}

/// Waits for a signal.
async fn signalled(signals: &AsyncFd<OwnedFd>) {
    loop {
        let Ok(mut guard) = signals.readable().await else { return };
        // One record of signalfd(2) is 128 bytes.
        match rustix::io::read(signals.get_ref(), &mut [0; 128]) {
            Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
            _ => return,
        }
    }
}

/// Waits until there is no jailer and no VM, and takes no VM from then on.
async fn nothing_left(context: &Context) {
    let _ = context.jail.alive().wait_for(|alive| !alive).await;
    context.registry.close(super::jail::GONE);
    let _ = context.registry.living().wait_for(|living| *living == 0).await;
}

/// Ends all VMs: power button, a short while, SIGKILL; at once at a second signal.
async fn end_all(context: &Arc<Context>, signals: &AsyncFd<OwnedFd>) {
    ask_all(context, || Ask::Stop(FAREWELL)).await;
    let mut living = context.registry.living();
    let over = living.wait_for(|living| *living == 0);
    tokio::select! {
        _ = over => {}
        () = signalled(signals) => {
            ask_all(context, || Ask::Kill).await;
            let _ = context.registry.living().wait_for(|living| *living == 0).await;
        }
    }
}

async fn ask_all(context: &Arc<Context>, ask: fn() -> Ask) {
    for vm in context.registry.list() {
        // Not one after the other: an actor that is slow to listen is not to cost the others their time.
        tokio::spawn(async move { Vm::ask(&vm, ask()).await });
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
