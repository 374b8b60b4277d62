//! The values of an argument that conditions tell apart: one for each set of conditions that can hold together.
//!
//! Exact for comparisons with a value and for masks. Where orderings (`<`, `>=`, …) meet masks on the same argument, every
//! boundary is tried with every pattern of the masks, which finds all that a policy can sensibly mean, but is a sample.

use policy_set::model::{Condition, Op, Rule, Width};
use std::collections::{BTreeMap, BTreeSet};

/// Most values that are tried for an argument.
const VALUES_MAX: usize = 1 << 14;
/// Most points for a system call.
const POINTS_MAX: usize = 1 << 14;
/// Most points for a rule, where a call has too many to try all.
const RULE_POINTS_MAX: usize = 256;

/// Points to ask two filters about.
#[derive(Debug, PartialEq)]
pub struct Points {
    /// Sorted.
    pub all: Vec<[u64; 6]>,
    /// Whether two filters that agree on these agree on all.
    pub exact: bool,
}

/// The bits that a condition holds against a pattern, and the pattern; `None` for an ordering.
fn pattern(c: &Condition) -> Option<(u64, u64)> {
    let mask = match c.op {
        Op::Eq | Op::Ne => c.width.mask(),
        Op::MaskedEq(bits) => bits & c.width.mask(),
        Op::Lt | Op::Le | Op::Gt | Op::Ge => return None,
    };
    Some((mask, c.value & mask))
}

/// Puts the lowest bits of `from` where `mask` has bits.
fn spread(from: u64, mask: u64) -> u64 {
    let places = (0..64).filter(|bit| mask >> bit & 1 == 1);
    places.enumerate().filter(|(n, _)| from >> n & 1 == 1).fold(0, |all, (_, bit)| all | 1 << bit)
}

/// Every combination of patterns, and of bits that are like none: bits that the same conditions look at go together.
fn combinations(patterns: &BTreeSet<(u64, u64)>) -> (Vec<u64>, bool) {
    let mut classes: BTreeMap<Vec<bool>, u64> = BTreeMap::new();
    for bit in 0..64 {
        let who: Vec<bool> = patterns.iter().map(|(mask, _)| mask >> bit & 1 == 1).collect();
        if who.contains(&true) {
            *classes.entry(who).or_default() |= 1 << bit;
        }
    }
    let (mut all, mut exact) = (vec![0u64], true);
    for bits in classes.into_values() {
        let mut choices: BTreeSet<u64> =
            patterns.iter().filter(|(mask, _)| mask & bits != 0).map(|(_, value)| value & bits).collect();
        let room = 1u64.checked_shl(bits.count_ones()).unwrap_or(u64::MAX);
        choices.extend((0..room).map(|n| spread(n, bits)).find(|other| !choices.contains(other)));
        if all.len().saturating_mul(choices.len()) > VALUES_MAX {
            // Each pattern whole, at least.
            all.extend(patterns.iter().map(|(_, value)| *value));
            exact = false;
            continue;
        }
        all = all.iter().flat_map(|v| choices.iter().map(move |c| v & !bits | c)).collect();
    }
    (all, exact)
}

/// Values of one argument, of each kind that the conditions tell apart, the smallest that was found; and whether these are
/// all kinds.
fn atoms(conditions: &[&Condition]) -> (Vec<u64>, bool) {
    let patterns: BTreeSet<(u64, u64)> = conditions.iter().filter_map(|c| pattern(c)).collect();
    let (combined, mut exact) = combinations(&patterns);
    let mut tried: BTreeSet<u64> = combined.iter().copied().collect();
    let ordered = conditions.iter().any(|c| pattern(c).is_none());
    if ordered {
        let special = |c: &&Condition| {
            let value = c.value & c.width.mask();
            [value, value.wrapping_add(1), value.wrapping_sub(1)]
        };
        let mut edges: BTreeSet<u64> = conditions.iter().flat_map(special).chain([0, u64::MAX]).collect();
        if conditions.iter().any(|c| c.width == Width::Dword) && conditions.iter().any(|c| c.width == Width::Qword) {
            let (low, high) = (u64::from(u32::MAX), !u64::from(u32::MAX));
            let lows: BTreeSet<u64> = edges.iter().map(|v| v & low).collect();
            let highs: BTreeSet<u64> = edges.iter().map(|v| v & high).chain([0, 1 << 32]).collect();
            exact &= lows.len() * highs.len() <= VALUES_MAX;
            edges.extend(highs.iter().flat_map(|h| lows.iter().map(move |l| h | l)).take(VALUES_MAX));
        }
        let masks = conditions.iter().filter(|c| matches!(c.op, Op::MaskedEq(_))).filter_map(|c| pattern(c));
        let masks: BTreeSet<(u64, u64)> = masks.collect();
        let union = masks.iter().fold(0, |all, (mask, _)| all | mask);
        exact &= masks.is_empty();
        let (overlays, _) = combinations(&masks);
        let both = edges.iter().flat_map(|v| overlays.iter().map(move |o| v & !union | o));
        tried.extend(both.take(VALUES_MAX));
        tried.extend(&edges);
    }
    let mut kinds: BTreeMap<Vec<bool>, u64> = BTreeMap::new();
    for value in tried {
        // Ascending, so that the first is the smallest.
        kinds.entry(conditions.iter().map(|c| c.holds(&[value; 6])).collect()).or_insert(value);
    }
    let mut all: Vec<u64> = kinds.into_values().collect();
    all.sort_unstable();
    (all, exact)
}

/// Points that tell all of these rules, of one system call, apart.
pub fn points(rules: &[&Rule]) -> Points {
    let mut exact = true;
    let axes: Vec<Vec<u64>> = (0..6u8)
        .map(|n| {
            let mut conditions: Vec<&Condition> =
                rules.iter().flat_map(|r| &r.conditions).filter(|c| c.index == n).collect();
            let kind = |c: &&Condition| (c.width, c.op, c.value);
            conditions.sort_unstable_by_key(kind);
            conditions.dedup_by_key(|c| kind(c));
            let (values, all) = atoms(&conditions);
            exact &= all;
            values
        })
        .collect();
    if axes.iter().map(Vec::len).try_fold(1usize, usize::checked_mul).is_some_and(|n| n <= POINTS_MAX) {
        return Points { all: product(&axes, POINTS_MAX), exact };
    }
    let inside = |rule: &Rule| {
        let mut own = axes.clone();
        for (n, axis) in own.iter_mut().enumerate() {
            axis.retain(|v| rule.conditions.iter().filter(|c| usize::from(c.index) == n).all(|c| c.holds(&[*v; 6])));
        }
        product(&own, RULE_POINTS_MAX)
    };
    let all: BTreeSet<[u64; 6]> = rules.iter().flat_map(|rule| inside(rule)).collect();
    Points { all: all.into_iter().collect(), exact: false }
}

/// The first `most` combinations of one value of each axis.
fn product(axes: &[Vec<u64>], most: usize) -> Vec<[u64; 6]> {
    let mut all = vec![[0; 6]];
    for (n, axis) in axes.iter().enumerate() {
        let with = |point: &[u64; 6], value: u64| {
            let mut point = *point;
            point[n] = value;
            point
        };
        all = all.iter().flat_map(|point| axis.iter().map(move |v| with(point, *v))).take(most).collect();
    }
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(width: Width, op: Op, value: u64) -> Condition {
        Condition { index: 0, width, op, value, comment: None }
    }

    /// The kinds of values below 4096, found by trying all of them.
    fn exhaustive(conditions: &[&Condition]) -> BTreeSet<Vec<bool>> {
        (0..4096u64).map(|v| conditions.iter().map(|c| c.holds(&[v; 6])).collect()).collect()
    }

    #[test]
    fn every_kind_of_value_has_one() {
        use Op::*;
        use Width::*;
        let sets: &[&[Condition]] = &[
            &[],
            &[condition(Dword, Eq, 7), condition(Dword, Eq, 8), condition(Dword, Ne, 9)],
            &[condition(Dword, MaskedEq(6), 2), condition(Dword, MaskedEq(4), 4), condition(Dword, Eq, 2)],
            &[condition(Dword, MaskedEq(1), 0), condition(Dword, MaskedEq(0xfff), 1), condition(Qword, MaskedEq(3), 3)],
            &[condition(Dword, Lt, 5), condition(Dword, Eq, 6), condition(Dword, Ge, 7), condition(Qword, Le, 100)],
            &[condition(Dword, Lt, 100), condition(Dword, MaskedEq(4), 4)],
        ];
        for conditions in sets {
            let all: Vec<&Condition> = conditions.iter().collect();
            let (values, _) = atoms(&all);
            let found: BTreeSet<Vec<bool>> =
                values.iter().map(|v| all.iter().map(|c| c.holds(&[*v; 6])).collect()).collect();
            assert_eq!(found.len(), values.len(), "each once");
            assert!(found.is_superset(&exhaustive(&all)), "{conditions:?}: {values:x?}");
        }
        // The upper half, which a condition on 32 bits does not see.
        let (low, wide) = (condition(Dword, Eq, 7), condition(Qword, Eq, 7));
        assert_eq!(atoms(&[&low, &wide]), (vec![0, 7, 1 << 32 | 7], true));
    }

    #[test]
    fn what_is_too_much_is_bounded_and_said() {
        let many: Vec<Rule> = (0..200u64)
            .map(|n| Rule {
                syscall: "ioctl".into(),
                conditions: (0..6u8).map(|index| Condition { index, ..condition(Width::Dword, Op::Eq, n) }).collect(),
                comment: None,
                unexercised: None,
                accepted: BTreeMap::new(),
                file: String::new(),
                line: 1,
            })
            .collect();
        let all: Vec<&Rule> = many.iter().collect();
        let found = points(&all);
        assert!(!found.exact && found.all.len() <= 200 * RULE_POINTS_MAX);
        for rule in &many {
            assert!(found.all.iter().any(|p| rule.matches("ioctl", p)), "{}", rule.key());
        }
    }
}
