//! Where things lie in the first 3 GiB of guest physical memory when the guest is entered.
//!
//! ```text
//! 0x0_0500  GDT for the 64-bit entry
//! 0x0_6000  PVH start info, module list, memory map
//! 0x0_6800  command line, 2 KiB with its NUL
//! 0x0_7000  zero page (boot_params)
//! 0x0_9000  page tables of the 64-bit entry: PML4, PDPT, then one page directory for each GiB
//! 0x9_fc00  end of low RAM, as on a PC
//! 0xe_0000  ACPI tables, RSDP first: where a guest that is told nothing looks for it
//! 0xf_fff0  what a PC's BIOS begins with: here a reset
//! 0x10_0000 kernel …                         … initrd, as high as it may
//! ```

use crate::memory;

/// One MiB.
pub const MIB: u64 = 1 << 20;
/// The GDT of the 64-bit entry.
pub const GDT: u64 = 0x500;
/// The PVH start info.
pub const PVH_START_INFO: u64 = 0x6000;
/// The PVH module list: one entry, the initrd.
pub const PVH_MODULES: u64 = 0x6040;
/// The PVH memory map.
pub const PVH_MEMORY_MAP: u64 = 0x6080;
/// The command line.
pub const CMDLINE: u64 = 0x6800;
/// Bytes for the command line, with its NUL.
pub const CMDLINE_SIZE: usize = 0x800;
/// The zero page.
pub const ZERO_PAGE: u64 = 0x7000;
/// The page tables of the 64-bit entry.
pub const PAGE_TABLES: u64 = 0x9000;
/// The end of low RAM: what comes after it is the BIOS's on a PC.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The ACPI tables.
pub const ACPI: u64 = 0xe_0000;
/// Bytes for the ACPI tables.
pub const ACPI_SIZE: usize = 0x1_fff0;
/// Where a PC begins after a reset, in real mode f000:fff0.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// The first address for images.
pub const HIGH_RAM: u64 = 0x10_0000;

const _: () = assert!(worker_api::CMDLINE_MAX < CMDLINE_SIZE);
const _: () = assert!(CMDLINE + CMDLINE_SIZE as u64 <= ZERO_PAGE);
const _: () = assert!(ACPI + ACPI_SIZE as u64 <= RESET_VECTOR);
const _: () = assert!(RESET_VECTOR + 16 <= HIGH_RAM);
// A map has four areas of 24 bytes.
const _: () = assert!(PVH_MEMORY_MAP + 4 * 24 <= CMDLINE);

/// An area of the memory map that the guest gets (E820).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Guest physical address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// E820 type; PVH uses the same numbers.
    pub kind: u32,
}

/// E820 type of RAM.
pub const RAM: u32 = 1;
/// E820 type of what the guest must leave alone.
pub const RESERVED: u32 = 2;

/// The memory map of a guest with `ram_bytes`.
pub fn memory_map(ram_bytes: u64) -> Vec<Area> {
    let mut map = vec![
        Area { base: 0, size: LOW_RAM_END, kind: RAM },
        Area { base: LOW_RAM_END, size: HIGH_RAM - LOW_RAM_END, kind: RESERVED },
    ];
    for (base, size) in memory::ranges(ram_bytes) {
        let skipped = HIGH_RAM.saturating_sub(base);
        map.push(Area { base: base + skipped, size: size - skipped, kind: RAM });
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_tells_of_all_ram_and_of_nothing_else() {
        for mib in [20, 128, 3072, 3073, 8192] {
            let ram = mib * MIB;
            let map = memory_map(ram);
            let told: u64 = map.iter().filter(|a| a.kind == RAM).map(|a| a.size).sum();
            assert_eq!(told, ram - (HIGH_RAM - LOW_RAM_END), "{mib} MiB");
            assert!(map.windows(2).all(|w| w[0].base + w[0].size <= w[1].base), "{mib} MiB: {map:x?}");
            for area in map.iter().filter(|a| a.kind == RAM) {
                let end = area.base + area.size;
                assert!(end <= memory::HOLE_START || area.base >= memory::HOLE_END, "{mib} MiB: RAM in the hole");
            }
            assert!(map.len() <= 4);
        }
    }
}
