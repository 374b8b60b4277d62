//! Ethernet frames, as a guest might send them: right ones, and ones that nobody may send.

use std::net::Ipv4Addr;

/// A MAC address.
pub type Mac = [u8; 6];
/// Everybody on the link.
pub const BROADCAST: Mac = [0xff; 6];
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of a VLAN tag (802.1Q).
pub const VLAN: u16 = 0x8100;
/// EtherType of a provider's VLAN tag (802.1ad).
pub const QINQ: u16 = 0x88a8;
/// IP protocols.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;

/// The Internet checksum (RFC 1071) of these bytes, after those that are summed up already.
fn checksum(sum: u32, bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    let mut sum = sum + bytes.chunks(2).map(word).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A frame.
pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// A tag and what it is about, to be the payload of a frame of kind [`VLAN`] or [`QINQ`].
pub fn tagged(id: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&id.to_be_bytes()[..], &kind.to_be_bytes(), payload].concat()
}

/// An ARP packet: 1 asks, 2 answers.
pub fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let (sender_address, target_address) = (sender.1.octets(), target.1.octets());
    let head = [0, 1, 8, 0, 6, 4];
    [&head[..], &operation.to_be_bytes(), &sender.0, &sender_address, &target.0, &target_address].concat()
}

/// A question for `whom`, from `sender` to all, as a frame.
pub fn who_has(sender: (Mac, Ipv4Addr), whom: Ipv4Addr) -> Vec<u8> {
    ethernet(BROADCAST, sender.0, ARP, &arp(1, sender, ([0; 6], whom)))
}

/// An IPv4 packet.
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut head = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    head[2..4].copy_from_slice(&length.to_be_bytes());
    head.extend(from.octets());
    head.extend(to.octets());
    let sum = checksum(0, &head);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    head.extend(payload);
    head
}

/// An ICMP echo request with so many bytes after its header.
pub fn icmp_echo(id: [u8; 2], bytes: usize) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0, id[0], id[1], 0, 1];
    packet.extend((0..bytes).map(|n| n as u8));
    with_icmp_checksum(packet)
}

/// The answer to an ICMP echo request.
pub fn icmp_reply(request: &[u8]) -> Vec<u8> {
    let mut packet = request.to_vec();
    packet[..4].fill(0);
    with_icmp_checksum(packet)
}

fn with_icmp_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    let sum = checksum(0, &packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// A UDP datagram. Its checksum is left out, as IPv4 allows.
pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload].concat()
}

/// A TCP segment without options or data.
pub fn tcp(ends: (Ipv4Addr, Ipv4Addr), ports: (u16, u16), sequence: u32, acknowledged: u32, flags: u8) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(ports.0.to_be_bytes());
    segment.extend(ports.1.to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledged.to_be_bytes());
    segment.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    let pseudo = [&ends.0.octets()[..], &ends.1.octets(), &[0, TCP], &(segment.len() as u16).to_be_bytes()].concat();
    let sum = checksum(u32::from(!checksum(0, &pseudo)), &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// What an IPv4 packet in a frame says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipv4Packet {
    /// Source.
    pub from: Ipv4Addr,
    /// Destination.
    pub to: Ipv4Addr,
    /// What it carries.
    pub protocol: u8,
    /// That.
    pub payload: Vec<u8>,
}

/// The EtherType of a frame.
pub fn kind(frame: &[u8]) -> u16 {
    frame.get(12..14).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]))
}

/// The IPv4 packet of a frame, where it is one.
pub fn parse_ipv4(frame: &[u8]) -> Option<Ipv4Packet> {
    let packet = frame.get(14..)?;
    if kind(frame) != IPV4 || packet.len() < 20 {
        return None;
    }
    let head = usize::from(packet[0] & 15) * 4;
    let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let address = |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    let payload = packet.get(head..length)?.to_vec();
    Some(Ipv4Packet { from: address(12), to: address(16), protocol: packet[9], payload })
}

/// Ports and data of a UDP datagram.
pub fn parse_udp(datagram: &[u8]) -> Option<(u16, u16, &[u8])> {
    let port = |at: usize| u16::from_be_bytes([datagram[at], datagram[at + 1]]);
    (datagram.len() >= 8).then(|| (port(0), port(2), &datagram[8..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_rfc() {
        // RFC 1071's own example: the sum is ddf2.
        assert_eq!(checksum(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        let packet = ipv4(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2), UDP, &udp(1, 2, b"x"));
        assert_eq!(checksum(0, &packet[..20]), 0);
    }

    #[test]
    fn a_packet_comes_back_as_it_went() {
        let (from, to) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let frame = ethernet(BROADCAST, [2; 6], IPV4, &ipv4(from, to, UDP, &udp(7, 9, b"text")));
        let packet = parse_ipv4(&frame).unwrap();
        assert_eq!((packet.from, packet.to, packet.protocol), (from, to, UDP));
        assert_eq!(parse_udp(&packet.payload), Some((7, 9, &b"text"[..])));
    }
}
