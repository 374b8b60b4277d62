//! What `vmsup policy diff` compares: a folder, a foreign file, a program, a revision in git, or what is compiled in.

use super::which::built_in;
use crate::cli::failure::Failure;
use crate::cli::sanitize::without_errno;
use policy_set::arch::Arch;
use policy_set::model::Set;
use policy_set::wire::FILE_MAX;
use policy_set::{foreign, program};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

/// Most bytes of git's list of a revision's files.
const LIST_MAX: u64 = 1 << 20;
/// Where the set is in a repository.
const FOLDER: &str = "policies/";

/// Reads one side.
///
/// # Errors
/// One sentence: what is wrong, and with which side.
pub fn read(side: &OsStr, arch: Option<Arch>) -> Result<Set, Failure> {
    let path = Path::new(side);
    if side == "built-in" || side == "-" {
        return built_in();
    }
    let failed = |e: std::io::Error| {
        Failure::input(format!(
            "{} cannot be read ({}); give a directory, a file, or `built-in`",
            path.display(),
            without_errno(&e.to_string())
        ))
    };
    let kind = std::fs::metadata(path).map_err(failed)?;
    if kind.is_dir() {
        return Set::from_folder(path).map_err(|e| input(&e));
    }
    if !kind.is_file() {
        return Err(Failure::input(format!("{} is neither a directory nor a file", path.display())));
    }
    let mut start = Vec::new();
    // One byte more than a file may have, so that what is too long is refused as that.
    File::open(path).and_then(|f| f.take(FILE_MAX as u64 + 1).read_to_end(&mut start)).map_err(failed)?;
    if start.starts_with(program::ELF_MAGIC) {
        return program::read(path).map_err(|e| input(&e));
    }
    let arch = arch.or_else(Arch::host).ok_or_else(|| Failure::input("name an architecture with --arch"))?;
    let name = path.display().to_string();
    let text =
        String::from_utf8(start).map_err(|_| Failure::input(format!("{name} is neither a program nor JSON text")))?;
    foreign::read(&name, arch, &text).map_err(|e| input(&e))
}

/// The two revisions that `--git` names.
///
/// # Errors
/// They are not two, or are options in disguise.
pub fn revisions(given: &[String]) -> Result<(&str, &str), Failure> {
    let two = match given {
        [a, b] => Some((a.as_str(), b.as_str())),
        [range] if !range.contains("...") => range.split_once(".."),
        _ => None,
    };
    let fine = |rev: &str| !rev.is_empty() && !rev.starts_with('-') && !rev.contains("..");
    two.filter(|(a, b)| fine(a) && fine(b))
        .ok_or_else(|| Failure::input("--git takes two revisions: REV REV, or REV..REV"))
}

/// Reads the set of a revision, by the git program, in the repository that the working directory is in.
///
/// # Errors
/// One sentence: what is wrong, and with which revision.
pub fn of_git(rev: &str) -> Result<Set, Failure> {
    let wrong = |what: &str| Failure::input(format!("revision {rev}: {what}"));
    let commit = git(&["rev-parse", "--verify", "--end-of-options", &format!("{rev}^{{commit}}")], 128)
        .map_err(|e| wrong(&e.unwrap_or_else(|| "git knows no such commit here".into())))?;
    let commit = String::from_utf8(commit).map_err(|_| wrong("git names no commit"))?;
    let failed = |e: Option<String>| wrong(&e.unwrap_or_else(|| "git cannot read its files".into()));
    let list = git(&["ls-tree", "-r", "-z", "--full-tree", commit.trim(), "--", FOLDER], LIST_MAX).map_err(failed)?;
    let mut files = Vec::new();
    for entry in String::from_utf8_lossy(&list).split_terminator('\0') {
        // `100644 blob OID<tab>PATH`
        let Some((about, path)) = entry.split_once('\t') else { return Err(wrong("git's list is not as expected")) };
        let Some(path) = path.strip_prefix(FOLDER).filter(|path| is_policy(path)) else { continue };
        let [mode, "blob", id] = about.split(' ').collect::<Vec<_>>()[..] else { continue };
        if !mode.starts_with("100") {
            return Err(wrong(&format!("{FOLDER}{path} is no regular file")));
        }
        let text = git(&["cat-file", "blob", id], FILE_MAX as u64).map_err(failed)?;
        let text = String::from_utf8(text).map_err(|_| wrong(&format!("{FOLDER}{path} is not UTF-8")))?;
        files.push((path.to_owned(), text));
    }
    Set::from_texts(rev, files).map_err(|e| wrong(&e.to_string()))
}

/// Whether a file below `policies/` is one of the set: schemas, sources and documents stand there as well.
fn is_policy(path: &str) -> bool {
    let below = path.split('/').next().unwrap_or_default();
    path.ends_with(".json") && (below == "seccomp" || path == "landlock.json" || path == "process.json")
        || path.ends_with(".nft") && below == "nft"
}

/// What git prints: at most `most` bytes. An error without words: git failed, and has said why on stderr.
fn git(args: &[&str], most: u64) -> Result<Vec<u8>, Option<String>> {
    let mut child = Command::new("git")
        .args(["--no-pager", "--no-replace-objects"])
        .args(args)
        .env("GIT_NO_LAZY_FETCH", "1")
        .env("GIT_OPTIONAL_LOCKS", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|e| Some(format!("git cannot be run ({})", without_errno(&e.to_string()))))?;
    let mut out = Vec::new();
    // The pipe is closed when it was read, or when it is too much, so that git ends either way.
    let read = child.stdout.take().map(|pipe| pipe.take(most + 1).read_to_end(&mut out));
    let status = child.wait();
    if out.len() as u64 > most {
        return Err(Some(format!("git says more than {most} bytes")));
    }
    match (read, status) {
        (Some(Ok(_)), Ok(status)) if status.success() => Ok(out),
        _ => Err(None),
    }
}

fn input(error: &impl std::fmt::Display) -> Failure {
    Failure::input(without_errno(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_are_two_and_no_options() {
        let two = |given: &[&str]| {
            let given: Vec<String> = given.iter().map(|s| (*s).to_owned()).collect();
            revisions(&given).ok().map(|(a, b)| (a.to_owned(), b.to_owned()))
        };
        assert_eq!(two(&["v1", "HEAD"]), two(&["v1..HEAD"]));
        assert_eq!(two(&["v1..HEAD~2"]), Some(("v1".into(), "HEAD~2".into())));
        for wrong in
            [&["v1"][..], &["v1.."], &["..v1"], &["a...b"], &["-x", "a"], &["a", "--output=x"], &["a..b", "c"], &[]]
        {
            assert_eq!(two(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn files_of_the_set_are_told_from_others() {
        for file in
            ["seccomp/x86_64/netd.json", "seccomp/include/leave.json", "landlock.json", "process.json", "nft/vmsup.nft"]
        {
            assert!(is_policy(file), "{file}");
        }
        for file in [
            "schema/filter.schema.json",
            "set/src/wire.rs",
            "recorded/x86_64.json",
            "README.md",
            "build.rs",
            "nft.json",
        ] {
            assert!(!is_policy(file), "{file}");
        }
    }
}
