//! Places for starts under way. Where several users are served, none of them has all: the others' starts do not wait for
//! files or workers of one who has many that take their time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places.
#[derive(Debug)]
pub struct Starts {
    all: Arc<Semaphore>,
    /// How many one owner has, where there are several.
    share: Option<usize>,
    owners: Mutex<BTreeMap<u32, Weak<Semaphore>>>,
}

/// A place; given back when it is dropped.
#[derive(Debug)]
pub struct Turn {
    _all: OwnedSemaphorePermit,
    _own: Option<OwnedSemaphorePermit>,
}

impl Starts {
    /// So many at a time; of each owner's a part of them where `shared`.
    pub fn new(places: usize, shared: bool) -> Starts {
        let share = shared.then_some((places / 4).max(1));
        Starts { all: Arc::new(Semaphore::new(places)), share, owners: Mutex::default() }
    }

    /// Waits for a place, first among the owner's own, so that who waits for that holds up nobody else.
    pub async fn turn(&self, owner: u32) -> Option<Turn> {
        let own = match self.places_of(owner) {
            Some(places) => Some(places.acquire_owned().await.ok()?),
            None => None,
        };
        Some(Turn { _all: self.all.clone().acquire_owned().await.ok()?, _own: own })
    }

    fn places_of(&self, owner: u32) -> Option<Arc<Semaphore>> {
        let share = self.share?;
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = owners.get(&owner).and_then(Weak::upgrade) {
            return Some(places);
        }
        // Those who start nothing now are nobody's concern.
        owners.retain(|_, places| places.strong_count() > 0);
        let places = Arc::new(Semaphore::new(share));
        owners.insert(owner, Arc::downgrade(&places));
        Some(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    /// What a future gives at once, if anything.
    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn one_owners_starts_leave_places_to_the_others() {
        let starts = Starts::new(16, true);
        let greedy: Vec<Turn> = std::iter::from_fn(|| now(starts.turn(1000)).flatten()).collect();
        assert_eq!(greedy.len(), 4);
        let other = now(starts.turn(1001)).flatten();
        assert!(other.is_some());
        drop(greedy);
        assert!(now(starts.turn(1000)).is_some());
        drop(other);
        assert!(now(starts.turn(1002)).is_some());
        assert_eq!(starts.owners.lock().unwrap().len(), 1, "who is done is forgotten");
    }

    #[test]
    fn a_user_alone_has_all_places() {
        let starts = Starts::new(16, false);
        let all: Vec<Turn> = std::iter::from_fn(|| now(starts.turn(1000)).flatten()).collect();
        assert_eq!(all.len(), 16);
    }
}
