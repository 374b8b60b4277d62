//! A filter's rules, and the processes that have none.

use super::{Entry, Part, grade, matrix::rule_id, words};
use crate::risk::risk;
use maud::{Markup, html};
use policy_set::families::{Family, family};
use policy_set::model::{Rule, Unfiltered};

/// All rules of a filter, by family.
pub fn filter(part: &Part<'_>, entry: &Entry<'_>) -> Markup {
    let filter = entry.filter;
    html! {
        details.filter open id=(part.filter_id(filter)) {
            summary {
                h3 { (words::shown(&filter.name)) }
                span.muted { " " (words::count(entry.calls, "system call")) ", " (words::count(filter.rules.len(), "rule")) }
            }
            p.muted {
                code { (words::clean(&filter.file)) } ". A call that a rule names: " strong { (filter.matched) }
                ". Any other: " strong { (filter.default) } "."
                @for (id, why) in &filter.accepted { " Accepted, " code { (words::clean(id)) } ": " (words::clean(why)) "." }
            }
            div.scroll tabindex="0" role="region" aria-label=(format!("Rules of {}", words::shown(&filter.name))) {
                table.rules {
                    caption.unseen { "Rules of " (words::shown(&filter.name)) }
                    thead { tr {
                        th scope="col" { "system call" }
                        th scope="col" { "risk" }
                        th scope="col" { "allowed if" }
                        th scope="col" { "needed by" }
                        th scope="col" { "stands in" }
                    } }
                    @for (title, rules) in by_family(&filter.rules) {
                        tbody {
                            tr.family { th scope="rowgroup" colspan="5" { (title) } }
                            @for (n, rule) in rules.iter().enumerate() {
                                @let first = n == 0 || rules[n - 1].syscall != rule.syscall;
                                tr id=[first.then(|| rule_id(part, filter, &rule.syscall))] { (cells(rule)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Rules in the order of families; those of one system call together, otherwise as in the file.
pub fn by_family(rules: &[Rule]) -> Vec<(&'static str, Vec<&Rule>)> {
    let of = |wanted: Family| {
        let mut calls: Vec<&str> = Vec::new();
        for rule in rules.iter().filter(|r| family(&r.syscall) == wanted) {
            if !calls.contains(&rule.syscall.as_str()) {
                calls.push(&rule.syscall);
            }
        }
        let of_call = |call: &str| rules.iter().filter(move |r| r.syscall == call).collect::<Vec<_>>();
        (wanted.title(), calls.into_iter().flat_map(of_call).collect::<Vec<_>>())
    };
    Family::ALL.into_iter().map(of).filter(|(_, rules)| !rules.is_empty()).collect()
}

/// A place in a file, which a line may be broken in behind each slash.
pub fn place(place: &str) -> Markup {
    html! { @for part in place.split_inclusive('/') { (part) @if part.ends_with('/') { wbr; } } }
}

fn cells(rule: &Rule) -> Markup {
    let level = grade(&rule.syscall);
    html! {
        th scope="row" { code { (words::clean(&rule.syscall)) } }
        td { span class=(format!("grade {level}")) title=(risk(&rule.syscall).why) { (level) } }
        td {
            @if rule.conditions.is_empty() { span.muted { "any arguments" } }
            @for condition in &rule.conditions {
                div { @if let Some(name) = &condition.comment { strong { (words::clean(name)) } ": " } (words::condition(condition)) }
            }
        }
        td {
            (words::reason(rule))
            @if let Some(why) = &rule.unexercised { div.note { strong { "not exercised: " } (words::clean(why)) } }
            @for (id, why) in &rule.accepted { div.note { strong { "accepted, " (words::clean(id)) ": " } (words::clean(why)) } }
        }
        td.place { (place(&words::place(&rule.file, Some(rule.line)))) }
    }
}

/// A process without a filter.
pub fn unfiltered(part: &Part<'_>, process: &Unfiltered) -> Markup {
    html! {
        details.filter open id=(part.id(&format!("unfiltered-{}", process.name))) {
            summary {
                h3 { (words::shown(&process.name)) }
                span.muted { " no filter; makes " (words::count(process.calls.len(), "system call")) }
            }
            p { strong { "Why: " } (words::clean(&process.reason)) }
            p.muted { code { (words::clean(&process.file)) } ". Nothing holds it to this list." }
            div.scroll tabindex="0" role="region" aria-label=(format!("Calls of {}", words::shown(&process.name))) {
                table.rules {
                    caption.unseen { "Calls of " (words::shown(&process.name)) }
                    thead { tr {
                        th scope="col" { "system call" }
                        th scope="col" { "risk" }
                        th scope="col" { "used for" }
                        th scope="col" { "stands in" }
                    } }
                    tbody {
                        @for call in &process.calls {
                            @let level = grade(&call.syscall);
                            tr {
                                th scope="row" { code { (words::clean(&call.syscall)) } }
                                td { span class=(format!("grade {level}")) title=(risk(&call.syscall).why) { (level) } }
                                td { (words::reason(call)) }
                                td.place { (place(&words::place(&call.file, Some(call.line)))) }
                            }
                        }
                    }
                }
            }
        }
    }
}
