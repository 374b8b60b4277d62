//! bzImages: the compressed kernel of Linux, entered in 64-bit mode (kernel documentation, x86/boot, "64-bit boot
//! protocol").

use super::image::{Image, Kernel};
use super::layout::{HIGH_RAM, MIB};
use super::{BootError, is_free, too_small};
use crate::memory::GuestMemory;
use linux_loader::loader::{BzImage, KernelLoader, bootparam::setup_header};
use vm_memory::{ByteValued, GuestAddress};

/// Where the setup header begins in the file.
const SETUP_HEADER: u64 = 0x1f1;
/// Protocol 2.12 (Linux 3.8) brought `xloadflags`, which say that there is a 64-bit entry.
const PROTOCOL_MIN: u16 = 0x020c;
/// Bit of `xloadflags`: there is a 64-bit entry, [`ENTRY_64`] bytes after the load address.
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;
/// The largest image that is read.
const SIZE_MAX: u64 = 1 << 30;

/// Loads the image.
///
/// # Errors
/// What is wrong with it.
pub fn load(memory: &GuestMemory, mut kernel: Kernel, low_end: u64) -> Result<Image, BootError> {
    let header = read_header(&kernel)?;
    let version = header.version;
    if version < PROTOCOL_MIN || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(bad(format!(
            "has no 64-bit entry (boot protocol {}.{:02}): a kernel for x86_64 of Linux 3.8 or later is needed",
            version >> 8,
            version & 0xff
        )));
    }
    if kernel.size > SIZE_MAX {
        return Err(bad(format!("has {} MiB, where {} are possible", kernel.size / MIB, SIZE_MAX / MIB)));
    }
    // A relocatable kernel unpacks itself where it was loaded, or at its preferred address where that is higher.
    let load = if header.relocatable_kernel != 0 { HIGH_RAM } else { header.pref_address };
    let base = load.max(header.pref_address);
    let end = base.saturating_add(u64::from(header.init_size)).max(load.saturating_add(kernel.size));
    if load < HIGH_RAM {
        return Err(bad(format!("wants to be loaded at {load:#x}; the first MiB is taken")));
    }
    if !is_free(load, end, low_end) {
        return Err(bad(too_small("unpacks itself and", end, low_end)));
    }
    let loaded = BzImage::load(memory, Some(GuestAddress(load)), &mut kernel.file, Some(GuestAddress(HIGH_RAM)))
        .map_err(|_| bad("is cut short, or got shorter while it was read".into()))?;
    // The loader sought to the end again: what it read must be what was measured.
    if loaded.kernel_end > end {
        return Err(bad("changed while it was read".into()));
    }
    Ok(Image::Compressed { entry: load + ENTRY_64, end, header: Box::new(header) })
}

fn bad(why: String) -> BootError {
    BootError::Kernel(why)
}

fn read_header(kernel: &Kernel) -> Result<setup_header, BootError> {
    let mut header = setup_header::default();
    let bytes = kernel.read("setup header", SETUP_HEADER, size_of::<setup_header>())?;
    header.as_mut_slice().copy_from_slice(&bytes);
    Ok(header)
}
