//! The handlers of quotas: what somebody has, and may have.

use super::handlers::Shared;
use super::listen::Caller;
use super::types::{Allowed, Amounts, QuotaInfo};
use crate::serve::tenants::{Demand, Limit};
use axum::Json;
use axum::extract::{Extension, State};

/// What the caller has and may have.
#[utoipa::path(get, path = "/v1/quota", responses((status = 200, body = QuotaInfo)))]
pub async fn own(State(context): Shared, Extension(caller): Extension<Caller>) -> Json<QuotaInfo> {
    let terms = caller.terms(&context);
    Json(info(terms.owner, context.tenants.used(terms.owner), &terms.limit))
}

/// The same of everybody who has anything and whose VMs the caller sees. What others may have goes by the groups that the
/// host's files say they are in.
#[utoipa::path(get, path = "/v1/quotas", responses((status = 200, body = Vec<QuotaInfo>)))]
pub async fn all(State(context): Shared, Extension(caller): Extension<Caller>) -> Json<Vec<QuotaInfo>> {
    let all = context.tenants.all_used().into_iter().filter(|(owner, _)| caller.sees(*owner));
    Json(all.map(|(owner, used)| info(owner, used, &context.tenants.limit_of(owner))).collect())
}

fn info(owner: u32, used: Demand, limit: &Limit) -> QuotaInfo {
    let allowed = limit.as_ref().map(|quota| Allowed {
        most: amounts(quota.most),
        networks: quota.networks.clone(),
        forward_ports: quota.forwards.clone(),
    });
    QuotaInfo { owner, used: amounts(used), allowed }
}

fn amounts(demand: Demand) -> Amounts {
    let Demand { vms, vcpus, memory_mib, disk_bytes, leases } = demand;
    Amounts { vms, vcpus, memory_mib, leases, disk_bytes }
}
