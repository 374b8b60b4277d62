//! All VMs of this supervisor, by name. One short lock; nothing slow happens under it.
//!
//! A name belongs to at most one VM that has not ended. A VM that has ended stays listed until it is removed or its
//! name is taken by a new start; then it is *retired*: no longer listed, but found by its id (and by its name while no
//! other has it) for a moment, so that who waited for it still gets the answer.

use super::budget::Budget;
use crate::api::types::{ApiError, ErrorCode, VmState};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// What the registry needs to know of a VM.
pub trait Entry {
    /// Unique for ever.
    fn id(&self) -> &str;
    /// Unique among those that have not ended.
    fn name(&self) -> &str;
    /// Nothing of it runs any more.
    fn ended(&self) -> bool;
}

/// The VMs.
#[derive(Debug)]
pub struct Registry<V> {
    inner: Mutex<Inner<V>>,
    budget: Budget,
    /// How many have not ended; for who waits for the last.
    living: watch::Sender<usize>,
}

#[derive(Debug)]
struct Inner<V> {
    names: BTreeMap<String, Place<V>>,
    retired: Vec<Arc<V>>,
    /// Names in the order in which their VMs ended.
    ended: Vec<String>,
    next_number: u64,
    /// Why no VM is taken any more.
    closed: Option<&'static str>,
}

#[derive(Debug)]
struct Place<V> {
    vm: Arc<V>,
    /// Had the name before, and gets it back if the start fails.
    before: Option<Arc<V>>,
}

impl<V: Entry> Registry<V> {
    /// An empty one. VMs are counted from `first`, a random number.
    pub fn new(first: u64, budget: &Budget) -> Self {
        let inner =
            Inner { names: BTreeMap::new(), retired: Vec::new(), ended: Vec::new(), next_number: first, closed: None };
        Registry { inner: Mutex::new(inner), budget: *budget, living: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<V>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves `name` for the VM that `make` makes of its number.
    ///
    /// # Errors
    /// The name belongs to a VM that has not ended; the supervisor takes no VMs any more.
    pub fn reserve(&self, name: &str, make: impl FnOnce(u64) -> V) -> Result<Arc<V>, ApiError> {
        let mut inner = self.lock();
        if let Some(why) = inner.closed {
            return Err(ApiError { code: ErrorCode::Unavailable, message: why.into(), field: None });
        }
        if inner.names.get(name).is_some_and(|place| !place.vm.ended()) {
            return Err(ApiError {
                code: ErrorCode::Conflict,
                message: format!(
                    "a VM named {name} is there already; stop it first (vmsup stop {name}) or use another name"
                ),
                field: Some("name".into()),
            });
        }
        if *self.living.borrow() >= self.budget.vms {
            let Budget { vms, nofile, .. } = self.budget;
            let message = format!(
                "no room for another VM: this supervisor may have {nofile} files open, which is enough for {vms} VMs; \
                 stop some, or raise the limit (ulimit -Hn) and restart vmsup serve"
            );
            return Err(ApiError { code: ErrorCode::Unavailable, message, field: None });
        }
        let number = inner.next_number;
        inner.next_number = number.wrapping_add(1);
        let vm = Arc::new(make(number));
        let before = inner.names.remove(name).map(|place| place.vm);
        inner.ended.retain(|n| n != name);
        inner.names.insert(name.to_owned(), Place { vm: vm.clone(), before });
        self.living.send_modify(|n| *n += 1);
        Ok(vm)
    }

    /// The VM runs: who had its name before is retired, and returned.
    pub fn confirm(&self, vm: &V) -> Option<Arc<V>> {
        let mut inner = self.lock();
        let before = inner.place(vm)?.before.take()?;
        inner.retire(before.clone(), self.budget.kept);
        Some(before)
    }

    /// The VM never ran: its name is as it was before.
    pub fn release(&self, vm: &V) {
        let mut inner = self.lock();
        if let Some(place) = inner.place(vm) {
            let before = place.before.take();
            inner.names.remove(vm.name());
            if let Some(before) = before {
                inner.ended.push(vm.name().to_owned());
                inner.names.insert(vm.name().to_owned(), Place { vm: before, before: None });
            }
        }
        self.living.send_modify(|n| *n -= 1);
    }

    /// The VM has ended; the oldest of too many goes.
    pub fn ended(&self, vm: &V) {
        let mut inner = self.lock();
        if inner.place(vm).is_some() {
            inner.ended.push(vm.name().to_owned());
            if inner.ended.len() > self.budget.kept {
                let oldest = inner.ended.remove(0);
                inner.names.remove(&oldest);
            }
        }
        self.living.send_modify(|n| *n -= 1);
    }

    /// Takes a VM that has ended off the list; it stays retired.
    pub fn retire(&self, vm: &V) {
        let mut inner = self.lock();
        if let Some(place) = inner.place(vm) {
            let vm = place.vm.clone();
            inner.names.remove(vm.name());
            inner.ended.retain(|n| n != vm.name());
            inner.retire(vm, self.budget.kept);
        }
    }

    /// Forgets a VM that has ended, listed or retired.
    pub fn forget(&self, vm: &V) {
        self.retire(vm);
        self.lock().retired.retain(|r| r.id() != vm.id());
    }

    /// Finds a VM by name or id.
    pub fn find(&self, key: &str) -> Option<Arc<V>> {
        let inner = self.lock();
        if let Some(place) = inner.names.get(key) {
            return Some(place.vm.clone());
        }
        let listed = inner.names.values().flat_map(|place| [Some(&place.vm), place.before.as_ref()]).flatten();
        let by_id = listed.chain(&inner.retired).find(|vm| vm.id() == key);
        by_id.or_else(|| inner.retired.iter().rev().find(|vm| vm.name() == key)).cloned()
    }

    /// All that are listed, by name.
    pub fn list(&self) -> Vec<Arc<V>> {
        self.lock().names.values().map(|place| place.vm.clone()).collect()
    }

    /// Takes no VM any more, and says why to who asks.
    pub fn close(&self, why: &'static str) {
        self.lock().closed.get_or_insert(why);
    }

    /// How many VMs have not ended, as it changes.
    pub fn living(&self) -> watch::Receiver<usize> {
        self.living.subscribe()
    }
}

impl<V: Entry> Inner<V> {
    /// Keeps a VM for those who wait for it; the oldest of too many goes.
    fn retire(&mut self, vm: Arc<V>, kept: usize) {
        self.retired.push(vm);
        if self.retired.len() > kept {
            self.retired.remove(0);
        }
    }

    /// The place of this very VM, not of another one of its name.
    fn place(&mut self, vm: &V) -> Option<&mut Place<V>> {
        self.names.get_mut(vm.name()).filter(|place| place.vm.id() == vm.id())
    }
}

/// True for the states in which nothing of a VM runs any more.
pub fn is_end(state: VmState) -> bool {
    matches!(state, VmState::Stopped | VmState::Crashed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    const LIMITS: Budget = Budget { nofile: 100, vms: 3, starts: 1, connections: 1, kept: 2 };

    #[derive(Debug)]
    struct Fake {
        id: String,
        name: String,
        ended: AtomicBool,
    }
    impl Entry for Fake {
        fn id(&self) -> &str {
            &self.id
        }
        fn name(&self) -> &str {
            &self.name
        }
        fn ended(&self) -> bool {
            self.ended.load(SeqCst)
        }
    }

    fn reserve(registry: &Registry<Fake>, name: &str) -> Result<Arc<Fake>, ApiError> {
        registry.reserve(name, |number| Fake { id: number.to_string(), name: name.into(), ended: false.into() })
    }

    fn end(registry: &Registry<Fake>, vm: &Fake) {
        vm.ended.store(true, SeqCst);
        registry.ended(vm);
    }

    #[test]
    fn of_many_starts_of_one_name_one_wins() {
        let registry = Registry::new(7, &LIMITS);
        let wins = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| match reserve(&registry, "a") {
                    Ok(_) => {
                        wins.fetch_add(1, SeqCst);
                    }
                    Err(e) => assert_eq!(e.code, ErrorCode::Conflict),
                });
            }
        });
        assert_eq!(wins.load(SeqCst), 1);
        assert_eq!(*registry.living().borrow(), 1);
    }

    #[test]
    fn a_name_whose_vm_has_ended_is_taken_by_a_new_start() {
        let registry = Registry::new(0, &LIMITS);
        let first = reserve(&registry, "a").unwrap();
        end(&registry, &first);
        let second = reserve(&registry, "a").unwrap();
        assert_ne!(first.id(), second.id());
        assert_eq!(registry.confirm(&second).unwrap().id(), first.id());
        assert_eq!(registry.list().len(), 1);
        assert_eq!(registry.find("a").unwrap().id(), second.id());
        // Who waited for the first still finds it.
        assert_eq!(registry.find(first.id()).unwrap().id(), first.id());
        registry.forget(&first);
        assert!(registry.find(first.id()).is_none());
    }

    #[test]
    fn a_start_that_fails_gives_the_name_back() {
        let registry = Registry::new(0, &LIMITS);
        let first = reserve(&registry, "a").unwrap();
        registry.release(&first);
        assert!(registry.find("a").is_none());
        let second = reserve(&registry, "a").unwrap();
        end(&registry, &second);
        let third = reserve(&registry, "a").unwrap();
        registry.release(&third);
        assert_eq!(registry.find("a").unwrap().id(), second.id());
        assert_eq!(*registry.living().borrow(), 0);
    }

    #[test]
    fn the_oldest_of_too_many_ended_vms_goes() {
        let registry = Registry::new(0, &LIMITS);
        for n in 0..=LIMITS.kept {
            let vm = reserve(&registry, &format!("vm{n}")).unwrap();
            end(&registry, &vm);
        }
        assert_eq!(registry.list().len(), LIMITS.kept);
        assert!(registry.find("vm0").is_none());
        assert!(registry.find("vm1").is_some());
    }

    #[test]
    fn a_retired_vm_is_not_listed_but_found() {
        let registry = Registry::new(0, &LIMITS);
        let vm = reserve(&registry, "a").unwrap();
        end(&registry, &vm);
        registry.retire(&vm);
        assert!(registry.list().is_empty());
        assert!(registry.find("a").is_some() && registry.find(vm.id()).is_some());
        reserve(&registry, "a").unwrap();
        assert_ne!(registry.find("a").unwrap().id(), vm.id());
    }

    #[test]
    fn a_closed_registry_says_why() {
        let registry = Registry::<Fake>::new(0, &LIMITS);
        registry.close("leaving");
        assert_eq!(reserve(&registry, "a").unwrap_err().message, "leaving");
    }

    #[test]
    fn more_vms_than_there_are_fds_for_are_refused_with_a_sentence() {
        let registry = Registry::new(0, &LIMITS);
        let vms: Vec<_> = (0..LIMITS.vms).map(|n| reserve(&registry, &format!("vm{n}")).unwrap()).collect();
        let error = reserve(&registry, "more").unwrap_err();
        assert_eq!(error.code, ErrorCode::Unavailable);
        assert!(error.message.contains("100 files open"), "{error:?}");
        end(&registry, &vms[0]);
        reserve(&registry, "more").unwrap();
    }

    #[test]
    fn the_oldest_of_too_many_retired_vms_goes() {
        let registry = Registry::new(0, &LIMITS);
        let ids: Vec<String> = (0..=LIMITS.kept)
            .map(|n| {
                let vm = reserve(&registry, &format!("vm{n}")).unwrap();
                end(&registry, &vm);
                registry.retire(&vm);
                vm.id.clone()
            })
            .collect();
        assert!(registry.find(&ids[0]).is_none());
        assert!(ids[1..].iter().all(|id| registry.find(id).is_some()));
    }
}
