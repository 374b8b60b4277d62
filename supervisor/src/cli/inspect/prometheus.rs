//! What a verification found, in Prometheus' text format.

use super::verify::Verified;
use std::fmt::Write;

/// A value, and that of the label that comes after [`LABELS`]; none: the family has nothing to say of this process.
type Value = fn(&Verified) -> Option<(usize, Option<&str>)>;

/// A family: its name, its labels, and what it means. All are gauges. `docs/metrics.md` has a row for each.
struct Family {
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    value: Value,
}

/// The labels of every family.
const LABELS: [&str; 3] = ["vm", "process", "pid"];

const FAMILIES: &[Family] = &[
    Family {
        name: "vmsup_verify_ok",
        labels: &LABELS,
        help: "1 for a process that is as its policy declares, else 0.",
        value: |v| Some((usize::from(v.is_good()), None)),
    },
    Family {
        name: "vmsup_verify_differences",
        labels: &LABELS,
        help: "In how many ways a process is not as its policy declares.",
        value: |v| Some((v.differences.len(), None)),
    },
    Family {
        name: "vmsup_verify_filters_read_back",
        labels: &LABELS,
        help: "1 where the installed filters were read back and compared, which takes root.",
        value: |v| Some((usize::from(v.filters_read_back), None)),
    },
    Family {
        name: "vmsup_verify_policy_info",
        labels: &["vm", "process", "pid", "sha256"],
        help: "SHA-256 of the policy section of the program that a worker runs; always 1.",
        value: |v| Some((1, Some(v.section_sha256.as_deref()?))),
    },
];

/// All families, each with its help and type.
pub fn text(all: &[Verified]) -> String {
    let mut out = String::new();
    for Family { name, labels, help, value } in FAMILIES {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
        for one in all {
            let Some((value, more)) = value(one) else { continue };
            let pid = one.pid.to_string();
            let told = [one.vm.as_deref().unwrap_or_default(), &one.process, &pid];
            let told = labels.iter().zip(told.into_iter().chain(more));
            let told: Vec<String> = told.map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
            let _ = writeln!(out, "{name}{{{}}} {value}", told.join(","));
        }
    }
    out
}

/// A label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_a_line_for_each_process() {
        let one = Verified {
            vm: Some("a\"b".into()),
            process: "worker".into(),
            pid: 7,
            section_sha256: Some("ab".into()),
            differences: vec!["x".into()],
            not_seen: vec![],
            filters_read_back: true,
        };
        let text = text(&[one]);
        assert!(text.contains("vmsup_verify_ok{vm=\"a\\\"b\",process=\"worker\",pid=\"7\"} 0\n"), "{text}");
        assert!(text.contains("vmsup_verify_differences{vm=\"a\\\"b\",process=\"worker\",pid=\"7\"} 1\n"), "{text}");
        assert!(text.contains(",sha256=\"ab\"} 1\n"), "{text}");
        assert_eq!(text.matches("# TYPE ").count(), 4);
    }

    #[test]
    fn the_manual_has_a_row_for_each_and_no_other() {
        let manual = include_str!("../../../../docs/metrics.md");
        let rows: Vec<&str> = manual.lines().filter(|line| line.starts_with("| `vmsup_verify_")).collect();
        let expected: Vec<String> = FAMILIES
            .iter()
            .map(|Family { name, labels, help, .. }| {
                let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
                format!("| `{name}` | gauge | {} | {help} |", labels.join(", "))
            })
            .collect();
        assert_eq!(rows, expected, "docs/metrics.md should have these rows:\n{}", expected.join("\n"));
    }

    #[test]
    fn names_follow_the_conventions() {
        for Family { name, labels, help, .. } in FAMILIES {
            assert!(name.starts_with("vmsup_verify_") && !name.ends_with("_total"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(help.ends_with('.') && !help.contains(['\n', '\\', '|']), "{name}");
            assert_eq!(labels[..LABELS.len()], LABELS, "{name}");
        }
    }
}
