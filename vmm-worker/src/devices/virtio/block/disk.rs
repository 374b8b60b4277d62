//! The file behind a disk: checked when it arrives, then read and written at offsets.
//!
//! The supervisor opened it; here is checked again what a wrong fd could break: the kind of file, its size, and that a
//! read-only disk cannot be written through this fd, whatever the guest does to the worker.

use crate::memory::{GuestMemory, Segment, Transfer, transfer};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, OFlags, SeekFrom, fcntl_getfl, fdatasync, fstat, seek};
use rustix::io::Errno;
use std::io;
use vm_memory::GuestAddress;

/// The unit in which a disk is addressed (5.2.2), and its block size here.
pub const SECTOR: u64 = 512;

/// An fd that cannot be a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// `fstat(2)`, F_GETFL or `lseek(2)` failed.
    #[error("the disk's file cannot be examined: {0}")]
    Examine(Errno),
    /// A directory, a pipe, a character device, …
    #[error("the disk is neither a regular file nor a block device")]
    Kind,
    /// The fd of a read-only disk is open for writing as well.
    #[error("the disk is read-only, but its file was opened for writing")]
    Writable,
    /// The fd of a writable disk is not open for both.
    #[error("the disk is writable, but its file was not opened for reading and writing")]
    Readonly,
    /// O_APPEND, under which Linux ignores the offset of a write.
    #[error("the disk's file was opened for appending")]
    Append,
    /// Less than a sector.
    #[error("the disk has {0} bytes, less than a sector of {SECTOR}")]
    Empty(u64),
}

/// What the I/O threads do to a disk. Each call does all that it was asked for, or fails.
pub trait Storage: Send + Sync {
    /// Fills `data` from `offset` on.
    ///
    /// # Errors
    /// What the system call says, or the file has no such place any more.
    fn read(&self, mem: &GuestMemory, data: &[Segment], offset: u64) -> io::Result<()>;

    /// Stores `data` at `offset`. The host may hold it in memory.
    ///
    /// # Errors
    /// What the system call says.
    fn write(&self, mem: &GuestMemory, data: &[Segment], offset: u64) -> io::Result<()>;

    /// Makes durable what was stored by then.
    ///
    /// # Errors
    /// What the system call says.
    fn flush(&self) -> io::Result<()>;
}

/// A checked file.
#[derive(Debug)]
pub struct Disk {
    file: OwnedFd,
    sectors: u64,
    readonly: bool,
}

impl Disk {
    /// Checks `file`. Bytes behind the last whole sector cannot be reached.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(file: OwnedFd, readonly: bool) -> Result<Self, DiskError> {
        let flags = fcntl_getfl(&file).map_err(DiskError::Examine)?;
        match (flags & OFlags::RWMODE, readonly) {
            (OFlags::RDONLY, true) | (OFlags::RDWR, false) => {}
            (_, true) => return Err(DiskError::Writable),
            (_, false) => return Err(DiskError::Readonly),
        }
        if flags.contains(OFlags::APPEND) {
            return Err(DiskError::Append);
        }
        let stat = fstat(&file).map_err(DiskError::Examine)?;
        let bytes = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => u64::try_from(stat.st_size).unwrap_or(0),
            FileType::BlockDevice => seek(&file, SeekFrom::End(0)).map_err(DiskError::Examine)?,
            _ => return Err(DiskError::Kind),
        };
        if bytes < SECTOR {
            return Err(DiskError::Empty(bytes));
        }
        Ok(Self { file, sectors: bytes / SECTOR, readonly })
    }

    /// Size in sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The guest may not write.
    pub fn readonly(&self) -> bool {
        self.readonly
    }

    /// Moves all of `data`, in as many system calls as that takes.
    fn whole(&self, way: Transfer, mem: &GuestMemory, data: &[Segment], offset: u64) -> io::Result<()> {
        let (mut rest, mut skip, mut offset) = (data, 0, offset);
        while let Some(first) = rest.first() {
            let first = Segment { address: GuestAddress(first.address.0 + skip), length: first.length - skip as u32 };
            let pieces = std::iter::once(first).chain(rest[1..].iter().copied());
            let moved = match transfer(mem, way, self.file.as_fd(), pieces, offset) {
                // The file ends before the disk does: somebody cut it.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => moved as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            offset += moved;
            skip += moved;
            while let Some(first) = rest.first().filter(|s| skip >= u64::from(s.length)) {
                skip -= u64::from(first.length);
                rest = &rest[1..];
            }
        }
        Ok(())
    }
}

impl Storage for Disk {
    fn read(&self, mem: &GuestMemory, data: &[Segment], offset: u64) -> io::Result<()> {
        self.whole(Transfer::FromFile, mem, data, offset)
    }

    fn write(&self, mem: &GuestMemory, data: &[Segment], offset: u64) -> io::Result<()> {
        self.whole(Transfer::ToFile, mem, data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(fdatasync(&self.file)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};
    use vm_memory::Bytes;
    use vmm_sys_util::tempfile::TempFile;

    fn file(bytes: u64) -> TempFile {
        let file = TempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        file
    }

    fn open(file: &TempFile, write: bool) -> OwnedFd {
        OpenOptions::new().read(true).write(write).open(file.as_path()).unwrap().into()
    }

    #[test]
    fn the_fd_has_exactly_the_rights_of_the_disk() {
        let file = file(4096);
        assert_eq!(Disk::new(open(&file, false), true).unwrap().sectors(), 8);
        assert_eq!(Disk::new(open(&file, true), false).unwrap().sectors(), 8);
        assert_eq!(Disk::new(open(&file, true), true).unwrap_err(), DiskError::Writable);
        assert_eq!(Disk::new(open(&file, false), false).unwrap_err(), DiskError::Readonly);
        let only_write: OwnedFd = OpenOptions::new().write(true).open(file.as_path()).unwrap().into();
        assert_eq!(Disk::new(only_write, false).unwrap_err(), DiskError::Readonly);
        let append: OwnedFd = OpenOptions::new().read(true).append(true).open(file.as_path()).unwrap().into();
        assert_eq!(Disk::new(append, false).unwrap_err(), DiskError::Append);
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let directory: OwnedFd = File::open("/").unwrap().into();
        let null: OwnedFd = File::open("/dev/null").unwrap().into();
        let pipe: OwnedFd = std::io::pipe().unwrap().0.into();
        for fd in [directory, null, pipe] {
            assert_eq!(Disk::new(fd, true).unwrap_err(), DiskError::Kind);
        }
        assert_eq!(Disk::new(open(&file(511), false), true).unwrap_err(), DiskError::Empty(511));
    }

    #[test]
    fn an_odd_tail_is_no_part_of_the_disk() {
        assert_eq!(Disk::new(open(&file(1024 + 511), false), true).unwrap().sectors(), 2);
    }

    fn segments(pieces: &[(u64, u32)]) -> Vec<Segment> {
        pieces.iter().map(|(a, l)| Segment { address: GuestAddress(*a), length: *l }).collect()
    }

    #[test]
    fn more_segments_than_one_system_call_takes_all_arrive() {
        let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 0x4_0000)]).unwrap();
        let disk = Disk::new(open(&file(1 << 20), true), false).unwrap();
        let sent: Vec<u8> = (0..300u32 * 100).map(|n| (n % 251) as u8).collect();
        mem.write_slice(&sent, GuestAddress(0)).unwrap();
        let out: Vec<_> = (0..300).map(|n| (n * 100, 100)).collect();
        disk.write(&mem, &segments(&out), 512).unwrap();
        disk.flush().unwrap();
        let back: Vec<_> = (0..200).map(|n| (0x2_0000 + n * 150, 150)).collect();
        disk.read(&mem, &segments(&back), 512).unwrap();
        let mut received = vec![0; sent.len()];
        mem.read_slice(&mut received, GuestAddress(0x2_0000)).unwrap();
        assert_eq!(received, sent);
    }

    #[test]
    fn a_file_that_was_cut_is_an_error_and_not_zeros() {
        let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let file = file(4096);
        let disk = Disk::new(open(&file, true), false).unwrap();
        file.as_file().set_len(700).unwrap();
        let error = disk.read(&mem, &segments(&[(0, 1024)]), 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        disk.read(&mem, &segments(&[(0, 512)]), 0).unwrap();
    }

    #[test]
    fn a_full_disk_of_the_host_is_an_error_and_nothing_worse() {
        let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let full = OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        let disk = Disk { file: full.into(), sectors: 8, readonly: false };
        let error = disk.write(&mem, &segments(&[(0, 512)]), 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
