//! Filters × system calls.

use super::{Part, grade, words};
use crate::risk::risk;
use maud::{Markup, html};
use policy_set::check::{Ever, ever};
use policy_set::model::{Filter, Rule};

/// What stands in a cell: a class, a sign that does not need the colour, and words.
pub fn cell(filter: &Filter, call: &str) -> (&'static str, &'static str, String) {
    match ever(filter, call) {
        Ever::Never => ("never", "·", "not allowed".to_owned()),
        Ever::Always(rule) => ("free", "●", format!("any arguments. {}", words::reason(rule))),
        Ever::If(rules) => {
            let each = |rule: &&Rule| format!("if {}. {}", words::conditions(rule), words::reason(rule));
            ("if", "◐", rules.iter().map(each).collect::<Vec<_>>().join("\n"))
        }
    }
}

/// The table, in a box that scrolls by itself.
pub fn matrix(part: &Part<'_>) -> Markup {
    let families = part.families();
    let total: usize = families.iter().map(|(_, calls)| calls.len()).sum();
    html! {
        p.legend {
            span { span.key.free.medium { "●" } " any arguments" }
            span { span.key.if.medium { span { "◐" } } " under conditions" }
            span { span.key.never { "·" } " kills the process, or what the filter's default is" }
            span { "Colour: " @for level in ["high", "medium", "low", "plain"] { span class=(format!("grade {level}")) { (level) } " " } }
        }
        div.scroll.tall tabindex="0" role="region" aria-label=(format!("Matrix of {}", part.arch.name())) {
            table.matrix id=(part.id("matrix-table")) {
                caption { span {
                    (total) " system calls that any filter of " (part.arch.name()) " allows, by " (part.filters.len())
                    " filters. A sign leads to its reason; so does pointing at it."
                } }
                thead {
                    tr {
                        th scope="col" { "system call" }
                        th scope="col" { "risk" }
                        @for entry in &part.filters {
                            th.turned scope="col" { a href=(format!("#{}", part.filter_id(entry.filter))) { (words::shown(&entry.filter.name)) } }
                        }
                    }
                }
                @for (family, calls) in &families {
                    tbody {
                        tr.family { th scope="rowgroup" colspan=(part.filters.len() + 2) { span { (family.title()) } } }
                        @for call in calls { (row(part, call)) }
                    }
                }
            }
        }
    }
}

fn row(part: &Part<'_>, call: &str) -> Markup {
    let level = grade(call);
    html! {
        tr {
            th scope="row" { code { (words::clean(call)) } }
            td { span class=(format!("grade {level}")) title=(risk(call).why) { (level) } }
            @for entry in &part.filters {
                @let (kind, sign, why) = cell(entry.filter, call);
                @if kind == "never" {
                    td.never { span aria-hidden="true" { (sign) } span.unseen { "no" } }
                } @else {
                    td class=(format!("{kind} {level}")) title=(why) {
                        a href=(format!("#{}", rule_id(part, entry.filter, call))) {
                            span aria-hidden="true" { (sign) }
                            span.unseen { (if kind == "free" { "any arguments" } else { "under conditions" }) }
                        }
                    }
                }
            }
        }
    }
}

/// Where the rules of a system call begin.
pub fn rule_id(part: &Part<'_>, filter: &Filter, call: &str) -> String {
    format!("{}-{}", part.filter_id(filter), call)
}
