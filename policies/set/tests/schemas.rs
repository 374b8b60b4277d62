//! The JSON Schemas of the policy files, held against the files and against the reader.

use boon::{Compiler, SchemaIndex, Schemas};
use policy_set::model::Set;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

struct Kind {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Kind {
    fn new(name: &str) -> Kind {
        let mut schemas = Schemas::new();
        let file = root().join(format!("schema/{name}.schema.json"));
        let index = Compiler::new().compile(file.to_str().unwrap(), &mut schemas).unwrap();
        Kind { schemas, index }
    }

    fn check(&self, value: &Value) -> Result<(), String> {
        self.schemas.validate(value, self.index).map_err(|e| format!("{e:#}"))
    }
}

fn parsed(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

fn json_files(folder: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root().join(folder)) else { return Vec::new() };
    entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "json")).collect()
}

#[test]
fn every_policy_file_is_valid_by_its_schema() {
    let mut seen = 0;
    for (schema, folders) in [
        ("filter", &["seccomp/x86_64", "seccomp/aarch64"][..]),
        ("include", &["seccomp/include"]),
        ("recorded", &["recorded"]),
    ] {
        let kind = Kind::new(schema);
        for file in folders.iter().flat_map(|f| json_files(f)) {
            kind.check(&parsed(&file)).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            seen += 1;
        }
    }
    for name in ["landlock", "process"] {
        let file = root().join(format!("{name}.json"));
        Kind::new(name).check(&parsed(&file)).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
    assert!(seen >= 8 * 2, "both architectures: {seen} files");
}

/// What the schema refuses, the reader refuses, so that an editor and a build say the same.
#[test]
fn schema_and_reader_refuse_the_same_mistakes() {
    let rule = json!({"syscall": "read", "comment": "a reason that is one"});
    let condition = json!({"index": 0, "type": "dword", "op": "eq", "val": 1, "comment": "ONE"});
    let with = |key: &str, value: Value| {
        let mut rule = rule.clone();
        rule[key] = value;
        rule
    };
    let condition_with = |key: &str, value: Value| {
        let mut condition = condition.clone();
        condition[key] = value;
        with("args", json!([condition]))
    };
    let filter =
        |rule: Value| json!({"netd": {"mismatch_action": "kill_process", "match_action": "allow", "filter": [rule]}});
    let kind = Kind::new("filter");
    let read = |value: &Value| {
        let text = serde_json::to_string_pretty(value).unwrap();
        Set::from_texts("a test", [("seccomp/x86_64/netd.json".to_owned(), text)]).map_err(|e| e.to_string()).and_then(
            |set| match policy_set::read::house_rules(&set).first() {
                None => Ok(set),
                Some(broken) => Err(broken.clone()),
            },
        )
    };
    for good in [rule.clone(), with("args", json!([condition])), condition_with("op", json!({"masked_eq": 3}))] {
        let good = filter(good);
        kind.check(&good).unwrap();
        read(&good).unwrap();
    }
    for (what, bad) in [
        ("an unknown key", filter(with("argz", json!([])))),
        ("no reason", filter(json!({"syscall": "read"}))),
        ("a reason that is none", filter(with("comment", json!("because")))),
        ("a name that cannot be one", filter(with("syscall", json!("READ")))),
        ("an argument that none has", filter(condition_with("index", json!(6)))),
        ("another width", filter(condition_with("type", json!("word")))),
        ("another comparison", filter(condition_with("op", json!("in")))),
        ("a negative value", filter(condition_with("val", json!(-1)))),
        ("a value that is a text", filter(condition_with("val", json!("0x1")))),
        ("an empty explanation", filter(with("unexercised", json!("")))),
        ("no rules", json!({"netd": {"mismatch_action": "kill_process", "match_action": "allow", "filter": []}})),
        ("a weaker default", json!({"netd": {"mismatch_action": "log", "match_action": "allow", "filter": [rule]}})),
        ("no default", json!({"netd": {"match_action": "allow", "filter": [rule]}})),
    ] {
        assert!(kind.check(&bad).is_err(), "{what}: the schema takes it");
        assert!(read(&bad).is_err(), "{what}: the reader takes it");
    }
}
