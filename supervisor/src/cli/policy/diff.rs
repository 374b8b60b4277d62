//! `vmsup policy diff`: what two sets of policies do differently.

use super::sides;
use crate::cli::args::Json;
use crate::cli::failure::{FAILED, Failure, notice};
use crate::cli::output::{print, print_json};
use crate::cli::sanitize::{line, without_errno};
use clap::{Args, ValueHint};
use policy_audit::diff::{Area, Change, Difference, Direction, Said, diff};
use policy_set::arch::Arch;
use policy_set::model::Set;
use std::ffi::OsString;
use std::fmt::Write as _;

/// Rules that are shown of a change; JSON has all.
const SHOWN: usize = 6;

/// Options of `policy diff`.
#[derive(Debug, Args)]
pub struct Options {
    /// The older: a directory, a file in seccompiler's format, a program (a release's vmsup), or `built-in` (or `-`).
    #[arg(value_name = "A", required_unless_present = "git", conflicts_with = "git", value_hint = ValueHint::AnyPath)]
    a: Option<OsString>,
    /// The newer.
    #[arg(value_name = "B", required_unless_present = "git", conflicts_with = "git", value_hint = ValueHint::AnyPath)]
    b: Option<OsString>,
    /// Compare two revisions of the git repository here: REV REV, or REV..REV.
    #[arg(long, num_args = 1..=2, value_name = "REV")]
    git: Vec<String>,
    /// Filters of this architecture alone, x86_64 or aarch64; what files in seccompiler's format are for (default: this host's).
    #[arg(long, value_name = "ARCH", value_parser = super::which::arch)]
    arch: Option<Arch>,
    #[command(flatten)]
    json: Json,
}

/// `vmsup policy diff`.
pub fn show(options: &Options) -> Result<(), Failure> {
    let (a, b) = match (&options.a, &options.b) {
        (Some(a), Some(b)) => (sides::read(a, options.arch)?, sides::read(b, options.arch)?),
        _ => {
            let (a, b) = sides::revisions(&options.git)?;
            (sides::of_git(a)?, sides::of_git(b)?)
        }
    };
    let found = compare(&a, &b, options.arch)?;
    if options.json.json {
        print_json(&found)?;
    } else {
        print(text(&found))?;
    }
    for call in &found.sampled {
        notice(&format!("{call} has too many conditions to compare all arguments; a sample of them was compared"));
    }
    if found.changes.is_empty() { Ok(()) } else { Err(Failure::status(FAILED)) }
}

fn compare(a: &Set, b: &Set, arch: Option<Arch>) -> Result<Difference, Failure> {
    diff(a, b, arch).map_err(|e| Failure::input(without_errno(&e.to_string())))
}

/// For people: what changed, by whom it concerns.
fn text(found: &Difference) -> String {
    let (a, b) = (line(&found.before), line(&found.after));
    if found.changes.is_empty() {
        return format!("no difference: {a} and {b} permit the same\n");
    }
    let mut out = String::new();
    let mut last = String::new();
    for change in &found.changes {
        let head = head(change);
        if head != last {
            let gap = if last.is_empty() { "" } else { "\n" };
            let _ = writeln!(out, "{gap}{head}");
            last = head;
        }
        entry(change, &mut out);
    }
    let count = |direction| found.changes.iter().filter(|c| c.direction == direction).count();
    let (looser, tighter, other) = (count(Direction::Looser), count(Direction::Tighter), count(Direction::Other));
    let _ = writeln!(out, "\n{a} -> {b}: {looser} looser, {tighter} tighter, {other} other");
    out
}

fn head(change: &Change) -> String {
    let of = line(&change.of);
    match (change.area, change.arch) {
        (Area::Seccomp, Some(arch)) => format!("{} ({})", of.replacen('-', "/", 1), arch.name()),
        (Area::Seccomp, None) => of,
        (Area::Landlock, _) => format!("{of}: landlock"),
        (Area::Process, _) => format!("{of}: process"),
        (Area::Nft, _) => format!("{of}: nftables"),
    }
}

fn entry(change: &Change, out: &mut String) {
    let call = change.example.is_some();
    let (sign, word) = match change.direction {
        Direction::Looser if call && change.before.is_empty() => ('+', "now possible"),
        Direction::Looser if call => ('+', "possible with more arguments"),
        Direction::Looser => ('+', "looser"),
        Direction::Tighter if call && change.after.is_empty() => ('-', "no longer possible"),
        Direction::Tighter if call => ('-', "possible with fewer arguments"),
        Direction::Tighter => ('-', "tighter"),
        Direction::Other => ('~', "changed"),
    };
    let _ = writeln!(out, "  {sign} {}: {word}", line(&change.what));
    for (label, all) in [("before", &change.before), ("now", &change.after)] {
        for said in all.iter().take(SHOWN) {
            let _ = writeln!(out, "      {label:<7}{}", one(said));
        }
        if all.len() > SHOWN {
            let _ = writeln!(out, "      {label:<7}and {} more", all.len() - SHOWN);
        }
    }
    if let Some(args) = change.example.filter(|args| args.iter().any(|a| *a != 0)) {
        let used = args.iter().rposition(|a| *a != 0).map_or(0, |last| last + 1);
        let args: Vec<String> = args[..used].iter().map(|a| format!("{a:#x}")).collect();
        let _ = writeln!(out, "      e.g.   {}({})", line(&change.what), args.join(", "));
    }
    if let Some(note) = &change.note {
        let _ = writeln!(out, "      {}", line(note));
    }
}

fn one(said: &Said) -> String {
    let mut text = line(&said.text);
    if let Some(words) = &said.words {
        let _ = write!(text, " [{}]", line(words));
    }
    if let Some(why) = &said.why {
        let _ = write!(text, "  {}", line(why));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(rules: &str) -> Set {
        let text = format!(
            r#"{{"worker-vcpu": {{"mismatch_action": "kill_process", "match_action": "allow", "filter": [{rules}]}}}}"#
        );
        Set::from_texts("\u{1b}a set", [("seccomp/x86_64/worker-vcpu.json".to_owned(), text)]).unwrap()
    }

    #[test]
    fn what_changed_is_said_by_whom_it_concerns_and_is_harmless() {
        let read = r#"{"syscall": "read", "comment": "reads what there is"}"#;
        let run = r#"{"syscall": "ioctl", "comment": "runs \u001bthe guest", "args": [
            {"index": 1, "type": "dword", "op": "eq", "val": 44672, "comment": "KVM_RUN"}]}"#;
        let (a, b) = (set(read), set(&format!("{read}, {run}")));
        let shown = text(&compare(&a, &b, None).unwrap());
        assert_eq!(
            shown,
            "worker/vcpu (x86_64)\n  + ioctl: now possible\n      now    ioctl(1 == 0xae80) [KVM_RUN]  runs \\u{1b}the \
             guest\n      e.g.   ioctl(0x0, 0xae80)\n\n\\u{1b}a set -> \\u{1b}a set: 1 looser, 0 tighter, 0 other\n"
        );
        assert!(text(&compare(&b, &a, None).unwrap()).contains("- ioctl: no longer possible\n      before ioctl("));
        assert!(text(&compare(&a, &a, None).unwrap()).starts_with("no difference: "));
        assert_eq!(compare(&a, &b, Some(Arch::Aarch64)).unwrap().changes, []);
    }
}
