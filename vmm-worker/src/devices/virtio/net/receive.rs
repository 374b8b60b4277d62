//! From the network to the guest: chains that the driver left for packets, and packets read straight into them.
//!
//! A packet is not known before it is read, so there has to be room for the largest before the TAP is asked. Chains that a
//! packet left over stay here for the next one; no chain is read twice.

use super::super::QueueError;
use super::super::queue::{self, Chain, Virtqueue, part};
use super::header::{self, Agreed, Header};
use super::layer4;
use crate::memory::{self, GuestMemory, Segment, TRANSFER_SEGMENTS};
use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use virtio_bindings::virtio_net as v;

/// Bytes of a frame beside its packet: Ethernet's header with a VLAN tag.
pub const FRAME_OVERHEAD: u64 = 14 + 4;
/// Bytes of the largest IPv4 packet, and so of the largest segment that is to be cut.
pub const SEGMENT_MAX: u64 = 65535;
const HEADER: u64 = header::LENGTH as u64;

/// How much room a packet may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes, virtio's header included.
    bytes: u64,
    /// One packet may go over several chains (VIRTIO_NET_F_MRG_RXBUF).
    mergeable: bool,
}

impl Room {
    /// For a driver that agreed to this, on a network of this MTU.
    pub fn new(agreed: Agreed, mtu: u16) -> Self {
        let packet = if agreed.takes_segments() { SEGMENT_MAX } else { mtu.into() };
        Self { bytes: HEADER + FRAME_OVERHEAD + packet, mergeable: agreed.has(v::VIRTIO_NET_F_MRG_RXBUF) }
    }
}

/// A chain that was popped.
#[derive(Debug, Clone, Copy)]
struct Taken {
    head: u16,
    segments: usize,
    bytes: u64,
}

/// What a read from the TAP brought.
#[derive(Debug)]
pub enum Read {
    /// A packet, in the first chains: its header, and the bytes of its frame.
    Packet(Header, u64),
    /// A packet that is longer than the room that there was, with its header and the bytes that there was room for; the rest
    /// of it is lost.
    TooLong(Header, u64),
    /// A packet that the kernel cannot describe to virtio; it is lost.
    Odd,
    /// Nothing now.
    Nothing,
    /// Nothing any more: the interface is gone.
    End,
}

/// The chains of one receive queue that were popped and not given back.
#[derive(Debug)]
pub struct Buffers {
    chains: VecDeque<Taken>,
    /// All segments of `chains`, at most as many as one system call takes.
    segments: VecDeque<Segment>,
    bytes: u64,
    /// The most chains that the driver ever had here at once.
    most: usize,
    /// There was room for the largest packet once.
    sufficed: bool,
}

impl Buffers {
    /// None.
    pub fn new() -> Self {
        let (chains, segments) =
            (VecDeque::with_capacity(TRANSFER_SEGMENTS), VecDeque::with_capacity(TRANSFER_SEGMENTS));
        Self { chains, segments, bytes: 0, most: 0, sufficed: false }
    }

    /// Forgets all: the driver reset the device.
    pub fn clear(&mut self) {
        self.chains.clear();
        self.segments.clear();
        (self.bytes, self.most, self.sufficed) = (0, 0, false);
    }

    /// Pops chains until there is room. False where the driver has to offer more first.
    ///
    /// # Errors
    /// A chain is broken, or is none for packets.
    pub fn gather(
        &mut self,
        queue: &mut Virtqueue,
        chain: &mut Chain,
        mem: &GuestMemory,
        room: Room,
    ) -> Result<bool, QueueError> {
        while self.bytes < room.bytes && (room.mergeable || self.chains.is_empty()) {
            if !queue.pop(mem, chain)? {
                return Ok(!self.chains.is_empty() && !self.more_will_come());
            }
            if chain.writable().is_empty() {
                return Err(QueueError::Chain("no buffer for a packet"));
            }
            if self.segments.len() + chain.writable().len() > TRANSFER_SEGMENTS {
                // No system call takes more; with these it has to do.
                queue.unpop();
                return Ok(true);
            }
            self.take(chain);
            self.most = self.most.max(self.chains.len() + usize::from(queue.available(mem)?));
        }
        self.sufficed |= self.bytes >= room.bytes;
        Ok(true)
    }

    /// Is it worth waiting for more chains, where these are too few for the largest packet? A driver under load runs out
    /// of chains for a moment, and it would be a pity to lose a large packet for that: the kernel keeps it. But not every
    /// driver has that much room at all, and some give chains back only when many are used: so only where there was room once,
    /// and most of the chains are with the driver.
    fn more_will_come(&self) -> bool {
        self.sufficed && self.chains.len() * 2 < self.most
    }

    fn take(&mut self, chain: &Chain) {
        let bytes = queue::total(chain.writable());
        self.chains.push_back(Taken { head: chain.head(), segments: chain.writable().len(), bytes });
        self.segments.extend(chain.writable());
        self.bytes += bytes;
    }

    /// Reads one packet into the chains: its frame lies behind the room for its header, which is not written yet.
    pub fn read(&mut self, tap: BorrowedFd<'_>, mem: &GuestMemory) -> Read {
        let (mut header, mut too_long) = (Header::default(), [0]);
        let frame = part(&self.segments, HEADER, u64::MAX);
        match memory::receive(mem, tap, &mut header.0, frame, &mut too_long) {
            Ok(moved) => match (moved as u64).checked_sub(HEADER) {
                Some(frame) if frame > self.bytes.saturating_sub(HEADER) => {
                    Read::TooLong(header, self.bytes.saturating_sub(HEADER))
                }
                Some(frame) => Read::Packet(header, frame),
                // No TAP with a header of this length has less.
                None => Read::End,
            },
            Err(error) => match error.raw_os_error() {
                _ if error.kind() == io::ErrorKind::WouldBlock || error.kind() == io::ErrorKind::Interrupted => {
                    Read::Nothing
                }
                Some(libc::EINVAL) => Read::Odd,
                _ => Read::End,
            },
        }
    }

    /// The beginning of the frame of `length` bytes that was read, and how many bytes of it: as many as it takes to find the
    /// checksum that its header wants to have completed, none where it wants none. It is the guest's memory by now, and another
    /// vCPU may have written there: what is made of these bytes is of no consequence but to this guest.
    pub fn head(&self, mem: &GuestMemory, header: Header, length: u64) -> ([u8; layer4::LOOK], usize) {
        let mut head = [0; layer4::LOOK];
        let known = if header.partial().is_some() { head.len().min(length as usize) } else { 0 };
        let copied = queue::read(mem, part(&self.segments, HEADER, u64::MAX), &mut head[..known]);
        (head, if copied { known } else { 0 })
    }

    /// The segments of the chains, first the one where a packet's header begins.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> + Clone {
        self.segments.iter()
    }

    /// Copies a frame of our own into the chains, as [`Buffers::read`] would put it there. False where it does not fit.
    pub fn write(&mut self, frame: &[u8], mem: &GuestMemory) -> bool {
        let place = part(&self.segments, HEADER, u64::MAX);
        queue::write(mem, place, frame) == frame.len()
    }

    /// Gives a packet to the driver: `header` and the frame of `length` bytes behind it, over as many chains as it takes. The
    /// driver sees all of them at once (5.1.6.4).
    ///
    /// # Errors
    /// As [`Virtqueue::push_all`].
    pub fn deliver(
        &mut self,
        queue: &mut Virtqueue,
        mem: &GuestMemory,
        mut header: Header,
        length: u64,
    ) -> Result<(), QueueError> {
        let mut end = 0;
        let over = |chain: &&Taken| {
            let begins = end < HEADER + length;
            end += chain.bytes;
            begins
        };
        let count = self.chains.iter().take_while(over).count();
        header.set_buffers(count as u16);
        queue::write(mem, &self.segments, &header.0);
        let mut left = HEADER + length;
        let used = self.chains.iter().take(count).map(|chain| {
            let written = left.min(chain.bytes);
            left -= written;
            (chain.head, written as u32)
        });
        queue.push_all(mem, used)?;
        for chain in self.chains.drain(..count) {
            self.segments.drain(..chain.segments);
            self.bytes -= chain.bytes;
        }
        Ok(())
    }
}
