//! The table: calls to be tried, made from the rules.

use crate::proof::Random;
use crate::proof::oracle::{self, ARCH, holds};
use policy_set::model::{Condition, Filter, Op, Rule, Width};
use vmsup_tests::verdicts::{Abi, Sample, Verdict};

/// x86_64's second table of numbers, `__X32_SYSCALL_BIT`.
pub const X32: u32 = 0x4000_0000;

/// A call, and what has to become of it.
#[derive(Debug, Clone)]
pub struct Case {
    /// The call.
    pub sample: Sample,
    /// What has to become of it.
    pub expected: Verdict,
    /// What is tried by it.
    pub what: String,
}

/// For each rule of these filters: it is kept to, and each of its conditions is broken. A condition that cannot be broken so
/// that the call is denied is a panic: it would not be needed.
pub fn of_rules(filters: &[&Filter]) -> Vec<Case> {
    let mut cases = Vec::new();
    for filter in filters {
        for rule in &filter.rules {
            let nr = ARCH.number(&rule.syscall).unwrap_or_else(|| panic!("no call {}", rule.syscall));
            let name = format!("{} {}", filter.name, rule.key());
            let mut case = |args, what: String| {
                let sample = Sample::native(nr, args);
                let expected = oracle::expected(filters, &sample);
                cases.push(Case { sample, expected, what: format!("{name}: {what}") });
                expected
            };
            let good = kept(rule);
            for args in &good {
                let verdict = case(*args, "kept to".to_owned());
                assert!(verdict == Verdict::Allowed || filters.len() > 1, "{name}: {args:x?}");
            }
            for condition in &rule.conditions {
                let mut denied = false;
                for value in values_around(condition) {
                    let mut args = good[0];
                    args[usize::from(condition.index)] = value;
                    if !holds(condition, &args) {
                        denied |= case(args, format!("{condition} broken")) == Verdict::Killed;
                        // What is in the other arguments does not make up for it.
                        let others = args.map(|_| u64::MAX);
                        args = std::array::from_fn(|i| if conditioned(rule, i) { args[i] } else { others[i] });
                        case(args, format!("{condition} broken, all ones elsewhere"));
                    }
                }
                assert!(denied, "{name}: other rules allow whatever {condition} denies");
            }
        }
    }
    cases
}

/// Every call of the table and what is behind it, negative numbers, and the other tables of numbers.
pub fn of_numbers(filters: &[&Filter]) -> Vec<Case> {
    let table = ARCH.syscalls();
    let last = table.last().unwrap().0;
    let mut random = Random::new(2);
    let mut samples = Vec::new();
    for (nr, _) in &table {
        samples.push((Sample::native(*nr, [0; 6]), "of the table, with zeroes"));
        samples.push((Sample::native(*nr, [u64::MAX; 6]), "of the table, with ones"));
        samples.push((Sample::native(*nr, std::array::from_fn(|_| random.next())), "of the table, with noise"));
    }
    samples.extend((last + 1..=last + 100).map(|nr| (Sample::native(nr, [0; 6]), "behind the table")));
    let wild = [u32::MAX, u32::MAX - 1, 0x8000_0000, 0x7fff_ffff, X32, X32 | 0x1ff, 0x1_0000, 0xffff];
    samples.extend(wild.iter().map(|nr| (Sample::native(*nr, [0; 6]), "a wild number")));
    if cfg!(target_arch = "x86_64") {
        samples.extend(table.iter().map(|(nr, _)| (Sample::native(nr | X32, [0; 6]), "of the table of x32")));
        // x32 has some of its calls beside the others, under numbers of their own.
        samples.extend((512..=547).map(|nr| (Sample::native(nr | X32, [0; 6]), "of the table of x32")));
        // Those that it does allow, and those whose numbers mean another call in a 32-bit program.
        for filter in filters {
            for rule in &filter.rules {
                let nr = ARCH.number(&rule.syscall).unwrap();
                let kept = kept(rule)[0];
                samples.push((Sample::native(nr | X32, kept), "a rule kept to, in the table of x32"));
                samples.push((Sample::native(nr | 0x8000_0000, kept), "a rule kept to, the number negative"));
                samples.push((Sample { abi: Abi::I386, nr, args: kept }, "a rule kept to, by int 0x80"));
            }
        }
        samples.extend((0..=460).step_by(4).map(|nr| (Sample { abi: Abi::I386, nr, args: [0; 6] }, "by int 0x80")));
    }
    let case = |(sample, what): (Sample, &str)| Case {
        sample,
        expected: oracle::expected(filters, &sample),
        what: format!("{} {what}", ARCH.syscall(sample.nr).unwrap_or("a number")),
    };
    samples.into_iter().map(case).collect()
}

/// Of a table, what is worth a child each: all that is allowed, and of what is denied all, but of each call of the table
/// that no rule names only one.
pub fn for_the_kernel(filters: &[&Filter], cases: Vec<Case>) -> Vec<Case> {
    let named = |nr: u32| {
        let name = ARCH.syscall(nr);
        filters.iter().flat_map(|f| &f.rules).any(|r| Some(&*r.syscall) == name)
    };
    let mut seen = std::collections::HashSet::new();
    let once = |case: &Case| {
        let again = !seen.insert((case.sample.abi, case.sample.nr));
        !(again && case.expected == Verdict::Killed && !named(case.sample.nr))
    };
    cases.into_iter().filter(once).collect()
}

fn conditioned(rule: &Rule, index: usize) -> bool {
    rule.conditions.iter().any(|c| usize::from(c.index) == index)
}

/// Arguments that a rule allows, the first ones as plain as can be. Each value around its conditions that keeps to them all
/// is in one of them; what is not looked at is once all zeroes, all ones, and noise.
pub fn kept(rule: &Rule) -> Vec<[u64; 6]> {
    let mut random = Random::new(1);
    let choices: [Vec<u64>; 6] = std::array::from_fn(|index| {
        let conditions: Vec<&Condition> = rule.conditions.iter().filter(|c| usize::from(c.index) == index).collect();
        if conditions.is_empty() {
            return vec![0, u64::MAX, 1, random.next()];
        }
        let mut values: Vec<u64> = conditions.iter().flat_map(|c| values_around(c)).collect();
        values.retain(|value| conditions.iter().all(|c| holds(c, &[*value; 6])));
        assert!(!values.is_empty(), "{}: nothing fits argument {index}", rule.key());
        values
    });
    let plain: [u64; 6] = std::array::from_fn(|i| choices[i][0]);
    let mut all = vec![plain];
    for (index, values) in choices.iter().enumerate() {
        for value in &values[1..] {
            let mut args = plain;
            args[index] = *value;
            all.push(args);
        }
    }
    for _ in 0..4 {
        all.push(std::array::from_fn(|i| random.of(&choices[i])));
    }
    all
}

/// The values at which a condition changes its mind, and their neighbours: those that keep to it and those that do not.
pub fn values_around(condition: &Condition) -> Vec<u64> {
    let value = condition.value;
    let mask = match condition.op {
        Op::MaskedEq(mask) => mask,
        _ => u64::MAX,
    };
    let mut all = vec![value & mask, value];
    all.extend([value.wrapping_add(1), value.wrapping_sub(1), 0, 1, u64::MAX]);
    // What a mask does not look at may be anything.
    all.extend([value & mask | !mask, value & mask | (!mask & 0xffff_ffff)]);
    // One other bit: of each bit that counts, and of each that does not.
    let bits = if condition.width == Width::Dword { 32 } else { 64 };
    all.extend((0..bits).map(|bit| value & mask ^ (1 << bit)));
    // The upper half, which a dword does not look at.
    for high in [1 << 32, 1 << 63, 0xffff_ffff_0000_0000] {
        all.extend([value & mask ^ high, (value & mask).wrapping_add(1) ^ high]);
    }
    let mut seen = std::collections::HashSet::new();
    all.retain(|v| seen.insert(*v));
    all
}

/// A call that is often one that a rule names, with arguments around its conditions.
pub fn random(filters: &[&Filter], random: &mut Random) -> Sample {
    let rules: Vec<&Rule> = filters.iter().flat_map(|f| &f.rules).collect();
    let rule = random.of(&rules);
    let mut args: [u64; 6] = std::array::from_fn(|_| match random.below(4) {
        0 => 0,
        1 => random.next(),
        2 => random.next() >> random.below(64),
        _ => random.of(&rules).conditions.first().map_or(u64::MAX, |c| c.value),
    });
    for condition in &rule.conditions {
        let around = values_around(condition);
        let arg = &mut args[usize::from(condition.index)];
        *arg = match random.below(8) {
            0 => *arg,
            1 => condition.value ^ (1 << random.below(64)),
            2 => random.of(&around),
            _ => condition.value,
        };
        if random.percent(20) {
            *arg ^= random.next() << 32;
        }
    }
    let nr = ARCH.number(&rule.syscall).unwrap();
    let nr = match random.below(100) {
        0..70 => nr,
        70..80 => nr.wrapping_add(random.below(5) as u32).wrapping_sub(2),
        80..90 => random.below(600) as u32,
        90..93 => nr | X32,
        93..96 => nr ^ (1 << random.below(32)),
        _ => random.next() as u32,
    };
    let abi = if cfg!(target_arch = "x86_64") && random.percent(2) { Abi::I386 } else { Abi::Native };
    Sample { abi, nr, args }
}
