//! `vmsup policy ls`: what there is.

use super::names::shown;
use super::which::Which;
use crate::cli::failure::Failure;
use crate::cli::output::{print, print_json, table};
use policy_set::arch::Arch;
use policy_set::model::{Process, Set};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// A filter, or a process without one.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    file: String,
    /// System calls that it allows at all; those that a process without a filter makes.
    calls: usize,
    /// The most that it may allow.
    budget: Option<usize>,
    rules: usize,
    /// Of the compiled program.
    instructions: Option<usize>,
    /// What is done with everything else; none: there is no filter.
    default: Option<String>,
    /// Of the compiled program, as the kernel is given it.
    sha256: Option<String>,
}

#[derive(Debug, Serialize)]
struct Listing {
    origin: String,
    arch: Arch,
    filters: Vec<Row>,
    /// What each process's threads may call together, once they have narrowed, and the budget of that.
    together: Vec<(String, usize, usize)>,
}

/// `vmsup policy ls`.
pub fn ls(which: &Which, json: bool) -> Result<(), Failure> {
    let (set, arch) = (which.set()?, which.arch()?);
    let listing = listing(which, &set, arch)?;
    if json { print_json(&listing) } else { print(text(&listing)) }
}

fn listing(which: &Which, set: &Set, arch: Arch) -> Result<Listing, Failure> {
    let budget = |name: &str| set.processes.values().find_map(|p: &Process| p.budgets.get(name).copied());
    let mut filters = Vec::new();
    for filter in set.filters.iter().filter(|f| f.arch == arch) {
        let program = which.program(filter)?;
        filters.push(Row {
            name: shown(&filter.name),
            file: filter.file.clone(),
            calls: filter.syscalls().len(),
            budget: budget(&filter.name),
            rules: filter.rules.len(),
            instructions: Some(program.len()),
            default: Some(filter.default.to_string()),
            sha256: Some(digest(&program)),
        });
    }
    for process in set.unfiltered.iter().filter(|u| u.arch == arch) {
        filters.push(Row {
            name: process.name.clone(),
            file: process.file.clone(),
            calls: process.calls.len(),
            budget: None,
            rules: process.calls.len(),
            instructions: None,
            default: None,
            sha256: None,
        });
    }
    filters.sort_by(|a, b| a.name.cmp(&b.name));
    let together = set
        .processes
        .keys()
        .filter_map(|p| Some((p.clone(), set.narrowed(arch, p).len(), budget(p)?)))
        .filter(|(_, calls, _)| *calls > 0)
        .collect();
    Ok(Listing { origin: set.origin.clone(), arch, filters, together })
}

/// Of the program's bytes, `struct sock_filter` by `struct sock_filter`, in the byte order of both architectures.
fn digest(program: &[policy_set::bpf::Instruction]) -> String {
    let mut hash = Sha256::new();
    for i in program {
        hash.update(i.code.to_le_bytes());
        hash.update([i.jt, i.jf]);
        hash.update(i.k.to_le_bytes());
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn text(listing: &Listing) -> String {
    let or = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let rows: Vec<Vec<String>> = listing
        .filters
        .iter()
        .map(|r| {
            vec![
                r.name.clone(),
                r.calls.to_string(),
                or(r.budget.map(|b| b.to_string())),
                r.rules.to_string(),
                or(r.instructions.map(|i| i.to_string())),
                r.default.clone().unwrap_or_else(|| "no filter".to_owned()),
                or(r.sha256.as_ref().map(|s| s[..12].to_owned())),
                r.file.clone(),
            ]
        })
        .collect();
    let mut text = format!("Policies {}, {}\n\n", listing.origin, listing.arch.name());
    text += &table(&["FILTER", "CALLS", "BUDGET", "RULES", "BPF", "ELSE", "SHA-256", "FILE"], &rows);
    for (process, calls, budget) in &listing.together {
        text +=
            &format!("\nAll threads of a {process} together, once they have narrowed: {calls} calls of {budget}.\n");
    }
    text
}
