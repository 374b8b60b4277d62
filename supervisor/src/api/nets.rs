//! The handlers of networks: what netd says of them, and what workers count. Both are looked at before they are told.

use super::handlers::{Answer, Shared, find};
use super::listen::Caller;
use super::types::{ApiError, LeaseEntry, NetStats, Network};
use crate::serve::tenants::Quota;
use crate::serve::{nets, refusals, registry::Entry};
use axum::Json;
use axum::extract::{Extension, Path, State};
use std::collections::HashMap;

/// The networks that the caller may use.
#[utoipa::path(get, path = "/v1/networks", responses(
    (status = 200, body = Vec<Network>),
    (status = 503, body = ApiError, description = "The network helper is away"),
))]
pub async fn networks(State(context): Shared, Extension(caller): Extension<Caller>) -> Answer<Json<Vec<Network>>> {
    let told = context.netd.networks().await.map_err(|error| refusals::no_netd(&error, context.netd.path()))?;
    let network = |info: netd_api::NetworkInfo| Network {
        name: info.name,
        bridge: info.bridge,
        gateway: info.gateway.to_string(),
        prefix: info.prefix,
        nat: info.nat,
        isolated: info.isolated,
        host: info.host,
        localhost_forwards: info.localhost_forwards,
        leases: info.leases,
        limit: info.limit,
        forward_ports: info.forwards,
    };
    let all = told.into_iter().map(network);
    Ok(Json(match caller.terms(&context).limit {
        None => all.collect(),
        Some(quota) => {
            let vms = context.registry.list_for(caller.who());
            let nets: Vec<String> = vms.iter().flat_map(|vm| vm.summary().nets).map(|net| net.network).collect();
            all.filter_map(|network| of_tenant(network, &quota, &nets)).collect()
        }
    }))
}

/// A network as a tenant may use it: what netd lets the supervisor have is that of all tenants together. `nets` are the networks
/// of the tenant's interfaces.
fn of_tenant(network: Network, quota: &Quota, nets: &[String]) -> Option<Network> {
    let limit = u32::try_from(quota.most.leases).unwrap_or(u32::MAX).min(network.limit);
    let leases = nets.iter().filter(|name| **name == network.name).count() as u32;
    let both = |one: (u16, u16), other: (u16, u16)| (one.0.max(other.0), one.1.min(other.1));
    let ports = network.forward_ports.iter().flat_map(|told| quota.forwards.iter().map(|own| both(*told, *own)));
    let forward_ports = ports.filter(|(first, last)| first <= last).collect();
    quota.networks.contains(&network.name).then_some(Network { leases, limit, forward_ports, ..network })
}

/// The leases of the caller's VMs; for who sees all VMs those of the supervisor's user, also of other supervisors of theirs.
#[utoipa::path(get, path = "/v1/leases", responses(
    (status = 200, body = Vec<LeaseEntry>),
    (status = 503, body = ApiError, description = "The network helper is away"),
))]
pub async fn leases(State(context): Shared, Extension(caller): Extension<Caller>) -> Answer<Json<Vec<LeaseEntry>>> {
    let told = context.netd.leases().await.map_err(|error| refusals::no_netd(&error, context.netd.path()))?;
    // After the question: a VM that was made meanwhile is known, too.
    let vms = context.registry.list_for(caller.who());
    let living = vms.iter().filter(|vm| !vm.rests());
    let names: HashMap<u64, &str> = living.map(|vm| (vm.number(), vm.name())).collect();
    let entry = |info: netd_api::LeaseInfo| LeaseEntry {
        id: info.id.0,
        network: info.network,
        vm: names.get(&info.vm.0).map(|name| (*name).to_owned()),
        interface: info.interface,
        mac: nets::mac(info.mac),
        address: info.address.to_string(),
        forwards: info.forwards.iter().map(nets::forward).collect(),
    };
    let all = told.into_iter().map(entry);
    Ok(Json(all.filter(|lease| caller.who().all || lease.vm.is_some()).collect()))
}

/// What a VM's network interfaces did so far, as its worker says.
#[utoipa::path(get, path = "/v1/vms/{vm}/net", params(("vm" = String, Path, description = "Name or id")), responses(
    (status = 200, body = Vec<NetStats>),
    (status = 404, body = ApiError),
    (status = 409, body = ApiError, description = "It does not run"),
))]
pub async fn net_stats(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Path(key): Path<String>,
) -> Answer<Json<Vec<NetStats>>> {
    Ok(Json(find(&context, &caller, &key)?.vm.net_stats().await?))
}
