//! Arguments worth asking a filter about: the values of its conditions, their neighbours, their masks, combined.
//!
//! Between two such values no condition changes its mind, but for several masks that overlap; there it is a sample.

use policy_set::bpf::{Data, Instruction, action, run};
use policy_set::model::{Action, Condition, Op, Rule, Width};
use policy_set::{arch::Arch, bpf};
use std::collections::BTreeSet;

/// Most combinations for a call; beyond it, arguments vary around a rule's own values only.
const MOST: usize = 20_000;

/// Values of one argument that tell these conditions apart.
fn values<'a>(conditions: impl Iterator<Item = &'a Condition> + Clone) -> Vec<u64> {
    let mut all = BTreeSet::from([0, u64::MAX]);
    for c in conditions.clone() {
        let mask = c.width.mask();
        let value = c.value & mask;
        all.extend([value, value.wrapping_add(1), value.wrapping_sub(1)]);
        if c.width == Width::Dword {
            all.insert(value | 1 << 32);
        }
        if let Op::MaskedEq(bits) = c.op {
            all.extend([bits, !bits, value | !bits, value ^ bits]);
            all.extend((0..64).map(|n| 1 << n).filter(|bit| bits & bit != 0).map(|bit| (value & bits) ^ bit));
        }
    }
    let masked = |value: u64| {
        conditions.clone().fold(value, |v, c| match c.op {
            Op::MaskedEq(bits) => v & !bits | c.value & bits,
            _ => v,
        })
    };
    let more: Vec<u64> = all.iter().map(|v| masked(*v)).collect();
    all.extend(more);
    all.into_iter().collect()
}

/// Arguments that tell these rules of one call apart, with `extra` values of single arguments.
pub fn points(rules: &[&Rule], extra: &[(u8, u64)]) -> Vec<[u64; 6]> {
    let axes: Vec<Vec<u64>> = (0..6u8)
        .map(|n| {
            let conditions = rules.iter().flat_map(|r| &r.conditions).filter(move |c| c.index == n);
            let mut axis = if conditions.clone().next().is_some() { values(conditions) } else { vec![0] };
            axis.extend(extra.iter().filter(|(index, _)| *index == n).map(|(_, value)| *value));
            axis
        })
        .collect();
    if axes.iter().map(Vec::len).try_fold(1usize, usize::checked_mul).is_some_and(|n| n <= MOST) {
        return axes.iter().enumerate().fold(vec![[0; 6]], |all, (n, axis)| {
            let with = |point: [u64; 6], value: u64| {
                let mut point = point;
                point[n] = value;
                point
            };
            all.iter().flat_map(|point| axis.iter().map(move |value| with(*point, *value))).collect()
        });
    }
    // Too many: around a point of each rule, one argument at a time.
    let mut all = BTreeSet::new();
    for rule in rules {
        let mut base = [0; 6];
        for (n, axis) in axes.iter().enumerate() {
            let own: Vec<&Condition> = rule.conditions.iter().filter(|c| usize::from(c.index) == n).collect();
            let holds = |v: &&u64| own.iter().all(|c| c.holds(&[**v; 6]));
            base[n] = axis.iter().find(holds).copied().unwrap_or(0);
        }
        for (n, axis) in axes.iter().enumerate() {
            for value in axis {
                let mut point = base;
                point[n] = *value;
                all.insert(point);
            }
        }
    }
    all.into_iter().collect()
}

/// Whether a rule can match at all.
pub fn possible(rule: &Rule) -> bool {
    (0..6u8).all(|n| {
        let own = rule.conditions.iter().filter(|c| c.index == n);
        own.clone().next().is_none() || values(own.clone()).iter().any(|v| own.clone().all(|c| c.holds(&[*v; 6])))
    })
}

/// Whether `wide` matches wherever `narrow` does. Conditions of different arguments have nothing to do with each other, so
/// that each argument is decided alone.
pub fn implies(narrow: &Rule, wide: &Rule) -> bool {
    narrow.syscall == wide.syscall
        && wide.conditions.iter().all(|w| {
            let own = narrow.conditions.iter().filter(|c| c.index == w.index);
            let both = own.clone().chain([w]);
            values(both).iter().filter(|v| own.clone().all(|c| c.holds(&[**v; 6]))).all(|v| w.holds(&[*v; 6]))
        })
}

/// What a compiled filter does with a call.
///
/// # Errors
/// The program is none.
pub fn ask(program: &[Instruction], arch: Arch, nr: u32, args: [u64; 6]) -> Result<Action, bpf::Fault> {
    Ok(action(run(program, &Data { nr, arch: arch.audit(), instruction_pointer: 0, args })?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(conditions: &[(u8, Width, Op, u64)]) -> Rule {
        let conditions = conditions
            .iter()
            .map(|(index, width, op, value)| Condition {
                index: *index,
                width: *width,
                op: *op,
                value: *value,
                comment: None,
            })
            .collect();
        Rule {
            syscall: "ioctl".into(),
            conditions,
            comment: None,
            unexercised: None,
            accepted: Default::default(),
            file: String::new(),
            line: 1,
        }
    }

    #[test]
    fn implication_is_of_what_matches_not_of_how_it_is_written() {
        use Width::{Dword, Qword};
        let seven = rule(&[(1, Dword, Op::Eq, 7)]);
        for wide in [rule(&[]), rule(&[(1, Dword, Op::Lt, 8)]), rule(&[(1, Dword, Op::MaskedEq(4), 4)]), seven.clone()]
        {
            assert!(implies(&seven, &wide), "{}", wide.key());
        }
        for other in [rule(&[(1, Dword, Op::Lt, 7)]), rule(&[(1, Qword, Op::Eq, 7)]), rule(&[(0, Dword, Op::Eq, 7)])] {
            assert!(!implies(&seven, &other), "{}", other.key());
        }
        assert!(implies(&rule(&[(1, Dword, Op::MaskedEq(6), 2)]), &rule(&[(1, Dword, Op::MaskedEq(2), 2)])));
        assert!(!implies(&rule(&[(1, Dword, Op::MaskedEq(2), 2)]), &rule(&[(1, Dword, Op::MaskedEq(6), 2)])));
    }

    #[test]
    fn a_contradiction_is_not_possible() {
        use Width::Dword;
        assert!(possible(&rule(&[
            (1, Dword, Op::MaskedEq(4), 4),
            (1, Dword, Op::MaskedEq(8), 0),
            (2, Dword, Op::Ne, 0)
        ])));
        assert!(!possible(&rule(&[(1, Dword, Op::Eq, 4), (1, Dword, Op::Gt, 4)])));
        assert!(!possible(&rule(&[(1, Dword, Op::MaskedEq(4), 4), (1, Dword, Op::MaskedEq(6), 2)])));
    }
}
