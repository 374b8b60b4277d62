//! `vmsup-jailer`: see the library's head.
#![forbid(unsafe_code)]

use jailer::options::Options;
use jailer::{inspect, serve, trial};
use std::process::ExitCode;

const USAGE: &str =
    "usage: vmsup-jailer serve --worker FILE [--pool N] [--cgroup DIR]   (started by vmsup serve, or with a
           listening SOCK_SEQPACKET socket as its standard input by a service manager; stays while a VM runs)
       vmsup-jailer inspect PID [--wire]
       vmsup-jailer try   (makes the namespaces of a jail, checks the worker's program, and leaves nothing)";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.first().map(String::as_str) {
        Some("serve") => Options::parse(&args[1..]).and_then(serve::serve),
        Some("inspect") => inspect::main(&args[1..]),
        Some("try") => trial::main(&args[1..]),
        Some("--version" | "version") => {
            println!("vmsup-jailer {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ => Err(serve::Error::Usage(USAGE.to_owned())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmsup-jailer: {error}");
            ExitCode::from(if matches!(error, serve::Error::Usage(_)) { 2 } else { 1 })
        }
    }
}
