//! Differences of all that is not a system call: filters that came or went, landlock, `process.json`, nftables.

use super::{Area, Change, Direction, Said};
use policy_set::arch::Arch;
use policy_set::model::{Landlock, Process, Set};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

/// A filter that one side lacks, or a process that is without one.
pub fn filter(before: &Set, after: &Set, arch: Arch, name: &str, old: bool, new: bool) -> Vec<Change> {
    let state = |set: &Set| match (set.filter(arch, name), unfiltered(set, arch, name)) {
        (Some(filter), _) => {
            vec![Said::plain(format!("filtered: {} system calls", filter.syscalls().len()))]
        }
        (None, Some(_)) => vec![Said::plain("not filtered")],
        (None, None) => Vec::new(),
    };
    let mut changes = Vec::new();
    let (a, b) = (state(before), state(after));
    if a != b {
        // A filter is a limit: with it gone, all is possible.
        let direction = match (old, new) {
            (true, false) => Direction::Looser,
            (false, true) => Direction::Tighter,
            _ => Direction::Other,
        };
        changes.push(Change {
            direction,
            before: a,
            after: b,
            ..Change::of(Area::Seccomp, Some(arch), name, "filter")
        });
    } else if !old && !new {
        let calls = |set| -> BTreeSet<String> {
            unfiltered(set, arch, name).into_iter().flatten().map(str::to_owned).collect()
        };
        let change = Change::of(Area::Seccomp, Some(arch), name, "calls that it is known to make");
        changes.extend(names(change, &calls(before), &calls(after), Direction::Other));
    }
    changes
}

fn unfiltered<'a>(set: &'a Set, arch: Arch, name: &str) -> Option<impl Iterator<Item = &'a str>> {
    let process = set.unfiltered.iter().find(|u| u.arch == arch && u.name == name)?;
    Some(process.calls.iter().map(|c| c.syscall.as_str()))
}

/// `landlock.json`.
pub fn landlock(before: &Set, after: &Set, changes: &mut Vec<Change>) {
    for (name, a, b) in pairs(&before.landlock, &after.landlock) {
        let change = |what: &str| Change::of(Area::Landlock, None, name, what);
        let (Some(a), Some(b)) = (a, b) else {
            let says =
                |l: Option<&Landlock>| l.map(|l| Said { why: Some(l.comment.clone()), ..Said::plain("confined") });
            changes.push(came_or_went(change("landlock"), says(a), says(b), Direction::Tighter));
            continue;
        };
        for (what, old, new) in [("oldest ABI", a.floor_abi, b.floor_abi), ("newest ABI", a.newest_abi, b.newest_abi)] {
            // The higher an ABI, the more is handled, and so denied.
            changes.extend(number(change(what), Some(old), Some(new), Direction::Tighter));
        }
        let places = |l: &Landlock| {
            let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for rule in &l.rules {
                all.entry(rule.what.clone()).or_default().extend(rule.access.iter().cloned());
            }
            all
        };
        let (old, new, none) = (places(a), places(b), BTreeSet::new());
        for (place, old, new) in pairs(&old, &new) {
            let change = change(&format!("rights to {place}"));
            changes.extend(names(change, old.unwrap_or(&none), new.unwrap_or(&none), Direction::Looser));
        }
    }
}

/// `process.json`.
pub fn processes(before: &Set, after: &Set, changes: &mut Vec<Change>) {
    for (name, a, b) in pairs(&before.processes, &after.processes) {
        let change = |what: &str| Change::of(Area::Process, None, name, what);
        let (Some(a), Some(b)) = (a, b) else {
            let says =
                |p: Option<&Process>| p.map(|p| Said { why: Some(p.comment.clone()), ..Said::plain("a process") });
            changes.push(came_or_went(change("process"), says(a), says(b), Direction::Other));
            continue;
        };
        let set = |names: &[String]| -> BTreeSet<String> { names.iter().cloned().collect() };
        let (old, new) = (set(&a.capabilities), set(&b.capabilities));
        changes.extend(names(change("capabilities"), &old, &new, Direction::Looser));
        let (old, new) = (set(&a.namespaces), set(&b.namespaces));
        changes.extend(names(change("namespaces of its own"), &old, &new, Direction::Tighter));
        for (limit, old, new) in pairs(&a.rlimits, &b.rlimits) {
            changes.extend(number(change(&format!("rlimit {limit}")), old, new, Direction::Looser));
        }
        for (filter, old, new) in pairs(&a.budgets, &b.budgets) {
            changes.extend(number(change(&format!("budget of {filter}")), old, new, Direction::Looser));
        }
        let fds = |p: &Process| -> BTreeSet<i32> { p.fds.keys().copied().collect() };
        let said = |all: BTreeSet<i32>| -> BTreeSet<String> { all.iter().map(|n| format!("fd {n}")).collect() };
        changes.extend(names(change("fds at birth"), &said(fds(a)), &said(fds(b)), Direction::Looser));
        for (fd, old, new) in pairs(&a.fds, &b.fds) {
            if let (Some(old), Some(new)) = (old, new)
                && old != new
            {
                let (before, after) = (vec![Said::plain(old)], vec![Said::plain(new)]);
                changes.push(Change { before, after, ..change(&format!("fd {fd}")) });
            }
        }
    }
}

/// `nft/*.nft`: what the lines say, without comments and spacing. Their order counts.
pub fn nft(before: &Set, after: &Set, changes: &mut Vec<Change>) {
    for (file, a, b) in pairs(&before.nft, &after.nft) {
        let (old, new) = (a.map(|t| lines(t)).unwrap_or_default(), b.map(|t| lines(t)).unwrap_or_default());
        if old == new && a.is_some() == b.is_some() {
            continue;
        }
        // Lines that only one side has, each as often as it has it more often.
        let only = |these: &[String], those: &[String]| {
            let mut left: BTreeMap<&String, usize> = BTreeMap::new();
            those.iter().for_each(|line| *left.entry(line).or_default() += 1);
            let mut all = Vec::new();
            for line in these {
                match left.get_mut(line) {
                    Some(n) if *n > 0 => *n -= 1,
                    _ => all.push(Said::plain(line)),
                }
            }
            all
        };
        let (gone, come) = (only(&old, &new), only(&new, &old));
        let note = (gone.is_empty() && come.is_empty()).then(|| "the same lines in another order".to_owned());
        let change = Change::of(Area::Nft, None, file, "rules of nftables");
        changes.push(Change { before: gone, after: come, note, ..change });
    }
}

fn lines(text: &str) -> Vec<String> {
    let clean = |line: &str| {
        let mut quoted = false;
        let end = line.find(|c| {
            quoted ^= c == '"';
            c == '#' && !quoted
        });
        line[..end.unwrap_or(line.len())].split_whitespace().collect::<Vec<_>>().join(" ")
    };
    text.lines().map(clean).filter(|line| !line.is_empty()).collect()
}

/// The entries of both, by key.
fn pairs<'a, K: Ord, V>(
    a: &'a BTreeMap<K, V>,
    b: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, Option<&'a V>, Option<&'a V>)> {
    let keys: BTreeSet<&K> = a.keys().chain(b.keys()).collect();
    keys.into_iter().map(|key| (key, a.get(key), b.get(key)))
}

/// A change of names; `more` is what an additional one means.
fn names(change: Change, old: &BTreeSet<String>, new: &BTreeSet<String>, more: Direction) -> Option<Change> {
    let only = |these: &BTreeSet<String>, those| -> Vec<Said> { these.difference(those).map(Said::plain).collect() };
    let (before, after) = (only(old, new), only(new, old));
    let direction = match (before.is_empty(), after.is_empty()) {
        (true, true) => return None,
        (true, false) => more,
        (false, true) => more.back(),
        (false, false) => Direction::Other,
    };
    Some(Change { direction, before, after, ..change })
}

/// A change of a limit; `more` is what a higher one, or none, means.
fn number<T: PartialOrd + Display>(change: Change, old: Option<T>, new: Option<T>, more: Direction) -> Option<Change> {
    let direction = match (&old, &new) {
        (Some(old), Some(new)) if old < new => more,
        (Some(old), Some(new)) if old > new => more.back(),
        (Some(_), None) => more,
        (None, Some(_)) => more.back(),
        _ => return None,
    };
    let said = |n: Option<T>| n.map(|n| Said::plain(n.to_string())).into_iter().collect();
    Some(Change { direction, before: said(old), after: said(new), ..change })
}

/// A change of what one side does not have at all; `more` is what having it means.
fn came_or_went(change: Change, old: Option<Said>, new: Option<Said>, more: Direction) -> Change {
    let direction = if new.is_some() { more } else { more.back() };
    Change { direction, before: old.into_iter().collect(), after: new.into_iter().collect(), ..change }
}
