//! Filters that are wrong on purpose, each in one place.

use crate::proof::oracle::{ARCH, bare_rule};
use policy_set::model::{Action, Condition, Filter, Op, Rule, Width};

/// What was done to a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A rule is not there.
    RuleDropped,
    /// A condition is not there.
    ConditionDropped,
    /// A mask looks at one bit less.
    MaskWidened,
    /// A mask looks at one bit more.
    MaskNarrowed,
    /// Another value.
    ValueChanged,
    /// Another argument is looked at.
    ArgumentChanged,
    /// Another comparison.
    ComparisonChanged,
    /// 64 bits are looked at for 32, or the other way round.
    WidthChanged,
    /// A condition that was not there.
    ConditionAdded,
    /// A rule that was not there.
    RuleAdded,
    /// A rule that was not there, with a condition on one argument.
    RuleWithConditionAdded,
    /// Another default action.
    DefaultChanged,
    /// Another action for what rules name.
    MatchChanged,
    /// Allow and kill have changed places.
    Swapped,
}

/// A filter that is wrong on purpose.
pub struct Mutant {
    /// What was done.
    pub kind: Kind,
    /// To what.
    pub what: String,
    /// The call whose fate must have changed; none: that of many.
    pub syscall: Option<String>,
    /// The result.
    pub filter: Filter,
    /// Why it does the same as the original, where it does.
    pub equivalent: Option<String>,
}

/// Every mutant of a filter.
pub fn of(original: &Filter) -> Vec<Mutant> {
    let mut all = Vec::new();
    let mut add =
        |kind, what: String, syscall: Option<&str>, equivalent: Option<String>, change: &dyn Fn(&mut Filter)| {
            let mut filter = original.clone();
            change(&mut filter);
            all.push(Mutant { kind, what, syscall: syscall.map(str::to_owned), filter, equivalent });
        };
    for (r, rule) in original.rules.iter().enumerate() {
        let call = Some(rule.syscall.as_str());
        let same = covering(original, r).map(|other| format!("{} allows the same and more", other.key()));
        add(Kind::RuleDropped, rule.key(), call, same, &|f| drop(f.rules.remove(r)));
        for (c, condition) in rule.conditions.iter().enumerate() {
            let mut changed = |kind, what: String, change: &dyn Fn(&mut Condition)| {
                let mut new = condition.clone();
                change(&mut new);
                let equivalent = equivalent(condition, &new);
                add(kind, what, call, equivalent, &|f| f.rules[r].conditions[c] = new.clone());
            };
            let name = rule.key();
            for new in [Op::Ne, Op::Ge, Op::Le, Op::Gt, Op::Lt].into_iter().filter(|_| condition.op == Op::Eq) {
                changed(Kind::ComparisonChanged, format!("{name}: {condition} to {new:?}"), &|c| c.op = new);
            }
            changed(Kind::ArgumentChanged, format!("{name}: argument {}", condition.index), &|c| {
                c.index = (c.index + 1) % 6;
            });
            changed(Kind::WidthChanged, format!("{name}: width of {condition}"), &|c| {
                c.width = if c.width == Width::Dword { Width::Qword } else { Width::Dword };
            });
            for other in [condition.value ^ 1, condition.value.wrapping_add(1), condition.value ^ 0x8000_0000] {
                changed(Kind::ValueChanged, format!("{name}: {condition} to {other:#x}"), &|c| c.value = other);
            }
            if let Op::MaskedEq(mask) = condition.op {
                for bit in 0..if condition.width == Width::Dword { 32 } else { 64 } {
                    let kind = if mask & (1 << bit) != 0 { Kind::MaskWidened } else { Kind::MaskNarrowed };
                    changed(kind, format!("{name}: bit {bit} of {condition}"), &|c| {
                        c.op = Op::MaskedEq(mask ^ (1 << bit))
                    });
                }
            }
            add(Kind::ConditionDropped, format!("{name}: {condition}"), call, None, &|f| {
                drop(f.rules[r].conditions.remove(c));
            });
        }
        for index in (0..6).filter(|i| rule.conditions.iter().all(|c| c.index != *i)) {
            let condition = Condition { index, width: Width::Dword, op: Op::Eq, value: 0, comment: None };
            let same = covering(original, r).map(|other| format!("{} allows the rest", other.key()));
            add(Kind::ConditionAdded, format!("{}: {condition}", rule.key()), call, same, &|f| {
                f.rules[r].conditions.push(condition.clone());
            });
        }
    }
    let named = original.syscalls();
    for (nr, call) in ARCH.syscalls() {
        if named.binary_search(&call).is_err() {
            add(Kind::RuleAdded, call.to_owned(), Some(call), None, &|f| f.rules.push(bare_rule(call, Vec::new())));
            // Every fifth, to save time; which ones is the same in each run.
            if nr % 5 == 0 {
                let condition = Condition {
                    index: (nr % 6) as u8,
                    width: Width::Dword,
                    op: Op::Eq,
                    value: 0x5eed_0000,
                    comment: None,
                };
                add(Kind::RuleWithConditionAdded, format!("{call}: {condition}"), Some(call), None, &|f| {
                    f.rules.push(bare_rule(call, vec![condition.clone()]));
                });
            }
        } else if original.rules.iter().filter(|r| r.syscall == call).all(|r| !r.conditions.is_empty()) {
            let condition = Condition { index: 5, width: Width::Dword, op: Op::Eq, value: 0x5eed_0000, comment: None };
            add(Kind::RuleWithConditionAdded, format!("{call}: {condition}"), Some(call), None, &|f| {
                f.rules.push(bare_rule(call, vec![condition.clone()]));
            });
        }
    }
    for default in [Action::KillThread, Action::Trap, Action::Errno(1), Action::Log, Action::Trace(0)] {
        add(Kind::DefaultChanged, default.to_string(), None, None, &|f| f.default = default);
    }
    for matched in [Action::KillThread, Action::Errno(1), Action::Log] {
        add(Kind::MatchChanged, matched.to_string(), None, None, &|f| f.matched = matched);
    }
    add(Kind::Swapped, String::new(), None, None, &|f| (f.default, f.matched) = (f.matched, f.default));
    all
}

/// Another rule of the filter that allows all that rule `r` allows.
fn covering(filter: &Filter, r: usize) -> Option<&Rule> {
    let rule = &filter.rules[r];
    filter.rules.iter().enumerate().find_map(|(other, candidate)| {
        let covers = other != r
            && candidate.syscall == rule.syscall
            && candidate.conditions.iter().all(|c| rule.conditions.iter().any(|own| says_the_same(own, c)));
        covers.then_some(candidate)
    })
}

fn says_the_same(a: &Condition, b: &Condition) -> bool {
    (a.index, a.width, a.op, a.value) == (b.index, b.width, b.op, b.value)
}

/// Why a changed condition says the same as before.
fn equivalent(before: &Condition, after: &Condition) -> Option<String> {
    let (op, index, value, width) =
        (before.op == after.op, before.index == after.index, before.value == after.value, before.width == after.width);
    match (before.op, after.op) {
        (Op::MaskedEq(mask), _) if op && index && width && (before.value ^ after.value) & mask == 0 => {
            Some("the mask does not look at what was changed".to_owned())
        }
        (Op::MaskedEq(mask), _) if op && index && value && mask >> 32 == 0 => {
            Some("the mask does not look at the upper half".to_owned())
        }
        (Op::Eq, Op::Le) if before.value == 0 => Some("nothing is below zero".to_owned()),
        _ => None,
    }
}
