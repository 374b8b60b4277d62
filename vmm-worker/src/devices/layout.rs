//! Where the guest finds its devices. The ACPI tables are written from these constants; nothing is probed for.
//!
//! ```text
//! ports   0x060 … 0x064   i8042: reset only
//!         0x3f8 … 0x3ff   COM1, GSI 4
//!         0x600 … 0x607   power: event select, sleep control, sleep status, reset; GSI 9
//! memory  0xd000_0000 …   virtio-mmio, 4 KiB a device, a GSI each
//! ```
//!
//! All interrupts are edge-triggered, active high: an irqfd without a resample fd is an edge.

/// First port of the serial port COM1.
pub const COM1_PORT: u64 = 0x3f8;
/// Ports of COM1.
pub const COM1_SIZE: u64 = 8;
/// Interrupt of COM1, where a PC has it.
pub const COM1_GSI: u32 = 4;

/// First port of the keyboard controller; 0x64, its command port, is the last.
pub const I8042_PORT: u64 = 0x60;
/// Ports of the keyboard controller.
pub const I8042_SIZE: u64 = 5;

/// First port of the power device.
pub const POWER_PORT: u64 = 0x600;
/// Ports of the power device.
pub const POWER_SIZE: u64 = 8;
/// Event select, one byte, read by the `_EVT` method of the Generic Event Device (ACPI 6.5, 5.6.9): a bit for each
/// event that happened since the last read, which clears them.
pub const GED_SELECT_PORT: u64 = POWER_PORT;
/// Bit of the event select: the power button was pressed.
pub const GED_POWER_BUTTON: u8 = 1;
/// Interrupt of the Generic Event Device.
pub const GED_GSI: u32 = 9;
/// FADT SLEEP_CONTROL_REG (ACPI 6.5, 4.8.3.7), one byte: SLP_TYP in bits 2 to 4, SLP_EN is bit 5.
pub const SLEEP_CONTROL_PORT: u64 = POWER_PORT + 4;
/// FADT SLEEP_STATUS_REG, one byte, always zero: this machine never sleeps, so it never wakes.
pub const SLEEP_STATUS_PORT: u64 = POWER_PORT + 5;
/// SLP_TYP of S5, soft off; the first element of the `\_S5` package.
pub const SLEEP_TYPE_S5: u8 = 5;
/// FADT RESET_REG, one byte.
pub const RESET_PORT: u64 = POWER_PORT + 6;
/// FADT RESET_VALUE.
pub const RESET_VALUE: u8 = 1;

/// First window of the virtio devices, in the MMIO hole below 4 GiB and below the APICs.
pub const VIRTIO_BASE: u64 = 0xd000_0000;
/// Size of a window.
pub const VIRTIO_SIZE: u64 = 0x1000;
/// The interrupt of the window number `n`: IOAPIC pins from 5 on, without that of the power device.
pub const fn virtio_gsi(n: usize) -> u32 {
    let gsi = 5 + n as u32;
    if gsi < GED_GSI { gsi } else { gsi + 1 }
}
/// The most windows: the IOAPIC's pins end at 23.
pub const VIRTIO_DEVICES_MAX: usize = 18;

// Every disk and every network interface that a spec can have, and the entropy device.
const _: () = assert!(worker_api::DISKS_MAX + worker_api::NETS_MAX < VIRTIO_DEVICES_MAX);
const _: () = assert!(virtio_gsi(VIRTIO_DEVICES_MAX - 1) == 23);
const _: () = assert!(VIRTIO_BASE >= crate::memory::HOLE_START);
