//! A driver for tests: it speaks to a device as a guest does, through registers and guest RAM, and turns the reactor by
//! hand.

use super::VirtioDevice;
use super::transport::Transport;
use super::window::Window;
use super::worker::QueueWorker;
use crate::bus::{Registers, lock};
use crate::interrupt::Interrupt;
use crate::memory::GuestMemory;
use crate::reactor::Subscriber;
use crate::reactor::mock::MockReactor;
use std::sync::{Arc, Mutex};
use virtio_bindings::virtio_mmio::*;
use vm_memory::{Bytes, GuestAddress};

/// Rings of the first queue.
pub(crate) const DESCRIPTORS: u64 = 0x1000;
pub(crate) const AVAILABLE: u64 = 0x2000;
pub(crate) const USED: u64 = 0x3000;
/// Rings of the others: where those of the second begin, and how far apart they are.
const MORE_RINGS: u64 = 0x38_0000;
const RINGS: u64 = 0x3000;
/// RAM of the guest, bytes.
pub(crate) const RAM: u64 = 0x40_0000;
/// Size of each queue.
pub(crate) const SIZE: u16 = 16;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) const F_INDIRECT: u64 = 1 << 28;
pub(crate) const F_EVENT_IDX: u64 = 1 << 29;
pub(crate) const F_VERSION_1: u64 = 1 << 32;

/// A buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) write: bool,
}

impl Buffer {
    pub(crate) fn readable(address: u64, length: u32) -> Self {
        Self { address, length, write: false }
    }

    pub(crate) fn writable(address: u64, length: u32) -> Self {
        Self { address, length, write: true }
    }
}

pub(crate) struct Driver {
    pub(crate) transport: Arc<Mutex<Transport>>,
    pub(crate) mem: GuestMemory,
    pub(crate) line: Interrupt,
    window: Window,
    worker: QueueWorker,
    reactor: MockReactor,
    /// What it accepts of what is offered.
    pub(crate) wanted: u64,
    /// The queue that is spoken of.
    queue: usize,
    progress: Vec<Progress>,
}

/// How far a queue is.
#[derive(Clone, Copy, Default)]
struct Progress {
    available: u16,
    taken: u16,
    free: u16,
}

impl Driver {
    /// RAM for a guest.
    pub(crate) fn ram() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap()
    }

    /// A device that nobody spoke to yet.
    pub(crate) fn new(device: Box<dyn VirtioDevice>, mem: GuestMemory) -> Self {
        let line = Interrupt::new().unwrap();
        let transport = Arc::new(Mutex::new(Transport::new(device, mem.clone(), line.clone()).unwrap()));
        let mut worker = QueueWorker::new(transport.clone());
        let mut reactor = MockReactor::new();
        worker.register(&mut reactor).unwrap();
        let progress = vec![Progress::default(); lock(&transport).kicks().len()];
        let window = Window::new(transport.clone());
        Self { transport, mem, line, window, worker, reactor, wanted: u64::MAX, queue: 0, progress }
    }

    /// From here on it is about this queue.
    pub(crate) fn on(&mut self, queue: usize) -> &mut Self {
        self.queue = queue;
        self
    }

    fn progress(&mut self) -> &mut Progress {
        &mut self.progress[self.queue]
    }

    fn rings(&self, first: u64) -> u64 {
        match self.queue as u64 {
            0 => first,
            queue => MORE_RINGS + RINGS * (queue - 1) + first - DESCRIPTORS,
        }
    }

    /// The queue's descriptor table.
    pub(crate) fn descriptors(&self) -> u64 {
        self.rings(DESCRIPTORS)
    }

    /// The queue's available ring.
    pub(crate) fn available(&self) -> u64 {
        self.rings(AVAILABLE)
    }

    fn used_ring(&self) -> u64 {
        self.rings(USED)
    }

    /// A running device, with all that it offers.
    pub(crate) fn start(device: Box<dyn VirtioDevice>) -> Self {
        let mut driver = Self::new(device, Self::ram());
        driver.restart();
        driver
    }

    pub(crate) fn get(&self, register: u32) -> u32 {
        let mut word = [0; 4];
        self.window.read(register.into(), &mut word);
        u32::from_le_bytes(word)
    }

    pub(crate) fn set(&self, register: u32, value: u32) {
        self.window.write(register.into(), &value.to_le_bytes());
    }

    pub(crate) fn status(&self) -> u32 {
        self.get(VIRTIO_MMIO_STATUS)
    }

    pub(crate) fn needs_reset(&self) -> bool {
        self.status() & 64 != 0
    }

    pub(crate) fn offered(&self) -> u64 {
        self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        let high = self.get(VIRTIO_MMIO_DEVICE_FEATURES);
        self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        u64::from(high) << 32 | u64::from(self.get(VIRTIO_MMIO_DEVICE_FEATURES))
    }

    /// Resets and waits for it, as 4.2.2.1 wants.
    pub(crate) fn reset(&mut self) {
        self.set(VIRTIO_MMIO_STATUS, 0);
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while self.status() != 0 {
            assert!(std::time::Instant::now() < patience, "the reset does not end");
            std::thread::yield_now();
        }
        for queue in 0..self.progress.len() {
            let rings = self.on(queue).descriptors();
            self.put(rings, &[0; RINGS as usize]);
        }
        self.progress.fill(Progress::default());
        self.queue = 0;
    }

    /// Reset, features, up to FEATURES_OK.
    pub(crate) fn negotiate(&mut self) {
        self.reset();
        self.set(VIRTIO_MMIO_STATUS, 1);
        self.set(VIRTIO_MMIO_STATUS, 3);
        self.want(self.offered() & self.wanted);
        self.set(VIRTIO_MMIO_STATUS, 0xb);
    }

    pub(crate) fn want(&self, features: u64) {
        for (half, word) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.set(VIRTIO_MMIO_DRIVER_FEATURES, word);
        }
    }

    pub(crate) fn set_queue(&self, size: u32, descriptors: u64, driver: u64, device: u64) {
        self.set(VIRTIO_MMIO_QUEUE_SEL, self.queue as u32);
        self.set(VIRTIO_MMIO_QUEUE_NUM, size);
        for (register, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, descriptors),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, driver),
            (VIRTIO_MMIO_QUEUE_USED_LOW, device),
        ] {
            self.set(register, address as u32);
            self.set(register + 4, (address >> 32) as u32);
        }
    }

    /// From the beginning to DRIVER_OK.
    pub(crate) fn restart(&mut self) {
        self.negotiate();
        assert_eq!(self.status(), 0xb, "features were refused");
        for queue in (0..self.progress.len()).rev() {
            self.on(queue);
            self.set_queue(SIZE.into(), self.descriptors(), self.available(), self.used_ring());
            self.set(VIRTIO_MMIO_QUEUE_READY, 1);
            assert_eq!(self.get(VIRTIO_MMIO_QUEUE_READY), 1, "the queue was refused");
        }
        self.set(VIRTIO_MMIO_STATUS, 0xf);
        assert_eq!(self.status(), 0xf);
        self.settle();
        let _ = self.line.eventfd().read();
    }

    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        self.mem.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(crate) fn bytes(&self, address: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.mem.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn half_word(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.bytes(address, 2).try_into().unwrap())
    }

    /// Writes descriptor number `n` of the table at `table`.
    pub(crate) fn describe(&self, table: u64, n: u16, address: u64, length: u32, flags: u16, next: u16) {
        let at = table + 16 * u64::from(n);
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &length.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    /// Writes a chain to the next free descriptors and says where it begins.
    pub(crate) fn chain(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.progress().free;
        for (n, buffer) in buffers.iter().enumerate() {
            let at = (head + n as u16) % SIZE;
            let more = if n + 1 < buffers.len() { NEXT } else { 0 };
            let flags = more | if buffer.write { WRITE } else { 0 };
            self.describe(self.descriptors(), at, buffer.address, buffer.length, flags, (at + 1) % SIZE);
        }
        self.progress().free = (head + buffers.len() as u16) % SIZE;
        head
    }

    /// Makes the chain at `head` available.
    pub(crate) fn offer(&mut self, head: u16) {
        let index = self.progress().available;
        self.put(self.available() + 4 + 2 * u64::from(index % SIZE), &head.to_le_bytes());
        self.progress().available = index.wrapping_add(1);
        self.put(self.available() + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// As KVM does it: past the registers, whatever state the device is in.
    pub(crate) fn notify(&self) {
        lock(&self.transport).kicks()[self.queue].write(1).unwrap();
    }

    pub(crate) fn submit(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.chain(buffers);
        self.offer(head);
        self.notify();
        head
    }

    /// One turn of the reactor; false where there was nothing to do.
    pub(crate) fn turn(&mut self) -> bool {
        !self.reactor.turn(&mut self.worker).is_empty()
    }

    /// Turns until there is nothing to do; how often.
    pub(crate) fn settle(&mut self) -> usize {
        (0..10_000).find(|_| !self.turn()).expect("the reactor spins")
    }

    /// One turn, once a thread of the device called.
    pub(crate) fn wait_turn(&mut self) {
        self.reactor.wait_turn(&mut self.worker);
    }

    /// What the device says is used, in all.
    pub(crate) fn used(&self) -> u16 {
        self.half_word(self.used_ring() + 2)
    }

    pub(crate) fn take(&mut self) -> Option<(u16, u32)> {
        let taken = self.progress().taken;
        if self.used() == taken {
            return None;
        }
        let at = self.used_ring() + 4 + 8 * u64::from(taken % SIZE);
        self.progress().taken = taken.wrapping_add(1);
        self.ask_for_interrupt_after(taken.wrapping_add(1));
        let word = |at| u32::from_le_bytes(self.bytes(at, 4).try_into().unwrap());
        Some((word(at) as u16, word(at + 4)))
    }

    /// Sets used_event: the next interrupt is for this completion, counted from 0.
    pub(crate) fn ask_for_interrupt_after(&self, completion: u16) {
        self.put(self.available() + 4 + 2 * u64::from(SIZE), &completion.to_le_bytes());
    }

    /// The index at which the device wants the next kick (avail_event).
    pub(crate) fn wants_kick_at(&self) -> u16 {
        self.half_word(self.used_ring() + 4 + 8 * u64::from(SIZE))
    }

    /// Turns until something is used, waiting for the device's threads.
    pub(crate) fn wait(&mut self) -> (u16, u32) {
        self.settle();
        loop {
            if let Some(used) = self.take() {
                return used;
            }
            self.wait_turn();
        }
    }

    /// A chain there and back: its head and the bytes written.
    pub(crate) fn request(&mut self, buffers: &[Buffer]) -> (u16, u32) {
        let head = self.submit(buffers);
        let used = self.wait();
        assert_eq!(used.0, head);
        used
    }

    /// Interrupts since the last look.
    pub(crate) fn interrupts(&self) -> u64 {
        self.line.eventfd().read().unwrap_or(0)
    }
}
