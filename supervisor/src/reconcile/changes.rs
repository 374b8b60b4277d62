//! The fields in which two files of a VM differ. Pure.

use crate::spec::VmSpec;
use serde::Serialize;
use serde_json::Value;

/// A field that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The field, as a path from the top: `disks[0].path`.
    pub field: String,
    /// As it is; none where it is not set.
    pub old: Option<Value>,
    /// As it is wanted; none where it is not set.
    pub new: Option<Value>,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |value: &Option<Value>| value.as_ref().map_or_else(|| "(not set)".to_owned(), Value::to_string);
        write!(f, "{}: {} -> {}", self.field, shown(&self.old), shown(&self.new))
    }
}

/// The fields that differ, in the order of their names.
pub fn changes(old: &VmSpec, new: &VmSpec) -> Vec<Change> {
    // A VmSpec holds strings, numbers, booleans and lists of them: there is nothing that JSON cannot say.
    let value = |spec: &VmSpec| serde_json::to_value(spec).unwrap_or_default();
    let mut found = Vec::new();
    compare(&mut found, String::new(), Some(&value(old)), Some(&value(new)));
    found
}

/// No deeper than the types of a file are.
fn compare(found: &mut Vec<Change>, field: String, old: Option<&Value>, new: Option<&Value>) {
    match (old, new) {
        (old, new) if old == new => {}
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let mut names: Vec<&String> = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))).collect();
            names.sort();
            for name in names {
                let below = if field.is_empty() { name.clone() } else { format!("{field}.{name}") };
                compare(found, below, a.get(name), b.get(name));
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            for n in 0..a.len().max(b.len()) {
                compare(found, format!("{field}[{n}]"), a.get(n), b.get(n));
            }
        }
        (old, new) => found.push(Change { field, old: old.cloned(), new: new.cloned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(more: &str) -> VmSpec {
        let text = format!(r#"{{"name":"a","cpus":1,"memory_mib":32,"boot":{{"kernel":"/k"}}{more}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    fn said(old: &str, new: &str) -> Vec<String> {
        changes(&spec(old), &spec(new)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_field_that_differs_is_named_with_its_path_and_both_values() {
        let old = r#", "disks": [{"path": "/a"}, {"path": "/b"}], "limits": {"pids_max": 8}"#;
        let new = r#", "disks": [{"path": "/c"}], "limits": {"pids_max": 9, "cpu_percent": 50}, "restart": "always""#;
        let removed = r#"disks[1]: {"engine":"auto","path":"/b","readonly":false} -> (not set)"#;
        assert_eq!(
            said(old, new),
            [
                r#"disks[0].path: "/a" -> "/c""#,
                removed,
                "limits.cpu_percent: (not set) -> 50",
                "limits.pids_max: 8 -> 9",
                r#"restart: (not set) -> "always""#,
            ]
        );
    }

    #[test]
    fn equal_files_differ_in_nothing_and_others_in_something() {
        let files =
            ["", r#", "restart": "always""#, r#", "disks": [{"path": "/a"}]"#, r#", "console": {"input": true}"#];
        for (n, old) in files.iter().enumerate() {
            for (m, new) in files.iter().enumerate() {
                assert_eq!(said(old, new).is_empty(), n == m, "{old} {new}");
            }
        }
    }
}
