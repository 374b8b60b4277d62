//! The worker's end of the console ring: what the guest printed last, in a memfd that the supervisor reads.
//!
//! Written on the vCPU threads, under the lock of the serial port, byte by byte as the guest prints. A write is two
//! stores and now and then one `write(2)`: it waits for nobody, least of all for a reader. Layout and protocol are
//! those of `worker_api::console`.

use rustix::fd::OwnedFd;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, mmap::MmapRegionError};
use worker_api::console::{CAPACITY, DATA, RING_BYTES, SEEN, WRITTEN};

/// The console's fds: used by the devices, and kept to be handed to a supervisor that comes back.
#[derive(Debug, Clone)]
pub struct ConsoleEnds {
    /// The memfd of `worker_api::console`.
    pub ring: Arc<File>,
    /// Eventfd that is written when the ring has news for its reader.
    pub notify: Arc<OwnedFd>,
    /// Pipe: what the guest gets on COM1.
    pub input: Arc<OwnedFd>,
}

impl ConsoleEnds {
    /// In the order of `worker_api::Reply::Console`.
    pub fn fds(&self) -> [BorrowedFd<'_>; 3] {
        [self.ring.as_fd(), self.notify.as_fd(), self.input.as_fd()]
    }
}

/// The ring, seen from the guest's side.
#[derive(Debug)]
pub struct ConsoleRing {
    map: MmapRegion,
    /// Bytes that the guest wrote so far. The copy in the ring is for the reader; it is never read back.
    written: u64,
    notify: Arc<OwnedFd>,
}

impl ConsoleRing {
    /// Maps the ring: a memfd that was found to have [`RING_BYTES`] and to be sealed against shrinking.
    ///
    /// # Errors
    /// What `mmap(2)` says.
    pub fn new(ring: Arc<File>, notify: Arc<OwnedFd>) -> Result<Self, MmapRegionError> {
        let map = MmapRegion::from_file(FileOffset::from_arc(ring, 0), RING_BYTES as usize)?;
        Ok(Self { map, written: 0, notify })
    }

    /// Stores some bytes and tells the reader, if it may be asleep.
    fn append(&mut self, bytes: &[u8]) -> Result<(), vm_memory::VolatileMemoryError> {
        let ring = self.map.as_volatile_slice();
        let before = self.written;
        for byte in bytes {
            ring.write_obj(*byte, (DATA + self.written % CAPACITY) as usize)?;
            self.written = self.written.wrapping_add(1);
        }
        ring.store(self.written.to_le(), WRITTEN as usize, Ordering::Release)?;
        // The reader stores `seen` and then looks at `written`; here it is the other way round. With a full fence on
        // both sides one of the two sees the other's store, so a reader that goes to sleep is always told.
        fence(Ordering::SeqCst);
        let seen = u64::from_le(ring.load(SEEN as usize, Ordering::Relaxed)?);
        if seen == before {
            // A reader that is gone needs no news.
            let _ = rustix::io::write(&self.notify, &1u64.to_ne_bytes());
        }
        Ok(())
    }
}

impl Write for ConsoleRing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // All offsets are inside the mapping and aligned: this cannot fail.
        self.append(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A ring as the supervisor has it, for tests of all that prints.
#[cfg(test)]
pub(crate) mod reader {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::os::unix::fs::FileExt;

    pub(crate) struct Reader {
        ring: std::fs::File,
        notify: OwnedFd,
    }

    impl Reader {
        /// A ring of zeros, and the worker's two fds of it.
        pub(crate) fn new() -> (Self, OwnedFd, OwnedFd) {
            let ring = memfd_create("ring", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&ring, RING_BYTES).unwrap();
            let notify = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
            let theirs = (ring.try_clone().unwrap(), notify.try_clone().unwrap());
            (Self { ring: ring.into(), notify }, theirs.0, theirs.1)
        }

        pub(crate) fn written(&self) -> u64 {
            let mut bytes = [0; 8];
            self.ring.read_exact_at(&mut bytes, WRITTEN).unwrap();
            u64::from_le_bytes(bytes)
        }

        pub(crate) fn set_seen(&self, seen: u64) {
            self.ring.write_all_at(&seen.to_le_bytes(), SEEN).unwrap();
        }

        /// Byte number `from` and the `count - 1` after it.
        pub(crate) fn bytes(&self, from: u64, count: usize) -> Vec<u8> {
            let byte = |n: u64| {
                let mut byte = [0];
                self.ring.read_exact_at(&mut byte, DATA + n % CAPACITY).unwrap();
                byte[0]
            };
            (from..from + count as u64).map(byte).collect()
        }

        /// Signals since the last look.
        pub(crate) fn signals(&self) -> u64 {
            let mut count = [0; 8];
            rustix::io::read(&self.notify, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::reader::Reader;
    use super::*;

    fn ring() -> (ConsoleRing, Reader) {
        let (reader, ring, notify) = Reader::new();
        (ConsoleRing::new(Arc::new(ring.into()), Arc::new(notify)).unwrap(), reader)
    }

    #[test]
    fn what_the_guest_prints_is_in_the_ring_in_order() {
        let (mut ring, reader) = ring();
        ring.write_all(b"hello").unwrap();
        ring.write_all(b", world").unwrap();
        assert_eq!(reader.written(), 12);
        assert_eq!(reader.bytes(0, 12), b"hello, world");
    }

    #[test]
    fn a_reader_that_never_reads_is_told_once_and_blocks_nobody() {
        let (mut ring, reader) = ring();
        for _ in 0..3 * CAPACITY {
            ring.write_all(b"x").unwrap();
        }
        assert_eq!(reader.signals(), 1);
        assert_eq!(reader.written(), 3 * CAPACITY, "every byte is counted");
    }

    #[test]
    fn a_flood_keeps_the_newest_bytes_and_counts_the_lost_ones() {
        let (mut ring, reader) = ring();
        let total = 2 * CAPACITY + 123;
        for n in 0..total {
            ring.write_all(&[(n % 251) as u8]).unwrap();
        }
        let (lost, start) = worker_api::console::available(0, reader.written());
        assert_eq!((lost, start), (total - CAPACITY, total - CAPACITY));
        let kept = reader.bytes(start, CAPACITY as usize);
        assert!(kept.iter().zip(start..).all(|(byte, n)| *byte == (n % 251) as u8));
    }

    #[test]
    fn a_reader_is_told_again_each_time_it_had_caught_up() {
        let (mut ring, reader) = ring();
        ring.write_all(b"a").unwrap();
        assert_eq!(reader.signals(), 1);
        ring.write_all(b"b").unwrap();
        assert_eq!(reader.signals(), 0, "it has not caught up");
        reader.set_seen(2);
        ring.write_all(b"c").unwrap();
        assert_eq!(reader.signals(), 1);
    }

    #[test]
    fn a_lying_reader_changes_nothing_but_its_own_signals() {
        let (mut ring, reader) = ring();
        for seen in [u64::MAX, 1 << 63, 7, 0] {
            reader.set_seen(seen);
            ring.write_all(b"z").unwrap();
        }
        assert_eq!(reader.written(), 4);
        assert_eq!(reader.bytes(0, 4), b"zzzz");
    }
}
