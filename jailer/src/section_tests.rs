//! Files that say they have a policy section.

use super::*;
use rustix::fd::AsFd;
use std::fs::File;
use std::io::Write;

/// An ELF file with the sections "", ".shstrtab" and the policy's, of `content`.
fn elf(content: &[u8]) -> Vec<u8> {
    let names = b"\0.shstrtab\0.vmsup_policy\0";
    let mut file = vec![0; 64];
    file[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    let names_at = file.len() as u64;
    file.extend(names);
    let content_at = file.len() as u64;
    file.extend(content);
    let table = file.len() as u64;
    file[40..48].copy_from_slice(&table.to_le_bytes());
    for (at, value) in [(58, 64u16), (60, 3), (62, 1)] {
        file[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    let mut section = |name: u32, kind: u32, flags: u64, at: u64, length: usize| {
        let mut entry = [0; 64];
        entry[..4].copy_from_slice(&name.to_le_bytes());
        entry[4..8].copy_from_slice(&kind.to_le_bytes());
        entry[8..16].copy_from_slice(&flags.to_le_bytes());
        entry[24..32].copy_from_slice(&at.to_le_bytes());
        entry[32..40].copy_from_slice(&(length as u64).to_le_bytes());
        file.extend(entry);
    };
    section(0, 0, 0, 0, 0);
    section(1, 3, 0, names_at, names.len());
    section(11, 1, 2, content_at, content.len());
    file
}

fn checked(bytes: &[u8]) -> Result<(), Error> {
    let fd = rustix::fs::memfd_create("program", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(fd);
    file.write_all(bytes).unwrap();
    check(file.as_fd())
}

/// Of the policy section's entry in the table, the last.
fn entry(file: &[u8], field: usize) -> std::ops::Range<usize> {
    let start = file.len() - 64 + field;
    start..start + if field < 8 { 4 } else { 8 }
}

#[test]
fn an_equal_section_is_let_pass_and_a_changed_instruction_is_not() {
    let own = policies::section::bytes();
    assert_eq!(checked(&elf(&own)), Ok(()));
    let kill = own.windows(4).rposition(|w| w == 0x8000_0000u32.to_ne_bytes()).unwrap();
    let mut loose = own.clone();
    loose[kill..kill + 4].copy_from_slice(&0x7fff_0000u32.to_ne_bytes());
    let said = checked(&elf(&loose)).unwrap_err().to_string();
    assert!(
        said.starts_with("it was built from other policies than this jailer: filter worker-vcpu differs"),
        "{said}"
    );
    assert!(matches!(checked(&elf(&own[..40])), Err(Error::Different(_))));
    assert!(matches!(checked(&elf(b"")), Err(Error::Different(_))));
}

#[test]
fn the_own_programs_section_is_found_in_its_file() {
    let own = File::open("/proc/self/exe").unwrap();
    assert_eq!(check(own.as_fd()), Ok(()));
    assert_eq!(read(own.as_fd()), Ok(policies::section::bytes()));
}

#[test]
fn what_is_no_program_is_refused() {
    assert_eq!(checked(b""), Err(Error::NotAProgram));
    assert_eq!(
        checked(b"#!/bin/sh\nexec sleep 1\n# and some more, for a header's length ......\n"),
        Err(Error::NotAProgram)
    );
    let mut narrow = elf(&policies::section::bytes());
    narrow[4] = 1;
    assert_eq!(checked(&narrow), Err(Error::NotAProgram));
    let folder = File::open("/").unwrap();
    assert_eq!(check(folder.as_fd()), Err(Error::NotAFile));
    let null = File::open("/dev/null").unwrap();
    assert_eq!(check(null.as_fd()), Err(Error::NotAFile));
}

#[test]
fn a_table_that_lies_is_refused_and_nothing_is_allocated_for_it() {
    let good = elf(&policies::section::bytes());
    let changed = |range: std::ops::Range<usize>, value: u64| {
        let mut file = good.clone();
        let width = range.len();
        file[range].copy_from_slice(&value.to_le_bytes()[..width]);
        checked(&file)
    };
    let malformed = |result: Result<(), Error>| matches!(result, Err(Error::Malformed(_)));
    for value in [1 << 63, u64::MAX, good.len() as u64, good.len() as u64 - 100] {
        assert!(malformed(changed(40..48, value)), "table at {value:#x}");
        assert!(malformed(changed(entry(&good, 24), value)), "section at {value:#x}");
    }
    for value in [1 << 63, u64::MAX, MOST + 1] {
        assert!(malformed(changed(entry(&good, 32), value)), "section of {value:#x} bytes");
    }
    assert!(matches!(changed(entry(&good, 32), 8), Err(Error::Different(_))));
    for (field, value) in [(58, 0), (58, 40), (58, 65535), (60, 65535), (60, 1001), (62, 3), (62, 65535)] {
        assert!(malformed(changed(field..field + 2, value)), "{field}: {value}");
    }
    // The names: past the end, too long.
    let names = good.len() - 128;
    assert!(malformed(changed(names + 24..names + 32, u64::MAX)));
    assert!(malformed(changed(names + 32..names + 40, 1 << 40)));
    // No table, no name, a name past all names, one that only begins so, a section without bytes, a writable one.
    assert_eq!(changed(60..62, 0), Err(Error::Missing));
    assert_eq!(changed(entry(&good, 0), 0), Err(Error::Missing));
    assert_eq!(changed(entry(&good, 0), u64::from(u32::MAX)), Err(Error::Missing));
    assert_eq!(changed(64 + 24..64 + 25, u64::from(b'x')), Err(Error::Missing));
    assert!(malformed(changed(entry(&good, 4), 8)));
    assert!(malformed(changed(entry(&good, 8), 3)));
    // Twice.
    assert!(malformed(changed(names..names + 4, 11)));
    // Cut anywhere.
    for length in (0..good.len()).step_by(61) {
        assert!(checked(&good[..length]).is_err(), "{length}");
    }
}
