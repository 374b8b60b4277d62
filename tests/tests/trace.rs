//! What the programs really call: the record in `policies/recorded` is true, and no test needs a call that the filters deny.
//!
//! `target/bin/trace` holds the trace build (`policies/src/trace/sys.rs`); `tests/traced` runs tests with it. `make trace`
//! records anew.

use policy_set::arch::Arch;
use policy_set::model::Set;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use vmsup_tests::host::{Host, Ran};
use vmsup_tests::{Scratch, as_root, program, user};

type Record = BTreeMap<String, BTreeSet<String>>;

/// Rules that the tests need in some runs and not in others, by filter, and why.
const FLAKY: &[(&str, &str, &str)] = &[];

fn policies() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../policies"))
}

fn record(path: &Path) -> Record {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn pairs(record: &Record) -> BTreeSet<(&str, &str)> {
    record.iter().flat_map(|(filter, rules)| rules.iter().map(|rule| (filter.as_str(), rule.as_str()))).collect()
}

#[test]
fn every_rule_is_exercised_or_says_why_not() {
    let set = Set::from_folder(policies()).unwrap();
    let recorded = &set.recorded[&Arch::X86_64];
    let mut wrong = Vec::new();
    for filter in set.filters.iter().filter(|f| f.arch == Arch::X86_64) {
        let used: &[String] = recorded.get(&filter.name).map_or(&[], Vec::as_slice);
        let keys: BTreeSet<String> = filter.rules.iter().map(|r| r.key()).collect();
        for rule in filter.rules.iter().filter(|r| !used.contains(&r.key()) && r.unexercised.is_none()) {
            wrong.push(format!(
                "{}:{}: {}: no test needs it, and it does not say why",
                rule.file,
                rule.line,
                rule.key()
            ));
        }
        // An included rule says it for those of its filters that it is true of.
        for rule in filter.rules.iter().filter(|r| used.contains(&r.key()) && r.unexercised.is_some()) {
            if rule.file == filter.file {
                wrong.push(format!(
                    "{}:{}: {}: says why no test needs it, and one does",
                    rule.file,
                    rule.line,
                    rule.key()
                ));
            }
        }
        wrong.extend(
            used.iter()
                .filter(|key| !keys.contains(*key))
                .map(|key| format!("{}: {key} is recorded, and no rule", filter.name)),
        );
    }
    assert!(wrong.is_empty(), "record anew (make trace), or say it in the file:\n{}", wrong.join("\n"));
}

#[test]
fn the_trace_build_is_no_release() {
    let text = "system calls cannot be announced to a tracer";
    let holds = |path: &str| {
        let status = Command::new("grep").args(["-qaF", text]).arg(program(path)).status().unwrap();
        assert!(matches!(status.code(), Some(0 | 1)), "{status:?}");
        status.success()
    };
    for name in ["vmsup", "vmsup-worker", "vmsup-netd"] {
        assert!(holds(&format!("trace/{name}")), "{name}");
        assert!(!holds(name) && !holds("vmsup-jailer"), "{name}");
    }
}

/// Not a test of its own: one tracer at a time.
fn a_release_is_no_trace_build() {
    let host = Host::start(&user::with_subuids(), &["--pool", "1"]);
    let mut trace = Command::new(program("vmsup"));
    let ran = Ran::from(trace.args(["policy", "trace", "--", "sleep", "0.3"]).output().unwrap());
    let sentence = ran.sentence(2);
    assert!(sentence.contains("of no trace build") && sentence.contains(&host.pid().to_string()), "{sentence}");
}

/// A filter is the whole policy of what it holds: a call that it denies ends the process, in a test or at a user's.
#[test]
fn a_live_trace_finds_no_call_that_is_denied_and_no_other_rules_than_the_record_has() {
    if !as_root("a_live_trace_finds_no_call_that_is_denied_and_no_other_rules_than_the_record_has") {
        return;
    }
    a_release_is_no_trace_build();
    let scratch = Scratch::new(&user::with_subuids());
    let live = scratch.path().join("live.json");
    let mut trace = Command::new(program("vmsup"));
    trace.args(["policy", "trace", "--fail-on-new", "--dir"]).arg(policies()).arg("--record").arg(&live);
    trace.arg("--").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/traced"));
    let ran = trace.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    let (live, committed) = (record(&live), record(&policies().join("recorded/x86_64.json")));
    let set = Set::from_folder(policies()).unwrap();
    let excused = |filter: &str, rule: &str| {
        let of = set.filters.iter().filter(|f| f.arch == Arch::X86_64 && f.name == filter);
        let mut rules = of.flat_map(|f| &f.rules).filter(|r| r.key() == rule);
        rules.any(|r| r.unexercised.is_some()) || FLAKY.iter().any(|(f, r, _)| (*f, *r) == (filter, rule))
    };
    let mut differ: Vec<_> = pairs(&live).symmetric_difference(&pairs(&committed)).copied().collect();
    differ.retain(|(filter, rule)| !excused(filter, rule));
    assert!(differ.is_empty(), "the record and a live trace differ (make trace records anew): {differ:?}");
}
