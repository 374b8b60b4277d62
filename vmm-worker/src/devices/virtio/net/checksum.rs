//! The Internet checksum (RFC 1071), completed for who did not agree to do it: the field holds the sum over the
//! pseudo-header already, as the kernel leaves it.

use super::super::queue::{self, part};
use super::header::Partial;
use crate::memory::{GuestMemory, Segment};
use vm_memory::{Bytes, GuestAddress};

/// Bytes that are copied out of guest RAM at once.
const PIECE: usize = 1024;

/// A sum of 16-bit words, which may come in pieces of any length.
#[derive(Debug, Default)]
struct Sum {
    words: u64,
    /// The next byte is the second one of its word.
    odd: bool,
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let (first, rest) = bytes.split_at(usize::from(self.odd).min(bytes.len()));
        self.words += first.iter().map(|b| u64::from(*b)).sum::<u64>();
        let (pairs, last) = rest.as_chunks::<2>();
        // Fewer than 2^32 words of 16 bits: a frame has no more than 2^16 bytes.
        self.words += pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum::<u64>();
        self.words += last.iter().map(|b| u64::from(*b) << 8).sum::<u64>();
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// As it goes into a packet: to UDP a zero says that there is none, and all ones are the same sum.
    fn finish(self) -> [u8; 2] {
        let mut sum = self.words;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        match !(sum as u16) {
            0 => [0xff; 2],
            sum => sum.to_be_bytes(),
        }
    }
}

impl Partial {
    /// Is all of it in a frame of so many bytes?
    pub fn is_inside(self, frame: u64) -> bool {
        self.start + self.offset + 2 <= frame
    }

    /// Completes it in a frame in guest RAM, of `length` bytes from byte `skip` of `segments` on. False where it is not inside.
    pub fn complete<'a>(
        self,
        mem: &GuestMemory,
        segments: impl Iterator<Item = &'a Segment> + Clone,
        skip: u64,
        length: u64,
    ) -> bool {
        if !self.is_inside(length) {
            return false;
        }
        let mut sum = Sum::default();
        let mut bytes = [0; PIECE];
        for segment in part(segments.clone(), skip + self.start, length - self.start) {
            for at in (0..segment.length).step_by(PIECE) {
                let piece = &mut bytes[..PIECE.min((segment.length - at) as usize)];
                if mem.read_slice(piece, GuestAddress(segment.address.0 + u64::from(at))).is_err() {
                    return false;
                }
                sum.add(piece);
            }
        }
        let place = part(segments, skip + self.start + self.offset, 2);
        queue::write(mem, place, &sum.finish()) == 2
    }
}

/// The same for a frame of a test's own, a word at a time, as RFC 1071 has it.
#[cfg(test)]
pub(super) fn reference(frame: &[u8], start: usize, offset: usize) -> Vec<u8> {
    let mut sum = 0u32;
    for pair in frame[start..].chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = if sum == 0xffff { 0xffff } else { !(sum as u16) };
    let mut frame = frame.to_vec();
    frame[start + offset..start + offset + 2].copy_from_slice(&checksum.to_be_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        (0..length)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u8
            })
            .collect()
    }

    #[test]
    fn the_example_of_rfc_1071_comes_out() {
        let mut sum = Sum::default();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.finish(), (!0xddf2u16).to_be_bytes());
    }

    #[test]
    fn pieces_of_any_length_are_one_sum() {
        for length in [0, 1, 2, 3, 20, 999, 1500] {
            let bytes = noise(length, 7 + length as u64);
            for cut in [1, 2, 3, 5, 64] {
                let mut sum = Sum::default();
                bytes.chunks(cut).for_each(|piece| sum.add(piece));
                let with_field = [&bytes[..], &[0; 3]].concat();
                let at = length.next_multiple_of(2);
                assert_eq!(
                    sum.finish(),
                    reference(&with_field, 0, at)[at..at + 2],
                    "{length} bytes in pieces of {cut}"
                );
            }
        }
    }

    #[test]
    fn a_frame_in_guest_ram_gets_the_checksum_of_the_reference() {
        let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 0x4_0000)]).unwrap();
        for (length, start, offset) in [(1514, 34, 16), (61, 34, 6), (2001, 35, 1964), (40, 38, 0)] {
            let sent = noise(length, 99);
            // Twelve bytes before the frame, and cuts at odd places, one of them inside the field.
            let cut = (start + offset) as u32 + 12 + 1;
            let segments = [(0x1000, 7), (0x3000, cut - 7), (0x2_0000, 0x1_0000)]
                .map(|(address, length)| Segment { address: GuestAddress(address), length });
            queue::write(&mem, segments, &[&[0xee; 12], &sent[..]].concat());
            let partial = Partial { start: start as u64, offset: offset as u64 };
            assert!(partial.complete(&mem, segments.iter(), 12, length as u64));
            let mut back = vec![0; length + 12];
            queue::read(&mem, segments, &mut back);
            assert_eq!(back[12..], reference(&sent, start, offset), "{partial:?}");
            assert_eq!(back[..12], [0xee; 12]);
        }
    }

    #[test]
    fn a_sum_of_zero_is_all_ones() {
        let mut sum = Sum::default();
        sum.add(&[0xff, 0xff, 0, 0]);
        assert_eq!(sum.finish(), [0xff; 2]);
    }

    #[test]
    fn a_checksum_outside_of_its_frame_is_refused() {
        let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let segments = [Segment { address: GuestAddress(0), length: 60 + 12 }];
        for (start, offset, inside) in
            [(58, 0, true), (59, 0, false), (60, 0, false), (0, 59, false), (65535, 65535, false), (0, 58, true)]
        {
            let partial = Partial { start, offset };
            assert_eq!(partial.complete(&mem, segments.iter(), 12, 60), inside, "{partial:?}");
        }
    }
}
