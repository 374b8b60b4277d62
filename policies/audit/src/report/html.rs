//! The page.

use super::{Options, Part, View, filters, matrix, picture, processes, severity_name, words};
use crate::finding::{Finding, Severity};
use maud::{DOCTYPE, Markup, PreEscaped, html as markup};
use policy_set::model::Set;

/// Nothing is loaded and nothing runs, whatever a set says.
const CSP: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'";

/// One page of HTML that needs nothing but itself.
pub fn html(set: &Set, findings: &[Finding], options: &Options) -> String {
    let view = View::new(set, findings, options);
    let page = markup! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(CSP);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                meta name="generator" content=(words::clean(&options.made_by));
                title { (words::clean(&view.title())) }
                link rel="icon" href="data:,";
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                a.skip href="#summary" { "Skip to the summary" }
                (head(&view))
                main { (body(&view)) }
                footer {
                    p { "To ask further: " code { "vmsup policy check worker/vcpu ioctl 0 0xae80" } " runs the compiled program; "
                        code { "vmsup policy diff" } " shows what changed between two releases; "
                        code { "vmsup inspect --verify" } " compares running processes with these policies." }
                }
            }
        }
    };
    page.into_string() + "\n"
}

fn head(view: &View<'_>) -> Markup {
    let set = view.set;
    let ours = !set.processes.is_empty();
    markup! {
        header {
            p.eyebrow { (words::clean(&view.options.made_by)) " · policy report" }
            h1 { "What every process may do" }
            dl.facts {
                div { dt { "Set" } dd { (words::clean(&set.origin)) } }
                div { dt { "Architecture" } dd { (view.arches.iter().map(|p| p.arch.name()).collect::<Vec<_>>().join(", ")) } }
                @if let Some(date) = &view.options.date { div { dt { "Date" } dd { (words::clean(date)) } } }
            }
            nav aria-label="Contents" {
                ul {
                    li { a href="#summary" { "Summary" } }
                    li { a href="#picture" { "Processes" } }
                    li { a href="#findings" { "Findings" } }
                    @for part in &view.arches {
                        li { a href=(format!("#{}", part.id("matrix"))) { "Matrix" (of(view, part)) } }
                        li { a href=(format!("#{}", part.id("filters"))) { "Filters" (of(view, part)) } }
                    }
                    @if ours { li { a href="#rights" { "Rights and limits" } } }
                    @if !set.landlock.is_empty() { li { a href="#landlock" { "Landlock" } } }
                    @if !set.nft.is_empty() { li { a href="#network" { "Network" } } }
                    @if ours { li { a href="#evidence" { "Evidence" } } }
                }
            }
        }
    }
}

/// The architecture, where there are several.
fn of(view: &View<'_>, part: &Part<'_>) -> String {
    if view.arches.len() > 1 { format!(", {}", part.arch.name()) } else { String::new() }
}

fn body(view: &View<'_>) -> Markup {
    let set = view.set;
    markup! {
        section #summary { h2 { "Summary" } (summary(view)) }
        section #picture { h2 { "Processes" } (picture::figure(view)) }
        section #findings { h2 { "Findings" } (findings(view)) }
        @for part in &view.arches {
            section id=(part.id("matrix")) {
                h2 { "Who may call what" (of(view, part)) }
                p { "A row is a system call, a column a filter. The risk is that of the call with any arguments in the hands of an attacker; conditions can make a call harmless." }
                @if part.filters.iter().any(|e| set.below(e.filter).is_some()) {
                    p { "Filters stack: a worker's thread may call what both " em { "worker/startup" } " and its own filter allow." }
                }
                @if !part.unfiltered.is_empty() {
                    p { "Without a filter, and so without a column: " @for (n, one) in part.unfiltered.iter().enumerate() {
                        @if n > 0 { ", " }
                        a href=(format!("#{}", part.id(&format!("unfiltered-{}", one.name)))) { (words::shown(&one.name)) }
                    } "." }
                }
                (matrix::matrix(part))
            }
            section id=(part.id("filters")) {
                h2 { "Filters, rule by rule" (of(view, part)) }
                p.muted { "Conditions look at the lower 32 bits of an argument, unless all 64 are named. Several rules of one system call are alternatives." }
                @for entry in &part.filters { (filters::filter(part, entry)) }
                @for process in &part.unfiltered { (filters::unfiltered(part, process)) }
            }
        }
        @if !set.processes.is_empty() { section #rights { h2 { "Rights and limits" } (processes::processes(view)) } }
        @if !set.landlock.is_empty() { section #landlock { h2 { "Landlock" } (processes::landlock(view)) } }
        @if !set.nft.is_empty() {
            section #network {
                h2 { "Network" }
                p { "What guests may send to whom. netd adds and removes elements of sets; all rules stand in the file, which root loads." }
                (processes::network(view))
            }
        }
        @if !set.processes.is_empty() {
            section #evidence {
                h2 { "What can be read from outside" }
                p { "This report is about files. Whether they are in force on a host is asked of the kernel there; what has no window is asserted, and never shown as read." }
                (processes::evidence())
            }
        }
    }
}

/// What an auditor reads who has a minute.
fn summary(view: &View<'_>) -> Markup {
    let filters: Vec<_> = view.arches.iter().flat_map(|p| &p.filters).collect();
    let rules: usize = filters.iter().map(|e| e.filter.rules.len()).sum();
    let conditional: usize = filters.iter().flat_map(|e| &e.filter.rules).filter(|r| !r.conditions.is_empty()).count();
    let strict = filters.iter().filter(|e| e.filter.default == policy_set::model::Action::KillProcess).count();
    let open = view.open();
    markup! {
        p.lede {
            (words::count(filters.len(), "filter")) " with " (words::count(rules, "rule")) ", " (conditional) " of them under conditions. "
            @if strict == filters.len() { "Any other system call kills the process. " }
            @else { (strict) " of the filters kill the process on any other system call. " }
            @if open == 0 { "No finding is open." } @else { strong { (words::count(open, "finding")) " open." } }
        }
        ul.tiles {
            @for severity in [Severity::High, Severity::Medium, Severity::Low, Severity::Info] {
                @let n = view.counting_as(severity);
                li class=(format!("tile {}", if n > 0 { severity_name(severity) } else { "zero" })) {
                    strong { (n) } " " span { (severity_name(severity)) }
                }
            }
            li.tile.zero { strong { (view.accepted()) } " " span { "explained in the files" } }
        }
        @for part in &view.arches { (overview(view, part)) }
    }
}

fn overview(view: &View<'_>, part: &Part<'_>) -> Markup {
    let budgets = view.set.processes.iter().filter_map(|(name, p)| Some((name, *p.budgets.get(name)?)));
    let together: Vec<_> = budgets
        .map(|(name, budget)| (name, view.set.narrowed(part.arch, name).len(), budget))
        .filter(|(_, calls, _)| *calls > 0)
        .collect();
    markup! {
        div.scroll tabindex="0" role="region" aria-label=(format!("Filters of {}", part.arch.name())) {
            table.overview {
                caption { span { "Filters of " (part.arch.name()) ": system calls against their budget, and what they compile to" } }
                thead { tr {
                    th scope="col" { "filter" }
                    th scope="col" { "calls" }
                    th scope="col" { "budget" }
                    th scope="col" { "rules" }
                    th scope="col" { "any other call" }
                    th scope="col" { "BPF" }
                    th scope="col" { "SHA-256 of the program" }
                } }
                tbody {
                    @for entry in &part.filters {
                        tr {
                            th scope="row" { a href=(format!("#{}", part.filter_id(entry.filter))) { (words::shown(&entry.filter.name)) } }
                            td.number { (entry.calls) }
                            td.number { (budget(entry.calls, entry.budget)) }
                            td.number { (entry.filter.rules.len()) }
                            td { (entry.filter.default) }
                            @match &entry.program {
                                Ok(program) => { td.number { (program.instructions) } td { code.hash { (hash(&program.sha256)) } } },
                                Err(why) => { td { "–" } td { "does not compile: " (words::clean(why)) } },
                            }
                        }
                    }
                    @for process in &part.unfiltered {
                        tr {
                            th scope="row" { a href=(format!("#{}", part.id(&format!("unfiltered-{}", process.name)))) { (words::shown(&process.name)) } }
                            td.number { "all" } td { span.muted { "–" } } td { span.muted { "–" } } td { strong { "allow: no filter" } }
                            td { span.muted { "–" } } td { span.muted { "–" } }
                        }
                    }
                }
                @if !together.is_empty() {
                    tfoot {
                        @for (name, calls, most) in together {
                            tr {
                                th scope="row" { (words::clean(name)) ", all threads once narrowed" }
                                td.number { (calls) } td.number { (budget(calls, Some(most))) } td colspan="4" {}
                            }
                        }
                    }
                }
            }
        }
    }
}

/// In two halves, which a line may be broken between.
fn hash(whole: &str) -> Markup {
    let (first, second) = whole.split_at_checked(whole.len() / 2).unwrap_or((whole, ""));
    markup! { (first) wbr; (second) }
}

/// A bar, and the same in words.
fn budget(calls: usize, most: Option<usize>) -> Markup {
    markup! {
        @match most {
            None => span.muted { "none" },
            Some(most) => {
                @let over = calls > most;
                span.bar aria-hidden="true" { i.over[over] style=(format!("width:{}%", (calls * 100).checked_div(most).unwrap_or(100).min(100))) {} }
                " of " (most) @if over { strong { ", exceeded" } }
            },
        }
    }
}

fn findings(view: &View<'_>) -> Markup {
    markup! {
        @if view.findings.is_empty() { p { "None." } } @else {
            p.muted { "A finding that a file explains counts as information; its own severity stands behind it." }
            div.scroll tabindex="0" role="region" aria-label="Findings" {
                table.findings {
                    caption.unseen { "Findings" }
                    thead { tr {
                        th scope="col" { "counts as" }
                        th scope="col" { "finding" }
                        th scope="col" { "where" }
                        th scope="col" { "what, and why it is accepted" }
                    } }
                    tbody { @for finding in &view.findings { (row(finding)) } }
                }
            }
        }
    }
}

fn row(finding: &Finding) -> Markup {
    let counts = severity_name(finding.counts_as());
    markup! {
        tr {
            td {
                span class=(format!("grade {counts}")) { (counts) }
                @if finding.accepted.is_some() { div.muted { "else " (severity_name(finding.severity)) } }
            }
            th scope="row" { (finding.id) }
            td {
                (words::shown(&finding.filter)) @if let Some(arch) = finding.arch { span.muted { ", " (arch.name()) } }
                div.place { (filters::place(&words::place(&finding.file, finding.line))) }
            }
            td {
                (words::clean(&finding.message))
                @if let Some(rule) = &finding.rule { div { code { (words::clean(rule)) } } }
                @if let Some(why) = &finding.accepted { div.note { strong { "accepted: " } (words::clean(why)) } }
            }
        }
    }
}
