//! `vmsup doctor`: what this host can do, what is in the way, why it matters, and what mends it.
//!
//! Starts nothing and changes nothing. Each check is a function of what it read, so that a test can show it broken.

mod install;
mod jail;
mod kvm;
mod network;

use super::client::Client;
use super::failure::{FAILED, Failure};
use super::output::{print, print_json};
use super::sanitize::{line, without_errno};
use serde::Serialize;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// VMs start, but something is weaker, slower or missing.
    Warning,
    /// VMs cannot be started; in the group `network`, VMs with networks cannot.
    Failure,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name.
    pub check: &'static str,
    /// How it came out.
    pub result: Level,
    /// What was found.
    pub finding: String,
    /// Why it matters; empty where all is well.
    pub why: String,
    /// The command or change that mends it; empty where nothing is to be mended.
    pub fix: String,
}

impl Check {
    /// All is well.
    pub fn ok(check: &'static str, finding: impl Into<String>) -> Check {
        Check { check, result: Level::Ok, finding: finding.into(), why: String::new(), fix: String::new() }
    }

    /// Something is weaker than it could be.
    pub fn warning(
        check: &'static str,
        finding: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Check {
        let plain = |text: String| without_errno(&text);
        Check {
            check,
            result: Level::Warning,
            finding: plain(finding.into()),
            why: plain(why.into()),
            fix: plain(fix.into()),
        }
    }

    /// VMs cannot be started.
    pub fn failure(
        check: &'static str,
        finding: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Check {
        Check { result: Level::Failure, ..Check::warning(check, finding, why, fix) }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    /// No check failed.
    ok: bool,
    checks: Vec<Grouped>,
}

/// A check, and what it is about.
#[derive(Debug, Serialize)]
struct Grouped {
    /// `kvm`, `jail`, `install` or [`NETWORK`].
    group: &'static str,
    #[serde(flatten)]
    check: Check,
}

/// The group that VMs without networks do not need.
const NETWORK: &str = "network";

impl Report {
    fn new(groups: Vec<(&'static str, Vec<Check>)>) -> Report {
        let grouped =
            |(group, checks): (&'static str, Vec<Check>)| checks.into_iter().map(move |check| Grouped { group, check });
        let checks: Vec<Grouped> = groups.into_iter().flat_map(grouped).collect();
        Report { ok: checks.iter().all(|c| c.check.result != Level::Failure), checks }
    }
}

/// `vmsup doctor`.
pub fn doctor(client: &Client, json: bool) -> Result<(), Failure> {
    let version = client.try_connect().and_then(|mut api| {
        api.call::<vmsup::api::types::VersionInfo>("GET", "/v1/version")
            .map_err(|e| std::io::Error::other(Failure::from(e).sentence.unwrap_or_default()))
    });
    let user = install::User::current();
    let report = Report::new(vec![
        ("kvm", kvm::checks(&user)),
        ("jail", jail::checks(&user, version.as_ref().ok())),
        ("install", install::checks(&user, client.socket(), &version)),
        (NETWORK, network::checks(&user)),
    ]);
    if json {
        print_json(&report)?;
    } else {
        print(render(&report))?;
    }
    if report.ok { Ok(()) } else { Err(Failure::status(FAILED)) }
}

fn render(report: &Report) -> String {
    let width = report.checks.iter().map(|c| c.check.check.len()).max().unwrap_or(0);
    let mut out = String::new();
    for Grouped { check, .. } in &report.checks {
        let level = match check.result {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Failure => "FAILURE",
        };
        out.push_str(&format!("{level}  {:width$}  {}\n", check.check, line(&check.finding)));
        for (label, text) in [("why", &check.why), ("fix", &check.fix)] {
            if !text.is_empty() {
                out.push_str(&format!("{:>7}    {:width$}{label}: {}\n", "", "", line(text)));
            }
        }
    }
    out.push_str(&summary(&report.checks));
    out
}

fn summary(checks: &[Grouped]) -> String {
    let count = |level| checks.iter().filter(|c| c.check.result == level).count();
    let all_of_networks = checks.iter().all(|c| c.check.result != Level::Failure || c.group == NETWORK);
    match (count(Level::Failure), count(Level::Warning)) {
        (0, 0) => "\nVMs can be started here.\n".to_owned(),
        (0, warnings) => format!("\nVMs can be started here; {warnings} warning(s).\n"),
        (failures, _) if all_of_networks => {
            format!("\nVMs without networks can be started here, others cannot: {failures} failure(s).\n")
        }
        (failures, _) => format!("\nVMs cannot be started here: {failures} failure(s).\n"),
    }
}

/// A file's text without the blanks around it; `None` where it is not there.
fn read(path: &str) -> Option<String> {
    std::fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_shows_the_reason_and_the_fix_of_what_is_wrong_only() {
        let checks = || vec![Check::ok("a", "good\x1b[2J"), Check::failure("bb", "bad", "it matters", "mend it")];
        let report = Report::new(vec![("kvm", checks())]);
        assert_eq!(
            render(&report),
            "ok       a   good\\u{1b}[2J\nFAILURE  bb  bad\n             why: it matters\n             fix: mend it\n\n\
             VMs cannot be started here: 1 failure(s).\n"
        );
        let refused = Check::warning("c", std::io::Error::from_raw_os_error(13).to_string(), "", "");
        assert_eq!(refused.finding, "Permission denied");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["ok"], &json["checks"][1]["result"]), (&false.into(), &"failure".into()));
        assert_eq!(json["checks"][1]["group"], "kvm");
        let networks = Report::new(vec![(NETWORK, checks())]);
        assert!(
            render(&networks).ends_with("VMs without networks can be started here, others cannot: 1 failure(s).\n")
        );
        assert!(!networks.ok);
    }
}
