//! DHCP, answered where it is asked: inside the worker, on its reactor thread, from the one lease that the interface has.
//!
//! Only the guest can send here, and it may send anything: a frame that is no well-formed request of the lease's own MAC
//! gets no answer. No packet leaves the worker, nothing is kept between two requests, nothing is allocated.
//! RFC 2131 (messages), 2132 (options), 6842 (the client's identifier comes back).

use std::net::Ipv4Addr;
use wire::{Ends, Message, Request, Writer, message, option};
use worker_api::NetSpec;
use zerocopy::{FromZeros, IntoBytes};

#[cfg(test)]
mod tests;
mod wire;

/// The longest frame that can be a request, bytes: Ethernet's usual one. What a client may send before it has agreed on
/// anything else is 576 bytes of IP.
pub const REQUEST_MAX: usize = 1514;
/// Room for a reply, bytes.
pub const REPLY_MAX: usize = 600;

/// Source MAC of the replies: locally administered, and outside of what leases have. It is not the bridge's, which the worker
/// neither knows nor speaks for: who looks at the guest's traffic sees which frames came from here.
pub const SERVER_MAC: [u8; 6] = [0x02, b'd', b'h', b'c', b'p', b's'];

/// 30 days. The address is the VM's for as long as the VM lives, so that no end is needed: each renewal only wakes an idle
/// guest. But not "for ever" (0xffffffff), which clients treat in many ways.
const LEASE_SECONDS: u32 = 30 * 24 * 3600;
/// T1 and T2 at the shares of the lease that RFC 2131, 4.4.5 has as defaults, so that a client which has ideas of its own has
/// these.
const RENEWAL_SECONDS: u32 = LEASE_SECONDS / 2;
const REBINDING_SECONDS: u32 = LEASE_SECONDS / 8 * 7;

/// Answers one interface's requests.
#[derive(Debug)]
pub struct DhcpServer {
    lease: NetSpec,
}

/// What a request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The lease, to be asked for.
    Offer,
    /// The lease.
    Ack,
    /// Not that address: begin anew.
    Nak,
    /// All but the lease: the address is there already.
    Inform,
}

impl DhcpServer {
    /// A server that knows one lease.
    pub fn new(spec: &NetSpec) -> Self {
        Self { lease: spec.clone() }
    }

    /// Is this the beginning of a frame to a DHCP server? `head` is the first bytes (up to 64) of an Ethernet frame. What
    /// hides its ports behind more than 26 bytes of IP options is none: the host's rules have it.
    pub fn is_for_server(head: &[u8]) -> bool {
        wire::udp_port(head) == Some(wire::SERVER_PORT)
    }

    /// Answers a whole frame: the reply, an Ethernet frame without virtio's header, is in `reply` as far as the length says.
    /// `None` where there is nothing to say.
    pub fn answer(&mut self, frame: &[u8], reply: &mut [u8; REPLY_MAX]) -> Option<usize> {
        let request = Request::parse(frame)?;
        if !self.is_clients(&request) || !self.is_ours(&request) {
            return None;
        }
        let answer = self.decide(&request)?;
        self.write(&request, answer, reply.first_chunk_mut()?)
    }

    /// Does it come from the lease's own client, and straight from it?
    fn is_clients(&self, Request { ethernet, message, .. }: &Request<'_>) -> bool {
        ethernet.source == self.lease.mac
            && (message.op, message.htype, message.hlen) == (wire::OP_REQUEST, wire::HTYPE_ETHERNET, 6)
            && message.chaddr[..6] == self.lease.mac
            && message.giaddr == [0; 4]
    }

    /// Is it for this server, as far as the addresses say?
    fn is_ours(&self, request: &Request<'_>) -> bool {
        let to = Ipv4Addr::from(request.ip.destination);
        to == Ipv4Addr::BROADCAST || to == self.lease.gateway || Some(to) == self.broadcast()
    }

    /// RFC 2131, 4.3.
    fn decide(&self, Request { message, options, .. }: &Request<'_>) -> Option<Answer> {
        let ciaddr = Ipv4Addr::from(message.ciaddr);
        match options.message? {
            message::DISCOVER => Some(Answer::Offer),
            // One that another server offered something is none of ours.
            message::REQUEST if options.server.is_some_and(|server| server != self.lease.gateway) => None,
            // Selecting and init-reboot name an address in an option, renewing and rebinding have it already.
            message::REQUEST => {
                let current = Some(ciaddr).filter(|a| !a.is_unspecified());
                let (first, second) = (options.requested.or(current)?, current);
                let right = first == self.lease.address && second.is_none_or(|a| a == self.lease.address);
                Some(if right { Answer::Ack } else { Answer::Nak })
            }
            // From another address nothing would leave the host, so it gets no help with that.
            message::INFORM => (ciaddr == self.lease.address).then_some(Answer::Inform),
            // A guest may decline or release, but the address stays the VM's.
            _ => None,
        }
    }

    fn write(&self, request: &Request<'_>, answer: Answer, frame: &mut [u8; wire::FRAME_MAX]) -> Option<usize> {
        let mut out = Writer::new(frame);
        let kind = match answer {
            Answer::Offer => message::OFFER,
            Answer::Ack | Answer::Inform => message::ACK,
            Answer::Nak => message::NAK,
        };
        out.option(option::MESSAGE_TYPE, &[kind])?;
        out.option(option::SERVER_ID, &self.lease.gateway.octets())?;
        if matches!(answer, Answer::Offer | Answer::Ack) {
            out.option(option::LEASE_TIME, &LEASE_SECONDS.to_be_bytes())?;
            out.option(option::RENEWAL_TIME, &RENEWAL_SECONDS.to_be_bytes())?;
            out.option(option::REBINDING_TIME, &REBINDING_SECONDS.to_be_bytes())?;
        }
        if answer != Answer::Nak {
            self.write_network(&mut out)?;
        }
        if let Some(id) = request.options.client_id {
            // One that does not fit is longer than any in use, and without it a client of RFC 6842 takes no answer.
            out.option(option::CLIENT_ID, id)?;
        }
        let asked = request.message;
        let reply = Message {
            htype: asked.htype,
            hlen: asked.hlen,
            xid: asked.xid,
            flags: asked.flags,
            ciaddr: if matches!(answer, Answer::Ack | Answer::Inform) { asked.ciaddr } else { [0; 4] },
            yiaddr: if matches!(answer, Answer::Offer | Answer::Ack) { self.lease.address.octets() } else { [0; 4] },
            chaddr: asked.chaddr,
            ..Message::new_zeroed()
        };
        Some(out.finish(self.ends(asked, answer), reply))
    }

    /// What does not depend on who asks. Options are written whether they were asked for or not (RFC 2131, 4.3.1): all of
    /// them fit, and some clients forget to ask.
    fn write_network(&self, out: &mut Writer<'_>) -> Option<()> {
        let lease = &self.lease;
        out.option(option::SUBNET_MASK, &mask(lease.prefix).to_be_bytes())?;
        out.option(option::ROUTER, &lease.gateway.octets())?;
        if let Some(broadcast) = self.broadcast() {
            out.option(option::BROADCAST, &broadcast.octets())?;
        }
        if !lease.dns.is_empty() {
            let servers: [[u8; 4]; worker_api::DNS_MAX] =
                std::array::from_fn(|n| lease.dns.get(n).map_or([0; 4], Ipv4Addr::octets));
            out.option(option::DNS, servers.as_bytes().get(..4 * lease.dns.len())?)?;
        }
        out.option(option::MTU, &lease.mtu.to_be_bytes())?;
        if !lease.hostname.is_empty() {
            out.option(option::HOST_NAME, lease.hostname.as_bytes())?;
        }
        Some(())
    }

    /// RFC 2131, 4.1: to the address that the client has, else to the one that it is about to get, or to all where it says
    /// that it cannot take that yet. A refusal goes to all: the client has no address that is right.
    fn ends(&self, asked: &Message, answer: Answer) -> Ends {
        let has_address = asked.ciaddr != [0; 4] && answer != Answer::Offer;
        let to_all = answer == Answer::Nak || (!has_address && asked.flags.get() & wire::FLAG_BROADCAST != 0);
        Ends {
            source_mac: SERVER_MAC,
            source: self.lease.gateway,
            destination_mac: if to_all { [0xff; 6] } else { self.lease.mac },
            destination: if to_all { Ipv4Addr::BROADCAST } else { self.lease.address },
        }
    }

    /// The subnet's broadcast address; none where a subnet has no room for one (RFC 3021).
    fn broadcast(&self) -> Option<Ipv4Addr> {
        let mask = mask(self.lease.prefix);
        (self.lease.prefix < 31).then(|| Ipv4Addr::from_bits(self.lease.address.to_bits() | !mask))
    }
}

/// The netmask of a prefix of 0 to 32 bits.
fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32u32.saturating_sub(prefix.into())).unwrap_or(0)
}
