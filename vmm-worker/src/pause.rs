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
