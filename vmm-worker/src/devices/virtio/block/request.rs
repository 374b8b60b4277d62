//! What a guest asks of its disk (5.2.6): header, data and status byte, framed in whatever descriptors the driver likes
//! (2.7.4).

use super::super::QueueError;
use super::super::queue::{self, Chain};
use super::disk::SECTOR;
use crate::memory::GuestMemory;
use virtio_bindings::virtio_blk as v;
use vm_memory::GuestAddress;

/// Bytes of the header: type, reserved, sector.
pub const HEADER: u64 = 16;

/// A request that was read and checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parsed {
    /// Where the status byte goes: the last byte that the device may write.
    pub status: GuestAddress,
    /// What it asks for.
    pub todo: Todo,
}

/// What a request asks for. Offsets and lengths are bytes on the disk, whole sectors, and inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Todo {
    /// Into the chain's writable part.
    Read {
        /// From here.
        offset: u64,
        /// So much.
        length: u64,
    },
    /// From the chain's readable part, behind the header.
    Write {
        /// To here.
        offset: u64,
        /// So much.
        length: u64,
    },
    /// Everything that was answered before is to be durable.
    Flush,
    /// The serial number.
    Identify,
    /// Nothing: this status is the answer.
    Answer(u32),
}

/// Reads the request in `chain` to a disk of `sectors`.
///
/// # Errors
/// There is no header, or no place for an answer.
pub fn parse(chain: &Chain, mem: &GuestMemory, sectors: u64, readonly: bool) -> Result<Parsed, QueueError> {
    let mut header = [0; HEADER as usize];
    if !queue::read(mem, chain.readable(), &mut header) {
        return Err(QueueError::Chain("a disk request without a header"));
    }
    let Some(last) = chain.writable().last() else {
        return Err(QueueError::Chain("a disk request without a status byte"));
    };
    // Segments are not empty, and inside RAM.
    let status = GuestAddress(last.address.0 + u64::from(last.length) - 1);
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let todo = match u32::from_le_bytes([t0, t1, t2, t3]) {
        v::VIRTIO_BLK_T_IN => match range(sector, queue::total(chain.writable()) - 1, sectors) {
            Some((offset, length)) => Todo::Read { offset, length },
            None => Todo::Answer(v::VIRTIO_BLK_S_IOERR),
        },
        v::VIRTIO_BLK_T_OUT => match range(sector, queue::total(chain.readable()) - HEADER, sectors) {
            Some((offset, length)) if !readonly => Todo::Write { offset, length },
            _ => Todo::Answer(v::VIRTIO_BLK_S_IOERR),
        },
        v::VIRTIO_BLK_T_FLUSH => Todo::Flush,
        v::VIRTIO_BLK_T_GET_ID => Todo::Identify,
        _ => Todo::Answer(v::VIRTIO_BLK_S_UNSUPP),
    };
    Ok(Parsed { status, todo })
}

/// Where `length` bytes from `sector` on are, if all of them are on the disk, in whole sectors, and at least one.
fn range(sector: u64, length: u64, sectors: u64) -> Option<(u64, u64)> {
    let end = sector.checked_add(length / SECTOR)?;
    let good = length > 0 && length.is_multiple_of(SECTOR) && end <= sectors;
    good.then(|| (sector * SECTOR, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_whole_sectors_inside_the_disk() {
        assert_eq!(range(0, 512, 1), Some((0, 512)));
        assert_eq!(range(3, 1024, 5), Some((1536, 1024)));
        for (sector, length) in
            [(0, 1024), (1, 512), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 511), (0, 513), (0, 0)]
        {
            assert_eq!(range(sector, length, 1), None, "{sector}+{length}");
        }
    }
}
