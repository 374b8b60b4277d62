//! Frames as a guest would make them, and those that it should not.

use super::{GATEWAY, Mac};
use std::net::Ipv4Addr;

pub const BROADCAST: Mac = [0xff; 6];
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;

pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// An ARP message with all its fields.
#[derive(Clone, Copy)]
pub struct Arp {
    pub hardware: u16,
    pub protocol: u16,
    pub lengths: [u8; 2],
    pub operation: u16,
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub target: Ipv4Addr,
}

impl Arp {
    /// Who has the gateway's address?
    pub fn request(mac: Mac, address: Ipv4Addr) -> Arp {
        Arp { hardware: 1, protocol: 0x800, lengths: [6, 4], operation: 1, mac, address, target: GATEWAY }
    }

    /// Of whom it speaks.
    pub fn to(self, target: Ipv4Addr) -> Arp {
        Arp { target, ..self }
    }

    /// In a frame from that MAC.
    pub fn from(self, mac: Mac) -> Vec<u8> {
        let numbers = [self.hardware.to_be_bytes(), self.protocol.to_be_bytes(), self.lengths].concat();
        let sender = [&self.operation.to_be_bytes()[..], &self.mac, &self.address.octets()].concat();
        ethernet(BROADCAST, mac, 0x806, &[&numbers[..], &sender, &[0; 6], &self.target.octets()].concat())
    }
}

/// An IPv4 packet; `fragment` is the field of flags and offset.
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend((20 + payload.len() as u16).to_be_bytes());
    header.extend([0, 7]);
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend([from.octets(), to.octets()].concat());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&header[..], payload].concat()
}

/// A UDP datagram without checksum.
pub fn udp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let length = (8 + data.len() as u16).to_be_bytes();
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length, &[0; 2], data].concat()
}

pub fn echo_request() -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0, 0, 1, 0, 1];
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

pub fn kind(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[12], frame[13]])
}

/// Of a UDP packet in a frame: source and its port, destination and its port.
pub fn flow(frame: &[u8]) -> Option<(Ipv4Addr, u16, Ipv4Addr, u16)> {
    if frame.len() < 42 || kind(frame) != 0x800 || frame[23] != UDP {
        return None;
    }
    let address = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    Some((address(26), port(34), address(30), port(36)))
}
