//! The set that a program of a release carries: the policy files themselves, in a section of its ELF file.
//!
//! The program may be anybody's, of any architecture: it is read, never run, and nothing in it is believed.

use crate::model::Set;
use crate::wire;
use elf::ElfBytes;
use elf::abi::SHT_PROGBITS;
use elf::endian::AnyEndian;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Name of the section.
pub const SECTION_NAME: &str = ".vmsup_files";
/// What it begins with: the layout's version is part of it.
pub const MAGIC: &[u8; 16] = b"vmsup-policies 1";
/// What an ELF file begins with.
pub const ELF_MAGIC: &[u8; 4] = b"\x7fELF";
/// Most bytes of a program: a debug build of today's has some 200 MB.
const PROGRAM_MAX: u64 = 1 << 30;
/// Most bytes of a file's path.
const PATH_MAX: usize = 256;
/// Digits of a text's length.
pub const DIGITS: usize = 8;

/// A program whose set cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read at all.
    #[error("{file}: cannot be read: {error}")]
    Io {
        /// The program.
        file: String,
        /// Why.
        error: std::io::Error,
    },
    /// It is no program, or carries no policies.
    #[error("{file}: {what}")]
    Content {
        /// The program.
        file: String,
        /// What is wrong.
        what: String,
    },
    /// Its policies are not as they should be.
    #[error("{file}: {error}")]
    Set {
        /// The program.
        file: String,
        /// What is wrong.
        error: wire::Error,
    },
}

/// Files, each its path and its text, as the section has them: after [`MAGIC`] for each file its path, NUL, the length of its
/// text in bytes as 8 hexadecimal digits, the text.
pub fn encode<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut all = MAGIC.to_vec();
    for (path, text) in files {
        all.extend(format!("{path}\0{:0DIGITS$x}{text}", text.len()).into_bytes());
    }
    all
}

/// The files of a section.
///
/// # Errors
/// A sentence's end: what is wrong with it.
pub fn decode(section: &[u8]) -> Result<Vec<(String, String)>, &'static str> {
    let mut rest = section.strip_prefix(MAGIC).ok_or("its policy files are of a layout that is not known here")?;
    let mut files = Vec::new();
    while !rest.is_empty() {
        let cut = "its policy files are cut off";
        let end = rest.iter().take(PATH_MAX).position(|b| *b == 0).ok_or("a policy file in it has no path")?;
        let (path, after) = (&rest[..end], &rest[end + 1..]);
        let (digits, after) = after.split_at_checked(DIGITS).ok_or(cut)?;
        let digits = std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        let length =
            digits.and_then(|d| usize::from_str_radix(d, 16).ok()).ok_or("a policy file in it has no length")?;
        let (text, after) = after.split_at_checked(length).ok_or(cut)?;
        let utf8 = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| "a policy file in it is not UTF-8");
        files.push((utf8(path)?, utf8(text)?));
        rest = after;
    }
    Ok(files)
}

/// Reads the set that a program carries.
///
/// # Errors
/// See [`Error`].
pub fn read(path: &Path) -> Result<Set, Error> {
    let name = path.display().to_string();
    let mut content = Vec::new();
    let read = File::open(path).and_then(|file| file.take(PROGRAM_MAX + 1).read_to_end(&mut content));
    read.map_err(|error| Error::Io { file: name.clone(), error })?;
    of(&name, &content)
}

/// The set that a program carries, whose name is for sentences.
///
/// # Errors
/// See [`Error`].
pub fn of(name: &str, content: &[u8]) -> Result<Set, Error> {
    let wrong = |what: &str| Error::Content { file: name.to_owned(), what: what.to_owned() };
    if content.len() as u64 > PROGRAM_MAX {
        return Err(wrong("larger than any program of vmsup"));
    }
    let files = decode(section(content).map_err(wrong)?).map_err(wrong)?;
    Set::from_texts(name, files).map_err(|error| Error::Set { file: name.to_owned(), error })
}

/// The bytes of the section.
fn section(content: &[u8]) -> Result<&[u8], &'static str> {
    let malformed = "its section table is malformed";
    if !content.starts_with(ELF_MAGIC) {
        return Err("not a program (ELF)");
    }
    let file = ElfBytes::<AnyEndian>::minimal_parse(content).map_err(|_| malformed)?;
    let (Some(headers), Some(names)) = file.section_headers_with_strtab().map_err(|_| malformed)? else {
        return Err(NONE);
    };
    let mut found = headers.iter().filter(|h| names.get(h.sh_name as usize).is_ok_and(|n| n == SECTION_NAME));
    let (section, None) = (found.next().ok_or(NONE)?, found.next()) else {
        return Err("it has two sections of policy files");
    };
    if section.sh_type != SHT_PROGBITS {
        return Err(malformed);
    }
    match file.section_data(&section) {
        Ok((bytes, None)) => Ok(bytes),
        _ => Err(malformed),
    }
}

const NONE: &str = "it carries no policy files: the `vmsup` program of a release does, from 0.1 on";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Arch;

    const FILTER: &str = r#"{"netd": {"mismatch_action": "kill_process", "match_action": "allow", "filter": [
        {"syscall": "read", "comment": "reads what there is"}]}}"#;

    fn files() -> Vec<u8> {
        encode([("nft/a.nft", "täble"), ("seccomp/x86_64/netd.json", FILTER)])
    }

    /// A little ELF file: header, a section of data by this name, the names, and the table of three (or four) sections.
    fn elf(name: &str, kind: u32, data: &[u8], twice: bool) -> Vec<u8> {
        let names = format!("\0{name}\0.shstrtab\0");
        let (data_at, names_at) = (64, 64 + data.len());
        let table = names_at + names.len();
        let count = if twice { 4u16 } else { 3 };
        let mut all = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for number in [2u16, 62] {
            all.extend(number.to_le_bytes());
        }
        all.extend(1u32.to_le_bytes());
        for number in [0, 0, table as u64] {
            all.extend(number.to_le_bytes());
        }
        all.extend(0u32.to_le_bytes());
        for number in [64u16, 56, 0, 64, count, count - 1] {
            all.extend(number.to_le_bytes());
        }
        assert_eq!(all.len(), data_at);
        all.extend(data);
        all.extend(names.as_bytes());
        let mut section = |name: u32, kind: u32, at: usize, length: usize| {
            all.extend(name.to_le_bytes());
            all.extend(kind.to_le_bytes());
            for number in [2, 0, at as u64, length as u64] {
                all.extend(number.to_le_bytes());
            }
            all.extend([0; 24]);
        };
        section(0, 0, 0, 0);
        for _ in 1..count - 1 {
            section(1, kind, data_at, data.len());
        }
        section(name.len() as u32 + 2, 3, names_at, names.len());
        all
    }

    #[test]
    fn what_is_written_is_read() {
        let set = of("vmsup", &elf(SECTION_NAME, SHT_PROGBITS, &files(), false)).unwrap();
        assert_eq!((set.origin.as_str(), set.nft["a.nft"].as_str()), ("vmsup", "täble"));
        assert!(set.filter(Arch::X86_64, "netd").is_some());
        assert_eq!(encode([]), MAGIC);
        assert_eq!(decode(MAGIC), Ok(vec![]));
    }

    #[test]
    fn what_is_no_program_with_policies_is_said() {
        let said = |content: &[u8]| of("a program", content).unwrap_err().to_string();
        assert!(said(b"#!/bin/sh").contains("not a program"));
        assert!(said(b"\x7fELF").contains("malformed"));
        assert!(said(&elf(".text", SHT_PROGBITS, &files(), false)).contains("carries no policy files"));
        assert!(said(&elf(SECTION_NAME, SHT_PROGBITS, &files(), true)).contains("two sections"));
        assert!(said(&elf(SECTION_NAME, 8, &files(), false)).contains("malformed"), "no bytes in the file");
        assert!(said(&elf(SECTION_NAME, SHT_PROGBITS, b"vmsup-policies 2", false)).contains("layout"));
        let broken = encode([("seccomp/x86_64/netd.json", "{}")]);
        assert!(
            said(&elf(SECTION_NAME, SHT_PROGBITS, &broken, false)).starts_with("a program: seccomp/x86_64/netd.json")
        );
        assert!(read(Path::new("/nonexistent/vmsup")).unwrap_err().to_string().contains("cannot be read"));
    }

    /// Every byte cut off, and every byte another one: an answer or an error, and no panic.
    #[test]
    fn whatever_stands_there_is_survived() {
        let good = elf(SECTION_NAME, SHT_PROGBITS, &files(), false);
        for n in 0..good.len() {
            assert!(of("cut", &good[..n]).is_err(), "{n}");
            for value in [0, 0x7f, 0xff, good[n] ^ 1] {
                let mut other = good.clone();
                other[n] = value;
                drop(of("changed", &other));
            }
        }
        let section = files();
        for n in MAGIC.len() + 1..section.len() {
            let whole_files = n == MAGIC.len() + "nft/a.nft".len() + 1 + DIGITS + "täble".len();
            assert_eq!(decode(&section[..n]).is_ok(), whole_files, "{n}");
        }
        let mut signed = section.clone();
        signed[MAGIC.len() + "nft/a.nft".len() + 1] = b'+';
        assert!(decode(&signed).is_err());
    }
}
