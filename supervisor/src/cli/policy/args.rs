//! What can be asked about policies.

use super::{trace, which::Which};
use clap::Subcommand;

/// What can be asked about policies.
#[derive(Debug, Subcommand)]
pub enum Policy {
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
    #[command(after_help = "Examples:
  vmsup policy trace -- target/bin/trace/vmsup run --rm examples/hello.json
  vmsup policy trace --json web1
  vmsup policy trace --fail-on-new --record policies/recorded/x86_64.json -- tests/trace")]
    Trace {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        options: trace::Options,
    },
}
