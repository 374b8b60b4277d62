//! What is to be written and is not yet: one bounded heap, not a queue.
//!
//! All of it goes into one transaction. So of several changes of one row only the last counts, and what a disk that is slow,
//! full or gone makes wait never grows past what the database would hold.

use super::{Change, EVENTS_KEPT, Intent, OPERATIONS_KEPT};
use crate::api::types::{Event, Operation, OperationState};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The changes that one transaction makes.
#[derive(Debug, Default)]
pub struct Pending {
    /// By number: the row as it is to be, or none.
    pub rows: BTreeMap<u64, Option<Box<Intent>>>,
    /// Oldest first.
    pub events: VecDeque<Event>,
    /// By number.
    pub operations: BTreeMap<u64, Operation>,
}

impl Pending {
    /// One more, instead of what it overtakes.
    pub fn add(&mut self, change: Change) {
        match change {
            Change::Put(intent) => {
                self.rows.insert(intent.number, Some(intent));
            }
            Change::Remove(number) => {
                self.rows.insert(number, None);
            }
            Change::Event(event) => {
                self.events.push_back(event);
            }
            Change::Operation(operation) => {
                self.operations.insert(operation.id, operation);
            }
        }
        self.bound();
    }

    /// Takes back what could not be written: what came later stays as it is. `present` are the numbers of the rows in the
    /// database: there is nothing to remove of others.
    pub fn take_back(&mut self, mut older: Pending, present: &BTreeSet<u64>) {
        older.rows.append(&mut self.rows);
        older.rows.retain(|number, row| row.is_some() || present.contains(number));
        older.events.append(&mut self.events);
        older.operations.append(&mut self.operations);
        *self = older;
        self.bound();
    }

    fn bound(&mut self) {
        while self.events.len() > EVENTS_KEPT {
            self.events.pop_front();
        }
        while self.operations.len() > OPERATIONS_KEPT {
            let over = self.operations.values().find(|op| op.state != OperationState::Running).map(|op| op.id);
            let Some(oldest) = over.or_else(|| self.operations.keys().next().copied()) else { return };
            self.operations.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::store_tests::{event, intent, operation};
    use super::*;

    #[test]
    fn what_a_broken_disk_makes_wait_is_bounded_and_the_last_word_on_each_row_counts() {
        let mut waiting = Pending::default();
        let present: BTreeSet<u64> = [1].into();
        for round in 0..3 * EVENTS_KEPT as u64 {
            let mut fresh = Pending::default();
            fresh.add(Change::Put(Box::new(intent(round + 10, "new"))));
            fresh.add(Change::Remove(round + 10));
            fresh.add(Change::Put(Box::new(intent(2, &format!("round{round}")))));
            fresh.add(Change::Remove(1));
            fresh.add(Change::Event(event(round + 1)));
            fresh.add(Change::Operation(operation(round + 1)));
            fresh.take_back(waiting, &present);
            waiting = fresh;
        }
        let last = 3 * EVENTS_KEPT as u64;
        assert_eq!(waiting.rows.keys().copied().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(waiting.rows[&2].as_ref().unwrap().spec.name, format!("round{}", last - 1));
        assert!(waiting.rows[&1].is_none());
        assert_eq!((waiting.events.len(), waiting.events.back().unwrap().cursor), (EVENTS_KEPT, last));
        assert_eq!(waiting.operations.len(), OPERATIONS_KEPT);
        assert!(waiting.operations.contains_key(&last));
    }
}
