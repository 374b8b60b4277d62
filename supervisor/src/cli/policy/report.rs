//! `vmsup policy report`: the whole set as a document.

use super::which::Which;
use crate::cli::failure::{Failure, notice};
use crate::cli::output::print;
use crate::cli::sanitize::without_errno;
use clap::{Args, ValueEnum, ValueHint};
use policy_audit::audit::audit;
use policy_audit::finding::Finding;
use policy_audit::report;
use policy_set::arch::Arch;
use policy_set::model::Set;
use std::io::IsTerminal;
use std::path::PathBuf;

/// Options of `policy report`.
#[derive(Debug, Args)]
pub struct Options {
    /// How it is written.
    #[arg(long, value_enum, default_value_t = Format::Html)]
    format: Format,
    /// Where to, instead of standard output.
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,
    /// A set on disk (a `policies` directory, or the one that has it), instead of the one compiled in.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// Its policies for this architecture, instead of this host's: x86_64, aarch64, or all.
    #[arg(long, value_name = "ARCH", value_parser = arches)]
    arch: Option<Arches>,
    /// Filters of others: a file in seccompiler's JSON, as Firecracker's projects keep it.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "dir")]
    foreign: Option<PathBuf>,
    /// A date, or anything else that tells this report from others; without it the same set gives the same bytes.
    #[arg(long, value_name = "TEXT")]
    date: Option<String>,
}

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One page that loads nothing and needs no scripts.
    Html,
    /// With GitHub's tables.
    Markdown,
}

/// Whose policies are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arches {
    All,
    One(Arch),
}

fn arches(name: &str) -> Result<Arches, String> {
    match Arch::named(name) {
        Some(arch) => Ok(Arches::One(arch)),
        None if name == "all" => Ok(Arches::All),
        None => Err("there are policies for x86_64 and aarch64; `all` shows both".to_owned()),
    }
}

/// `vmsup policy report`.
pub fn report(options: &Options) -> Result<(), Failure> {
    if options.output.is_none() && options.format == Format::Html && std::io::stdout().is_terminal() {
        return Err(Failure::input(
            "a page of HTML is not for a terminal; name a file with --output, or ask for --format markdown",
        ));
    }
    let (set, findings) = chosen(options)?;
    let about = report::Options {
        made_by: concat!("vmsup ", env!("CARGO_PKG_VERSION")).to_owned(),
        date: options.date.clone(),
    };
    let text = match options.format {
        Format::Html => report::html(&set, &findings, &about),
        Format::Markdown => report::markdown(&set, &findings, &about),
    };
    match &options.output {
        None => print(text),
        Some(path) => {
            let failed = |e| Failure::failed(without_errno(&format!("{} cannot be written ({e})", path.display())));
            std::fs::write(path, text).map_err(failed)?;
            notice(&format!("{} is written", path.display()));
            Ok(())
        }
    }
}

/// The set, and what is found in it, of the architectures that are asked for. Findings are those of the whole: that two
/// architectures differ shows in either.
fn chosen(options: &Options) -> Result<(Set, Vec<Finding>), Failure> {
    let host =
        || Arch::host().ok_or_else(|| Failure::input("this host's architecture has no policies; name one with --arch"));
    let arches = options.arch.map_or_else(|| host().map(Arches::One), Ok)?;
    let arch = match arches {
        Arches::One(arch) => Some(arch),
        Arches::All if options.foreign.is_some() => {
            return Err(Failure::input("a foreign file is for one architecture; name it with --arch"));
        }
        Arches::All => None,
    };
    let mut set = Which::of(options.dir.clone(), options.foreign.clone(), arch).set()?;
    let mut findings = audit(&set);
    if let Arches::One(wanted) = arches {
        set.filters.retain(|f| f.arch == wanted);
        set.unfiltered.retain(|u| u.arch == wanted);
        findings.retain(|f| f.arch.is_none_or(|arch| arch == wanted));
        if set.filters.is_empty() {
            return Err(Failure::input(format!("{} has no filter for {}", set.origin, wanted.name())));
        }
    }
    Ok((set, findings))
}
