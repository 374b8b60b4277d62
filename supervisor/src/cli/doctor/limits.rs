//! How much there may be: memory, open files, processes, and the limits that a process here may not raise.

use super::ids::Id;
use super::line::Line;
use super::read::{number, read};
use crate::cli::inspect::proc::{self, Limit};
use vmsup::serve::budget::Budget;

/// Less memory than this makes a warning, MiB.
const MEMORY_LOW_MIB: u64 = 256;
/// Room for fewer VMs than this makes a warning.
const ROOM_LOW: usize = 64;
/// Fewer processes than this make a warning: a VM has five threads and more.
const PROCESSES_LOW: u64 = 2048;
/// What a worker needs of each limit that it is not given more of: enough for a VM of 1 GiB with a disk of as much.
const NEEDED: &[(&str, u64)] = &[
    ("as", 2 << 30),
    ("cpu", u64::MAX),
    ("data", 1 << 30),
    ("fsize", 1 << 30),
    ("memlock", 64 << 10),
    ("sigpending", 64),
    ("stack", 8 << 20),
];

/// What was read.
#[derive(Debug, Default)]
pub struct Facts {
    /// /proc/meminfo.
    meminfo: Option<String>,
    /// This process's limits.
    limits: Vec<Limit>,
    /// kernel.pid_max, kernel.threads-max.
    pid_max: Option<u64>,
    threads_max: Option<u64>,
    /// The lowest pids.max of the cgroup that this process is in, and of those above it.
    pids_max: Option<u64>,
}

impl Facts {
    /// Of this process.
    pub fn read() -> Facts {
        let pid = std::process::id().cast_signed();
        let start = read("/proc/self/stat").and_then(|stat| proc::parse_start_time(&stat)).unwrap_or_default();
        let process = proc::read(pid, start).ok();
        let cgroup = process.as_ref().map(|p| p.cgroup.clone()).unwrap_or_default();
        let above = std::path::Path::new(cgroup.trim_start_matches('/')).ancestors();
        let pids_max =
            above.filter_map(|dir| number(std::path::Path::new("/sys/fs/cgroup").join(dir).join("pids.max")));
        Facts {
            meminfo: read("/proc/meminfo"),
            limits: process.map(|p| p.rlimits).unwrap_or_default(),
            pid_max: number("/proc/sys/kernel/pid_max"),
            threads_max: number("/proc/sys/kernel/threads-max"),
            pids_max: pids_max.min(),
        }
    }

    /// A hard limit: `Some(None)` is unlimited, `None` not known.
    fn hard(&self, name: &str) -> Option<Option<u64>> {
        self.limits.iter().find(|limit| limit.name == name).map(|limit| limit.hard)
    }
}

/// All lines of this file.
pub fn lines(facts: &Facts) -> Vec<Line> {
    vec![
        memory(facts.meminfo.as_deref().unwrap_or_default()),
        open_files(facts.hard("nofile")),
        processes(facts),
        resources(facts),
    ]
}

fn memory(meminfo: &str) -> Line {
    const ID: Id = Id::Memory;
    let field = |name: &str| -> Option<u64> {
        let value = meminfo.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        Some(value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024)
    };
    match (field("MemAvailable"), field("MemTotal")) {
        (Some(free), Some(all)) if free < MEMORY_LOW_MIB => Line::warning(
            ID,
            format!("{free} MiB of {all} MiB available"),
            "a guest's memory is taken when the guest uses it; a host without memory kills processes",
            "free some memory, or start smaller VMs",
        ),
        (Some(free), Some(all)) => Line::ok(ID, format!("{free} MiB of {all} MiB available")),
        _ => {
            Line::unknown(ID, "/proc/meminfo cannot be read", "VMs are compared with the host's memory", "mount /proc")
        }
    }
}

/// How many VMs a supervisor that is started from here would have room for.
fn open_files(hard: Option<Option<u64>>) -> Line {
    const ID: Id = Id::OpenFiles;
    const WHY: &str = "a supervisor that is started from this shell refuses VMs for which it has no room; under systemd its unit's \
                       LimitNOFILE= counts";
    let Some(hard) = hard else {
        return Line::unknown(ID, "the limit on open files cannot be read", WHY, "ulimit -Hn");
    };
    let room = Budget::of(hard.unwrap_or(u64::MAX), false).vms;
    let found = match hard {
        Some(hard) => format!("{hard} at most (hard limit): room for {room} VMs"),
        None => format!("unlimited: room for {room} VMs"),
    };
    if room >= ROOM_LOW {
        return Line::ok(ID, found);
    }
    let mend = "echo '* hard nofile 524288' | sudo tee /etc/security/limits.d/60-vmsup.conf, and log in again";
    if room == 0 { Line::failure(ID, found, WHY, mend) } else { Line::warning(ID, found, WHY, mend) }
}

/// The tightest of what bounds processes and threads here.
fn processes(facts: &Facts) -> Line {
    const ID: Id = Id::Processes;
    const WHY: &str = "each VM is a process with a thread for each vCPU and some more, beside those of everything else";
    let raise = |sysctl: &str| {
        format!("echo {sysctl}=4194304 | sudo tee /etc/sysctl.d/60-vmsup-pids.conf; sudo sysctl --system")
    };
    let login = "echo '* hard nproc unlimited' | sudo tee /etc/security/limits.d/60-vmsup-nproc.conf, and log in again";
    let bounds = [
        (facts.pid_max, "kernel.pid_max", raise("kernel.pid_max")),
        (facts.threads_max, "kernel.threads-max", raise("kernel.threads-max")),
        (facts.hard("nproc").flatten(), "this user's hard limit (ulimit -Hu)", login.to_owned()),
        (
            facts.pids_max,
            "pids.max of a cgroup that this process is in",
            "raise TasksMax= of the unit or slice (systemctl status $$ names it), or the container's limit".to_owned(),
        ),
    ];
    let tightest = bounds.into_iter().filter_map(|(bound, what, mend)| Some((bound?, what, mend))).min();
    match tightest {
        None => Line::unknown(ID, "no bound on processes can be read", WHY, "sysctl kernel.pid_max; ulimit -Hu"),
        Some((bound, what, mend)) if bound < PROCESSES_LOW => {
            Line::warning(ID, format!("at most {bound} processes and threads, by {what}"), WHY, mend)
        }
        Some((bound, what, _)) => Line::ok(ID, format!("at most {bound} processes and threads, by {what}")),
    }
}

/// A worker is given limits of its own, and a hard limit that is lower already stays: then it fails in the middle of things.
fn resources(facts: &Facts) -> Line {
    const ID: Id = Id::ResourceLimits;
    const WHY: &str = "a VM's process cannot have more: it fails when its guest needs it (the address space holds the guest's memory, \
                       the file size its memory and disks)";
    let mut low = Vec::new();
    for (name, needed) in NEEDED {
        match facts.hard(name) {
            None => {
                let found = format!("the limit {name:?} cannot be read");
                return Line::unknown(ID, found, WHY, "cat /proc/self/limits");
            }
            Some(Some(hard)) if hard < *needed => low.push(format!("{name} {hard}")),
            Some(_) => {}
        }
    }
    if low.is_empty() {
        return Line::ok(ID, "none that a VM's process would run into");
    }
    Line::warning(
        ID,
        format!("hard limits of this shell: {}", low.join(", ")),
        WHY,
        "raise them in /etc/security/limits.d or in the unit (LimitAS=, LimitFSIZE=, …), and log in again",
    )
}

#[cfg(test)]
mod tests {
    use super::super::line::State::{Failure, Ok as Fine, Unknown, Warning};
    use super::super::line::assert_line;
    use super::*;

    #[test]
    fn little_memory_is_a_warning() {
        assert_line(&memory("MemTotal: 8388608 kB\nMemAvailable:    4194304 kB\n"), Fine, "");
        assert_line(&memory("MemTotal: 8388608 kB\nMemAvailable:    1024 kB\n"), Warning, "free some memory");
        assert_line(&memory(""), Unknown, "mount /proc");
    }

    #[test]
    fn few_open_files_are_a_warning_and_too_few_a_failure() {
        assert_line(&open_files(Some(None)), Fine, "");
        assert_line(&open_files(Some(Some(524_288))), Fine, "");
        let low = (256..4096).rfind(|n| Budget::of(*n, false).vms < ROOM_LOW).unwrap();
        assert_line(&open_files(Some(Some(low))), Warning, "nofile 524288");
        assert_line(&open_files(Some(Some(64))), Failure, "nofile 524288");
        assert_line(&open_files(None), Unknown, "ulimit -Hn");
    }

    #[test]
    fn the_tightest_bound_on_processes_counts() {
        let nproc = |hard| vec![Limit { name: "nproc".into(), soft: None, hard }];
        let wide = || Facts {
            pid_max: Some(4_194_304),
            threads_max: Some(96_365),
            limits: nproc(None),
            pids_max: Some(30_000),
            ..Facts::default()
        };
        assert_line(&processes(&wide()), Fine, "");
        assert!(processes(&wide()).found.starts_with("at most 30000 "), "{:?}", processes(&wide()));
        assert_line(&processes(&Facts { pid_max: Some(1000), ..wide() }), Warning, "kernel.pid_max=");
        assert_line(&processes(&Facts { threads_max: Some(1000), ..wide() }), Warning, "kernel.threads-max=");
        assert_line(&processes(&Facts { limits: nproc(Some(100)), ..wide() }), Warning, "hard nproc");
        assert_line(&processes(&Facts { pids_max: Some(100), ..wide() }), Warning, "TasksMax=");
        assert_line(&processes(&Facts::default()), Unknown, "pid_max");
    }

    #[test]
    fn a_hard_limit_that_a_worker_runs_into_is_a_warning() {
        let with = |name: &str, hard| {
            let limit = |(n, _): &(&str, u64)| Limit { name: (*n).into(), soft: None, hard: hard_of(n, name, hard) };
            Facts { limits: NEEDED.iter().map(limit).collect(), ..Facts::default() }
        };
        fn hard_of(name: &str, changed: &str, hard: Option<u64>) -> Option<u64> {
            if name == changed { hard } else { None }
        }
        assert_line(&resources(&with("fsize", None)), Fine, "");
        for (name, needed) in NEEDED {
            let line = resources(&with(name, Some(needed - 1)));
            assert_line(&line, Warning, "limits.d");
            assert!(line.found.contains(&format!("{name} {}", needed - 1)), "{line:?}");
            assert_line(&resources(&with(name, Some(*needed))), Fine, "");
        }
        assert_line(&resources(&Facts::default()), Unknown, "/proc/self/limits");
    }

    #[test]
    fn the_limits_of_this_process_can_be_read() {
        let facts = Facts::read();
        for (name, _) in NEEDED.iter().chain(&[("nofile", 0), ("nproc", 0)]) {
            assert!(facts.hard(name).is_some(), "{name}");
        }
        assert!(facts.pid_max.is_some() && facts.threads_max.is_some() && facts.meminfo.is_some());
    }
}
