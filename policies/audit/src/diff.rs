//! What two sets do differently: for whom, which calls and arguments became possible or impossible, which rights appeared.
//!
//! Filters are compiled, and the two programs are asked the same questions; how the files are written never shows. Files
//! only serve to put the answer into words.

mod atoms;
mod others;

use policy_set::arch::Arch;
use policy_set::bpf::{Data, Instruction, action, run};
use policy_set::compile::compile;
use policy_set::model::{Action, Filter, Rule, Set};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Of a change that the filter below makes void.
const NO_EFFECT: &str = "no effect: the start-up filter denies it all the same";

/// What differs between two sets.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Where the first is from.
    pub before: String,
    /// Where the second is from.
    pub after: String,
    /// What changed from the first to the second, by area, architecture, and name.
    pub changes: Vec<Change>,
    /// Calls whose conditions are too many to be compared completely: a sample of arguments was.
    pub sampled: Vec<String>,
}

/// One thing that changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Change {
    /// What kind of policy.
    pub area: Area,
    /// The architecture, of a filter.
    pub arch: Option<Arch>,
    /// The filter, the process, the file.
    pub of: String,
    /// What of it: a system call, `capability`, `rlimit nofile`, `landlock /dev/net/tun`.
    pub what: String,
    /// Which way.
    pub direction: Direction,
    /// What said so before; of a system call, the rules that are of the same arguments.
    pub before: Vec<Said>,
    /// What says so now.
    pub after: Vec<Said>,
    /// Of a system call: the smallest arguments that are treated differently.
    pub example: Option<[u64; 6]>,
    /// What else is to be known, a sentence.
    pub note: Option<String>,
}

/// What kind of policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Area {
    /// System calls.
    Seccomp,
    /// `landlock.json`.
    Landlock,
    /// `process.json`.
    Process,
    /// `nft/*.nft`.
    Nft,
}

/// Which way something changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// More became possible.
    Looser,
    /// Less is possible.
    Tighter,
    /// Neither, or both.
    Other,
}

/// What a file says, and in which words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Said {
    /// A rule (`ioctl(1 == 0xae80)`), a value, a right.
    pub text: String,
    /// What its values mean: `KVM_RUN`.
    pub words: Option<String>,
    /// Which code needs it.
    pub why: Option<String>,
}

/// A filter that cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not compile.
    #[error("{origin}: {error}")]
    Compile {
        /// The set.
        origin: String,
        /// Why.
        error: policy_set::compile::Error,
    },
    /// What it compiled to is no program.
    #[error("{origin}: {file}: {fault}")]
    Program {
        /// The set.
        origin: String,
        /// The filter's file.
        file: String,
        /// Why.
        fault: policy_set::bpf::Fault,
    },
}

impl Direction {
    /// Seen from the other side.
    #[must_use]
    pub fn back(self) -> Direction {
        match self {
            Direction::Looser => Direction::Tighter,
            Direction::Tighter => Direction::Looser,
            Direction::Other => Direction::Other,
        }
    }
}

impl Said {
    fn plain(text: impl Into<String>) -> Said {
        Said { text: text.into(), words: None, why: None }
    }

    fn rule(rule: &Rule) -> Said {
        let mut conditions: Vec<_> = rule.conditions.iter().collect();
        conditions.sort_unstable();
        let words: Vec<&str> = conditions.iter().filter_map(|c| c.comment.as_deref()).collect();
        let words = (!words.is_empty()).then(|| words.join(", "));
        Said { text: rule.key(), words, why: rule.comment.clone() }
    }
}

/// What differs from `before` to `after`; of one architecture's filters, where one is named.
///
/// # Errors
/// A filter that does not compile.
pub fn diff(before: &Set, after: &Set, arch: Option<Arch>) -> Result<Difference, Error> {
    let mut changes = Vec::new();
    let mut sampled = Vec::new();
    let of = |set: &Set| -> BTreeSet<(Arch, String)> {
        let filters = set.filters.iter().map(|f| (f.arch, f.name.clone()));
        filters.chain(set.unfiltered.iter().map(|u| (u.arch, u.name.clone()))).collect()
    };
    let names: BTreeSet<(Arch, String)> = of(before).union(&of(after)).cloned().collect();
    for (one, name) in names.into_iter().filter(|(one, _)| arch.is_none_or(|arch| arch == *one)) {
        match (Side::of(before, one, &name)?, Side::of(after, one, &name)?) {
            (Some(old), Some(new)) => filters(&old, &new, &mut changes, &mut sampled)?,
            (old, new) => changes.extend(others::filter(before, after, one, &name, old.is_some(), new.is_some())),
        }
    }
    others::landlock(before, after, &mut changes);
    others::processes(before, after, &mut changes);
    others::nft(before, after, &mut changes);
    changes.sort_unstable();
    Ok(Difference { before: before.origin.clone(), after: after.origin.clone(), changes, sampled })
}

/// A filter on one side.
struct Side<'a> {
    set: &'a Set,
    filter: &'a Filter,
    program: Vec<Instruction>,
    /// The filter that is in force below it.
    below: Option<(&'a Filter, Vec<Instruction>)>,
}

/// What became of a call with some arguments.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Verdict {
    action: Action,
    /// What is done with it once the filter below had its say.
    permitted: bool,
}

impl<'a> Side<'a> {
    fn of(set: &'a Set, arch: Arch, name: &str) -> Result<Option<Side<'a>>, Error> {
        let compiled = |filter| compile(filter).map_err(|error| Error::Compile { origin: set.origin.clone(), error });
        let Some(filter) = set.filter(arch, name) else { return Ok(None) };
        let below = set.below(filter).map(|below| Ok((below, compiled(below)?))).transpose()?;
        Ok(Some(Side { set, filter, program: compiled(filter)?, below }))
    }

    fn ask(&self, filter: &Filter, program: &[Instruction], data: &Data) -> Result<Action, Error> {
        let failed = |fault| Error::Program { origin: self.set.origin.clone(), file: filter.file.clone(), fault };
        run(program, data).map(action).map_err(failed)
    }

    fn verdict(&self, nr: u32, args: [u64; 6]) -> Result<Verdict, Error> {
        let data = Data { nr, arch: self.filter.arch.audit(), instruction_pointer: 0, args };
        let action = self.ask(self.filter, &self.program, &data)?;
        let below = match &self.below {
            Some((filter, program)) => permits(self.ask(filter, program, &data)?),
            None => true,
        };
        Ok(Verdict { action, permitted: below && permits(action) })
    }

    fn rules(&self, call: &str) -> Vec<&'a Rule> {
        self.filter.rules.iter().filter(|r| r.syscall == call).collect()
    }
}

/// Whether a call is made.
fn permits(action: Action) -> bool {
    matches!(action, Action::Allow | Action::Log)
}

/// Compares two filters of the same name.
fn filters(old: &Side<'_>, new: &Side<'_>, changes: &mut Vec<Change>, sampled: &mut Vec<String>) -> Result<(), Error> {
    let (arch, of) = (old.filter.arch, &old.filter.name);
    for (what, before, after) in [
        ("calls that no rule names", old.filter.default, new.filter.default),
        ("calls that a rule names", old.filter.matched, new.filter.matched),
    ] {
        if before != after {
            let direction = match (permits(before), permits(after)) {
                (false, true) => Direction::Looser,
                (true, false) => Direction::Tighter,
                _ => Direction::Other,
            };
            let says = |action: Action| vec![Said::plain(action.to_string())];
            let (before, after) = (says(before), says(after));
            changes.push(Change { direction, before, after, ..Change::of(Area::Seccomp, Some(arch), of, what) });
        }
    }
    let calls: BTreeSet<&str> = old.filter.syscalls().into_iter().chain(new.filter.syscalls()).collect();
    for call in calls {
        // Both compiled, so that the architecture has it.
        let Some(nr) = arch.number(call) else { continue };
        let (from, to) = (old.rules(call), new.rules(call));
        let asked = atoms::points(&from.iter().chain(&to).copied().collect::<Vec<_>>());
        if !asked.exact {
            sampled.push(format!("{of} ({}): {call}", arch.name()));
        }
        let mut groups: BTreeMap<Direction, Vec<[u64; 6]>> = BTreeMap::new();
        let mut in_force: BTreeSet<Direction> = BTreeSet::new();
        for args in asked.all {
            let (a, b) = (old.verdict(nr, args)?, new.verdict(nr, args)?);
            let said_above = |x: Action, y: Action| (a.action, b.action) == (x, y);
            // Said once, above, and not for each call.
            if a.action == b.action
                || said_above(old.filter.default, new.filter.default)
                || said_above(old.filter.matched, new.filter.matched)
            {
                continue;
            }
            let direction = match (permits(a.action), permits(b.action)) {
                (false, true) => Direction::Looser,
                (true, false) => Direction::Tighter,
                _ => Direction::Other,
            };
            groups.entry(direction).or_default().push(args);
            if direction == Direction::Other || a.permitted != b.permitted {
                in_force.insert(direction);
            }
        }
        for (direction, points) in groups {
            let (before, after) = words(&from, &to, call, &points);
            let note = (!in_force.contains(&direction)).then(|| NO_EFFECT.to_owned());
            let example = points.first().copied();
            let change = Change::of(Area::Seccomp, Some(arch), of, call);
            changes.push(Change { direction, before, after, example, note, ..change });
        }
    }
    Ok(())
}

/// The rules of both sides that a change is about: those that name a changed point, and those of the other side that they
/// overlap.
fn words(from: &[&Rule], to: &[&Rule], call: &str, points: &[[u64; 6]]) -> (Vec<Said>, Vec<Said>) {
    let naming =
        |rules: &[&'_ Rule]| -> Vec<bool> { rules.iter().map(|r| points.iter().any(|p| r.matches(call, p))).collect() };
    let (named_from, named_to) = (naming(from), naming(to));
    let meets = |rule: &Rule, others: &[&Rule], named: &[bool]| {
        others.iter().zip(named).any(|(other, named)| {
            *named && atoms::points(&[rule, other]).all.iter().any(|p| rule.matches(call, p) && other.matches(call, p))
        })
    };
    let said = |rules: &[&Rule], named: &[bool], others: &[&Rule], others_named: &[bool]| {
        let about = rules.iter().zip(named).filter(|(r, named)| **named || meets(r, others, others_named));
        let mut all: Vec<Said> = about.map(|(r, _)| Said::rule(r)).collect();
        all.sort_unstable();
        all.dedup_by(|a, b| a.text == b.text);
        all
    };
    (said(from, &named_from, to, &named_to), said(to, &named_to, from, &named_from))
}

impl Change {
    fn of(area: Area, arch: Option<Arch>, of: &str, what: impl Into<String>) -> Change {
        let (before, after) = (Vec::new(), Vec::new());
        let (of, what) = (of.to_owned(), what.into());
        Change { area, arch, of, what, direction: Direction::Other, before, after, example: None, note: None }
    }
}

#[cfg(test)]
#[path = "diff/tests.rs"]
mod tests;
