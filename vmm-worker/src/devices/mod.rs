//! All devices of one VM.

use crate::bus::{Bus, BusError};
use crate::interrupt::Interrupt;
use crate::leave::End;
use crate::memory::GuestMemory;
use crate::reactor::Reactor;
use console::{ConsoleEnds, ConsoleRing};
use power::{Keyboard, PowerDevice};
use serial::{Com1, ConsoleInput};
use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use virtio::VirtioDevice;
use virtio::block::{self, Block, disk::Disk};
use virtio::net::{self, Net, tap::Tap};
use virtio::rng::Rng;
use virtio::transport::{NOTIFY, Transport};
use virtio::window::Window;
use virtio::worker::QueueWorker;
use vmm_sys_util::eventfd::EventFd;
use worker_api::{DiskSpec, Engine, NetSpec, Part, StartFailure, StartSpec};

pub mod console;
pub mod layout;
pub mod power;
pub mod serial;
pub mod virtio;

pub use power::PowerButton;
pub use virtio::block::engine::IoThread;

/// Called when the guest ends its VM: `leave::leave` in a worker, so it usually does not return.
pub type EndHandler = Arc<dyn Fn(End) + Send + Sync>;

/// The fds of the devices, from the supervisor.
#[derive(Debug)]
pub struct DeviceFds {
    /// The memfd of `worker_api::console`.
    pub console_ring: OwnedFd,
    /// Eventfd that is written when the ring has news for its reader.
    pub console_notify: OwnedFd,
    /// Pipe, open for reading and writing: what the guest gets on COM1.
    pub console_input: OwnedFd,
    /// One for each disk of the spec, in order.
    pub disks: Vec<OwnedFd>,
    /// One list for each network interface of the spec, in order: an fd of its TAP for each queue pair.
    pub taps: Vec<Vec<OwnedFd>>,
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
    /// For the control thread.
    pub console: ConsoleEnds,
    /// One for each disk, for the control thread.
    pub disks: Vec<Arc<block::counters::Counters>>,
    /// One for each network interface, for the control thread.
    pub nets: Vec<Arc<net::counters::Counters>>,
}

/// Makes all devices of `spec`.
///
/// # Errors
/// The part and the reason.
pub fn build(spec: &StartSpec, fds: DeviceFds, mem: &GuestMemory, end: EndHandler) -> Result<Devices, StartFailure> {
    if spec.disks.len() != fds.disks.len() {
        return Err(failure(Part::Spec, "the disks and their files differ in number"));
    }
    let queues = spec.nets.iter().map(|net| usize::from(net.queues));
    if !queues.eq(fds.taps.iter().map(Vec::len)) {
        return Err(failure(Part::Spec, "the network interfaces' queues and their TAPs differ in number"));
    }
    let power_line = Interrupt::new().map_err(|e| failure(Part::Thread, &e))?;
    let power_button = PowerButton::new(power_line.clone());
    let console = ConsoleEnds {
        ring: Arc::new(fds.console_ring.into()),
        notify: Arc::new(fds.console_notify),
        input: Arc::new(fds.console_input),
    };
    let mut devices = Devices {
        pio: Bus::new(),
        mmio: Bus::new(),
        reactor: Reactor::new().map_err(|e| failure(Part::Thread, &e))?,
        irqs: vec![(layout::GED_GSI, power_line)],
        ioevents: Vec::new(),
        virtio: Vec::new(),
        io_threads: Vec::new(),
        power_button: power_button.clone(),
        console: console.clone(),
        disks: Vec::new(),
        nets: Vec::new(),
    };
    add_power(&mut devices, power_button, end).map_err(|e| failure(Part::Thread, &e))?;
    add_console(&mut devices, console).map_err(|e| failure(Part::Console, &*e))?;
    // Disks first, in order: the first one is the guest's vda.
    for (n, (disk, file)) in (0..).zip(spec.disks.iter().zip(fds.disks)) {
        add_disk(&mut devices, disk, file, mem).map_err(|e| failure(Part::Disk(n), &*e))?;
    }
    for (n, (net, taps)) in (0..).zip(spec.nets.iter().zip(fds.taps)) {
        add_net(&mut devices, net, taps, mem).map_err(|e| failure(Part::Net(n), &*e))?;
    }
    add_virtio(&mut devices, Box::new(Rng), mem).map_err(|e| failure(Part::Thread, &*e))?;
    Ok(devices)
}

fn failure(part: Part, why: &(impl std::fmt::Display + ?Sized)) -> StartFailure {
    StartFailure { part, detail: why.to_string() }
}

fn add_power(devices: &mut Devices, button: PowerButton, end: EndHandler) -> Result<(), BusError> {
    let keyboard = Arc::new(Mutex::new(Keyboard::new(end.clone())));
    devices.pio.insert(layout::I8042_PORT, layout::I8042_SIZE, keyboard)?;
    let power = Arc::new(Mutex::new(PowerDevice::new(button, end)));
    devices.pio.insert(layout::POWER_PORT, layout::POWER_SIZE, power)
}

fn add_console(devices: &mut Devices, ends: ConsoleEnds) -> Result<(), Box<dyn Error>> {
    let line = Interrupt::new()?;
    let port = Arc::new(Mutex::new(Com1::new(line.clone(), ConsoleRing::new(ends.ring, ends.notify)?)?));
    devices.pio.insert(layout::COM1_PORT, layout::COM1_SIZE, port.clone())?;
    devices.irqs.push((layout::COM1_GSI, line));
    devices.reactor.add(Box::new(ConsoleInput::new(port, ends.input)?))?;
    Ok(())
}

fn add_disk(devices: &mut Devices, spec: &DiskSpec, file: OwnedFd, mem: &GuestMemory) -> Result<(), Box<dyn Error>> {
    let (block, threads) = match spec.engine {
        Engine::Threads => Block::new(Disk::new(file, spec.readonly)?, &spec.serial, mem)?,
    };
    devices.io_threads.extend(threads);
    devices.disks.push(block.counters());
    add_virtio(devices, Box::new(block), mem)
}

fn add_net(devices: &mut Devices, spec: &NetSpec, taps: Vec<OwnedFd>, mem: &GuestMemory) -> Result<(), Box<dyn Error>> {
    let net = Net::new(spec, taps.into_iter().map(Tap::new).collect::<Result<_, _>>()?)?;
    devices.nets.push(net.counters());
    add_virtio(devices, Box::new(net), mem)
}

/// Puts a virtio device into the next window.
fn add_virtio(devices: &mut Devices, device: Box<dyn VirtioDevice>, mem: &GuestMemory) -> Result<(), Box<dyn Error>> {
    let n = devices.virtio.len();
    if n >= layout::VIRTIO_DEVICES_MAX {
        return Err("there are more devices than interrupts".into());
    }
    let slot = VirtioSlot {
        base: layout::VIRTIO_BASE + n as u64 * layout::VIRTIO_SIZE,
        size: layout::VIRTIO_SIZE,
        gsi: layout::virtio_gsi(n),
    };
    let line = Interrupt::new()?;
    let transport = Transport::new(device, mem.clone(), line.clone())?;
    devices.ioevents.extend((0..).zip(transport.kicks()).map(|(datamatch, fd)| IoEvent {
        address: slot.base + NOTIFY,
        datamatch,
        fd: fd.clone(),
    }));
    let transport = Arc::new(Mutex::new(transport));
    devices.mmio.insert(slot.base, slot.size, Arc::new(Window::new(transport.clone())))?;
    devices.reactor.add(Box::new(QueueWorker::new(transport)))?;
    devices.irqs.push((slot.gsi, line));
    devices.virtio.push(slot);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::sync::mpsc::channel;
    use virtio::driver::Driver;
    use vmm_sys_util::tempfile::TempFile;

    fn spec(readonly: &[bool]) -> StartSpec {
        let disk = |readonly: &bool| DiskSpec { readonly: *readonly, serial: "s".into(), engine: Engine::Threads };
        let disks = readonly.iter().map(disk).collect();
        StartSpec {
            cpus: 1,
            memory_mib: 32,
            initrd: false,
            cmdline: String::new(),
            disks,
            nets: Vec::new(),
            offer: None,
        }
    }

    fn net(queues: u8) -> NetSpec {
        NetSpec {
            mac: [2, 0x76, 0x6d, 0, 0, 2],
            address: [10, 0, 0, 2].into(),
            prefix: 24,
            gateway: [10, 0, 0, 1].into(),
            dns: Vec::new(),
            mtu: 1500,
            queues,
            offloads: true,
            hostname: String::new(),
        }
    }

    /// An fd of `/dev/net/tun` that was made no interface; where this user may not have one, none.
    fn tun(test: &str) -> Option<OwnedFd> {
        use std::os::unix::fs::OpenOptionsExt;
        let open = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
        open.map_err(|error| println!("SKIPPED {test}: /dev/net/tun: {error}")).ok().map(OwnedFd::from)
    }

    fn fds(files: &[(&TempFile, bool)]) -> DeviceFds {
        let (_, console_ring, console_notify) = console::reader::Reader::new();
        let open = |(file, write): &(&TempFile, bool)| {
            OpenOptions::new().read(true).write(*write).open(file.as_path()).unwrap().into()
        };
        let console_input = std::io::pipe().unwrap().0.into();
        let disks = files.iter().map(open).collect();
        DeviceFds { console_ring, console_notify, console_input, disks, taps: Vec::new() }
    }

    fn file() -> TempFile {
        let file = TempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        file
    }

    fn nothing() -> EndHandler {
        Arc::new(|_| ())
    }

    #[test]
    fn every_device_has_a_window_and_an_interrupt_of_its_own() {
        let files: Vec<TempFile> = (0..worker_api::DISKS_MAX).map(|_| file()).collect();
        let opened: Vec<_> = files.iter().map(|f| (f, true)).collect();
        let (mut spec, mut fds) = (spec(&[false; worker_api::DISKS_MAX]), fds(&opened));
        if let Some(tun) = tun("every_device_has_a_window_and_an_interrupt_of_its_own (with network interfaces)") {
            spec.nets = (0..worker_api::NETS_MAX).map(|n| net(1 + n as u8 % 2)).collect();
            let tuns = |net: &NetSpec| (0..net.queues).map(|_| tun.try_clone().unwrap()).collect();
            fds.taps = spec.nets.iter().map(tuns).collect();
        }
        let nets = spec.nets.len();
        let devices = build(&spec, fds, &Driver::ram(), nothing()).unwrap();
        let disks = worker_api::DISKS_MAX;
        assert_eq!(devices.virtio.len(), disks + nets + 1);
        assert_eq!((devices.io_threads.len(), devices.nets.len()), (2 * disks, nets));
        let queues: usize = spec.nets.iter().map(|net| if net.queues > 1 { 5 } else { 2 }).sum();
        assert_eq!(devices.ioevents.len(), disks + queues + 1, "one for each queue");
        let mut gsis: Vec<u32> = devices.irqs.iter().map(|(gsi, _)| *gsi).collect();
        gsis.sort_unstable();
        gsis.dedup();
        assert_eq!(gsis.len(), devices.irqs.len());
        assert_eq!(devices.irqs.len(), devices.virtio.len() + 2, "and the serial port, and the power device");
        for (n, slot) in devices.virtio.iter().enumerate() {
            let mut id = [0; 4];
            devices.mmio.read(slot.base + 8, &mut id);
            let expected = match n {
                _ if n < disks => virtio::ID_BLOCK,
                _ if n < disks + nets => virtio::ID_NET,
                _ => virtio::ID_ENTROPY,
            };
            assert_eq!(u32::from_le_bytes(id), expected, "window {n}");
        }
    }

    #[test]
    fn a_disk_with_the_wrong_rights_is_named_in_the_failure() {
        let (first, second) = (file(), file());
        let fds = fds(&[(&first, true), (&second, true)]);
        let failure = build(&spec(&[false, true]), fds, &Driver::ram(), nothing()).unwrap_err();
        assert_eq!(failure.part, Part::Disk(1));
        assert_eq!(failure.detail, "the disk is read-only, but its file was opened for writing");
    }

    #[test]
    fn disks_without_files_are_refused() {
        let failure = build(&spec(&[true]), fds(&[]), &Driver::ram(), nothing()).unwrap_err();
        assert_eq!(failure.part, Part::Spec);
    }

    #[test]
    fn an_interface_whose_fd_is_no_tap_is_named_in_the_failure() {
        let Some(tun) = tun("an_interface_whose_fd_is_no_tap_is_named_in_the_failure") else { return };
        let mut spec = spec(&[]);
        spec.nets = vec![net(1), net(2)];
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let mut fds = fds(&[]);
        fds.taps = vec![vec![tun.try_clone().unwrap()], vec![tun, file]];
        let failure = build(&spec, fds, &Driver::ram(), nothing()).unwrap_err();
        assert_eq!((failure.part, &*failure.detail), (Part::Net(1), "the interface's fd is no TAP"));
    }

    #[test]
    fn interfaces_without_taps_are_refused() {
        let mut spec = spec(&[]);
        spec.nets = vec![net(1)];
        let failure = build(&spec, fds(&[]), &Driver::ram(), nothing()).unwrap_err();
        assert_eq!(failure.part, Part::Spec);
    }

    #[test]
    fn a_guest_that_asks_for_its_end_is_heard() {
        let (tell, heard) = channel();
        let end: EndHandler = Arc::new(move |end| tell.send(end).unwrap());
        let devices = build(&spec(&[]), fds(&[]), &Driver::ram(), end).unwrap();
        devices.pio.write(layout::SLEEP_CONTROL_PORT, &[layout::SLEEP_TYPE_S5 << 2 | 1 << 5]);
        devices.pio.write(layout::I8042_PORT + 4, &[0xfe]);
        devices.pio.write(layout::RESET_PORT, &[layout::RESET_VALUE]);
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), [End::Shutdown, End::Reset, End::Reset]);
    }
}
