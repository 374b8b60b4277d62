//! What the supervisor takes from its host before it confines itself: fds and facts.

use super::ServeError;
use super::memfd;
use super::rundir::RunDir;
use crate::spec::Builtin;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The built-in guests, ELFs with a PVH note.
const HELLO: &[u8] = include_bytes!(env!("VMSUP_HELLO"));
const NET: &[u8] = include_bytes!(env!("VMSUP_NET"));

/// Fds and facts of this host.
#[derive(Debug)]
pub struct Host {
    /// `/dev/kvm`, read and write.
    pub kvm: OwnedFd,
    /// The built-in guests.
    pub guests: Guests,
    /// What KVM offers, as the first worker was told by it while it was empty.
    pub offer: tokio::sync::OnceCell<worker_api::Offer>,
    /// The directory of the workers' sockets.
    pub workers: Arc<OwnedFd>,
    /// The host's memory, MiB.
    pub memory_mib: u64,
    /// The supervisor's uid.
    pub uid: u32,
    /// Which boot of the kernel this is: what handles say of processes holds for one boot only.
    pub boot_id: String,
    /// Ids of VMs are counted from here.
    pub first_id: u64,
}

/// The built-in guests, each in a memfd that nobody can change.
#[derive(Debug)]
pub struct Guests {
    /// `hello`.
    pub hello: OwnedFd,
    /// `net`.
    pub net: OwnedFd,
}

impl Guests {
    /// The one that a spec names.
    pub fn get(&self, builtin: Builtin) -> &OwnedFd {
        match builtin {
            Builtin::Hello => &self.hello,
            Builtin::Net => &self.net,
        }
    }
}

impl Host {
    /// Opens and reads all of it.
    ///
    /// # Errors
    /// No KVM, or one that this user may not use.
    pub fn open(rundir: &RunDir) -> Result<Host, ServeError> {
        let system = |what| move |e: std::io::Error| ServeError::System(what, e);
        let mut random = [0; 8];
        let mut source = std::fs::File::open("/dev/urandom").map_err(system("opening /dev/urandom"))?;
        source.read_exact(&mut random).map_err(system("reading /dev/urandom"))?;
        Ok(Host {
            kvm: open_kvm("/dev/kvm")?,
            guests: Guests {
                hello: memfd::constant("vmsup-hello", HELLO).map_err(system("making a memfd"))?,
                net: memfd::constant("vmsup-net", NET).map_err(system("making a memfd"))?,
            },
            offer: tokio::sync::OnceCell::new(),
            workers: rundir.workers.try_clone().map_err(system("copying an fd"))?.into(),
            memory_mib: memory_mib().map_err(system("reading /proc/meminfo"))?,
            uid: rustix::process::geteuid().as_raw(),
            boot_id: boot_id().map_err(system("reading the kernel's boot id"))?,
            first_id: u64::from_le_bytes(random),
        })
    }
}

fn open_kvm(path: &str) -> Result<OwnedFd, ServeError> {
    rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|e| {
        ServeError::Kvm(match e {
            Errno::ACCESS | Errno::PERM => format!(
                "{path}: permission denied; add this user to the group kvm (usermod -aG kvm USER, then log in again) \
                 and see that the group may use it (udev rule: KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\")"
            ),
            Errno::NOENT | Errno::NODEV | Errno::NXIO => format!(
                "{path} is not there; load the kernel's module (modprobe kvm_intel or kvm_amd), and switch on \
                 virtualisation in the firmware or in the host that this machine runs on"
            ),
            e => format!("{path} cannot be opened: {e}"),
        })
    })
}

/// A random UUID, made by the kernel once for each boot.
fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// MemTotal.
fn memory_mib() -> std::io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib / 1024).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kvm_that_is_missing_or_forbidden_says_what_to_do() {
        let missing = open_kvm("/dev/no-such-kvm").unwrap_err().to_string();
        assert!(missing.contains("modprobe"), "{missing}");
    }

    #[test]
    fn the_built_in_guests_are_small_elfs() {
        for guest in [HELLO, NET] {
            assert_eq!(&guest[..4], b"\x7fELF");
            assert!(guest.len() < 64 << 10, "{} bytes", guest.len());
        }
        assert_ne!(HELLO, NET);
    }

    #[test]
    fn the_boot_has_an_id_that_stays() {
        let id = boot_id().unwrap();
        assert_eq!(id.len(), 36, "{id}");
        assert_eq!(boot_id().unwrap(), id);
    }

    #[test]
    fn the_host_has_memory() {
        assert!(memory_mib().unwrap() > 64);
    }
}
