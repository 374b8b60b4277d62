//! Sealed memfds: guest RAM, console rings, built-in guests.
//!
//! A memfd that is sealed against resizing cannot be shrunk under a mapping of it, which would be SIGBUS in the one
//! who maps.

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set once this kernel refused MFD_NOEXEC_SEAL (before Linux 6.3).
static OLD_KERNEL: AtomicBool = AtomicBool::new(false);

/// A memfd of `size` zero bytes that nobody can shrink, grow, or make executable (the last where the kernel can).
///
/// # Errors
/// What `memfd_create(2)`, `ftruncate(2)` and `fcntl(2)` say.
pub fn sealed(name: &str, size: u64) -> Result<OwnedFd, Errno> {
    let memfd = create(name)?;
    rustix::fs::ftruncate(&memfd, size)?;
    rustix::fs::fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(memfd)
}

/// True for a memfd as [`sealed`] makes it: of that size, for ever, and writable for ever.
pub fn is_sealed(fd: &OwnedFd, size: u64) -> bool {
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    let none = SealFlags::WRITE | SealFlags::FUTURE_WRITE;
    rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(all) && !seals.intersects(none))
        && rustix::fs::fstat(fd).is_ok_and(|stat| u64::try_from(stat.st_size) == Ok(size))
}

/// A memfd that holds `bytes` and can never be changed.
///
/// # Errors
/// As [`sealed`].
pub fn constant(name: &str, bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let mut file = std::fs::File::from(create(name)?);
    file.write_all(bytes)?;
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, all)?;
    Ok(file.into())
}

fn create(name: &str) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if !OLD_KERNEL.load(Ordering::Relaxed) {
        match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => OLD_KERNEL.store(true, Ordering::Relaxed),
            other => return other,
        }
    }
    rustix::fs::memfd_create(name, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_memfd_keeps_its_size() {
        let ram = sealed("test", 8192).unwrap();
        assert_eq!(rustix::fs::fstat(&ram).unwrap().st_size, 8192);
        assert_eq!(rustix::fs::ftruncate(&ram, 4096), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&ram, 16384), Err(Errno::PERM));
        assert_eq!(rustix::fs::fcntl_add_seals(&ram, SealFlags::WRITE), Err(Errno::PERM));
        assert_eq!(rustix::io::pwrite(&ram, b"x", 0), Ok(1));
        assert!(is_sealed(&ram, 8192) && !is_sealed(&ram, 4096));
    }

    #[test]
    fn a_memfd_that_could_still_change_its_size_or_lose_its_writers_is_not_sealed() {
        let seals = |add| {
            let memfd = create("test").unwrap();
            rustix::fs::ftruncate(&memfd, 4096).unwrap();
            rustix::fs::fcntl_add_seals(&memfd, add).unwrap();
            memfd
        };
        let (shrink, grow, seal) = (SealFlags::SHRINK, SealFlags::GROW, SealFlags::SEAL);
        assert!(is_sealed(&seals(shrink | grow | seal), 4096));
        for wrong in [shrink | grow, shrink | seal, grow | seal, shrink | grow | seal | SealFlags::FUTURE_WRITE] {
            assert!(!is_sealed(&seals(wrong), 4096), "{wrong:?}");
        }
        assert!(!is_sealed(&std::fs::File::open("/proc/self/exe").unwrap().into(), 4096));
    }

    #[test]
    fn a_constant_memfd_cannot_be_written() {
        let guest = constant("test", b"guest").unwrap();
        assert_eq!(rustix::io::pwrite(&guest, b"x", 0), Err(Errno::PERM));
        let mut bytes = [0; 5];
        assert_eq!(rustix::io::pread(&guest, &mut bytes, 0), Ok(5));
        assert_eq!(&bytes, b"guest");
    }
}
