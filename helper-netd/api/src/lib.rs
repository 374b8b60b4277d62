//! What supervisor and netd say to each other: types only.
//!
//! Fixed ahead of netd itself: the shape of a lease, and the errors that the CLI turns into sentences.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// Name of the protocol in the opening handshake.
pub const NAME: &str = "vmsup-netd";
/// Version of the protocol in the opening handshake.
pub const VERSION: u16 = 1;

/// Number of a lease; minted by netd, never used again within a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaseId(pub u64);

/// From the supervisor. The owner is the peer's uid, never a field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// A TAP in this network.
    Lease {
        /// Name of a network in netd's configuration.
        network: String,
        /// The supervisor's own number of the VM.
        vm: u64,
    },
    /// The lease is no longer needed. Only its owner can say so.
    Release {
        /// Which.
        lease: LeaseId,
    },
}

impl ipc::Message for Request {
    const MAX_BYTES: usize = 256;
}

/// From netd: one for each request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The lease; carries one fd, the TAP.
    Leased(Lease),
    /// The lease is gone.
    Released,
    /// Nothing was done.
    Refused(Refusal),
}

impl ipc::Message for Reply {
    const MAX_BYTES: usize = 512;
    fn fd_count(&self) -> usize {
        usize::from(matches!(self, Reply::Leased(_)))
    }
}

/// What a VM may be on its network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its number.
    pub id: LeaseId,
    /// The only source address that its frames may have.
    pub mac: [u8; 6],
    /// The only IPv4 source that its packets may have.
    pub address: Ipv4Addr,
    /// Length of the subnet's prefix, bits.
    pub prefix: u8,
    /// Where everything else goes.
    pub gateway: Ipv4Addr,
    /// Bytes of the largest packet.
    pub mtu: u16,
}

/// Why there is no lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// No network of that name, or not for this uid: the two are not told apart.
    NoSuchNetwork,
    /// The uid has as many leases as it may have.
    Quota {
        /// How many that is.
        limit: u32,
    },
    /// The lease is not this uid's, or there is none of that number.
    NotYours,
    /// netd could not do it; its log says why.
    Failed,
}
