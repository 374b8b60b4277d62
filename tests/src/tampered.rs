//! Programs as a build from other policies makes them: copies with a changed policy section.

use crate::{Scratch, program, user::User};
use policies::section;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// `SECCOMP_RET_KILL_PROCESS` and `SECCOMP_RET_ALLOW`.
const KILL: [u8; 4] = 0x8000_0000u32.to_ne_bytes();
const ALLOW: [u8; 4] = 0x7fff_0000u32.to_ne_bytes();

/// A built program's bytes, and where its policy section stands.
///
/// # Panics
/// Where it has none.
pub fn read(name: &str) -> (Vec<u8>, Range<usize>) {
    let bytes = std::fs::read(program(name)).unwrap();
    let own = section::bytes();
    let at = bytes.windows(own.len()).position(|w| w == own).expect("programs and tests of one build");
    (bytes, at..at + own.len())
}

/// The default action of a filter: where its last "kill the process" stands, in the section.
///
/// # Panics
/// Where there is no such filter.
pub fn default_action(filter: &str) -> usize {
    let own = section::bytes();
    let start = own.windows(filter.len()).position(|w| w == filter.as_bytes()).expect("a filter of that name");
    let rest = &own[start + 28..];
    let count = u32::from_ne_bytes(own[start + 24..start + 28].try_into().unwrap()) as usize;
    let instructions = rest[..count * 8].chunks_exact(8);
    let last = instructions.enumerate().rfind(|(_, i)| i[4..] == KILL).expect("a default").0;
    start + 28 + last * 8 + 4
}

/// A program with a filter that allows what it should kill for.
pub fn allowing(name: &str, filter: &str) -> Vec<u8> {
    let (mut bytes, section) = read(name);
    let at = section.start + default_action(filter);
    assert_eq!(bytes[at..at + 4], KILL);
    bytes[at..at + 4].copy_from_slice(&ALLOW);
    bytes
}

/// Writes a program that its user may execute.
///
/// # Panics
/// Where it cannot be written.
pub fn write(folder: &Scratch, user: &User, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid)).unwrap();
    path
}
