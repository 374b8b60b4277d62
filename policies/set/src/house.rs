//! The rules of the house: what a set has to keep beyond being readable. The build stops where the shipped set breaks one.

use crate::model::{Action, Filter, Rule, Set};
use std::collections::BTreeMap;

/// Fewest letters of a reason.
const REASON: usize = 8;
/// The rights that an exception of landlock may give: none that would let a process run a program or make a device.
const RIGHTS: &[&str] = &["read_file", "write_file", "truncate", "make_reg", "remove_file", "ioctl_dev"];

/// A sentence for each rule of the house that the set breaks.
pub fn house_rules(set: &Set) -> Vec<String> {
    let mut broken = Vec::new();
    for filter in &set.filters {
        of_filter(filter, &mut broken);
    }
    for process in &set.unfiltered {
        if process.reason.trim().len() < 40 {
            broken.push(format!("{}: why is there no filter?", process.file));
        }
        for call in &process.calls {
            reasons(call, &mut broken);
            if !call.conditions.is_empty() {
                broken.push(format!("{}:{}: {}: nothing holds it to arguments", call.file, call.line, call.syscall));
            }
        }
    }
    for (name, landlock) in &set.landlock {
        if landlock.comment.trim().len() < REASON {
            broken.push(format!("landlock.json: {name} says what it is for"));
        }
        if name != "netd" && !landlock.rules.is_empty() {
            broken.push(format!("landlock.json: {name}: only netd has exceptions"));
        }
        if landlock.floor_abi < 2 || landlock.floor_abi > landlock.newest_abi {
            broken.push(format!("landlock.json: {name}: a floor of 2 at least, and not above the newest"));
        }
        for rule in &landlock.rules {
            if rule.comment.trim().len() < REASON {
                broken.push(format!("landlock.json: {name}: {}: a rule says which code needs it", rule.what));
            }
            for right in rule.access.iter().filter(|a| !RIGHTS.contains(&a.as_str())) {
                broken.push(format!("landlock.json: {name}: {right}: no right that an exception may give"));
            }
        }
    }
    for (name, process) in &set.processes {
        if process.comment.trim().len() < REASON {
            broken.push(format!("process.json: {name} says what it is"));
        }
    }
    broken
}

fn of_filter(filter: &Filter, broken: &mut Vec<String>) {
    if filter.default != Action::KillProcess {
        broken.push(format!("{}: the default action is kill_process", filter.file));
    }
    if filter.matched != Action::Allow {
        broken.push(format!("{}: rules allow", filter.file));
    }
    if filter.rules.is_empty() {
        broken.push(format!("{}: a filter without rules", filter.file));
    }
    let mut seen: BTreeMap<&str, Vec<&Rule>> = BTreeMap::new();
    for rule in &filter.rules {
        reasons(rule, broken);
        let place = format!("{}:{}: {}", rule.file, rule.line, rule.syscall);
        if rule.conditions.iter().any(|c| c.comment.as_ref().is_none_or(|c| c.trim().is_empty())) {
            broken.push(format!("{place}: a condition says what its value is called"));
        }
        let before = seen.entry(&rule.syscall).or_default();
        if before.iter().any(|other| other.key() == rule.key()) {
            broken.push(format!("{place}: the same rule stands in {} already", filter.file));
        } else if before.iter().any(|other| other.conditions.is_empty() != rule.conditions.is_empty()) {
            broken.push(format!("{place}: stands there twice, once without conditions"));
        }
        before.push(rule);
    }
}

fn reasons(rule: &Rule, broken: &mut Vec<String>) {
    let place = format!("{}:{}: {}", rule.file, rule.line, rule.syscall);
    if rule.comment.as_ref().is_none_or(|c| c.trim().len() < REASON) {
        broken.push(format!("{place}: a rule says which code needs it"));
    }
    if rule.unexercised.as_ref().is_some_and(|u| u.trim().len() < REASON) {
        broken.push(format!("{place}: `unexercised` says why"));
    }
    if rule.accepted.values().any(|why| why.trim().len() < REASON) {
        broken.push(format!("{place}: `accept` says why"));
    }
}
