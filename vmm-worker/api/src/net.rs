//! A network interface as supervisor and worker speak of it: what its lease says, and what it did.

use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// The most queue pairs of one network interface.
pub const NET_QUEUES_MAX: u8 = 4;
/// The most DNS servers that a guest is told of.
pub const DNS_MAX: usize = 3;
/// The longest host name that a guest is told, bytes (a DNS label).
pub const HOSTNAME_MAX: usize = 63;
/// The smallest and the largest MTU of a network interface, bytes (RFC 791's least; the largest IPv4 packet).
pub const MTU: (u16, u16) = (576, 65535);

/// One network interface: what its lease says. Its TAP has a virtio-net header of 12 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetSpec {
    /// The guest's MAC.
    pub mac: [u8; 6],
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Length of the subnet's prefix, bits.
    pub prefix: u8,
    /// The default route.
    pub gateway: Ipv4Addr,
    /// DNS servers, at most [`DNS_MAX`].
    pub dns: Vec<Ipv4Addr>,
    /// Bytes of the largest packet, within [`MTU`].
    pub mtu: u16,
    /// Queue pairs, 1 to [`NET_QUEUES_MAX`]; an fd of the TAP for each.
    pub queues: u8,
    /// The guest's driver may be handed checksums to complete and segments to cut. The TAP hands over the former in any case, and
    /// the worker completes them for a driver that does not.
    pub offloads: bool,
    /// What the guest is told to call itself: letters, digits and `-`, at most [`HOSTNAME_MAX`] bytes; empty for nothing.
    pub hostname: String,
}

impl NetSpec {
    /// Checks what the types do not hold.
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.queues == 0 || self.queues > NET_QUEUES_MAX {
            return Err(format!("queues: {}, where 1 to {NET_QUEUES_MAX} are possible", self.queues));
        }
        if self.mac[0] & 1 != 0 {
            return Err("mac: a group address".into());
        }
        if self.prefix > 32 {
            return Err(format!("prefix: {} bits of 32", self.prefix));
        }
        if self.dns.len() > DNS_MAX {
            return Err(format!("dns: {} servers, where {DNS_MAX} are possible", self.dns.len()));
        }
        if self.mtu < MTU.0 {
            return Err(format!("mtu: {} bytes, where at least {} are needed", self.mtu, MTU.0));
        }
        if self.hostname.len() > HOSTNAME_MAX || !self.hostname.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        {
            return Err(format!("hostname: more than {HOSTNAME_MAX} bytes, or not letters, digits and -"));
        }
        Ok(())
    }
}

/// What a network interface did so far. `received` is what reached the guest, `sent` what left it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetCounters {
    /// Packets that reached the guest from its network.
    pub received_packets: u64,
    /// Their bytes, without virtio's header.
    pub received_bytes: u64,
    /// Packets of the guest's that went into the network.
    pub sent_packets: u64,
    /// Their bytes, without virtio's header.
    pub sent_bytes: u64,
    /// DHCP requests that were answered here.
    pub dhcp_answers: u64,
    /// Dropped on the way out: shorter than an Ethernet header, or longer than any packet.
    pub dropped_length: u64,
    /// Dropped on the way out: the kernel did not take virtio's header.
    pub dropped_header: u64,
    /// Dropped on the way out: the TAP did not take it (its interface is down or gone).
    pub dropped_tap: u64,
    /// Dropped on the way out: for a DHCP server, and no request that can be answered.
    pub dropped_dhcp: u64,
    /// Dropped on the way in: the guest's buffers were too small.
    pub dropped_buffer: u64,
    /// Dropped on the way in: a segment that the guest's driver did not agree to take, or a checksum that is not TCP's or UDP's.
    pub dropped_offload: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_interface_is_checked_field_by_field() {
        let good = NetSpec {
            mac: [2, 0x76, 0x6d, 0, 0, 2],
            address: Ipv4Addr::new(10, 0, 0, 2),
            prefix: 24,
            gateway: Ipv4Addr::new(10, 0, 0, 1),
            dns: Vec::new(),
            mtu: 1500,
            queues: 1,
            offloads: true,
            hostname: "web-1".into(),
        };
        assert_eq!(good.check(), Ok(()));
        type Change = fn(&mut NetSpec);
        let bad: [(&str, Change); 7] = [
            ("queues", |n| n.queues = 0),
            ("queues", |n| n.queues = NET_QUEUES_MAX + 1),
            ("mac", |n| n.mac[0] |= 1),
            ("prefix", |n| n.prefix = 33),
            ("dns", |n| n.dns = vec![Ipv4Addr::LOCALHOST; DNS_MAX + 1]),
            ("mtu", |n| n.mtu = 575),
            ("hostname", |n| n.hostname = "web.1".into()),
        ];
        for (field, break_it) in bad {
            let mut net = good.clone();
            break_it(&mut net);
            assert!(net.check().is_err_and(|why| why.starts_with(field)), "{field}");
        }
    }
}
