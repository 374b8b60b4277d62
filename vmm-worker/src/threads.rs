//! The threads of a VM, from their making to the moment at which the guest begins.
//!
//! ```text
//! main     make all ─ VM ─┬─ image, tables ─┬─ prepared ─ narrow ─┬─ reply, control socket …
//! vcpu0 …  ask KVM ───────┴─ vCPU ──────────┴─ prepared ─ narrow ─┼─ guest …
//! reactor, io0 …                              prepared ─ narrow ─┴─ devices, disks …
//! ```
//!
//! The threads are made first, so that each vCPU is made by its own thread while the main thread makes the rest. No
//! thread narrows before all are made and prepared, because a narrowed one can do neither; no vCPU runs before all are
//! narrowed, so the guest never meets a thread with more rights than it keeps.

use crate::boot::Entry;
use crate::confine;
use crate::devices::IoThread;
use crate::leave::{End, Words};
use crate::pause::Gate;
use crate::reactor::Reactor;
use crate::sys::Kick;
use crate::vcpu::{Board, Vcpu};
use crate::vm::{self, Offer, VmError};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use policies::Filter;
use std::convert::Infallible;
use std::sync::{Arc, Barrier, OnceLock};
use std::thread::Builder;

/// Stack of every thread, bytes. Only what is touched costs memory.
const STACK: usize = 128 * 1024;

/// What the threads are to do.
pub struct Work {
    /// How many vCPUs.
    pub cpus: u8,
    /// Whom the first vCPU's thread asks what a vCPU can be.
    pub kvm: Arc<Kvm>,
    /// What another worker was told of that; then this one asks nobody.
    pub offer: Option<Offer>,
    /// All device fds.
    pub reactor: Reactor,
    /// The disks' threads.
    pub io: Vec<IoThread>,
    /// For the vCPUs. A reactor that cannot go on reports to its end handler, too.
    pub board: Board,
}

/// What all threads share until the guest begins.
struct Start {
    cpus: u8,
    /// From the main thread: the VM, with its memory and interrupt controllers.
    vm: OnceLock<Arc<VmFd>>,
    /// From the main thread: the image is in place.
    entry: OnceLock<Entry>,
    /// From the first vCPU's thread; none where that failed.
    offer: OnceLock<Option<Offer>>,
    /// The first failure of a vCPU's thread.
    failure: OnceLock<VmError>,
    prepared: Barrier,
    narrowed: Barrier,
}

/// The threads of a VM, all made. The main thread is one of them.
pub struct Crew(Arc<Start>);

impl Crew {
    /// Makes all threads.
    ///
    /// # Errors
    /// One cannot be made: what `clone3(2)` or `mmap(2)` say. The others wait for ever; the process has to leave.
    pub fn make(work: Work) -> std::io::Result<Self> {
        let threads = 1 + 1 + work.io.len() + usize::from(work.cpus);
        let start = Arc::new(Start {
            cpus: work.cpus,
            vm: OnceLock::new(),
            entry: OnceLock::new(),
            offer: work.offer.map_or_else(OnceLock::new, |offer| OnceLock::from(Some(offer))),
            failure: OnceLock::new(),
            prepared: Barrier::new(threads),
            narrowed: Barrier::new(threads),
        });
        for index in 0..work.cpus {
            let kvm = (index == 0 && start.offer.get().is_none()).then(|| work.kvm.clone());
            let (board, gate) = (work.board.clone(), work.board.gate.clone());
            let prepare = move |start: &Start| start.prepare_vcpu(index, kvm, &gate);
            let run = move |vcpu: Option<VcpuFd>| match vcpu {
                Some(fd) => Vcpu::new(fd, index, board).run(),
                // The main thread has seen the failure, and does not come to let the guest begin.
                None => wait_for_ever(),
            };
            spawn(format!("vcpu{index}"), &policies::WORKER_VCPU, &start, prepare, run)?;
        }
        let (mut reactor, end) = (work.reactor, work.board.end);
        let run = move |()| {
            let Err(error) = reactor.run();
            end(End::Crash(Words::new(format_args!("{error}"))));
            wait_for_ever()
        };
        spawn("reactor".into(), &policies::WORKER_REACTOR, &start, |_| (), run)?;
        for (n, thread) in work.io.into_iter().enumerate() {
            spawn(format!("io{n}"), &policies::WORKER_IO, &start, |_| (), move |()| thread.run())?;
        }
        Ok(Crew(start))
    }

    /// Hands the VM to the vCPUs' threads. Once, after its interrupt controllers were made.
    pub fn give_vm(&self, vm: Arc<VmFd>) {
        let _ = self.0.vm.set(vm);
    }

    /// Tells the first vCPU where the guest begins, and waits until all threads are prepared. Once.
    ///
    /// # Errors
    /// A vCPU could not be made.
    pub fn prepare(&self, entry: Entry) -> Result<(), &VmError> {
        let _ = self.0.entry.set(entry);
        self.0.prepared.wait();
        self.0.failure.get().map_or(Ok(()), Err)
    }

    /// Narrows the calling thread, the control thread, with all the others, and lets the guest begin.
    pub fn go(self) {
        confine::narrow(&policies::WORKER_CONTROL);
        self.0.narrowed.wait();
    }
}

impl Start {
    /// What a vCPU's thread does before it narrows. The first asks KVM what a vCPU can be, for all (it has `kvm`).
    fn prepare_vcpu(&self, index: u8, kvm: Option<Arc<Kvm>>, gate: &Gate) -> Option<VcpuFd> {
        if let Some(kvm) = kvm {
            let offer = Offer::ask(&kvm).map_err(|error| self.failure.set(error)).ok();
            let _ = self.offer.set(offer);
        }
        let offer = self.offer.wait().as_ref()?;
        let vcpu = vm::create_vcpu(self.vm.wait(), offer, index, self.cpus).and_then(|mut vcpu| {
            gate.enroll(Kick::new(&vcpu).map_err(VmError::Kick)?);
            if index == 0 {
                vm::enter(&mut vcpu, *self.entry.wait());
            }
            Ok(vcpu)
        });
        // A failure after the first says nothing new.
        vcpu.map_err(|error| self.failure.set(error)).ok()
    }
}

fn wait_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

fn spawn<P>(
    name: String,
    filter: &'static Filter,
    start: &Arc<Start>,
    prepare: impl FnOnce(&Start) -> P + Send + 'static,
    run: impl FnOnce(P) -> Infallible + Send + 'static,
) -> std::io::Result<()> {
    let start = start.clone();
    // The thread is never joined: the process ends with all of them at once. Nor does it drop `start`: a vCPU's thread
    // that has narrowed cannot free memory, for which the allocator may call brk(2).
    Builder::new().name(name).stack_size(STACK).spawn(move || -> Infallible {
        let prepared = prepare(&start);
        start.prepared.wait();
        confine::narrow(filter);
        start.narrowed.wait();
        run(prepared)
    })?;
    Ok(())
}
