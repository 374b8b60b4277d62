//! Operations that take time: each has a number, a stage, a way to be cancelled, and a record of how it ended.

use super::state::{self, Change, Store};
use crate::api::types::{ApiError, Operation, OperationKind, OperationState};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// How many operations are kept, those under way apart.
const KEPT: usize = state::OPERATIONS_KEPT;

/// All operations.
#[derive(Debug)]
pub struct Operations {
    inner: Mutex<Inner>,
    store: Store,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    all: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// As it changes.
    record: watch::Sender<Operation>,
    /// Somebody wants its end.
    cancel: watch::Sender<bool>,
}

impl Entry {
    fn new(record: Operation) -> Entry {
        Entry { record: watch::Sender::new(record), cancel: watch::Sender::new(false) }
    }

    fn is_running(&self) -> bool {
        self.record.borrow().state == OperationState::Running
    }
}

/// An operation that is under way; where it is dropped without an end, it was cancelled.
#[derive(Debug)]
pub struct Running {
    operations: Arc<Operations>,
    id: u64,
    cancel: watch::Receiver<bool>,
    over: bool,
}

impl Operations {
    /// Goes on behind what was kept. What was under way then was interrupted.
    pub fn new(kept: Vec<Operation>, store: Store) -> Arc<Operations> {
        let mut inner = Inner::default();
        for mut operation in kept {
            if operation.state == OperationState::Running {
                operation.state = OperationState::Interrupted;
                operation.ended_at_ms = Some(now_ms());
                store.queue(Change::Operation(operation.clone()));
            }
            inner.last = inner.last.max(operation.id);
            inner.all.insert(operation.id, Entry::new(operation));
        }
        Arc::new(Operations { inner: Mutex::new(inner), store })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new one.
    pub fn begin(self: &Arc<Self>, kind: OperationKind, vm: &str, owner: u32, stage: &str) -> Running {
        let mut inner = self.lock();
        inner.last += 1;
        let id = inner.last;
        let operation = Operation {
            id,
            kind,
            vm: vm.to_owned(),
            owner,
            state: OperationState::Running,
            stage: stage.to_owned(),
            percent: None,
            begun_at_ms: now_ms(),
            ended_at_ms: None,
            error: None,
        };
        self.store.queue(Change::Operation(operation.clone()));
        let entry = Entry::new(operation);
        let cancel = entry.cancel.subscribe();
        inner.all.insert(id, entry);
        while inner.all.len() > KEPT {
            let over = inner.all.iter().filter(|(_, entry)| !entry.is_running());
            let Some(goes) = oldest_of_most(over.map(|(id, entry)| (*id, entry.record.borrow().owner))) else { break };
            inner.all.remove(&goes);
        }
        drop(inner);
        Running { operations: self.clone(), id, cancel, over: false }
    }

    /// All that are kept, oldest first.
    pub fn list(&self) -> Vec<Operation> {
        self.lock().all.values().map(|entry| entry.record.borrow().clone()).collect()
    }

    /// One of them, as it changes. Its last state stays, also where it is no longer kept.
    pub fn get(&self, id: u64) -> Option<watch::Receiver<Operation>> {
        self.lock().all.get(&id).map(|entry| entry.record.subscribe())
    }

    /// Asks for its end; false where it is over, or not there.
    pub fn cancel(&self, id: u64) -> bool {
        match self.lock().all.get(&id) {
            Some(entry) if entry.is_running() => {
                entry.cancel.send_replace(true);
                true
            }
            _ => false,
        }
    }

    /// What is being done now by one that is under way.
    pub fn progress(&self, id: u64, stage: &str, percent: Option<u8>) {
        self.change(id, false, |op| {
            stage.clone_into(&mut op.stage);
            op.percent = percent;
        });
    }

    fn change(&self, id: u64, durable: bool, change: impl FnOnce(&mut Operation)) {
        let inner = self.lock();
        let Some(entry) = inner.all.get(&id) else { return };
        entry.record.send_modify(change);
        if durable {
            self.store.queue(Change::Operation(entry.record.borrow().clone()));
        }
    }
}

/// Of all, oldest first, each with its owner: the oldest of those who have most. One who does much keeps nobody else's from
/// being found.
pub fn oldest_of_most<T: Copy>(all: impl Iterator<Item = (T, u32)>) -> Option<T> {
    let mut owners: BTreeMap<u32, (usize, T)> = BTreeMap::new();
    for (item, owner) in all {
        owners.entry(owner).or_insert((0, item)).0 += 1;
    }
    owners.into_values().max_by_key(|(count, _)| *count).map(|(_, oldest)| oldest)
}

impl Running {
    /// Its number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What is being done now.
    pub fn stage(&self, stage: &str, percent: Option<u8>) {
        self.operations.progress(self.id, stage, percent);
    }

    /// Waits until somebody wants it cancelled.
    pub async fn cancelled(&mut self) {
        if self.cancel.wait_for(|cancelled| *cancelled).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// It is over.
    pub fn end(mut self, result: Result<(), ApiError>) {
        let state = if result.is_ok() { OperationState::Done } else { OperationState::Failed };
        self.finish(state, result.err());
    }

    fn finish(&mut self, state: OperationState, error: Option<ApiError>) {
        self.over = true;
        self.operations.change(self.id, true, |op| {
            op.state = state;
            op.percent = None;
            op.error = error;
            op.ended_at_ms = Some(now_ms());
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            self.finish(OperationState::Cancelled, None);
        }
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::ErrorCode;

    #[tokio::test]
    async fn an_operation_is_cancelled_or_ends_once() {
        let operations = Operations::new(Vec::new(), Store::in_memory());
        let mut first = operations.begin(OperationKind::Create, "a", 1, "files");
        let second = operations.begin(OperationKind::Stop, "a", 1, "guest");
        assert!(operations.cancel(first.id()));
        first.cancelled().await;
        drop(first);
        second.end(Ok(()));
        let states: Vec<_> = operations.list().iter().map(|op| op.state).collect();
        assert_eq!(states, [OperationState::Cancelled, OperationState::Done]);
        assert!(!operations.cancel(1) && !operations.cancel(77));
    }

    #[test]
    fn what_a_dead_supervisor_was_doing_was_interrupted() {
        let operations = Operations::new(Vec::new(), Store::in_memory());
        let running = operations.begin(OperationKind::Create, "a", 1, "files");
        let later = Operations::new(operations.list(), Store::in_memory());
        assert_eq!(later.get(running.id()).unwrap().borrow().state, OperationState::Interrupted);
        assert_eq!(later.begin(OperationKind::Stop, "a", 1, "guest").id(), running.id() + 1);
    }

    #[tokio::test]
    async fn what_is_under_way_is_on_disk_and_interrupted_when_its_supervisor_is_killed() {
        let temp = crate::serve::testing::TempDir::new();
        let dir = temp.path().join("state");
        let (store, _) = Store::open(&dir).unwrap();
        let operations = Operations::new(Vec::new(), store.clone());
        operations.begin(OperationKind::Start, "a", 1, "files").end(Ok(()));
        let error = ApiError { code: ErrorCode::Invalid, message: "no".into(), field: Some("cpus".into()) };
        operations.begin(OperationKind::Start, "b", 1, "files").end(Err(error.clone()));
        let running = operations.begin(OperationKind::Create, "c", 1, "files");
        store.settled().await;
        drop(operations);
        store.close();
        let (store, loaded) = Store::open(&dir).unwrap();
        let later = Operations::new(loaded.operations, store.clone());
        let states: Vec<_> = later.list().into_iter().map(|op| (op.vm, op.state, op.error)).collect();
        let expected = [
            ("a".to_owned(), OperationState::Done, None),
            ("b".to_owned(), OperationState::Failed, Some(error)),
            ("c".to_owned(), OperationState::Interrupted, None),
        ];
        assert_eq!(states, expected);
        assert_eq!(later.begin(OperationKind::Stop, "c", 1, "guest").id(), running.id() + 1);
        // And that is on disk, too.
        store.settled().await;
        drop(later);
        store.close();
        let (_, loaded) = Store::open(&dir).unwrap();
        assert_eq!(loaded.operations[2].state, OperationState::Interrupted);
        drop(running);
    }

    #[tokio::test]
    async fn who_waits_hears_the_end_also_of_an_operation_that_is_no_longer_kept() {
        let operations = Operations::new(Vec::new(), Store::in_memory());
        let first = operations.begin(OperationKind::Create, "a", 1, "files");
        let mut waiting = operations.get(first.id()).unwrap();
        first.stage("guest", Some(50));
        assert_eq!(waiting.borrow_and_update().percent, Some(50));
        let id = first.id();
        drop(first);
        for _ in 0..KEPT + 1 {
            operations.begin(OperationKind::Stop, "b", 1, "guest").end(Ok(()));
        }
        assert!(operations.get(id).is_none() && operations.list().len() == KEPT);
        let end = waiting.wait_for(|op| op.state != OperationState::Running).await.unwrap();
        assert_eq!(end.state, OperationState::Cancelled);
    }

    #[test]
    fn who_does_much_keeps_what_others_did_from_no_list() {
        let operations = Operations::new(Vec::new(), Store::in_memory());
        let first = operations.begin(OperationKind::Stop, "a", 1, "guest");
        let id = first.id();
        first.end(Ok(()));
        for _ in 0..2 * KEPT {
            operations.begin(OperationKind::Stop, "b", 2, "guest").end(Ok(()));
        }
        assert!(operations.get(id).is_some());
        assert_eq!(operations.list().len(), KEPT);
    }
}
