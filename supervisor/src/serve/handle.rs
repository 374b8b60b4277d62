//! Momentary handles: a scratch file for each VM that runs, in the runtime directory. It says what was true when it was
//! written, and is believed only after the kernel said the same.
//!
//! ```text
//! <runtime>/handles/<id>.json     written beside, synced, renamed; removed when the VM has ended
//! ```

use super::fault::{self, Step};
use super::state::Intent;
use crate::api::types::VmNet;
use serde::{Deserialize, Serialize};
use std::time::Duration;

mod read;

pub use read::Left;

/// Version of the file's form.
pub const VERSION: u32 = 1;

/// What is true of a running VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handle {
    /// [`VERSION`].
    pub version: u32,
    /// `/proc/sys/kernel/random/boot_id` of the kernel that all of this is about.
    pub boot_id: String,
    /// What the VM is: where the database was lost, it comes back from here.
    pub intent: Intent,
    /// Its worker's pid.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: tells it from a later process of the same pid.
    pub start_time: u64,
    /// Inode of its pidfd, unique for each process of a boot, where the kernel has pidfs (Linux 6.9).
    pub pidfd_inode: Option<u64>,
    /// The uid that its worker runs as.
    pub uid: u32,
    /// Its number with the jailer: its control socket and its cgroup are named by it.
    pub slot: u32,
    /// It was taken from the warm pool.
    pub warm: bool,
    /// When its vCPUs began to run, seconds since 1970.
    pub started_at: u64,
    /// The same, milliseconds since the host came up ([`uptime`]): nobody sets this clock.
    #[serde(default)]
    pub began_ms: u64,
    /// What netd leased to it.
    pub nets: Vec<VmNet>,
}

/// How long the host has been up, sleep included (`CLOCK_BOOTTIME`).
pub fn uptime() -> Duration {
    // Not rustix's, which first asks the kernel where the vDSO is.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// The directory of the handle files.
#[derive(Debug)]
pub struct Handles {
    dir: std::os::fd::OwnedFd,
}

impl Handles {
    /// Of a directory that is this user's alone.
    pub fn new(dir: std::os::fd::OwnedFd) -> Handles {
        Handles { dir }
    }

    /// Writes a VM's handle beside, syncs it and renames it into its place. Does not hold up the other VMs.
    ///
    /// # Errors
    /// The file system's.
    pub async fn write(&self, handle: &Handle) -> std::io::Result<()> {
        let dir = self.dir.try_clone()?;
        let json = serde_json::to_vec(handle).map_err(std::io::Error::other)?;
        let name = format!("{:016x}.json", handle.intent.number);
        tokio::task::spawn_blocking(move || replace(&dir, &name, &json)).await.map_err(std::io::Error::other)?
    }

    /// Removes the handle of a VM that has ended; there may be none.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self, number: u64) -> std::io::Result<()> {
        match rustix::fs::unlinkat(&self.dir, format!("{number:016x}.json"), rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Inode of a pidfd, unique for each process of a boot; none where the kernel has no pidfs (before Linux 6.9), where all
/// pidfds share one.
pub fn pidfd_inode(pidfd: &std::os::fd::OwnedFd) -> Option<u64> {
    /// `PID_FS_MAGIC` of linux/magic.h.
    const PIDFS: i64 = 0x5049_4446;
    let pidfs = rustix::fs::fstatfs(pidfd).is_ok_and(|fs| fs.f_type == PIDFS);
    pidfs.then(|| rustix::fs::fstat(pidfd).ok().map(|stat| stat.st_ino)).flatten()
}

fn replace(dir: &std::os::fd::OwnedFd, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    use rustix::fs::{Mode, OFlags};
    use std::io::Write;
    let beside = format!("{name}.new");
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, &beside, flags, Mode::RUSR | Mode::WUSR)?;
    let mut file = std::fs::File::from(file);
    let placed = (|| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fault::passable(Step::HandleBeside)?;
        rustix::fs::renameat(dir, &beside, dir, name)?;
        Ok(fault::passable(Step::HandlePlaced)?)
    })();
    if placed.is_err() {
        // What a full disk cut short takes no place on it. There is none where the last of it failed.
        let _ = rustix::fs::unlinkat(dir, &beside, rustix::fs::AtFlags::empty());
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::testing::{TempDir, handle};

    #[tokio::test]
    async fn a_handle_that_cannot_be_placed_leaves_nothing_beside_its_place() {
        let dir = TempDir::new();
        let handles = Handles::new(std::fs::File::open(dir.path()).unwrap().into());
        // A directory is in its place.
        std::fs::create_dir(dir.path().join("0000000000000001.json")).unwrap();
        handles.write(&handle(1, "a")).await.unwrap_err();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["0000000000000001.json"]);
    }
}
