//! A finding.

use policy_set::arch::Arch;
use serde::Serialize;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Could be tighter.
    Low,
    /// A wide right, or a rule that nothing shows to be needed.
    Medium,
    /// A way out, or a policy that does not do what it says.
    High,
}

/// Something that an audit noticed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What kind, `dangerous-unconstrained`: stable, and what `accept` in a file names.
    pub id: &'static str,
    /// How much it matters, were it not explained.
    pub severity: Severity,
    /// The architecture, where it is about one.
    pub arch: Option<Arch>,
    /// The filter, or the process.
    pub filter: String,
    /// The rule, as `Rule::key` says it, where it is about one.
    pub rule: Option<String>,
    /// The file, relative to the set.
    pub file: String,
    /// Line in that file, from 1, where it is about a rule.
    pub line: Option<u32>,
    /// One sentence.
    pub message: String,
    /// Why it is as it is, where the file explains it.
    pub accepted: Option<String>,
}

impl Finding {
    /// How much it matters as things are: what the file explains is for information.
    pub fn counts_as(&self) -> Severity {
        if self.accepted.is_some() { Severity::Info } else { self.severity }
    }
}
