//! From a kernel image to a guest that can be entered: image, initrd, command line and tables in guest RAM.
//!
//! Runs on the main thread, under the start-up filter, before the guest's first instruction. Image and initrd come from
//! whoever owns the VM and are hostile: every size and address in them is checked against guest RAM before it is used,
//! and each failure is one sentence about the file that is at fault.

use crate::devices::VirtioSlot;
use crate::memory::GuestMemory;
use layout::{CMDLINE, HIGH_RAM, MIB};
use std::os::fd::OwnedFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use worker_api::{Part, StartFailure};

pub mod acpi;
mod bzimage;
mod elf;
mod image;
mod initrd;
pub mod layout;
mod linux;
mod pvh;
pub mod registers;
mod reset;

use image::Image;

/// What is to be booted.
pub struct Sources<'a> {
    /// The kernel image.
    pub kernel: OwnedFd,
    /// The initrd, if there is one.
    pub initrd: Option<OwnedFd>,
    /// The kernel command line.
    pub cmdline: &'a str,
    /// How many vCPUs the tables tell of.
    pub cpus: u8,
    /// Which devices the tables tell of.
    pub virtio: &'a [VirtioSlot],
}

/// How the first vCPU enters the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// The PVH protocol: 32-bit protected mode, paging off, `ebx` holds the address of the start info.
    Pvh {
        /// Where execution begins.
        rip: u32,
        /// Guest physical address of the hvm_start_info.
        start_info: u32,
    },
    /// The 64-bit protocol of Linux: long mode, identity map, `rsi` holds the address of the zero page.
    Linux64 {
        /// Where execution begins.
        rip: u64,
        /// Guest physical address of the boot_params.
        zero_page: u64,
        /// Guest physical address of the top page table.
        page_table: u64,
    },
}

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel image.
    #[error("boot.kernel {0}")]
    Kernel(String),
    /// The initrd.
    #[error("boot.initrd {0}")]
    Initrd(String),
    /// The command line.
    #[error("boot.cmdline {0}")]
    Cmdline(String),
    /// Guest RAM did not take what was to be written; a fault of this program.
    #[error("guest memory cannot be written: {0}")]
    Memory(#[from] GuestMemoryError),
    /// The structures of a boot protocol do not fit; a fault of this program.
    #[error("the boot parameters cannot be written: {0}")]
    Parameters(linux_loader::configurator::Error),
}

impl From<BootError> for StartFailure {
    fn from(error: BootError) -> Self {
        let part = match error {
            BootError::Kernel(_) => Part::Kernel,
            BootError::Initrd(_) => Part::Initrd,
            BootError::Cmdline(_) => Part::Cmdline,
            BootError::Memory(_) | BootError::Parameters(_) => Part::Memory,
        };
        StartFailure { part, detail: error.to_string() }
    }
}

/// What every boot protocol tells the guest of.
struct Tables {
    /// Address and length, page-aligned.
    initrd: Option<(u64, u64)>,
    /// Guest physical address of the RSDP.
    rsdp: u64,
    memory_map: Vec<layout::Area>,
}

/// Loads everything into `memory`, which is fresh: all zero.
///
/// # Errors
/// The file at fault and what is wrong with it.
pub fn load(memory: &GuestMemory, ram_bytes: u64, sources: Sources<'_>) -> Result<Entry, BootError> {
    let kernel = image::Kernel::new(sources.kernel)?;
    let low_end = ram_bytes.min(crate::memory::HOLE_START);
    let image = match kernel.format {
        image::Format::Elf => elf::load(memory, kernel, low_end)?,
        image::Format::BzImage => bzimage::load(memory, kernel, low_end)?,
    };
    let initrd = match sources.initrd {
        Some(file) => Some(initrd::load(memory, file, image.end(), image.initrd_limit().min(low_end))?),
        None => None,
    };
    write_cmdline(memory, sources.cmdline, image.cmdline_max())?;
    let rsdp = acpi::write(memory, sources.cpus, sources.virtio)?;
    reset::write(memory)?;
    let tables = Tables { initrd, rsdp, memory_map: layout::memory_map(ram_bytes) };
    match image {
        Image::Pvh { entry, .. } => pvh::write(memory, entry, &tables),
        Image::Elf64 { entry, end } => linux::write(memory, entry, end, linux::header_of_an_elf(), &tables),
        Image::Compressed { entry, end, header } => linux::write(memory, entry, end, *header, &tables),
    }
}

fn write_cmdline(memory: &GuestMemory, cmdline: &str, longest: usize) -> Result<(), BootError> {
    if cmdline.len() > longest {
        return Err(BootError::Cmdline(format!("has {} bytes, of which this kernel takes {longest}", cmdline.len())));
    }
    // RAM is fresh, so the NUL that ends it is there; the area is one byte longer than the longest command line.
    Ok(memory.write_slice(cmdline.as_bytes(), GuestAddress(CMDLINE))?)
}

/// "has no room", in the words that every caller shares.
fn too_small(what: &str, needed_end: u64, low_end: u64) -> String {
    format!(
        "{what} needs guest memory up to {} MiB, and there is memory up to {} MiB (below 3 GiB): raise memory_mib",
        needed_end.div_ceil(MIB),
        low_end / MIB
    )
}

/// True where `start..end` is RAM that no boot structure uses.
fn is_free(start: u64, end: u64, low_end: u64) -> bool {
    start >= HIGH_RAM && end >= start && end <= low_end
}

#[cfg(test)]
mod tests;
