//! virtio-mmio, version 2 (4.2): a device's registers.
//!
//! Runs on the vCPU threads, under the device's lock, and does no more than remember what was written: queues are served
//! on the reactor ([`super::worker`]). Nothing here allocates. A register that cannot be written in the device's present
//! state ignores the write.
//!
//! Reset is the one thing that may take time: a device that still has a request inside a system call stays in reset, and
//! shows its old status, until that request has come back; only then does the status read 0 (4.2.2.1, 2.4). No vCPU waits
//! meanwhile, and nothing that was begun before touches guest RAM or the disk once the status reads 0 (CVE-2026-45782).

use super::VirtioDevice;
use super::queue::{Chain, Virtqueue};
use super::status::{Asked, Status};
use super::window::Line;
use crate::bus::BusDevice;
use crate::interrupt::Interrupt;
use crate::memory::GuestMemory;
use std::sync::Arc;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const MMIO_VERSION: u32 = 2;
/// Of no meaning to a driver; shown by the guest's tools.
const VENDOR: u32 = u32::from_le_bytes(*b"vmsp");
/// Offset of a queue's notification register in the window.
pub const NOTIFY: u64 = reg::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
/// QueueReset and what follows up to the configuration: not offered.
const CONFIG: u64 = reg::VIRTIO_MMIO_CONFIG as u64;

/// What the transport offers on behalf of every device.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The selectors, and the features that the driver wants.
#[derive(Debug, Default)]
struct Selected {
    device_features: u32,
    driver_features: u32,
    queue: u32,
    wanted: u64,
}

/// One device with its registers and queues.
pub struct Transport {
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) queues: Vec<Virtqueue>,
    /// For the reactor, one for each queue.
    pub(super) kicks: Vec<Arc<EventFd>>,
    pub(super) mem: GuestMemory,
    pub(super) line: Arc<Line>,
    pub(super) status: Status,
    /// Where chains are read to.
    pub(super) chain: Chain,
    selected: Selected,
    /// A reset was asked for, and the device is not through with it.
    resetting: bool,
    /// How often the configuration changed, modulo 2^32.
    generation: u32,
}

impl Transport {
    /// Registers and queues of `device`.
    ///
    /// # Errors
    /// What `eventfd2(2)` says.
    pub fn new(device: Box<dyn VirtioDevice>, mem: GuestMemory, interrupt: Interrupt) -> std::io::Result<Self> {
        let sizes = device.queue_sizes();
        let queues = sizes.iter().map(|max| Virtqueue::new(*max).map_err(std::io::Error::other));
        let kicks = sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK).map(Arc::new));
        Ok(Self {
            queues: queues.collect::<Result<_, _>>()?,
            kicks: kicks.collect::<Result<_, _>>()?,
            device,
            mem,
            line: Arc::new(Line::new(interrupt)),
            status: Status::default(),
            chain: Chain::default(),
            selected: Selected::default(),
            resetting: false,
            generation: 0,
        })
    }

    /// Each queue's kick.
    pub fn kicks(&self) -> &[Arc<EventFd>] {
        &self.kicks
    }

    /// The device serves its queues.
    pub(super) fn runs(&self) -> bool {
        self.status.runs() && !self.resetting
    }

    /// The driver broke a rule: the device stops until it is reset.
    pub(super) fn fail(&mut self) {
        if self.status.fail() {
            self.line.config();
        }
        self.device.reset();
    }

    /// The device changed its configuration (4.2.2.1).
    pub(super) fn config_changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.line.config();
    }

    /// Goes on with a reset that was not through.
    pub(super) fn settle(&mut self) {
        if self.resetting && self.device.reset() {
            self.resetting = false;
            self.status = Status::default();
            self.selected = Selected::default();
            self.line.reset();
            self.queues.iter_mut().for_each(Virtqueue::reset);
        }
    }

    fn offered(&self) -> u64 {
        FEATURES | self.device.features()
    }

    fn acceptable(&self) -> bool {
        let wanted = self.selected.wanted;
        wanted & !self.offered() == 0 && wanted & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn queue(&self) -> Option<&Virtqueue> {
        self.queues.get(self.selected.queue as usize)
    }

    fn read_register(&self, register: u32) -> u32 {
        match register {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => MMIO_VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.device.id(),
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered(), self.selected.device_features),
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => self.queue().map_or(0, |q| q.max_size().into()),
            reg::VIRTIO_MMIO_QUEUE_READY => self.queue().map_or(0, |q| q.ready().into()),
            reg::VIRTIO_MMIO_STATUS => self.status.bits().into(),
            // No shared memory region: length and base of all ones (4.2.2).
            reg::VIRTIO_MMIO_SHM_LEN_LOW..=reg::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            reg::VIRTIO_MMIO_CONFIG_GENERATION => self.generation,
            // The rest is for writing, or answered without the device's lock (`window.rs`).
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u32, value: u32) {
        match register {
            reg::VIRTIO_MMIO_STATUS => self.write_status(value),
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.selected.device_features = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.selected.driver_features = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => self.want(value),
            reg::VIRTIO_MMIO_QUEUE_SEL => self.selected.queue = value,
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => self.kick(value as usize),
            _ if self.status.takes_queues() => self.write_queue(register, value),
            _ => {}
        }
    }

    fn want(&mut self, value: u32) {
        if self.status.takes_features() {
            let wanted = &mut self.selected.wanted;
            match self.selected.driver_features {
                0 => *wanted = *wanted & !0xffff_ffff | u64::from(value),
                1 => *wanted = *wanted & 0xffff_ffff | u64::from(value) << 32,
                _ => {}
            }
        }
    }

    fn write_status(&mut self, value: u32) {
        match self.status.write(value, self.acceptable()) {
            Asked::Nothing => {}
            Asked::Reset => {
                self.resetting = true;
                self.settle();
            }
            Asked::Begin => self.begin(),
        }
    }

    fn begin(&mut self) {
        let features = self.selected.wanted;
        self.device.activate(features);
        for index in 0..self.queues.len() {
            self.queues[index].activate(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
            // Buffers may be there already.
            self.kick(index);
        }
    }

    /// Where KVM has no ioeventfd for a notification, this is one.
    fn kick(&self, queue: usize) {
        if let Some(kick) = self.kicks.get(queue) {
            // Fails only where the counter is full, and then the reactor is about to come.
            let _ = kick.write(1);
        }
    }

    fn write_queue(&mut self, register: u32, value: u32) {
        let Some(queue) = self.queues.get_mut(self.selected.queue as usize) else { return };
        if register == reg::VIRTIO_MMIO_QUEUE_READY {
            match (queue.ready(), value) {
                (false, 1) if queue.enable(&self.mem).is_err() => self.fail(),
                (true, 0) => queue.disable(),
                _ => {}
            }
            return;
        }
        if queue.ready() {
            return;
        }
        let setup = &mut queue.setup;
        match register {
            reg::VIRTIO_MMIO_QUEUE_NUM => setup.size = value,
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut setup.descriptors, value),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut setup.descriptors, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut setup.driver, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut setup.driver, value),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut setup.device, value),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut setup.device, value),
            _ => {}
        }
    }
}

impl BusDevice for Transport {
    /// Registers are 32 bits wide and aligned (4.2.2.2); any other access to them reads as zeros.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.settle();
        if let Some(offset) = offset.checked_sub(CONFIG) {
            return self.device.read_config(offset, data);
        }
        data.fill(0);
        if let (Ok(register), 0, Ok(word)) = (u32::try_from(offset), offset % 4, <&mut [u8; 4]>::try_from(data)) {
            *word = self.read_register(register).to_le_bytes();
        }
    }

    /// No device here has a configuration that can be written.
    fn write(&mut self, offset: u64, data: &[u8]) {
        self.settle();
        if let (true, 0, Ok(word)) = (offset < CONFIG, offset % 4, data.try_into()) {
            self.write_register(offset as u32, u32::from_le_bytes(word));
        }
    }
}

fn half(bits: u64, which: u32) -> u32 {
    match which {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !0xffff_ffff | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xffff_ffff | u64::from(value) << 32;
}

#[cfg(test)]
mod tests;
