//! The policy section: a worker's filters, and the landlock ABIs that it holds itself to, in a section of its own in the
//! file of every program that links this crate.
//!
//! [`crate::WORKER_STARTUP`] and the others point into it: what stands in the file is what is installed. The jailer compares
//! a worker's section with its own before it runs the worker, so that a worker that was built from other policies than the
//! jailer never starts; `vmsup inspect --verify` compares that of a running worker with the CLI's. This tells apart what was
//! built from different policies. It is no signature: who can write a program of their own can give it any section.
//!
//! Layout, in the byte order of the machine: [`MAGIC`], version, length of the whole, oldest and newest landlock ABI, count of
//! filters (32 bits each); then for each filter its name (24 bytes, NUL-padded), count of instructions (32 bits), and these as
//! `struct sock_filter`.
//!
//! Unsafe: the attribute that names the section, and nothing else of the crate.
#![allow(unsafe_code)]

use seccompiler::sock_filter;

/// Its name in an ELF file.
pub const SECTION_NAME: &str = ".vmsup_policy";
/// What it begins with.
pub const MAGIC: [u8; 8] = *b"vmsuppol";
/// Of the layout; of a trace build, which has the filters and puts none in force, one that no release takes.
const VERSION: u32 = if crate::TRACE { 1 | 1 << 31 } else { 1 };
/// Bytes of a filter's name.
const NAME: usize = 24;
/// Bytes before the first filter.
const HEAD: usize = size_of::<Head>();
/// The most bytes that a section of any release has: a reader allocates no more.
pub const MOST: u64 = 32 << 10;

#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: u32,
    length: u32,
    landlock_floor: u32,
    landlock_newest: u32,
    filters: u32,
}

impl Head {
    const fn new(filters: u32) -> Head {
        Head {
            magic: MAGIC,
            version: VERSION,
            length: size_of::<Section>() as u32,
            landlock_floor: crate::LANDLOCK_WORKER_FLOOR as u32,
            landlock_newest: crate::LANDLOCK_WORKER_NEWEST as u32,
            filters,
        }
    }
}

/// A filter.
#[repr(C)]
pub(crate) struct Part<const N: usize> {
    name: [u8; NAME],
    length: u32,
    pub program: [sock_filter; N],
}

impl<const N: usize> Part<N> {
    const fn new(text: &str, program: [sock_filter; N]) -> Part<N> {
        let mut name = [0; NAME];
        name.split_at_mut(text.len()).0.copy_from_slice(text.as_bytes());
        Part { name, length: N as u32, program }
    }
}

include!(concat!(env!("OUT_DIR"), "/section.rs"));

// SAFETY: the section has a name that no linker script, loader or runtime gives a meaning to; the kernel maps it with the
// program's other constants, read-only, and this static is all that any of our crates puts there.
#[used]
#[unsafe(link_section = ".vmsup_policy")]
pub(crate) static SECTION: Section = CONTENT;

/// What this program's own section has, byte by byte.
pub fn bytes() -> Vec<u8> {
    // Through the static itself, so that no optimisation reads its value and leaves the section out of the program.
    let section = std::hint::black_box(&SECTION);
    let head = &section.head;
    let mut bytes = head.magic.to_vec();
    for number in [head.version, head.length, head.landlock_floor, head.landlock_newest, head.filters] {
        bytes.extend(number.to_ne_bytes());
    }
    for (name, program) in parts(section) {
        bytes.extend(name);
        bytes.extend((program.len() as u32).to_ne_bytes());
        for i in program {
            bytes.extend(i.code.to_ne_bytes());
            bytes.extend([i.jt, i.jf]);
            bytes.extend(i.k.to_ne_bytes());
        }
    }
    bytes
}

/// Where `found`, another program's section, is not as this program's: the end of a sentence; `None` where they are equal.
pub fn difference(found: &[u8]) -> Option<String> {
    let own = bytes();
    if found == own {
        return None;
    }
    let Some(at) = own.iter().zip(found).position(|(a, b)| a != b) else {
        return Some(format!("it has {} bytes instead of {}", found.len(), own.len()));
    };
    // The length comes before what made it another one.
    let length = MAGIC.len() + size_of::<u32>();
    let rest = |bytes: &[u8]| [&bytes[..length.min(bytes.len())], bytes.get(length + 4..).unwrap_or_default()].concat();
    let at = match rest(&own).iter().zip(&rest(found)).position(|(a, b)| a != b) {
        Some(n) if n < length => n,
        Some(n) => n + 4,
        None => at,
    };
    if at < length {
        return Some("it is no policy section of this release".into());
    }
    if at < HEAD - 4 {
        return Some("landlock's oldest or newest ABI is another one".into());
    }
    let mut start = HEAD;
    for (name, program) in parts(&SECTION) {
        let end = start + NAME + 4 + size_of_val(program);
        if (start..end).contains(&at) {
            let name = String::from_utf8_lossy(name);
            let name = name.trim_end_matches('\0');
            return Some(match at.checked_sub(start + NAME + 4) {
                Some(offset) => {
                    format!("filter {name} differs from its instruction {} on", offset / size_of::<sock_filter>())
                }
                None => format!("filter {name} is another one"),
            });
        }
        start = end;
    }
    Some("it has other filters".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_holds_what_the_worker_installs() {
        let bytes = bytes();
        assert_eq!(bytes.len(), size_of::<Section>(), "no padding");
        assert!(bytes.len() as u64 <= MOST);
        let names: Vec<_> =
            parts(&SECTION).iter().map(|(name, _)| String::from_utf8_lossy(*name).into_owned()).collect();
        let workers: Vec<_> = crate::ALL.iter().filter(|f| f.name.starts_with("worker-")).collect();
        assert_eq!(names.len(), workers.len());
        for ((name, (_, program)), filter) in names.iter().zip(parts(&SECTION)).zip(workers) {
            assert_eq!(name.trim_end_matches('\0'), filter.name);
            assert!(std::ptr::eq(program, filter.program), "{}: what is installed is what stands there", filter.name);
        }
    }

    #[test]
    fn it_stands_in_the_programs_file_once() {
        let file = std::fs::read("/proc/self/exe").unwrap();
        let bytes = bytes();
        let places = file.windows(bytes.len()).filter(|w| *w == bytes).count();
        assert_eq!(places, 1);
        assert!(file.windows(SECTION_NAME.len()).any(|w| w == SECTION_NAME.as_bytes()));
    }

    #[test]
    fn a_difference_is_named() {
        let own = bytes();
        assert_eq!(difference(&own), None);
        let changed = |at: usize| {
            let mut other = own.clone();
            other[at] ^= 1;
            difference(&other).unwrap()
        };
        assert!(changed(0).contains("no policy section") && changed(8).contains("no policy section"));
        assert!(changed(16).contains("landlock") && changed(20).contains("landlock"));
        let mut start = HEAD;
        for (name, program) in parts(&SECTION) {
            let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
            assert_eq!(changed(start), format!("filter {name} is another one"));
            let third = start + NAME + 4 + 3 * size_of::<sock_filter>();
            assert_eq!(changed(third + 4), format!("filter {name} differs from its instruction 3 on"));
            start += NAME + 4 + size_of_val(program);
        }
        // A filter that is one instruction longer: the head's length is not what is told.
        let mut longer = own.clone();
        longer.splice(HEAD + NAME + 4..HEAD + NAME + 4, [0; 8]);
        let length = (longer.len() as u32).to_ne_bytes();
        longer[12..16].copy_from_slice(&length);
        assert!(difference(&longer).unwrap().starts_with("filter worker-control"), "{:?}", difference(&longer));
        assert!(difference(&own[..own.len() - 8]).unwrap().contains("bytes instead of"));
        assert!(difference(&[]).unwrap().contains("0 bytes"));
    }
}
