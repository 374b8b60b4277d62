//! The report of `vmsup inspect`, for people.

use super::super::acts::ended;
use super::super::net::forwards;
use super::super::output::{age, mib, now, table};
use super::super::sanitize::line;
use super::super::vms::state;
use super::Report;
use super::jail::{Inside, Jail, shown, shown_map};
use super::proc::{Capabilities, Process};
use super::verify::Verified;
use std::fmt::Write;
use vmsup::api::types::{VmInfo, WorkerInfo};
use vmsup::spec::Builtin;

/// Labels are padded to this width.
const LABEL: usize = 15;

/// The whole report.
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    vm(&mut out, &report.info);
    if let Some(error) = &report.jail_error {
        labelled(&mut out, "jail", error);
    }
    if let (Some(jail), Some(worker)) = (&report.jail, &report.info.worker) {
        self::jail(&mut out, jail, worker);
    }
    if let Some(checked) = &report.verified {
        out.push('\n');
        out.push_str(&verified(checked));
    }
    out
}

/// What came of holding a process against its policy.
pub fn verified(checked: &Verified) -> String {
    let what = match &checked.vm {
        Some(vm) => format!("VM {}: {}", line(vm), checked.process),
        None => checked.process.clone(),
    };
    let mut out = match checked.differences.len() {
        0 => format!("{what} {} is as declared\n", checked.pid),
        n => format!("{what} {} is NOT as declared: {n} differences\n", checked.pid),
    };
    for difference in &checked.differences {
        labelled(&mut out, "DIFFERENCE", difference);
    }
    for note in &checked.not_seen {
        labelled(&mut out, "not verified", note);
    }
    out
}

fn labelled(out: &mut String, label: &str, text: &str) {
    let _ = writeln!(out, "  {label:LABEL$} {}", line(text));
}

fn heading(out: &mut String, text: &str) {
    let _ = writeln!(out, "\n{}", line(text));
}

fn vm(out: &mut String, info: &VmInfo) {
    let (vm, spec) = (&info.summary, &info.spec);
    let _ = writeln!(out, "{} (id {}): {}", line(&vm.name), line(&vm.id), state(vm.state));
    if vm.end.is_some() {
        labelled(out, "end", &ended(info));
    }
    if let Some(at) = vm.started_at {
        labelled(out, "started", &format!("{} ago, by uid {}", age(now().saturating_sub(at)), vm.owner));
    }
    labelled(out, "size", &format!("{} vCPU, {}", vm.cpus, mib(vm.memory_mib)));
    match (&spec.boot.kernel, &spec.boot.initrd) {
        (Some(kernel), Some(initrd)) => labelled(out, "boots", &format!("{kernel} with {initrd}")),
        (Some(kernel), None) => labelled(out, "boots", kernel),
        (None, _) => labelled(out, "boots", builtin(spec.boot.builtin)),
    }
    if let Some(cmdline) = &spec.boot.cmdline {
        labelled(out, "command line", cmdline);
    }
    for (n, disk) in spec.disks.iter().enumerate() {
        let right = if disk.readonly { " (read only)" } else { "" };
        labelled(out, &format!("disk {n}"), &format!("{}{right}", disk.path));
    }
    let console = info.console;
    labelled(out, "console", &format!("{} bytes written, {} no longer kept", console.written, console.overwritten));
    networks(out, info);
}

fn builtin(guest: Option<Builtin>) -> &'static str {
    match guest {
        Some(Builtin::Hello) => "the built-in guest \"hello\"",
        Some(Builtin::Net) => "the built-in guest \"net\"",
        None => "nothing",
    }
}

/// What the interfaces are while they are leased, and where they belong while they are not.
fn networks(out: &mut String, info: &VmInfo) {
    let leased = &info.summary.nets;
    if leased.is_empty() {
        for (n, net) in info.spec.nets.iter().enumerate() {
            labelled(out, &format!("network {n}"), &format!("{}, without a lease now", net.network));
        }
        return;
    }
    heading(out, "Its networks");
    let head = ["NETWORK", "INTERFACE", "MAC", "ADDRESS", "GATEWAY", "MTU", "QUEUES", "FORWARDS"];
    let rows = leased.iter().map(|net| {
        vec![
            net.network.clone(),
            net.interface.clone(),
            net.mac.clone(),
            format!("{}/{}", net.address, net.prefix),
            net.gateway.clone(),
            net.mtu.to_string(),
            net.queues.to_string(),
            forwards(&net.forwards),
        ]
    });
    out.push_str(&indented(&table(&head, &rows.collect::<Vec<_>>())));
}

fn jail(out: &mut String, jail: &Jail, worker: &WorkerInfo) {
    let how = if worker.warm { "from the warm pool" } else { "made for it" };
    heading(out, &format!("Its process: {} ({how}, slot {})", jail.pid, worker.slot));
    for deviation in &jail.deviations {
        labelled(out, "NOT AS DECLARED", deviation);
    }
    privileges(out, &jail.process);
    labelled(out, "limits held", &worker.limits);
    labelled(out, "cgroup", &jail.process.cgroup);
    for limit in &jail.cgroup_limits {
        let asked = limit.asked.as_ref().map_or_else(|| "not asked for".into(), |asked| format!("asked: {asked}"));
        labelled(out, limit.file, &format!("{} ({asked})", limit.value.as_deref().unwrap_or("not there")));
    }
    if let Some(inside) = &jail.inside {
        surroundings(out, inside);
    }
    if let Some(error) = &jail.inside_error {
        labelled(out, "not seen", &format!("namespaces, mounts, environment and files: {error}"));
    }
    heading(out, "Asserted at start (the kernel shows these to nobody)");
    for what in &jail.asserted {
        let _ = writeln!(out, "  {}", line(what));
    }
    heading(out, "Threads");
    out.push_str(&indented(&threads(&jail.process)));
    heading(out, "Resource limits");
    let limits = jail.process.rlimits.iter().map(|l| vec![l.name.clone(), shown(l.soft), shown(l.hard)]);
    out.push_str(&indented(&table(&["NAME", "SOFT", "HARD"], &limits.collect::<Vec<_>>())));
    if let Some(inside) = &jail.inside {
        heading(out, &format!("Open files: {}, and no way to open another", inside.fds.len()));
        let rows = inside.fds.iter().map(|fd| {
            vec![fd.number.to_string(), fd.purpose.clone().unwrap_or_else(|| "NOT DECLARED".into()), fd.target.clone()]
        });
        out.push_str(&indented(&table(&["FD", "FOR", "LEADS TO"], &rows.collect::<Vec<_>>())));
    }
}

fn privileges(out: &mut String, process: &Process) {
    let all = |ids: &[u32]| match ids {
        [first, rest @ ..] if rest.iter().all(|id| id == first) => first.to_string(),
        ids => ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "),
    };
    let own = rustix::process::getuid().as_raw();
    let uid = if process.uids.iter().all(|uid| *uid == own) { ", your own" } else { ", none but this VM's" };
    labelled(out, "uid, gid", &format!("{}, {}{uid}", all(&process.uids), all(&process.gids)));
    labelled(
        out,
        "uid, gid maps",
        &format!("uid inside {}; gid inside {}", shown_map(&process.uid_map), shown_map(&process.gid_map)),
    );
    let threads = process.threads.len();
    let count = |f: &dyn Fn(&super::proc::Thread) -> bool| process.threads.iter().filter(|t| f(t)).count();
    let capable = count(&|t| !t.capabilities.are_none());
    let none = match capable {
        0 => "none, in all five sets of all threads".to_owned(),
        n => format!("{n} of {threads} threads have some"),
    };
    labelled(out, "capabilities", &none);
    labelled(out, "no_new_privs", &format!("on {} of {threads} threads", count(&|t| t.no_new_privs)));
    labelled(out, "seccomp", &format!("filters on {} of {threads} threads", count(&|t| t.seccomp == "filter")));
}

fn surroundings(out: &mut String, inside: &Inside) {
    let kinds = |own: bool| {
        let mut kinds: Vec<&str> = inside.namespaces.iter().filter(|n| n.own == own).map(|n| n.kind.as_str()).collect();
        kinds.dedup();
        if kinds.is_empty() { "none".to_owned() } else { kinds.join(" ") }
    };
    labelled(out, "namespaces", &format!("its own: {}; the host's: {}", kinds(true), kinds(false)));
    labelled(out, "root", &format!("{}, {} entries", inside.root, inside.root_entries.len()));
    for mount in &inside.mounts {
        labelled(out, "mount", mount);
    }
    if let Some(hash) = &inside.section_sha256 {
        labelled(out, "policies", &format!("SHA-256 of its program's section: {hash}"));
    }
    labelled(out, "environment", &format!("{} bytes", inside.environ_bytes));
}

/// The sets, in the kernel's words; `none` where all five are empty.
fn capabilities(sets: Capabilities) -> String {
    if sets.are_none() {
        return "none".into();
    }
    let Capabilities { inheritable, permitted, effective, bounding, ambient } = sets;
    format!("Inh={inheritable:x} Prm={permitted:x} Eff={effective:x} Bnd={bounding:x} Amb={ambient:x}")
}

fn threads(process: &Process) -> String {
    let rows: Vec<Vec<String>> = process
        .threads
        .iter()
        .map(|t| {
            vec![
                t.tid.to_string(),
                if t.kernel { format!("{} (the kernel's own)", t.name) } else { t.name.clone() },
                t.seccomp.clone(),
                t.seccomp_filters.map_or_else(|| "?".into(), |n| n.to_string()),
                if t.no_new_privs { "yes" } else { "NO" }.into(),
                capabilities(t.capabilities),
            ]
        })
        .collect();
    table(&["TID", "NAME", "SECCOMP", "FILTERS", "NO_NEW_PRIVS", "CAPABILITIES"], &rows)
}

fn indented(text: &str) -> String {
    text.lines().map(|l| format!("  {l}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_five_sets_of_a_thread_are_told_where_any_is_not_empty() {
        let none = Capabilities { inheritable: 0, permitted: 0, effective: 0, bounding: 0, ambient: 0 };
        assert_eq!(capabilities(none), "none");
        let one = Capabilities { bounding: 0x1000, ..none };
        assert_eq!(capabilities(one), "Inh=0 Prm=0 Eff=0 Bnd=1000 Amb=0");
    }
}
