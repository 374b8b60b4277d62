//! How a guest ends its VM, and how it is asked to: the registers of a hardware-reduced ACPI machine, and the one
//! command of the keyboard controller that PCs are reset with.
//!
//! Runs on the vCPU threads; the button is pressed by the control thread. Ports and values are in [`layout`].

use super::{EndHandler, layout};
use crate::bus::BusDevice;
use crate::interrupt::Interrupt;
use crate::leave::End;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// SLP_EN of the sleep control register.
const SLEEP_ENABLE: u8 = 1 << 5;
/// Where SLP_TYP is in the sleep control register, and its three bits.
const SLEEP_TYPE: (u8, u8) = (2, 0b111);

/// The guest's power button. Clones are the same button.
#[derive(Debug, Clone)]
pub struct PowerButton {
    /// Bits of the event select register.
    pending: Arc<AtomicU8>,
    line: Interrupt,
}

impl PowerButton {
    /// A button on the interrupt of the Generic Event Device.
    pub fn new(line: Interrupt) -> Self {
        Self { pending: Arc::default(), line }
    }

    /// Presses it. From any thread; never blocks. What the guest does about it is its own affair.
    pub fn press(&self) {
        self.pending.fetch_or(layout::GED_POWER_BUTTON, Ordering::SeqCst);
        self.line.raise();
    }
}

/// Event select, sleep control, sleep status and reset, all of one byte.
pub struct PowerDevice {
    button: PowerButton,
    end: EndHandler,
}

impl PowerDevice {
    /// The registers behind `button`; what the guest asks for goes to `end`.
    pub fn new(button: PowerButton, end: EndHandler) -> Self {
        Self { button, end }
    }

    fn read_byte(&self, port: u64) -> u8 {
        match port {
            layout::GED_SELECT_PORT => self.button.pending.swap(0, Ordering::SeqCst),
            // A sleep status, and the registers that are for writing.
            _ => 0,
        }
    }

    fn write_byte(&self, port: u64, value: u8) {
        let (shift, mask) = SLEEP_TYPE;
        match port {
            layout::SLEEP_CONTROL_PORT
                if value & SLEEP_ENABLE != 0 && (value >> shift) & mask == layout::SLEEP_TYPE_S5 =>
            {
                (self.end)(End::Shutdown);
            }
            layout::RESET_PORT if value == layout::RESET_VALUE => (self.end)(End::Reset),
            _ => {}
        }
    }
}

impl BusDevice for PowerDevice {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (byte, port) in data.iter_mut().zip(layout::POWER_PORT + offset..) {
            *byte = self.read_byte(port);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (byte, port) in data.iter().zip(layout::POWER_PORT + offset..) {
            self.write_byte(port, *byte);
        }
    }
}

/// A keyboard controller without a keyboard: it resets the machine, and reads as idle.
pub struct Keyboard {
    controller: vm_superio::I8042Device<ResetLine>,
}

/// Where the controller's reset line goes.
struct ResetLine(EndHandler);

impl vm_superio::Trigger for ResetLine {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        (self.0)(End::Reset);
        Ok(())
    }
}

impl Keyboard {
    /// Its reset goes to `end`.
    pub fn new(end: EndHandler) -> Self {
        Self { controller: vm_superio::I8042Device::new(ResetLine(end)) }
    }
}

impl BusDevice for Keyboard {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(self.controller.read(offset as u8));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let [value] = data {
            let Ok(()) = self.controller.write(offset as u8, *value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// An end handler that remembers, and what it remembers.
    fn recorder() -> (EndHandler, Arc<Mutex<Vec<End>>>) {
        let ends: Arc<Mutex<Vec<End>>> = Arc::default();
        let log = ends.clone();
        (Arc::new(move |end| log.lock().unwrap().push(end)), ends)
    }

    fn power() -> (PowerDevice, PowerButton, Arc<Mutex<Vec<End>>>) {
        let (end, ends) = recorder();
        let button = PowerButton::new(Interrupt::new().unwrap());
        (PowerDevice::new(button.clone(), end), button, ends)
    }

    fn read(device: &mut PowerDevice, port: u64) -> u8 {
        let mut byte = [0xee];
        device.read(port - layout::POWER_PORT, &mut byte);
        byte[0]
    }

    #[test]
    fn a_press_is_one_interrupt_and_one_event_that_reading_clears() {
        let (mut device, button, _) = power();
        assert_eq!(read(&mut device, layout::GED_SELECT_PORT), 0);
        button.press();
        assert_eq!(button.line.eventfd().read().unwrap(), 1);
        assert_eq!(read(&mut device, layout::GED_SELECT_PORT), layout::GED_POWER_BUTTON);
        assert_eq!(read(&mut device, layout::GED_SELECT_PORT), 0);
    }

    #[test]
    fn only_soft_off_with_the_enable_bit_ends_the_vm() {
        let (mut device, _, ends) = power();
        for value in (0..=255).filter(|v| v & 0x3c != 0x34) {
            device.write(layout::SLEEP_CONTROL_PORT - layout::POWER_PORT, &[value]);
        }
        assert_eq!(*ends.lock().unwrap(), []);
        device.write(layout::SLEEP_CONTROL_PORT - layout::POWER_PORT, &[0x34]);
        assert_eq!(*ends.lock().unwrap(), [End::Shutdown]);
        assert_eq!(read(&mut device, layout::SLEEP_STATUS_PORT), 0);
    }

    #[test]
    fn the_reset_register_and_the_keyboard_controller_reset() {
        let (mut device, _, ends) = power();
        device.write(layout::RESET_PORT - layout::POWER_PORT, &[layout::RESET_VALUE + 1]);
        assert_eq!(*ends.lock().unwrap(), []);
        device.write(layout::RESET_PORT - layout::POWER_PORT, &[layout::RESET_VALUE]);
        assert_eq!(*ends.lock().unwrap(), [End::Reset]);

        let (end, ends) = recorder();
        let mut keyboard = Keyboard::new(end);
        keyboard.write(0, &[0xfe]);
        keyboard.write(4, &[0xd1]);
        keyboard.write(4, &[0xfe, 0xfe]);
        assert_eq!(*ends.lock().unwrap(), []);
        keyboard.write(4, &[0xfe]);
        assert_eq!(*ends.lock().unwrap(), [End::Reset]);
        let mut status = [0xff];
        keyboard.read(4, &mut status);
        assert_eq!(status, [0]);
    }
}
