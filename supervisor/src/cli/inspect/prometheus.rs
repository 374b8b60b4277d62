//! What a verification found, in Prometheus' text format.

use super::verify::Verified;
use std::fmt::Write;

/// All families, each with its help and type.
pub fn text(all: &[Verified]) -> String {
    let mut out = String::new();
    let mut family = |name: &str, help: &str, value: &dyn Fn(&Verified) -> Option<(String, usize)>| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
        for one in all {
            if let Some((more, value)) = value(one) {
                let vm = escaped(one.vm.as_deref().unwrap_or_default());
                let _ = writeln!(
                    out,
                    "{name}{{vm=\"{vm}\",process=\"{}\",pid=\"{}\"{more}}} {value}",
                    one.process, one.pid
                );
            }
        }
    };
    let plain = |value: usize| Some((String::new(), value));
    family("vmsup_verify_ok", "Whether a process is as its policy declares.", &|v| plain(usize::from(v.is_good())));
    family("vmsup_verify_differences", "Differences of a process to its policy.", &|v| plain(v.differences.len()));
    family(
        "vmsup_verify_filters_read_back",
        "Whether the installed filters were read back and compared, which takes root.",
        &|v| plain(usize::from(v.filters_read_back)),
    );
    family("vmsup_verify_policy_info", "SHA-256 of the policy section of the program that a worker runs.", &|v| {
        Some((format!(",sha256=\"{}\"", v.section_sha256.as_ref()?), 1))
    });
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
}
