//! Findings in SARIF 2.1.0 (OASIS, Static Analysis Results Interchange Format), as code hosts and editors take them.
//!
//! What a file explains itself is a result with an accepted suppression, so that it is shown as closed, with the reason.

use crate::audit::KINDS;
use crate::finding::{Finding, Severity};
use serde_json::{Value, json};

/// One run of `vmsup policy audit`. Files are relative to the set's folder, which is `POLICIES` there.
pub fn sarif(findings: &[Finding], version: &str) -> Value {
    let rules: Vec<Value> = KINDS
        .iter()
        .map(|kind| {
            json!({
                "id": kind.id,
                "shortDescription": { "text": kind.title },
                "help": { "text": kind.help },
                "defaultConfiguration": { "level": level(kind.severity) },
            })
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": { "name": "vmsup policy audit", "version": version, "rules": rules } },
            "originalUriBaseIds": { "POLICIES": { "description": { "text": "The folder of the policy files." } } },
            "columnKind": "unicodeCodePoints",
            "results": findings.iter().map(result).collect::<Vec<Value>>(),
        }],
    })
}

fn result(finding: &Finding) -> Value {
    let mut place = json!({ "artifactLocation": { "uri": uri(&finding.file), "uriBaseId": "POLICIES" } });
    if let Some(line) = finding.line {
        place["region"] = json!({ "startLine": line });
    }
    let mut result = json!({
        "ruleId": finding.id,
        "level": level(finding.severity),
        "message": { "text": finding.message },
        "locations": [{ "physicalLocation": place }],
        "partialFingerprints": { "finding/v1": fingerprint(finding) },
    });
    if let Some(index) = KINDS.iter().position(|k| k.id == finding.id) {
        result["ruleIndex"] = json!(index);
    }
    if let Some(why) = &finding.accepted {
        result["suppressions"] = json!([{ "kind": "inSource", "status": "accepted", "justification": why }]);
    }
    result
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::High => "error",
        Severity::Medium | Severity::Low => "warning",
        Severity::Info => "note",
    }
}

/// What stays the same when lines move.
fn fingerprint(finding: &Finding) -> String {
    let arch = finding.arch.map_or("", |a| a.name());
    format!("{}:{arch}:{}:{}", finding.id, finding.filter, finding.rule.as_deref().unwrap_or_default())
}

/// A relative reference, RFC 3986: what may not stand in a path is percent-encoded.
fn uri(file: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    file.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::audit;
    use policy_set::arch::Arch;
    use policy_set::foreign;

    fn found() -> Vec<Finding> {
        let text = r#"{"a b": {"default_action": "trap", "filter_action": "allow", "filter": [
            {"syscall": "ptrace"}, {"syscall": "exit_group", "comment": "the end of all"}]}}"#;
        audit(&foreign::read("odd name.json", Arch::X86_64, text).unwrap())
    }

    #[test]
    fn every_result_names_a_rule_of_the_run_and_a_place() {
        let found = found();
        assert!(found.len() >= 2, "{found:?}");
        let document = sarif(&found, "1.2.3");
        assert_eq!(document["version"], "2.1.0");
        let run = &document["runs"][0];
        let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
        assert_eq!(rules.len(), KINDS.len());
        let results = run["results"].as_array().unwrap();
        assert_eq!(results.len(), found.len());
        for result in results {
            let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
            assert_eq!(rules[index]["id"], result["ruleId"]);
            assert!(["error", "warning", "note"].contains(&result["level"].as_str().unwrap()));
            assert!(!result["message"]["text"].as_str().unwrap().is_empty());
            let place = &result["locations"][0]["physicalLocation"];
            assert_eq!(place["artifactLocation"]["uri"], "odd%20name.json");
            assert!(place["region"].is_null() || place["region"]["startLine"].as_u64() >= Some(1));
        }
        let prints: std::collections::BTreeSet<&str> =
            results.iter().map(|r| r["partialFingerprints"]["finding/v1"].as_str().unwrap()).collect();
        assert_eq!(prints.len(), results.len(), "one for each finding");
    }

    #[test]
    fn what_a_file_explains_is_a_suppressed_result() {
        let mut found = found();
        found[0].accepted = Some("it cannot be otherwise".to_owned());
        let document = sarif(&found, "1");
        let results = &document["runs"][0]["results"];
        assert_eq!(results[0]["suppressions"][0]["justification"], "it cannot be otherwise");
        assert!(results[1]["suppressions"].is_null());
    }
}
