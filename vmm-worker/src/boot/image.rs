//! What kind of image a kernel file is, and what all kinds have in common once they are in guest RAM.

use super::BootError;
use crate::memory::GuestMemory;
use linux_loader::loader::bootparam::setup_header;
use rustix::fs::{FileType, fstat};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestAddress};

/// The formats that can be booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// ELF, of 32 or 64 bits.
    Elf,
    /// The compressed image of Linux.
    BzImage,
}

/// A kernel file that looks like a kernel.
pub struct Kernel {
    /// The file.
    pub file: File,
    /// Its size when it was opened. It may change while it is read; then reading fails.
    pub size: u64,
    /// What it looks like.
    pub format: Format,
}

/// Offset of the magic number `HdrS` in a bzImage.
const HDRS: usize = 0x202;

impl Kernel {
    /// Looks at a kernel file.
    ///
    /// # Errors
    /// It cannot be read, or is no kernel.
    pub fn new(fd: OwnedFd) -> Result<Self, BootError> {
        let file = File::from(fd);
        let size = regular_size(&file).map_err(BootError::Kernel)?;
        let mut head = [0u8; HDRS + 4];
        let length = file.read_at(&mut head, 0).map_err(|e| BootError::Kernel(format!("cannot be read: {e}")))?;
        let head = &head[..length];
        let format = if head.starts_with(b"\x7fELF") {
            Format::Elf
        } else if head.get(HDRS..) == Some(b"HdrS".as_slice()) {
            Format::BzImage
        } else {
            return Err(BootError::Kernel("is not a kernel: neither a bzImage nor an ELF".into()));
        };
        Ok(Kernel { file, size, format })
    }

    /// Reads `length` bytes at `offset`.
    ///
    /// # Errors
    /// They are not all there.
    pub fn read(&self, what: &str, offset: u64, length: usize) -> Result<Vec<u8>, BootError> {
        let mut bytes = vec![0; length];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(|_| BootError::Kernel(format!("is cut short: its {what} cannot be read")))?;
        Ok(bytes)
    }
}

/// Size of a file that may be read as an image.
///
/// # Errors
/// What it is instead, as the end of a sentence about it.
pub fn regular_size(file: &File) -> Result<u64, String> {
    let stat = fstat(file).map_err(|e| format!("cannot be examined: {e}"))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => u64::try_from(stat.st_size).map_err(|_| "has an impossible size".into()),
        _ => Err("is not a regular file".into()),
    }
}

/// Copies `length` bytes of `file` at `offset` into guest RAM.
///
/// # Errors
/// The file ends before, or cannot be read; or there is no such RAM. As the end of a sentence about the file.
pub fn copy(memory: &GuestMemory, file: &mut File, offset: u64, to: u64, length: u64) -> Result<(), String> {
    // One read(2) moves at most 2 GiB less a page.
    const STEP: u64 = 1 << 30;
    file.seek(SeekFrom::Start(offset)).map_err(|e| format!("cannot be read: {e}"))?;
    let mut done = 0;
    while done < length {
        let step = (length - done).min(STEP) as usize;
        match memory.read_volatile_from(GuestAddress(to + done), file, step) {
            Ok(0) => return Err("got shorter while it was read".into()),
            Ok(n) => done += n as u64,
            Err(e) => return Err(format!("cannot be read: {e}")),
        }
    }
    Ok(())
}

/// An image in guest RAM.
pub enum Image {
    /// ELF with a PVH note.
    Pvh {
        /// 32-bit entry.
        entry: u32,
        /// First address after it.
        end: u64,
    },
    /// ELF of 64 bits without a note.
    Elf64 {
        /// 64-bit entry.
        entry: u64,
        /// First address after it.
        end: u64,
    },
    /// bzImage.
    Compressed {
        /// 64-bit entry.
        entry: u64,
        /// First address after it and after the room that it unpacks itself into.
        end: u64,
        /// What the image says of itself.
        header: Box<setup_header>,
    },
}

impl Image {
    /// First address that it leaves free.
    pub fn end(&self) -> u64 {
        match self {
            Image::Pvh { end, .. } | Image::Elf64 { end, .. } | Image::Compressed { end, .. } => *end,
        }
    }

    /// First address after the highest that an initrd may have.
    pub fn initrd_limit(&self) -> u64 {
        match self {
            // Protocol 2.03 and later: the highest address of the last byte.
            Image::Compressed { header, .. } => u64::from(header.initrd_addr_max) + 1,
            _ => 1 << 32,
        }
    }

    /// The longest command line that it takes, without the NUL.
    pub fn cmdline_max(&self) -> usize {
        match self {
            Image::Compressed { header, .. } => (header.cmdline_size as usize).min(worker_api::CMDLINE_MAX),
            _ => worker_api::CMDLINE_MAX,
        }
    }
}
