//! One vCPU: KVM_RUN and the buses.
//!
//! Runs on a thread of its own, under `worker-vcpu.json`. It does no file I/O and never allocates: a crash is told of
//! in [`Words`], on the stack. Everything that an exit says comes from the guest. Before each entry it passes the gate
//! (`pause.rs`), where a paused VM's vCPUs wait.

use crate::bus::Bus;
use crate::devices::EndHandler;
use crate::leave::{End, Words};
use crate::pause::Gate;
use crate::stats::Exits;
use crate::sys;
use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::sync::Arc;

/// Where a vCPU is after a reset. On AMD a vCPU is there after a triple fault as well.
const RESET_VECTOR: u64 = 0xfff0;

/// What all vCPUs of a VM share.
#[derive(Clone)]
pub struct Board {
    /// The ports.
    pub pio: Arc<Bus>,
    /// The MMIO windows.
    pub mmio: Arc<Bus>,
    /// Who hears that the guest has ended.
    pub end: EndHandler,
    /// What each passes before it enters the guest.
    pub gate: Arc<Gate>,
    /// One for each vCPU.
    pub exits: Arc<[Exits]>,
}

/// A vCPU that is ready to run.
pub struct Vcpu {
    fd: VcpuFd,
    index: u8,
    board: Board,
}

impl Vcpu {
    /// vCPU number `index` on this board.
    pub fn new(fd: VcpuFd, index: u8, board: Board) -> Self {
        Vcpu { fd, index, board }
    }

    /// Runs the guest until it ends.
    pub fn run(mut self) -> ! {
        loop {
            if self.board.gate.pass() {
                // The guest's watchdog is not to take the pause for a hang. A guest without KVM's clock has nothing to be told.
                let _ = self.fd.kvmclock_ctrl();
            }
            if let Some(end) = self.step() {
                self.board.exits[usize::from(self.index)].other.one();
                (self.board.end)(end);
                // The handler of a worker ends the process.
                std::thread::park();
            }
        }
    }

    /// Enters the guest once and does what it left for. What it does not come back from counts as another reason.
    fn step(&mut self) -> Option<End> {
        let Board { mmio, exits, .. } = &self.board;
        let exits = &exits[usize::from(self.index)];
        match self.fd.run() {
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => {
                exits.pio.one();
                self.port_access();
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                exits.mmio.one();
                mmio.read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                exits.mmio.one();
                mmio.write(address, data);
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => exits.interrupted.one(),
            // A signal, or a vCPU that was woken before its start-up interrupt: enter again.
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => exits.interrupted.one(),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => return Some(End::Shutdown),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return Some(End::Reset),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => {
                return Some(self.crash("the guest says it crashed"));
            }
            Ok(VcpuExit::Shutdown) => return Some(self.crash("triple fault")),
            Ok(VcpuExit::Hlt) => return Some(self.crash("halted, and nothing can wake it")),
            Ok(VcpuExit::InternalError) => {
                let code = sys::internal_error(&mut self.fd);
                let what = if code == 1 { "KVM cannot emulate an instruction" } else { "internal error of KVM" };
                return Some(self.crash(what));
            }
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return Some(self.crash_with(format_args!("KVM cannot enter the guest (reason {reason:#x})")));
            }
            Ok(VcpuExit::MemoryFault { gpa, .. }) => {
                return Some(self.crash_with(format_args!("guest memory at {gpa:#x} is not there")));
            }
            Ok(other) => {
                let words = Words::new(format_args!("KVM exit that is not handled: {other:?}"));
                return Some(self.crash(words.as_str()));
            }
            Err(error) => return Some(self.crash_with(format_args!("KVM_RUN failed: {error}"))),
        }
        None
    }
    /// One exit may hold several accesses of a string instruction; the device sees them one by one.
    fn port_access(&mut self) {
        let access = sys::port_access(&mut self.fd);
        for data in access.data.chunks_mut(access.width) {
            if access.input {
                self.board.pio.read(access.port.into(), data);
            } else {
                self.board.pio.write(access.port.into(), data);
            }
        }
    }

    fn crash(&self, what: &str) -> End {
        self.crash_with(format_args!("{what}"))
    }

    fn crash_with(&self, what: std::fmt::Arguments<'_>) -> End {
        let index = self.index;
        End::Crash(match self.fd.get_regs() {
            Ok(regs) if regs.rip != RESET_VECTOR => {
                Words::new(format_args!("{what} at rip {:#x}, vCPU {index}", regs.rip))
            }
            _ => Words::new(format_args!("{what}, vCPU {index}")),
        })
    }
}
