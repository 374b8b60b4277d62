//! A VM's network interfaces: from `nets` of its spec to leases, from leases to what its worker gets and what people see.

use super::Context;
use super::netd::{Granted, Lease, LeaseError, NetdError};
use super::refusals;
use crate::api::types::{ApiError, NetStats, VmNet};
use crate::spec::{Forward, Net, Protocol, VmSpec};
use crate::vmjson::nets::mac_suffix;
use netd_api::{VmId, Wanted};
use std::os::fd::OwnedFd;
use worker_api::{HOSTNAME_MAX, NetCounters, NetSpec};

/// What netd granted to a VM: one of each for each interface, in the order of its file.
#[derive(Debug, Default)]
pub struct Interfaces {
    /// For its worker.
    pub specs: Vec<NetSpec>,
    /// For its worker.
    pub taps: Taps,
    /// For people.
    pub shown: Vec<VmNet>,
    /// To be kept until the worker is gone.
    pub leases: Vec<Lease>,
}

/// Asks netd for all interfaces of a VM. The question is on its way when this returns. `keep` lives as long as fds may
/// come, whoever waits for them.
///
/// # Errors
/// What the client is told. What was granted until then is released.
pub fn lease<K: Send + 'static>(
    context: &Context,
    vm: VmId,
    spec: &VmSpec,
    keep: K,
) -> impl Future<Output = Result<Interfaces, ApiError>> + use<K> {
    let (uid, spec) = ((!context.shared()).then_some(context.host.uid), spec.clone());
    let path = context.netd.path().to_owned();
    let leasing = (!spec.nets.is_empty())
        .then(|| context.netd.lease(spec.nets.iter().map(|net| wanted(vm, net)).collect(), keep));
    async move {
        let Some(leasing) = leasing else { return Ok(Interfaces::default()) };
        let granted = leasing.await.map_err(|LeaseError { net, error }| {
            // What netd refuses is the VM's own matter, and said when it ends; the rest is the host's.
            if !matches!(error, NetdError::Refused(_)) {
                tracing::warn!(name = spec.name, net, %error, "no lease");
            }
            refusals::no_lease(&error, net, &spec.nets[net], uid, &path)
        })?;
        Ok(Interfaces::new(&spec, granted))
    }
}

impl Interfaces {
    fn new(spec: &VmSpec, granted: Vec<Granted>) -> Interfaces {
        let mut all = Interfaces::default();
        for (net, Granted { lease, told, queues }) in spec.nets.iter().zip(granted) {
            all.shown.push(shown(net, &told));
            all.specs.push(NetSpec {
                mac: told.mac,
                address: told.address,
                prefix: told.prefix,
                gateway: told.gateway,
                dns: told.dns,
                mtu: told.mtu,
                queues: told.queues,
                offloads: net.offloads,
                hostname: hostname(&spec.name),
            });
            all.taps.0.push(queues);
            all.leases.push(lease);
        }
        all
    }
}

/// The fds of a VM's TAPs, by interface and queue.
#[derive(Debug, Default)]
pub struct Taps(Vec<Vec<OwnedFd>>);

impl Taps {
    /// A queue of an interface.
    pub fn get(&self, net: u8, queue: u8) -> Option<&OwnedFd> {
        self.0.get(usize::from(net))?.get(usize::from(queue))
    }

    /// The worker has them: ours close, which is quick while another copy is open.
    pub fn given(&mut self) {
        self.0.clear();
    }
}

/// The last fd of a TAP takes the kernel many milliseconds to close, which no other VM is to wait for.
impl Drop for Taps {
    fn drop(&mut self) {
        let fds = std::mem::take(&mut self.0);
        if !fds.is_empty()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn_blocking(move || drop(fds));
        }
    }
}

fn wanted(vm: VmId, net: &Net) -> Wanted {
    let forward = |f: &Forward| netd_api::Forward {
        protocol: match f.protocol {
            Protocol::Tcp => netd_api::Protocol::Tcp,
            Protocol::Udp => netd_api::Protocol::Udp,
        },
        host: f.host,
        guest: f.guest,
    };
    Wanted {
        network: net.network.clone(),
        vm,
        queues: net.queues,
        offloads: net.offloads,
        // vmjson::check has looked at it.
        mac_suffix: net.mac_suffix.as_deref().and_then(|text| mac_suffix(text).ok()),
        forwards: net.forwards.iter().map(forward).collect(),
    }
}

pub(super) fn shown(net: &Net, told: &netd_api::Lease) -> VmNet {
    VmNet {
        network: net.network.clone(),
        lease: told.id.0,
        interface: told.interface.clone(),
        mac: mac(told.mac),
        address: told.address.to_string(),
        prefix: told.prefix,
        gateway: told.gateway.to_string(),
        mtu: told.mtu,
        queues: told.queues,
        forwards: net.forwards.clone(),
    }
}

/// A forward as people see it.
pub fn forward(forward: &netd_api::Forward) -> Forward {
    Forward {
        host: forward.host,
        guest: forward.guest,
        protocol: match forward.protocol {
            netd_api::Protocol::Tcp => Protocol::Tcp,
            netd_api::Protocol::Udp => Protocol::Udp,
        },
    }
}

/// As people write it.
pub fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A VM's name as a host name, which has letters, digits and `-` (RFC 952), at most 63 and no `-` at an end.
fn hostname(name: &str) -> String {
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let name = name.trim_start_matches('-');
    name[..name.len().min(HOSTNAME_MAX)].trim_end_matches('-').to_owned()
}

/// What a worker counted, beside what is known of its interface.
pub fn stats(net: &VmNet, counted: &NetCounters) -> NetStats {
    let dropped = [
        ("length", counted.dropped_length),
        ("header", counted.dropped_header),
        ("tap", counted.dropped_tap),
        ("dhcp", counted.dropped_dhcp),
        ("buffer", counted.dropped_buffer),
        ("offload", counted.dropped_offload),
    ];
    NetStats {
        network: net.network.clone(),
        interface: net.interface.clone(),
        received_packets: counted.received_packets,
        received_bytes: counted.received_bytes,
        sent_packets: counted.sent_packets,
        sent_bytes: counted.sent_bytes,
        dhcp_answers: counted.dhcp_answers,
        dropped: dropped.into_iter().filter(|(_, n)| *n > 0).map(|(why, n)| (why.to_owned(), n)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vms_name_becomes_a_host_name() {
        for (name, host) in [
            ("web1", "web1"),
            ("web.example_1", "web-example-1"),
            ("a.", "a"),
            ("0-_.", "0"),
            (&"x".repeat(63), &*"x".repeat(63)),
            (&format!("{}.x", "x".repeat(62)), &*"x".repeat(62)),
        ] {
            assert_eq!(hostname(name), host);
        }
    }

    #[test]
    fn only_reasons_that_dropped_something_are_shown() {
        let net =
            shown(&serde_json::from_str(r#"{"network":"a"}"#).unwrap(), &crate::serve::testing::netd::granted(1, 1));
        let counted = NetCounters { dropped_tap: 3, received_packets: u64::MAX, ..NetCounters::default() };
        let stats = stats(&net, &counted);
        assert_eq!(stats.dropped, [("tap".to_owned(), 3)].into());
        assert_eq!((stats.received_packets, stats.network.as_str()), (u64::MAX, "a"));
    }
}
