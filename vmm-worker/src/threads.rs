//! The threads of a VM, and the moment at which it begins.
//!
//! ```text
//! main      make all ──┬─ narrow ─┬─ reply, control socket …
//! reactor        made ─┼─ narrow ─┼─ devices …
//! io0 …          made ─┼─ narrow ─┼─ disk …
//! vcpu0 …        made ─┴─ narrow ─┴─ guest …
//! ```
//!
//! No thread narrows before all are made, because a narrowed one can make none; no vCPU runs before all are narrowed,
//! so the guest never meets a thread with more rights than it keeps.

use crate::confine;
use crate::devices::{EndHandler, IoThread};
use crate::leave::{End, Words};
use crate::reactor::Reactor;
use crate::vcpu::Vcpu;
use policies::Filter;
use std::convert::Infallible;
use std::sync::{Arc, Barrier};
use std::thread::Builder;

/// Stack of every thread, bytes. Only what is touched costs memory.
const STACK: usize = 128 * 1024;

/// The two moments that all threads wait for.
struct Gates {
    made: Barrier,
    narrowed: Barrier,
}

/// What the threads are to do.
pub struct Work {
    /// All vCPUs, in order.
    pub vcpus: Vec<Vcpu>,
    /// All device fds.
    pub reactor: Reactor,
    /// The disks' threads.
    pub io: Vec<IoThread>,
    /// Where a reactor that fails reports.
    pub end: EndHandler,
}

/// All threads are made and wait; the calling thread is the last that is missing.
pub struct Ready(Arc<Gates>);

/// Makes all threads.
///
/// # Errors
/// One cannot be made: what `clone3(2)` or `mmap(2)` say. The others wait for ever; the process has to leave.
pub fn make(work: Work) -> std::io::Result<Ready> {
    let threads = 1 + 1 + work.io.len() + work.vcpus.len();
    let gates = Arc::new(Gates { made: Barrier::new(threads), narrowed: Barrier::new(threads) });
    let (mut reactor, end) = (work.reactor, work.end);
    spawn("reactor".into(), &policies::WORKER_REACTOR, &gates, move || {
        let Err(error) = reactor.run();
        end(End::Crash(Words::new(format_args!("{error}"))));
        loop {
            std::thread::park();
        }
    })?;
    for (n, thread) in work.io.into_iter().enumerate() {
        spawn(format!("io{n}"), &policies::WORKER_IO, &gates, move || thread.run())?;
    }
    for (n, vcpu) in work.vcpus.into_iter().enumerate() {
        spawn(format!("vcpu{n}"), &policies::WORKER_VCPU, &gates, move || vcpu.run())?;
    }
    Ok(Ready(gates))
}

impl Ready {
    /// Narrows the calling thread, the control thread, with all the others, and lets the guest begin.
    pub fn go(self) {
        self.0.made.wait();
        confine::narrow(&policies::WORKER_CONTROL);
        self.0.narrowed.wait();
    }
}

fn spawn(
    name: String,
    filter: &'static Filter,
    gates: &Arc<Gates>,
    body: impl FnOnce() -> Infallible + Send + 'static,
) -> std::io::Result<()> {
    let gates = gates.clone();
    // The thread is never joined: the process ends with all of them at once.
    Builder::new().name(name).stack_size(STACK).spawn(move || -> Infallible {
        gates.made.wait();
        confine::narrow(filter);
        gates.narrowed.wait();
        body()
    })?;
    Ok(())
}
