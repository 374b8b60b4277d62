//! What a guest finds where a PC's BIOS begins: code that resets the machine.
//!
//! A guest that wants to restart may jump there. Linux does where ACPI is hardware-reduced and there is no UEFI: before it
//! asks ACPI's reset register it tries the firmware (`BOOT_EFI`, then `BOOT_BIOS` in arch/x86/kernel/reboot.c). In RAM that
//! holds nothing it would spin for good.

use super::BootError;
use super::layout::RESET_VECTOR;
use crate::devices::layout::{RESET_PORT, RESET_VALUE};
use crate::memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

const PORT: [u8; 2] = (RESET_PORT as u16).to_le_bytes();
/// In real mode, at f000:fff0: writes the reset register, after which the vCPU does not go on.
#[rustfmt::skip]
const CODE: [u8; 9] = [
    0xba, PORT[0], PORT[1], // mov dx, RESET_PORT
    0xb0, RESET_VALUE,      // mov al, RESET_VALUE
    0xee,                   // out dx, al
    0xf4,                   // hlt
    0xeb, 0xfd,             // jmp to hlt
];

/// Writes the code.
///
/// # Errors
/// Guest RAM does not take it.
pub fn write(memory: &GuestMemory) -> Result<(), BootError> {
    Ok(memory.write_slice(&CODE, GuestAddress(RESET_VECTOR))?)
}
