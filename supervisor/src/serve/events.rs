//! What happened, in order: kept in a bounded ring and in the database, told to who listens.
//!
//! A listener has a place in the ring and nothing else: one that does not read falls behind, is told how much it lost, and goes
//! on with what is kept. It holds up nobody.
//!
//! Cursors only ever grow, also where the database was lost, or a supervisor was killed before an event that somebody has
//! seen was written: each supervisor begins with a cursor made of the time, far behind every earlier one.

use super::state::{self, Change, Store};
use crate::api::types::{Event, EventKind};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// How many events are kept; a listener that is further behind is told that it lost some.
pub const KEPT: usize = state::EVENTS_KEPT;
/// Cursors for each millisecond: more than there are events. The number stays exact where programs count in doubles.
const CURSORS_A_MS: u64 = 1 << 10;
/// What is left free where the clock is behind the last cursor: more than can have been seen and not written.
const GAP: u64 = 1 << 20;
/// The longest cause, bytes.
const CAUSE_MAX: usize = 1024;

/// All that happened lately.
#[derive(Debug)]
pub struct Events {
    ring: Mutex<Ring>,
    /// How far it got.
    head: watch::Sender<Head>,
    store: Store,
}

#[derive(Debug, Default)]
struct Ring {
    kept: VecDeque<Event>,
    /// How many went.
    gone: u64,
    /// The cursor of the last of them.
    last_gone: u64,
    /// How many came.
    emitted: u64,
}

/// How far the events got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    /// The cursor of the last one.
    cursor: u64,
    /// There will be no more: this supervisor leaves.
    closed: bool,
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

/// Where a listener is.
#[derive(Debug)]
pub struct Place {
    events: Arc<Events>,
    head: watch::Receiver<Head>,
    /// The last that it has.
    cursor: u64,
    /// How many events of this supervisor's it has or has lost; for counting what it loses.
    passed: u64,
}

/// What a listener gets at once.
#[derive(Debug, Default, PartialEq)]
pub struct Batch {
    /// How many are no longer kept that came before these.
    pub lost: Option<Lost>,
    /// Oldest first.
    pub events: Vec<Event>,
}

/// Events that a listener asked for and that are no longer kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The cursor of the last of them.
    pub cursor: u64,
    /// How many, where that can be told.
    pub count: Option<u64>,
}

impl Events {
    /// Goes on behind what was kept, oldest first.
    pub fn new(kept: Vec<Event>, store: Store) -> Arc<Events> {
        Events::beginning_at(now_ms(), kept, store)
    }

    fn beginning_at(now_ms: u64, kept: Vec<Event>, store: Store) -> Arc<Events> {
        let last = kept.last().map_or(0, |event| event.cursor + GAP);
        let head = Head { cursor: last.max(now_ms * CURSORS_A_MS), closed: false };
        let last_gone = kept.first().map_or(head.cursor, |event| event.cursor - 1);
        let ring = Ring { kept: kept.into(), gone: 0, last_gone, emitted: 0 };
        Arc::new(Events { ring: Mutex::new(ring), head: watch::Sender::new(head), store })
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened.
    pub fn emit(&self, kind: EventKind, about: Option<About<'_>>, cause: impl Into<String>) {
        let mut cause = cause.into();
        while cause.len() > CAUSE_MAX {
            cause.truncate((CAUSE_MAX - 3..=CAUSE_MAX).rfind(|at| cause.is_char_boundary(*at)).unwrap_or(0));
        }
        let mut ring = self.lock();
        let event = Event {
            cursor: self.head.borrow().cursor + 1,
            at_ms: now_ms(),
            kind,
            vm: about.map(|a| a.name.to_owned()),
            id: about.map(|a| a.id.to_owned()),
            owner: about.map(|a| a.owner),
            cause,
        };
        // Queued under the lock, so that the database has them in order; nobody waits for it.
        self.store.queue(Change::Event(event.clone()));
        self.head.send_modify(|head| head.cursor = event.cursor);
        ring.push(event);
    }

    /// How many there were since this supervisor began.
    pub fn count(&self) -> u64 {
        self.lock().emitted
    }

    /// No more events: who listens gets what is left, and the end.
    pub fn close(&self) {
        self.head.send_modify(|head| head.closed = true);
    }

    /// Waits until there are no more events.
    pub async fn closed(&self) {
        let _ = self.head.subscribe().wait_for(|head| head.closed).await;
    }

    /// A place behind `cursor`, or, without one, before everything that is kept.
    pub fn listen(self: &Arc<Self>, cursor: Option<u64>) -> Place {
        let ring = self.lock();
        let head = self.head.subscribe();
        let last = head.borrow().cursor;
        // A cursor of the future is one of a database that was lost while the clock went back: all is news.
        let cursor = match cursor {
            Some(cursor) if cursor <= last => cursor,
            Some(_) => 0,
            None => ring.last_gone,
        };
        let passed = ring.gone + ring.behind(cursor) as u64;
        drop(ring);
        Place { events: self.clone(), head, cursor, passed }
    }

    /// Says what is wrong with the state, whenever that changes.
    pub async fn tell_troubles(self: Arc<Self>, store: Store) {
        let mut troubles = store.troubles();
        let mut told = troubles.borrow_and_update().clone();
        while troubles.changed().await.is_ok() {
            let now = troubles.borrow_and_update().clone();
            match &now {
                Some(trouble) if now != told => {
                    tracing::error!(trouble, "the state cannot be kept");
                    self.emit(EventKind::StateTrouble, None, trouble.as_str());
                }
                None if told.is_some() => tracing::info!("the state can be kept again"),
                _ => {}
            }
            told = now;
        }
    }
}

impl Ring {
    fn push(&mut self, event: Event) {
        self.emitted += 1;
        self.kept.push_back(event);
        while self.kept.len() > KEPT
            && let Some(oldest) = self.kept.pop_front()
        {
            self.gone += 1;
            self.last_gone = oldest.cursor;
        }
    }

    /// How many of those that are kept are not behind `cursor`.
    fn behind(&self, cursor: u64) -> usize {
        self.kept.partition_point(|event| event.cursor <= cursor)
    }
}

impl Place {
    /// What came since the last time, at most `max` events; nothing where there is nothing new.
    pub fn now(&mut self, max: usize) -> Batch {
        let ring = self.events.lock();
        let lost = (self.cursor < ring.last_gone).then(|| Lost {
            cursor: ring.last_gone,
            // A place that was taken behind what had gone already does not know how many those were.
            count: ring.gone.checked_sub(self.passed).filter(|count| *count > 0),
        });
        let from = ring.behind(self.cursor);
        let events: Vec<Event> = ring.kept.range(from..).take(max).cloned().collect();
        self.passed = ring.gone + (from + events.len()) as u64;
        self.cursor = events.last().map_or(self.cursor.max(ring.last_gone), |event| event.cursor);
        if from + events.len() == ring.kept.len() {
            // All that there is, also where the cursor of this supervisor's first event is far away.
            self.cursor = self.cursor.max(self.head.borrow_and_update().cursor);
        }
        Batch { lost, events }
    }

    /// Waits until there is more; false where there will be none.
    pub async fn more(&mut self) -> bool {
        let cursor = self.cursor;
        match self.head.wait_for(|head| head.cursor > cursor || head.closed).await {
            Ok(head) => head.cursor > cursor,
            Err(_) => false,
        }
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::super::state::store_tests::event;
    use super::*;

    fn emit(events: &Events, count: usize) {
        for n in 0..count {
            events.emit(EventKind::Created, None, n.to_string());
        }
    }

    fn causes(batch: &Batch) -> Vec<&str> {
        batch.events.iter().map(|event| event.cause.as_str()).collect()
    }

    #[tokio::test]
    async fn a_listener_gets_what_is_kept_and_what_comes_in_order_and_once() {
        let events = Events::new(Vec::new(), Store::in_memory());
        emit(&events, 3);
        let mut place = events.listen(None);
        assert_eq!(causes(&place.now(2)), ["0", "1"]);
        let mut resumed = events.listen(Some(place.cursor));
        assert_eq!(causes(&place.now(2)), ["2"]);
        assert_eq!(place.now(2), Batch::default());
        let listener = tokio::spawn(async move {
            assert!(place.more().await);
            let batch = place.now(9);
            (batch, place)
        });
        tokio::task::yield_now().await;
        events.emit(EventKind::Ended, None, "late");
        let (batch, mut place) = listener.await.unwrap();
        assert_eq!((causes(&batch), batch.lost), (vec!["late"], None));
        assert_eq!(causes(&resumed.now(9)), ["2", "late"]);
        events.close();
        assert!(!place.more().await);
        events.closed().await;
    }

    #[test]
    fn a_listener_that_does_not_read_is_told_how_much_it_lost_and_goes_on() {
        let events = Events::new(Vec::new(), Store::in_memory());
        emit(&events, 5);
        let mut slow = events.listen(None);
        assert_eq!(slow.now(2).events.len(), 2);
        emit(&events, KEPT + 10);
        let batch = slow.now(1);
        // 2 of 5 it has; the ring holds the last KEPT of KEPT + 15.
        assert_eq!(batch.lost.unwrap().count, Some(13));
        assert_eq!(batch.events[0].cursor, batch.lost.unwrap().cursor + 1);
        assert_eq!(slow.now(1).lost, None);
        // Who begins with what is kept has lost nothing.
        let mut new = events.listen(None);
        let batch = new.now(usize::MAX);
        assert_eq!((batch.lost, batch.events.len()), (None, KEPT));
    }

    #[test]
    fn cursors_never_go_back_whatever_was_lost_and_whatever_the_clock_says() {
        let mut seen = 0;
        for (clock, keeps) in [(1_000_000, true), (5_000_000, true), (10, true), (6_000_000, false), (7_000_000, true)]
        {
            let kept = if keeps && seen > 0 { vec![event(seen)] } else { Vec::new() };
            let events = Events::beginning_at(clock, kept, Store::in_memory());
            // As many as fit the ring can have been seen and not written.
            let mut place = events.listen(None);
            emit(&events, 20);
            let batch = place.now(usize::MAX);
            let fresh: Vec<u64> = batch.events.iter().map(|e| e.cursor).filter(|c| *c != seen).collect();
            assert_eq!(fresh.len(), 20);
            assert!(fresh.iter().all(|cursor| *cursor > seen), "clock {clock}: {fresh:?} after {seen}");
            seen = fresh[19];
        }
    }

    #[test]
    fn who_comes_back_to_a_new_supervisor_goes_on_and_is_told_what_is_gone_for_good() {
        let kept: Vec<Event> = (11..=20).map(event).collect();
        let events = Events::beginning_at(1, kept, Store::in_memory());
        emit(&events, 2);
        let mut place = events.listen(Some(18));
        assert_eq!(causes(&place.now(9)), ["cause 19", "cause 20", "0", "1"]);
        let mut late = events.listen(Some(3));
        let batch = late.now(1);
        assert_eq!(batch.lost, Some(Lost { cursor: 10, count: None }));
        assert_eq!(causes(&batch), ["cause 11"]);
        // Of a database that was lost, by a clock that went back.
        let mut odd = events.listen(Some(u64::MAX));
        let batch = odd.now(usize::MAX);
        assert!(batch.lost.is_some());
        assert_eq!(batch.events.len(), 12);
    }

    #[test]
    fn a_cause_is_bounded() {
        let events = Events::new(Vec::new(), Store::in_memory());
        events.emit(EventKind::Ended, None, "ü".repeat(CAUSE_MAX));
        let batch = events.listen(None).now(1);
        assert_eq!(batch.events[0].cause, "ü".repeat(CAUSE_MAX / 2));
    }

    #[tokio::test]
    async fn a_state_that_cannot_be_kept_is_an_event_once() {
        let temp = crate::serve::testing::TempDir::new();
        let dir = temp.path().join("state");
        let (store, _) = Store::open(&dir).unwrap();
        store.write(vec![Change::Event(event(1))]).await.unwrap();
        store.close();
        let database = rusqlite::Connection::open(dir.join("vmsup.db")).unwrap();
        let full = "CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'disk full'); END";
        database.execute_batch(full).unwrap();
        drop(database);
        let (store, loaded) = Store::open(&dir).unwrap();
        let events = Events::new(loaded.events, store.clone());
        let mut place = events.listen(Some(1));
        tokio::spawn(events.clone().tell_troubles(store.clone()));
        tokio::task::yield_now().await;
        events.emit(EventKind::Created, None, "a");
        let mut told = Vec::new();
        while told.len() < 2 {
            assert!(place.more().await);
            told.extend(place.now(9).events);
        }
        assert_eq!(told[1].kind, EventKind::StateTrouble);
        assert!(told[1].cause.contains("disk full"), "{told:?}");
        // Telling it fails to be written as well, and is no second event.
        store.settled().await;
        events.emit(EventKind::Created, None, "b");
        store.settled().await;
        tokio::task::yield_now().await;
        assert_eq!(causes(&place.now(9)), ["b"]);
    }
}
