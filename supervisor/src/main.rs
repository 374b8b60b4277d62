//! `vmsup`: the command line and, as `vmsup serve`, the supervisor.
#![forbid(unsafe_code)]

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
