//! What others see of a VM: its phase, its row, its events.

use super::Actor;
use crate::api::types::{EventKind, WorkerInfo};
use crate::serve::events::About;
use crate::serve::fault::{self, Step};
use crate::serve::jail::Held;
use crate::serve::lifecycle::{Cause, State};
use crate::serve::state::Change;
use std::sync::Arc;

impl Actor {
    /// Shows the outside where the VM is now.
    pub(super) fn publish(&mut self) {
        let state = self.state.outside(self.intent.ends.last().map(|end| end.kind));
        let worker = self.run.held.as_ref().filter(|_| !self.run.reaped).map(|held| self.worker_info(held));
        let (intent, nets) = (Arc::new(self.intent.clone()), self.run.nets.shown.clone());
        let health = self.run.monitor.as_ref().and_then(|monitor| monitor.shown());
        let started_at = self.run.started_at;
        self.vm.phase.send_modify(|phase| {
            phase.state = state;
            phase.worker = worker;
            phase.nets = nets;
            phase.intent = intent;
            phase.health = health;
            phase.started_at = started_at.or(phase.started_at);
        });
    }

    /// Queues the row as it is now; nobody waits for it.
    pub(super) fn save(&self) {
        drop(self.context.store.write(vec![Change::Put(Box::new(self.intent.clone()))]));
    }

    /// The same, for a power button that waits for it.
    pub(super) fn note(&mut self) {
        let written = self.context.store.write(vec![Change::Put(Box::new(self.intent.clone()))]);
        self.run.noting = Some(Box::pin(async { drop(written.await) }));
    }

    /// Something happened to it.
    pub(super) fn emit(&self, kind: EventKind, cause: &str) {
        let id = self.intent.id();
        let about = About { name: &self.intent.spec.name, id: &id, owner: self.intent.owner };
        self.context.events.emit(kind, Some(about), cause);
    }

    /// Tells of the way from one state to another, and who waited for it.
    pub(super) fn announce(&mut self, before: State) {
        let patience = self.clock.patience.as_secs();
        match (before, self.state) {
            (State::Handing, State::Running) => self.started(),
            (State::Pausing, State::Paused) => self.emit(EventKind::Paused, "asked for by its owner"),
            (State::Resuming, State::Running) => self.emit(EventKind::Resumed, "asked for by its owner"),
            (State::Stopping, State::Running) => self.emit(EventKind::Resumed, "its stop was taken back"),
            (_, State::Stopping) => {
                let cause = format!("its power button is pressed; it is killed in {patience} s if it goes on");
                self.emit(EventKind::Stopping, &cause);
            }
            (State::Stopping, State::Ending { cause: Cause::Asked, .. }) if self.clock.overdue => {
                self.emit(EventKind::Stopping, "it ignored its power button and is killed");
            }
            (_, State::Ending { cause: Cause::Asked, .. }) => self.emit(EventKind::Stopping, "killed on request"),
            (_, State::Ending { cause: Cause::Unwell, .. }) => {
                let why = self.run.unwell.as_deref().unwrap_or("it is not well");
                self.emit(EventKind::Stopping, &format!("killed, as its file says, since {why}"));
            }
            (State::BackingOff, State::Resting) => self.emit(EventKind::Stopping, "its restart is called off"),
            (_, State::Gone) => self.emit(EventKind::Removed, "forgotten"),
            _ => {}
        }
    }

    /// Its vCPUs run: whoever asked for that is told once it is written down, too, but for a VM that is forgotten at its end.
    fn started(&mut self) {
        let pid = self.run.held.as_ref().map(|held| held.worker.pid);
        tracing::info!(pid, "running");
        self.emit(EventKind::Started, "its vCPUs run");
        fault::here(Step::StartRunning);
        self.intent.confirmed = true;
        let row = Change::Put(Box::new(self.intent.clone()));
        let asked = self.asked.take();
        if self.intent.remove_when_ended {
            // Its handle, which is written, says all of it for as long as it is there at all.
            self.context.store.queue(row);
            self.publish();
            fault::here(Step::StartConfirmed);
            if let Some(asked) = asked {
                let _ = asked.told.send(Ok(()));
            }
            return;
        }
        let written = self.context.store.write(vec![row]);
        self.publish();
        tokio::spawn(async move {
            if let Err(error) = written.await {
                // It runs, and its handle says what it is: the next supervisor knows it from there.
                tracing::error!(%error, "a VM that runs could not be written down");
            }
            fault::here(Step::StartConfirmed);
            if let Some(asked) = asked {
                let _ = asked.told.send(Ok(()));
            }
        });
    }

    fn worker_info(&self, held: &Held) -> WorkerInfo {
        let limits = match (&self.intent.spec.limits, &self.context.jail.facts.cgroup, &self.run.unlimited) {
            (None, ..) => "none asked for".into(),
            (Some(_), Err(reason), _) | (Some(_), Ok(_), Some(reason)) => format!("not held: {reason}"),
            (Some(_), Ok(cgroup), None) => format!("held by a cgroup below {cgroup}"),
        };
        let worker = &held.worker;
        WorkerInfo {
            pid: worker.pid,
            start_time: worker.start_time,
            uid: worker.uid,
            slot: worker.slot.0,
            warm: held.warm,
            limits,
        }
    }
}
