//! What others ask of a VM: judged by where it is, answered at once or when it is there.

use super::{Actor, AskedStart, Goal};
use crate::api::types::{ApiError, CreateRequest, Desired, ErrorCode, EventKind};
use crate::serve::fault::{self, Step};
use crate::serve::lifecycle::{Event, State};
use crate::serve::registry::taken;
use crate::serve::state::{self, hash};
use crate::serve::tenants::{Claim, Demand};
use crate::serve::vm::{Ask, Change, Order, Reply, Start};
use crate::serve::worker::ControlError;
use tokio::sync::oneshot;
use worker_api::Stats;

impl Actor {
    /// What an ask means for the VM's life; nothing where it is answered already.
    pub(super) fn asked_for(&mut self, ask: Ask) -> Option<Event> {
        match ask {
            Ask::Start(start) => self.start(*start),
            Ask::CancelStart => {
                let under_way = matches!(self.state, State::Making | State::Handing);
                (self.asked.is_some() && under_way).then_some(Event::KillAsked)
            }
            Ask::Stop(patience) => {
                self.clock.patience = patience;
                self.unwanted();
                Some(Event::StopAsked)
            }
            Ask::StopForShutdown(patience) => {
                self.clock.patience = patience;
                if self.intent.comes_back() {
                    self.host_goes_down = true;
                } else {
                    self.unwanted();
                }
                Some(Event::StopAsked)
            }
            Ask::StopToStart(patience) => {
                self.clock.patience = patience;
                self.anew();
                Some(Event::StopAsked)
            }
            Ask::CancelStop => {
                self.host_goes_down = false;
                if self.state == State::Stopping {
                    (self.intent.desired, self.intent.again, self.run.renewed) = (Desired::Running, false, false);
                    self.save();
                }
                Some(Event::StopCancelled)
            }
            Ask::Kill => {
                self.unwanted();
                Some(Event::KillAsked)
            }
            Ask::Pause(told) => self.goal(Goal::Paused, told),
            Ask::Resume(told) => self.goal(Goal::Running, told),
            Ask::Change(change) => {
                self.change(*change);
                None
            }
            Ask::Remove(told) => self.remove(told),
            Ask::Stats(asker) => {
                self.ask_stats(asker);
                None
            }
        }
    }

    /// Its owner wants it to run no longer. Written down before its power button is pressed: if this supervisor dies meanwhile,
    /// the next one does not start it again.
    fn unwanted(&mut self) {
        // A start that it was owed at rest.
        let owed = self.state == State::Resting && self.clock.restart_at.take().is_some();
        // An end that is being written down is decided anew when that is done.
        let at_its_end = matches!(self.state, State::Resting | State::Gone | State::Ended { .. });
        self.host_goes_down = false;
        if owed || !at_its_end && self.intent.desired != Desired::Stopped {
            (self.intent.desired, self.intent.again) = (Desired::Stopped, false);
            self.note();
            fault::here(Step::StopQueued);
        }
    }

    /// It is stopped to be started from another file: it is to run all the while.
    fn anew(&mut self) {
        if !self.state.has_guest() || self.intent.desired == Desired::Stopped {
            return self.unwanted();
        }
        (self.intent.again, self.run.renewed) = (true, true);
        self.note();
        fault::here(Step::StopQueued);
    }

    fn start(&mut self, start: Start) -> Option<Event> {
        let Start { file, place, claim, told } = start;
        if !matches!(self.state, State::Resting | State::BackingOff) {
            let _ = told.send(Err(taken(&self.intent.spec.name)));
            return None;
        }
        // What was claimed is for the file as it was when that was done.
        if claim.demand() != Demand::running(file.as_ref().map_or(&self.intent.spec, |file| &file.request.spec)) {
            let _ = told.send(Err(self.changed_meanwhile()));
            return None;
        }
        self.vm.holds_claim(claim);
        let before = self.intent.clone();
        if let Some(Order { request: CreateRequest { spec, remove_when_ended, source, .. }, files }) = file {
            self.replace(spec, source);
            self.intent.remove_when_ended = remove_when_ended;
            self.run.files = files;
        }
        (self.intent.desired, self.intent.restarts, self.row) = (Desired::Running, 0, 0);
        self.host_goes_down = false;
        self.asked = Some(AskedStart { told, before: Some(before) });
        self.run.place = Some(place);
        self.emit(EventKind::Starting, "asked for by its owner");
        self.save();
        Some(Event::StartAsked)
    }

    fn changed_meanwhile(&self) -> ApiError {
        let message =
            format!("{} was changed by somebody else meanwhile; look again (vmsup diff)", self.intent.spec.name);
        ApiError { code: ErrorCode::Conflict, message, field: None }
    }

    /// The VM is what another file says. Who kept it goes on keeping it, where nobody else is named.
    fn replace(&mut self, spec: crate::spec::VmSpec, source: Option<String>) {
        if spec != self.intent.spec {
            self.intent.generation += 1;
            self.intent.spec_hash = hash::of(&spec);
            self.intent.spec = spec;
        }
        self.intent.source = source.or(self.intent.source.take());
    }

    /// Somebody wants it to be paused, or to go on.
    fn goal(&mut self, goal: Goal, told: Reply) -> Option<Event> {
        let event = match (goal, self.state) {
            (Goal::Paused, State::Paused) | (Goal::Running, State::Running) => {
                let _ = told.send(Ok(()));
                return None;
            }
            (Goal::Paused, State::Running | State::Pausing) => Event::PauseAsked,
            (Goal::Running, State::Paused | State::Resuming) => Event::ResumeAsked,
            _ => {
                let _ = told.send(Err(self.not_now()));
                return None;
            }
        };
        self.run.refused = None;
        self.waiters.push((goal, told));
        Some(event)
    }

    fn not_now(&self) -> ApiError {
        let name = &self.intent.spec.name;
        let state = match self.state {
            State::Resting | State::BackingOff | State::Gone => "does not run; start it first",
            State::Making | State::Handing => "is being started; try again when it runs",
            State::Pausing => "is being paused; try again in a moment",
            State::Resuming => "is being resumed; try again in a moment",
            State::Running | State::Paused => "is in another state by now; try again",
            State::Cancelled | State::Stopping | State::Ending { .. } | State::Ended { .. } => "is being stopped",
        };
        ApiError { code: ErrorCode::Conflict, message: format!("{name} {state}"), field: None }
    }

    /// Tells who waits for a pause or a resume, once there is something to tell.
    pub(super) fn tell_waiters(&mut self) {
        for (goal, told) in std::mem::take(&mut self.waiters) {
            let answer = match (goal, self.state) {
                (Goal::Paused, State::Paused) | (Goal::Running, State::Running) => Ok(()),
                (Goal::Paused, State::Pausing) | (Goal::Running, State::Resuming) => {
                    self.waiters.push((goal, told));
                    continue;
                }
                _ => Err(match &self.run.refused {
                    Some(message) => ApiError { code: ErrorCode::Internal, message: message.clone(), field: None },
                    None => self.not_now(),
                }),
            };
            let _ = told.send(answer);
        }
    }

    fn change(&mut self, change: Change) {
        let Change { spec, source, generation, in_place, claim, told } = change;
        let name = &self.intent.spec.name;
        // One that waits for its restart has claimed what that takes, and takes no more without having been asked.
        let waits = self.state == State::BackingOff;
        let claimed = claim.as_ref().map(Claim::demand) == Some(Demand::running(&spec));
        let refused = if generation != self.intent.generation || waits && !claimed {
            Some(self.changed_meanwhile().message)
        } else if !in_place && !matches!(self.state, State::Resting | State::BackingOff) {
            Some(format!("{name} runs again already; try again"))
        } else if !self.state.has_guest() && !self.state.rests() {
            Some(self.not_now().message)
        } else {
            None
        };
        if let Some(message) = refused {
            let _ = told.send(Err(ApiError { code: ErrorCode::Conflict, message, field: None }));
            return;
        }
        if in_place && spec.limits != self.intent.spec.limits {
            // The jailer has just set the new ones.
            self.run.unlimited = None;
        }
        if waits {
            self.vm.holds_claim(claim);
        }
        self.replace(spec, source);
        let console = self.vm.console().ok();
        if let (Some(monitor), Some(watcher)) = (&mut self.run.monitor, &mut self.run.watcher) {
            *monitor = monitor.changed(self.intent.spec.health.as_ref());
            watcher.wants(monitor, console.as_ref());
        }
        let cause = if in_place { "its file was changed; it runs on" } else { "its file was changed" };
        fault::here(Step::ChangeMade);
        self.emit(EventKind::Updated, cause);
        self.publish();
        let written = self.context.store.write(vec![state::Change::Put(Box::new(self.intent.clone()))]);
        let handle = self.state.has_guest().then(|| self.run.held.as_ref().map(|held| self.handle(held))).flatten();
        let handle = handle.map(|handle| self.write_handle(handle));
        tokio::spawn(async move {
            if let Some(handle) = handle
                && let Ok(Err(error)) = handle.await
            {
                tracing::warn!(%error, "a handle could not be written anew; the one before holds");
            }
            let written = written.await.map_err(|error| ApiError {
                code: ErrorCode::Unavailable,
                message: format!("it was changed, and that could not be written down: {error}"),
                field: None,
            });
            fault::here(Step::ChangeWritten);
            let _ = told.send(written);
        });
    }

    fn remove(&mut self, told: Reply) -> Option<Event> {
        if !matches!(self.state, State::Resting | State::BackingOff) {
            let name = &self.intent.spec.name;
            let message = format!("{name} has not ended; stop it first (vmsup stop {name})");
            let _ = told.send(Err(ApiError { code: ErrorCode::Conflict, message, field: None }));
            return None;
        }
        let (context, number) = (self.context.clone(), self.intent.number);
        fault::here(Step::RemoveAsked);
        let written = context.store.write(vec![state::Change::Remove(number)]);
        fault::here(Step::RemoveQueued);
        tokio::spawn(async move {
            let written = written.await;
            // Who is told that it is removed has its room again.
            context.storage.remove(number).await;
            let written = written.map_err(|error| ApiError {
                code: ErrorCode::Unavailable,
                message: format!("it was removed, and that could not be written down: {error}"),
                field: None,
            });
            fault::here(Step::RemoveWritten);
            let _ = told.send(written);
        });
        Some(Event::RemoveAsked)
    }

    /// Asks the worker what it counted, beside everything else; who asks is told nothing where there is no
    /// worker to be asked.
    fn ask_stats(&self, asker: oneshot::Sender<Result<Stats, ControlError>>) {
        let Some(control) = self.run.control.clone().filter(|_| self.state.has_guest()) else { return };
        let deadline = self.context.deadlines.stats;
        tokio::spawn(async move {
            let _ = asker.send(control.stats(deadline).await);
        });
    }
}
