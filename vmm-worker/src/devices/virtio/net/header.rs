//! virtio's header before each packet (5.1.6): what each side may say in it. Pure.
//!
//! The TAP has the same header. Towards the TAP it carries what a guest chose, and the kernel acts on it (checksums to
//! complete, segments to cut), so only what the driver agreed to goes there; from the TAP it carries what some other machine
//! chose, and the driver has to have agreed to that. Both ways a checksum to complete is TCP's or UDP's, in its place
//! ([`Transport`]): whoever completes it changes a frame that the host's rules have judged already.

use super::layer4::Transport;
use virtio_bindings::virtio_net as v;

/// Bytes of the header: with VERSION_1 it always has a number of buffers.
pub const LENGTH: usize = 12;

const NEEDS_CSUM: u8 = v::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const DATA_VALID: u8 = v::VIRTIO_NET_HDR_F_DATA_VALID as u8;
const GSO_NONE: u8 = v::VIRTIO_NET_HDR_GSO_NONE as u8;
const GSO_TCPV4: u8 = v::VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_TCPV6: u8 = v::VIRTIO_NET_HDR_GSO_TCPV6 as u8;
const GSO_ECN: u8 = v::VIRTIO_NET_HDR_GSO_ECN as u8;

/// The features that driver and device agreed on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Agreed(pub u64);

impl Agreed {
    /// Is this one of them?
    pub fn has(self, feature: u32) -> bool {
        self.0 & 1 << feature != 0
    }

    /// The driver takes segments that are still to be cut, which are longer than any packet of the network.
    pub fn takes_segments(self) -> bool {
        self.has(v::VIRTIO_NET_F_GUEST_CSUM)
            && (self.has(v::VIRTIO_NET_F_GUEST_TSO4) || self.has(v::VIRTIO_NET_F_GUEST_TSO6))
    }
}

/// A checksum that is still to be completed: over all bytes from `start` on, put `offset` bytes behind it. Allegations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partial {
    /// Where in the frame.
    pub start: u64,
    /// Where behind that.
    pub offset: u64,
}

/// What is to be done to a packet before the driver gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming {
    /// Nothing.
    Fits,
    /// Its checksum is to be completed.
    Complete(Partial),
    /// It cannot be given to this driver.
    Unacceptable,
}

/// One header, little-endian.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header(pub [u8; LENGTH]);

impl Header {
    fn flags(&self) -> u8 {
        self.0[0]
    }

    fn half(&self, at: usize) -> u64 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]]).into()
    }

    /// The packet is a segment that is to be cut.
    pub fn is_segment(&self) -> bool {
        self.0[1] != GSO_NONE
    }

    /// The checksum that it wants to have completed.
    pub fn partial(&self) -> Option<Partial> {
        (self.flags() & NEEDS_CSUM != 0).then(|| Partial { start: self.half(6), offset: self.half(8) })
    }

    /// Is the checksum to complete, where there is one, that of what the frame carries? It has `length` bytes and begins with
    /// `frame`. A segment carries TCP over the IP that it names.
    fn is_in_place(&self, frame: &[u8], length: u64) -> bool {
        let Some(partial) = self.partial() else { return true };
        let Some((transport, place)) = Transport::find(frame) else { return false };
        let fits = match self.0[1] & !GSO_ECN {
            GSO_NONE => true,
            GSO_TCPV4 => transport == Transport::Tcp4,
            GSO_TCPV6 => transport == Transport::Tcp6,
            _ => false,
        };
        fits && partial == place && partial.is_inside(length)
    }

    /// Takes out what the TAP must not hear (5.1.6.2.2: flags that the device does not know). False where the driver asks for
    /// what it did not agree to, or for a checksum that is not in its place in the frame: of `length` bytes, and beginning
    /// with `frame`.
    pub fn outgoing(&mut self, agreed: Agreed, frame: &[u8], length: u64) -> bool {
        self.0[0] &= NEEDS_CSUM;
        self.set_buffers(0);
        let segments = match self.0[1] & !GSO_ECN {
            // A segment without a checksum to complete has no place to be cut at (5.1.6.2.1).
            _ if !self.is_segment() => true,
            _ if self.partial().is_none() => false,
            GSO_TCPV4 => agreed.has(v::VIRTIO_NET_F_HOST_TSO4),
            GSO_TCPV6 => agreed.has(v::VIRTIO_NET_F_HOST_TSO6),
            _ => false,
        };
        let ecn = self.0[1] & GSO_ECN == 0 || agreed.has(v::VIRTIO_NET_F_HOST_ECN);
        let checksum = self.partial().is_none() || agreed.has(v::VIRTIO_NET_F_CSUM);
        segments && ecn && checksum && self.is_in_place(frame, length)
    }

    /// Takes out what the driver must not hear (5.1.6.4.1), and says what is left to do to a frame of `length` bytes that begins
    /// with `frame`.
    pub fn incoming(&mut self, agreed: Agreed, frame: &[u8], length: u64) -> Incoming {
        if !self.is_in_place(frame, length) {
            return Incoming::Unacceptable;
        }
        let checksums = agreed.has(v::VIRTIO_NET_F_GUEST_CSUM);
        let partial = self.partial();
        self.0[0] &= if checksums { NEEDS_CSUM | DATA_VALID } else { 0 };
        if self.is_segment() {
            let kind = match self.0[1] & !GSO_ECN {
                GSO_TCPV4 => agreed.has(v::VIRTIO_NET_F_GUEST_TSO4),
                GSO_TCPV6 => agreed.has(v::VIRTIO_NET_F_GUEST_TSO6),
                _ => false,
            };
            let ecn = self.0[1] & GSO_ECN == 0 || agreed.has(v::VIRTIO_NET_F_GUEST_ECN);
            return if checksums && kind && ecn { Incoming::Fits } else { Incoming::Unacceptable };
        }
        partial.filter(|_| !checksums).map_or(Incoming::Fits, Incoming::Complete)
    }

    /// Says over how many of the driver's chains the packet goes.
    pub fn set_buffers(&mut self, count: u16) {
        self.0[10..].copy_from_slice(&count.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::super::layer4::tests::{ipv4, ipv6};
    use super::*;

    const ALL: Agreed = Agreed(u64::MAX);
    const NONE: Agreed = Agreed(0);

    fn header(flags: u8, gso: u8) -> Header {
        Header([flags, gso, 54, 0, 0xb4, 5, 34, 0, 16, 0, 9, 9])
    }

    /// The same, the checksum at this place.
    fn partial(gso: u8, start: u8, offset: u8) -> Header {
        Header([1, gso, 54, 0, 0xb4, 5, start, 0, offset, 0, 9, 9])
    }

    /// Such a header before the beginning of a frame that carries what it says, of 1500 bytes.
    fn out(mut header: Header, agreed: Agreed) -> (bool, Header) {
        let frame = fitting(&mut header);
        (header.outgoing(agreed, &frame, 1500), header)
    }

    fn come(mut header: Header, agreed: Agreed) -> (Incoming, Header) {
        let frame = fitting(&mut header);
        (header.incoming(agreed, &frame, 1500), header)
    }

    /// TCP, over IPv6 where the header says that; the place of its checksum is put right.
    fn fitting(header: &mut Header) -> Vec<u8> {
        if header.0[1] & !GSO_ECN == GSO_TCPV6 {
            header.0[6] = 54;
            return ipv6(0x60, 6);
        }
        ipv4(0x45, 0, 6)
    }

    fn without(feature: u32) -> Agreed {
        Agreed(!(1 << feature))
    }

    #[test]
    fn a_driver_asks_for_no_more_than_it_agreed_to() {
        for (flags, gso, feature) in [
            (1, 0, v::VIRTIO_NET_F_CSUM),
            (1, 1, v::VIRTIO_NET_F_HOST_TSO4),
            (1, 4, v::VIRTIO_NET_F_HOST_TSO6),
            (1, 0x81, v::VIRTIO_NET_F_HOST_ECN),
            (1, 0x84, v::VIRTIO_NET_F_HOST_ECN),
        ] {
            assert!(out(header(flags, gso), ALL).0, "{flags:#x} {gso:#x}");
            assert!(!out(header(flags, gso), without(feature)).0, "{flags:#x} {gso:#x} without {feature}");
            assert!(!out(header(flags, gso), NONE).0);
        }
        assert!(out(header(0, 0), NONE).0);
    }

    #[test]
    fn the_kernel_hears_of_no_kind_of_segment_but_tcps() {
        for (flags, gso) in [(1, 2), (1, 3), (1, 5), (1, 0x80), (1, 0xff), (0, 1), (0, 4), (0, 0x81), (0xfe, 1)] {
            assert!(!out(header(flags, gso), ALL).0, "{flags:#x} {gso:#x}");
        }
    }

    #[test]
    fn flags_that_are_not_for_the_other_side_are_taken_out() {
        let (good, sent) = out(header(0xff, 1), ALL);
        assert!(good);
        assert_eq!(sent.0, [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0]);
        let (fits, got) = come(header(0xff, 1), ALL);
        assert_eq!((fits, got.flags()), (Incoming::Fits, 3));
        let (fits, got) = come(header(2, 0), NONE);
        assert_eq!((fits, got.flags()), (Incoming::Fits, 0), "a driver that knows no checksums hears of none");
    }

    #[test]
    fn a_driver_gets_no_more_than_it_agreed_to() {
        for (gso, feature) in [
            (1, v::VIRTIO_NET_F_GUEST_TSO4),
            (4, v::VIRTIO_NET_F_GUEST_TSO6),
            (0x81, v::VIRTIO_NET_F_GUEST_ECN),
            (1, v::VIRTIO_NET_F_GUEST_CSUM),
        ] {
            assert_eq!(come(header(1, gso), ALL).0, Incoming::Fits);
            assert_eq!(come(header(1, gso), without(feature)).0, Incoming::Unacceptable, "{gso:#x} {feature}");
        }
        for gso in [2, 3, 5, 0x80, 0x83] {
            assert_eq!(come(header(1, gso), ALL).0, Incoming::Unacceptable, "{gso:#x}");
        }
    }

    #[test]
    fn a_checksum_is_left_to_who_agreed_to_complete_it() {
        let partial = Partial { start: 34, offset: 16 };
        assert_eq!(come(header(1, 0), ALL).0, Incoming::Fits);
        let (left, got) = come(header(1, 0), without(v::VIRTIO_NET_F_GUEST_CSUM));
        assert_eq!((left, got.flags()), (Incoming::Complete(partial), 0));
    }

    #[test]
    fn segments_are_expected_with_their_checksums_only() {
        assert!(ALL.takes_segments());
        assert!(without(v::VIRTIO_NET_F_GUEST_TSO4).takes_segments());
        assert!(!without(v::VIRTIO_NET_F_GUEST_CSUM).takes_segments());
        assert!(!NONE.takes_segments());
    }

    /// Does such a header pass before such a frame: out, in, and in to a driver that completes no checksums?
    fn judged(header: Header, frame: &[u8], length: u64) -> [bool; 3] {
        let incoming = |agreed| {
            let mut header = header;
            header.incoming(agreed, frame, length) != Incoming::Unacceptable
        };
        let mut out = header;
        [out.outgoing(ALL, frame, length), incoming(ALL), incoming(without(v::VIRTIO_NET_F_GUEST_CSUM))]
    }

    #[test]
    fn the_checksum_of_tcp_and_of_udp_may_be_left_open() {
        for (frame, start, offset) in [
            (ipv4(0x45, 0, 6), 34, 16),
            (ipv4(0x45, 0x4000, 17), 34, 6),
            (ipv4(0x4f, 0, 6), 74, 16),
            (ipv6(0x60, 6), 54, 16),
            (ipv6(0x60, 17), 54, 6),
        ] {
            let end = u64::from(start + offset) + 2;
            assert_eq!(judged(partial(0, start, offset), &frame, end), [true; 3], "{start} {offset}");
            assert_eq!(judged(partial(0, start, offset), &frame, end - 1), [false; 3], "outside of the frame");
        }
    }

    #[test]
    fn no_other_place_of_any_frame_is_a_checksum() {
        let mut arp = ipv4(0x45, 0, 6);
        arp[13] = 6;
        let frames = [
            (arp, None),
            (ipv4(0x45, 0, 6), Some((34, 16))),
            (ipv4(0x45, 0, 17), Some((34, 6))),
            (ipv4(0x45, 0, 1), None),
        ];
        for (frame, place) in frames {
            for (start, offset) in (0..80).flat_map(|start| (0..40).map(move |offset| (start, offset))) {
                let good = place == Some((start, offset));
                assert_eq!(judged(partial(0, start, offset), &frame, 1500), [good; 3], "{start} {offset} of {frame:?}");
            }
            assert_eq!(judged(header(0, 0), &frame, 1500), [true; 3], "and without a checksum all of them pass");
        }
    }

    #[test]
    fn a_segment_is_tcps_over_the_ip_that_it_names() {
        for (gso, frame, start, offset, good) in [
            (1, ipv4(0x45, 0, 6), 34, 16, true),
            (0x84, ipv6(0x60, 6), 54, 16, true),
            (1, ipv6(0x60, 6), 54, 16, false),
            (4, ipv4(0x45, 0, 6), 34, 16, false),
            (1, ipv4(0x45, 0, 17), 34, 6, false),
            (4, ipv6(0x60, 17), 54, 6, false),
            (1, ipv4(0x45, 0, 6), 30, 16, false),
            (1, ipv4(0x45, 0x2000, 6), 34, 16, false),
        ] {
            let [out, come, _] = judged(partial(gso, start, offset), &frame, 3000);
            assert_eq!((out, come), (good, good), "{gso:#x} {start} {offset}");
        }
    }
}
