//! All devices of one VM.

use crate::bus::{Bus, BusError};
use crate::interrupt::Interrupt;
use crate::leave::End;
use crate::memory::GuestMemory;
use crate::reactor::Reactor;
use console::ConsoleRing;
use power::{Keyboard, PowerDevice};
use serial::{Com1, ConsoleInput};
use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::EventFd;
use worker_api::{Part, StartFailure, StartSpec};

pub mod console;
pub mod layout;
pub mod power;
pub mod serial;

pub use power::PowerButton;

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
    let _ = (spec, mem);
    let failed = |part: Part| move |why: &dyn std::fmt::Display| StartFailure { part, detail: why.to_string() };
    let reactor = Reactor::new().map_err(|e| failed(Part::Thread)(&e))?;
    let power_line = Interrupt::new().map_err(|e| failed(Part::Thread)(&e))?;
    let power_button = PowerButton::new(power_line.clone());
    let mut devices = Devices {
        pio: Bus::new(),
        mmio: Bus::new(),
        reactor,
        irqs: vec![(layout::GED_GSI, power_line)],
        ioevents: Vec::new(),
        virtio: Vec::new(),
        io_threads: Vec::new(),
        power_button: power_button.clone(),
    };
    add_power(&mut devices, power_button, end).map_err(|e| failed(Part::Thread)(&e))?;
    add_console(&mut devices, fds.console_ring, fds.console_notify, fds.console_input)
        .map_err(|e| failed(Part::Console)(&*e))?;
    Ok(devices)
}

fn add_power(devices: &mut Devices, button: PowerButton, end: EndHandler) -> Result<(), BusError> {
    let keyboard = Arc::new(Mutex::new(Keyboard::new(end.clone())));
    devices.pio.insert(layout::I8042_PORT, layout::I8042_SIZE, keyboard)?;
    let power = Arc::new(Mutex::new(PowerDevice::new(button, end)));
    devices.pio.insert(layout::POWER_PORT, layout::POWER_SIZE, power)
}

fn add_console(devices: &mut Devices, ring: OwnedFd, notify: OwnedFd, input: OwnedFd) -> Result<(), Box<dyn Error>> {
    let line = Interrupt::new()?;
    let port = Arc::new(Mutex::new(Com1::new(line.clone(), ConsoleRing::new(ring, notify)?)?));
    devices.pio.insert(layout::COM1_PORT, layout::COM1_SIZE, port.clone())?;
    devices.irqs.push((layout::COM1_GSI, line));
    devices.reactor.add(Box::new(ConsoleInput::new(port, input)))?;
    Ok(())
}
