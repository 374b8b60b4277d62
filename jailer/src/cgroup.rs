//! Cgroup v2: the delegated directory, and a leaf for each worker.
//!
//! A directory is used where the jailer was told to (`--cgroup`), or where it is alone in its own, as in a scope with
//! Delegate=yes: then it moves into a leaf of its own first, because a cgroup with controllers for children has no
//! processes itself. Other processes are never moved.
//!
//! A jailer that comes after a killed one finds the leaves of the workers that go on, and keeps them.

use crate::alone;
use jail_spec::{CgroupLimits, Slot};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use std::path::{Path, PathBuf};

/// The delegated directory.
pub struct Delegated {
    path: PathBuf,
    /// Locked: the leaves in it are ours, and no other jailer's.
    _alone: OwnedFd,
}

/// Why there is none: sentences without a final full stop.
#[derive(Debug, thiserror::Error)]
pub enum NoCgroup {
    /// Limits cannot be held.
    #[error("{0}")]
    Missing(String),
    /// It is another jailer's, which would take our workers for leftovers, and we its.
    #[error("{who} has its workers in {}; give each jailer a delegated cgroup of its own (--cgroup)", .path.display())]
    Shared {
        /// Who.
        who: String,
        /// The directory.
        path: PathBuf,
    },
}

/// One worker's leaf.
pub struct Leaf {
    path: PathBuf,
    fd: OwnedFd,
}

/// Controllers that limits need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

impl Delegated {
    /// Finds and prepares the directory. Leaves of slots that are `vacant` are a predecessor's leftovers.
    ///
    /// # Errors
    /// Why there is none.
    pub fn prepare(told: Option<&Path>, vacant: impl Fn(Slot) -> bool) -> Result<Delegated, NoCgroup> {
        let path = match told {
            Some(path) => path.to_owned(),
            None => own_if_alone().map_err(NoCgroup::Missing)?,
        };
        let fails = |errno| NoCgroup::Missing(format!("{}: {errno}", path.display()));
        let alone = match alone::below(&path).map_err(fails)? {
            Ok(alone) => alone,
            Err(who) => return Err(NoCgroup::Shared { who, path }),
        };
        enable(&path, told.is_none()).map_err(NoCgroup::Missing)?;
        let delegated = Delegated { path, _alone: alone };
        delegated.remove_leftovers(vacant);
        Ok(delegated)
    }

    /// Its path, for people.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the leaf of `slot`.
    ///
    /// # Errors
    /// A sentence without a final full stop.
    pub fn leaf(&self, slot: Slot) -> Result<Leaf, String> {
        let path = self.path.join(format!("w{}", slot.0));
        make_directory(&path)?;
        Leaf::open(path)
    }

    /// The leaf of `slot`, where process `pid` is in it: the worker's that a predecessor put there.
    pub fn leaf_of(&self, slot: Slot, pid: i32) -> Option<Leaf> {
        let path = self.path.join(format!("w{}", slot.0));
        let pids = std::fs::read_to_string(path.join("cgroup.procs")).ok()?;
        let pid = pid.to_string();
        if !pids.lines().any(|line| line == pid) {
            return None;
        }
        Leaf::open(path).ok()
    }

    /// Kills what still lives in leaves that a predecessor left (its uid may be another VM's next), and removes them; one
    /// whose processes take their time stays until the next start.
    fn remove_leftovers(&self, vacant: impl Fn(Slot) -> bool) {
        for entry in std::fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let slot = name.to_str().and_then(|n| n.strip_prefix('w')).and_then(|n| n.parse::<u32>().ok());
            if slot.is_some_and(|slot| vacant(Slot(slot))) {
                let _ = std::fs::write(entry.path().join("cgroup.kill"), "1");
                let _ = std::fs::remove_dir(entry.path());
            }
        }
    }
}

impl Leaf {
    fn open(path: PathBuf) -> Result<Leaf, String> {
        let fd = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Leaf { path, fd })
    }

    /// For `CLONE_INTO_CGROUP`.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Writes the limits to a leaf that has none yet.
    ///
    /// # Errors
    /// A sentence without a final full stop.
    pub fn limit(&self, limits: &CgroupLimits) -> Result<(), String> {
        self.write_all(files(limits).into_iter().filter_map(|(file, value)| Some((file, value?))))
    }

    /// Writes the limits in place of others, and lifts what is not limited any more.
    ///
    /// # Errors
    /// A sentence without a final full stop.
    pub fn limit_anew(&self, limits: &CgroupLimits) -> Result<(), String> {
        self.write_all(files(limits).into_iter().map(|(file, value)| (file, value.unwrap_or_else(|| "max".into()))))
    }

    fn write_all(&self, files: impl Iterator<Item = (&'static str, String)>) -> Result<(), String> {
        for (file, value) in files {
            let path = self.path.join(file);
            // A kernel without swap accounting has no swap to account for here.
            if file == "memory.swap.max" && !path.exists() {
                continue;
            }
            write(&path, &value)?;
        }
        Ok(())
    }
}

impl Drop for Leaf {
    /// After its worker was reaped, so that it is empty.
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// Gives the leaves below a directory their controllers; the jailer itself goes to a leaf of its own first, where it is in it.
fn enable(path: &Path, within: bool) -> Result<(), String> {
    let available = path.join("cgroup.controllers");
    let available = std::fs::read_to_string(&available).map_err(|e| format!("{}: {e}", available.display()))?;
    if let Some(missing) = CONTROLLERS.iter().find(|c| !available.split_whitespace().any(|a| a == **c)) {
        return Err(format!("{} has no {missing} controller", path.display()));
    }
    if within {
        let leaf = path.join("jailer");
        make_directory(&leaf)?;
        write(&leaf.join("cgroup.procs"), "0")?;
    }
    write(&path.join("cgroup.subtree_control"), "+cpu +memory +pids")
}

/// The files of the limits, and what is written to them; `None`: no limit, which is what a new leaf has.
fn files(limits: &CgroupLimits) -> [(&'static str, Option<String>); 4] {
    [
        ("memory.max", limits.memory_max.map(|bytes| bytes.to_string())),
        // Without this the limit would only move guest memory to the host's swap.
        ("memory.swap.max", limits.memory_max.map(|_| "0".into())),
        ("pids.max", limits.pids_max.map(|threads| threads.to_string())),
        ("cpu.max", limits.cpu_percent.map(|percent| format!("{} 100000", u64::from(percent) * 1000))),
    ]
}

/// Our own cgroup, where we are the only process in it.
fn own_if_alone() -> Result<PathBuf, String> {
    let read = |path: &str| std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
    let mount = mount_point(&read("/proc/self/mountinfo")?).ok_or("cgroup v2 is not mounted")?;
    let own = read("/proc/self/cgroup")?
        .lines()
        .find_map(|l| l.strip_prefix("0::/").map(str::to_owned))
        .ok_or("this process is in no cgroup of version 2")?;
    let path = Path::new(&mount).join(own);
    let procs = path.join("cgroup.procs");
    let pids = std::fs::read_to_string(&procs).map_err(|e| format!("{}: {e}", procs.display()))?;
    let me = rustix::process::getpid().as_raw_nonzero().to_string();
    if pids.split_whitespace().any(|pid| pid != me) {
        return Err(format!("{} is shared with other processes and was not delegated to this one", path.display()));
    }
    Ok(path)
}

/// Where cgroup v2 is mounted, in the text of a mountinfo file.
fn mount_point(mountinfo: &str) -> Option<String> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        (kind.split(' ').next() == Some("cgroup2")).then(|| mount.split(' ').nth(4).map(str::to_owned))?
    })
}

fn make_directory(path: &Path) -> Result<(), String> {
    match std::fs::create_dir(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(format!("{}: {e}", path.display())),
        _ => Ok(()),
    }
}

fn write(path: &Path, value: &str) -> Result<(), String> {
    std::fs::write(path, value).map_err(|e| format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with the files of a leaf; a file system without cgroups writes them as well.
    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("vmsup-cgroup-{name}-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("w3")).unwrap();
        folder
    }

    fn delegated(folder: &Path) -> Delegated {
        let alone = alone::below(folder).unwrap().unwrap();
        Delegated { path: folder.to_owned(), _alone: alone }
    }

    const LIMITS: CgroupLimits =
        CgroupLimits { memory_max: Some(640 << 20), pids_max: Some(64), cpu_percent: Some(150), best_effort: false };

    #[test]
    fn limits_are_written_in_the_kernels_units() {
        let files = files(&LIMITS);
        assert!(files.contains(&("memory.max", Some("671088640".into()))));
        assert!(files.contains(&("memory.swap.max", Some("0".into()))));
        assert!(files.contains(&("pids.max", Some("64".into()))));
        assert!(files.contains(&("cpu.max", Some("150000 100000".into()))));
    }

    #[test]
    fn what_is_not_limited_is_not_written_to_a_new_leaf_and_lifted_in_an_old_one() {
        let folder = folder("limits");
        let leaf = delegated(&folder).leaf(Slot(3)).unwrap();
        leaf.limit(&CgroupLimits::default()).unwrap();
        let written = |file: &str| std::fs::read_to_string(folder.join("w3").join(file)).ok();
        assert_eq!(written("pids.max"), None);
        // One that a kernel with swap accounting has.
        std::fs::write(folder.join("w3/memory.swap.max"), "max").unwrap();
        leaf.limit_anew(&LIMITS).unwrap();
        let all = ["memory.max", "memory.swap.max", "pids.max", "cpu.max"];
        assert_eq!(all.map(|f| written(f).unwrap()), ["671088640", "0", "64", "150000 100000"]);
        leaf.limit_anew(&CgroupLimits { pids_max: Some(7), ..CgroupLimits::default() }).unwrap();
        assert_eq!(all.map(|f| written(f).unwrap()), ["max", "max", "7", "max"]);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_predecessors_leaf_is_found_by_slot_and_pid_only_where_the_process_is_in_it() {
        let folder = folder("leaf");
        let delegated = delegated(&folder);
        assert!(delegated.leaf_of(Slot(3), 12).is_none());
        std::fs::write(folder.join("w3/cgroup.procs"), "112\n12\n").unwrap();
        assert!(delegated.leaf_of(Slot(3), 12).is_some());
        assert!(delegated.leaf_of(Slot(3), 1).is_none());
        assert!(delegated.leaf_of(Slot(4), 12).is_none());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn leaves_of_workers_that_go_on_are_no_leftovers() {
        let folder = folder("leftovers");
        for name in ["w4", "jailer", "wide"] {
            std::fs::create_dir(folder.join(name)).unwrap();
        }
        std::fs::write(folder.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        let kept = Delegated::prepare(Some(&folder), |slot| slot != Slot(3));
        assert!(kept.is_ok());
        assert!(["w3", "jailer", "wide"].iter().all(|name| folder.join(name).exists()));
        // In a cgroup the file is there, and goes with the directory.
        assert!(!folder.join("w3/cgroup.kill").exists() && folder.join("w4/cgroup.kill").exists());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn two_jailers_do_not_take_each_others_workers_for_leftovers() {
        let folder = folder("shared");
        std::fs::write(folder.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        let first = Delegated::prepare(Some(&folder), |slot| slot != Slot(3)).ok().unwrap();
        let refused = Delegated::prepare(Some(&folder), |_| true).err().unwrap().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        assert!(!folder.join("w3/cgroup.kill").exists(), "and nothing in it was touched");
        drop(first);
        assert!(Delegated::prepare(Some(&folder), |_| true).is_ok());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_mount_point_is_found_among_version_1() {
        let text = "30 24 0:26 / /sys/fs/cgroup/pids rw shared:1 - cgroup cgroup rw,pids\n\
                    31 24 0:27 / /sys/fs/cgroup/unified rw shared:2 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(text).as_deref(), Some("/sys/fs/cgroup/unified"));
        assert_eq!(mount_point("30 24 0:26 / / rw - ext4 /dev/vda rw\n"), None);
    }

    #[test]
    fn a_directory_without_the_controllers_is_refused_with_a_reason() {
        let folder = std::env::temp_dir().join(format!("vmsup-cgroup-test-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("cgroup.controllers"), "cpu pids\n").unwrap();
        let reason = Delegated::prepare(Some(&folder), |_| true).err().unwrap().to_string();
        assert!(reason.contains("memory controller"), "{reason}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
