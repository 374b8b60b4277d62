//! What somebody has, and may have.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `GET /v1/quota`, and an element of `GET /v1/quotas`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuotaInfo {
    /// Whose: a uid.
    pub owner: u32,
    /// What they have.
    pub used: Amounts,
    /// What they may have; none where they are held to nothing: the supervisor's own user, root, administrators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<Allowed>,
}

/// What somebody may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Allowed {
    /// The most of each.
    pub most: Amounts,
    /// The networks that their VMs may be in.
    pub networks: Vec<String>,
    /// The ports of the host that may lead to their VMs, first and last of each range.
    pub forward_ports: Vec<(u16, u16)>,
}

/// How much of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Amounts {
    /// VMs, those that do not run included.
    pub vms: u64,
    /// vCPUs of VMs that run, are about to, or wait for their restart.
    pub vcpus: u64,
    /// Memory of the same.
    pub memory_mib: u64,
    /// Network interfaces of the same.
    pub leases: u64,
    /// Bytes in the supervisor's own storage.
    pub disk_bytes: u64,
}
