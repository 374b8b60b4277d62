//! The cgroup of one worker: which it is, and what its files say.

use super::proc::{directory, read};
use crate::api::types::{CgroupStats, Pressure};
use rustix::fs::CWD;

/// Where cgroup v2 is mounted: from `/proc/self/mountinfo`.
pub fn mount_point(mountinfo: &str) -> Option<String> {
    mountinfo.lines().find_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // A mount of a part of the tree shows other paths than /proc does; blanks are written as octal numbers.
        (system.starts_with("cgroup2 ") && root == "/" && !point.contains('\\')).then(|| point.to_owned())
    })
}

/// The directory of the leaf that the jailer made for `slot`, where the process whose `/proc/PID/cgroup` this is stands in
/// it. Any other cgroup is shared with somebody, and its numbers are no VM's.
pub fn leaf(mount: &str, own: &str, slot: u32) -> Option<String> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let ours = path.starts_with('/') && path.rsplit('/').next()? == format!("w{slot}");
    (ours && !path.split('/').any(|part| part == "..")).then(|| format!("{}{path}", mount.trim_end_matches('/')))
}

/// What its files say; a file that is not there (a controller that is off, a kernel without pressure) says nothing.
pub fn look(leaf: &str) -> Option<CgroupStats> {
    let directory = directory(CWD, leaf).ok()?;
    let text = |name: &str| read(&directory, name).unwrap_or_default();
    let cpu = text("cpu.stat");
    let of_cpu = |key| keyed(&cpu).find(|(k, _)| *k == key).map_or(0, |(_, value)| value);
    let number = |name: &str| text(name).trim().parse().unwrap_or(0);
    Some(CgroupStats {
        cpu_us: of_cpu("usage_usec"),
        periods: of_cpu("nr_periods"),
        throttled_periods: of_cpu("nr_throttled"),
        throttled_us: of_cpu("throttled_usec"),
        memory_bytes: number("memory.current"),
        memory_events: keyed(&text("memory.events")).map(|(key, value)| (key.to_owned(), value)).collect(),
        pids: number("pids.current"),
        pressure: ["cpu", "memory", "io"]
            .into_iter()
            .filter_map(|resource| pressure(resource, &text(&format!("{resource}.pressure"))))
            .collect(),
    })
}

/// Lines of a name and a number.
fn keyed(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=12`, and the same of `full`, which older kernels do not have for the CPU.
fn pressure(resource: &str, text: &str) -> Option<Pressure> {
    let total = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        line.split_ascii_whitespace().find_map(|word| word.strip_prefix("total="))?.parse().ok()
    };
    Some(Pressure { resource: resource.to_owned(), some_us: total("some ")?, full_us: total("full ").unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::testing::TempDir;

    #[test]
    fn the_mount_of_the_whole_tree_is_found() {
        let info = "30 1 0:26 / / rw - ext4 /dev/root rw\n\
            31 30 0:27 /part /mnt/part rw,nosuid shared:4 - cgroup2 cgroup2 rw\n\
            32 30 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(info).as_deref(), Some("/sys/fs/cgroup"));
        assert_eq!(mount_point("1 2 3"), None);
    }

    #[test]
    fn a_cgroup_that_is_no_workers_leaf_is_nobodys_numbers() {
        let leaf = |own| leaf("/sys/fs/cgroup", own, 7);
        assert_eq!(leaf("1:cpu:/x\n0::/a.slice/w7\n").as_deref(), Some("/sys/fs/cgroup/a.slice/w7"));
        for other in ["0::/a.slice/session.scope\n", "0::/a/w8\n", "0::/\n", "0::/../w7\n", "0::w7", "1:cpu:/w7\n", ""]
        {
            assert_eq!(leaf(other), None, "{other:?}");
        }
    }

    #[test]
    fn what_the_files_of_a_leaf_say_is_told_and_what_is_missing_is_not() {
        let dir = TempDir::new();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("cpu.stat", "usage_usec 120\nuser_usec 100\nnr_periods 9\nnr_throttled 2\nthrottled_usec 55\n");
        write("memory.current", "4096\n");
        write("memory.events", "low 0\nmax 3\noom_kill 1\nnonsense\n");
        write("pids.current", "6\n");
        write("cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=77\n");
        write("memory.pressure", "some avg10=0.00 total=5\nfull avg10=0.00 total=4\n");
        write("io.pressure", "garbage\n");
        let stats = look(dir.path().to_str().unwrap()).unwrap();
        assert_eq!((stats.cpu_us, stats.periods, stats.throttled_periods, stats.throttled_us), (120, 9, 2, 55));
        assert_eq!((stats.memory_bytes, stats.pids), (4096, 6));
        assert_eq!(
            stats.memory_events,
            [("low", 0), ("max", 3), ("oom_kill", 1)].map(|(k, v)| (k.to_owned(), v)).into()
        );
        let pressure: Vec<_> = stats.pressure.iter().map(|p| (p.resource.as_str(), p.some_us, p.full_us)).collect();
        assert_eq!(pressure, [("cpu", 77, 0), ("memory", 5, 4)]);
        assert_eq!(look("/nowhere"), None);
    }
}
