//! What supervisor and netd say to each other: types only.
//!
//! A supervisor connects, both sides greet ([`NAME`], [`VERSION`]), and each [`Request`] has one [`Reply`]. The caller is
//! the uid (and its groups) that the kernel tells of the socket's peer, never a field. No fd goes to netd; no path, no
//! interface name and no fd number is taken from anyone.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// Name of the protocol in the opening handshake.
pub const NAME: &str = "vmsup-netd";
/// Version of the protocol in the opening handshake.
pub const VERSION: u16 = 1;
/// Where netd listens unless it is told otherwise.
pub const SOCKET: &str = "/run/vmsup-netd/netd.sock";
/// The longest name of a network, bytes.
pub const NETWORK_NAME_MAX: usize = 31;
/// The most queues (pairs of receive and transmit) of one interface.
pub const QUEUES_MAX: u8 = 4;
/// The most forwards of one lease.
pub const FORWARDS_MAX: usize = 16;
/// The most DNS servers of a network.
pub const DNS_MAX: usize = 3;
/// The most networks of one host.
pub const NETWORKS_MAX: usize = 32;
/// The most leases in one [`Reply::Leases`]; ask again behind the last of a full page.
pub const PAGE: usize = 32;

/// Number of a lease; minted by netd, never used again within a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeaseId(pub u64);

/// The supervisor's own number of a VM. It means something together with the caller's uid only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VmId(pub u64);

/// What a forward carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Forward {
    /// Of which protocol both ports are.
    pub protocol: Protocol,
    /// Port on all of the host's addresses; not 0.
    pub host: u16,
    /// Port of the guest; not 0.
    pub guest: u16,
}

/// From the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// A TAP in a network. Answered by `Leased`.
    Lease(Wanted),
    /// The lease is no longer needed; only its owner can say so. Answered by `Released`.
    Release {
        /// Which.
        lease: LeaseId,
    },
    /// The networks that the caller may use. Answered by `Networks`.
    Networks,
    /// The caller's leases with larger numbers than this, in order, at most [`PAGE`]. Answered by `Leases`.
    Leases {
        /// The last one that is known; 0 for the first page.
        after: LeaseId,
    },
    /// How netd is. Answered by `Status`.
    Status,
    /// What the kernel counted on the interfaces of the same leases as of `Leases`. Answered by `Traffic`.
    Traffic {
        /// The last one that is known; 0 for the first page.
        after: LeaseId,
    },
}

impl ipc::Message for Request {
    const MAX_BYTES: usize = 256;
    const MAX_FDS: usize = 0;
}

/// What a lease is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Name of a network in netd's configuration.
    pub network: String,
    /// For whom.
    pub vm: VmId,
    /// 1 to [`QUEUES_MAX`].
    pub queues: u8,
    /// The TAP's holder may be given segments to cut (TUNSETOFFLOAD). Checksums to complete it is given in any case.
    pub offloads: bool,
    /// The last three bytes of the MAC; netd chooses where there are none.
    pub mac_suffix: Option<[u8; 3]>,
    /// At most [`FORWARDS_MAX`].
    pub forwards: Vec<Forward>,
}

/// From netd: one for each request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The lease; carries an fd for each queue, all of one TAP: IFF_TAP, IFF_NO_PI, IFF_VNET_HDR with a header of 12
    /// bytes, non-blocking.
    Leased(Lease),
    /// The lease is gone; its interface goes as soon as nobody holds it any more, or a moment later anyway.
    Released,
    /// In the order of the configuration.
    Networks(Vec<NetworkInfo>),
    /// In the order of their numbers.
    Leases(Vec<LeaseInfo>),
    /// How netd is.
    Status(Status),
    /// Nothing was done.
    Refused(Refusal),
    /// In the order of their numbers; nothing was counted of an interface that is just going.
    Traffic(Vec<Traffic>),
}

impl ipc::Message for Reply {
    const MAX_BYTES: usize = 8 * 1024;
    fn fd_count(&self) -> usize {
        match self {
            Reply::Leased(lease) => usize::from(lease.queues),
            _ => 0,
        }
    }
}

/// What a VM is on its network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its number.
    pub id: LeaseId,
    /// Name of the host's interface, for people.
    pub interface: String,
    /// How many fds come along.
    pub queues: u8,
    /// The only source address that its frames may have.
    pub mac: [u8; 6],
    /// The only IPv4 source that its packets may have.
    pub address: Ipv4Addr,
    /// Length of the subnet's prefix, bits.
    pub prefix: u8,
    /// Where everything else goes.
    pub gateway: Ipv4Addr,
    /// At most [`DNS_MAX`].
    pub dns: Vec<Ipv4Addr>,
    /// Bytes of the largest packet.
    pub mtu: u16,
}

/// A network, to one who may use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInfo {
    /// Its name.
    pub name: String,
    /// The host's bridge.
    pub bridge: String,
    /// The host's own address on it; the guests' gateway.
    pub gateway: Ipv4Addr,
    /// Length of the subnet's prefix, bits.
    pub prefix: u8,
    /// Guests go out with the host's address.
    pub nat: bool,
    /// Guests cannot reach each other.
    pub isolated: bool,
    /// Guests reach the host's own services.
    pub host: bool,
    /// `localhost` on the host leads to forwards, too.
    pub localhost_forwards: bool,
    /// Leases that the caller has in it.
    pub leases: u32,
    /// Leases that the caller may have in it.
    pub limit: u32,
    /// Ranges of host ports, first and last, that the caller may forward; at most 8 are told.
    pub forwards: Vec<(u16, u16)>,
}

/// A lease of the caller's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseInfo {
    /// Its number.
    pub id: LeaseId,
    /// Its network.
    pub network: String,
    /// For whom it was asked.
    pub vm: VmId,
    /// Name of the host's interface.
    pub interface: String,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its address.
    pub address: Ipv4Addr,
    /// At most [`FORWARDS_MAX`].
    pub forwards: Vec<Forward>,
}

/// What the kernel counted on the interface of a lease of the caller's, since the interface was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Its number.
    pub id: LeaseId,
    /// From the guest.
    pub sent: Flow,
    /// To the guest.
    pub received: Flow,
}

/// One way of an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets that the interface dropped: its queue was full, or they were none. What the rules drop is not among them.
    pub dropped: u64,
}

/// How netd is. What concerns a single uid is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Release.
    pub version: String,
    /// The rules of `policies/nft/vmsup.nft` are loaded.
    pub rules: bool,
    /// `net.ipv4.ip_forward` of netd's network namespace.
    pub ip_forward: bool,
    /// Bridges that should be up and are not.
    pub bridges_down: Vec<String>,
    /// Chains at the forward hook that are not ours and drop what they do not know (`ip filter FORWARD`), at most 4.
    pub dropping_chains: Vec<String>,
    /// Leases of all uids.
    pub leases: u32,
}

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// No network of that name, or not for this uid: the two are not told apart.
    NoSuchNetwork,
    /// The uid has as many leases in that network as it may have.
    Quota {
        /// How many that is.
        limit: u32,
    },
    /// All addresses of the network are taken.
    NetworkFull,
    /// That MAC is another VM's.
    MacTaken,
    /// The uid may not forward that port.
    PortNotAllowed {
        /// Of the host.
        port: u16,
    },
    /// That port leads to another VM.
    PortTaken {
        /// Of the host.
        port: u16,
    },
    /// The request is out of bounds: queues, forwards or names.
    Invalid,
    /// The lease is not this uid's, or there is none of that number: the two are not told apart.
    NotYours,
    /// The host's rules against spoofing are not loaded, so that no lease would be safe.
    NoRules,
    /// netd could not do it; its log says why.
    Failed,
}
