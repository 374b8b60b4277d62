//! One split virtqueue (2.7): what its driver says about it, checked once and then fixed, and the chains in it.
//!
//! `virtio-queue` walks rings and chains and keeps every access inside guest RAM, but it ends a chain silently where the
//! chain is broken. So a chain is read once, whole, into segments that were checked, and is refused where it did not end
//! by itself; nothing looks at its descriptors a second time.

use super::QueueError;
use crate::memory::{GuestMemory, Segment, TRANSFER_SEGMENTS};
use std::borrow::Borrow;
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// The most segments of a chain, in all. As large as the largest queue, because a chain is never longer than its queue
/// (2.7.5.2); drivers hold an indirect table to the same.
pub const CHAIN_MAX: usize = TRANSFER_SEGMENTS;

/// Where and how large a driver wants its queue: allegations until [`Virtqueue::enable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// Descriptors.
    pub size: u32,
    /// Descriptor table.
    pub descriptors: u64,
    /// Driver area: the available ring.
    pub driver: u64,
    /// Device area: the used ring.
    pub device: u64,
}

/// One queue.
#[derive(Debug)]
pub struct Virtqueue {
    /// As the registers were written. Of no effect once the queue is ready.
    pub setup: Setup,
    queue: Queue,
    /// Index of the used ring when the driver's wish for an interrupt was last looked at.
    asked_at: u16,
}

/// Layout of the used ring (2.7.8).
const USED_INDEX: u64 = 2;
const USED_RING: u64 = 4;
const USED_ELEMENT: u64 = 8;
/// Layout of the available ring (2.7.6); its used_event comes behind the entries.
const AVAILABLE_RING: u64 = 4;

impl Virtqueue {
    /// A queue that is not set up.
    ///
    /// # Errors
    /// `max` is no power of two.
    pub fn new(max: u16) -> Result<Self, QueueError> {
        let setup = Setup { size: max.into(), descriptors: 0, driver: 0, device: 0 };
        Ok(Self { setup, queue: Queue::new(max)?, asked_at: 0 })
    }

    /// The largest size.
    pub fn max_size(&self) -> u16 {
        self.queue.max_size()
    }

    /// The driver set it up, and it was found usable.
    pub fn ready(&self) -> bool {
        self.queue.ready()
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.disable();
        self.setup = Setup { size: self.max_size().into(), descriptors: 0, driver: 0, device: 0 };
    }

    /// The driver takes back a queue that it had called ready.
    pub fn disable(&mut self) {
        self.queue.reset();
        self.asked_at = 0;
    }

    /// Takes the set-up as it is now, for good: what the registers say later is not looked at again (CVE-2026-5747 was a
    /// size that changed after this point).
    ///
    /// # Errors
    /// Size, alignment or place are impossible; the queue is not ready then.
    pub fn enable(&mut self, mem: &GuestMemory) -> Result<(), QueueError> {
        let result = self.take_setup(mem);
        if result.is_err() {
            self.disable();
        }
        result
    }

    fn take_setup(&mut self, mem: &GuestMemory) -> Result<(), QueueError> {
        let Setup { size, descriptors, driver, device } = self.setup;
        self.disable();
        self.queue.try_set_size(u16::try_from(size).map_err(|_| Error::InvalidSize)?)?;
        self.queue.try_set_desc_table_address(GuestAddress(descriptors))?;
        self.queue.try_set_avail_ring_address(GuestAddress(driver))?;
        self.queue.try_set_used_ring_address(GuestAddress(device))?;
        self.queue.set_ready(true);
        // `Queue` takes an available ring at 0 for one that was never set.
        if driver == 0 || !self.queue.is_valid(mem) {
            return Err(Error::QueueNotReady.into());
        }
        Ok(())
    }

    /// The driver is ready, and uses event indices or does not.
    pub fn activate(&mut self, event_index: bool) {
        self.queue.set_event_idx(event_index);
    }

    /// Reads the next available chain into `chain`; false where there is none.
    ///
    /// # Errors
    /// The available ring ran away, or the chain is broken.
    pub fn pop(&mut self, mem: &GuestMemory, chain: &mut Chain) -> Result<bool, QueueError> {
        match self.queue.iter(mem)?.next() {
            Some(descriptors) => chain.fill(mem, descriptors).map(|()| true),
            None => Ok(false),
        }
    }

    /// Undoes the last [`Virtqueue::pop`]: that chain is the next one again.
    pub fn unpop(&mut self) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(1));
    }

    /// How many chains can be popped, as the driver says.
    ///
    /// # Errors
    /// As [`Virtqueue::pop`].
    pub fn available(&self, mem: &GuestMemory) -> Result<u16, QueueError> {
        let index = self.queue.avail_idx(mem, Ordering::Acquire)?;
        Ok(index.0.wrapping_sub(self.queue.next_avail()))
    }

    /// Gives a chain back, with `written` bytes in it.
    ///
    /// # Errors
    /// As [`Virtqueue::push_all`].
    pub fn push(&mut self, mem: &GuestMemory, head: u16, written: u32) -> Result<(), QueueError> {
        self.push_all(mem, std::iter::once((head, written)))
    }

    /// Gives chains back, heads and bytes written, fewer than the queue has descriptors. The driver sees none of them before it
    /// sees all: the ring is written first, and its index moves once, which `Queue::add_used` would do for each.
    ///
    /// # Errors
    /// A head is none of this queue's.
    pub fn push_all(&mut self, mem: &GuestMemory, chains: impl Iterator<Item = (u16, u32)>) -> Result<(), QueueError> {
        let (ring, size) = (self.queue.used_ring(), self.queue.size());
        let mut index = self.queue.next_used();
        for (head, written) in chains {
            if head >= size {
                return Err(Error::InvalidDescriptorIndex.into());
            }
            let place = ring + USED_RING + USED_ELEMENT * u64::from(index % size);
            let element = u64::from(written) << 32 | u64::from(head);
            mem.write_obj(element.to_le(), GuestAddress(place)).map_err(Error::GuestMemory)?;
            index = index.wrapping_add(1);
        }
        self.queue.set_next_used(index);
        Ok(mem.store(index.to_le(), GuestAddress(ring + USED_INDEX), Ordering::Release).map_err(Error::GuestMemory)?)
    }

    /// Asks for a kick for what comes next; true where something came already.
    ///
    /// # Errors
    /// As [`Virtqueue::pop`].
    pub fn enable_kicks(&mut self, mem: &GuestMemory) -> Result<bool, QueueError> {
        Ok(self.queue.enable_notification(mem)?)
    }

    /// Does the driver want an interrupt for what was pushed since the last question?
    ///
    /// # Errors
    /// As [`Virtqueue::pop`].
    pub fn wants_interrupt(&mut self, mem: &GuestMemory) -> Result<bool, QueueError> {
        // The used index is out before the driver's wish is read (2.7.7.2).
        fence(Ordering::SeqCst);
        let wish = |offset| mem.load::<u16>(GuestAddress(self.queue.avail_ring() + offset), Ordering::Relaxed);
        if !self.queue.event_idx_enabled() {
            let flags = u16::from_le(wish(0).map_err(Error::GuestMemory)?);
            return Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let event = wish(AVAILABLE_RING + 2 * u64::from(self.queue.size())).map_err(Error::GuestMemory)?;
        let now = self.queue.next_used();
        let before = std::mem::replace(&mut self.asked_at, now);
        // Is the wished-for index among those that came since (2.7.7.2)? All of it modulo 2^16.
        Ok(now.wrapping_sub(u16::from_le(event)).wrapping_sub(1) < now.wrapping_sub(before))
    }
}

/// A descriptor chain that was read and checked: what the device may read, then what it may write.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

impl Default for Chain {
    fn default() -> Self {
        Self { head: 0, readable: Vec::with_capacity(CHAIN_MAX), writable: Vec::with_capacity(CHAIN_MAX) }
    }
}

impl Chain {
    /// Its first descriptor, which names it in the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the device may read. None of the segments is empty, and each is whole inside RAM.
    pub fn readable(&self) -> &[Segment] {
        &self.readable
    }

    /// What the device may write; as [`Chain::readable`].
    pub fn writable(&self) -> &[Segment] {
        &self.writable
    }

    fn fill(&mut self, mem: &GuestMemory, chain: DescriptorChain<&GuestMemory>) -> Result<(), QueueError> {
        self.head = chain.head_index();
        self.readable.clear();
        self.writable.clear();
        // A chain of which no descriptor could be read is broken as well.
        let mut ended = false;
        for descriptor in chain {
            let segment = Segment { address: descriptor.addr(), length: descriptor.len() };
            if self.readable.len() + self.writable.len() == CHAIN_MAX {
                return Err(QueueError::Chain("too long"));
            }
            if segment.length == 0 {
                return Err(QueueError::Chain("an empty buffer"));
            }
            if mem.get_slice(segment.address, segment.length as usize).is_err() {
                return Err(QueueError::Chain("a buffer outside of RAM"));
            }
            if descriptor.is_write_only() {
                self.writable.push(segment);
            } else if self.writable.is_empty() {
                self.readable.push(segment);
            } else {
                return Err(QueueError::Chain("a buffer to read behind one to write"));
            }
            ended = !descriptor.has_next();
        }
        if ended { Ok(()) } else { Err(QueueError::Chain("a loop, or a link to nowhere")) }
    }
}

/// Bytes of `segments` together. A chain has fewer than 2^32 (2.7.5.2), which `virtio-queue` holds it to.
pub fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| u64::from(s.length)).sum()
}

/// The part of `segments` from byte `skip` on, `take` bytes of it or as many as there are.
pub fn part<S: Borrow<Segment>>(
    segments: impl IntoIterator<Item = S>,
    skip: u64,
    take: u64,
) -> impl Iterator<Item = Segment> {
    let (mut skip, mut take) = (skip, take);
    segments.into_iter().filter_map(move |segment| {
        let segment = segment.borrow();
        let length = u64::from(segment.length);
        let first = skip.min(length);
        skip -= first;
        let count = take.min(length - first);
        take -= count;
        // Both are at most `length`, which is 32 bits wide, and the segment is inside RAM: nothing wraps.
        (count > 0).then(|| Segment { address: GuestAddress(segment.address.0 + first), length: count as u32 })
    })
}

/// Copies the beginning of `segments` into `bytes`; false where they are too short.
pub fn read<S: Borrow<Segment>>(mem: &GuestMemory, segments: impl IntoIterator<Item = S>, bytes: &mut [u8]) -> bool {
    let mut done = 0;
    for piece in part(segments, 0, bytes.len() as u64) {
        let end = done + piece.length as usize;
        if mem.read_slice(&mut bytes[done..end], piece.address).is_err() {
            return false;
        }
        done = end;
    }
    done == bytes.len()
}

/// Copies `bytes` to the beginning of `segments`, as many as fit; says how many.
pub fn write<S: Borrow<Segment>>(mem: &GuestMemory, segments: impl IntoIterator<Item = S>, bytes: &[u8]) -> usize {
    let mut done = 0;
    for piece in part(segments, 0, bytes.len() as u64) {
        let end = done + piece.length as usize;
        if mem.write_slice(&bytes[done..end], piece.address).is_err() {
            break;
        }
        done = end;
    }
    done
}

#[cfg(test)]
mod tests;
