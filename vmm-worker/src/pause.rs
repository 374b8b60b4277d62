//! Pausing a VM: all its vCPUs out of the guest, and none back in before it is resumed.
//!
//! ```text
//! control thread                          vCPU thread
//! close: gate closed, kick ─────────────► KVM_RUN returns; the exit is handled
//!        waits for all  ◄──────────────── waits at the gate
//! open:  gate open ─────────────────────► tells the guest's clock; KVM_RUN …
//! ```
//!
//! Closing waits as long as the slowest vCPU needs, and that is never long: a kick ends KVM_RUN wherever it is (in the guest,
//! halted, waiting for a start-up interrupt), and what a vCPU thread does outside of it is finite. It does no I/O but writes
//! to eventfds, and a device's lock is held by the reactor for one bounded piece of work, never across a system call that
//! waits. Neither side allocates.
//!
//! Devices go on while the gate is closed: what a disk's threads have begun is finished, packets come in as far as the guest
//! left buffers, and their interrupts wait in KVM.

use crate::sys::Kick;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The gate that every vCPU passes before it enters the guest.
#[derive(Debug, Default)]
pub struct Gate {
    /// Changed under the lock only; looked at without it by each vCPU at each exit.
    closed: AtomicBool,
    state: Mutex<State>,
    /// Another vCPU has come to wait.
    arrived: Condvar,
    /// The gate is open.
    opened: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// One for each vCPU.
    kicks: Vec<Kick>,
    /// How many vCPUs wait.
    waiting: usize,
}

impl Gate {
    /// Counts on one more vCPU. Before any of them runs.
    pub fn enroll(&self, kick: Kick) {
        self.lock().kicks.push(kick);
    }

    /// Is it closed?
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Closes the gate, and waits until every vCPU is before it.
    pub fn close(&self) {
        let mut state = self.lock();
        if !self.closed.swap(true, Ordering::AcqRel) {
            // A vCPU that looked at the gate before this finds that it must not enter, or is called out again.
            state.kicks.iter().for_each(Kick::out);
        }
        while state.waiting < state.kicks.len() {
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Opens the gate.
    pub fn open(&self) {
        let state = self.lock();
        state.kicks.iter().for_each(Kick::let_in);
        self.closed.store(false, Ordering::Release);
        drop(state);
        self.opened.notify_all();
    }

    /// A vCPU's thread, about to enter the guest: waits where the gate is closed. True where it was.
    pub fn pass(&self) -> bool {
        if !self.is_closed() {
            return false;
        }
        let mut state = self.lock();
        state.waiting += 1;
        self.arrived.notify_one();
        // Also where it was closed once more before this thread came to run: it never left.
        while self.is_closed() {
            state = self.opened.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::take_kicks;
    use kvm_ioctls::Kvm;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::thread::{JoinHandle, spawn, yield_now};

    /// Threads as those of vCPUs: each is often inside for a while, and passes the gate before it goes in again.
    struct Bench {
        gate: Arc<Gate>,
        inside: Arc<AtomicUsize>,
        entries: Arc<AtomicUsize>,
        done: Arc<AtomicBool>,
        threads: Vec<JoinHandle<()>>,
    }

    impl Bench {
        fn new(count: u64) -> Self {
            take_kicks().unwrap();
            let vm = Kvm::new().unwrap().create_vm().unwrap();
            let [inside, entries] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
            let (gate, done) = (Arc::new(Gate::default()), Arc::new(AtomicBool::new(false)));
            let mut bench = Self { gate, inside, entries, done, threads: Vec::new() };
            for index in 0..count {
                let vcpu = vm.create_vcpu(index).unwrap();
                let (gate, done) = (bench.gate.clone(), bench.done.clone());
                let (inside, entries) = (bench.inside.clone(), bench.entries.clone());
                bench.threads.push(spawn(move || {
                    gate.enroll(Kick::new(&vcpu).unwrap());
                    while !done.load(Ordering::SeqCst) {
                        gate.pass();
                        inside.fetch_add(1, Ordering::SeqCst);
                        entries.fetch_add(1, Ordering::SeqCst);
                        // A long way back to the gate.
                        (0..100).for_each(|_| yield_now());
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                }));
            }
            while bench.gate.lock().kicks.len() < count as usize {
                yield_now();
            }
            bench
        }

        fn end(self) {
            self.done.store(true, Ordering::SeqCst);
            self.gate.open();
            self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        }
    }

    #[test]
    fn a_gate_is_not_closed_before_everybody_is_out() {
        let bench = Bench::new(3);
        for round in 0..200 {
            bench.gate.close();
            assert_eq!(bench.inside.load(Ordering::SeqCst), 0, "round {round}");
            assert!(bench.gate.is_closed());
            if round % 2 == 0 {
                // Closed again before anybody came to run: nobody goes in between.
                let before = bench.entries.load(Ordering::SeqCst);
                bench.gate.close();
                assert_eq!(bench.entries.load(Ordering::SeqCst), before);
            }
            bench.gate.open();
        }
        bench.end();
    }

    #[test]
    fn everybody_goes_on_when_the_gate_opens() {
        let bench = Bench::new(2);
        for _ in 0..50 {
            bench.gate.close();
            let before = bench.entries.load(Ordering::SeqCst);
            bench.gate.open();
            while bench.entries.load(Ordering::SeqCst) < before + 2 {
                yield_now();
            }
        }
        bench.end();
    }
}
