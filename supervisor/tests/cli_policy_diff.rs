//! `vmsup policy diff`, as a program: every kind of side, and what is refused.

mod support;

use std::fs;
use std::process::Command;
use support::{Done, Place};

const READ: &str = r#"{"syscall": "read", "comment": "reads what there is"}"#;
const WRITE: &str = r#"{"syscall": "write", "comment": "writes what there is"}"#;

/// A filter by this name, with these rules.
fn filter(name: &str, rules: &str) -> String {
    format!(r#"{{"{name}": {{"mismatch_action": "kill_process", "match_action": "allow", "filter": [{rules}]}}}}"#)
}

fn folder(place: &Place, name: &str, rules: &str) {
    let below = place.path().join(name).join("policies/seccomp/x86_64");
    fs::create_dir_all(&below).unwrap();
    fs::write(below.join("netd.json"), filter("netd", rules)).unwrap();
}

fn diff(place: &Place, args: &[&str]) -> Done {
    let args: Vec<&str> = ["policy", "diff"].iter().chain(args).copied().collect();
    place.run(&args)
}

fn git(place: &Place, args: &[&str]) -> String {
    let out = Command::new("git")
        .args(["-c", "user.name=a test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main"])
        .args(["-c", "commit.gpgsign=false"])
        .args(args)
        .current_dir(place.path())
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

#[test]
fn folders_are_compared_by_what_they_permit() {
    let place = Place::new();
    folder(&place, "a", READ);
    folder(&place, "b", &format!("{WRITE}, {READ}"));
    let more = diff(&place, &["a", "b"]);
    assert_eq!(more.status, 1);
    assert!(more.stdout.contains("netd (x86_64)\n  + write: now possible\n"), "{}", more.stdout);
    assert!(more.stdout.ends_with("a -> b: 1 looser, 0 tighter, 0 other\n"), "{}", more.stdout);
    let less = diff(&place, &["b/policies", "a"]);
    assert!(less.status == 1 && less.stdout.contains("- write: no longer possible"), "{}", less.stdout);
    let same = diff(&place, &["a", "a/policies"]);
    assert_eq!((same.status, same.stdout.lines().count()), (0, 1));
    assert_eq!(diff(&place, &["a", "b", "--arch", "aarch64"]).status, 0);
    let json: serde_json::Value = serde_json::from_str(&diff(&place, &["a", "b", "--json"]).stdout).unwrap();
    assert_eq!((&json["changes"][0]["what"], &json["changes"][0]["direction"]), (&"write".into(), &"looser".into()));
    assert_eq!(json["changes"][0]["after"][0]["why"], "writes what there is");
}

/// The program under test carries the set that it answers from, and that is the repository's.
#[test]
fn a_program_carries_the_set_that_is_built_into_it() {
    let place = Place::new();
    let program = env!("CARGO_BIN_EXE_vmsup");
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/../policies");
    for side in [program, sources, "-", "built-in"] {
        let same = diff(&place, &["built-in", side]);
        assert_eq!(same.status, 0, "{side}: {}{}", same.stdout, same.stderr);
    }
    let changed = place.path().join("changed");
    let mut bytes = fs::read(program).unwrap();
    let (from, to) = (b"\"syscall\": \"pread64\"", b"\"syscall\": \"setpgid\"");
    let places: Vec<usize> = bytes.windows(from.len()).enumerate().filter(|(_, w)| w == from).map(|(n, _)| n).collect();
    assert!(!places.is_empty());
    for n in places {
        bytes[n..n + to.len()].copy_from_slice(to);
    }
    fs::write(&changed, bytes).unwrap();
    let found = diff(&place, &["built-in", "changed"]);
    assert_eq!(found.status, 1);
    assert!(found.stdout.contains("+ setpgid: now possible"), "{}", found.stdout);
    assert!(found.stdout.contains("- pread64: no longer possible"), "{}", found.stdout);
}

#[test]
fn files_of_others_are_compared_by_thread() {
    let place = Place::new();
    place.file("a.json", filter("vcpu", r#"{"syscall": "read"}"#));
    place.file("b.json", filter("vcpu", r#"{"syscall": "read"}, {"syscall": "open"}"#));
    let found = diff(&place, &["a.json", "b.json", "--arch", "x86_64"]);
    assert!(found.status == 1 && found.stdout.contains("vcpu (x86_64)\n  + open: now possible"), "{}", found.stdout);
    let arm = diff(&place, &["a.json", "b.json", "--arch", "aarch64"]);
    assert!(arm.is_one_sentence(2).contains("no system call `open`"), "Arm has none");
}

#[test]
fn revisions_are_read_from_git_wherever_one_stands_in_the_repository() {
    let place = Place::new();
    git(&place, &["init", "-q"]);
    folder(&place, ".", READ);
    git(&place, &["add", "."]);
    git(&place, &["commit", "-q", "-m", "one"]);
    git(&place, &["tag", "v1"]);
    folder(&place, ".", &format!("{READ}, {WRITE}"));
    git(&place, &["commit", "-q", "-a", "-m", "two"]);
    for revisions in [&["v1", "HEAD"][..], &["v1..HEAD"]] {
        let found = diff(&place, &[&["--git"], revisions].concat());
        assert!(found.status == 1 && found.stdout.contains("+ write"), "{}{}", found.stdout, found.stderr);
        assert!(found.stdout.ends_with("v1 -> HEAD: 1 looser, 0 tighter, 0 other\n"), "{}", found.stdout);
    }
    assert_eq!(diff(&place, &["--git", "v1", "HEAD~1"]).status, 0);
    let deeper =
        place.vmsup(&["policy", "diff", "--git", "v1..HEAD"]).current_dir(place.path().join("policies")).output();
    assert_eq!(Done::from(deeper.unwrap()).status, 1);
    let unknown = diff(&place, &["--git", "v1", "v9"]);
    assert_eq!(unknown.status, 2);
    assert!(unknown.stderr.contains("revision v9: git knows no such commit here"), "{}", unknown.stderr);
    // A link would be followed where a folder is read; here it is nothing to follow.
    fs::remove_file(place.path().join("policies/seccomp/x86_64/netd.json")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", place.path().join("policies/seccomp/x86_64/netd.json")).unwrap();
    git(&place, &["commit", "-q", "-a", "-m", "three"]);
    assert!(diff(&place, &["--git", "v1", "HEAD"]).is_one_sentence(2).contains("no regular file"));
    git(&place, &["rm", "-q", "-r", "policies"]);
    git(&place, &["commit", "-q", "-m", "four"]);
    assert!(diff(&place, &["--git", "v1", "HEAD"]).is_one_sentence(2).contains("HEAD: no filter"));
}

#[test]
fn what_is_no_side_is_refused_in_a_sentence() {
    let place = Place::new();
    folder(&place, "a", READ);
    place.file("text", "hello");
    place.file("bytes", [0xff, 0xfe]);
    fs::create_dir(place.path().join("empty")).unwrap();
    let shell = fs::canonicalize("/bin/sh").unwrap();
    for (side, word) in [
        ("nowhere", "cannot be read"),
        ("text", "text"),
        ("bytes", "neither a program nor JSON"),
        ("empty", "no filter"),
        ("/dev/null", "neither a directory nor a file"),
        (shell.to_str().unwrap(), "carries no policy files"),
    ] {
        assert!(diff(&place, &["a", side]).is_one_sentence(2).contains(word), "{side}");
        assert!(diff(&place, &[side, "a"]).is_one_sentence(2).contains(word), "{side}");
    }
    for args in [&["--git", "v1"][..], &["--git", "--output=x", "HEAD"], &["a"], &["a", "a", "--git", "x..y"], &[]] {
        assert_eq!(diff(&place, args).status, 2, "{args:?}");
    }
}
