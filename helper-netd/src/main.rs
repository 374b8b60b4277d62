//! `vmsup-netd`: see the library's head.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    helper_netd::start::main()
}
