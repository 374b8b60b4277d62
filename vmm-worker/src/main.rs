//! `vmsup-worker`: confines itself, then waits to be told which VM it is.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use vmm_worker::control::Listener;
use vmm_worker::{confine, leave, sys};

fn main() -> ExitCode {
    // First of all: exec has just made the process dumpable.
    if let Err(error) = sys::set_undumpable() {
        leave::leave(&leave::End::Failed(format!("the worker cannot protect itself: {error}").into()));
    }
    leave::install_panic_hook();
    sys::default_fault_signals();
    if let Err(error) = sys::take_kicks() {
        leave::leave(&leave::End::Failed(format!("the worker cannot make its vCPUs interruptible: {error}").into()));
    }
    sys::one_heap();
    // exec by fd leaves the fd's number as the name. The jailer goes by this one: it ends what is empty with its supervisor.
    sys::name_thread(c"vmsup-warm");
    match Listener::inherited() {
        Ok(listener) => {
            confine::at_start();
            listener.listen();
            leave::report(format_args!("ready"));
            listener.serve()
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}
