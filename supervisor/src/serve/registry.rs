//! All VMs of this supervisor, by owner and name. One short lock; nothing slow happens under it.
//!
//! A name belongs to one VM of its owner until that is removed, whether it runs or not. A VM that is to be forgotten at its
//! end is *retired* then: no longer listed, but found by its id (and by its name while no other has it) for a moment, so
//! that who waited for it still gets the answer.

use super::budget::Budget;
use super::ops::oldest_of_most;
use crate::api::types::{ApiError, ErrorCode, VmState};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The most VMs of one owner, those that do not run included.
pub const VMS_MAX: usize = 4096;

/// What the registry needs to know of a VM.
pub trait Entry {
    /// Its number: unique for ever.
    fn number(&self) -> u64;
    /// The number as the API shows it.
    fn id(&self) -> &str;
    /// Unique among its owner's.
    fn name(&self) -> &str;
    /// Its owner's uid.
    fn owner(&self) -> u32;
    /// Nothing of it runs, so that it can be started.
    fn rests(&self) -> bool;
    /// Lets go of the console of a run that is over.
    fn drop_console(&self);
    /// It is no longer listed, and counts against nobody's quota.
    fn unlisted(&self);
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Who {
    /// Their uid.
    pub uid: u32,
    /// They see everybody's VMs.
    pub all: bool,
}

impl Who {
    /// Whether what belongs to `owner` is theirs to see and to touch.
    pub fn sees(self, owner: u32) -> bool {
        self.all || self.uid == owner
    }
}

/// The VMs.
#[derive(Debug)]
pub struct Registry<V> {
    inner: Mutex<Inner<V>>,
    budget: Budget,
    /// How many have a place.
    living: Arc<watch::Sender<usize>>,
}

#[derive(Debug)]
struct Inner<V> {
    vms: BTreeMap<(u32, String), Arc<V>>,
    retired: Vec<Arc<V>>,
    /// Those whose last run is over and whose console is kept, in the order in which they ended.
    consoles: Vec<Arc<V>>,
    next_number: u64,
    /// Why no VM is started any more.
    closed: Option<&'static str>,
}

/// A place among the VMs that run or are about to; given back when it is dropped.
#[derive(Debug)]
pub struct Place(Arc<watch::Sender<usize>>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

/// What a name turned out to be.
#[derive(Debug)]
pub enum Reserved<V> {
    /// A new VM's.
    New(Arc<V>, Place),
    /// A VM's that is there and does not run.
    There(Arc<V>, Place),
}

impl<V: Entry> Registry<V> {
    /// An empty one. VMs are counted from `first`, a random number.
    pub fn new(first: u64, budget: &Budget) -> Self {
        let inner =
            Inner { vms: BTreeMap::new(), retired: Vec::new(), consoles: Vec::new(), next_number: first, closed: None };
        Registry { inner: Mutex::new(inner), budget: *budget, living: Arc::new(watch::Sender::new(0)) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<V>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, and `name` of this owner's for the VM that `make` makes of its number, where there is none of that name yet.
    ///
    /// # Errors
    /// The VM of that name runs; its owner has too many; there is no place; `make` does not make it.
    pub fn reserve(
        &self,
        owner: u32,
        name: &str,
        make: impl FnOnce(u64) -> Result<V, ApiError>,
    ) -> Result<Reserved<V>, ApiError> {
        let mut inner = self.lock();
        let there = inner.vms.get(&(owner, name.to_owned())).cloned();
        if there.as_ref().is_some_and(|vm| !vm.rests()) {
            return Err(taken(name));
        }
        let place = self.enter_locked(&inner)?;
        if let Some(vm) = there {
            return Ok(Reserved::There(vm, place));
        }
        let range = (owner, String::new())..;
        if inner.vms.range(range).take_while(|((uid, _), _)| *uid == owner).count() >= VMS_MAX {
            let message =
                format!("uid {owner} has {VMS_MAX} VMs, those that do not run included; remove some (vmsup rm)");
            return Err(ApiError { code: ErrorCode::Unavailable, message, field: None });
        }
        let number = inner.mint();
        let vm = Arc::new(make(number)?);
        inner.vms.insert((owner, name.to_owned()), vm.clone());
        Ok(Reserved::New(vm, place))
    }

    /// A place for a VM that is there.
    ///
    /// # Errors
    /// There is none, or no VM is started any more.
    pub fn enter(&self) -> Result<Place, ApiError> {
        self.enter_locked(&self.lock())
    }

    fn enter_locked(&self, inner: &Inner<V>) -> Result<Place, ApiError> {
        if let Some(why) = inner.closed {
            return Err(ApiError { code: ErrorCode::Unavailable, message: why.into(), field: None });
        }
        if *self.living.borrow() >= self.budget.vms {
            let Budget { vms, nofile, .. } = self.budget;
            let message = format!(
                "no room for another VM: this supervisor may have {nofile} files open, which is enough for {vms} VMs; \
                 stop some, or raise the limit (ulimit -Hn) and restart vmsup serve"
            );
            return Err(ApiError { code: ErrorCode::Unavailable, message, field: None });
        }
        Ok(self.place())
    }

    fn place(&self) -> Place {
        self.living.send_modify(|n| *n += 1);
        Place(self.living.clone())
    }

    /// Takes in a VM of an earlier supervisor; with a place, however many there are, where it `runs`.
    pub fn adopt(&self, vm: &Arc<V>, runs: bool) -> Option<Place> {
        self.lock().vms.insert((vm.owner(), vm.name().to_owned()), vm.clone());
        runs.then(|| self.place())
    }

    /// The VM is there no longer.
    pub fn remove(&self, vm: &V) {
        let mut inner = self.lock();
        inner.unlist(vm);
        inner.retired.retain(|other| other.number() != vm.number());
    }

    /// Takes a VM that has ended off the list; it is still found. Of too many, the oldest of who has most goes.
    pub fn retire(&self, vm: &Arc<V>) {
        let mut inner = self.lock();
        inner.unlist(vm);
        inner.retired.push(vm.clone());
        if inner.retired.len() > self.budget.kept
            && let Some(at) = oldest_of_most(inner.retired.iter().enumerate().map(|(at, vm)| (at, vm.owner())))
        {
            inner.retired.remove(at);
        }
    }

    /// A run of a VM is over, and its console is kept; of too many, that which ended first of who has most goes.
    pub fn keep_console(&self, vm: &Arc<V>) {
        let mut inner = self.lock();
        inner.consoles.retain(|other| other.number() != vm.number());
        inner.consoles.push(vm.clone());
        if inner.consoles.len() > self.budget.kept
            && let Some(at) = oldest_of_most(inner.consoles.iter().enumerate().map(|(at, vm)| (at, vm.owner())))
        {
            inner.consoles.remove(at).drop_console();
        }
    }

    /// The VM runs again, and its console is one of those that do.
    pub fn new_console(&self, vm: &V) {
        self.lock().consoles.retain(|other| other.number() != vm.number());
    }

    /// Finds a VM of the caller's by name or id.
    pub fn find(&self, who: Who, key: &str) -> Option<Arc<V>> {
        let inner = self.lock();
        if let Some(vm) = inner.vms.get(&(who.uid, key.to_owned())) {
            return Some(vm.clone());
        }
        let seen = |vm: &&Arc<V>| who.sees(vm.owner());
        let all = || inner.vms.values().chain(&inner.retired).filter(seen);
        let by_name = || {
            // Of several owners' VMs of that name, none is meant more than another.
            let mut named = inner.vms.values().filter(seen).filter(|vm| vm.name() == key);
            named.next().filter(|_| named.next().is_none())
        };
        let retired = || inner.retired.iter().rev().filter(seen).find(|vm| vm.name() == key);
        all().find(|vm| vm.id() == key).or_else(by_name).or_else(retired).cloned()
    }

    /// All that are listed, by owner and name.
    pub fn list(&self) -> Vec<Arc<V>> {
        self.lock().vms.values().cloned().collect()
    }

    /// Those of them that the caller sees.
    pub fn list_for(&self, who: Who) -> Vec<Arc<V>> {
        self.lock().vms.values().filter(|vm| who.sees(vm.owner())).cloned().collect()
    }

    /// Starts no VM any more, and says why to who asks.
    pub fn close(&self, why: &'static str) {
        self.lock().closed.get_or_insert(why);
    }

    /// How many VMs run or are about to, as it changes.
    pub fn living(&self) -> watch::Receiver<usize> {
        self.living.subscribe()
    }
}

/// The name belongs to a VM that runs.
pub fn taken(name: &str) -> ApiError {
    let message =
        format!("a VM named {name} is there already and runs; stop it first (vmsup stop {name}) or use another name");
    ApiError { code: ErrorCode::Conflict, message, field: Some("name".into()) }
}

impl<V: Entry> Inner<V> {
    /// A number that no VM has.
    fn mint(&mut self) -> u64 {
        loop {
            let number = self.next_number;
            self.next_number = number.wrapping_add(1);
            if !self.vms.values().chain(&self.retired).any(|vm| vm.number() == number) {
                return number;
            }
        }
    }

    /// Takes this very VM off the list, not another one of its name.
    fn unlist(&mut self, vm: &V) {
        let key = (vm.owner(), vm.name().to_owned());
        if self.vms.get(&key).is_some_and(|there| there.number() == vm.number()) {
            self.vms.remove(&key);
            vm.unlisted();
        }
        self.consoles.retain(|other| other.number() != vm.number());
    }
}

/// True for the states in which nothing of a VM runs and nothing will by itself.
pub fn is_end(state: VmState) -> bool {
    matches!(state, VmState::Stopped | VmState::Crashed)
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
