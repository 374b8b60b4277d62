//! A model of the supervisor, and what must hold for every world, every source and every crash.

use super::plan::{Action, Plan, Scope, There, Wanted, plan};
use super::steps::{Answer, Call, Next, Outcome, after, first, turns};
use super::{Counts, changes};
use crate::api::types::UpdateDone;
use crate::serve::state::hash;
use crate::spec::VmSpec;
use std::collections::BTreeMap;

/// A VM's file, in one of its versions. Odd versions differ from even ones in what a running guest would notice.
fn spec(name: &str, version: u16) -> VmSpec {
    let text = format!(
        r#"{{"name":"{name}","cpus":{},"memory_mib":32,"boot":{{"builtin":"hello"}},"limits":{{"pids_max":{}}}}}"#,
        1 + version % 2,
        8 + version
    );
    serde_json::from_str(&text).unwrap()
}

/// `name` as the file `SOURCE/NAME.json` wants it.
pub fn wanted(name: &str, version: u16, source: &str) -> Wanted {
    let spec = spec(name, version);
    let path = format!("{source}/{name}.json");
    Wanted { hash: hash::of(&spec), spec, source: source.to_owned(), path: path.clone(), file: path }
}

/// `name` as it is there, running.
pub fn there(name: &str, version: u16, source: Option<&str>) -> There {
    There {
        name: name.to_owned(),
        id: format!("id of {name}"),
        hash: hash::of(&spec(name, version)),
        generation: 1,
        source: source.map(str::to_owned),
        rests: false,
        ended: false,
    }
}

/// A generator that is the same for each seed (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Nothing: it is answered.
    No,
    /// It fails, and has done nothing.
    Before,
    /// It fails, and where it is an update by a restart, the VM has been stopped and changed.
    Halfway,
}

/// The supervisor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct World {
    vms: BTreeMap<String, (There, VmSpec)>,
    ids: u64,
}

impl World {
    fn list(&self) -> Vec<There> {
        self.vms.values().map(|(vm, _)| vm.clone()).collect()
    }

    fn put(&mut self, spec: VmSpec, source: Option<&str>, rests: bool) {
        self.ids += 1;
        let (name, id) = (spec.name.clone(), format!("{:016x}", self.ids));
        let source = source.map(str::to_owned);
        let vm = There { name: name.clone(), id, hash: hash::of(&spec), generation: 1, source, rests, ended: rests };
        self.vms.insert(name, (vm, spec));
    }

    /// Answers a call as the API does.
    fn answer(&mut self, call: Call, plan: &Plan, n: usize, wanted: &[Wanted]) -> Answer {
        let step = &plan.steps[n];
        if call == Call::Create {
            let one = &wanted[step.wanted.unwrap()];
            if self.vms.contains_key(&step.name) {
                return Answer::Failed("a VM of that name is there already".into());
            }
            self.put(one.spec.clone(), Some(&step.source(one)), false);
            return Answer::Done;
        }
        let planned = step.there.as_ref().unwrap();
        let Some((vm, spec)) = self.vms.get_mut(&step.name).filter(|(vm, _)| vm.id == planned.id) else {
            return Answer::NoVm;
        };
        match call {
            Call::Update if vm.generation != planned.generation => Answer::Failed("another generation".into()),
            Call::Update => {
                let one = &wanted[step.wanted.unwrap()];
                vm.source = Some(step.source(one));
                if vm.hash == one.hash {
                    return Answer::Updated(UpdateDone::Nothing);
                }
                let in_place = changes(spec, &one.spec).iter().all(|change| change.field.starts_with("limits"));
                (vm.hash, vm.generation, *spec) = (one.hash.clone(), vm.generation + 1, one.spec.clone());
                Answer::Updated(match (vm.rests, in_place) {
                    (true, _) => UpdateDone::Stored,
                    (false, true) => UpdateDone::InPlace,
                    (false, false) => UpdateDone::Restarted,
                })
            }
            Call::Start => {
                vm.rests = false;
                Answer::Done
            }
            Call::Look => Answer::Seen(There { ended: vm.rests, ..vm.clone() }),
            Call::Stop => {
                vm.rests = true;
                Answer::Done
            }
            Call::Delete if !vm.rests => Answer::Failed("it has not ended".into()),
            Call::Delete => {
                self.vms.remove(&step.name);
                Answer::Done
            }
            Call::Create => unreachable!("answered above"),
        }
    }

    /// Answers a call, or fails it.
    fn call(&mut self, fault: Fault, call: Call, plan: &Plan, n: usize, wanted: &[Wanted]) -> Answer {
        if fault == Fault::No {
            return self.answer(call, plan, n, wanted);
        }
        let name = &plan.steps[n].name;
        if fault == Fault::Halfway && call == Call::Update {
            let mut half = self.clone();
            if half.answer(call, plan, n, wanted) == Answer::Updated(UpdateDone::Restarted) {
                half.vms.get_mut(name).unwrap().0.rests = true;
                *self = half;
            }
        }
        Answer::Failed("the host cannot".into())
    }

    /// Carries out a plan. `interfere` may fail a call, which may be the last one before the end of it all.
    fn carry_out(
        &mut self,
        plan: &Plan,
        wanted: &[Wanted],
        mut interfere: impl FnMut() -> (Fault, bool),
    ) -> Option<Counts> {
        let mut counts = Counts::default();
        for n in turns(plan).into_iter().flatten() {
            let mut next = first(&plan.steps[n]);
            let outcome = loop {
                match next {
                    Next::Done(outcome) => break outcome,
                    Next::Call(call) => {
                        let (fault, is_the_end) = interfere();
                        let answer = self.call(fault, call, plan, n, wanted);
                        if is_the_end {
                            return None;
                        }
                        next = after(&plan.steps[n], call, answer);
                    }
                }
            };
            counts.add(&outcome);
        }
        Some(counts)
    }
}

/// Nothing goes wrong.
fn well() -> (Fault, bool) {
    (Fault::No, false)
}

/// A world with VMs of two sources, of their files alone, and of nobody; and what the source `/s` wants.
fn case(random: &mut Random) -> (World, Vec<Wanted>) {
    const SOURCES: [Option<&str>; 4] = [Some("/s"), Some("/s"), Some("/t"), None];
    let mut world = World::default();
    let mut files = Vec::new();
    for n in 0..6 {
        let name = format!("vm{n}");
        if random.one_in(2) {
            let mut source = SOURCES[random.below(4) as usize].map(str::to_owned);
            if random.one_in(6) {
                source = Some(format!("/s/{name}.json"));
            }
            let version = random.below(4) as u16;
            world.put(spec(&name, version), source.as_deref(), random.one_in(3));
        }
        if random.one_in(2) {
            files.push(wanted(&name, random.below(4) as u16, "/s"));
        }
    }
    (world, files)
}

fn scope<'a>(random: &mut Random, sources: &'a [String]) -> Scope<'a> {
    let (prune, adopt, start) = (random.one_in(2), random.one_in(3), !random.one_in(3));
    Scope { sources, prune, allow_empty: true, adopt, start }
}

/// All cases of all seeds.
fn cases(mut check: impl FnMut(u64, World, Vec<Wanted>, Scope<'_>, &mut Random)) {
    let sources = ["/s".to_owned()];
    for seed in 1..2000 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        random.below(1);
        let (world, files) = case(&mut random);
        let scope = scope(&mut random, &sources);
        check(seed, world, files, scope, &mut random);
    }
}

/// What the world must be: every wanted VM as its file says (but those that are somebody else's), those that are no longer
/// wanted gone or there, everybody else's as they were.
#[track_caller]
fn is_as_wanted(seed: u64, before: &World, world: &World, files: &[Wanted], scope: Scope<'_>) {
    for one in files {
        let name = &one.spec.name;
        let was = before.vms.get(name).map(|(vm, _)| vm);
        let (is, spec) = world.vms.get(name).unwrap_or_else(|| panic!("{seed}: {name} is not there"));
        let kin = |vm: &There| matches!(&vm.source, Some(s) if *s == one.source || *s == one.path);
        if was.is_some_and(|vm| !kin(vm)) && !scope.adopt {
            assert_eq!(Some(is), was, "{seed}: {name} is somebody else's");
            continue;
        }
        assert_eq!((&is.hash, spec, is.source.as_deref()), (&one.hash, &one.spec, Some("/s")), "{seed}: {name}");
        assert_eq!(is.rests, !scope.start && was.is_some_and(|vm| vm.rests), "{seed}: {name}");
    }
    for (name, (was, _)) in before.vms.iter().filter(|(name, _)| files.iter().all(|one| one.spec.name != **name)) {
        let is = world.vms.get(name).map(|(vm, _)| vm);
        let goes = scope.prune && was.source.as_deref() == Some("/s");
        assert_eq!(is, Some(was).filter(|_| !goes), "{seed}: {name}");
    }
    let names = before.vms.keys().chain(files.iter().map(|one| &one.spec.name));
    assert!(world.vms.keys().all(|name| names.clone().any(|known| known == name)), "{seed}: {world:?}");
}

#[test]
fn one_apply_converges_and_a_second_one_does_nothing() {
    cases(|seed, mut world, files, scope, _| {
        let before = world.clone();
        let first = plan(&files, &world.list(), scope).unwrap();
        let counts = world.carry_out(&first, &files, well).unwrap();
        is_as_wanted(seed, &before, &world, &files, scope);
        let refused = first.steps.iter().filter(|step| matches!(step.action, Action::Refuse(_))).count();
        assert_eq!(counts.failed, refused, "{seed}");
        let second = plan(&files, &world.list(), scope).unwrap();
        assert!(
            second.steps.iter().all(|s| matches!(s.action, Action::Nothing | Action::Refuse(_))),
            "{seed}: {second:?}"
        );
        let settled = world.clone();
        let counts = world.carry_out(&second, &files, || panic!("{seed}: a call")).unwrap();
        assert_eq!((counts.done(), &world), (0, &settled), "{seed}");
    });
}

#[test]
fn after_a_crash_at_any_call_another_apply_comes_to_the_same() {
    let mut crashes = 0;
    cases(|seed, world, files, scope, _| {
        let before = world.clone();
        for (fault, calls) in (0..100).flat_map(|calls| [(Fault::Before, calls), (Fault::Halfway, calls)]) {
            let mut world = before.clone();
            let mut left = calls;
            let first = plan(&files, &world.list(), scope).unwrap();
            let whole = world.carry_out(&first, &files, || {
                left -= 1;
                if left < 0 { (fault, true) } else { well() }
            });
            // Only who starts VMs starts one that an update has stopped.
            let scope = Scope { start: scope.start || fault == Fault::Halfway, ..scope };
            let again = plan(&files, &world.list(), scope).unwrap();
            world.carry_out(&again, &files, well).unwrap();
            is_as_wanted(seed, &before, &world, &files, scope);
            if whole.is_some() {
                return;
            }
            crashes += 1;
        }
        panic!("{seed}: 100 calls");
    });
    assert!(crashes > 1000, "{crashes}");
}

#[test]
fn whatever_fails_the_counts_are_honest_and_nobody_else_is_touched() {
    let mut failures = 0;
    cases(|seed, mut world, files, scope, random| {
        let before = world.clone();
        let steps = plan(&files, &world.list(), scope).unwrap();
        let counts = world
            .carry_out(&steps, &files, || {
                ([Fault::No, Fault::No, Fault::Before, Fault::Halfway][random.below(4) as usize], false)
            })
            .unwrap();
        assert_eq!((counts.all(), counts.done() + counts.failed + counts.unchanged), (steps.steps.len(), counts.all()));
        failures += counts.failed;
        // A VM that a count calls done is as it is wanted; and there are as many of them as it says.
        let gone = before.vms.keys().filter(|name| !world.vms.contains_key(*name)).count();
        let new = world.vms.keys().filter(|name| !before.vms.contains_key(*name)).count();
        assert_eq!((counts.removed, counts.created), (gone, new), "{seed}");
        for (name, (was, _)) in &before.vms {
            let ours = matches!(&was.source, Some(s) if s == "/s" || *s == format!("/s/{name}.json"));
            let wanted = files.iter().any(|one| one.spec.name == *name);
            if !(ours || scope.adopt && wanted) || !(wanted || scope.prune) {
                assert_eq!(world.vms.get(name).map(|(vm, _)| vm), Some(was), "{seed}: {name}");
            }
        }
        // And what failed is made good by the next one.
        let again = plan(&files, &world.list(), scope).unwrap();
        world.carry_out(&again, &files, well).unwrap();
        let late_start = Scope { start: false, ..scope };
        assert!(
            plan(&files, &world.list(), late_start)
                .unwrap()
                .steps
                .iter()
                .all(|step| step.action == Action::Nothing || matches!(step.action, Action::Refuse(_))),
            "{seed}"
        );
    });
    assert!(failures > 500, "{failures}");
}

#[test]
fn what_somebody_changed_between_plan_and_call_is_left_alone() {
    let sources = ["/s".to_owned()];
    let scope = Scope { sources: &sources, prune: true, allow_empty: true, adopt: false, start: true };
    let mut world = World::default();
    for name in ["taken", "renewed", "edited"] {
        world.put(spec(name, 0), Some("/s"), false);
    }
    let files = [wanted("edited", 2, "/s")];
    let steps = plan(&files, &world.list(), scope).unwrap();
    let actions: Vec<&Action> = steps.steps.iter().map(|step| &step.action).collect();
    assert_eq!(actions, [&Action::Update { differs: true, start: false }, &Action::Remove, &Action::Remove]);
    world.vms.get_mut("taken").unwrap().0.source = Some("/t".into());
    world.vms.get_mut("edited").unwrap().0.generation += 1;
    // Another VM of the same name.
    world.put(spec("renewed", 0), Some("/s"), false);
    let changed = world.clone();
    let counts = world.carry_out(&steps, &files, well).unwrap();
    assert_eq!(world, changed);
    // The VM that was to be removed is gone: that is what was wanted. The other of its name is not it.
    assert_eq!((counts.failed, counts.removed, counts.all()), (2, 1, 3));
}

#[test]
fn a_failure_names_its_reason() {
    let step = super::Step { name: "a".into(), there: None, wanted: Some(0), action: Action::Create };
    let next = after(&step, Call::Create, Answer::Failed("no room".into()));
    assert_eq!(next, Next::Done(Outcome::Failed("no room".into())));
    assert_eq!(Outcome::Failed("no room".into()).sentence("a"), "a: no room");
}
