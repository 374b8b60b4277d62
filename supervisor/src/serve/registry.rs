//! All VMs of this supervisor, by name. One short lock; nothing slow happens under it.
//!
//! A name belongs to at most one VM that has not ended. A VM that has ended stays listed until it is removed or its
//! name is taken by a new start; then it is *retired*: no longer listed, but found by its id (and by its name while no
//! other has it) for a moment, so that who waited for it still gets the answer.

use crate::api::types::{ApiError, ErrorCode, VmState};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// How many VMs that have ended are kept; the oldest go.
pub const ENDED_KEPT: usize = 64;

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
    /// How many have not ended; for who waits for the last.
    living: watch::Sender<usize>,
}

#[derive(Debug)]
struct Inner<V> {
    names: BTreeMap<String, Place<V>>,
    retired: Vec<Arc<V>>,
    /// Names in the order in which their VMs ended.
    ended: Vec<String>,
    next_id: u64,
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
    /// An empty one. Ids are counted from `first_id`, a random number.
    pub fn new(first_id: u64) -> Self {
        let inner =
            Inner { names: BTreeMap::new(), retired: Vec::new(), ended: Vec::new(), next_id: first_id, closed: None };
        Registry { inner: Mutex::new(inner), living: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<V>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves `name` for the VM that `make` makes of its id.
    ///
    /// # Errors
    /// The name belongs to a VM that has not ended; the supervisor takes no VMs any more.
    pub fn reserve(&self, name: &str, make: impl FnOnce(String) -> V) -> Result<Arc<V>, ApiError> {
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
        let id = inner.next_id;
        inner.next_id = id.wrapping_add(1);
        let vm = Arc::new(make(format!("{id:016x}")));
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
        inner.retired.push(before.clone());
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
            if inner.ended.len() > ENDED_KEPT {
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
            inner.retired.push(vm);
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
        registry.reserve(name, |id| Fake { id, name: name.into(), ended: false.into() })
    }

    fn end(registry: &Registry<Fake>, vm: &Fake) {
        vm.ended.store(true, SeqCst);
        registry.ended(vm);
    }

    #[test]
    fn of_many_starts_of_one_name_one_wins() {
        let registry = Registry::new(7);
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
        let registry = Registry::new(0);
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
        let registry = Registry::new(0);
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
        let registry = Registry::new(0);
        for n in 0..=ENDED_KEPT {
            let vm = reserve(&registry, &format!("vm{n}")).unwrap();
            end(&registry, &vm);
        }
        assert_eq!(registry.list().len(), ENDED_KEPT);
        assert!(registry.find("vm0").is_none());
        assert!(registry.find("vm1").is_some());
    }

    #[test]
    fn a_retired_vm_is_not_listed_but_found() {
        let registry = Registry::new(0);
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
        let registry = Registry::<Fake>::new(0);
        registry.close("leaving");
        assert_eq!(reserve(&registry, "a").unwrap_err().message, "leaving");
    }
}
