//! A worker as the kernel shows it to everybody: its directory in `/proc`, and its cgroup's.
//!
//! Runs on a thread for files. A process is never known by its pid alone: its directory is opened once, which is then that
//! process or nothing, and its start time is compared before anything else is believed. What its threads call themselves is
//! their own word.

use super::cgroup;
use crate::api::types::{CgroupStats, ProcessStats, VcpuTime};
use rustix::fs::{CWD, Dir, Mode, OFlags, openat};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Ticks a second of the times in `/proc/PID/stat`: the kernel's USER_HZ, part of the ABI of x86_64 and aarch64.
const USER_HZ: u64 = 100;
/// Nothing that is read here is longer.
const FILE_MAX: usize = 16 << 10;
/// The most threads that are looked at; a worker has a few more than vCPUs.
const THREADS_MAX: usize = 256;

/// Which process.
#[derive(Debug, Clone, Copy)]
pub struct Which {
    /// Its pid.
    pub pid: i32,
    /// Field 22 of its `stat`.
    pub start_time: u64,
    /// Its number with the jailer, which names its cgroup.
    pub slot: u32,
    /// Its vCPUs.
    pub cpus: u16,
}

/// Where cgroup v2 is mounted, if it is.
pub fn cgroup_mount() -> Option<String> {
    let file = open("/proc/self/mountinfo").ok()?;
    // Longer than the rest: hosts with containers have hundreds of mounts.
    cgroup::mount_point(&String::from_utf8_lossy(&read_up_to(&file, 1 << 20).ok()?))
}

/// Looks at a process, and at its cgroup where it has one of its own below `mount`.
pub fn look(which: Which, mount: Option<&str>) -> Option<(ProcessStats, Option<CgroupStats>)> {
    let process = find(which)?;
    let stat = read(&process, "stat").ok()?;
    let mut stats = ProcessStats::default();
    (stats.user_us, stats.system_us, stats.guest_us, stats.threads) = times(&stat)?;
    (stats.guest_resident_bytes, stats.own_resident_bytes) = resident(&read(&process, "status").ok()?);
    stats.vcpus = vcpus(&process, which.cpus);
    let leaf = mount.zip(read(&process, "cgroup").ok()).and_then(|(mount, own)| cgroup::leaf(mount, &own, which.slot));
    Some((stats, leaf.and_then(|leaf| cgroup::look(&leaf))))
}

/// Processor time and memory of this process.
pub fn own() -> Option<(u64, u64)> {
    let process = directory(CWD, "/proc/self").ok()?;
    let (user, system, guest, _) = times(&read(&process, "stat").ok()?)?;
    let (shared, own) = resident(&read(&process, "status").ok()?);
    Some((user + system + guest, shared + own))
}

/// The directory of this very process.
fn find(which: Which) -> Option<OwnedFd> {
    let process = directory(CWD, &format!("/proc/{}", which.pid)).ok()?;
    let stat = read(&process, "stat").ok()?;
    (field(&stat, 22)? == which.start_time).then_some(process)
}

/// Not `rustix::fs::open`, which is open(2), another system call than the filter allows.
fn open(path: &str) -> rustix::io::Result<OwnedFd> {
    openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// A directory.
pub fn directory(at: impl AsFd, path: &str) -> rustix::io::Result<OwnedFd> {
    openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// A small file, as text.
pub fn read(directory: impl AsFd, name: &str) -> io::Result<String> {
    let file = openat(directory, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    Ok(String::from_utf8_lossy(&read_up_to(&file, FILE_MAX)?).into_owned())
}

/// Not `std::fs::read`, which asks for the size first, with a system call that nothing else here needs.
fn read_up_to(file: &OwnedFd, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while bytes.len() < most {
        match rustix::io::read(file, &mut piece) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

/// A field of `/proc/PID/stat`, counted from 1. The second one, the name, may hold blanks and brackets: the last one ends it.
fn field(stat: &str, number: usize) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

/// User without guest, system, guest (all µs), and threads.
fn times(stat: &str) -> Option<(u64, u64, u64, u32)> {
    let us = |number| Some(field(stat, number)?.saturating_mul(1_000_000 / USER_HZ));
    // utime holds guest_time (proc(5)).
    let guest = us(43)?;
    Some((us(14)?.saturating_sub(guest), us(15)?, guest, u32::try_from(field(stat, 20)?).ok()?))
}

/// Guest memory (a memfd is shared memory) and the rest, bytes.
fn resident(status: &str) -> (u64, u64) {
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|l| l.split_ascii_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
        kib.unwrap_or(0).saturating_mul(1024)
    };
    (bytes("RssShmem"), bytes("RssAnon").saturating_add(bytes("RssFile")))
}

/// The times of its vCPUs' threads; none of them where one of them was not found.
fn vcpus(process: &OwnedFd, cpus: u16) -> Vec<VcpuTime> {
    let mut found = vec![None; usize::from(cpus)];
    let tasks = directory(process, "task").and_then(Dir::read_from);
    for entry in tasks.into_iter().flatten().flatten().take(THREADS_MAX) {
        let Some(tid) = entry.file_name().to_str().ok().filter(|name| name.parse::<u32>().is_ok()) else { continue };
        let index = read(process, &format!("task/{tid}/comm")).ok().and_then(|comm| vcpu_index(&comm));
        if let Some(place @ None) = index.and_then(|index| found.get_mut(index)) {
            *place = read(process, &format!("task/{tid}/schedstat")).ok().and_then(|line| schedstat(&line));
        }
    }
    found.into_iter().collect::<Option<Vec<_>>>().unwrap_or_default()
}

/// `vcpu3` is 3.
fn vcpu_index(comm: &str) -> Option<usize> {
    let digits = comm.trim_end().strip_prefix("vcpu")?;
    digits.parse().ok().filter(|index: &usize| index.to_string() == digits)
}

/// Time on a processor, time waiting for one (scheduler's statistics, sched-stats.rst).
fn schedstat(line: &str) -> Option<VcpuTime> {
    let mut numbers = line.split_ascii_whitespace().map(str::parse);
    Some(VcpuTime { run_ns: numbers.next()?.ok()?, steal_ns: numbers.next()?.ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn myself() -> Which {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        Which { pid: std::process::id() as i32, start_time: field(&stat, 22).unwrap(), slot: 1, cpus: 2 }
    }

    #[test]
    fn a_name_with_blanks_and_brackets_moves_no_field() {
        let mut fields: Vec<String> = (3..=52).map(|n| n.to_string()).collect();
        fields[0] = "S".into();
        let stat = format!("7 (a) b ) (c) {}\n", fields.join(" "));
        assert_eq!((field(&stat, 22), field(&stat, 3), field(&stat, 53)), (Some(22), None, None));
        assert_eq!(times(&stat), Some((0, 150_000, 430_000, 20)));
        for cut in ["", "7 (a", "7 (a)", "7 (a) S 1 2"] {
            assert_eq!(times(cut), None, "{cut:?}");
        }
    }

    #[test]
    fn a_process_is_looked_at_and_a_later_one_of_its_pid_is_not() {
        let which = myself();
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let threads = wait;
        let (named, ready) = std::sync::mpsc::channel();
        let thread = |name: &str, hold: std::sync::mpsc::Receiver<()>| {
            let named = named.clone();
            std::thread::Builder::new()
                .name(name.into())
                .spawn(move || {
                    named.send(()).unwrap();
                    let _ = hold.recv();
                })
                .unwrap();
            ready.recv().unwrap();
        };
        thread("vcpu0", threads);
        assert_eq!(look(which, None).unwrap().0.vcpus, [], "there is no vcpu1 yet");
        let (stop1, wait1) = std::sync::mpsc::channel::<()>();
        thread("vcpu1", wait1);
        let (stats, cgroup) = look(which, None).unwrap();
        assert!(stats.threads >= 3 && stats.own_resident_bytes > 0, "{stats:?}");
        assert_eq!((stats.vcpus.len(), cgroup), (2, None));
        assert!(look(Which { start_time: which.start_time + 1, ..which }, None).is_none());
        assert!(look(Which { pid: i32::MAX, ..which }, None).is_none());
        drop((stop, stop1));
    }

    #[test]
    fn only_the_workers_own_names_of_threads_are_vcpus() {
        for (comm, index) in [
            ("vcpu0\n", Some(0)),
            ("vcpu31", Some(31)),
            ("vcpu", None),
            ("vcpu01", None),
            ("vcpu+1", None),
            ("x", None),
        ] {
            assert_eq!(vcpu_index(comm), index, "{comm:?}");
        }
        assert_eq!(schedstat("12 34 5\n"), Some(VcpuTime { run_ns: 12, steal_ns: 34 }));
        assert_eq!(schedstat("12"), None);
    }

    #[test]
    fn guest_memory_is_told_from_the_rest() {
        let status = "Name:\tx\nVmRSS:\t 99 kB\nRssAnon:\t 1 kB\nRssFile:\t 2 kB\nRssShmem:\t 4 kB\n";
        assert_eq!(resident(status), (4096, 3072));
        assert_eq!(resident("RssAnon: many kB\n"), (0, 0));
    }

    #[test]
    fn a_file_without_an_end_is_cut() {
        let zero = open("/dev/zero").unwrap();
        assert_eq!(read_up_to(&zero, FILE_MAX).unwrap().len(), FILE_MAX);
    }
}
