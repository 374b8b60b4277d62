//! The tables that SECURITY.md has of the policies: made here, so that the document cannot say something else.

use policy_set::arch::Arch;
use policy_set::model::{Process, Set};
use std::fmt::Write as _;

/// How many system calls each filter allows, and how many it may, in Markdown.
pub fn budgets(set: &Set, arch: Arch) -> String {
    let mut out = "| filter | system calls | budget | everything else |\n|---|---|---|---|\n".to_owned();
    let budget = |name: &str| {
        let most = set.processes.values().find_map(|p| p.budgets.get(name));
        most.map_or("–".to_owned(), ToString::to_string)
    };
    for filter in set.filters.iter().filter(|f| f.arch == arch) {
        let (name, calls) = (&filter.name, filter.syscalls().len());
        let _ = writeln!(out, "| {name} | {calls} | {} | {} |", budget(name), filter.default);
    }
    for process in set.processes.keys() {
        let together = set.narrowed(arch, process).len();
        if together > 0 {
            let _ = writeln!(out, "| all {process} threads together | {together} | {} | |", budget(process));
        }
    }
    out
}

/// What each process keeps and is given, in Markdown.
pub fn processes(set: &Set) -> String {
    let mut out =
        "| process | capabilities | namespaces of its own | resource limits | landlock |\n|---|---|---|---|---|\n"
            .to_owned();
    let list = |items: Vec<String>| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    for (name, process) in &set.processes {
        let Process { capabilities, namespaces, rlimits, .. } = process;
        let limits = rlimits.iter().map(|(limit, value)| format!("{limit} {value}")).collect();
        let landlock = set.landlock.get(name).map_or("–".to_owned(), |l| {
            let places = list(l.rules.iter().map(|r| format!("{} ({})", r.what, r.access.join(", "))).collect());
            format!("ABI {} to {}; allowed: {places}", l.floor_abi, l.newest_abi)
        });
        let _ = writeln!(
            out,
            "| {name} | {} | {} | {} | {landlock} |",
            list(capabilities.clone()),
            list(namespaces.clone()),
            list(limits)
        );
    }
    out
}
