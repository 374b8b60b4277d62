//! The 64-bit boot protocol of Linux (kernel documentation, x86/boot): zero page, GDT and identity-mapped page tables.

use super::layout::{CMDLINE, GDT, PAGE_TABLES, ZERO_PAGE};
use super::{BootError, Entry, Tables};
use crate::memory::GuestMemory;
use linux_loader::configurator::{BootConfigurator, BootParams, linux::LinuxBootConfigurator};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress};

const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
/// "A loader without a number of its own".
const LOADER_UNDEFINED: u8 = 0xff;

/// The GDT that the protocol asks for: code at 0x10, data at 0x18, both flat.
pub const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// What stands in the zero page for an image without a setup header.
pub(super) fn header_of_an_elf() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: 0x5372_6448,
        kernel_alignment: 0x100_0000,
        cmdline_size: worker_api::CMDLINE_MAX as u32,
        ..setup_header::default()
    }
}

/// Writes everything that the entry at `entry` of an image that ends at `end` needs.
pub(super) fn write(
    memory: &GuestMemory,
    entry: u64,
    end: u64,
    header: setup_header,
    tables: &Tables,
) -> Result<Entry, BootError> {
    let mut page = boot_params { hdr: header, ..boot_params::default() };
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    page.hdr.cmd_line_ptr = CMDLINE as u32;
    page.acpi_rsdp_addr = tables.rsdp;
    if let Some((address, length)) = tables.initrd {
        // Both fit: an initrd lies below 4 GiB.
        page.hdr.ramdisk_image = address as u32;
        page.hdr.ramdisk_size = length as u32;
    }
    page.e820_entries = tables.memory_map.len() as u8;
    let mut map = page.e820_table;
    for (slot, area) in map.iter_mut().zip(&tables.memory_map) {
        *slot = boot_e820_entry { addr: area.base, size: area.size, r#type: area.kind };
    }
    page.e820_table = map;
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&page, GuestAddress(ZERO_PAGE)), memory)
        .map_err(BootError::Parameters)?;
    write_words(memory, GDT, &GDT_ENTRIES)?;
    identity_map(memory, end)?;
    Ok(Entry::Linux64 { rip: entry, zero_page: ZERO_PAGE, page_table: PAGE_TABLES })
}

/// Maps the GiBs from 0 to `end` onto themselves, in pages of 2 MiB: the image, the zero page and the command line,
/// which is all that the protocol asks for. At most 3 GiB: images lie below the MMIO hole.
fn identity_map(memory: &GuestMemory, end: u64) -> Result<(), BootError> {
    let directory_pointers = PAGE_TABLES + PAGE;
    write_words(memory, PAGE_TABLES, &[directory_pointers | PRESENT_WRITABLE])?;
    for gib in 0..end.div_ceil(GIB).max(1) {
        let directory = directory_pointers + PAGE * (1 + gib);
        write_words(memory, directory_pointers + 8 * gib, &[directory | PRESENT_WRITABLE])?;
        let pages: [u64; 512] =
            std::array::from_fn(|n| (gib * GIB + ((n as u64) << 21)) | LARGE_PAGE | PRESENT_WRITABLE);
        write_words(memory, directory, &pages)?;
    }
    Ok(())
}

fn write_words(memory: &GuestMemory, at: u64, words: &[u64]) -> Result<(), BootError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    Ok(memory.write_slice(&bytes, GuestAddress(at))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(memory: &GuestMemory, at: u64) -> u64 {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// Walks the tables as the processor does.
    fn translate(memory: &GuestMemory, address: u64) -> Option<u64> {
        let mut table = PAGE_TABLES;
        for shift in [39, 30] {
            let entry = word(memory, table + 8 * (address >> shift & 511));
            if entry & PRESENT_WRITABLE != PRESENT_WRITABLE {
                return None;
            }
            table = entry & !0xfff;
        }
        let entry = word(memory, table + 8 * (address >> 21 & 511));
        assert_eq!(entry & LARGE_PAGE, LARGE_PAGE);
        Some((entry & !0x1f_ffff) + (address & 0x1f_ffff))
    }

    #[test]
    fn the_image_is_mapped_onto_itself() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        identity_map(&memory, 2 * GIB + 1).unwrap();
        for address in [0, ZERO_PAGE, 0x1234_5678, GIB, 2 * GIB + 5, 3 * GIB - 1] {
            assert_eq!(translate(&memory, address), Some(address));
        }
        assert_eq!(translate(&memory, 3 * GIB), None);
    }
}
