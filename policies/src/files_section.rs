//! The policy files themselves, in a section of their own in the file of the program that asks about them (`vmsup`), so that
//! `vmsup policy diff` can compare a program of one release with that of another without running either.
//!
//! [`crate::FILES`] points into it: what stands in the file is what the program answers from, and a program that does not use
//! `FILES` (a worker, a jailer, netd) has no such section. Layout: `policy_set::program`, which reads it.
//!
//! Unsafe: the attribute that names the section.
#![allow(unsafe_code)]

const CONTENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/files.bin"));

// SAFETY: the section has a name that no linker script, loader or runtime gives a meaning to; the kernel maps it with the
// program's other constants, read-only, and this static is all that any of our crates puts there.
#[unsafe(link_section = ".vmsup_files")]
static SECTION: [u8; CONTENT.len()] = *include_bytes!(concat!(env!("OUT_DIR"), "/files.bin"));

/// The text of a file.
pub(crate) const fn text(start: usize, length: usize) -> &'static str {
    match std::str::from_utf8(SECTION.split_at(start).1.split_at(length).0) {
        Ok(text) => text,
        Err(_) => panic!("build.rs wrote text"),
    }
}
