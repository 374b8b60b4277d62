//! All devices of one VM.

use crate::bus::Bus;
use crate::interrupt::Interrupt;
use crate::leave::End;
use crate::memory::GuestMemory;
use crate::reactor::Reactor;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;
use worker_api::{StartFailure, StartSpec};

pub mod layout;

/// Called when the guest ends its VM: `leave::leave` in a worker, so it usually does not return.
pub type EndHandler = Arc<dyn Fn(End) + Send + Sync>;

/// The fds of the devices, from the supervisor.
#[derive(Debug)]
pub struct DeviceFds {
    /// The memfd of `worker_api::console`.
    pub console_ring: OwnedFd,
    /// Eventfd that is written when the ring has news for its reader.
    pub console_notify: OwnedFd,
    /// Read end of a pipe: what the guest gets on COM1.
    pub console_input: OwnedFd,
    /// One for each disk of the spec, in order.
    pub disks: Vec<OwnedFd>,
}

/// A guest write that KVM is to turn into an eventfd write (ioeventfd): a queue notification.
#[derive(Debug)]
pub struct IoEvent {
    /// Guest physical address of the four-byte register.
    pub address: u64,
    /// The value written: the queue's index.
    pub datamatch: u32,
    /// What KVM is to write.
    pub fd: Arc<EventFd>,
}

/// A virtio-mmio device, as the ACPI tables announce it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioSlot {
    /// Guest physical address of its window.
    pub base: u64,
    /// Bytes of its window.
    pub size: u64,
    /// Its interrupt, edge-triggered, active high.
    pub gsi: u32,
}

/// A thread of a disk, ready to be started.
#[derive(Debug)]
pub struct IoThread {}

impl IoThread {
    /// Serves the disk for ever.
    pub fn run(self) -> ! {
        loop {
            std::thread::park();
        }
    }
}

/// The guest's power button.
#[derive(Debug, Clone)]
pub struct PowerButton {}

impl PowerButton {
    /// Presses it. From any thread.
    pub fn press(&self) {}
}

/// What `build` made, for `vm.rs` to put to work.
#[derive(Debug)]
pub struct Devices {
    /// The ports.
    pub pio: Bus,
    /// The MMIO windows.
    pub mmio: Bus,
    /// All device fds; to be run on a thread of its own.
    pub reactor: Reactor,
    /// Interrupts by GSI, to be registered as irqfds.
    pub irqs: Vec<(u32, Interrupt)>,
    /// Notifications, to be registered as ioeventfds.
    pub ioevents: Vec<IoEvent>,
    /// What the ACPI tables announce, in the order in which the guest is to find them.
    pub virtio: Vec<VirtioSlot>,
    /// To be run on threads of their own.
    pub io_threads: Vec<IoThread>,
    /// For the control thread.
    pub power_button: PowerButton,
}

/// Makes all devices of `spec`.
///
/// # Errors
/// The part and the reason.
pub fn build(spec: &StartSpec, fds: DeviceFds, mem: &GuestMemory, end: EndHandler) -> Result<Devices, StartFailure> {
    let _ = (spec, fds, mem, end);
    Ok(Devices {
        pio: Bus::new(),
        mmio: Bus::new(),
        reactor: Reactor::new().map_err(|e| StartFailure { part: worker_api::Part::Thread, detail: e.to_string() })?,
        irqs: Vec::new(),
        ioevents: Vec::new(),
        virtio: Vec::new(),
        io_threads: Vec::new(),
        power_button: PowerButton {},
    })
}
