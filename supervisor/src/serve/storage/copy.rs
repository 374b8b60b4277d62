//! Copies an image: as a clone that shares its blocks where the file system can, else with its holes.
//!
//! Runs on a thread. The source is somebody else's: it may change, shrink, lie about its holes or never answer.

use rustix::fs::{SeekFrom, copy_file_range, fstat, ftruncate, ioctl_ficlone, seek};
use rustix::io::{Errno, pread, pwrite};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How much is copied between two looks at whether it is still wanted.
const PIECE: u64 = 4 << 20;
/// How much is read at once where the kernel cannot copy by itself.
const BUFFER: usize = 1 << 20;
/// Zeroes of this length become a hole.
const BLOCK: usize = 64 << 10;

/// How far an import is, and whether it is still wanted.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes that are done, holes included.
    pub done: AtomicU64,
    /// Nobody wants it any more.
    pub cancelled: AtomicBool,
}

/// Why there is no copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// Nobody wants it any more.
    #[error("its import was cancelled")]
    Cancelled,
    /// The source is not what it was.
    #[error("changed while it was imported; try again when nothing writes to it")]
    Changed,
    /// The source cannot be read.
    #[error("cannot be read: {0}")]
    Read(Errno),
    /// The copy cannot be written.
    #[error("{}", write_error(*.0))]
    Write(Errno),
}

fn write_error(error: Errno) -> String {
    match error {
        Errno::NOSPC | Errno::DQUOT => "does not fit into the supervisor's storage, which is full; remove VMs".into(),
        Errno::FBIG | Errno::INVAL => "is larger than a file in the supervisor's storage can be".into(),
        error => format!("cannot be written to the supervisor's storage: {error}"),
    }
}

/// Copies `size` bytes into an empty file.
///
/// # Errors
/// See [`CopyError`]. The copy is worth nothing then.
pub fn copy(from: &OwnedFd, to: &OwnedFd, size: u64, progress: &Progress) -> Result<(), CopyError> {
    let (begun, before) = (progress.done.load(Ordering::Relaxed), stamp(from)?);
    if before.is_some_and(|[now, ..]| now != size.into()) {
        return Err(CopyError::Changed);
    }
    if ioctl_ficlone(to, from).is_err() {
        ftruncate(to, size).map_err(CopyError::Write)?;
        Copying { from, to, size, begun, progress, by_kernel: true }.all()?;
    }
    if fstat(to).map_err(CopyError::Write)?.st_size.cast_unsigned() != size || stamp(from)? != before {
        return Err(CopyError::Changed);
    }
    progress.done.store(begun + size, Ordering::Relaxed);
    Ok(())
}

/// What is another one when a regular file was written to. A block device has no such thing.
fn stamp(file: &OwnedFd) -> Result<Option<[i128; 5]>, CopyError> {
    let stat = fstat(file).map_err(CopyError::Read)?;
    let regular = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile;
    let all = [
        stat.st_size.into(),
        stat.st_mtime.into(),
        stat.st_mtime_nsec.into(),
        stat.st_ctime.into(),
        stat.st_ctime_nsec.into(),
    ];
    Ok(regular.then_some(all))
}

struct Copying<'a> {
    from: &'a OwnedFd,
    to: &'a OwnedFd,
    size: u64,
    begun: u64,
    progress: &'a Progress,
    /// The kernel copies by itself, as far as is known.
    by_kernel: bool,
}

impl Copying<'_> {
    fn all(mut self) -> Result<(), CopyError> {
        let mut buffer = Vec::new();
        let mut at = 0;
        while at < self.size {
            let (data, end) = self.next(at);
            at = data;
            while at < end {
                if self.progress.cancelled.load(Ordering::Relaxed) {
                    return Err(CopyError::Cancelled);
                }
                at += self.piece(at, (end - at).min(PIECE), &mut buffer)?;
                self.progress.done.store(self.begun + at, Ordering::Relaxed);
            }
            at = end;
        }
        Ok(())
    }

    /// Where the next data begin and end, from `at` on. What the source says of it is only believed where it leads on, and
    /// not beyond the end.
    fn next(&self, at: u64) -> (u64, u64) {
        let data = match seek(self.from, SeekFrom::Data(at)) {
            Ok(data) => data.clamp(at, self.size),
            Err(Errno::NXIO) => return (self.size, self.size),
            // It knows nothing of holes.
            Err(_) => return (at, self.size),
        };
        match seek(self.from, SeekFrom::Hole(data)) {
            Ok(hole) if hole > data => (data, hole.min(self.size)),
            _ => (data, self.size.min(data + PIECE)),
        }
    }

    /// Copies up to `length` bytes; says how many.
    fn piece(&mut self, at: u64, length: u64, buffer: &mut Vec<u8>) -> Result<u64, CopyError> {
        if self.by_kernel {
            let (mut from, mut to) = (at, at);
            match copy_file_range(self.from, Some(&mut from), self.to, Some(&mut to), length as usize) {
                // The source has become shorter, or the kernel cannot read it this way: reading tells.
                Ok(0) => {}
                Ok(copied) => return Ok(copied as u64),
                Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => return Err(CopyError::Write(error)),
                Err(Errno::INTR) => return Ok(0),
                // Another file system, a block device, an old kernel.
                Err(_) => self.by_kernel = false,
            }
        }
        buffer.resize(BUFFER, 0);
        let wanted = BUFFER.min(usize::try_from(length).unwrap_or(BUFFER));
        let read = match pread(self.from, &mut buffer[..wanted], at) {
            Ok(0) => return Err(CopyError::Changed),
            Ok(read) => read,
            Err(Errno::INTR) => return Ok(0),
            Err(error) => return Err(CopyError::Read(error)),
        };
        let mut position = at;
        for block in buffer[..read].chunks(BLOCK) {
            if block.iter().any(|byte| *byte != 0) {
                self.write(block, position)?;
            }
            position += block.len() as u64;
        }
        Ok(read as u64)
    }

    fn write(&self, mut bytes: &[u8], mut at: u64) -> Result<(), CopyError> {
        while !bytes.is_empty() {
            match pwrite(self.to, bytes, at) {
                Ok(written) => {
                    bytes = &bytes[written..];
                    at += written as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(CopyError::Write(error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
