//! The processes, drawn: who talks to whom, and who is confined how.

use super::{Part, View, words};
use maud::{Markup, html};

/// A box: place and size, whether a filter confines what it stands for, a name, and lines below it.
struct Node<'a> {
    at: (u32, u32),
    size: (u32, u32),
    class: &'static str,
    name: &'a str,
    lines: Vec<String>,
}

/// The picture of our own processes; of a foreign set, its filters above the kernel.
pub fn figure(view: &View<'_>) -> Markup {
    let Some(part) = view.arches.first() else { return html! {} };
    let ours = ["supervisor", "netd", "worker-startup"].iter().all(|name| part.entry(name).is_some());
    html! {
        figure {
            div.scroll tabindex="0" role="region" aria-label="Picture of the processes" {
                @if ours && !view.set.processes.is_empty() { (drawn(view, part)) } @else { (plain(part)) }
            }
            figcaption {
                "A whole line: a filter confines it. A dashed line: no filter. Numbers are system calls that a filter of "
                (part.arch.name()) " allows."
            }
        }
    }
}

fn frame(width: u32, height: u32, title: &str, description: &str, inside: Markup) -> Markup {
    html! {
        svg viewBox=(format!("0 0 {width} {height}")) width=(width) height=(height) role="img" aria-labelledby="picture-title picture-desc" {
            title #picture-title { (title) }
            desc #picture-desc { (description) }
            defs {
                marker #tip viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse" {
                    path.tip d="M0 0 8 4 0 8z" {}
                }
            }
            (inside)
        }
    }
}

fn node(node: &Node<'_>) -> Markup {
    let ((x, y), (width, height)) = (node.at, node.size);
    html! {
        rect class=(node.class) x=(x) y=(y) width=(width) height=(height) rx="6" {}
        text.name x=(x + 14) y=(y + 24) { (words::clean(node.name)) }
        @for (n, line) in (0_u32..).zip(&node.lines) { text.line x=(x + 14) y=(y + 44 + 17 * n) { (line) } }
    }
}

fn arrow(d: &str, label: &str, at: (u32, u32)) -> Markup {
    html! {
        path.arrow d=(d) marker-end="url(#tip)" {}
        text.label x=(at.0) y=(at.1) { (label) }
    }
}

fn drawn(view: &View<'_>, part: &Part<'_>) -> Markup {
    let calls = |name: &str| part.entry(name).map_or(0, |e| e.calls);
    let list = |all: &[String]| if all.is_empty() { "no capability".to_owned() } else { all.join(", ") };
    let rights = |name: &str| view.set.processes.get(name).map_or_else(String::new, |p| list(&p.capabilities));
    let spaces = view.set.processes.get("worker").map_or(0, |p| p.namespaces.len());
    let places = |name: &str| match view.set.landlock.get(name).map_or(0, |l| l.rules.len()) {
        0 => "landlock: no place at all".to_owned(),
        n => format!("landlock: {}", words::count(n, "place")),
    };
    let threads: Vec<_> =
        part.filters.iter().filter(|e| e.filter.process() == "worker" && e.filter.name != "worker-startup").collect();
    let filtered = |name: &str| if part.entry(name).is_some() { "box" } else { "box open" };
    let boxes = [
        Node {
            at: (20, 20),
            size: (190, 92),
            class: "box open",
            name: "command line",
            lines: vec!["vmsup …, as the user".into(), "holds the API socket".into()],
        },
        Node {
            at: (300, 20),
            size: (270, 92),
            class: filtered("supervisor"),
            name: "supervisor",
            lines: vec![
                "parses requests, opens files".into(),
                format!("{} calls, {}", calls("supervisor"), rights("supervisor")),
                "no_new_privs".into(),
            ],
        },
        Node {
            at: (690, 20),
            size: (250, 92),
            class: filtered("jailer"),
            name: "jailer",
            lines: vec![
                "makes the jails, reaps workers".into(),
                format!("no filter, {}", rights("jailer")),
                "single-threaded".into(),
            ],
        },
        Node {
            at: (20, 190),
            size: (550, 218),
            class: filtered("worker-startup"),
            name: "worker, one for each VM",
            lines: vec![format!("{spaces} namespaces of its own, {}, {}", rights("worker"), places("worker"))],
        },
        Node {
            at: (690, 190),
            size: (250, 110),
            class: filtered("netd"),
            name: "netd",
            lines: vec![
                "its own system user".into(),
                format!("{} calls, {}", calls("netd"), rights("netd")),
                places("netd"),
                "no_new_privs".into(),
            ],
        },
        Node {
            at: (20, 476),
            size: (920, 62),
            class: "box kernel",
            name: "Linux",
            lines: vec![
                "KVM · seccomp · landlock · namespaces · cgroups · TAP devices and nftables, whose rules root loads"
                    .into(),
            ],
        },
    ];
    let description = format!(
        "The command line asks the supervisor through the API socket. The supervisor ({} system calls) opens files and asks \
         the jailer, which has no filter, for workers, and netd ({} system calls) for TAP devices. A worker starts under a \
         filter of {} system calls, and each of its threads narrows further.",
        calls("supervisor"),
        calls("netd"),
        calls("worker-startup"),
    );
    frame(
        960,
        556,
        "Processes and their confinement",
        &description,
        html! {
            @for one in &boxes { (node(one)) }
            rect.band x="34" y="250" width="522" height="30" rx="4" {}
            text.line x="46" y="270" { "startup: " (calls("worker-startup")) " calls, put on first and below all threads" }
            @for (n, entry) in (0_u32..).zip(threads.iter().take(4)) {
                (node(&Node {
                    at: (34 + 132 * n, 294), size: (126, 100), class: "box thread", name: entry.filter.thread().unwrap_or("all"),
                    lines: vec![words::count(entry.calls, "call"), thread_does(entry.filter.thread().unwrap_or_default()).into()],
                }))
            }
            (arrow("M210 62H296", "API", (242, 54)))
            (arrow("M570 54H686", "requests", (600, 46)))
            (arrow("M380 112V186", "fds, then requests", (262, 154)))
            (arrow("M730 112V154H480V186", "forks into the jail", (500, 146)))
            (arrow("M570 86H630V245H686", "leases", (638, 236)))
            @for (x, at, label) in [(295_u32, 305, "what both filters allow"), (815, 678, "netlink, /dev/net/tun")] {
                (arrow(&format!("M{x} {}V472", if x == 815 { 300 } else { 408 }), label, (at, 446)))
            }
        },
    )
}

fn thread_does(thread: &str) -> &'static str {
    match thread {
        "control" => "peers' requests",
        "io" => "disks",
        "reactor" => "devices' events",
        "vcpu" => "runs the guest",
        _ => "",
    }
}

fn plain(part: &Part<'_>) -> Markup {
    const WIDE: u32 = 220;
    let entries: Vec<(u32, &super::Entry<'_>)> = (0_u32..).zip(&part.filters).collect();
    let rows = u32::try_from(entries.len()).unwrap_or(u32::MAX).div_ceil(4).clamp(1, 64);
    let (height, kernel) = (20 + rows * 96 + 110, 20 + rows * 96 + 24);
    let description = format!("{} filters above the kernel.", entries.len());
    frame(
        960,
        height,
        "Filters",
        &description,
        html! {
            @for (n, entry) in entries {
                (node(&Node {
                    at: (20 + (n % 4) * (WIDE + 13), 20 + (n / 4) * 96), size: (WIDE, 80), class: "box", name: &entry.filter.name,
                    lines: vec![words::count(entry.calls, "call"), format!("else: {}", entry.filter.default)],
                }))
            }
            (node(&Node { at: (20, kernel), size: (919, 60), class: "box kernel", name: "Linux", lines: vec!["system calls".into()] }))
        },
    )
}
