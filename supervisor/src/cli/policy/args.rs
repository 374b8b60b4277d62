//! What can be asked about policies.

use super::{audit, diff, report, trace, which::Which};
use crate::cli::args::Json;
use clap::Subcommand;

/// What can be asked about policies.
#[derive(Debug, Subcommand)]
pub enum Policy {
    /// List the filters: how many system calls each allows, its budget, its compiled program.
    #[command(after_help = "Examples:
  vmsup policy ls
  vmsup policy ls --arch aarch64 --json")]
    Ls {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        json: Json,
    },
    /// Show what a process, or one of its threads, may do, and which code needs it.
    ///
    /// The system calls are grouped by what they are for, each with its conditions and its reason; for a whole process its
    /// capabilities, namespaces, resource limits, open files and landlock rules stand beside them.
    #[command(after_help = "Examples:
  vmsup policy show worker/vcpu
  vmsup policy show netd")]
    Show {
        /// worker/vcpu, worker, supervisor, netd, jailer: `vmsup policy ls` lists them.
        #[arg(value_name = "PROCESS[/THREAD]")]
        name: String,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        json: Json,
    },
    /// Ask whether a system call may be made, by which rule, and why.
    ///
    /// The compiled BPF program answers, run as the kernel runs it. For a worker's thread the filter that is put on the whole
    /// worker first is asked as well: filters stack, and a call needs both. Arguments that are left out are 0.
    ///
    /// Exit status: 0 allowed, 1 denied, 2 wrong input. With --all: 0.
    #[command(after_help = "Examples:
  vmsup policy check worker/vcpu ioctl 0 0xae80
  vmsup policy check netd openat
  vmsup policy check worker/reactor --all")]
    Check {
        /// worker/vcpu, supervisor, netd: one filter.
        #[arg(value_name = "PROCESS[/THREAD]")]
        name: String,
        /// Name of the system call.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        syscall: Option<String>,
        /// Its arguments, up to six: decimal, 0x hexadecimal, or negative.
        #[arg(value_name = "ARG", num_args = 0..=6, value_parser = argument, allow_negative_numbers = true)]
        args: Vec<u64>,
        /// List every system call of the architecture instead.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        json: Json,
    },
    /// Look for what is dangerous, too much or unexplained in a set, on all of its architectures.
    ///
    /// What a file explains itself (`accept`) is shown as information. Memory and namespaces are judged by asking the
    /// compiled filter. A foreign set (--foreign) is judged by the same measures.
    ///
    /// Exit status: 0 when nothing is left unexplained, 1 when something is, 2 for wrong input.
    #[command(after_help = "Examples:
  vmsup policy audit
  vmsup policy audit --dir policies --severity medium
  vmsup policy audit --sarif > audit.sarif
  vmsup policy audit --foreign vmm.json --arch x86_64")]
    Audit {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        options: audit::Options,
    },
    /// Tell what two sets of policies permit differently.
    ///
    /// For whom which system calls, arguments and rights became possible or impossible, by what the compiled programs answer:
    /// order, spacing, comments and the structure of files never show. A side is a directory, a file in seccompiler's format,
    /// a program (vmsup of another release, which is not run), `built-in`, or a revision in git.
    ///
    /// Exit status: 0 no difference, 1 differences, 2 wrong input.
    #[command(after_help = "Examples:
  vmsup policy diff built-in policies
  vmsup policy diff vmsup-0.1 vmsup-0.2
  vmsup policy diff --git v0.1..HEAD")]
    Diff(diff::Options),
    /// Write all policies as one document: a page of HTML that loads nothing and needs no scripts, or Markdown.
    ///
    /// Shows the processes and how they are confined, who may call what by risk, each rule with its reason and its place,
    /// findings, capabilities, namespaces, limits, landlock, nftables, and what of that can be read from outside. The same
    /// set gives the same bytes.
    #[command(after_help = "Examples:
  vmsup policy report --output report.html
  vmsup policy report --format markdown --arch all
  vmsup policy report --foreign seccomp.json --output theirs.html")]
    Report {
        #[command(flatten)]
        options: report::Options,
    },
    /// Record what processes of a trace build call, and propose the policy that this needs.
    ///
    /// A trace build (`make trace-build`, target/bin/trace) announces every system call instead of filtering any: it is for
    /// tests, on a host of your own. Its processes wait for a tracer, so begin with this command. As root it sees all of
    /// them, netd included; else those of your own user. One tracer at a time.
    ///
    /// Shows, for each filter, what was called with the arguments that tell what a call does, how often, and by which rule;
    /// then what the smallest policy for that is, as a difference to today's. It knows what it saw, not all that there is.
    ///
    /// Exit status: 0 done, 1 when the command failed or --fail-on-new found something, 2 when the processes are of no trace
    /// build.
    #[command(
        override_usage = "vmsup policy trace [OPTIONS] VM\n       vmsup policy trace [OPTIONS] -- COMMAND…",
        after_help = "Examples:
  vmsup policy trace -- target/bin/trace/vmsup run --rm examples/hello.json
  vmsup policy trace --json web1
  vmsup policy trace --fail-on-new --record policies/recorded/x86_64.json -- tests/traced"
    )]
    Trace {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        options: trace::Options,
    },
}

/// An argument of a system call: 64 bits.
fn argument(text: &str) -> Result<u64, String> {
    let parsed = match (text.strip_prefix("0x"), text.strip_prefix('-')) {
        (Some(digits), _) => u64::from_str_radix(digits, 16).ok(),
        (_, Some(_)) => text.parse::<i64>().ok().map(i64::cast_unsigned),
        _ => text.parse().ok(),
    };
    parsed.ok_or_else(|| "a number of 64 bits, decimal or 0x hexadecimal".to_owned())
}
