//! What takes time in a VM's life. Each step is a future that the actor polls beside everything else; dropping it gives it up.

use super::{Actor, Run};
use crate::api::types::{ApiError, VmNet};
use crate::serve::console::Console;
use crate::serve::fault;
use crate::serve::handle::{self, Handle};
use crate::serve::health::Monitor;
use crate::serve::jail::Held;
use crate::serve::lifecycle::{After, Event};
use crate::serve::nets::Interfaces;
use crate::serve::provide;
use crate::serve::refusals::unavailable;
use crate::serve::start::{self, NotTaken, Prepared};
use crate::serve::vm::unix_time;
use crate::serve::watcher::{Subject, Watcher};
use crate::serve::worker::{Control, ControlError};
use netd_api::VmId;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use worker_api::{Timings, console};

/// What the actor is busy with.
pub type Step = Pin<Box<dyn Future<Output = Done> + Send>>;

/// Ends when something is written down, or cannot be.
pub type Noting = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What came of it.
pub enum Done {
    /// There is a worker, and all that it is to be given.
    Prepared(Result<Box<Prepared>, ApiError>),
    /// The worker has its VM, and its handle is written.
    Given(Result<(Control, Timings), NotTaken>),
    /// The power button was pressed.
    Pressed(Result<(), ControlError>),
    /// The vCPUs stand still.
    Paused(Result<(), ControlError>),
    /// The vCPUs go on.
    Resumed(Result<(), ControlError>),
    /// The end is written down.
    Recorded(After),
}

impl Actor {
    /// Imports the files that came, opens them and gets a worker: a new run.
    pub(super) fn make(&mut self) {
        debug_assert!(self.vm.has_claim_for(&self.intent.spec), "what runs is counted");
        let files = self.run.files.take();
        self.run = Run { place: self.run.place.take(), ..Run::default() };
        self.clock = Default::default();
        self.vm.phase.send_modify(|phase| {
            phase.run += 1;
            phase.stage = "worker";
        });
        let (context, vm, intent) = (self.context.clone(), self.vm.clone(), self.intent.clone());
        let (wanted, unwanted) = oneshot::channel();
        self.run.importing = Some(wanted);
        let stopped = self.stopped_before();
        self.step = Some(Box::pin(async move {
            let stage = |stage, percent| {
                vm.phase.send_if_modified(|phase| {
                    let before = (phase.stage, phase.percent);
                    (phase.stage, phase.percent) = (stage, percent);
                    before != (stage, percent)
                });
            };
            let prepared = async {
                let told = |percent| stage("import", Some(percent));
                // Whoever stops it waits for what the jailer makes, but not for a copy of a disk.
                let source = tokio::select! {
                    biased;
                    source = provide::source(&context, &intent, files, told) => source?,
                    _ = unwanted => return Err(stopped),
                };
                stage("worker", None);
                start::prepare(&context, VmId(intent.number), intent.owner, &intent.spec, source).await.map(Box::new)
            };
            Done::Prepared(prepared.await)
        }));
    }

    /// Gives the worker its VM, and writes the handle meanwhile: whoever is told that it runs can be sure that the next
    /// supervisor finds it.
    pub(super) fn give(&mut self) {
        let (Some(parcel), Some(held)) = (self.run.parcel.take(), &self.run.held) else { return };
        self.intent.runs += 1;
        // What is shown is what the handle says: the next supervisor shows the same.
        self.run.handed_at = Some(unix_time());
        let (context, worker, handle) = (self.context.clone(), held.worker, self.handle(held));
        self.vm.phase.send_modify(|phase| phase.stage = "guest");
        let (written, given) = (self.write_handle(handle), self.run.given.clone());
        self.step = Some(Box::pin(async move {
            let giving = async {
                let taken = start::hand_over(&context, parcel, worker).await;
                given.store(taken.is_ok(), Ordering::Release);
                taken
            };
            let written = async {
                written.await.unwrap_or_else(|error| Err(std::io::Error::other(error))).map_err(|error| {
                    let error =
                        unavailable(format!("the VM's handle could not be written: {error}; is the disk full?"));
                    NotTaken { error, hung_up: false }
                })
            };
            // What the worker says no to is told at once, while it can still be told.
            Done::Given(tokio::try_join!(giving, written).map(|(given, ())| given))
        }));
    }

    /// Writes a handle, behind what is being written already, whoever waits for it: a file that is renamed after it was
    /// removed would speak of a VM that has ended.
    pub(super) fn write_handle(&mut self, handle: Handle) -> oneshot::Receiver<std::io::Result<()>> {
        let (told, answer) = oneshot::channel();
        let (context, before) = (self.context.clone(), self.run.writing.take());
        self.run.writing = Some(tokio::spawn(async move {
            if let Some(before) = before {
                let _ = before.await;
            }
            let _ = told.send(context.handles.write(&handle).await);
        }));
        answer
    }

    /// What is true of this run.
    pub(super) fn handle(&self, held: &Held) -> Handle {
        let ran = self.run.began.map_or(Duration::ZERO, |began| began.elapsed());
        Handle {
            version: handle::VERSION,
            boot_id: self.context.host.boot_id.clone(),
            intent: self.intent.clone(),
            pid: held.worker.pid,
            start_time: held.worker.start_time,
            pidfd_inode: held.pidfd().and_then(handle::pidfd_inode),
            uid: held.worker.uid,
            slot: held.worker.slot.0,
            warm: held.warm,
            started_at: self.run.started_at.or(self.run.handed_at).unwrap_or_else(unix_time),
            began_ms: handle::uptime().saturating_sub(ran).as_millis() as u64,
            nets: self.run.nets.shown.clone(),
        }
    }

    pub(super) fn press(&mut self, resume: bool) {
        let Some(control) = self.run.control.clone() else { return };
        let (deadline, noting) = (self.context.deadlines.control, self.run.noting.take());
        self.step = Some(Box::pin(async move {
            if let Some(noting) = noting {
                // A disk that hangs keeps no guest from being stopped.
                let _ = tokio::time::timeout(deadline, noting).await;
            }
            let pressed = control.press_power_button().await;
            fault::here(fault::Step::StopPressed);
            if resume && let Err(error) = control.resume(deadline).await {
                return Done::Pressed(Err(error));
            }
            Done::Pressed(pressed)
        }));
    }

    pub(super) fn pause(&mut self) {
        let Some(control) = self.run.control.clone() else { return };
        let deadline = self.context.deadlines.control;
        self.step = Some(Box::pin(async move { Done::Paused(control.pause(deadline).await) }));
    }

    pub(super) fn resume(&mut self) {
        let Some(control) = self.run.control.clone() else { return };
        let deadline = self.context.deadlines.control;
        self.step = Some(Box::pin(async move { Done::Resumed(control.resume(deadline).await) }));
    }

    /// Keeps what a step brought.
    pub(super) fn done(&mut self, done: Done) -> Option<Event> {
        Some(match done {
            Done::Prepared(Ok(prepared)) => {
                let Prepared { held, parcel, console, nets, stages } = *prepared;
                (self.run.held, self.run.nets, self.run.console) = (Some(held), nets, Some(console));
                (self.run.parcel, self.run.stages) = (Some(parcel), Some(stages));
                Event::Made
            }
            Done::Prepared(Err(failure)) => {
                self.run.failure = Some(failure);
                Event::MakeFailed
            }
            Done::Given(Ok((control, timings))) => {
                self.run.given.store(false, Ordering::Release);
                self.run.control = Some(Arc::new(control));
                self.runs();
                if let (Some(stages), Some(held)) = (&self.run.stages, &self.run.held) {
                    stages.log(&self.intent.id(), &self.intent.spec.name, held.warm, &timings);
                }
                Event::Started
            }
            Done::Given(Err(NotTaken { error, hung_up })) => {
                (self.run.failure, self.run.hung_up) = (Some(error), hung_up);
                Event::StartFailed
            }
            Done::Pressed(result) => {
                if let Err(error) = result {
                    tracing::warn!(%error, "the power button could not be pressed");
                }
                // Says nothing about the guest: it ends, or its deadline passes.
                return None;
            }
            Done::Paused(Ok(())) => Event::PauseDone,
            Done::Paused(Err(error)) => {
                self.could_not("be paused", &error);
                Event::PauseFailed
            }
            Done::Resumed(Ok(())) => Event::ResumeDone,
            Done::Resumed(Err(error)) => {
                self.could_not("be resumed", &error);
                Event::ResumeFailed
            }
            Done::Recorded(after) => Event::Recorded(after),
        })
    }

    /// Its vCPUs run, or did: the console is that of this run from now on.
    pub(super) fn runs(&mut self) {
        self.context.metrics.started();
        (self.run.began, self.run.started_at) =
            (Some(Instant::now()), self.run.handed_at.or_else(|| Some(unix_time())));
        if let Some(console) = self.run.console.take() {
            self.context.registry.new_console(&self.vm);
            self.vm.set_console(console);
        }
    }

    /// The worker of a VM that was found hanging answers: now its console can be had. Where it hangs up over that it is asked
    /// again when it answers the next time; what it hands over and cannot be is not asked for again.
    pub(super) fn ask_console(&mut self) {
        let Some(control) = self.run.control.clone() else { return };
        let with_input = self.intent.spec.console.as_ref().is_none_or(|console| console.input);
        let (vm, deadline, id) = (self.vm.clone(), self.context.deadlines.control, self.intent.id());
        let unreachable = self.run.unreachable.clone();
        tokio::spawn(async move {
            let ends = match control.console(deadline).await {
                Ok(ends) => ends,
                Err(error) => {
                    tracing::warn!(id, %error, "the console of a VM cannot be had from its worker for now");
                    return unreachable.store(true, Ordering::Release);
                }
            };
            match Console::adopted(ends, with_input) {
                Ok(console) => vm.set_console(console),
                Err(error) => tracing::error!(id, %error, "what a worker gave as its VM's console is none"),
            }
        });
    }

    fn could_not(&mut self, what: &str, error: &ControlError) {
        let message = format!("{} could not {what}: {error}", self.intent.spec.name);
        tracing::warn!("{message}");
        self.run.refused = Some(message);
    }

    /// Looks after the guest from now on.
    pub(super) fn watch(&mut self) {
        let (Some(held), Some(control)) = (&self.run.held, &self.run.control) else { return };
        let console = self.vm.console().ok();
        // A marker that may have been overwritten is taken to have been there, and so is one on a console that cannot be had.
        let overwritten = console.as_ref().is_none_or(|console| console.written() > console::CAPACITY);
        let monitor = Monitor::new(self.intent.spec.health.as_ref(), overwritten);
        let subject = Subject {
            held,
            control: control.clone(),
            console: console.as_ref(),
            address: address(&self.run.nets),
            began: self.run.began.unwrap_or_else(Instant::now),
            deadline: self.context.deadlines.control,
            looks: self.context.looks.clone(),
        };
        self.run.watcher = Some(Watcher::new(subject, &monitor, &self.context.tick));
        self.run.monitor = Some(monitor);
    }
}

/// The guest's address in its first network.
fn address(nets: &Interfaces) -> Option<std::net::Ipv4Addr> {
    nets.shown.first().and_then(|net: &VmNet| net.address.parse().ok())
}
