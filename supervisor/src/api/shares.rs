//! Places among the connections of a shared supervisor: how many one tenant may take, so that none of them keeps the others out,
//! and all of them together, so that none keeps an administrator out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many connections one tenant has in any case, where there are as many: more than a command makes at a time.
const LEAST: usize = 24;

/// How much is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Taken {
    connections: usize,
    /// Those of them whose answers come when something happens.
    waiting: usize,
}

/// What tenants take.
#[derive(Debug)]
pub struct Shares {
    /// The most of all tenants together.
    all: Taken,
    /// The most of one of them.
    one: Taken,
    taken: Mutex<(Taken, BTreeMap<u32, Taken>)>,
}

/// A tenant's place among the connections; given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    uid: u32,
}

/// A tenant's place among those who wait.
#[derive(Debug)]
pub struct Wait(Arc<Share>);

impl Shares {
    /// Of `count` connections.
    pub fn of(count: usize) -> Arc<Shares> {
        let together = count - (count / 8).clamp(1, 16).min(count.saturating_sub(1));
        let alone = (count / 4).max(LEAST).min(together);
        let taken = |connections: usize| Taken { connections, waiting: connections.div_ceil(2) };
        Arc::new(Shares { all: taken(together), one: taken(alone), taken: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, (Taken, BTreeMap<u32, Taken>)> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection of this tenant's; none where they, or all of them, have too many.
    pub fn enter(self: &Arc<Self>, uid: u32) -> Option<Share> {
        let mut taken = self.lock();
        let own = taken.1.get(&uid).copied().unwrap_or_default();
        if own.connections >= self.one.connections || taken.0.connections >= self.all.connections {
            return None;
        }
        taken.0.connections += 1;
        taken.1.entry(uid).or_default().connections += 1;
        Some(Share { shares: self.clone(), uid })
    }
}

impl Share {
    /// A place among those who wait, for the holder of this one.
    pub fn wait(self: &Arc<Self>) -> Option<Wait> {
        let shares = &self.shares;
        let mut taken = shares.lock();
        let own = taken.1.get(&self.uid).copied().unwrap_or_default();
        if own.waiting >= shares.one.waiting || taken.0.waiting >= shares.all.waiting {
            return None;
        }
        taken.0.waiting += 1;
        taken.1.entry(self.uid).or_default().waiting += 1;
        Some(Wait(self.clone()))
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut taken = self.0.shares.lock();
        taken.0.waiting -= 1;
        if let Some(own) = taken.1.get_mut(&self.0.uid) {
            own.waiting -= 1;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.lock();
        taken.0.connections -= 1;
        if let Some(own) = taken.1.get_mut(&self.uid) {
            own.connections -= 1;
            if *own == Taken::default() {
                taken.1.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(shares: &Arc<Shares>, uid: u32) -> Vec<Arc<Share>> {
        std::iter::from_fn(|| shares.enter(uid).map(Arc::new)).collect()
    }

    #[test]
    fn one_tenant_leaves_places_to_others_and_all_of_them_leave_some_to_administrators() {
        for count in [1, 2, 8, 32, 33, 200, 1024] {
            let shares = Shares::of(count);
            let greedy = take(&shares, 1000);
            assert!(!greedy.is_empty() && (count < 8 || greedy.len() < count), "{count}: {}", greedy.len());
            assert!(count < 32 || greedy.len() >= LEAST, "{count}: {}", greedy.len());
            let mut all = greedy;
            if count >= 100 {
                assert!(shares.enter(1001).is_some(), "{count}");
            }
            for uid in 1001..1010 {
                all.extend(take(&shares, uid));
            }
            assert!(count == 1 || all.len() < count, "{count}: {}", all.len());
            drop(all);
            assert_eq!(*shares.lock(), Default::default(), "all of it is given back");
        }
    }

    #[test]
    fn half_of_a_tenants_places_are_for_waiting() {
        let shares = Shares::of(100);
        let places = take(&shares, 1000);
        let waits: Vec<Wait> = places.iter().map_while(Share::wait).collect();
        assert_eq!(waits.len(), places.len().div_ceil(2));
        let other = Arc::new(shares.enter(1001).unwrap());
        assert!(other.wait().is_some());
        drop(places);
        assert!(shares.lock().1.contains_key(&1000), "who waits still has a connection");
        drop((waits, other));
        assert_eq!(*shares.lock(), Default::default());
    }
}
