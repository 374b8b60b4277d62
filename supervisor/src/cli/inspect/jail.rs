//! The jail of a running worker: what the kernel shows of it, what each file is for, and where it is not as declared.

use super::super::sanitize::without_errno;
use super::cgroup;
use super::proc::{self, Process};
use super::verify;
use jail_spec::Inspection;
use serde::Serialize;
use std::io::Read;
use std::process::{Command, Stdio};
use vmsup::api::types::{VmInfo, WorkerInfo};

/// What a TAP's fds lead to.
const TUN: &str = "/dev/net/tun";

/// What is known of a jail. All but `asserted` was read just now.
#[derive(Debug, Serialize)]
pub struct Jail {
    /// Pid of the worker.
    pub pid: i32,
    /// What anybody may read.
    #[serde(flatten)]
    pub process: Process,
    /// What limits its cgroup; empty where it has none of its own.
    pub cgroup_limits: Vec<cgroup::Value>,
    /// What only the creator of its user namespace may read; absent where that failed.
    pub inside: Option<Inside>,
    /// Why `inside` is absent.
    pub inside_error: Option<String>,
    /// What the kernel shows to nobody; the worker did it at its start or would not run.
    pub asserted: Vec<String>,
    /// Where the jail is not as `policies/process.json` declares it. Empty is as it should be.
    pub deviations: Vec<String>,
}

/// The inner view.
#[derive(Debug, Serialize)]
pub struct Inside {
    /// Its namespaces.
    pub namespaces: Vec<Namespace>,
    /// Its root directory, resolved.
    pub root: String,
    /// The entries of its root directory.
    pub root_entries: Vec<String>,
    /// Its mounts, as lines of mountinfo.
    pub mounts: Vec<String>,
    /// Bytes of its environment.
    pub environ_bytes: usize,
    /// Its open files.
    pub fds: Vec<Fd>,
    /// SHA-256 of the policy section of the program that it runs.
    pub section_sha256: Option<String>,
    /// How that section is not as this program's own; also where there is none.
    pub section_difference: Option<String>,
}

/// A namespace.
#[derive(Debug, Serialize)]
pub struct Namespace {
    /// `mnt`, `pid`, …
    pub kind: String,
    /// Inode number that names it.
    pub inode: String,
    /// It is another than the one of this command.
    pub own: bool,
}

/// An open file.
#[derive(Debug, Serialize)]
pub struct Fd {
    /// Number.
    pub number: i32,
    /// What it leads to, as the kernel names it.
    pub target: String,
    /// What it is for; `None` where nothing declares it.
    pub purpose: Option<String>,
}

/// Looks at the worker of a VM.
///
/// # Errors
/// The worker is gone.
pub fn look(info: &VmInfo, worker: &WorkerInfo) -> std::io::Result<Jail> {
    let process = proc::read(worker.pid, worker.start_time)?;
    let inside = look_inside(worker.pid).map(|inspection| inside(inspection, Some(info), own_namespaces()));
    // The helper looked by pid: the same process must still be there, or it saw another one.
    proc::read(worker.pid, worker.start_time)?;
    let cgroup_limits = cgroup::read(&process.cgroup, info, worker);
    let mut deviations = of_process(&process);
    deviations.extend(of_ids(&process, worker.uid));
    deviations.extend(cgroup::differences(&cgroup_limits, info, worker));
    if let Ok(inside) = &inside {
        deviations.extend(of_inside(inside));
        deviations.extend(of_files(inside, tap_queues(info)));
    }
    let (inside, inside_error) = match inside {
        Ok(inside) => (Some(inside), None),
        Err(error) => (None, Some(without_errno(&error))),
    };
    Ok(Jail { pid: worker.pid, process, cgroup_limits, inside, inside_error, asserted: asserted(), deviations })
}

fn asserted() -> Vec<String> {
    vec![
        format!("landlock ABI {}: every right it knows is denied", policies::apply::landlock_abi()),
        "securebits: root is nobody special, and that is locked".into(),
        "not dumpable: no core, no ptrace".into(),
    ]
}

/// Asks `vmsup-jailer inspect`, a process of its own that enters the worker's user namespace for this one answer.
pub fn look_inside(pid: i32) -> Result<Inspection, String> {
    let program = vmsup::paths::program_dir().map_err(|e| e.to_string())?.join("vmsup-jailer");
    let failed = |e: std::io::Error| format!("{}: {e}", program.display());
    let mut child = Command::new(&program)
        .args(["inspect", &pid.to_string(), "--wire"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let read = |from: Option<&mut dyn Read>, limit: u64| {
        let mut bytes = Vec::new();
        from.map_or(Ok(0), |from| from.take(limit).read_to_end(&mut bytes)).map(|_| bytes)
    };
    let frame_max = ipc::codec::FRAME_LIMIT;
    let frame = read(child.stdout.as_mut().map(|s| s as &mut dyn Read), frame_max as u64 + 1);
    let words = read(child.stderr.as_mut().map(|s| s as &mut dyn Read), 2000);
    let status = child.wait().map_err(failed)?;
    if !status.success() {
        let words = words.map_err(failed)?;
        let words = String::from_utf8_lossy(&words);
        let sentence = words.lines().next().unwrap_or_default();
        return Err(sentence.strip_prefix("vmsup-jailer: ").unwrap_or(sentence).to_owned());
    }
    ipc::codec::decode(&frame.map_err(failed)?, frame_max).map_err(|e| format!("{}: {e}", program.display()))
}

/// This process's own namespaces, as `/proc/self/ns` names them.
pub fn own_namespaces() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/self/ns").into_iter().flatten().flatten();
    entries.filter_map(|e| Some(std::fs::read_link(e.path()).ok()?.to_str()?.to_owned())).collect()
}

/// The inner view of a worker of this VM; of an unknown one no file by its path, and no TAP, has a purpose.
pub fn inside(inspection: Inspection, info: Option<&VmInfo>, own: Vec<String>) -> Inside {
    let namespaces = inspection.namespaces.iter().filter_map(|text| {
        let (kind, inode) = text.split_once(":[")?;
        let inode = inode.trim_end_matches(']').to_owned();
        Some(Namespace { kind: kind.to_owned(), inode, own: !own.contains(text) })
    });
    let fds = inspection.fds.iter().map(|(number, target)| Fd {
        number: *number,
        target: target.clone(),
        purpose: purpose(*number, target, info),
    });
    Inside {
        namespaces: namespaces.collect(),
        fds: fds.collect(),
        section_sha256: inspection.section.as_ref().ok().map(|bytes| verify::sha256(bytes)),
        section_difference: verify::section(&inspection.section),
        root: inspection.root,
        root_entries: inspection.root_entries,
        mounts: inspection.mounts,
        environ_bytes: inspection.environ_bytes,
    }
}

/// What an open file of a worker is for. The first four are declared by number; the others come with the VM in no fixed
/// order and are told by what they lead to.
fn purpose(number: i32, target: &str, info: Option<&VmInfo>) -> Option<String> {
    if let Some((_, what)) = policies::PROCESS_WORKER.fds.iter().find(|(n, _)| *n == number) {
        let kind = match number {
            0 | 1 => target == "/dev/null",
            2 => target.starts_with("pipe:["),
            _ => target.starts_with("socket:["),
        };
        return kind.then(|| (*what).to_owned());
    }
    if let Some(what) = info.and_then(|info| of_its_files(target, info)) {
        return Some(what);
    }
    Some(match target.strip_suffix(" (deleted)").unwrap_or(target) {
        "/dev/kvm" => "KVM".into(),
        "anon_inode:kvm-vm" => "KVM's VM".into(),
        "/memfd:vmsup-ram" => "guest RAM".into(),
        "/memfd:vmsup-console" => "the console's ring".into(),
        "/memfd:vmsup-hello" | "/memfd:vmsup-net" => "the built-in kernel, read only".into(),
        TUN if info.is_some_and(|info| tap_queues(info) > 0) => "a queue of a network interface's TAP".into(),
        "anon_inode:[eventfd]" => "a wake-up between KVM, threads and supervisor".into(),
        "anon_inode:[eventpoll]" => "what a thread waits for".into(),
        "anon_inode:[timerfd]" => "a timer".into(),
        other => match other.split_once(':') {
            Some(("anon_inode", vcpu)) if vcpu.starts_with("kvm-vcpu") => {
                format!("KVM's vCPU {}", vcpu.rsplit(':').next().unwrap_or_default())
            }
            Some(("pipe", _)) => "console input from the supervisor, or a wake-up".into(),
            Some(("socket", _)) => "the supervisor's connection".into(),
            _ => return None,
        },
    })
}

/// Which of the files that are named in its VM's file this is.
fn of_its_files(target: &str, info: &VmInfo) -> Option<String> {
    let spec = &info.spec;
    if let Some(n) = spec.disks.iter().position(|disk| leads_to(&disk.path, target)) {
        let right = if spec.disks[n].readonly { "read only" } else { "read and write" };
        return Some(format!("disk {n}, {right}"));
    }
    let of = |path: &Option<String>| path.as_ref().is_some_and(|p| leads_to(p, target));
    if of(&spec.boot.kernel) {
        return Some("the kernel image, read only".into());
    }
    of(&spec.boot.initrd).then(|| "the initrd, read only".into())
}

/// How many fds of TAPs its networks come with.
fn tap_queues(info: &VmInfo) -> usize {
    info.summary.nets.iter().map(|net| usize::from(net.queues)).sum()
}

/// Whether a path of the spec is what the kernel calls `target`; the spec may go through symbolic links.
fn leads_to(path: &str, target: &str) -> bool {
    path == target || std::fs::canonicalize(path).is_ok_and(|p| p.to_str() == Some(target))
}

/// Where the ids are not those of a jail: it runs as one uid, and its user namespace knows no other than that one.
pub fn of_ids(process: &Process, uid: u32) -> Vec<String> {
    let mut found = Vec::new();
    if process.uids.iter().any(|id| *id != uid) {
        found.push(format!("it runs as uid {:?}, its supervisor says {uid}", process.uids));
    }
    let first = |ids: &[u32]| ids.first().copied();
    let maps = [
        ("uid", &process.uid_map, Some(uid), &process.uids),
        ("gid", &process.gid_map, first(&process.gids), &process.gids),
    ];
    for (what, map, outer, ids) in maps {
        if ids.iter().any(|id| Some(*id) != outer) && what == "gid" {
            found.push(format!("its gids are not one: {ids:?}"));
        }
        if !matches!(map[..], [[_, mapped, 1]] if Some(mapped) == outer) {
            let outer = outer.map_or_else(|| "none".into(), |id| id.to_string());
            found.push(format!("its {what} map is {}, and not that of {outer} alone", shown_map(map)));
        }
    }
    found
}

/// A map's lines: `0 is 100001`, `0 to 9 are 100000 to 100009`.
pub fn shown_map(map: &[[u32; 3]]) -> String {
    let line = |[inner, outer, count]: &[u32; 3]| match count {
        1 => format!("{inner} is {outer}"),
        n => {
            let to = |first: u32| u64::from(first) + u64::from(*n).saturating_sub(1);
            format!("{inner} to {} are {outer} to {}", to(*inner), to(*outer))
        }
    };
    match map {
        [] => "empty".into(),
        map => map.iter().map(line).collect::<Vec<_>>().join(", "),
    }
}

/// Where what anybody may read is not as declared of every worker, empty ones too.
pub fn of_process(process: &Process) -> Vec<String> {
    let declared = &policies::PROCESS_WORKER;
    let mut found = Vec::new();
    for thread in &process.threads {
        let who = format!("thread {} ({})", thread.tid, thread.name);
        if !thread.capabilities.are_none() {
            found.push(format!("{who} has a capability"));
        }
        if !thread.no_new_privs {
            found.push(format!("{who} has no no_new_privs"));
        }
        if thread.seccomp != "filter" {
            found.push(format!("{who} has no seccomp filter"));
        }
    }
    for (name, value) in declared.rlimits {
        match process.rlimits.iter().find(|l| l.name == *name) {
            // What depends on the VM is lowered further when the worker is handed over.
            Some(l) if l.hard.is_some_and(|hard| hard <= *value) => {}
            Some(l) => found.push(format!("limit {name} is {}, declared is {value}", shown(l.hard))),
            None => found.push(format!("limit {name} cannot be read")),
        }
    }
    if !process.groups.is_empty() {
        found.push("it has supplementary groups".into());
    }
    found
}

/// Where the inner view is not as declared of every worker, empty ones too.
pub fn of_inside(inside: &Inside) -> Vec<String> {
    let mut found = Vec::new();
    for kind in policies::PROCESS_WORKER.namespaces {
        if !inside.namespaces.iter().any(|n| n.kind == *kind && n.own) {
            found.push(format!("it has no {kind} namespace of its own"));
        }
    }
    found.extend(inside.section_difference.clone());
    if inside.environ_bytes > 0 {
        found.push(format!("its environment has {} bytes", inside.environ_bytes));
    }
    if !inside.root_entries.is_empty() {
        found.push(format!("its root directory has entries: {}", inside.root_entries.join(", ")));
    }
    found
}

/// Which open files are not declared of a worker of this VM.
pub fn of_files(inside: &Inside, tap_queues: usize) -> Vec<String> {
    let mut found = Vec::new();
    for fd in inside.fds.iter().filter(|fd| fd.purpose.is_none()) {
        found.push(format!("fd {} ({}) is not declared", fd.number, fd.target));
    }
    let taps = inside.fds.iter().filter(|fd| fd.target == TUN && fd.purpose.is_some()).count();
    if taps > tap_queues {
        found.push(format!("it holds {taps} queues of TAPs, and its networks have {tap_queues}"));
    }
    found
}

/// A limit's value.
pub fn shown(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".into(), |l| l.to_string())
}

#[cfg(test)]
#[path = "jail_tests.rs"]
pub mod tests;
