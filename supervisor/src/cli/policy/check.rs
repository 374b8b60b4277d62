//! `vmsup policy check`: may this call be made?
//!
//! The compiled program answers, run as the kernel runs it. A worker's thread is asked with what is in force below its own
//! filter: both have to allow.

use super::names::{self, nearest, shown};
use super::show::words;
use super::which::Which;
use crate::cli::failure::{FAILED, Failure};
use crate::cli::output::{print, print_json, table};
use crate::cli::sanitize::line;
use policy_set::arch::Arch;
use policy_set::check::{Ever, Verdict, check, ever};
use policy_set::model::{Action, Filter, Set};
use serde::Serialize;
use std::fmt::Write as _;

/// What one filter says.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    filter: &'a str,
    file: &'a str,
    #[serde(flatten)]
    verdict: Verdict<'a>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    arch: Arch,
    syscall: &'a str,
    args: [u64; 6],
    /// By all filters that are in force.
    allowed: bool,
    answers: Vec<Answer<'a>>,
}

/// `vmsup policy check PROCESS/THREAD SYSCALL [ARG…]`. The exit status is 1 where the call is denied.
pub fn one(which: &Which, name: &str, syscall: &str, args: &[u64], json: bool) -> Result<(), Failure> {
    let (set, arch) = (which.set()?, which.arch()?);
    let filter = names::filter(&set, arch, name)?;
    if arch.number(syscall).is_none() {
        let known = arch.syscalls();
        let near = nearest(syscall, known.iter().map(|(_, name)| *name));
        let hint = near.map(|n| format!("; did you mean {n}?")).unwrap_or_default();
        return Err(Failure::input(format!("{} has no system call {syscall:?}{hint}", arch.name())));
    }
    let mut six = [0; 6];
    six.iter_mut().zip(args).for_each(|(place, arg)| *place = *arg);
    let mut answers = Vec::new();
    for filter in stack(&set, filter) {
        let verdict =
            check(filter, &which.program(filter)?, syscall, six).map_err(|e| Failure::failed(e.to_string()))?;
        answers.push(Answer { filter: &filter.name, file: &filter.file, verdict });
    }
    let allowed = answers.iter().all(|a| permits(a.verdict.action));
    let report = Report { arch, syscall, args: six, allowed, answers };
    if json {
        print_json(&report)?
    } else {
        print(text(&report, args.len()))?
    }
    if allowed { Ok(()) } else { Err(Failure::status(FAILED)) }
}

/// What is in force together, the oldest first.
fn stack<'a>(set: &'a Set, filter: &'a Filter) -> Vec<&'a Filter> {
    set.below(filter).into_iter().chain([filter]).collect()
}

fn permits(action: Action) -> bool {
    matches!(action, Action::Allow | Action::Log)
}

fn text(report: &Report<'_>, given: usize) -> String {
    let args: Vec<String> = report.args.iter().take(given).map(|a| format!("{a:#x}")).collect();
    let word = if report.allowed { "allowed" } else { "denied" };
    let mut out = format!("{word}: {}({})\n", report.syscall, args.join(", "));
    for answer in &report.answers {
        let _ = writeln!(out, "\n{}: {}", shown(answer.filter), answer.verdict.action);
        if answer.verdict.rules.is_empty() {
            let _ = writeln!(out, "    no rule of {} names this call with these arguments", answer.file);
        }
        for rule in &answer.verdict.rules {
            let why = rule.comment.as_deref().map_or("no reason is given".into(), line);
            let _ = writeln!(out, "    {}:{}: {why}", rule.file, rule.line);
            for condition in &rule.conditions {
                let _ = writeln!(out, "      {}", words(condition));
            }
        }
    }
    out
}

/// A system call, and what is done with it whatever its arguments.
#[derive(Debug, Serialize)]
struct Row {
    number: u32,
    syscall: &'static str,
    /// `allow`, `if`, `deny`: by all filters that are in force.
    verdict: &'static str,
    /// What has to hold, where it is `if`: one of these, each in the words of its conditions.
    conditions: Vec<String>,
}

/// `vmsup policy check PROCESS/THREAD --all`: every system call that the architecture has.
pub fn all(which: &Which, name: &str, json: bool) -> Result<(), Failure> {
    let (set, arch) = (which.set()?, which.arch()?);
    let filter = names::filter(&set, arch, name)?;
    let rows: Vec<Row> = arch.syscalls().into_iter().map(|(n, call)| row(&set, filter, n, call)).collect();
    if json {
        return print_json(&rows);
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|r| vec![r.number.to_string(), r.syscall.to_owned(), r.verdict.to_owned(), r.conditions.join("; or ")])
        .collect();
    let count = |verdict: &str| rows.iter().filter(|r| r.verdict == verdict).count();
    let (allow, on, deny) = (count("allow"), count("if"), count("deny"));
    let mut text = table(&["NR", "CALL", "VERDICT", "WHERE"], &cells);
    let _ = writeln!(text, "\n{}: {allow} allowed, {on} with conditions, {deny} denied", shown(&filter.name));
    print(text)
}

fn row(set: &Set, filter: &Filter, number: u32, syscall: &'static str) -> Row {
    let said: Vec<Ever<'_>> = stack(set, filter).into_iter().map(|f| ever(f, syscall)).collect();
    let mut conditions = Vec::new();
    let verdict = if said.contains(&Ever::Never) {
        "deny"
    } else if let Some(Ever::If(rules)) = said.iter().rev().find(|s| matches!(s, Ever::If(_))) {
        for rule in rules {
            conditions.push(rule.conditions.iter().map(words).collect::<Vec<_>>().join(" and "));
        }
        "if"
    } else {
        "allow"
    };
    Row { number, syscall, verdict, conditions }
}
