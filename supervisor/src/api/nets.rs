//! The handlers of networks: what netd says of them, and what workers count. Both are looked at before they are told.

use super::handlers::{Answer, Shared, find};
use super::listen::Caller;
use super::types::{ApiError, LeaseEntry, NetStats, Network};
use crate::serve::{nets, refusals, registry::Entry};
use axum::Json;
use axum::extract::{Extension, Path, State};
use std::collections::HashMap;

/// The networks that the supervisor's user may use.
#[utoipa::path(get, path = "/v1/networks", responses(
    (status = 200, body = Vec<Network>),
    (status = 503, body = ApiError, description = "The network helper is away"),
))]
pub async fn networks(State(context): Shared) -> Answer<Json<Vec<Network>>> {
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
    Ok(Json(told.into_iter().map(network).collect()))
}

/// The leases of the supervisor's user, also those of other supervisors of theirs.
#[utoipa::path(get, path = "/v1/leases", responses(
    (status = 200, body = Vec<LeaseEntry>),
    (status = 503, body = ApiError, description = "The network helper is away"),
))]
pub async fn leases(State(context): Shared) -> Answer<Json<Vec<LeaseEntry>>> {
    let told = context.netd.leases().await.map_err(|error| refusals::no_netd(&error, context.netd.path()))?;
    // After the question: a VM that was made meanwhile is known, too.
    let vms = context.registry.list();
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
    Ok(Json(told.into_iter().map(entry).collect()))
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
