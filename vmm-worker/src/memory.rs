//! Guest RAM: one sealed memfd, mapped shared, and the memslots that show it to the guest.
//!
//! ```text
//! 0                 3 GiB             4 GiB
//! | RAM             | MMIO hole       | the rest of RAM …
//! ```
//!
//! Unsafe: `madvise` on the mapping and the memslots, which tell KVM where in this process guest RAM lies.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::{FileType, SealFlags, fcntl_get_seals, fstat};
use std::fs::File;
use std::os::fd::OwnedFd;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion, mmap::MmapRegionError,
};

/// All of guest RAM.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// Where RAM stops below 4 GiB: devices and the APICs live from here on.
pub const HOLE_START: u64 = 0xc000_0000;
/// Where RAM goes on.
pub const HOLE_END: u64 = 1 << 32;

/// Why there is no guest RAM.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// `fstat(2)` or F_GET_SEALS failed.
    #[error("guest memory cannot be examined: {0}")]
    Examine(rustix::io::Errno),
    /// It is not a memfd of the size that the spec says.
    #[error("guest memory is not a file of {expected} bytes")]
    Size {
        /// What the spec says.
        expected: u64,
    },
    /// It could be shrunk under the guest, which would kill the worker by SIGBUS.
    #[error("guest memory is not sealed against shrinking and growing")]
    Unsealed,
    /// `mmap(2)` failed.
    #[error("guest memory of {bytes} bytes cannot be mapped: {why}; the host may be out of address space or memory")]
    Map {
        /// How much was to be mapped.
        bytes: u64,
        /// What the kernel said.
        why: MmapRegionError,
    },
    /// `madvise(2)` failed.
    #[error("guest memory cannot be kept out of core dumps: {0}")]
    Advise(std::io::Error),
    /// The ranges do not fit together; a fault of this program.
    #[error("guest memory cannot be laid out")]
    Layout,
    /// KVM refused a memslot.
    #[error("KVM refuses the memslot at {base:#x}: {why}")]
    Memslot {
        /// Guest physical address.
        base: u64,
        /// What KVM said.
        why: kvm_ioctls::Error,
    },
}

/// The ranges of RAM in a guest with `bytes` of it: guest physical base and length, around the hole.
pub fn ranges(bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    let low = bytes.min(HOLE_START);
    [(0, low), (HOLE_END, bytes - low)].into_iter().filter(|(_, length)| *length > 0)
}

/// Checks that `memfd` is guest RAM of exactly `bytes` that nobody can resize.
///
/// # Errors
/// What it is instead.
pub fn check_memfd(memfd: &OwnedFd, bytes: u64) -> Result<(), MemoryError> {
    let stat = fstat(memfd).map_err(MemoryError::Examine)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || u64::try_from(stat.st_size) != Ok(bytes) {
        return Err(MemoryError::Size { expected: bytes });
    }
    // Only a memfd has seals; on another file this is EINVAL.
    let seals = fcntl_get_seals(memfd).map_err(|_| MemoryError::Unsealed)?;
    if seals.contains(SealFlags::SHRINK | SealFlags::GROW) { Ok(()) } else { Err(MemoryError::Unsealed) }
}

/// Maps guest RAM. The memfd must have passed [`check_memfd`].
///
/// # Errors
/// What `mmap(2)` or `madvise(2)` say.
pub fn map(memfd: OwnedFd, bytes: u64) -> Result<GuestMemory, MemoryError> {
    let first = FileOffset::new(File::from(memfd), 0);
    let mut regions = Vec::with_capacity(2);
    let mut offset = 0;
    for (base, length) in ranges(bytes) {
        let size = usize::try_from(length).map_err(|_| MemoryError::Layout)?;
        let file = FileOffset::from_arc(first.arc().clone(), offset);
        let region = MmapRegion::from_file(file, size).map_err(|why| MemoryError::Map { bytes, why })?;
        keep_out_of_dumps(&region)?;
        regions.push(GuestRegionMmap::new(region, GuestAddress(base)).ok_or(MemoryError::Layout)?);
        offset += length;
    }
    GuestMemory::from_regions(regions).map_err(|_| MemoryError::Layout)
}

fn keep_out_of_dumps(region: &MmapRegion) -> Result<(), MemoryError> {
    // SAFETY: `region` owns this whole mapping and lives longer than the call. MADV_DONTDUMP marks it and changes
    // neither its content nor its protection.
    let result = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_DONTDUMP) };
    if result == 0 { Ok(()) } else { Err(MemoryError::Advise(std::io::Error::last_os_error())) }
}

/// Makes the memslots: from now on the guest sees `memory`. Called before the irqchip is made, because a memslot that
/// comes later waits for a grace period of the kernel's (milliseconds).
///
/// # Errors
/// What KVM says.
pub fn show_to_guest(vm: &VmFd, memory: &'static GuestMemory) -> Result<(), MemoryError> {
    for (slot, region) in (0u32..).zip(memory.iter()) {
        let base = region.start_addr().0;
        let slot = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: base,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the range is one whole mapping of guest RAM, owned by `memory`, which is never dropped ('static) and
        // never remapped: what the guest writes lands there and nowhere else. Slot numbers are used once, and the
        // regions of a `GuestMemory` do not overlap.
        unsafe { vm.set_user_memory_region(slot) }.map_err(|why| MemoryError::Memslot { base, why })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};
    use vm_memory::Bytes;

    const MIB: u64 = 1 << 20;

    fn memfd(bytes: u64, seals: SealFlags) -> OwnedFd {
        let fd = memfd_create("ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, bytes).unwrap();
        fcntl_add_seals(&fd, seals).unwrap();
        fd
    }

    #[test]
    fn ram_goes_around_the_hole_and_none_is_lost() {
        assert_eq!(ranges(20 * MIB).collect::<Vec<_>>(), [(0, 20 * MIB)]);
        assert_eq!(ranges(HOLE_START).collect::<Vec<_>>(), [(0, HOLE_START)]);
        assert_eq!(ranges(HOLE_START + MIB).collect::<Vec<_>>(), [(0, HOLE_START), (HOLE_END, MIB)]);
    }

    #[test]
    fn both_ranges_are_one_memfd_without_overlap() {
        let bytes = HOLE_START + 2 * MIB;
        let fd = memfd(bytes, SealFlags::SHRINK | SealFlags::GROW);
        check_memfd(&fd, bytes).unwrap();
        let file = File::from(fd.try_clone().unwrap());
        let memory = map(fd, bytes).unwrap();
        memory.write_obj(0x11u8, GuestAddress(HOLE_START - 1)).unwrap();
        memory.write_obj(0x22u8, GuestAddress(HOLE_END)).unwrap();
        assert!(memory.write_obj(0u8, GuestAddress(HOLE_START)).is_err(), "the hole is no RAM");
        let mut bytes = [0; 2];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, HOLE_START - 1).unwrap();
        assert_eq!(bytes, [0x11, 0x22]);
    }

    #[test]
    fn a_memfd_that_could_shrink_is_refused() {
        assert!(matches!(check_memfd(&memfd(MIB, SealFlags::GROW), MIB), Err(MemoryError::Unsealed)));
        assert!(matches!(check_memfd(&memfd(MIB, SealFlags::empty()), MIB), Err(MemoryError::Unsealed)));
        check_memfd(&memfd(MIB, SealFlags::SHRINK | SealFlags::GROW), MIB).unwrap();
    }

    #[test]
    fn a_memfd_of_another_size_is_refused() {
        let fd = memfd(MIB, SealFlags::SHRINK | SealFlags::GROW);
        assert!(matches!(check_memfd(&fd, 2 * MIB), Err(MemoryError::Size { .. })));
        let pipe: OwnedFd = std::io::pipe().unwrap().0.into();
        assert!(matches!(check_memfd(&pipe, MIB), Err(MemoryError::Size { .. })));
    }
}
