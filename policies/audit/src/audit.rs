//! Findings about a set.

use crate::finding::{Finding, Severity};
use crate::points::{ask, implies, points, possible};
use crate::risk::{Level, risk};
use policy_set::arch::Arch;
use policy_set::bpf::Instruction;
use policy_set::compile::compile;
use policy_set::model::{Action, Filter, Rule, Set, Width};
use std::collections::{BTreeMap, BTreeSet};

/// A kind of finding.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Stable; what `accept` names.
    pub id: &'static str,
    /// How much it matters, at most.
    pub severity: Severity,
    /// In a few words.
    pub title: &'static str,
    /// What it means, and what to do.
    pub help: &'static str,
}

const fn kind(id: &'static str, severity: Severity, title: &'static str, help: &'static str) -> Kind {
    Kind { id, severity, title, help }
}

/// All of them.
pub const KINDS: &[Kind] = &[
    kind(
        "dangerous-unconstrained",
        Severity::High,
        "a dangerous call with any arguments",
        "Constrain its arguments, or take the call away from the process.",
    ),
    kind(
        "executable-memory",
        Severity::High,
        "memory may become executable",
        "Deny PROT_EXEC: a condition `masked_eq` 4 with value 0 on argument 2.",
    ),
    kind(
        "namespaces",
        Severity::High,
        "clone may make namespaces",
        "Deny the CLONE_NEW* flags: a condition on argument 0.",
    ),
    kind(
        "does-not-compile",
        Severity::High,
        "no program can be made of the filter",
        "Mend the rule that the message names.",
    ),
    kind(
        "matched-action",
        Severity::High,
        "rules do something other than allow",
        "Say `allow` as the match action: a list of what is denied forgets what comes next.",
    ),
    kind(
        "weak-default",
        Severity::Medium,
        "a call that no rule names does not end the process",
        "Say `kill_process` as the default action.",
    ),
    kind(
        "never-matches",
        Severity::Medium,
        "conditions that cannot hold together",
        "Remove the rule, or mend its conditions.",
    ),
    kind(
        "redundant",
        Severity::Low,
        "another rule allows the same and more",
        "Remove the narrower rule, or narrow the wider one.",
    ),
    kind(
        "beyond-startup",
        Severity::Medium,
        "a thread's rule that the start-up filter denies",
        "Filters stack: what the start-up filter denies stays denied. Add it there, or remove it here.",
    ),
    kind(
        "over-budget",
        Severity::Medium,
        "more calls than the budget",
        "Take calls away; the budget is in process.json.",
    ),
    kind("no-exit", Severity::Medium, "nothing lets it end", "Allow exit_group, or exit for a thread."),
    kind("no-reason", Severity::Low, "a rule without a reason", "Say in `comment` which code needs it."),
    kind(
        "landlock-floor",
        Severity::Medium,
        "landlock's floor is below ABI 2",
        "Require ABI 2: before it, files can be moved between directories.",
    ),
    kind("unfiltered", Severity::High, "a process without a filter", "Write a filter, or say why there is none."),
    kind(
        "unexercised",
        Severity::Low,
        "the suite never used the rule",
        "Remove it, test it, or say in `unexercised` why not.",
    ),
    kind("stale-accept", Severity::Low, "accepts a finding that is not made", "Remove it from `accept`."),
    kind(
        "no-record",
        Severity::Info,
        "no record of what is used",
        "Record the test suite with `vmsup policy trace --record`.",
    ),
    kind("capability-kept", Severity::Info, "a process keeps a capability", "Look whether it could do without."),
    kind("half-argument", Severity::Info, "only half of a 64-bit argument is compared", "Compare it as `qword`."),
    kind(
        "architectures-differ",
        Severity::Info,
        "allowed on one architecture and not on another",
        "Look whether both need it.",
    ),
];

/// Names of one thing on several architectures, each with that by which it goes here.
const SAME: &[(&str, &str)] = &[
    ("epoll_wait", "epoll_pwait"),
    ("open", "openat"),
    ("fstatat", "newfstatat"),
    ("stat", "newfstatat"),
    ("lstat", "newfstatat"),
    ("dup2", "dup3"),
    ("readlink", "readlinkat"),
    ("poll", "ppoll"),
    ("vfork", "clone"),
    ("fork", "clone"),
    ("pipe", "pipe2"),
    ("unlink", "unlinkat"),
    ("rename", "renameat"),
    ("mkdir", "mkdirat"),
    ("renameat2", "renameat"),
    ("select", "pselect6"),
    ("eventfd", "eventfd2"),
    ("epoll_create", "epoll_create1"),
    ("signalfd", "signalfd4"),
    ("inotify_init", "inotify_init1"),
    ("access", "faccessat"),
    ("symlink", "symlinkat"),
];

/// Arguments that the kernel takes as 64 bits and that say what a call may reach.
const WIDE: &[(&str, u8)] = &[("clone", 0), ("mmap", 1), ("prctl", 1), ("prctl", 2), ("ptrace", 0), ("keyctl", 1)];

/// PROT_EXEC.
const EXEC: u64 = 4;
/// CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACES: [u64; 8] =
    [0x80, 0x2_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];

/// Looks at a whole set. The worst comes first, then by filter and line.
pub fn audit(set: &Set) -> Vec<Finding> {
    let mut audit = Audit { found: Vec::new(), used: BTreeSet::new() };
    let programs: Vec<Option<Vec<Instruction>>> = set.filters.iter().map(|f| audit.compiled(f)).collect();
    for (filter, program) in set.filters.iter().zip(&programs) {
        audit.filter(filter);
        if let Some(program) = program {
            audit.program(filter, program);
            let below = set.below(filter).and_then(|below| set.filters.iter().position(|f| std::ptr::eq(f, below)));
            if let Some(place) = below
                && let Some(first) = &programs[place]
            {
                audit.stacked(filter, program, &set.filters[place], first);
            }
        }
        audit.record(set, filter);
    }
    audit.processes(set);
    audit.architectures(set);
    for filter in &set.filters {
        audit.stale(filter);
    }
    let mut found = audit.found;
    found.sort_by(|a, b| {
        let key = |f: &Finding| (f.filter.clone(), f.arch, f.line, f.id, f.rule.clone());
        b.severity.cmp(&a.severity).then_with(|| key(a).cmp(&key(b)))
    });
    found
}

struct Audit {
    found: Vec<Finding>,
    /// Of `accept`: architecture, filter, line of the rule (0: the filter's own), id.
    used: BTreeSet<(Arch, String, u32, String)>,
}

impl Audit {
    fn rule(&mut self, id: &'static str, severity: Severity, filter: &Filter, rule: &Rule, message: String) {
        let mut accepted = rule.accepted.get(id);
        if accepted.is_some() {
            self.used.insert((filter.arch, filter.name.clone(), rule.line, id.to_owned()));
        } else if filter.accepted.contains_key(id) {
            self.used.insert((filter.arch, filter.name.clone(), 0, id.to_owned()));
            accepted = filter.accepted.get(id);
        }
        let (file, line) = (rule.file.clone(), Some(rule.line));
        let key = Some(rule.key());
        let (arch, name, accepted) = (Some(filter.arch), filter.name.clone(), accepted.cloned());
        self.found.push(Finding { id, severity, arch, filter: name, rule: key, file, line, message, accepted });
    }

    fn whole(&mut self, id: &'static str, severity: Severity, filter: &Filter, message: String) {
        let accepted = filter.accepted.get(id).cloned();
        if accepted.is_some() {
            self.used.insert((filter.arch, filter.name.clone(), 0, id.to_owned()));
        }
        let (arch, name, file) = (Some(filter.arch), filter.name.clone(), filter.file.clone());
        self.found.push(Finding { id, severity, arch, filter: name, rule: None, file, line: None, message, accepted });
    }

    fn other(&mut self, id: &'static str, severity: Severity, name: &str, file: &str, message: String) {
        let (filter, file) = (name.to_owned(), file.to_owned());
        self.found.push(Finding {
            id,
            severity,
            arch: None,
            filter,
            rule: None,
            file,
            line: None,
            message,
            accepted: None,
        });
    }

    fn compiled(&mut self, filter: &Filter) -> Option<Vec<Instruction>> {
        match compile(filter) {
            Ok(program) => Some(program),
            Err(error) => {
                self.whole("does-not-compile", Severity::High, filter, error.to_string());
                None
            }
        }
    }

    /// What the rules say.
    fn filter(&mut self, filter: &Filter) {
        let default = match filter.default {
            Action::KillProcess => None,
            Action::KillThread | Action::Trap | Action::Errno(_) => Some(Severity::Medium),
            Action::Trace(_) | Action::Log | Action::Allow => Some(Severity::High),
        };
        if let Some(severity) = default {
            self.whole("weak-default", severity, filter, format!("a call that no rule names: {}", filter.default));
        }
        if filter.matched != Action::Allow {
            self.whole(
                "matched-action",
                Severity::High,
                filter,
                format!("a call that a rule names: {}", filter.matched),
            );
        }
        let calls = filter.syscalls();
        if filter.matched == Action::Allow && !calls.contains(&"exit_group") && !calls.contains(&"exit") {
            self.whole("no-exit", Severity::Medium, filter, "neither exit_group nor exit is allowed".to_owned());
        }
        for (n, rule) in filter.rules.iter().enumerate() {
            let call = &rule.syscall;
            if rule.comment.as_deref().is_none_or(|c| c.trim().is_empty()) {
                self.rule("no-reason", Severity::Low, filter, rule, format!("nothing says who needs {call}"));
            }
            if !possible(rule) {
                let message = format!("the conditions on {call} cannot hold together");
                self.rule("never-matches", Severity::Medium, filter, rule, message);
                continue;
            }
            let wider = filter.rules.iter().enumerate().find(|(m, other)| {
                // Of two that are equal, the later one is too much.
                *m != n && implies(rule, other) && (*m < n || !implies(other, rule))
            });
            if let Some((_, other)) = wider {
                let message = format!("{} ({}:{}) allows all of it", other.key(), other.file, other.line);
                self.rule("redundant", Severity::Low, filter, rule, message);
            }
            for c in rule.conditions.iter().filter(|c| c.width == Width::Dword) {
                if WIDE.contains(&(call.as_str(), c.index)) {
                    let message = format!("the upper half of argument {} of {call} may be anything", c.index);
                    self.rule("half-argument", Severity::Info, filter, rule, message);
                }
            }
        }
    }

    /// What the compiled program does.
    fn program(&mut self, filter: &Filter, program: &[Instruction]) {
        for rule in &filter.rules {
            let call = rule.syscall.as_str();
            let Some(nr) = filter.arch.number(call) else { continue };
            // Asked about the rule's own points only: another rule of the same call answers for itself.
            let permits = |index: u8, bits: u64| {
                let extra = [(index, bits), (index, bits | 1), (index, bits | 3)];
                points(&[rule], &extra)
                    .into_iter()
                    .filter(|p| p[usize::from(index)] & bits == bits && rule.matches(call, p))
                    .any(|p| matches!(ask(program, filter.arch, nr, p), Ok(Action::Allow | Action::Log)))
            };
            match call {
                "mmap" | "mprotect" | "pkey_mprotect" => {
                    if permits(2, EXEC) {
                        let message = format!("{call} may make memory executable");
                        self.rule("executable-memory", Severity::High, filter, rule, message);
                    }
                    continue;
                }
                "clone" if !rule.conditions.is_empty() => {
                    if NAMESPACES.iter().any(|flag| permits(0, *flag)) {
                        let message = "clone may make namespaces".to_owned();
                        self.rule("namespaces", Severity::High, filter, rule, message);
                    }
                    continue;
                }
                _ => {}
            }
            let severity = match risk(call).level {
                Level::Plain | Level::Low => continue,
                Level::Medium => Severity::Medium,
                Level::High => Severity::High,
            };
            let free = rule.conditions.is_empty()
                && matches!(ask(program, filter.arch, nr, [0; 6]), Ok(Action::Allow | Action::Log));
            if free {
                let message = format!("{call} with any arguments: {}", risk(call).why);
                self.rule("dangerous-unconstrained", severity, filter, rule, message);
            }
        }
    }

    /// What a thread's filter allows and the filter that was in force before it does not.
    fn stacked(&mut self, filter: &Filter, program: &[Instruction], startup: &Filter, first: &[Instruction]) {
        for rule in &filter.rules {
            let Some(nr) = filter.arch.number(&rule.syscall) else { continue };
            let rules: Vec<&Rule> = startup.rules.iter().filter(|r| r.syscall == rule.syscall).chain([rule]).collect();
            let denied = points(&rules, &[]).into_iter().filter(|p| rule.matches(&rule.syscall, p)).any(|p| {
                ask(program, filter.arch, nr, p) == Ok(Action::Allow)
                    && ask(first, filter.arch, nr, p) != Ok(Action::Allow)
            });
            if denied {
                let message = format!("{} denies some or all of it", startup.name);
                self.rule("beyond-startup", Severity::Medium, filter, rule, message);
            }
        }
    }

    fn record(&mut self, set: &Set, filter: &Filter) {
        let Some(recorded) = set.recorded.get(&filter.arch) else { return };
        let used = recorded.get(&filter.name);
        for rule in filter.rules.iter().filter(|r| r.unexercised.is_none()) {
            if used.is_none_or(|used| !used.contains(&rule.key())) {
                let message = format!("no trace of the test suite used {}", rule.key());
                self.rule("unexercised", Severity::Low, filter, rule, message);
            }
        }
    }

    fn processes(&mut self, set: &Set) {
        let ours = !set.processes.is_empty();
        for arch in set.arches().into_iter().filter(|arch| ours && !set.recorded.contains_key(arch)) {
            let message = format!("nothing tells which rules of {} are used", arch.name());
            self.other("no-record", Severity::Info, "all", &format!("recorded/{}.json", arch.name()), message);
        }
        for process in &set.unfiltered {
            let (name, file) = (process.name.clone(), process.file.clone());
            let message = format!("{name} may make every system call");
            // A file that declares this has to say why.
            let accepted = Some(process.reason.clone()).filter(|r| !r.is_empty());
            let (arch, severity) = (Some(process.arch), Severity::High);
            self.found.push(Finding {
                id: "unfiltered",
                severity,
                arch,
                filter: name,
                rule: None,
                file,
                line: None,
                message,
                accepted,
            });
        }
        for (name, landlock) in &set.landlock {
            if landlock.floor_abi < 2 {
                let message = format!("{name} starts with landlock ABI {}", landlock.floor_abi);
                self.other("landlock-floor", Severity::Medium, name, "landlock.json", message);
            }
        }
        for (name, process) in &set.processes {
            for capability in &process.capabilities {
                let message = format!("{name} keeps {capability}: {}", process.comment);
                self.other("capability-kept", Severity::Info, name, "process.json", message);
            }
            for arch in set.arches() {
                for (of, most) in &process.budgets {
                    let calls = match set.filter(arch, of) {
                        Some(filter) => filter.syscalls().len(),
                        None => set.narrowed(arch, of).len(),
                    };
                    if calls > *most {
                        let message = format!("{of} may make {calls} calls on {}, {most} is the budget", arch.name());
                        self.other("over-budget", Severity::Medium, of, "process.json", message);
                    }
                }
            }
        }
    }

    /// Calls, under one name for what is one thing, that not every architecture's filter of a name has.
    fn architectures(&mut self, set: &Set) {
        let plain = |call: &str| {
            SAME.iter().find(|(name, _)| *name == call).map_or(call.to_owned(), |(_, same)| (*same).to_owned())
        };
        let mut by_name: BTreeMap<&str, Vec<&Filter>> = BTreeMap::new();
        for filter in &set.filters {
            by_name.entry(&filter.name).or_default().push(filter);
        }
        for filters in by_name.values() {
            let calls: Vec<BTreeSet<String>> =
                filters.iter().map(|f| f.syscalls().into_iter().map(plain).collect()).collect();
            for (n, filter) in filters.iter().enumerate() {
                for (other, theirs) in filters.iter().zip(&calls) {
                    for call in calls[n].difference(theirs) {
                        let Some(rule) = filter.rules.iter().find(|r| plain(&r.syscall) == *call) else { continue };
                        let message = format!(
                            "{} is allowed on {} and not on {}",
                            rule.syscall,
                            filter.arch.name(),
                            other.arch.name()
                        );
                        self.rule("architectures-differ", Severity::Info, filter, rule, message);
                    }
                }
            }
        }
    }

    fn stale(&mut self, filter: &Filter) {
        let is_used = |used: &BTreeSet<_>, line: u32, id: &str| {
            used.contains(&(filter.arch, filter.name.clone(), line, id.to_owned()))
        };
        let message = |id: &str| format!("accepts `{id}`, which is not found");
        for rule in &filter.rules {
            for id in rule.accepted.keys().filter(|id| !is_used(&self.used, rule.line, id)).collect::<Vec<_>>() {
                self.rule("stale-accept", Severity::Low, filter, rule, message(id));
            }
        }
        for id in filter.accepted.keys().filter(|id| !is_used(&self.used, 0, id)).collect::<Vec<_>>() {
            self.whole("stale-accept", Severity::Low, filter, message(id));
        }
    }
}

#[cfg(test)]
mod tests;
