//! What happened, in order: kept in a bounded ring and in the database, told to who listens.

use super::state::{Change, Store};
use crate::api::types::{Event, EventKind};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// How many events are kept; a listener that is further behind is told that it lost some.
pub const KEPT: usize = 4096;

/// All that happened lately.
#[derive(Debug)]
pub struct Events {
    ring: Mutex<VecDeque<Event>>,
    /// The cursor of the last one.
    last: watch::Sender<u64>,
    store: Store,
}

/// The VM that an event is about.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its id.
    pub id: &'a str,
    /// Its owner's uid.
    pub owner: u32,
}

impl Events {
    /// Goes on behind what was kept, oldest first.
    pub fn new(kept: Vec<Event>, store: Store) -> Arc<Events> {
        let last = kept.last().map_or(0, |event| event.cursor);
        Arc::new(Events { ring: Mutex::new(kept.into()), last: watch::Sender::new(last), store })
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened.
    pub fn emit(&self, kind: EventKind, about: Option<About<'_>>, cause: impl Into<String>) {
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let mut ring = self.lock();
        let event = Event {
            cursor: *self.last.borrow() + 1,
            at_ms,
            kind,
            vm: about.map(|a| a.name.to_owned()),
            id: about.map(|a| a.id.to_owned()),
            owner: about.map(|a| a.owner),
            cause: cause.into(),
        };
        // Queued under the lock, so that the database has them in order; nobody waits for it.
        drop(self.store.write(vec![Change::Event(event.clone())]));
        self.last.send_replace(event.cursor);
        ring.push_back(event);
        while ring.len() > KEPT {
            ring.pop_front();
        }
    }

    /// What came after `cursor`, at most `max`, oldest first; and whether some of it is no longer kept.
    pub fn after(&self, cursor: u64, max: usize) -> (Vec<Event>, bool) {
        let ring = self.lock();
        let lost = ring.front().is_some_and(|first| first.cursor > cursor.saturating_add(1));
        (ring.iter().filter(|event| event.cursor > cursor).take(max).cloned().collect(), lost)
    }

    /// The cursor of the last event, as it changes.
    pub fn last(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_goes_on_where_it_was_and_says_what_was_lost() {
        let events = Events::new(Vec::new(), Store::in_memory());
        for n in 0..KEPT + 10 {
            events.emit(EventKind::Created, None, n.to_string());
        }
        let (first, lost) = events.after(0, 3);
        assert!(lost);
        assert_eq!(first.iter().map(|e| e.cursor).collect::<Vec<_>>(), [11, 12, 13]);
        let (next, lost) = events.after(13, 1);
        assert!(!lost);
        assert_eq!((next[0].cursor, next[0].cause.as_str()), (14, "13"));
        let later = Events::new(next, Store::in_memory());
        later.emit(EventKind::Removed, None, "again");
        assert_eq!(later.after(14, 9).0[0].cursor, 15);
    }
}
