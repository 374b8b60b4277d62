//! The port and MMIO buses: from an address that the guest chose to the device behind it.
//!
//! Runs on the vCPU threads; most devices take one access at a time. The map is fixed before the first vCPU runs, so a
//! look-up takes no lock, and nothing here allocates. What no device claims reads as all ones and swallows writes, as
//! on a PC.

use std::sync::{Arc, Mutex};

/// A device's registers. `offset` counts from the start of the range that it was inserted at, and
/// `offset + data.len()` never leaves that range; everything else about an access is the guest's choice.
pub trait BusDevice: Send {
    /// Fills `data`, all of it.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes `data`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// What is on the bus. Several vCPUs may come at once.
pub trait Registers: Send + Sync {
    /// As [`BusDevice::read`].
    fn read(&self, offset: u64, data: &mut [u8]);
    /// As [`BusDevice::write`].
    fn write(&self, offset: u64, data: &[u8]);
}

/// A device that takes one access at a time.
impl<D: BusDevice> Registers for Mutex<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(self).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        lock(self).write(offset, data);
    }
}

/// A range that cannot be on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// It has no address, or its end is past the last address.
    #[error("bus range {base:#x}+{size:#x} is empty or wraps around")]
    Bounds {
        /// First address.
        base: u64,
        /// Addresses in it.
        size: u64,
    },
    /// Another device has a part of it.
    #[error("bus range {base:#x}+{size:#x} overlaps the one at {other:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Addresses in it.
        size: u64,
        /// First address of the range that was there before.
        other: u64,
    },
}

struct Range {
    base: u64,
    size: u64,
    device: Arc<dyn Registers>,
}

/// Devices by address.
#[derive(Default)]
pub struct Bus {
    /// Sorted by `base`, without overlap.
    ranges: Vec<Range>,
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `base`, for `size` addresses. Before the vCPUs run.
    ///
    /// # Errors
    /// The range is impossible, or taken.
    pub fn insert(&mut self, base: u64, size: u64, device: Arc<dyn Registers>) -> Result<(), BusError> {
        let last = size.checked_sub(1).and_then(|n| base.checked_add(n)).ok_or(BusError::Bounds { base, size })?;
        let place = self.ranges.partition_point(|r| r.base < base);
        // No range wraps, so `r.base + (r.size - 1)` is its last address.
        let before = place.checked_sub(1).map(|n| &self.ranges[n]).filter(|r| r.base + (r.size - 1) >= base);
        let after = self.ranges.get(place).filter(|r| r.base <= last);
        if let Some(other) = before.or(after) {
            return Err(BusError::Overlap { base, size, other: other.base });
        }
        self.ranges.insert(place, Range { base, size, device });
        Ok(())
    }

    /// A guest's read. Where no device has all of the access, ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A guest's write. Where no device has all of the access, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    fn find(&self, address: u64, length: usize) -> Option<(u64, &dyn Registers)> {
        let range = &self.ranges[self.ranges.partition_point(|r| r.base <= address).checked_sub(1)?];
        let offset = address - range.base;
        let room = range.size.checked_sub(offset)?;
        (length as u64 <= room && length > 0).then_some((offset, &*range.device))
    }
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.ranges.iter().map(|r| (r.base, r.size))).finish()
    }
}

/// Locks a device. A poisoned lock means that a thread panicked, after which this process does not live on.
pub fn lock<T: ?Sized>(device: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    device.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers the last write and answers reads with its offset.
    #[derive(Default)]
    struct Probe {
        written: Option<(u64, Vec<u8>)>,
        reads: usize,
    }

    impl BusDevice for Probe {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            self.reads += 1;
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.written = Some((offset, data.to_vec()));
        }
    }

    fn probe() -> Arc<Mutex<Probe>> {
        Arc::default()
    }

    #[test]
    fn an_access_reaches_the_device_that_has_all_of_it() {
        let (low, high) = (probe(), probe());
        let mut bus = Bus::new();
        bus.insert(0x2000, 0x10, high.clone()).unwrap();
        bus.insert(0x1000, 0x10, low.clone()).unwrap();
        bus.write(0x100c, &[1, 2, 3, 4]);
        assert_eq!(low.lock().unwrap().written, Some((0xc, vec![1, 2, 3, 4])));
        let mut byte = [0];
        bus.read(0x2003, &mut byte);
        assert_eq!(byte, [3]);
        assert_eq!(low.lock().unwrap().reads, 0);
    }

    #[test]
    fn what_nobody_claims_reads_as_ones_and_swallows_writes() {
        let device = probe();
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x10, device.clone()).unwrap();
        for (address, length) in [(0xfff, 1), (0x1010, 1), (0, 8), (u64::MAX, 1), (0x1000, 0)] {
            let mut data = vec![0; length];
            bus.read(address, &mut data);
            bus.write(address, &data.clone());
            assert!(data.iter().all(|b| *b == 0xff), "{address:#x}");
        }
        assert_eq!(device.lock().unwrap().reads, 0);
        assert_eq!(device.lock().unwrap().written, None);
    }

    #[test]
    fn an_access_across_the_end_of_a_range_reaches_no_device() {
        let (first, second) = (probe(), probe());
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x10, first.clone()).unwrap();
        bus.insert(0x1010, 0x10, second.clone()).unwrap();
        let mut data = [0; 4];
        bus.read(0x100e, &mut data);
        bus.write(0x100e, &data);
        assert_eq!(data, [0xff; 4]);
        for device in [first, second] {
            let device = device.lock().unwrap();
            assert_eq!((device.reads, device.written.clone()), (0, None));
        }
    }

    #[test]
    fn two_devices_never_share_an_address() {
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x10, probe()).unwrap();
        for (base, size) in [(0x1000, 0x10), (0xfff, 2), (0x100f, 1), (0x1004, 4), (0x0, 0x5000)] {
            assert_eq!(bus.insert(base, size, probe()), Err(BusError::Overlap { base, size, other: 0x1000 }));
        }
        for (base, size) in [(0x2000, 0), (u64::MAX, 2)] {
            assert_eq!(bus.insert(base, size, probe()), Err(BusError::Bounds { base, size }));
        }
        bus.insert(u64::MAX, 1, probe()).unwrap();
        bus.insert(0x1010, 1, probe()).unwrap();
        bus.insert(0xfff, 1, probe()).unwrap();
    }
}
