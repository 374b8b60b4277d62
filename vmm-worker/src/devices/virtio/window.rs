//! A device's registers as the vCPUs reach them, and its interrupt line.
//!
//! All registers are behind the device's lock but two: why the device interrupted, and the answer to that. A driver touches
//! both in every interrupt, and the reactor may be in the middle of a turn then, with the lock held for many packets: a vCPU
//! that waited for it would not take the packets that are there already.

use super::transport::Transport;
use crate::bus::{BusDevice, Registers, lock};
use crate::interrupt::Interrupt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use virtio_bindings::virtio_mmio as reg;

const STATUS: u64 = reg::VIRTIO_MMIO_INTERRUPT_STATUS as u64;
const ACKNOWLEDGE: u64 = reg::VIRTIO_MMIO_INTERRUPT_ACK as u64;

/// The interrupt of a device, and the register that says what it was for.
#[derive(Debug)]
pub struct Line {
    interrupt: Interrupt,
    reasons: AtomicU32,
}

impl Line {
    /// A line that was not raised.
    pub fn new(interrupt: Interrupt) -> Self {
        Self { interrupt, reasons: AtomicU32::new(0) }
    }

    /// A used buffer.
    pub fn used(&self) {
        self.raise(reg::VIRTIO_MMIO_INT_VRING);
    }

    /// A change of configuration or status.
    pub fn config(&self) {
        self.raise(reg::VIRTIO_MMIO_INT_CONFIG);
    }

    /// The reason is there before the interrupt is, and the used ring before the reason.
    fn raise(&self, reason: u32) {
        self.reasons.fetch_or(reason, Ordering::AcqRel);
        self.interrupt.raise();
    }

    /// Forgets why it was raised.
    pub fn reset(&self) {
        self.reasons.store(0, Ordering::Release);
    }
}

/// What is on the bus for one device.
pub struct Window {
    transport: Arc<Mutex<Transport>>,
    line: Arc<Line>,
}

impl Window {
    /// The window of `transport`.
    pub fn new(transport: Arc<Mutex<Transport>>) -> Self {
        let line = lock(&transport).line.clone();
        Self { transport, line }
    }
}

impl Registers for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, <&mut [u8; 4]>::try_from(&mut *data)) {
            (STATUS, Ok(word)) => *word = self.line.reasons.load(Ordering::Acquire).to_le_bytes(),
            _ => lock(&self.transport).read(offset, data),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, <[u8; 4]>::try_from(data)) {
            (ACKNOWLEDGE, Ok(word)) => {
                self.line.reasons.fetch_and(!u32::from_le_bytes(word), Ordering::AcqRel);
            }
            _ => lock(&self.transport).write(offset, data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::Driver;
    use super::super::rng::Rng;
    use super::*;

    #[test]
    fn an_interrupt_is_answered_while_the_reactor_has_the_device() {
        let driver = Driver::start(Box::new(Rng));
        let busy = lock(&driver.transport);
        busy.line.used();
        busy.line.config();
        assert_eq!(driver.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 3, "this would wait for ever");
        driver.set(reg::VIRTIO_MMIO_INTERRUPT_ACK, 1);
        assert_eq!(driver.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    }
}
