//! Names, places, and who finds whom.

use super::*;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

const LIMITS: Budget = Budget { nofile: 100, vms: 3, starts: 1, looks: 1, connections: 1, kept: 2, files: 0 };
const OWNER: Who = Who { uid: 1000, all: false };
const ROOT: Who = Who { uid: 0, all: true };

#[derive(Debug)]
struct Fake {
    id: String,
    number: u64,
    owner: u32,
    name: String,
    rests: AtomicBool,
    console: AtomicBool,
    unlisted: AtomicBool,
}

impl Entry for Fake {
    fn number(&self) -> u64 {
        self.number
    }
    fn id(&self) -> &str {
        &self.id
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn owner(&self) -> u32 {
        self.owner
    }
    fn rests(&self) -> bool {
        self.rests.load(SeqCst)
    }
    fn drop_console(&self) {
        self.console.store(false, SeqCst);
    }
    fn unlisted(&self) {
        assert!(!self.unlisted.swap(true, SeqCst), "{} was unlisted twice", self.name);
    }
}

fn fake(number: u64, owner: u32, name: &str) -> Fake {
    let id = format!("{number:016x}");
    Fake { id, number, owner, name: name.into(), rests: false.into(), console: true.into(), unlisted: false.into() }
}

fn reserve_for(registry: &Registry<Fake>, owner: u32, name: &str) -> Result<Reserved<Fake>, ApiError> {
    registry.reserve(owner, name, |number| Ok(fake(number, owner, name)))
}

fn new(registry: &Registry<Fake>, owner: u32, name: &str) -> (Arc<Fake>, Place) {
    match reserve_for(registry, owner, name).unwrap() {
        Reserved::New(vm, place) => (vm, place),
        Reserved::There(vm, _) => panic!("{vm:?} was there"),
    }
}

#[test]
fn of_many_starts_of_one_name_one_wins() {
    let registry = Registry::new(7, &LIMITS);
    let wins = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| match reserve_for(&registry, 1000, "a") {
                Ok(reserved) => wins.lock().unwrap().push(reserved),
                Err(e) => assert_eq!(e.code, ErrorCode::Conflict),
            });
        }
    });
    assert_eq!(wins.lock().unwrap().len(), 1);
    assert_eq!(*registry.living().borrow(), 1);
    wins.lock().unwrap().clear();
    assert_eq!(*registry.living().borrow(), 0, "its place was given back");
}

#[test]
fn a_vm_that_rests_keeps_its_name_and_is_what_a_new_start_gets() {
    let registry = Registry::new(0, &LIMITS);
    let (first, place) = new(&registry, 1000, "a");
    drop(place);
    first.rests.store(true, SeqCst);
    match reserve_for(&registry, 1000, "a").unwrap() {
        Reserved::There(vm, _place) => assert_eq!(vm.number(), first.number()),
        Reserved::New(vm, _) => panic!("{vm:?}"),
    }
    registry.remove(&first);
    assert!(registry.find(OWNER, "a").is_none());
    assert_ne!(new(&registry, 1000, "a").0.number(), first.number());
}

#[test]
fn everybody_has_names_of_their_own_and_sees_their_own_vms() {
    let registry = Registry::new(0, &LIMITS);
    let (mine, _one) = new(&registry, 1000, "a");
    let (theirs, _two) = new(&registry, 1001, "a");
    let (other, _three) = new(&registry, 1001, "b");
    assert_eq!(registry.find(OWNER, "a").unwrap().number(), mine.number());
    assert!(registry.find(OWNER, "b").is_none() && registry.find(OWNER, theirs.id()).is_none());
    assert_eq!(registry.list_for(OWNER).len(), 1);
    // Root sees all, by id where a name means several.
    assert_eq!(registry.find(ROOT, "b").unwrap().number(), other.number());
    assert_eq!(registry.find(ROOT, theirs.id()).unwrap().number(), theirs.number());
    assert!(registry.find(ROOT, "a").is_none());
    assert_eq!((registry.list_for(ROOT).len(), registry.list().len()), (3, 3));
}

#[test]
fn a_retired_vm_is_not_listed_but_found() {
    let registry = Registry::new(0, &LIMITS);
    let (vm, _place) = new(&registry, 1000, "a");
    registry.retire(&vm);
    assert!(registry.list().is_empty());
    assert!(registry.find(OWNER, "a").is_some() && registry.find(OWNER, vm.id()).is_some());
    assert!(registry.find(Who { uid: 1001, all: false }, vm.id()).is_none());
    let (next, _place) = new(&registry, 1000, "a");
    assert_eq!(registry.find(OWNER, "a").unwrap().number(), next.number());
    registry.remove(&vm);
    assert!(registry.find(OWNER, vm.id()).is_none());
    assert_eq!(registry.find(OWNER, "a").unwrap().number(), next.number(), "another VM of its name stays");
}

#[test]
fn a_number_is_never_given_twice() {
    let registry = Registry::new(u64::MAX, &LIMITS);
    let there = Arc::new(fake(0, 1000, "adopted"));
    assert!(registry.adopt(&there, false).is_none());
    let numbers = [new(&registry, 1000, "a").0.number(), new(&registry, 1000, "b").0.number()];
    assert_eq!(numbers, [u64::MAX, 1]);
}

#[test]
fn a_closed_registry_says_why() {
    let registry = Registry::<Fake>::new(0, &LIMITS);
    registry.close("leaving");
    assert_eq!(reserve_for(&registry, 1000, "a").unwrap_err().message, "leaving");
    assert_eq!(registry.enter().unwrap_err().message, "leaving");
}

#[test]
fn more_vms_than_there_are_fds_for_are_refused_with_a_sentence() {
    let registry = Registry::new(0, &LIMITS);
    let mut vms: Vec<_> = (0..LIMITS.vms).map(|n| new(&registry, 1000, &format!("vm{n}"))).collect();
    let error = reserve_for(&registry, 1000, "more").unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(error.message.contains("100 files open"), "{error:?}");
    assert_eq!(registry.enter().unwrap_err().code, ErrorCode::Unavailable);
    // Those that were found running stay, however many they are.
    let adopted = Arc::new(fake(99, 1000, "adopted"));
    let place = registry.adopt(&adopted, true).unwrap();
    vms.truncate(1);
    drop(place);
    new(&registry, 1000, "more");
}

#[test]
fn one_owner_has_at_most_so_many_vms_and_the_others_still_theirs() {
    let registry = Registry::new(0, &LIMITS);
    for n in 0..VMS_MAX as u64 {
        registry.adopt(&Arc::new(fake(n, 1000, &format!("vm{n}"))), false);
    }
    let error = reserve_for(&registry, 1000, "more").unwrap_err();
    assert!(error.message.contains("vmsup rm"), "{error:?}");
    assert_eq!(*registry.living().borrow(), 0);
    new(&registry, 1001, "more");
}

#[test]
fn the_oldest_of_too_many_consoles_goes_and_its_vm_stays() {
    let registry = Registry::new(0, &LIMITS);
    let vms: Vec<_> = (0..=LIMITS.kept).map(|n| Arc::new(fake(n as u64, 1000, &format!("vm{n}")))).collect();
    for vm in &vms {
        registry.adopt(vm, false);
    }
    registry.keep_console(&vms[0]);
    registry.keep_console(&vms[1]);
    // It ran again: now it is the younger one.
    registry.new_console(&vms[0]);
    registry.keep_console(&vms[0]);
    registry.keep_console(&vms[2]);
    let kept: Vec<bool> = vms.iter().map(|vm| vm.console.load(SeqCst)).collect();
    assert_eq!(kept, [true, false, true]);
    assert_eq!(registry.list().len(), vms.len());
}

#[test]
fn the_oldest_of_too_many_retired_vms_goes() {
    let registry = Registry::new(0, &LIMITS);
    let counted = AtomicUsize::new(0);
    let ids: Vec<String> = (0..=LIMITS.kept)
        .map(|n| {
            let (vm, _place) = new(&registry, 1000, &format!("vm{n}"));
            registry.retire(&vm);
            counted.fetch_add(1, SeqCst);
            vm.id.clone()
        })
        .collect();
    assert_eq!(counted.load(SeqCst), LIMITS.kept + 1);
    assert!(registry.find(OWNER, &ids[0]).is_none());
    assert!(ids[1..].iter().all(|id| registry.find(OWNER, id).is_some()));
}
