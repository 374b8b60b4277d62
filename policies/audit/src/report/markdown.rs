//! The same as Markdown: GitHub's tables, which is where people paste it.

use super::{Options, Part, View, filters::by_family, grade, matrix, severity_name, words};
use crate::finding::Finding;
use policy_set::model::Set;

/// A document of GitHub's Markdown.
pub fn markdown(set: &Set, findings: &[Finding], options: &Options) -> String {
    let view = View::new(set, findings, options);
    let mut out = format!("# {}\n\n", text(&view.title()));
    let arches: Vec<String> = view.arches.iter().map(|p| code(p.arch.name())).collect();
    out += &format!("Made by {}, for {}.", text(&options.made_by), arches.join(", "));
    if let Some(date) = &options.date {
        out += &format!(" {}.", text(date));
    }
    out += "\n\n## Summary\n\n";
    out += &match view.open() {
        0 => "No finding is open.".to_owned(),
        n => format!("**{} open.**", words::count(n, "finding")),
    };
    out += &format!(" {} explained in the files.\n", words::count(view.accepted(), "finding"));
    for part in &view.arches {
        out += &overview(part);
    }
    out += &findings_table(&view);
    for part in &view.arches {
        out += &format!(
            "\n## Who may call what: {}\n\n● any arguments, ◐ under conditions, · not allowed.\n",
            part.arch.name()
        );
        out += &calls(part);
        out += &format!("\n## Filters, rule by rule: {}\n", part.arch.name());
        out += &rules(part);
    }
    out + &processes(&view)
}

/// Text that stays text: nothing in it is markup, and it stays in its cell.
fn text(from: &str) -> String {
    let mut out = String::new();
    for c in words::clean(from).chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '#' | '!' | '$' => out.extend(['\\', c]),
            // An address that no one wrote as a link becomes none.
            '@' => out += "&#64;",
            c => out.push(c),
        }
    }
    out.replace("://", "&#58;//").replace("www.", "www&#46;")
}

/// A name as code, where it is a plain one.
fn code(from: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:()=&, ".contains(c);
    if !from.is_empty() && from.trim() == from && from.chars().all(plain) { format!("`{from}`") } else { text(from) }
}

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = format!("\n| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        out += &format!("| {} |\n", row.join(" | "));
    }
    out
}

fn overview(part: &Part<'_>) -> String {
    let rows: Vec<Vec<String>> = part
        .filters
        .iter()
        .map(|e| {
            let (instructions, hash) = match &e.program {
                Ok(program) => (program.instructions.to_string(), code(&program.sha256)),
                Err(why) => (String::new(), text(why)),
            };
            vec![
                text(&words::shown(&e.filter.name)),
                e.calls.to_string(),
                e.budget.map_or_else(String::new, |b| b.to_string()),
                e.filter.rules.len().to_string(),
                e.filter.default.to_string(),
                instructions,
                hash,
            ]
        })
        .collect();
    let head = ["filter", "calls", "budget", "rules", "any other call", "BPF", "SHA-256 of the program"];
    format!("\n### Filters of {}\n{}", part.arch.name(), table(&head, &rows))
}

fn findings_table(view: &View<'_>) -> String {
    if view.findings.is_empty() {
        return "\n## Findings\n\nNone.\n".to_owned();
    }
    let rows: Vec<Vec<String>> = view
        .findings
        .iter()
        .map(|f| {
            let rule = f.rule.as_ref().map_or_else(String::new, |rule| format!(", {}", code(rule)));
            let why = f.accepted.as_ref().map_or_else(String::new, |why| {
                format!(". Accepted (else {}): {}", severity_name(f.severity), text(why))
            });
            let arch = f.arch.map_or_else(String::new, |arch| format!(", {}", code(arch.name())));
            vec![
                severity_name(f.counts_as()).to_owned(),
                code(f.id),
                text(&words::shown(&f.filter)) + &arch,
                code(&words::place(&f.file, f.line)),
                format!("{}{rule}{why}", text(&f.message)),
            ]
        })
        .collect();
    format!("\n## Findings\n{}", table(&["counts as", "finding", "of", "where", "what"], &rows))
}

fn calls(part: &Part<'_>) -> String {
    let names: Vec<String> = part.filters.iter().map(|e| text(&words::shown(&e.filter.name))).collect();
    let head: Vec<&str> = ["system call", "risk"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let mut rows = Vec::new();
    for call in part.families().into_iter().flat_map(|(_, calls)| calls) {
        let signs = part.filters.iter().map(|e| matrix::cell(e.filter, call).1.to_owned());
        rows.push([code(call), grade(call).to_owned()].into_iter().chain(signs).collect());
    }
    table(&head, &rows)
}

fn rules(part: &Part<'_>) -> String {
    let mut out = String::new();
    for entry in &part.filters {
        let filter = entry.filter;
        out += &format!("\n### {}\n\nAny other call: {}.\n", text(&words::shown(&filter.name)), filter.default);
        for (id, why) in &filter.accepted {
            out += &format!("\nAccepted, {}: {}\n", code(id), text(why));
        }
        let mut rows = Vec::new();
        for rule in by_family(&filter.rules).into_iter().flat_map(|(_, rules)| rules) {
            let mut reason = text(&words::reason(rule));
            if let Some(why) = &rule.unexercised {
                reason += &format!(". Not exercised: {}", text(why));
            }
            for (id, why) in &rule.accepted {
                reason += &format!(". Accepted, {}: {}", code(id), text(why));
            }
            let place = code(&words::place(&rule.file, Some(rule.line)));
            rows.push(vec![
                code(&rule.syscall),
                grade(&rule.syscall).to_owned(),
                text(&words::conditions(rule)),
                reason,
                place,
            ]);
        }
        out += &table(&["system call", "risk", "allowed if", "needed by", "stands in"], &rows);
    }
    for process in &part.unfiltered {
        out += &format!("\n### {}: no filter\n\n{}\n", text(&words::shown(&process.name)), text(&process.reason));
        let rows: Vec<Vec<String>> = process
            .calls
            .iter()
            .map(|c| {
                vec![
                    code(&c.syscall),
                    grade(&c.syscall).to_owned(),
                    text(&words::reason(c)),
                    code(&words::place(&c.file, Some(c.line))),
                ]
            })
            .collect();
        out += &table(&["system call", "risk", "used for", "stands in"], &rows);
    }
    out
}

fn processes(view: &View<'_>) -> String {
    let set = view.set;
    let list = |all: &[String]| match all {
        [] => "none".to_owned(),
        all => all.iter().map(|one| code(one)).collect::<Vec<_>>().join(", "),
    };
    let mut out = String::new();
    if !set.processes.is_empty() {
        let row = |(name, p): (&String, &policy_set::model::Process)| {
            let limits: Vec<String> =
                p.rlimits.iter().map(|(n, v)| format!("{} {}", code(n), words::limit(*v))).collect();
            let fds: Vec<String> = p.fds.iter().map(|(fd, what)| format!("{fd} {}", text(what))).collect();
            let limits = if limits.is_empty() { "as they were".to_owned() } else { limits.join(", ") };
            vec![text(name), list(&p.capabilities), list(&p.namespaces), limits, fds.join("; "), text(&p.comment)]
        };
        let rows: Vec<Vec<String>> = set.processes.iter().map(row).collect();
        let head = ["process", "capabilities", "namespaces", "limits", "fds at birth", "what it is"];
        out += &format!("\n## Rights and limits\n{}", table(&head, &rows));
    }
    for (name, landlock) in &set.landlock {
        let (floor, newest) = (landlock.floor_abi, landlock.newest_abi);
        out += &format!("\n## Landlock: {}\n\n{} ABI {floor} to {newest}.\n", text(name), text(&landlock.comment));
        let rows: Vec<Vec<String>> =
            landlock.rules.iter().map(|r| vec![text(&r.what), list(&r.access), text(&r.comment)]).collect();
        if !rows.is_empty() {
            out += &table(&["place", "may", "needed by"], &rows);
        }
    }
    for (file, rules) in &set.nft {
        let rows: Vec<Vec<String>> =
            words::chains(rules).iter().map(|(table, chains)| vec![text(table), list(chains)]).collect();
        out += &format!("\n## Network: {}\n{}", code(&format!("nft/{file}")), table(&["table", "chains"], &rows));
    }
    if !set.processes.is_empty() {
        let word = |read: bool| if read { "read" } else { "asserted at start" }.to_owned();
        let rows: Vec<Vec<String>> =
            words::EVIDENCE.iter().map(|(what, read, how)| vec![text(what), word(*read), text(how)]).collect();
        out += &format!("\n## What can be read from outside\n{}", table(&["what", "evidence", "where from"], &rows));
    }
    out
}
