//! That the filters do what their files say, under the real kernel: every rule kept to and every condition broken, every
//! other call of the table, numbers of other tables; and that nothing could change in a file without one of these seeing it.
//!
//! What has to be is decided from the files alone (`proof/oracle.rs`). What is, is asked of the kernel (a helper program
//! tries each call in children, `tests/src/verdicts.rs`) and of the interpreter that `vmsup policy check` is made of.

mod proof;

use policy_set::bpf::{Instruction, validate};
use policy_set::compile::compile;
use policy_set::model::{Action, Filter, Set};
use proof::mutants::{self, Kind, Mutant};
use proof::samples::{self, Case};
use proof::{Random, interpreted, oracle, programs};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use vmsup_tests::verdicts::{Abi, Kernel, Refused, Sample, Verdict, passed_by_the_kernel};

fn kernel() -> Kernel {
    Kernel::start(env!("CARGO_BIN_EXE_vmsup-verdicts"))
}

/// The filters as they are compiled into the programs.
fn compiled_in() -> BTreeMap<&'static str, Vec<Instruction>> {
    let program = |f: &policies::Filter| {
        f.program.iter().map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect()
    };
    policies::ALL.iter().map(|f| (f.name, program(f))).collect()
}

/// What is in force together: each filter alone, and each worker thread's on top of the start-up filter.
fn in_force(filters: &BTreeMap<String, Filter>) -> Vec<Vec<&Filter>> {
    let startup = &filters["worker-startup"];
    let threads = filters.values().filter(|f| f.process() == "worker" && f.name != startup.name);
    filters.values().map(|f| vec![f]).chain(threads.map(|f| vec![startup, f])).collect()
}

/// The reader, the compiler and the build have the files say what they say, and what is shown is what is in force.
#[test]
fn what_is_compiled_in_is_what_the_files_say() {
    let said = oracle::filters();
    let compiled_in = compiled_in();
    assert!(said.keys().eq(compiled_in.keys()), "a filter for each file");
    let from_folder = Set::from_folder(&oracle::folder()).unwrap();
    let texts = policies::FILES.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
    for set in [from_folder, Set::from_texts("compiled in", texts).unwrap()] {
        for (name, plain) in &said {
            let filter = set.filter(oracle::ARCH, name).unwrap();
            let rules = |f: &Filter| f.rules.iter().map(policy_set::model::Rule::key).collect::<Vec<_>>();
            assert_eq!(rules(filter), rules(plain), "{}: {name}", set.origin);
            assert_eq!((filter.default, filter.matched), (plain.default, plain.matched), "{}: {name}", set.origin);
            assert_eq!(compile(filter).unwrap(), compiled_in[&**name], "{}: {name}", set.origin);
        }
    }
}

/// How stacks are named: `worker-startup + worker-vcpu`.
fn name(filters: &[&Filter]) -> String {
    filters.iter().map(|f| f.name.as_str()).collect::<Vec<_>>().join(" + ")
}

/// Runs `judge` for each stack, on as many threads as there are processors, each with a helper program of its own.
fn with_each_stack(judge: impl Fn(&mut Kernel, &[&Filter], &[&[Instruction]]) + Sync) {
    let (filters, programs) = (oracle::filters(), compiled_in());
    let stacks = in_force(&filters);
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().min(4));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut kernel = kernel();
                while let Some(stack) = stacks.get(next.fetch_add(1, Relaxed)) {
                    let programs: Vec<&[Instruction]> = stack.iter().map(|f| &*programs[&*f.name]).collect();
                    judge(&mut kernel, stack, &programs);
                }
            });
        }
    });
}

/// What the kernel does with each, but [`Verdict::Killed`] for what no filter gets to see.
fn ask(kernel: &mut Kernel, programs: &[&[Instruction]], samples: &[Sample]) -> Vec<Verdict> {
    let filtered = |(seen, sample): (Verdict, &Sample)| match seen {
        // This kernel may have no way in for 32-bit programs.
        Verdict::Signal(libc::SIGSEGV) if sample.abi == Abi::I386 => Verdict::Killed,
        Verdict::Signal(libc::SIGILL) | Verdict::Errno(ENXIO) if passed_by_the_kernel(sample) => Verdict::Killed,
        seen => seen,
    };
    kernel.ask(programs, samples).unwrap().into_iter().zip(samples).map(filtered).collect()
}

const ENXIO: u16 = libc::ENXIO as u16;

/// The whole table of a stack: what its rules say, and every other number.
fn table(stack: &[&Filter]) -> Vec<Case> {
    let mut cases = samples::of_rules(stack);
    cases.extend(samples::of_numbers(stack));
    cases
}

/// What differs from what has to be, in words.
fn differences(cases: &[Case], seen: impl Iterator<Item = Verdict>) -> Vec<String> {
    let differs = |(case, seen): (&Case, Verdict)| {
        (case.expected != seen).then(|| format!("{}: {} was {seen}, not {}", case.what, case.sample, case.expected))
    };
    cases.iter().zip(seen).filter_map(differs).collect()
}

/// What shows that the helper program tells all apart, and makes no call.
#[test]
fn the_kernel_can_be_asked() {
    let mut kernel = kernel();
    let ret = |k| Instruction { code: 0x06, jt: 0, jf: 0, k };
    let (allow, kill) = (ret(0x7fff_0000), ret(0x8000_0000));
    // What would end the helper, or this test, were it made.
    let parent = u64::from(std::process::id());
    let fatal = [
        Sample::native(libc::SYS_exit_group as u32, [7; 6]),
        Sample::native(libc::SYS_kill as u32, [parent, 9, 0, 0, 0, 0]),
        Sample::native(libc::SYS_munmap as u32, [0, u64::MAX >> 17 << 12, 0, 0, 0, 0]),
        Sample::native(libc::SYS_rt_sigreturn as u32, [0; 6]),
        Sample::native(libc::SYS_seccomp as u32, [0; 6]),
    ];
    assert_eq!(kernel.ask(&[&[allow]], &fatal), Ok(vec![Verdict::Allowed; 5]));
    assert_eq!(kernel.ask(&[], &fatal), Ok(vec![Verdict::Allowed; 5]));
    assert_eq!(kernel.ask(&[&[kill]], &fatal), Ok(vec![Verdict::Killed; 5]));
    assert_eq!(kernel.ask(&[&[ret(0)]], &fatal), Ok(vec![Verdict::ThreadKilled; 5]));
    assert_eq!(kernel.ask(&[&[ret(0x0003_0009)]], &fatal), Ok(vec![Verdict::Trapped(9); 5]));
    assert_eq!(kernel.ask(&[&[ret(0x0005_0026)]], &fatal), Ok(vec![Verdict::Errno(38); 5]));
    // Loads a word from beside struct seccomp_data.
    let beside = Instruction { code: 0x20, jt: 0, jf: 0, k: 64 };
    assert_eq!(kernel.ask(&[&[allow], &[beside, allow]], &fatal), Err(Refused { filter: 1, errno: libc::EINVAL }));
}

#[test]
fn every_rule_is_kept_to_and_every_other_call_denied_by_the_kernel() {
    with_each_stack(|kernel, stack, programs| {
        let cases = samples::for_the_kernel(stack, table(stack));
        let samples: Vec<Sample> = cases.iter().map(|c| c.sample).collect();
        let begun = std::time::Instant::now();
        let verdicts = ask(kernel, programs, &samples);
        let wrong = differences(&cases, verdicts.into_iter());
        println!("{}: {} calls, {:?}", name(stack), cases.len(), begun.elapsed());
        assert!(wrong.is_empty(), "{}: {wrong:#?}", name(stack));
    });
}

/// For all arguments, not for samples.
#[test]
fn every_way_through_a_compiled_filter_is_that_of_a_rule() {
    let programs = compiled_in();
    for filter in oracle::filters().values() {
        let ways =
            proof::paths::prove(&programs[&*filter.name], filter).unwrap_or_else(|e| panic!("{}: {e}", filter.name));
        assert!(ways > filter.rules.len());
        println!("{}: {ways} ways", filter.name);
    }
}

#[test]
fn the_interpreter_finds_the_same_in_the_whole_table() {
    let (filters, programs) = (oracle::filters(), compiled_in());
    for stack in in_force(&filters) {
        let programs: Vec<&[Instruction]> = stack.iter().map(|f| &*programs[&*f.name]).collect();
        let cases = table(&stack);
        let wrong = differences(&cases, cases.iter().map(|c| interpreted(&programs, &c.sample)));
        assert!(wrong.is_empty(), "{}: {wrong:#?}", name(&stack));
    }
}

/// Samples of each stack, many of them close to where a rule changes its mind.
const RANDOM_SAMPLES: usize = 3_000;

#[test]
fn the_interpreter_agrees_with_the_kernel_on_random_samples() {
    with_each_stack(|kernel, stack, programs| {
        let mut random = Random::new(stack.len() as u64 + stack.iter().map(|f| f.rules.len() as u64).sum::<u64>());
        let samples: Vec<Sample> = (0..RANDOM_SAMPLES).map(|_| samples::random(stack, &mut random)).collect();
        let verdicts = ask(kernel, programs, &samples);
        let mut allowed = 0;
        for (sample, seen) in samples.iter().zip(verdicts) {
            assert_eq!(seen, interpreted(programs, sample), "{}: {sample}", name(stack));
            assert_eq!(seen, oracle::expected(stack, sample), "{}: {sample}", name(stack));
            allowed += usize::from(seen == Verdict::Allowed);
        }
        println!("{}: of {RANDOM_SAMPLES} random samples {allowed} allowed", name(stack));
        assert!((RANDOM_SAMPLES / 20..RANDOM_SAMPLES).contains(&allowed), "{}: {allowed}", name(stack));
    });
}

/// How a mutant was caught.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Caught {
    /// It does not compile.
    Compiler,
    /// This call of the table is not as it has to be.
    Table,
    /// Only a way through it shows it, which no call of the table goes.
    Ways,
}

/// Where the table, as the interpreter or the kernel sees it, or a way shows that a mutant is one.
fn caught(mutant: &Mutant, original: &Filter, cases: &[Case]) -> Option<Caught> {
    let Ok(program) = compile(&mutant.filter) else { return Some(Caught::Compiler) };
    let differs = |case: &&Case| interpreted(&[&program], &case.sample) != case.expected;
    // The fate of no other call can have changed: where the ways do not differ, nothing does.
    let nr = mutant.syscall.as_deref().and_then(|call| oracle::ARCH.number(call));
    let by_table = cases.iter().filter(|c| nr.is_none_or(|nr| c.sample.nr == nr)).any(|c| differs(&c));
    let by_ways = proof::paths::prove(&program, original).is_err();
    assert!(
        by_ways || !by_table,
        "{:?} {}: {:?}: the ways miss what the table sees",
        mutant.kind,
        original.name,
        mutant.what
    );
    match (by_table, by_ways) {
        (true, _) => Some(Caught::Table),
        (_, true) => Some(Caught::Ways),
        _ => None,
    }
}

/// Change anything in a file, and the tests above fail: the original's table and rules, held against each mutant.
#[test]
fn every_mutant_of_a_filter_is_caught() {
    let mut counts: BTreeMap<(Kind, String), usize> = BTreeMap::new();
    for original in oracle::filters().values() {
        let cases = table(&[original]);
        for mutant in mutants::of(original) {
            let caught = caught(&mutant, original, &cases);
            let name = format!("{}: {:?}: {}", original.name, mutant.kind, mutant.what);
            let how = match (&mutant.equivalent, caught) {
                (None, Some(how)) => format!("{how:?}"),
                (Some(why), None) => format!("equivalent: {why}").chars().take(60).collect(),
                (None, None) => panic!("{name}: not caught"),
                (Some(why), Some(how)) => panic!("{name}: {how:?}, although {why}"),
            };
            *counts.entry((mutant.kind, how)).or_default() += 1;
        }
    }
    for ((kind, how), count) in &counts {
        println!("{count:5} {kind:?}: {how}");
    }
}

/// Of each kind of mutant, so many of each filter are held against the kernel, too.
const OF_A_KIND: usize = 3;

/// The kernel asks no filter about these (`passed_by_the_kernel`).
fn unfilterable(mutant: &Mutant) -> bool {
    matches!(mutant.syscall.as_deref(), Some("uprobe" | "uretprobe"))
}

#[test]
fn mutants_of_every_kind_are_caught_by_the_kernel() {
    let mut kernel = kernel();
    let mut counts: BTreeMap<Kind, usize> = BTreeMap::new();
    for original in oracle::filters().values() {
        let cases = table(&[original]);
        let mut kinds: BTreeMap<Kind, Vec<Mutant>> = BTreeMap::new();
        for mutant in mutants::of(original).into_iter().filter(|m| m.equivalent.is_none() && !unfilterable(m)) {
            kinds.entry(mutant.kind).or_default().push(mutant);
        }
        for (kind, mutants) in kinds {
            // No call of the table goes where this one differs: only the ways show it.
            if kind == Kind::RuleWithConditionAdded {
                continue;
            }
            for mutant in mutants.iter().step_by(mutants.len().div_ceil(OF_A_KIND)) {
                // A log's line does not show here.
                if mutant.filter.matched == Action::Log {
                    continue;
                }
                let program = compile(&mutant.filter).unwrap();
                let nr = mutant.syscall.as_deref().and_then(|call| oracle::ARCH.number(call));
                let cases: Vec<Case> = match nr {
                    Some(nr) => cases.iter().filter(|c| c.sample.nr == nr).cloned().collect(),
                    None => cases.iter().step_by(97).cloned().collect(),
                };
                let samples: Vec<Sample> = cases.iter().map(|c| c.sample).collect();
                let seen = ask(&mut kernel, &[&program], &samples);
                let what = format!("{}: {kind:?}: {}", original.name, mutant.what);
                assert!(!differences(&cases, seen.into_iter()).is_empty(), "{what}");
                *counts.entry(kind).or_default() += 1;
            }
        }
    }
    println!("{counts:?}");
    assert_eq!(counts.len(), 13, "every kind but one: {counts:?}");
}

const RANDOM_PROGRAMS: usize = 1_500;

#[test]
fn the_interpreter_agrees_with_the_kernel_on_random_programs() {
    let mut kernel = kernel();
    let mut random = Random::new(3);
    let (mut taken, mut verdicts) = (0, BTreeMap::<String, usize>::new());
    for number in 0..RANDOM_PROGRAMS {
        let program = programs::random(&mut random);
        let samples: Vec<Sample> = (0..4)
            .map(|_| {
                let arg = |_| u64::from(programs::word(&mut random)) << 32 | u64::from(programs::word(&mut random));
                let args = std::array::from_fn(arg);
                Sample::native(random.below(330) as u32, args)
            })
            .collect();
        // Where the call comes from is not the same twice.
        let samples = match program.iter().any(|i| i.code == 0x20 && (8..16).contains(&i.k)) {
            true => Vec::new(),
            false => samples,
        };
        let valid = validate(&program);
        match kernel.ask(&[&program], &samples) {
            Ok(seen) => {
                assert!(valid.is_ok(), "{number}: the kernel takes it: {valid:?} {program:x?}");
                taken += 1;
                for (sample, seen) in samples.iter().zip(seen) {
                    let expected = interpreted(&[&program], sample);
                    assert_eq!(seen, expected, "{number}: {sample}: {program:x?}");
                    *verdicts.entry(seen.to_string().split(' ').next().unwrap().to_owned()).or_default() += 1;
                }
            }
            Err(refused) => {
                assert_eq!(refused, Refused { filter: 0, errno: libc::EINVAL }, "{program:x?}");
                assert!(valid.is_err(), "{number}: the kernel refuses it: {program:x?}");
            }
        }
    }
    println!("of {RANDOM_PROGRAMS} programs {taken} taken: {verdicts:?}");
    assert!((RANDOM_PROGRAMS / 5..RANDOM_PROGRAMS * 9 / 10).contains(&taken), "{taken}");
    assert_eq!(verdicts.len(), 5, "each verdict was there: {verdicts:?}");
}
