//! What connection tracking remembers of an address, and its end. Formats: linux/netfilter/nfnetlink_conntrack.h.
//!
//! A flow outlives the rules that let it begin: its packets are "established", and go to the address that it was translated
//! to when it began. So an address that gets a new holder must have none of the old one's.
//!
//! A request to delete that names no flow empties the host's whole table. Here only a [`Flow`] can be deleted, and there
//! is none without both addresses of its original direction.

use super::{OpsError, failed};
use crate::netlink::{Attrs, Message, Received, Socket};
use libc::{NLM_F_ACK, NLM_F_DUMP};
use std::net::Ipv4Addr;

/// What of linux/netfilter/nfnetlink_conntrack.h libc does not have.
mod uapi {
    pub const GET: i32 = 1;
    pub const DELETE: i32 = 2;
    pub const GET_STATS: i32 = 5;
    pub const TUPLE_ORIG: u16 = 1;
    pub const TUPLE_REPLY: u16 = 2;
    pub const STATUS: u16 = 3;
    pub const ID: u16 = 12;
    pub const ZONE: u16 = 18;
    pub const TUPLE_IP: u16 = 1;
    pub const TUPLE_PROTO: u16 = 2;
    pub const PROTO_NUM: u16 = 1;
    pub const PROTO_DST_PORT: u16 = 3;
    pub const IP_V4_SRC: u16 = 1;
    pub const IP_V4_DST: u16 = 2;
    /// Of the status: it was answered; its destination was translated.
    pub const SEEN_REPLY: u32 = 1 << 1;
    pub const DST_NAT: u32 = 1 << 5;
}

/// Bytes of `struct nfgenmsg`.
const NFGEN: usize = 4;
/// The most flows of one request: the socket has room for an error of each.
const BATCH: usize = 64;

/// A flow of connection tracking, by what the kernel said of it.
struct Flow {
    orig: Vec<u8>,
    zone: Option<Vec<u8>>,
    id: Option<Vec<u8>>,
}

impl Flow {
    /// The flow of a message; nothing where it has not both addresses of its original direction.
    fn read(message: &Received) -> Option<Flow> {
        let attrs = message.attrs(NFGEN);
        addresses(attrs, uapi::TUPLE_ORIG).iter().all(Option::is_some).then_some(())?;
        let copy = |kind| attrs.get(kind).map(<[u8]>::to_vec);
        Some(Flow { orig: copy(uapi::TUPLE_ORIG)?, zone: copy(uapi::ZONE), id: copy(uapi::ID) })
    }

    /// The flow of a message, where it is one of such an address.
    fn of(message: &Received, address: &dyn Fn(Ipv4Addr) -> bool) -> Option<Flow> {
        let attrs = message.attrs(NFGEN);
        let all = [uapi::TUPLE_ORIG, uapi::TUPLE_REPLY].map(|tuple| addresses(attrs, tuple));
        let fits = all.as_flattened().iter().flatten().any(|bytes| address(Ipv4Addr::from(**bytes)));
        fits.then(|| Flow::read(message)).flatten()
    }

    /// The flow of a message, where it is UDP to one of the ports, not translated, and was never answered.
    fn knocking(message: &Received, ports: &[u16]) -> Option<Flow> {
        let attrs = message.attrs(NFGEN);
        let to = attrs.within(uapi::TUPLE_ORIG).within(uapi::TUPLE_PROTO);
        let status = u32::from_be_bytes(*attrs.get(uapi::STATUS)?.first_chunk()?);
        let port = u16::from_be_bytes(*to.get(uapi::PROTO_DST_PORT)?.first_chunk()?);
        let fits = to.get(uapi::PROTO_NUM) == Some(&[libc::IPPROTO_UDP as u8])
            && ports.contains(&port)
            && status & (uapi::SEEN_REPLY | uapi::DST_NAT) == 0;
        fits.then(|| Flow::read(message)).flatten()
    }

    /// The request to delete it. Its number, where the kernel gave one, keeps a younger flow of the same addresses out.
    fn delete(&self) -> Message {
        let mut delete = message(uapi::DELETE, NLM_F_ACK).attr(nested(uapi::TUPLE_ORIG), &self.orig);
        for (kind, value) in [(uapi::ZONE, &self.zone), (uapi::ID, &self.id)] {
            if let Some(value) = value {
                delete = delete.attr(kind, value);
            }
        }
        delete
    }
}

fn nested(kind: u16) -> u16 {
    kind | libc::NLA_F_NESTED as u16
}

fn message(kind: i32, flags: i32) -> Message {
    Message::new((libc::NFNL_SUBSYS_CTNETLINK << 8 | kind) as u16, flags, &[libc::AF_INET as u8, 0, 0, 0])
}

/// Source and destination of a tuple.
fn addresses(attrs: Attrs<'_>, tuple: u16) -> [Option<&[u8; 4]>; 2] {
    let ip = attrs.within(tuple).within(uapi::TUPLE_IP);
    [uapi::IP_V4_SRC, uapi::IP_V4_DST].map(|kind| ip.get(kind).and_then(|bytes| bytes.try_into().ok()))
}

/// Deletes all flows that come from or go to such an address, before or after translation.
pub(super) fn forget(socket: &mut Socket, address: &dyn Fn(Ipv4Addr) -> bool) -> Result<(), OpsError> {
    delete_all(socket, |told| Flow::of(told, address))
}

/// Deletes what came to UDP ports while they led nowhere: translation is decided at the beginning of a flow, and a client
/// that goes on sending would never meet the forward that is there now.
pub(super) fn forget_knocks(socket: &mut Socket, ports: &[u16]) -> Result<(), OpsError> {
    delete_all(socket, |told| Flow::knocking(told, ports))
}

/// Reads the whole table, whose empty places take longer than its flows: 10 ms where it has 262,144 of them. The kernel's own
/// filters of a listing save none of that.
fn delete_all(socket: &mut Socket, pick: impl Fn(&Received) -> Option<Flow>) -> Result<(), OpsError> {
    let flows = match socket.request_each(&[message(uapi::GET, NLM_F_DUMP)], |told| pick(&told)) {
        Ok(flows) => flows,
        Err(error) if error.source.raw_os_error() == Some(libc::EINVAL) && !is_told(socket) => {
            return Err(OpsError::NoFlows);
        }
        Err(error) => return Err(failed(|| "listing connections".into())(error)),
    };
    for batch in flows.chunks(BATCH) {
        delete(socket, batch).map_err(failed(|| "ending connections".into()))?;
    }
    Ok(())
}

/// Deletes flows; some may have ended by themselves.
fn delete(socket: &mut Socket, flows: &[Flow]) -> Result<(), crate::netlink::Error> {
    let messages: Vec<Message> = flows.iter().map(Flow::delete).collect();
    if socket.request(&messages).is_ok() {
        return Ok(());
    }
    // Of several errors only the first is told.
    for message in messages {
        match socket.request(&[message]) {
            Err(error) if error.source.raw_os_error() != Some(libc::ENOENT) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Does the kernel speak of connections at all? Without its module it finds every request invalid.
fn is_told(socket: &mut Socket) -> bool {
    socket.request(&[message(uapi::GET_STATS, NLM_F_ACK)]).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::parse;
    use crate::ops::tests::Random;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

    /// The message as it is sent or received, in bytes.
    fn bytes(message: &Message) -> Vec<u8> {
        let mut bytes = message.bytes().to_vec();
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    fn told(addresses: [[u8; 4]; 4]) -> Vec<u8> {
        let tuple = |message: Message, kind, [source, destination]: [[u8; 4]; 2]| {
            let ip = |ip: Message| ip.attr(uapi::IP_V4_SRC, &source).attr(uapi::IP_V4_DST, &destination);
            message
                .nest(kind, |tuple| tuple.nest(uapi::TUPLE_IP, ip).attr(2 | libc::NLA_F_NESTED as u16, &[5, 0, 1, 0]))
        };
        let [a, b, c, d] = addresses;
        let message = tuple(message(uapi::GET, 0), uapi::TUPLE_ORIG, [a, b]);
        bytes(&tuple(message, uapi::TUPLE_REPLY, [c, d]).attr(uapi::ID, &[0, 0, 0, 9]).attr(uapi::ZONE, &[0, 7]))
    }

    #[test]
    fn a_flow_is_an_addresses_where_it_is_one_of_its_four() {
        let others = [[192, 0, 2, 1], [192, 0, 2, 2], [192, 0, 2, 3], [192, 0, 2, 4]];
        assert!(Flow::of(&parse(&told(others))[0], &|a| a == ADDRESS).is_none());
        for n in 0..4 {
            let mut addresses = others;
            addresses[n] = ADDRESS.octets();
            let flow = Flow::of(&parse(&told(addresses))[0], &|a| a == ADDRESS).expect("a flow of the address");
            let request = &parse(&bytes(&flow.delete()))[0];
            let attrs = request.attrs(NFGEN);
            assert_eq!(request.kind, 0x102);
            assert_eq!((attrs.get(uapi::ID), attrs.get(uapi::ZONE)), (Some(&[0, 0, 0, 9][..]), Some(&[0, 7][..])));
            assert_eq!(attrs.within(uapi::TUPLE_ORIG).within(uapi::TUPLE_IP).count(), 2);
        }
    }

    #[test]
    fn no_request_to_delete_is_without_a_flow_whatever_the_kernel_says() {
        let (mut random, mut requests) = (Random::new(7), 0);
        for _ in 0..50_000 {
            let mut message = told([ADDRESS.octets(); 4]);
            for _ in 0..random.below(6) {
                let at = 16 + random.below(message.len() - 16);
                message[at] = random.below(40) as u8;
            }
            for flow in parse(&message).iter().filter_map(|told| Flow::of(told, &|a| a == ADDRESS)) {
                let request = &parse(&bytes(&flow.delete()))[0];
                let ip = request.attrs(NFGEN).within(uapi::TUPLE_ORIG).within(uapi::TUPLE_IP);
                for kind in [uapi::IP_V4_SRC, uapi::IP_V4_DST] {
                    assert_eq!(ip.get(kind).map(<[u8]>::len), Some(4));
                }
                requests += 1;
            }
        }
        assert!(requests > 10_000, "{requests}");
    }
}
