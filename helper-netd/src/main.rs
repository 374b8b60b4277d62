//! `vmsup-netd`: its contract is fixed (`helper-netd/api`); the program is not there yet, and says so.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    eprintln!(
        "vmsup-netd: this release has no network helper yet (protocol {} {} is reserved for it); \
         remove \"nets\" from the VM's file to start it without a network",
        netd_api::NAME,
        netd_api::VERSION
    );
    std::process::ExitCode::from(2)
}
