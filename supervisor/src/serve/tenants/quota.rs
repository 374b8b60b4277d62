//! What a tenant may have, and what each has. Pure but for one short lock: [`check`] decides, the [`Ledger`] adds up, and a
//! [`Claim`] is what was granted, as long as it is there.
//!
//! Looking and adding are one step under the ledger's lock, so that any number of requests at the same time get together what
//! one after the other would get.

use crate::api::types::{ApiError, ErrorCode};
use crate::spec::VmSpec;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How much of everything somebody has, or wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// VMs, those that do not run included.
    pub vms: u64,
    /// vCPUs of VMs that run or are to: those that wait for their restart included.
    pub vcpus: u64,
    /// Memory of the same.
    pub memory_mib: u64,
    /// Bytes in the supervisor's own storage, whether their VM runs or not.
    pub disk_bytes: u64,
    /// Network interfaces of VMs that run or are to.
    pub leases: u64,
}

/// One GiB.
pub const GIB: u64 = 1 << 30;

impl Demand {
    /// Of a VM's being there.
    pub fn vm() -> Demand {
        Demand { vms: 1, ..Demand::default() }
    }

    /// Of its running.
    pub fn running(spec: &VmSpec) -> Demand {
        Demand {
            vcpus: spec.cpus.into(),
            memory_mib: spec.memory_mib,
            leases: spec.nets.len() as u64,
            ..Demand::default()
        }
    }

    /// Of a file in the supervisor's storage.
    pub fn disk(bytes: u64) -> Demand {
        Demand { disk_bytes: bytes, ..Demand::default() }
    }

    fn each(self, other: Demand, of: impl Fn(u64, u64) -> u64) -> Demand {
        Demand {
            vms: of(self.vms, other.vms),
            vcpus: of(self.vcpus, other.vcpus),
            memory_mib: of(self.memory_mib, other.memory_mib),
            disk_bytes: of(self.disk_bytes, other.disk_bytes),
            leases: of(self.leases, other.leases),
        }
    }

    fn plus(self, other: Demand) -> Demand {
        self.each(other, u64::saturating_add)
    }

    fn minus(self, other: Demand) -> Demand {
        self.each(other, u64::saturating_sub)
    }
}

/// What one tenant may have at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// The most of each.
    pub most: Demand,
    /// The networks that their VMs may be in.
    pub networks: Vec<String>,
    /// The ports of the host that may lead to them, first and last of each range.
    pub forwards: Vec<(u16, u16)>,
}

impl Quota {
    /// Whether a VM of this spec may be in its networks, and have its forwards.
    ///
    /// # Errors
    /// The first that it may not have. Of what there is beside that, nothing is told.
    pub fn admits(&self, spec: &VmSpec) -> Result<(), ApiError> {
        for (n, net) in spec.nets.iter().enumerate() {
            let refused = |code, field: String, message| Err(ApiError { code, message, field: Some(field) });
            let network = &net.network;
            if !self.networks.contains(network) {
                let message = format!("no network \"{network}\" for you; vmsup net ls shows those that you may use");
                return refused(ErrorCode::Invalid, format!("nets[{n}].network"), message);
            }
            let open = |port: u16| self.forwards.iter().any(|(first, last)| (*first..=*last).contains(&port));
            if let Some((f, forward)) = net.forwards.iter().enumerate().find(|(_, forward)| !open(forward.host)) {
                let message =
                    format!("you may not forward port {}; vmsup quota shows the ports that you may", forward.host);
                return refused(ErrorCode::Forbidden, format!("nets[{n}].forwards[{f}].host"), message);
            }
        }
        Ok(())
    }
}

/// What somebody is held to; nothing where they are the supervisor's own user, root, or an administrator.
pub type Limit = Option<Arc<Quota>>;

/// For whom a VM is made, and what they are held to.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Whose it is to be.
    pub owner: u32,
    /// Within which quota.
    pub limit: Limit,
}

/// The things that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// VMs.
    Vms,
    /// vCPUs.
    Vcpus,
    /// Memory, MiB.
    Memory,
    /// Storage, bytes.
    Disk,
    /// Network interfaces.
    Leases,
}

/// More than the quota allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excess {
    /// Of what.
    pub resource: Resource,
    /// How much they have.
    pub used: u64,
    /// How much more they want.
    pub wanted: u64,
    /// How much they may have.
    pub allowed: u64,
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Excess { resource, used, wanted, allowed } = *self;
        let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / GIB as f64);
        let (used, wanted, allowed) = match resource {
            Resource::Vms => (used.to_string(), wanted.to_string(), format!("{allowed} VMs")),
            Resource::Vcpus => (used.to_string(), wanted.to_string(), format!("{allowed} vCPUs")),
            Resource::Memory => (used.to_string(), wanted.to_string(), format!("{allowed} MiB of memory")),
            Resource::Disk => (gib(used), gib(wanted), format!("{} of storage", gib(allowed))),
            Resource::Leases => (used.to_string(), wanted.to_string(), format!("{allowed} network interfaces")),
        };
        let advice = match resource {
            Resource::Vms => "remove a VM (vmsup rm)",
            Resource::Disk => "remove VMs whose disks are kept here (vmsup rm)",
            Resource::Vcpus | Resource::Memory | Resource::Leases => "stop a VM, or make this one smaller",
        };
        write!(f, "your quota is {allowed}, you use {used}, and this takes {wanted}; {advice}, or ask an administrator")
    }
}

impl From<Excess> for ApiError {
    fn from(excess: Excess) -> ApiError {
        let field = match excess.resource {
            Resource::Vcpus => Some("cpus".into()),
            Resource::Memory => Some("memory_mib".into()),
            Resource::Leases => Some("nets".into()),
            Resource::Vms | Resource::Disk => None,
        };
        ApiError { code: ErrorCode::Forbidden, message: excess.to_string(), field }
    }
}

/// Whether `wanted` fits beside `used`. What is not wanted is not looked at: who has too much of one thing since the quota
/// was lowered may still have more of another.
///
/// # Errors
/// The first thing of which it would be too much.
pub fn check(used: &Demand, wanted: &Demand, quota: &Quota) -> Result<(), Excess> {
    let most = &quota.most;
    let all = [
        (Resource::Vms, used.vms, wanted.vms, most.vms),
        (Resource::Vcpus, used.vcpus, wanted.vcpus, most.vcpus),
        (Resource::Memory, used.memory_mib, wanted.memory_mib, most.memory_mib),
        (Resource::Leases, used.leases, wanted.leases, most.leases),
        (Resource::Disk, used.disk_bytes, wanted.disk_bytes, most.disk_bytes),
    ];
    for (resource, used, wanted, allowed) in all {
        if wanted > 0 && used.checked_add(wanted).is_none_or(|sum| sum > allowed) {
            return Err(Excess { resource, used, wanted, allowed });
        }
    }
    Ok(())
}

/// What everybody has.
#[derive(Debug, Default)]
pub struct Ledger {
    used: Mutex<BTreeMap<u32, Demand>>,
}

/// A part of what somebody has. Dropping it gives it back.
#[derive(Debug)]
pub struct Claim {
    ledger: Arc<Ledger>,
    owner: u32,
    demand: Demand,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Demand>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `owner` has.
    pub fn used(&self, owner: u32) -> Demand {
        self.lock().get(&owner).copied().unwrap_or_default()
    }

    /// Who has anything, and what.
    pub fn all(&self) -> BTreeMap<u32, Demand> {
        self.lock().clone()
    }

    /// Takes `wanted` for `owner`, in place of `instead`, which goes once this is accepted: so it is not counted here.
    ///
    /// # Errors
    /// It would be too much.
    pub fn claim(
        self: &Arc<Self>,
        owner: u32,
        wanted: Demand,
        instead: Option<&Claim>,
        limit: &Limit,
    ) -> Result<Claim, Excess> {
        let mut all = self.lock();
        if let Some(quota) = limit {
            let used = all.get(&owner).copied().unwrap_or_default();
            let leaves = instead.filter(|claim| claim.owner == owner).map_or(Demand::default(), |claim| claim.demand);
            check(&used.minus(leaves), &wanted, quota)?;
        }
        Ok(self.add(&mut all, owner, wanted))
    }

    /// Takes `demand` for `owner`, however much they have.
    pub fn charge(self: &Arc<Self>, owner: u32, demand: Demand) -> Claim {
        self.add(&mut self.lock(), owner, demand)
    }

    fn add(self: &Arc<Self>, all: &mut BTreeMap<u32, Demand>, owner: u32, demand: Demand) -> Claim {
        let used = all.entry(owner).or_default();
        *used = used.plus(demand);
        Claim { ledger: self.clone(), owner, demand }
    }
}

impl Claim {
    /// How much it is.
    pub fn demand(&self) -> Demand {
        self.demand
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut all = self.ledger.lock();
        let Some(used) = all.get_mut(&self.owner) else { return };
        *used = used.minus(self.demand);
        if *used == Demand::default() {
            all.remove(&self.owner);
        }
    }
}

#[cfg(test)]
#[path = "quota_tests.rs"]
mod tests;
