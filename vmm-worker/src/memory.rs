//! Guest RAM: one sealed memfd, mapped shared, and the memslots that show it to the guest.
//!
//! ```text
//! 0                 3 GiB             4 GiB
//! | RAM             | MMIO hole       | the rest of RAM …
//! ```
//!
//! Unsafe: `madvise` on the mapping, the memslots, which tell KVM where in this process guest RAM lies, and the transfers
//! between an fd and guest RAM.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::{FileType, SealFlags, fcntl_get_seals, fstat};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
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

/// A piece of guest RAM, as a guest named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub address: GuestAddress,
    /// Bytes.
    pub length: u32,
}

/// The most pieces of guest RAM in one transfer.
pub const TRANSFER_SEGMENTS: usize = 128;

/// Which way the bytes of a transfer go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// `preadv(2)`: the file's bytes into guest RAM.
    FromFile,
    /// `pwritev(2)`: guest RAM's bytes into the file.
    ToFile,
}

/// One `preadv(2)` or `pwritev(2)` between `file` at `offset` and the first [`TRANSFER_SEGMENTS`] of `segments`.
/// Returns the bytes that went over, which may be fewer than asked for.
///
/// # Errors
/// A segment that is not inside RAM (EFAULT, as the kernel would say), or what the system call says.
pub fn transfer(
    memory: &GuestMemory,
    way: Transfer,
    file: BorrowedFd<'_>,
    segments: impl Iterator<Item = Segment>,
    offset: u64,
) -> std::io::Result<usize> {
    let offset = i64::try_from(offset).map_err(|_| std::io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut vector = [NOWHERE; TRANSFER_SEGMENTS];
    let count = aim(&mut vector, memory, segments)?;
    let (fd, vector, count) = (file.as_raw_fd(), vector.as_ptr(), count as libc::c_int);
    let moved = match way {
        // SAFETY: the first `count` entries of `vector`, which outlives the call, each name a range that `aim` found
        // whole inside a mapping of `memory`, which is borrowed until after the call. The kernel alone touches the
        // bytes; Rust holds no reference to guest RAM, so that the guest may change it meanwhile.
        Transfer::FromFile => unsafe { libc::preadv(fd, vector, count, offset) },
        // SAFETY: as above; the kernel reads the ranges.
        Transfer::ToFile => unsafe { libc::pwritev(fd, vector, count, offset) },
    };
    usize::try_from(moved).map_err(|_| std::io::Error::last_os_error())
}

/// One `readv(2)` of a packet: into `head`, then into the first [`TRANSFER_SEGMENTS`] of `segments`, then into `tail`. Returns
/// the bytes that came: where some are in `tail`, the packet was too long for `segments`.
///
/// # Errors
/// As [`transfer`].
pub fn receive(
    memory: &GuestMemory,
    from: BorrowedFd<'_>,
    head: &mut [u8],
    segments: impl Iterator<Item = Segment>,
    tail: &mut [u8],
) -> std::io::Result<usize> {
    let mut vector = [NOWHERE; PACKET_PIECES];
    let own = |bytes: &mut [u8]| libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    vector[0] = own(head);
    let count = 1 + aim(&mut vector[1..=TRANSFER_SEGMENTS], memory, segments)?;
    vector[count] = own(tail);
    // SAFETY: the first and the last of these `count` + 1 entries are `head` and `tail`, which are borrowed for writing until
    // after the call; for those between, and for `vector`, what `transfer` says holds.
    let moved = unsafe { libc::readv(from.as_raw_fd(), vector.as_ptr(), count as libc::c_int + 1) };
    usize::try_from(moved).map_err(|_| std::io::Error::last_os_error())
}

/// One `writev(2)` of a packet: `head`, then the first [`TRANSFER_SEGMENTS`] of `segments`. Returns the bytes that went.
///
/// # Errors
/// As [`transfer`].
pub fn send(
    memory: &GuestMemory,
    to: BorrowedFd<'_>,
    head: &[u8],
    segments: impl Iterator<Item = Segment>,
) -> std::io::Result<usize> {
    let mut vector = [NOWHERE; PACKET_PIECES];
    vector[0] = libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() };
    let count = 1 + aim(&mut vector[1..=TRANSFER_SEGMENTS], memory, segments)?;
    // SAFETY: the first of these `count` entries is `head`, borrowed until after the call, which only reads; for the others
    // and for `vector`, what `transfer` says holds.
    let moved = unsafe { libc::writev(to.as_raw_fd(), vector.as_ptr(), count as libc::c_int) };
    usize::try_from(moved).map_err(|_| std::io::Error::last_os_error())
}

/// A packet has a piece of this process's own before what is in guest RAM, and perhaps one behind.
const PACKET_PIECES: usize = TRANSFER_SEGMENTS + 2;

/// An entry that names no byte.
const NOWHERE: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// Aims entries at as many of `segments` as there are entries, each found whole inside a mapping of `memory`. Says how many.
fn aim(
    vector: &mut [libc::iovec],
    memory: &GuestMemory,
    segments: impl Iterator<Item = Segment>,
) -> std::io::Result<usize> {
    let outside = || std::io::Error::from_raw_os_error(libc::EFAULT);
    let mut count = 0;
    for (slot, segment) in vector.iter_mut().zip(segments) {
        let slice = memory.get_slice(segment.address, segment.length as usize).map_err(|_| outside())?;
        *slot = libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() };
        count += 1;
    }
    Ok(count)
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

    fn piece(address: u64, length: u32) -> Segment {
        Segment { address: GuestAddress(address), length }
    }

    #[test]
    fn a_transfer_moves_bytes_both_ways_and_says_how_many() {
        use std::os::fd::AsFd;
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let file = memfd(0x1000, SealFlags::empty());
        memory.write_slice(b"head", GuestAddress(0x100)).unwrap();
        memory.write_slice(b"tail", GuestAddress(0x3000)).unwrap();
        let out = [piece(0x100, 4), piece(0x3000, 4)];
        assert_eq!(transfer(&memory, Transfer::ToFile, file.as_fd(), out.into_iter(), 0xffc).unwrap(), 8);
        let back = [piece(0x2000, 6), piece(0x200, 600)];
        let moved = transfer(&memory, Transfer::FromFile, file.as_fd(), back.into_iter(), 0xffc).unwrap();
        assert_eq!(moved, 8, "the file ends there");
        let mut bytes = [0; 6];
        memory.read_slice(&mut bytes, GuestAddress(0x2000)).unwrap();
        assert_eq!(&bytes, b"headta");
        memory.read_slice(&mut bytes[..2], GuestAddress(0x200)).unwrap();
        assert_eq!(&bytes[..2], b"il");
    }

    #[test]
    fn a_transfer_outside_of_ram_reaches_no_system_call() {
        use std::os::fd::AsFd;
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let file = memfd(0x1000, SealFlags::empty());
        for bad in [piece(0x4000, 1), piece(0x3fff, 2), piece(u64::MAX, 1), piece(0, u32::MAX)] {
            let both = [piece(0, 1), bad];
            let error = transfer(&memory, Transfer::FromFile, file.as_fd(), both.into_iter(), 0).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EFAULT), "{bad:?}");
        }
        assert!(transfer(&memory, Transfer::FromFile, file.as_fd(), [piece(0, 1)].into_iter(), u64::MAX).is_err());
    }

    #[test]
    fn a_packet_goes_around_guest_ram_and_says_when_it_did_not_fit() {
        use std::os::fd::AsFd;
        use std::os::unix::net::UnixDatagram;
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        memory.write_slice(b"cdef", GuestAddress(0x100)).unwrap();
        let out = [piece(0x100, 2), piece(0x102, 2)];
        assert_eq!(send(&memory, ours.as_fd(), b"ab", out.into_iter()).unwrap(), 6);
        let mut packet = [0; 16];
        assert_eq!((theirs.recv(&mut packet).unwrap(), &packet[..6]), (6, &b"abcdef"[..]));

        let (mut head, mut tail) = ([0; 2], [0; 1]);
        let room = [piece(0x200, 3), piece(0x300, 1)];
        for (sent, came, last) in [(&b"123456"[..], 6, 0), (b"1234567", 7, b'7'), (b"12345678", 7, b'7')] {
            theirs.send(sent).unwrap();
            tail = [0];
            assert_eq!(receive(&memory, ours.as_fd(), &mut head, room.into_iter(), &mut tail).unwrap(), came);
            assert_eq!((&head, tail[0]), (b"12", last));
        }
        let mut bytes = [0; 4];
        memory.read_slice(&mut bytes[..3], GuestAddress(0x200)).unwrap();
        memory.read_slice(&mut bytes[3..], GuestAddress(0x300)).unwrap();
        assert_eq!(&bytes, b"3456");

        let outside = || [piece(0, 1), piece(0x3fff, 2)].into_iter();
        theirs.send(b"1").unwrap();
        let error = receive(&memory, ours.as_fd(), &mut head, outside(), &mut tail).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
        assert_eq!(send(&memory, ours.as_fd(), b"", outside()).unwrap_err().raw_os_error(), Some(libc::EFAULT));
    }
}
