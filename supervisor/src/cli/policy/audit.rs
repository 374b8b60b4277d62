//! `vmsup policy audit`: findings, worst first.

use super::which::Which;
use crate::cli::failure::{FAILED, Failure};
use crate::cli::output::{print, print_json};
use crate::cli::sanitize::line;
use clap::{Args, ValueEnum};
use policy_audit::audit::{KINDS, audit};
use policy_audit::finding::{Finding, Severity};
use policy_audit::sarif::sarif;

/// Options of `policy audit`.
#[derive(Debug, Args)]
pub struct Options {
    /// The least severity that makes the exit status 1.
    #[arg(long, value_name = "LEVEL", default_value = "low")]
    severity: Level,
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
    /// Print SARIF 2.1.0, as code hosts and editors take findings.
    #[arg(long, conflicts_with = "json")]
    sarif: bool,
}

/// A severity, on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Level {
    Info,
    Low,
    Medium,
    High,
}

/// `vmsup policy audit`.
pub fn run(which: &Which, options: &Options) -> Result<(), Failure> {
    let found = audit(&which.set()?);
    if options.json {
        print_json(&found)?;
    } else if options.sarif {
        print_json(&sarif(&found, env!("CARGO_PKG_VERSION")))?;
    } else {
        print(text(&found))?;
    }
    let least = match options.severity {
        Level::Info => Severity::Info,
        Level::Low => Severity::Low,
        Level::Medium => Severity::Medium,
        Level::High => Severity::High,
    };
    let bad = found.iter().any(|f| f.accepted.is_none() && f.severity >= least);
    if bad { Err(Failure::status(FAILED)) } else { Ok(()) }
}

/// For people: by what each finding counts as, then a line of totals.
fn text(found: &[Finding]) -> String {
    let mut out = String::new();
    let mut totals = Vec::new();
    for (severity, name) in
        [(Severity::High, "high"), (Severity::Medium, "medium"), (Severity::Low, "low"), (Severity::Info, "info")]
    {
        let these: Vec<&Finding> = found.iter().filter(|f| f.counts_as() == severity).collect();
        totals.push(format!("{} {name}", these.len()));
        for f in these {
            let place = f.line.map_or(f.file.clone(), |n| format!("{}:{n}", f.file));
            out.push_str(&format!("{name:<7} {}  {}  {}\n", line(&place), f.id, line(&f.message)));
            let help = KINDS.iter().find(|k| k.id == f.id).map_or("", |k| k.help);
            match &f.accepted {
                Some(why) => out.push_str(&format!("        explained: {}\n", line(why))),
                None => out.push_str(&format!("        {help}\n")),
            }
        }
    }
    let explained = found.iter().filter(|f| f.accepted.is_some()).count();
    out.push_str(&format!("Findings: {} ({explained} of them explained)\n", totals.join(", ")));
    out
}
