//! What processes hold beside their filters: capabilities, namespaces, limits, fds, landlock, nftables.

use super::{View, words};
use maud::{Markup, html};
use std::collections::BTreeSet;

/// A table in a box that scrolls by itself.
fn boxed(name: &str, head: &[&str], rows: Markup) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(name) {
            table {
                caption { span { (name) } }
                thead { tr { @for title in head { th scope="col" { (title) } } } }
                tbody { (rows) }
            }
        }
    }
}

fn listed(all: &[String]) -> Markup {
    html! {
        @if all.is_empty() { span.muted { "none" } }
        @for (n, one) in all.iter().enumerate() { @if n > 0 { ", " } code { (words::clean(one)) } }
    }
}

/// `process.json`.
pub fn processes(view: &View<'_>) -> Markup {
    let all = &view.set.processes;
    let limits: BTreeSet<&String> = all.values().flat_map(|p| p.rlimits.keys()).collect();
    let limited: Vec<_> = all.iter().filter(|(_, p)| !p.rlimits.is_empty()).collect();
    let limit_head: Vec<&str> = std::iter::once("limit").chain(limited.iter().map(|(name, _)| name.as_str())).collect();
    html! {
        (boxed("Capabilities and namespaces", &["process", "capabilities", "namespaces of its own", "what it is"], html! {
            @for (name, process) in all {
                tr {
                    th scope="row" { (words::clean(name)) }
                    td { (listed(&process.capabilities)) }
                    td { (listed(&process.namespaces)) }
                    td { (words::clean(&process.comment)) }
                }
            }
        }))
        @if !limits.is_empty() {
            (boxed("Resource limits, soft and hard", &limit_head, html! {
                @for limit in limits {
                    tr {
                        th scope="row" { code { (words::clean(limit)) } }
                        @for (_, process) in &limited {
                            td.number { @match process.rlimits.get(limit) {
                                Some(value) => (words::limit(*value)),
                                None => span.muted { "as it was" },
                            } }
                        }
                    }
                }
            }))
        }
        @if all.values().any(|p| !p.fds.is_empty()) {
            (boxed("Fds that a process is born with", &["process", "fd", "what it is"], html! {
                @for (name, process) in all {
                    @for (fd, what) in &process.fds {
                        tr { th scope="row" { (words::clean(name)) } td.number { (fd) } td { (words::clean(what)) } }
                    }
                }
            }))
        }
    }
}

/// `landlock.json`.
pub fn landlock(view: &View<'_>) -> Markup {
    html! {
        @for (name, landlock) in &view.set.landlock {
            h3 { (words::clean(name)) }
            p { (words::clean(&landlock.comment)) }
            p.muted { "Landlock ABI " (landlock.floor_abi) " at least; use is made of ABIs up to " (landlock.newest_abi) "." }
            @if landlock.rules.is_empty() {
                p { strong { "No exception: " } "every right that the running ABI knows is denied everywhere." }
            } @else {
                (boxed(&format!("Exceptions of {}", words::clean(name)), &["place", "may", "needed by"], html! {
                    @for rule in &landlock.rules {
                        tr {
                            th scope="row" { (words::clean(&rule.what)) }
                            td { (listed(&rule.access)) }
                            td { (words::clean(&rule.comment)) }
                        }
                    }
                }))
            }
        }
    }
}

/// `nft/*.nft`.
pub fn network(view: &View<'_>) -> Markup {
    html! {
        @for (file, text) in &view.set.nft {
            (boxed(&format!("Tables of nft/{}, {} lines", words::clean(file), text.lines().count()), &["table", "chains"], html! {
                @for (table, chains) in words::chains(text) {
                    tr { th scope="row" { (words::clean(&table)) } td { (listed(&chains)) } }
                }
            }))
        }
    }
}

/// What can be read, and what is asserted.
pub fn evidence() -> Markup {
    boxed(
        "What is in force, and how one knows",
        &["what", "evidence", "where from"],
        html! {
            @for (what, read, how) in words::EVIDENCE {
                tr {
                    th scope="row" { (what) }
                    td { @if *read { span.badge.read { "read" } } @else { span.badge.asserted { "asserted at start" } } }
                    td { (how) }
                }
            }
        },
    )
}
