//! The policy section of a program's file (`policies::section`), read by hand: some 60 lines for the one table that is needed.
//!
//! Nothing in the file is believed: every offset and size is held against the file's own size and a bound before anything is
//! allocated or read.

use policies::section::{MOST, SECTION_NAME, difference};
use rustix::fd::BorrowedFd;
use rustix::fs::{FileType, Stat, fstat};
use rustix::io::Errno;

/// The most sections of a program; ours have some forty.
const SECTIONS_MAX: u64 = 1000;
/// The most bytes of their names.
const NAMES_MAX: u64 = 64 << 10;
/// Bytes of an ELF64 header, and of an entry of its section table.
const HEADER: u64 = 64;
/// `SHT_PROGBITS`: a section whose bytes stand in the file.
const PROGBITS: u64 = 1;
/// `SHF_WRITE | SHF_ALLOC`: of which the section is to have the second only.
const WRITE_ALLOC: u64 = 3;
const ALLOC: u64 = 2;

/// Why a program may not run in a worker's place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is a FIFO, a directory, …
    #[error("it is not a regular file")]
    NotAFile,
    /// It is something else than a 64-bit ELF file of this machine's byte order.
    #[error("it is not a program (64-bit ELF)")]
    NotAProgram,
    /// Its section table says what cannot be.
    #[error("its {0}")]
    Malformed(&'static str),
    /// It was built without our policies.
    #[error("it has no policy section ({SECTION_NAME})")]
    Missing,
    /// It was built from other policies.
    #[error("it was built from other policies than this jailer: {0}")]
    Different(String),
    /// It cannot be read.
    #[error("it cannot be read: {}", std::io::Error::from(*.0))]
    System(#[from] Errno),
}

/// What tells that a file was not touched since it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp([u64; 7]);

impl Stamp {
    /// Of an open file.
    ///
    /// # Errors
    /// What `fstat(2)` says.
    pub fn of(file: BorrowedFd<'_>) -> Result<Stamp, Errno> {
        let Stat { st_dev, st_ino, st_size, st_mtime, st_mtime_nsec, st_ctime, st_ctime_nsec, .. } = fstat(file)?;
        let [size, mtime, ctime] = [st_size, st_mtime, st_ctime].map(i64::cast_unsigned);
        Ok(Stamp([st_dev, st_ino, size, mtime, st_mtime_nsec, ctime, st_ctime_nsec]))
    }
}

/// Holds the program's section against this jailer's own.
///
/// # Errors
/// Anything but an equal one.
pub fn check(file: BorrowedFd<'_>) -> Result<(), Error> {
    match difference(&read(file)?) {
        None => Ok(()),
        Some(how) => Err(Error::Different(how)),
    }
}

/// The section's bytes.
///
/// # Errors
/// The file is none, or has none.
pub fn read(file: BorrowedFd<'_>) -> Result<Vec<u8>, Error> {
    let stat = fstat(file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::NotAFile);
    }
    let size = stat.st_size.cast_unsigned();
    if size < HEADER {
        return Err(Error::NotAProgram);
    }
    let header = bytes(file, size, 0, HEADER, "header")?;
    // Magic, 64 bits, the byte order of this machine, version 1.
    let order = if cfg!(target_endian = "little") { 1 } else { 2 };
    if header[..7] != [0x7f, b'E', b'L', b'F', 2, order, 1] {
        return Err(Error::NotAProgram);
    }
    let (offset, entry, count, names) =
        (number(&header, 40, 8), number(&header, 58, 2), number(&header, 60, 2), number(&header, 62, 2));
    if count == 0 {
        return Err(Error::Missing);
    }
    if entry != HEADER || count > SECTIONS_MAX || names >= count {
        return Err(Error::Malformed("section table has entries of an unknown size, too many, or none for names"));
    }
    let table = bytes(file, size, offset, count * entry, "section table stands outside of the file")?;
    let sections: Vec<&[u8]> = table.chunks_exact(HEADER as usize).collect();
    let strings = sections[names as usize];
    let (at, length) = (number(strings, 24, 8), number(strings, 32, 8));
    if length > NAMES_MAX {
        return Err(Error::Malformed("sections' names are too long"));
    }
    let strings = bytes(file, size, at, length, "sections' names stand outside of the file")?;
    let named = |section: &&&[u8]| {
        let name = strings.get(number(section, 0, 4) as usize..).unwrap_or_default();
        name.strip_prefix(SECTION_NAME.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    };
    let mut found = sections.iter().filter(named);
    let section = found.next().ok_or(Error::Missing)?;
    if found.next().is_some() {
        return Err(Error::Malformed("policy section is there twice"));
    }
    if number(section, 4, 4) != PROGBITS || number(section, 8, 8) & WRITE_ALLOC != ALLOC {
        return Err(Error::Malformed("policy section is not one of constants"));
    }
    let (at, length) = (number(section, 24, 8), number(section, 32, 8));
    if length > MOST {
        return Err(Error::Malformed("policy section is too long"));
    }
    bytes(file, size, at, length, "policy section stands outside of the file")
}

/// A number of 2, 4 or 8 bytes at `at`, which is within `from`.
fn number(from: &[u8], at: usize, width: usize) -> u64 {
    let mut bytes = [0; 8];
    let place = if cfg!(target_endian = "little") { 0 } else { 8 - width };
    bytes[place..place + width].copy_from_slice(&from[at..at + width]);
    u64::from_ne_bytes(bytes)
}

/// `length` bytes at `offset` of a file of `size` bytes. The callers bound `length`.
fn bytes(file: BorrowedFd<'_>, size: u64, offset: u64, length: u64, what: &'static str) -> Result<Vec<u8>, Error> {
    if offset.checked_add(length).is_none_or(|end| end > size) {
        return Err(Error::Malformed(what));
    }
    let mut bytes = vec![0; length as usize];
    let mut got = 0;
    while got < bytes.len() {
        match rustix::io::pread(file, &mut bytes[got..], offset + got as u64) {
            // It was cut meanwhile.
            Ok(0) => return Err(Error::Malformed(what)),
            Ok(more) => got += more,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "section_tests.rs"]
mod tests;
