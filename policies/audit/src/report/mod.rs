//! A set of policies as a document: one HTML page that needs nothing but itself, and Markdown.
//!
//! The same set, findings and options give the same bytes. What a set says is text and nothing else: a foreign one may
//! hold markup, control characters and marks that reorder a line.

mod filters;
mod html;
mod markdown;
mod matrix;
mod picture;
mod processes;
mod words;

pub use html::html;
pub use markdown::markdown;

use crate::finding::{Finding, Severity};
use crate::risk::{Level, risk};
use policy_set::arch::Arch;
use policy_set::bpf::Instruction;
use policy_set::compile::compile;
use policy_set::families::{Family, family};
use policy_set::model::{Filter, Set, Unfiltered};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// What stands on a report beside what the set says.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What made the report: `vmsup 0.1.0`.
    pub made_by: String,
    /// When, where that is to be told; without it two reports of one set are the same.
    pub date: Option<String>,
}

/// What is shown.
struct View<'a> {
    set: &'a Set,
    /// What matters most first.
    findings: Vec<&'a Finding>,
    options: &'a Options,
    arches: Vec<Part<'a>>,
}

/// Of one architecture.
struct Part<'a> {
    arch: Arch,
    filters: Vec<Entry<'a>>,
    unfiltered: Vec<&'a Unfiltered>,
}

/// A filter, and what was found out about it.
struct Entry<'a> {
    filter: &'a Filter,
    /// System calls that it allows at all.
    calls: usize,
    /// The most that it may allow.
    budget: Option<usize>,
    /// What it compiles to, or why it does not.
    program: Result<Program, String>,
}

struct Program {
    instructions: usize,
    sha256: String,
}

impl<'a> View<'a> {
    fn new(set: &'a Set, findings: &'a [Finding], options: &'a Options) -> View<'a> {
        let mut findings: Vec<&Finding> = findings.iter().collect();
        findings.sort_by_key(|f| std::cmp::Reverse((f.counts_as(), f.severity)));
        let arches = Arch::ALL.into_iter().map(|arch| Part::new(set, arch));
        let arches = arches.filter(|part| !part.filters.is_empty() || !part.unfiltered.is_empty()).collect();
        View { set, findings, options, arches }
    }

    /// How many findings count as this.
    fn counting_as(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|f| f.counts_as() == severity).count()
    }

    /// How many the files explain.
    fn accepted(&self) -> usize {
        self.findings.iter().filter(|f| f.accepted.is_some()).count()
    }

    /// Findings above `info` that no file explains.
    fn open(&self) -> usize {
        self.findings.iter().filter(|f| f.counts_as() > Severity::Info).count()
    }

    fn title(&self) -> String {
        format!("Policy report: {}", self.set.origin)
    }
}

impl<'a> Part<'a> {
    fn new(set: &'a Set, arch: Arch) -> Part<'a> {
        let entry = |filter: &'a Filter| Entry {
            filter,
            calls: filter.syscalls().len(),
            budget: set.processes.values().find_map(|p| p.budgets.get(&filter.name).copied()),
            program: compile(filter).map(|p| Program::new(&p)).map_err(|e| e.to_string()),
        };
        Part {
            arch,
            filters: set.filters.iter().filter(|f| f.arch == arch).map(entry).collect(),
            unfiltered: set.unfiltered.iter().filter(|u| u.arch == arch).collect(),
        }
    }

    fn entry(&self, name: &str) -> Option<&Entry<'a>> {
        self.filters.iter().find(|e| e.filter.name == name)
    }

    /// The system calls that any filter allows, by family, each family sorted.
    fn families(&self) -> Vec<(Family, Vec<&'a str>)> {
        let all: BTreeSet<&str> = self.filters.iter().flat_map(|e| e.filter.syscalls()).collect();
        let of = |wanted| (wanted, all.iter().copied().filter(|call| family(call) == wanted).collect());
        Family::ALL.into_iter().map(of).filter(|(_, calls): &(_, Vec<&str>)| !calls.is_empty()).collect()
    }

    /// `id` of an element: unique in the document.
    fn id(&self, of: &str) -> String {
        let of: String = of.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        format!("{}-{of}", self.arch.name())
    }

    /// Place of a filter in the file, for ids: names of foreign filters may differ in what an id cannot hold.
    fn filter_id(&self, filter: &Filter) -> String {
        let at = self.filters.iter().position(|e| std::ptr::eq(e.filter, filter)).unwrap_or_default();
        self.id(&format!("{at}-{}", filter.name))
    }
}

impl Program {
    fn new(program: &[Instruction]) -> Program {
        let mut hash = Sha256::new();
        for i in program {
            hash.update(i.code.to_le_bytes());
            hash.update([i.jt, i.jf]);
            hash.update(i.k.to_le_bytes());
        }
        let sha256 = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        Program { instructions: program.len(), sha256 }
    }
}

/// The name of a grade, as word and as class.
fn level_name(level: Level) -> &'static str {
    match level {
        Level::Plain => "plain",
        Level::Low => "low",
        Level::Medium => "medium",
        Level::High => "high",
    }
}

fn severity_name(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Low => "low",
        Severity::Medium => "medium",
        Severity::High => "high",
    }
}

/// Grade of a system call, as word.
fn grade(call: &str) -> &'static str {
    level_name(risk(call).level)
}

#[cfg(test)]
mod tests;
