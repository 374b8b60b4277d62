//! `vmsup policy show`: what a process may do, and why.

use super::names::{self, Named, shown};
use super::which::Which;
use crate::cli::failure::Failure;
use crate::cli::output::{print, print_json};
use crate::cli::sanitize::line;
use policy_set::arch::Arch;
use policy_set::families::{Family, family};
use policy_set::model::{Condition, Filter, Landlock, Process, Rule, Set, Unfiltered};
use serde::Serialize;
use std::fmt::Write as _;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    origin: &'a str,
    arch: Arch,
    process: String,
    filters: &'a [&'a Filter],
    unfiltered: Option<&'a Unfiltered>,
    declared: Option<&'a Process>,
    landlock: Option<&'a Landlock>,
}

/// `vmsup policy show PROCESS[/THREAD]`.
pub fn show(which: &Which, name: &str, json: bool) -> Result<(), Failure> {
    let (set, arch) = (which.set()?, which.arch()?);
    let named = names::find(&set, arch, name)?;
    let whole = named.filters.len() != 1 || named.filters[0].thread().is_none();
    let shown = Shown {
        origin: &set.origin,
        arch,
        filters: &named.filters,
        unfiltered: named.unfiltered,
        declared: set.processes.get(&named.process).filter(|_| whole),
        landlock: set.landlock.get(&named.process).filter(|_| whole),
        process: named.process.clone(),
    };
    if json { print_json(&shown) } else { print(text(&set, &named, &shown)) }
}

fn text(set: &Set, named: &Named<'_>, shown_: &Shown<'_>) -> String {
    let mut out = String::new();
    if let Some(process) = shown_.declared {
        let _ = writeln!(out, "{}: {}\n", named.process, line(&process.comment));
    }
    for filter in &named.filters {
        of_filter(&mut out, set, filter);
    }
    if let Some(process) = named.unfiltered {
        let _ = writeln!(out, "No filter. {}\n", line(&process.reason));
        let _ = writeln!(out, "It calls {} system calls ({}):\n", process.calls.len(), process.file);
        of_rules(&mut out, &process.calls);
    }
    if let Some(process) = shown_.declared {
        of_process(&mut out, process);
    }
    if let Some(landlock) = shown_.landlock {
        of_landlock(&mut out, landlock);
    }
    if named.process == "netd" {
        of_nft(&mut out, set);
    }
    out
}

fn of_filter(out: &mut String, set: &Set, filter: &Filter) {
    let calls = filter.syscalls().len();
    let _ = writeln!(out, "{}: {calls} system calls ({})", shown(&filter.name), filter.file);
    let _ = writeln!(out, "Everything else: {}. Another architecture's calls: the same.", filter.default);
    if let Some(below) = set.below(filter) {
        let _ = writeln!(out, "Filters stack: {} is in force as well, and a call needs both.", shown(&below.name));
    }
    out.push('\n');
    of_rules(out, &filter.rules);
}

fn of_rules(out: &mut String, rules: &[Rule]) {
    for group in Family::ALL {
        let mut of: Vec<&Rule> = rules.iter().filter(|r| family(&r.syscall) == group).collect();
        if of.is_empty() {
            continue;
        }
        of.sort_by(|a, b| a.syscall.cmp(&b.syscall));
        let _ = writeln!(out, "  {}", group.title());
        for rule in of {
            let why = rule.comment.as_deref().map_or("no reason is given".into(), line);
            let _ = writeln!(out, "    {:<18} {why}", rule.syscall);
            for condition in &rule.conditions {
                let _ = writeln!(out, "    {:<18}   only where {}", "", words(condition));
            }
            if let Some(why) = &rule.unexercised {
                let _ = writeln!(out, "    {:<18}   the test suite does not use it: {}", "", line(why));
            }
        }
    }
    out.push('\n');
}

/// `argument 1 == 0xae80 (KVM_RUN)`.
pub fn words(condition: &Condition) -> String {
    let called = condition.comment.as_ref().map(|c| format!(" ({})", line(c))).unwrap_or_default();
    format!("argument {condition}{called}")
}

fn of_process(out: &mut String, process: &Process) {
    let list = |items: &[String]| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    let _ = writeln!(out, "Capabilities that it keeps: {}", list(&process.capabilities));
    let _ = writeln!(out, "Namespaces of its own: {}", list(&process.namespaces));
    let rlimits: Vec<String> = process.rlimits.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let _ = writeln!(out, "Resource limits: {}", list(&rlimits));
    if !process.fds.is_empty() {
        out.push_str("Open files that it is born with, and no others:\n");
        for (number, what) in &process.fds {
            let _ = writeln!(out, "    {number}  {}", line(what));
        }
    }
}

fn of_landlock(out: &mut String, landlock: &Landlock) {
    let (floor, newest) = (landlock.floor_abi, landlock.newest_abi);
    let _ = writeln!(out, "Landlock, ABI {floor} at least, up to {newest}: {}", line(&landlock.comment));
    for rule in &landlock.rules {
        let _ = writeln!(out, "    {}: {} ({})", line(&rule.what), rule.access.join(", "), line(&rule.comment));
    }
}

/// Tables and chains of the rules, as the file has them.
fn of_nft(out: &mut String, set: &Set) {
    for (file, text) in &set.nft {
        let _ = writeln!(out, "Rules for guests' packets: nft/{file}, {} lines", text.lines().count());
        for found in text.lines().map(str::trim).filter(|l| l.ends_with('{')) {
            let found = found.trim_end_matches('{').trim();
            if found.starts_with("table ") {
                let _ = writeln!(out, "    {}", line(found));
            } else if found.starts_with("chain ") {
                let _ = writeln!(out, "      {}", line(found));
            }
        }
    }
}
