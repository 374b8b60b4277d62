//! The PVH boot protocol (Xen, docs/misc/pvh): one start info that leads to all the rest.

use super::layout::{CMDLINE, PVH_MEMORY_MAP, PVH_MODULES, PVH_START_INFO};
use super::{BootError, Entry, Tables};
use crate::memory::GuestMemory;
use linux_loader::configurator::{BootConfigurator, BootParams, pvh::PvhBootConfigurator};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::GuestAddress;

/// Writes the start info.
pub(super) fn write(memory: &GuestMemory, entry: u32, tables: &Tables) -> Result<Entry, BootError> {
    let map: Vec<hvm_memmap_table_entry> = tables
        .memory_map
        .iter()
        .map(|area| hvm_memmap_table_entry { addr: area.base, size: area.size, type_: area.kind, reserved: 0 })
        .collect();
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: CMDLINE,
        rsdp_paddr: tables.rsdp,
        memmap_paddr: PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..hvm_start_info::default()
    };
    let modules: Vec<hvm_modlist_entry> = tables
        .initrd
        .map(|(paddr, size)| hvm_modlist_entry { paddr, size, cmdline_paddr: 0, reserved: 0 })
        .into_iter()
        .collect();
    if !modules.is_empty() {
        info.nr_modules = 1;
        info.modlist_paddr = PVH_MODULES;
    }
    let mut parameters = BootParams::new(&info, GuestAddress(PVH_START_INFO));
    parameters.set_sections(&map, GuestAddress(PVH_MEMORY_MAP));
    if !modules.is_empty() {
        parameters.set_modules(&modules, GuestAddress(PVH_MODULES));
    }
    PvhBootConfigurator::write_bootparams(&parameters, memory).map_err(BootError::Parameters)?;
    Ok(Entry::Pvh { rip: entry, start_info: PVH_START_INFO as u32 })
}
