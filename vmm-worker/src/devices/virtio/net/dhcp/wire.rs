//! The layout of a DHCP message (RFC 2131, figure 1; options: RFC 2132) and of the headers before it, both ways.
//!
//! What is read is the guest's, and untrusted: whatever does not fit gives `None`, and nothing more is made of it. What is
//! written goes to that guest only.

use std::net::Ipv4Addr;
use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Port of a DHCP server.
pub const SERVER_PORT: u16 = 67;
/// Port of a DHCP client.
pub const CLIENT_PORT: u16 = 68;
/// Ethertype of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
const PROTOCOL_UDP: u8 = 17;
/// A time to live that reaches anything (RFC 1700).
const TTL: u8 = 64;
/// Never cut into fragments; then the identification may be anything (RFC 6864).
const DONT_FRAGMENT: u16 = 0x4000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
const MORE_FRAGMENTS: u16 = 0x2000;

/// `op` of a message to a server, and of one from it.
pub const OP_REQUEST: u8 = 1;
const OP_REPLY: u8 = 2;
/// `htype` of Ethernet.
pub const HTYPE_ETHERNET: u8 = 1;
/// The client cannot take unicast before it has its address.
pub const FLAG_BROADCAST: u16 = 0x8000;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// The shortest message that every client takes: what BOOTP had (RFC 1542, 2.1).
const MESSAGE_MIN: usize = 300;
/// The longest one that every client takes: a datagram of 576 bytes without its headers (RFC 2131, 2).
const MESSAGE_MAX: usize = 548;

/// Values of option 53.
pub mod message {
    pub const DISCOVER: u8 = 1;
    pub const OFFER: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const ACK: u8 = 5;
    pub const NAK: u8 = 6;
    pub const INFORM: u8 = 8;
}

/// Numbers of options.
pub mod option {
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const MTU: u8 = 26;
    pub const BROADCAST: u8 = 28;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_ID: u8 = 54;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const CLIENT_ID: u8 = 61;
    pub const END: u8 = 255;
}

/// Ethernet II header.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ethernet {
    pub destination: [u8; 6],
    pub source: [u8; 6],
    pub ethertype: U16,
}

/// IPv4 header without options (RFC 791).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ipv4 {
    version_length: u8,
    service: u8,
    total_length: U16,
    identification: U16,
    fragment: U16,
    ttl: u8,
    protocol: u8,
    checksum: U16,
    source: [u8; 4],
    pub destination: [u8; 4],
}

/// UDP header.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Udp {
    source: U16,
    destination: U16,
    length: U16,
    checksum: U16,
}

/// A DHCP message up to its options, which the cookie announces.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Message {
    pub op: u8,
    pub htype: u8,
    pub hlen: u8,
    pub hops: u8,
    pub xid: U32,
    pub secs: U16,
    pub flags: U16,
    pub ciaddr: [u8; 4],
    pub yiaddr: [u8; 4],
    pub siaddr: [u8; 4],
    pub giaddr: [u8; 4],
    pub chaddr: [u8; 16],
    pub sname: [u8; 64],
    pub file: [u8; 128],
    pub cookie: [u8; 4],
}

/// What the options of a request say, as far as it matters here.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Options<'a> {
    pub message: Option<u8>,
    pub requested: Option<Ipv4Addr>,
    pub server: Option<Ipv4Addr>,
    pub client_id: Option<&'a [u8]>,
}

/// A frame with a whole message to a server.
#[derive(Debug)]
pub struct Request<'a> {
    pub ethernet: &'a Ethernet,
    pub ip: &'a Ipv4,
    pub message: &'a Message,
    pub options: Options<'a>,
}

/// The IPv4 header and what follows its options, where this is the beginning of an Ethernet frame with UDP that is no later
/// fragment.
fn udp(head: &[u8]) -> Option<(&Ethernet, &Ipv4, &[u8])> {
    let (ethernet, packet) = Ethernet::ref_from_prefix(head).ok()?;
    let (ip, _) = Ipv4::ref_from_prefix(packet).ok()?;
    let first = ip.fragment.get() & FRAGMENT_OFFSET == 0;
    let is = ethernet.ethertype.get() == ETHERTYPE_IPV4 && ip.version_length >> 4 == 4 && ip.protocol == PROTOCOL_UDP;
    if !is || !first || ip.header_length() < size_of::<Ipv4>() {
        return None;
    }
    Some((ethernet, ip, packet.get(ip.header_length()..)?))
}

/// The destination port, where the beginning of a frame shows one of UDP.
pub fn udp_port(head: &[u8]) -> Option<u16> {
    let (_, _, datagram) = udp(head)?;
    Some(u16::from_be_bytes(datagram.get(2..4)?.try_into().ok()?))
}

impl Ipv4 {
    fn header_length(&self) -> usize {
        usize::from(self.version_length & 0xf) * 4
    }
}

impl<'a> Request<'a> {
    /// The request in a frame. IP's checksum must be right. UDP's is not looked at: a driver that negotiated
    /// VIRTIO_NET_F_CSUM leaves it unfinished, for the device to complete (virtio 1.2, 5.1.6.2), and between the guest and
    /// this device there is only memory.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let (ethernet, ip, _) = udp(frame)?;
        // A frame may be padded behind its packet.
        let packet = frame.get(size_of::<Ethernet>()..)?.get(..usize::from(ip.total_length.get()))?;
        let (header, datagram) = packet.split_at_checked(ip.header_length())?;
        if checksum(sum(header)) != 0 || ip.fragment.get() & MORE_FRAGMENTS != 0 {
            return None;
        }
        let (udp, _) = Udp::ref_from_prefix(datagram).ok()?;
        let body = datagram.get(..usize::from(udp.length.get()))?.get(size_of::<Udp>()..)?;
        let (message, options) = Message::ref_from_prefix(body).ok()?;
        if udp.destination.get() != SERVER_PORT || message.cookie != COOKIE {
            return None;
        }
        Some(Self { ethernet, ip, message, options: Options::parse(options)? })
    }
}

impl<'a> Options<'a> {
    /// Each option that is known here at most once and with its own length, none cut off. What stands in `sname` and `file`
    /// (option 52) is not read: nothing that matters here is longer than the options' own field.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (mut found, mut rest) = (Self::default(), bytes);
        while let Some((&code, after)) = rest.split_first() {
            match code {
                option::PAD => rest = after,
                option::END => break,
                _ => {
                    let (&length, after) = after.split_first()?;
                    let (value, after) = after.split_at_checked(usize::from(length))?;
                    found.take(code, value)?;
                    rest = after;
                }
            }
        }
        Some(found)
    }

    fn take(&mut self, code: u8, value: &'a [u8]) -> Option<()> {
        let address = || <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from);
        let twice = match code {
            option::MESSAGE_TYPE => self.message.replace(*value.first().filter(|_| value.len() == 1)?).is_some(),
            option::REQUESTED_ADDRESS => self.requested.replace(address()?).is_some(),
            option::SERVER_ID => self.server.replace(address()?).is_some(),
            option::CLIENT_ID => self.client_id.replace(value).is_some(),
            _ => false,
        };
        (!twice).then_some(())
    }
}

/// Between whom a reply goes.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    pub source_mac: [u8; 6],
    pub source: Ipv4Addr,
    pub destination_mac: [u8; 6],
    pub destination: Ipv4Addr,
}

const HEADERS: usize = size_of::<Ethernet>() + size_of::<Ipv4>() + size_of::<Udp>();
/// Where the options begin.
const OPTIONS: usize = HEADERS + size_of::<Message>();
/// The longest frame that is ever written.
pub const FRAME_MAX: usize = HEADERS + MESSAGE_MAX;

/// A reply as it grows: options first, then all that stands before them, when lengths and checksums are known.
#[derive(Debug)]
pub struct Writer<'a> {
    frame: &'a mut [u8; FRAME_MAX],
    used: usize,
}

impl<'a> Writer<'a> {
    pub fn new(frame: &'a mut [u8; FRAME_MAX]) -> Self {
        frame.fill(0);
        Self { frame, used: OPTIONS }
    }

    /// Another option; `None` where it does not fit, with the closing one, into what every client takes.
    pub fn option(&mut self, code: u8, value: &[u8]) -> Option<()> {
        let end = self.used + 2 + value.len();
        let room = self.frame.get_mut(self.used..end).filter(|_| end < FRAME_MAX)?;
        room[0] = code;
        room[1] = u8::try_from(value.len()).ok()?;
        room[2..].copy_from_slice(value);
        self.used = end;
        Some(())
    }

    /// The frame's length, all of it written.
    pub fn finish(self, ends: Ends, message: Message) -> usize {
        self.frame[self.used] = option::END;
        let length = (self.used + 1).max(HEADERS + MESSAGE_MIN);
        let ethernet = Ethernet {
            destination: ends.destination_mac,
            source: ends.source_mac,
            ethertype: U16::new(ETHERTYPE_IPV4),
        };
        let mut ip = Ipv4 {
            version_length: 4 << 4 | 5,
            service: 0,
            // At most FRAME_MAX, so that no length is cut off here or below.
            total_length: U16::new((length - size_of::<Ethernet>()) as u16),
            identification: U16::ZERO,
            fragment: U16::new(DONT_FRAGMENT),
            ttl: TTL,
            protocol: PROTOCOL_UDP,
            checksum: U16::ZERO,
            source: ends.source.octets(),
            destination: ends.destination.octets(),
        };
        ip.checksum = U16::new(checksum(sum(ip.as_bytes())));
        let udp_length = (length - size_of::<Ethernet>() - size_of::<Ipv4>()) as u16;
        let mut udp = Udp {
            source: U16::new(SERVER_PORT),
            destination: U16::new(CLIENT_PORT),
            length: U16::new(udp_length),
            checksum: U16::ZERO,
        };
        let message = Message { op: OP_REPLY, cookie: COOKIE, ..message };
        self.frame[HEADERS..OPTIONS].copy_from_slice(message.as_bytes());
        // The pseudo header: both addresses, the protocol, the length (RFC 768).
        let pseudo = sum(&ip.source) + sum(&ip.destination) + u32::from(PROTOCOL_UDP) + u32::from(udp_length);
        let all = pseudo + sum(udp.as_bytes()) + sum(&self.frame[HEADERS..length]);
        // 0 would say that there is none; 0xffff is the same number.
        udp.checksum = U16::new(match checksum(all) {
            0 => 0xffff,
            other => other,
        });
        self.frame[..14].copy_from_slice(ethernet.as_bytes());
        self.frame[14..34].copy_from_slice(ip.as_bytes());
        self.frame[34..HEADERS].copy_from_slice(udp.as_bytes());
        length
    }
}

/// The 16-bit words, added. A frame has too few of them for 32 bits to overflow.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0)));
    words.sum()
}

/// The Internet checksum of what was added up (RFC 1071); 0 over what has a right one in it.
fn checksum(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
