//! What netd does to the kernel, and nothing else does: TAPs, bridges and their ports, elements of nftables' sets.
//!
//! [`Ops`] is the whole of it, so that everything above is tested against a double. Names of interfaces are made here
//! from numbers, or come from root's configuration; none comes from a peer.

mod flows;
mod kernel;
mod link;
mod nft;
#[cfg(test)]
pub(crate) mod tests;

pub use kernel::Kernel;

use crate::netlink;
use netd_api::Flow;
use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Name of an interface, with its closing NUL never more than IFNAMSIZ bytes. Compared as it is used (CVE-2019-13164 was a name
/// cut off after it was compared).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IfName {
    bytes: [u8; IfName::MAX + 1],
}

impl IfName {
    /// The longest name, bytes (IFNAMSIZ without the NUL).
    pub const MAX: usize = 15;

    /// The name, where the kernel could take it: 1 to 15 bytes of letters, digits, `.`, `_` and `-`, and neither `.` nor
    /// `..`.
    pub fn new(name: &str) -> Option<IfName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if name.is_empty() || name.len() > Self::MAX || !name.bytes().all(allowed) || name.trim_matches('.').is_empty()
        {
            return None;
        }
        let mut bytes = [0; Self::MAX + 1];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Some(IfName { bytes })
    }

    /// The port number `n`: `vt<n>`. Numbers are never used again within a boot.
    pub fn port(n: u32) -> IfName {
        IfName::new(&format!("vt{n}")).unwrap_or_else(|| unreachable!("at most 12 bytes"))
    }

    /// The number of a port's name; `None` for any other name.
    pub fn port_number(&self) -> Option<u32> {
        let digits = self.as_str().strip_prefix("vt")?;
        let n = digits.parse().ok()?;
        // One spelling for each number: "vt007" is somebody else's.
        (IfName::port(n) == *self).then_some(n)
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        let end = self.bytes.iter().position(|b| *b == 0).unwrap_or(Self::MAX);
        std::str::from_utf8(&self.bytes[..end]).unwrap_or_default()
    }

    /// All 16 bytes, closing NULs included, as the kernel has it in `struct ifreq` and in a set's key.
    pub fn padded(&self) -> [u8; Self::MAX + 1] {
        self.bytes
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A MAC address.
pub type Mac = [u8; 6];

/// A bridge as the configuration wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: IfName,
    /// Its own MAC: set, so that no port's address ever becomes the bridge's.
    pub mac: Mac,
    /// The host's address on it.
    pub address: Ipv4Addr,
    /// Length of the subnet's prefix, bits.
    pub prefix: u8,
    /// Bytes of the largest packet.
    pub mtu: u16,
    /// Packets for guests may come from 127.0.0.0/8 (`route_localnet`).
    pub localhost: bool,
}

/// A new TAP.
#[derive(Debug)]
pub struct Tap {
    /// One for each queue, non-blocking.
    pub queues: Vec<OwnedFd>,
    /// Its interface index.
    pub index: u32,
    /// The MAC of the host's side.
    pub mac: Mac,
}

/// An interface whose name is `vt<n>`, or a bridge that was asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: IfName,
    /// Its index.
    pub index: u32,
    /// The MAC of the host's side.
    pub mac: Mac,
    /// Index of its bridge, where it is a port.
    pub bridge: Option<u32>,
    /// It is up (IFF_UP).
    pub up: bool,
    /// What `tun` says, where it is a TAP.
    pub tun: Option<Tun>,
}

/// What `tun` says of an interface (IFLA_TUN_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tun {
    /// It outlives its holders (TUNSETPERSIST).
    pub persist: bool,
    /// Who may attach a second time (TUNSETOWNER).
    pub owner: Option<u32>,
    /// Which group may (TUNSETGROUP).
    pub group: Option<u32>,
}

/// What happened to interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is new, or something about it changed.
    Changed(Link),
    /// It is gone.
    Gone {
        /// Its name.
        name: IfName,
        /// Its index.
        index: u32,
    },
    /// Events were lost (ENOBUFS): look at everything.
    Lost,
}

/// Sets of bridges, by what is allowed there (`policies/nft/vmsup.nft`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BridgeSet {
    /// All of ours.
    Bridges,
    /// Guests go out with the host's address.
    Nat,
    /// Guests reach the host's own services.
    Host,
    /// Guests reach link-local addresses (169.254.0.0/16).
    Metadata,
    /// Guests are reached from outside by their own addresses.
    Routed,
}

/// One element of one set or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Element {
    /// `bridge vmsup leases`: frames of this port may have these sources.
    Lease {
        /// The port.
        port: IfName,
        /// Its guest's MAC.
        mac: Mac,
        /// Its guest's address.
        address: Ipv4Addr,
    },
    /// `inet vmsup …`: a bridge is in a set.
    Bridge(BridgeSet, IfName),
    /// `inet vmsup reach`: guests of one bridge reach those of another. A bridge to itself where its guests are not
    /// isolated: else one would reach the other by way of the host, which routes between any two of its addresses.
    Reach {
        /// From.
        from: IfName,
        /// To.
        to: IfName,
    },
    /// `inet vmsup forwards`: a port of the host leads to a guest.
    Forward {
        /// IPPROTO_TCP or IPPROTO_UDP.
        protocol: u8,
        /// Port of the host.
        host: u16,
        /// The guest.
        address: Ipv4Addr,
        /// Its port.
        guest: u16,
    },
    /// `inet vmsup localhost`: the forward of that port holds for 127.0.0.0/8, too (`localhost_forwards`). Without it
    /// the loopback's ports stay with the host's own services.
    Localhost {
        /// IPPROTO_TCP or IPPROTO_UDP.
        protocol: u8,
        /// Port of the host.
        host: u16,
    },
}

/// Why the kernel did not do it.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    /// The tables of `vmsup.nft` are not there, or are not ours.
    #[error("the tables \"bridge vmsup\" and \"inet vmsup\" are not loaded (nft -f vmsup.nft)")]
    NoRules,
    /// The kernel tells nobody which connections it knows.
    #[error("connections cannot be listed: the kernel has no nf_conntrack_netlink (modprobe nf_conntrack_netlink)")]
    NoFlows,
    /// Something that should be there is not, or the other way round: what we believe of the kernel is wrong.
    #[error("{what}: {source}; the kernel's state is not the expected one")]
    Differs {
        /// What was tried, on what.
        what: String,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// Anything else.
    #[error("{what}: {source}")]
    Kernel {
        /// What was tried, on what.
        what: String,
        /// What the kernel says.
        source: std::io::Error,
    },
}

/// Tells what the kernel said of something that was tried.
fn failed(what: impl FnOnce() -> String) -> impl FnOnce(netlink::Error) -> OpsError {
    move |netlink::Error { source, words }| {
        let what = what() + &words;
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::EEXIST | libc::EBUSY) => {
                OpsError::Differs { what, source }
            }
            _ => OpsError::Kernel { what, source },
        }
    }
}

/// What netd does to the kernel.
pub trait Ops {
    /// Makes a TAP: IFF_TAP, IFF_NO_PI, IFF_VNET_HDR (12 bytes), several queues where asked for, not persistent, owned
    /// by our own uid and gid, non-blocking. Its holder completes checksums itself, whatever `offloads` says, so that the kernel
    /// changes no frame that the rules have judged; it is given segments to cut where `offloads` says so. It is down, and no
    /// bridge's port.
    fn create_tap(&mut self, name: IfName, queues: u8, offloads: bool) -> Result<Tap, OpsError>;

    /// Makes the bridge, or makes the one that is there what it should be (MAC, address, MTU, up, no STP, no IPv6 address,
    /// no multicast snooping, per-interface forwarding and `route_localnet`). Returns its index. An interface of that
    /// name which is no bridge is an error.
    fn ensure_bridge(&mut self, bridge: &Bridge) -> Result<u32, OpsError>;

    /// Makes interface `index` a port of `bridge`, isolated or not, not learning, locked, not flooded with unknown
    /// unicast or multicast, hands frames for `mac` to it for good (static forwarding entry), sets the MTU, and brings
    /// it up.
    fn plug(&mut self, index: u32, bridge: u32, isolated: bool, mtu: u16, mac: Mac) -> Result<(), OpsError>;

    /// Puts the forwarding entry of `mac` back to port `index`, whatever became of it.
    fn restore_forwarding(&mut self, index: u32, mac: Mac) -> Result<(), OpsError>;

    /// Takes interface `index` down and out of its bridge.
    fn unplug(&mut self, index: u32) -> Result<(), OpsError>;

    /// Deletes interface `index`; it may be gone already. Takes many milliseconds: for the disobedient only.
    fn delete_link(&mut self, index: u32) -> Result<(), OpsError>;

    /// All interfaces with a port's name, and all bridges.
    fn links(&mut self) -> Result<Vec<Link>, OpsError>;

    /// All elements of all our sets.
    fn elements(&mut self) -> Result<Vec<Element>, OpsError>;

    /// Adds and removes elements, all or none. Adding one that is there is nothing; removing one that is not is
    /// [`OpsError::Differs`].
    fn change(&mut self, add: &[Element], remove: &[Element]) -> Result<(), OpsError>;

    /// Ends all that connection tracking knows of such addresses, and nothing else. An error, and not all of it is ended.
    /// Takes many milliseconds, as does [`Ops::forget_knocks`].
    fn forget_flows(&mut self, of: &dyn Fn(Ipv4Addr) -> bool) -> Result<(), OpsError>;

    /// Ends what connection tracking knows of unanswered UDP to ports of the host, from before they led anywhere.
    fn forget_knocks(&mut self, ports: &[u16]) -> Result<(), OpsError>;

    /// Are both tables loaded, with every set that is used here?
    fn rules_loaded(&mut self) -> Result<bool, OpsError>;

    /// Chains at the forward hook that are not ours and drop what they do not know, `ip filter FORWARD`; at most `most`.
    fn dropping_chains(&mut self, most: usize) -> Result<Vec<String>, OpsError>;

    /// What came from the guest through this port, and what went to it.
    fn traffic(&mut self, index: u32) -> Result<(Flow, Flow), OpsError>;

    /// `net.ipv4.ip_forward`.
    fn ip_forward(&mut self) -> Result<bool, OpsError>;

    /// Readable when there are link events.
    fn link_events_fd(&self) -> BorrowedFd<'_>;

    /// The next event that happened to a port or a bridge, without waiting.
    fn next_link_event(&mut self) -> Option<LinkEvent>;

    /// Readable when somebody changed nftables' rules.
    fn rule_events_fd(&self) -> BorrowedFd<'_>;

    /// Drops all pending events of rules, without waiting; true where one of them may concern our tables (one of ours was
    /// made or deleted, or events were lost). What we change ourselves does not count.
    fn rules_touched(&mut self) -> bool;
}
