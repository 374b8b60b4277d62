//! What a filter's file says of a call: read and decided here anew, in the simplest way there is, so that neither a
//! mistake of the reader, nor of the compiler, nor of the interpreter can hide.

use policy_set::arch::Arch;
use policy_set::model::{Action, Condition, Filter, Op, Rule, Width};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use vmsup_tests::verdicts::{Abi, Sample, Verdict};

/// The architecture that this is run on: what the kernel can be asked about.
pub const ARCH: Arch = if cfg!(target_arch = "x86_64") { Arch::X86_64 } else { Arch::Aarch64 };

/// `policies/` of this checkout.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies")
}

/// Every filter of [`ARCH`], by name, as its file and what it includes say it. Comments are left out.
pub fn filters() -> BTreeMap<String, Filter> {
    let folder = folder().join("seccomp");
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder.join(ARCH.name())).unwrap() {
        let (name, body) = only(&entry.unwrap().path());
        if body.get("unfiltered").is_some() {
            continue;
        }
        let mut rules = Vec::new();
        for include in body.get("include").and_then(Value::as_array).into_iter().flatten() {
            let (_, included) = only(&folder.join("include").join(format!("{}.json", include.as_str().unwrap())));
            rules.extend(included["filter"].as_array().unwrap().iter().map(rule));
        }
        rules.extend(body["filter"].as_array().unwrap().iter().map(rule));
        assert_eq!(
            (&body["mismatch_action"], &body["match_action"]),
            (&"kill_process".into(), &"allow".into()),
            "{name}"
        );
        let (default, matched) = (Action::KillProcess, Action::Allow);
        let filter = Filter {
            name: name.clone(),
            arch: ARCH,
            file: String::new(),
            default,
            matched,
            rules,
            accepted: BTreeMap::new(),
        };
        all.insert(name, filter);
    }
    all
}

/// The one thing that a file has, and its name.
fn only(file: &Path) -> (String, Value) {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let all: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(all.len(), 1, "{}", file.display());
    all.into_iter().next().unwrap()
}

fn rule(json: &Value) -> Rule {
    let args = json.get("args").and_then(Value::as_array);
    bare_rule(json["syscall"].as_str().unwrap(), args.into_iter().flatten().map(condition).collect())
}

/// A rule that says nothing but this.
pub fn bare_rule(syscall: &str, conditions: Vec<Condition>) -> Rule {
    Rule {
        syscall: syscall.to_owned(),
        conditions,
        comment: Some("for the proof".to_owned()),
        unexercised: None,
        accepted: BTreeMap::new(),
        file: String::new(),
        line: 1,
    }
}

fn condition(json: &Value) -> Condition {
    let op = match &json["op"] {
        Value::String(op) => match op.as_str() {
            "eq" => Op::Eq,
            "ne" => Op::Ne,
            "lt" => Op::Lt,
            "le" => Op::Le,
            "gt" => Op::Gt,
            "ge" => Op::Ge,
            other => panic!("{other}"),
        },
        op => Op::MaskedEq(op["masked_eq"].as_u64().unwrap()),
    };
    let width = match json["type"].as_str() {
        Some("dword") => Width::Dword,
        Some("qword") => Width::Qword,
        other => panic!("{other:?}"),
    };
    let index = u8::try_from(json["index"].as_u64().unwrap()).unwrap();
    Condition { index, width, op, value: json["val"].as_u64().unwrap(), comment: None }
}

/// Whether an argument is as it has to be.
pub fn holds(condition: &Condition, args: &[u64; 6]) -> bool {
    let seen = |value: u64| if condition.width == Width::Dword { value & 0xffff_ffff } else { value };
    let (arg, value) = (seen(args[usize::from(condition.index)]), seen(condition.value));
    match condition.op {
        Op::Eq => arg == value,
        Op::Ne => arg != value,
        Op::Lt => arg < value,
        Op::Le => arg <= value,
        Op::Gt => arg > value,
        Op::Ge => arg >= value,
        Op::MaskedEq(mask) => arg & seen(mask) == value & seen(mask),
    }
}

/// The rules of a filter that allow a call.
pub fn rules_allowing<'a>(filter: &'a Filter, sample: &Sample) -> Vec<&'a Rule> {
    let called = (sample.abi == Abi::Native).then(|| ARCH.syscall(sample.nr)).flatten();
    let fits = |rule: &&Rule| Some(&*rule.syscall) == called && rule.conditions.iter().all(|c| holds(c, &sample.args));
    filter.rules.iter().filter(fits).collect()
}

/// What has to become of a call under these filters together: each of them has to allow it.
pub fn expected(filters: &[&Filter], sample: &Sample) -> Verdict {
    match filters.iter().all(|filter| !rules_allowing(filter, sample).is_empty()) {
        true => Verdict::Allowed,
        false => Verdict::Killed,
    }
}
