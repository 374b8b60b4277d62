//! The initrd: below the limit that the kernel sets, page-aligned, as high as it may, so that the kernel has room to
//! unpack itself.

use super::{BootError, image, layout::MIB};
use crate::memory::GuestMemory;
use std::fs::File;
use std::os::fd::OwnedFd;

const PAGE: u64 = 4096;

/// Loads the initrd between `floor` (the end of the kernel) and `limit`; returns its address and length.
///
/// # Errors
/// It cannot be read, or has no room.
pub fn load(memory: &GuestMemory, fd: OwnedFd, floor: u64, limit: u64) -> Result<(u64, u64), BootError> {
    let mut file = File::from(fd);
    let length = image::regular_size(&file).map_err(BootError::Initrd)?;
    if length == 0 {
        return Err(BootError::Initrd("is empty".into()));
    }
    let address = place(length, floor, limit).ok_or_else(|| {
        BootError::Initrd(format!(
            "has {} MiB, and beside the kernel there is room for {} MiB: raise memory_mib",
            length.div_ceil(MIB),
            limit.saturating_sub(floor) / MIB
        ))
    })?;
    image::copy(memory, &mut file, 0, address, length).map_err(BootError::Initrd)?;
    Ok((address, length))
}

/// The highest page-aligned address at which `length` bytes fit between `floor` and `limit`.
fn place(length: u64, floor: u64, limit: u64) -> Option<u64> {
    let address = limit.checked_sub(length)? / PAGE * PAGE;
    (address >= floor).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_initrd_lies_as_high_as_it_fits() {
        assert_eq!(place(1, 0x10_0000, 0x800_0000), Some(0x7ff_f000));
        assert_eq!(place(0x1001, 0x10_0000, 0x800_0000), Some(0x7ff_e000));
        assert_eq!(place(0x1000, 0x7ff_f000, 0x800_0000), Some(0x7ff_f000));
    }

    #[test]
    fn an_initrd_never_lies_over_the_kernel_or_past_the_limit() {
        assert_eq!(place(0x1001, 0x7ff_f000, 0x800_0000), None);
        assert_eq!(place(u64::MAX, 0, 0x800_0000), None);
        assert_eq!(place(1, 0x800_0000, 0x10_0000), None);
    }
}
