//! What `/proc` tells anybody about a process. Parsing is pure; [`read`] is the one place that reads.

use serde::Serialize;
use std::io;

/// One thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Thread {
    /// Thread id.
    pub tid: i32,
    /// Its name (`comm`).
    pub name: String,
    /// The kernel made it for itself and it never runs the program: KVM adds one (`kvm-nx-lpage-re`) to a process with a
    /// VM. The kernel says so by a flag that no program can set; its name could be anybody's.
    pub kernel: bool,
    /// Its capability sets, by name, as masks.
    pub capabilities: Capabilities,
    /// no_new_privs is set.
    pub no_new_privs: bool,
    /// `disabled`, `strict` or `filter`.
    pub seccomp: String,
    /// How many filters stack on it; unknown before Linux 5.9.
    pub seccomp_filters: Option<u32>,
}

/// The five capability sets of a thread, as masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// CapInh.
    pub inheritable: u64,
    /// CapPrm.
    pub permitted: u64,
    /// CapEff.
    pub effective: u64,
    /// CapBnd.
    pub bounding: u64,
    /// CapAmb.
    pub ambient: u64,
}

impl Capabilities {
    /// No capability in any set.
    pub fn are_none(self) -> bool {
        self.inheritable | self.permitted | self.effective | self.bounding | self.ambient == 0
    }
}

/// One resource limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// Name as `policies/process.json` has it: `nofile`.
    pub name: String,
    /// Soft limit; `None` is unlimited.
    pub soft: Option<u64>,
    /// Hard limit; `None` is unlimited.
    pub hard: Option<u64>,
}

/// A process, as anybody sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Real, effective, saved and file system uid.
    pub uids: Vec<u32>,
    /// Real, effective, saved and file system gid.
    pub gids: Vec<u32>,
    /// Lines of its user namespace's uid map: first id inside, first outside (as seen from here), how many.
    pub uid_map: Vec<[u32; 3]>,
    /// The same of gids.
    pub gid_map: Vec<[u32; 3]>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Its threads.
    pub threads: Vec<Thread>,
    /// Its resource limits.
    pub rlimits: Vec<Limit>,
    /// Its cgroup (v2), as a path from the cgroup root.
    pub cgroup: String,
}

/// Names in `/proc/PID/limits` and in `policies/process.json`.
const LIMIT_NAMES: [(&str, &str); 16] = [
    ("Max cpu time", "cpu"),
    ("Max file size", "fsize"),
    ("Max data size", "data"),
    ("Max stack size", "stack"),
    ("Max core file size", "core"),
    ("Max resident set", "rss"),
    ("Max processes", "nproc"),
    ("Max open files", "nofile"),
    ("Max locked memory", "memlock"),
    ("Max address space", "as"),
    ("Max file locks", "locks"),
    ("Max pending signals", "sigpending"),
    ("Max msgqueue size", "msgqueue"),
    ("Max nice priority", "nice"),
    ("Max realtime priority", "rtprio"),
    ("Max realtime timeout", "rttime"),
];

/// Reads the process `pid`, which must have started at `start_time` (field 22 of its stat) before and after.
///
/// # Errors
/// `NotFound` where it is gone or another process has its pid.
pub fn read(pid: i32, start_time: u64) -> io::Result<Process> {
    let folder = format!("/proc/{pid}");
    let text = |name: &str| std::fs::read(format!("{folder}/{name}")).map(|b| String::from_utf8_lossy(&b).into_owned());
    let same = || text("stat").map(|stat| parse_start_time(&stat) == Some(start_time));
    if !same()? {
        return Err(io::ErrorKind::NotFound.into());
    }
    let status = text("status")?;
    let mut tids: Vec<i32> = std::fs::read_dir(format!("{folder}/task"))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    tids.sort_unstable();
    let threads = tids
        .into_iter()
        .filter_map(|tid| {
            let stat = text(&format!("task/{tid}/stat")).ok()?;
            parse_thread(tid, &text(&format!("task/{tid}/status")).ok()?, &stat)
        })
        .collect();
    let process = Process {
        uids: numbers(field(&status, "Uid").unwrap_or_default()),
        gids: numbers(field(&status, "Gid").unwrap_or_default()),
        groups: numbers(field(&status, "Groups").unwrap_or_default()),
        uid_map: parse_map(&text("uid_map")?),
        gid_map: parse_map(&text("gid_map")?),
        threads,
        rlimits: parse_limits(&text("limits")?),
        cgroup: parse_cgroup(&text("cgroup")?),
    };
    if same()? { Ok(process) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Field 22 of a stat line. The name, field 2, may contain anything, so counting begins after its last parenthesis.
pub fn parse_start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// `PF_USER_WORKER` among the flags of a task, since Linux 6.4; before, KVM's helpers were no threads of the process.
const USER_WORKER: u32 = 0x4000;

/// Whether the kernel made a thread for KVM. The flag had another meaning once, so the name must fit, too.
fn is_kvms(name: &str, stat: &str) -> bool {
    let flags = || stat.rsplit_once(')')?.1.split_whitespace().nth(6)?.parse::<u32>().ok();
    name.starts_with("kvm-") && flags().is_some_and(|flags| flags & USER_WORKER != 0)
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn numbers(text: &str) -> Vec<u32> {
    text.split_whitespace().filter_map(|n| n.parse().ok()).collect()
}

/// `None` for a text that lacks what every kernel writes: such a thread is not taken for a harmless one.
fn parse_thread(tid: i32, status: &str, stat: &str) -> Option<Thread> {
    let mask = |name: &str| u64::from_str_radix(field(status, name)?, 16).ok();
    let name = field(status, "Name")?;
    Some(Thread {
        tid,
        name: name.to_owned(),
        kernel: is_kvms(name, stat),
        capabilities: Capabilities {
            inheritable: mask("CapInh")?,
            permitted: mask("CapPrm")?,
            effective: mask("CapEff")?,
            bounding: mask("CapBnd")?,
            ambient: mask("CapAmb")?,
        },
        no_new_privs: field(status, "NoNewPrivs")? == "1",
        seccomp: match field(status, "Seccomp")? {
            "0" => "disabled",
            "1" => "strict",
            "2" => "filter",
            _ => "unknown",
        }
        .to_owned(),
        seccomp_filters: field(status, "Seccomp_filters").and_then(|n| n.parse().ok()),
    })
}

fn parse_limits(text: &str) -> Vec<Limit> {
    let parse = |value: &str| if value == "unlimited" { Some(None) } else { value.parse().ok().map(Some) };
    LIMIT_NAMES
        .iter()
        .filter_map(|(title, name)| {
            let rest = text.lines().find_map(|line| line.strip_prefix(title))?;
            let mut values = rest.split_whitespace();
            let (soft, hard) = (parse(values.next()?)?, parse(values.next()?)?);
            Some(Limit { name: (*name).to_owned(), soft, hard })
        })
        .collect()
}

/// Lines of `/proc/PID/uid_map`.
fn parse_map(text: &str) -> Vec<[u32; 3]> {
    text.lines().filter_map(|line| numbers(line).try_into().ok()).collect()
}

fn parse_cgroup(text: &str) -> String {
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\treactor\nUmask:\t0022\nUid:\t100001\t100001\t100001\t100001\nGroups:\t \n\
        CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n\
        CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n";

    #[test]
    fn a_status_is_read() {
        let thread = parse_thread(7, STATUS, "").unwrap();
        assert!(thread.capabilities.are_none() && thread.no_new_privs);
        assert_eq!(
            (thread.name.as_str(), thread.seccomp.as_str(), thread.seccomp_filters),
            ("reactor", "filter", Some(2))
        );
        assert_eq!(numbers(field(STATUS, "Uid").unwrap()), [100001; 4]);
    }

    #[test]
    fn a_single_capability_is_seen() {
        let status = STATUS.replace("CapBnd:\t0000000000000000", "CapBnd:\t0000000000200000");
        assert!(!parse_thread(7, &status, "").unwrap().capabilities.are_none());
    }

    #[test]
    fn a_status_without_a_set_is_not_taken_for_a_harmless_one() {
        assert_eq!(parse_thread(7, &STATUS.replace("CapEff", "CapXyz"), ""), None);
    }

    #[test]
    fn a_name_cannot_shift_the_fields_of_a_stat_line() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_start_time(&format!("12 (a) b) 1 2 (c) {rest}")), Some(4711));
        assert_eq!(parse_start_time("12 (a"), None);
    }

    #[test]
    fn a_thread_is_the_kernels_by_its_flag_and_not_by_its_name() {
        let stat = |flags: u32| format!("9 (kvm-nx-lpage-re) S 1 2 3 0 -1 {flags} 0 0");
        assert!(is_kvms("kvm-nx-lpage-re", &stat(0x0040_4040)));
        assert!(!is_kvms("kvm-nx-lpage-re", &stat(0x0040_0040)));
        assert!(!is_kvms("vcpu0", &stat(0x0040_4040)));
        assert!(!is_kvms("kvm-nx-lpage-re", "9 (kvm"));
    }

    #[test]
    fn limits_are_read_by_their_names() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
            Max file size             536870912            536870912            bytes     \n\
            Max cpu time              unlimited            unlimited            seconds   \n\
            Max nice priority         0                    0                    \n";
        let limits = parse_limits(text);
        let one = |name: &str| limits.iter().find(|l| l.name == name).map(|l| (l.soft, l.hard));
        assert_eq!(one("fsize"), Some((Some(536870912), Some(536870912))));
        assert_eq!(one("cpu"), Some((None, None)));
        assert_eq!(one("nice"), Some((Some(0), Some(0))));
        assert_eq!(one("nofile"), None);
    }

    #[test]
    fn a_map_is_read_line_by_line() {
        assert_eq!(parse_map("         0     100001          1\n"), [[0, 100001, 1]]);
        assert_eq!(parse_map("0 0 4294967295\n5 6 7\n"), [[0, 0, u32::MAX], [5, 6, 7]]);
        assert!(parse_map("").is_empty());
    }

    #[test]
    fn our_own_process_can_be_read() {
        let pid = std::process::id().cast_signed();
        let start = parse_start_time(&std::fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
        let process = read(pid, start).unwrap();
        assert!(!process.threads.is_empty() && process.rlimits.len() == 16);
        assert_eq!(read(pid, start + 1).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
