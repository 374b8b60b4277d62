//! ELF images, of 32 and 64 bits, with and without a PVH note.
//!
//! The headers are read once, checked as a whole, and only then used: no segment lies outside of RAM, over another one
//! or over the boot structures below 1 MiB. (linux-loader's ELF loader knows neither 32-bit images nor these checks.)

use super::image::{self, Image, Kernel};
use super::{BootError, is_free, too_small};
use crate::memory::GuestMemory;

const HEADER_32: usize = 52;
const HEADER_64: usize = 64;
const PROGRAM_HEADER_32: usize = 32;
const PROGRAM_HEADER_64: usize = 56;
/// The most program headers; Linux has five.
const PROGRAM_HEADERS_MAX: u16 = 64;
/// The most bytes of one note segment that are looked at.
const NOTES_MAX: u64 = 64 * 1024;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Type of the note that holds the PVH entry (XEN_ELFNOTE_PHYS32_ENTRY).
const PHYS32_ENTRY: u32 = 18;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;

/// One program header.
#[derive(Debug, Clone, Copy)]
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

struct Header {
    wide: bool,
    entry: u64,
    segments: Vec<Segment>,
}

/// Loads the image.
///
/// # Errors
/// What is wrong with it.
pub fn load(memory: &GuestMemory, mut kernel: Kernel, low_end: u64) -> Result<Image, BootError> {
    let header = read_header(&kernel)?;
    let pvh = pvh_entry(&kernel, &header.segments)?;
    let loads = placed(&kernel, &header.segments, low_end)?;
    let entry = pvh.map_or(header.entry, u64::from);
    if !loads.iter().any(|s| (s.address..s.address + s.memory_bytes).contains(&entry)) {
        return Err(bad(format!("begins at {entry:#x}, where it loads nothing")));
    }
    for segment in &loads {
        image::copy(memory, &mut kernel.file, segment.offset, segment.address, segment.file_bytes)
            .map_err(BootError::Kernel)?;
    }
    let end = loads.iter().map(|s| s.address + s.memory_bytes).max().unwrap_or_default();
    match pvh {
        Some(entry) => Ok(Image::Pvh { entry, end }),
        None if header.wide => Ok(Image::Elf64 { entry, end }),
        None => Err(bad("is a 32-bit ELF without a PVH note: no boot protocol fits it".into())),
    }
}

fn bad(why: String) -> BootError {
    BootError::Kernel(why)
}

fn read_header(kernel: &Kernel) -> Result<Header, BootError> {
    let ident = kernel.read("ELF header", 0, HEADER_32)?;
    let wide = match ident[4] {
        1 => false,
        2 => true,
        _ => return Err(bad("is an ELF of an unknown class".into())),
    };
    if ident[5] != 1 {
        return Err(bad("is a big-endian ELF, which this machine cannot run".into()));
    }
    let bytes = if wide { kernel.read("ELF header", 0, HEADER_64)? } else { ident };
    let (kind, machine) = (u16_at(&bytes, 16), u16_at(&bytes, 18));
    if ![EM_386, EM_X86_64].contains(&machine) {
        return Err(bad(format!("is an ELF for another processor (e_machine {machine}), not for x86")));
    }
    if ![ET_EXEC, ET_DYN].contains(&kind) {
        return Err(bad(format!("is an ELF that cannot be run (e_type {kind}): an object file or a core dump")));
    }
    let (entry, table, entry_size, count) = if wide {
        (u64_at(&bytes, 24), u64_at(&bytes, 32), u16_at(&bytes, 54), u16_at(&bytes, 56))
    } else {
        (u32_at(&bytes, 24).into(), u32_at(&bytes, 28).into(), u16_at(&bytes, 42), u16_at(&bytes, 44))
    };
    let size = if wide { PROGRAM_HEADER_64 } else { PROGRAM_HEADER_32 };
    if usize::from(entry_size) != size || count == 0 || count > PROGRAM_HEADERS_MAX {
        return Err(bad(format!(
            "has {count} program headers of {entry_size} bytes, where 1 to {PROGRAM_HEADERS_MAX} of {size} are possible"
        )));
    }
    let table = kernel.read("program headers", table, size * usize::from(count))?;
    let segments = table.chunks_exact(size).map(|bytes| segment(bytes, wide)).collect();
    Ok(Header { wide, entry, segments })
}

fn segment(bytes: &[u8], wide: bool) -> Segment {
    let kind = u32_at(bytes, 0);
    if wide {
        let [offset, address, file_bytes, memory_bytes] = [8, 24, 32, 40].map(|at| u64_at(bytes, at));
        Segment { kind, offset, address, file_bytes, memory_bytes }
    } else {
        let [offset, address, file_bytes, memory_bytes] = [4, 12, 16, 20].map(|at| u64::from(u32_at(bytes, at)));
        Segment { kind, offset, address, file_bytes, memory_bytes }
    }
}

/// The segments to load, sorted by address, each within the file and within free RAM, none over another.
fn placed(kernel: &Kernel, segments: &[Segment], low_end: u64) -> Result<Vec<Segment>, BootError> {
    let mut loads: Vec<Segment> =
        segments.iter().filter(|s| s.kind == PT_LOAD && s.memory_bytes > 0).copied().collect();
    if loads.is_empty() {
        return Err(bad("loads nothing: it has no segment to load".into()));
    }
    loads.sort_by_key(|s| s.address);
    for s in &loads {
        if s.file_bytes > s.memory_bytes {
            return Err(bad(format!("has a segment at {:#x} that is larger in the file than in memory", s.address)));
        }
        if s.offset.checked_add(s.file_bytes).is_none_or(|end| end > kernel.size) {
            return Err(bad(format!("is cut short: its segment at {:#x} lies past the end of the file", s.address)));
        }
        let end = s.address.saturating_add(s.memory_bytes);
        if s.address < super::HIGH_RAM {
            return Err(bad(format!("wants to be loaded at {:#x}; the first MiB is taken", s.address)));
        }
        if !is_free(s.address, end, low_end) {
            return Err(bad(too_small(&format!("(segment at {:#x})", s.address), end, low_end)));
        }
    }
    match loads.windows(2).find(|w| w[0].address + w[0].memory_bytes > w[1].address) {
        Some(w) => {
            Err(bad(format!("has a segment at {:#x} that overwrites the one at {:#x}", w[1].address, w[0].address)))
        }
        None => Ok(loads),
    }
}

/// The entry of the PVH boot protocol, where a note holds one.
fn pvh_entry(kernel: &Kernel, segments: &[Segment]) -> Result<Option<u32>, BootError> {
    for s in segments.iter().filter(|s| s.kind == PT_NOTE) {
        let length = s.file_bytes.min(NOTES_MAX) as usize;
        let notes = kernel.read("note segment", s.offset, length)?;
        if let Some(entry) = find_entry(&notes) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Walks the notes of one segment: name size, descriptor size, type, then name and descriptor, each padded to 4 bytes.
fn find_entry(notes: &[u8]) -> Option<u32> {
    let mut rest = notes;
    while rest.len() >= 12 {
        let name_size = u32_at(rest, 0) as usize;
        let descriptor_size = u32_at(rest, 4) as usize;
        let kind = u32_at(rest, 8);
        let name = rest.get(12..)?.get(..name_size)?;
        let descriptor_at = 12 + name_size.next_multiple_of(4);
        let descriptor = rest.get(descriptor_at..)?.get(..descriptor_size)?;
        if kind == PHYS32_ENTRY && name == b"Xen\0" {
            // Four bytes, or eight in a 64-bit image; the address has 32 bits in both.
            return descriptor.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        }
        rest = rest.get(descriptor_at + descriptor_size.next_multiple_of(4)..)?;
    }
    None
}

// The callers know that the bytes are there: what they pass has the length of its structure.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes[at..].first_chunk().map_or(0, |b| u16::from_le_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&(name.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(descriptor.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&kind.to_le_bytes());
        for part in [name, descriptor] {
            bytes.extend_from_slice(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn the_pvh_note_is_found_among_others() {
        let mut notes = note(b"GNU\0", 3, &[1; 20]);
        notes.extend(note(b"Xen\0", 6, b"linux\0"));
        notes.extend(note(b"Xen\0", PHYS32_ENTRY, &0x0100_0000u64.to_le_bytes()));
        assert_eq!(find_entry(&notes), Some(0x0100_0000));
        assert_eq!(find_entry(&note(b"Xen\0", PHYS32_ENTRY, &[1, 2])), None);
        assert_eq!(find_entry(&note(b"xen\0", PHYS32_ENTRY, &[0; 4])), None);
    }

    #[test]
    fn notes_that_lie_about_their_sizes_end_the_walk() {
        let good = note(b"Xen\0", PHYS32_ENTRY, &[0, 0, 0, 1]);
        for at in 0..8 {
            let mut bytes = note(b"GNU\0", 3, &[1; 4]);
            bytes[at] = 0xff;
            bytes.extend(&good);
            assert_eq!(find_entry(&bytes), None, "byte {at}");
        }
        for length in 0..good.len() {
            assert_eq!(find_entry(&good[..length]), None, "{length} bytes");
        }
    }
}
