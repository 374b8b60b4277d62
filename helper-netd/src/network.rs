//! A network: what root wants of it, and what follows from that for the kernel.

use crate::ops::{Bridge, BridgeSet, Element, IfName, Mac};
use crate::permit::{Caller, Who};
use std::net::Ipv4Addr;

/// First three bytes of every guest's MAC: locally administered, `vm`.
const GUEST: [u8; 3] = [0x02, 0x76, 0x6d];
/// First three bytes of every bridge's MAC: no guest can have one like it.
const BRIDGE: [u8; 3] = [0x02, 0x76, 0x62];

/// One network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its name: letters, digits, `-`, `_`.
    pub name: String,
    /// Its bridge.
    pub bridge: IfName,
    /// The host's address on the bridge.
    pub address: Ipv4Addr,
    /// Length of the subnet's prefix, bits.
    pub prefix: u8,
    /// Bytes of the largest packet.
    pub mtu: u16,
    /// Guests go out with the host's address.
    pub nat: bool,
    /// Guests do not reach each other.
    pub isolated: bool,
    /// Guests reach the host's own services.
    pub host: bool,
    /// Guests reach 169.254.0.0/16.
    pub metadata: bool,
    /// `localhost` on the host leads to forwards, too.
    pub localhost: bool,
    /// Bridges of networks whose guests may be reached.
    pub reach: Vec<IfName>,
    /// DNS servers for guests.
    pub dns: Vec<Ipv4Addr>,
    /// Who may use it.
    pub who: Who,
    /// The most leases of each uid.
    pub leases: u32,
    /// Warm TAPs to keep.
    pub pool: u8,
    /// Who may forward which ports of the host, first and last.
    pub forwards: Vec<(Who, Vec<(u16, u16)>)>,
    /// No longer configured: its leases go on until their VMs end, and there are no new ones.
    pub retired: bool,
}

impl Network {
    /// The network without anybody who may use it.
    pub fn retire(&self) -> Network {
        let (who, forwards) = (Who::default(), Vec::new());
        Network { retired: true, who, leases: 0, pool: 0, forwards, ..self.clone() }
    }

    /// Its bridge, as the kernel should have it.
    pub fn bridge(&self) -> Bridge {
        let mac = mac(BRIDGE, suffix(u32::from(self.address)));
        let (name, address, prefix) = (self.bridge, self.address, self.prefix);
        Bridge { name, mac, address, prefix, mtu: self.mtu, localhost: self.localhost }
    }

    /// Its elements in the sets of bridges.
    pub fn elements(&self) -> impl Iterator<Item = Element> {
        let sets = [
            (BridgeSet::Bridges, true),
            (BridgeSet::Nat, self.nat),
            (BridgeSet::Routed, !self.nat),
            (BridgeSet::Host, self.host),
            (BridgeSet::Metadata, self.metadata),
        ];
        let bridges = sets.into_iter().filter(|(_, wanted)| *wanted).map(|(set, _)| Element::Bridge(set, self.bridge));
        let itself = (!self.isolated).then_some(&self.bridge);
        bridges.chain(self.reach.iter().chain(itself).map(|to| Element::Reach { from: self.bridge, to: *to }))
    }

    /// The first and the last address that is neither the network's nor broadcast.
    pub fn hosts(&self) -> (u32, u32) {
        let mask = u32::MAX << (32 - u32::from(self.prefix));
        let network = u32::from(self.address) & mask;
        (network + 1, (network | !mask) - 1)
    }

    /// True where an address could be in both.
    pub fn overlaps(&self, other: &Network) -> bool {
        let ((a, b), (c, d)) = (self.hosts(), other.hosts());
        a <= d && c <= b
    }

    /// Ranges of host ports that the caller may forward.
    pub fn ranges<'a>(&'a self, caller: &'a Caller) -> impl Iterator<Item = (u16, u16)> + 'a {
        self.forwards.iter().filter(|(who, _)| who.includes(caller)).flat_map(|(_, ports)| ports.iter().copied())
    }
}

/// A guest's MAC with this ending.
pub fn guest_mac(suffix: [u8; 3]) -> Mac {
    mac(GUEST, suffix)
}

/// The MAC of the guest with this address, unless another was asked for.
pub fn default_mac(address: u32) -> Mac {
    mac(GUEST, suffix(address))
}

fn suffix(address: u32) -> [u8; 3] {
    let [_, a, b, c] = address.to_be_bytes();
    [a, b, c]
}

fn mac([a, b, c]: [u8; 3], [d, e, f]: [u8; 3]) -> Mac {
    [a, b, c, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::network;

    #[test]
    fn a_subnet_has_its_hosts_and_overlaps_only_where_they_do() {
        let mut a = network("a", "br-a", "10.1.2.1", 24);
        assert_eq!(a.hosts(), (0x0a01_0201, 0x0a01_02fe));
        let b = network("b", "br-b", "10.1.3.1", 24);
        assert!(!a.overlaps(&b) && !b.overlaps(&a));
        a.prefix = 8;
        assert!(a.overlaps(&b) && b.overlaps(&a));
    }

    #[test]
    fn no_guests_mac_is_a_bridges() {
        let a = network("a", "br-a", "10.1.2.1", 24);
        assert_ne!(a.bridge().mac, default_mac(u32::from(a.address)));
        assert_eq!(guest_mac([1, 2, 1]), default_mac(u32::from(a.address)));
    }

    #[test]
    fn a_retired_network_keeps_its_elements_and_nobody_may_use_it() {
        let a = network("a", "br-a", "10.1.2.1", 24);
        let retired = a.retire();
        assert!(a.elements().eq(retired.elements()));
        assert!(!retired.who.includes(&Caller { uid: 1000, groups: vec![1000] }));
    }
}
