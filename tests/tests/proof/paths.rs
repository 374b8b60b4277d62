//! A proof without samples: every way through a compiled filter is walked with what it takes to go there, and has to agree
//! with the rules for *all* calls that go there, whatever their arguments.

use crate::proof::oracle::ARCH;
use policy_set::bpf::Instruction;
use policy_set::model::{Condition, Filter, Op, Width};

/// Most ways through a filter; ours have some hundreds.
const PATHS_MAX: usize = 100_000;

const ARCH_WORD: u32 = 4;
const KILL_PROCESS: u32 = 0x8000_0000;
const ALLOW: u32 = 0x7fff_0000;

/// A comparison of classic BPF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    Equal,
    Greater,
    AtLeast,
}

/// What is known of a word of `struct seccomp_data`: under a mask, it does or does not compare like this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fact {
    word: u32,
    mask: u32,
    test: Test,
    value: u32,
    holds: bool,
}

impl Fact {
    fn is(word: u32, mask: u32, value: u32) -> Fact {
        Fact { word, mask, test: Test::Equal, value: value & mask, holds: true }
    }

    /// Whether no word is like this and like `other`. (Where it says no, there may still be none.)
    fn excludes(&self, other: &Fact) -> bool {
        if self.word != other.word {
            return false;
        }
        if (Fact { holds: !self.holds, ..*self }) == *other {
            return true;
        }
        match (self.exactly(), other.exactly()) {
            (Some((mask, value)), Some((mask2, value2))) => (value ^ value2) & mask & mask2 != 0,
            (Some((mask, value)), None) => mask & other.mask == other.mask && !other.of(value),
            (None, Some(_)) => other.excludes(self),
            (None, None) => false,
        }
    }

    /// In the one form that it has here, where there are two: not above zero is zero.
    fn normal(self) -> Fact {
        match (self.test, self.value) {
            (Test::Greater, 0) => Fact { test: Test::Equal, holds: !self.holds, ..self },
            _ => self,
        }
    }

    /// No word is like this.
    fn impossible(&self) -> bool {
        self.mask == 0 && !self.of(0)
    }

    fn exactly(&self) -> Option<(u32, u32)> {
        (self.holds && self.test == Test::Equal).then_some((self.mask, self.value))
    }

    fn of(&self, word: u32) -> bool {
        let word = word & self.mask;
        self.holds
            == match self.test {
                Test::Equal => word == self.value,
                Test::Greater => word > self.value,
                Test::AtLeast => word >= self.value,
            }
    }
}

/// Where to go on, what is in the accumulator (a word, under a mask), and what is known.
type Open = (usize, Option<(u32, u32)>, Vec<Fact>);

/// Holds a program against the rules of `filter`. An error names a way on which they differ.
pub fn prove(program: &[Instruction], filter: &Filter) -> Result<usize, String> {
    let rules = filter
        .rules
        .iter()
        .map(|rule| {
            let nr = ARCH.number(&rule.syscall).ok_or_else(|| format!("no call {}", rule.syscall))?;
            let mut facts = vec![Fact::is(ARCH_WORD, u32::MAX, ARCH.audit()), Fact::is(0, u32::MAX, nr)];
            for condition in &rule.conditions {
                facts.extend(facts_of(condition)?);
            }
            Ok(facts)
        })
        .collect::<Result<Vec<_>, String>>()?;
    let mut ways = 0;
    let mut open: Vec<Open> = vec![(0, None, Vec::new())];
    while let Some((at, accumulator, facts)) = open.pop() {
        let Some(i) = program.get(at) else { return Err(format!("runs out of the program at {at}")) };
        match (i.code, accumulator) {
            // ld [k]
            (0x20, _) => open.push((at + 1, Some((i.k, u32::MAX)), facts)),
            // and #k
            (0x54, Some((word, mask))) => open.push((at + 1, Some((word, mask & i.k)), facts)),
            // ja k
            (0x05, _) => open.push((at + 1 + i.k as usize, accumulator, facts)),
            // jeq, jgt, jge #k
            (0x15 | 0x25 | 0x35, Some((word, mask))) => {
                let test = match i.code {
                    0x15 => Test::Equal,
                    0x25 => Test::Greater,
                    _ => Test::AtLeast,
                };
                for (holds, offset) in [(true, i.jt), (false, i.jf)] {
                    let fact = Fact { word, mask, test, value: i.k, holds }.normal();
                    if !fact.impossible() && !facts.iter().any(|known| known.excludes(&fact)) {
                        let mut facts = facts.clone();
                        facts.push(fact);
                        open.push((at + 1 + usize::from(offset), accumulator, facts));
                    }
                }
            }
            // ret #k
            (0x06, _) => {
                ways += 1;
                judge(i.k, &facts, &rules).map_err(|why| format!("instruction {at}: {why}"))?;
            }
            (code, _) => return Err(format!("instruction {at}: {code:#x} is not among what is understood here")),
        }
        if open.len() + ways > PATHS_MAX {
            return Err("too many ways".to_owned());
        }
    }
    Ok(ways)
}

/// Whether the end of a way is right for all calls that go there.
fn judge(returned: u32, facts: &[Fact], rules: &[Vec<Fact>]) -> Result<(), String> {
    // A rule holds on all of the way, or on none of it.
    let holds = |rule: &&Vec<Fact>| rule.iter().all(|fact| implied(fact, facts));
    let fails = |rule: &Vec<Fact>| rule.iter().any(|fact| facts.iter().any(|known| known.excludes(fact)));
    match returned {
        ALLOW if rules.iter().any(|rule| holds(&rule)) => Ok(()),
        ALLOW => Err(format!("allows what no rule allows: {facts:x?}")),
        KILL_PROCESS => match rules.iter().find(|rule| !fails(rule)) {
            None => Ok(()),
            Some(rule) => Err(format!("kills what a rule may allow: {rule:x?}; known: {facts:x?}")),
        },
        other => Err(format!("answers {other:#x}, which is neither to allow nor to kill")),
    }
}

fn implied(fact: &Fact, facts: &[Fact]) -> bool {
    // The negation is excluded.
    let negation = Fact { holds: !fact.holds, ..*fact };
    facts.iter().any(|known| known.excludes(&negation))
}

/// What a condition says of the words of its argument.
fn facts_of(condition: &Condition) -> Result<Vec<Fact>, String> {
    // Both architectures are little-endian.
    let low = 16 + 8 * u32::from(condition.index);
    let (value, high) = (condition.value as u32, (condition.value >> 32) as u32);
    let dword = condition.width == Width::Dword;
    let compare = |test, holds| Fact { word: low, mask: u32::MAX, test, value, holds }.normal();
    Ok(match (condition.op, dword) {
        (Op::Eq, true) => vec![Fact::is(low, u32::MAX, value)],
        (Op::Eq, false) => vec![Fact::is(low + 4, u32::MAX, high), Fact::is(low, u32::MAX, value)],
        (Op::MaskedEq(mask), true) => vec![Fact::is(low, mask as u32, value)],
        (Op::MaskedEq(mask), false) => {
            vec![Fact::is(low + 4, (mask >> 32) as u32, high), Fact::is(low, mask as u32, value)]
        }
        (Op::Ne, true) => vec![compare(Test::Equal, false)],
        (Op::Gt, true) => vec![compare(Test::Greater, true)],
        (Op::Ge, true) => vec![compare(Test::AtLeast, true)],
        (Op::Lt, true) => vec![compare(Test::AtLeast, false)],
        (Op::Le, true) => vec![compare(Test::Greater, false)],
        // Two words, and more than one way to hold.
        (_, false) => return Err(format!("{condition}: not among what is understood here")),
    })
}
