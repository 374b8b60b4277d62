//! Where in a frame the checksum of TCP or UDP is. Pure.
//!
//! virtio's header may name any two bytes of a frame for a checksum, and whoever completes it writes there, after the host's
//! rules have looked at the frame: in the sender's address of an ARP packet as well as anywhere else. Completed is therefore
//! nothing but the checksum of TCP or UDP, in the place where it belongs; no rule looks at that.

use super::header::Partial;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of the shortest IPv4 header, and of the IPv6 header.
const IPV4: usize = 20;
const IPV6: u64 = 40;
/// The bytes of a frame that are looked at: to the end of the shortest IPv4 header.
pub const LOOK: usize = ETHERNET + IPV4;
/// More fragments follow, or this is not the first one.
const FRAGMENT: u16 = 0x3fff;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6, without extension headers.
    Tcp6,
    /// UDP over either.
    Udp,
}

impl Transport {
    /// What the frame that begins like this carries, and where that has its checksum. None for whatever else: VLAN tags, ARP,
    /// other protocols, extension headers, and fragments, whose checksum is that of the whole.
    pub fn find(frame: &[u8]) -> Option<(Self, Partial)> {
        let (ethernet, packet) = frame.split_at_checked(ETHERNET)?;
        let (protocol, length, tcp) = match (ethernet[12], ethernet[13], packet.first()? >> 4) {
            (0x08, 0x00, 4) => {
                let header: &[u8; IPV4] = packet.first_chunk()?;
                let length = u64::from(header[0] & 15) * 4;
                let whole = u16::from_be_bytes([header[6], header[7]]) & FRAGMENT == 0;
                // A shorter header would have its own addresses where the checksum is to go.
                (whole && length >= IPV4 as u64).then_some((header[9], length, Transport::Tcp4))?
            }
            (0x86, 0xdd, 6) => (*packet.get(6)?, IPV6, Transport::Tcp6),
            _ => return None,
        };
        let start = ETHERNET as u64 + length;
        match protocol {
            TCP => Some((tcp, Partial { start, offset: 16 })),
            UDP => Some((Transport::Udp, Partial { start, offset: 6 })),
            _ => None,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The beginning of a frame: EtherType, and packet.
    fn frame(kind: [u8; 2], packet: &[u8]) -> Vec<u8> {
        [&[0x55; 12][..], &kind, packet].concat()
    }

    /// The beginning of a frame with IPv4: first byte, fragment, protocol.
    pub fn ipv4(first: u8, fragment: u16, protocol: u8) -> Vec<u8> {
        let mut packet = [0x55; 60];
        packet[0] = first;
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[9] = protocol;
        frame([8, 0], &packet)
    }

    /// The beginning of a frame with IPv6: first byte, next header.
    pub fn ipv6(first: u8, next: u8) -> Vec<u8> {
        let mut packet = [0x55; 60];
        (packet[0], packet[6]) = (first, next);
        frame([0x86, 0xdd], &packet)
    }

    fn at(start: u64, offset: u64) -> Partial {
        Partial { start, offset }
    }

    #[test]
    fn tcp_and_udp_have_one_place_each() {
        for (frame, found) in [
            (ipv4(0x45, 0, 6), (Transport::Tcp4, at(34, 16))),
            (ipv4(0x45, 0x4000, 17), (Transport::Udp, at(34, 6))),
            (ipv4(0x46, 0, 6), (Transport::Tcp4, at(38, 16))),
            (ipv4(0x4f, 0, 17), (Transport::Udp, at(74, 6))),
            (ipv6(0x60, 6), (Transport::Tcp6, at(54, 16))),
            (ipv6(0x6f, 17), (Transport::Udp, at(54, 6))),
        ] {
            assert_eq!(Transport::find(&frame), Some(found));
            assert_eq!(Transport::find(&frame[..LOOK]), Some(found), "so many bytes are enough");
        }
    }

    #[test]
    fn whatever_else_has_none() {
        let mut arp = ipv4(0x45, 0, 6);
        arp[13] = 6;
        let mut tagged = ipv4(0x45, 0, 6);
        tagged[12] = 0x81;
        for (what, frame) in [
            ("ARP", arp),
            ("a VLAN tag", tagged),
            ("a header of no bytes", ipv4(0x40, 0, 6)),
            ("a header of 16 bytes", ipv4(0x44, 0, 17)),
            ("version 6 in IPv4", ipv4(0x65, 0, 6)),
            ("version 4 in IPv6", ipv6(0x45, 6)),
            ("a first fragment", ipv4(0x45, 0x2000, 6)),
            ("a later fragment", ipv4(0x45, 1, 17)),
            ("the last fragment", ipv4(0x45, 0x1fff, 17)),
            ("ICMP", ipv4(0x45, 0, 1)),
            ("IP in IP", ipv4(0x45, 0, 4)),
            ("an extension header", ipv6(0x60, 0)),
            ("ICMPv6", ipv6(0x60, 58)),
        ] {
            assert_eq!(Transport::find(&frame), None, "{what}");
        }
    }

    #[test]
    fn a_frame_that_ends_in_its_headers_has_none() {
        for length in 0..LOOK {
            assert_eq!(Transport::find(&ipv4(0x45, 0, 6)[..length]), None, "{length} bytes");
        }
        for length in 0..21 {
            assert_eq!(Transport::find(&ipv6(0x60, 6)[..length]), None, "{length} bytes");
        }
    }
}
