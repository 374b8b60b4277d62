//! `vmsup quota`: what you have and may have; for administrators, everybody.

use super::client::Client;
use super::failure::Failure;
use super::net;
use super::output::{mib, print, print_json, table};
use super::owners::Owners;
use vmsup::api::types::{Allowed, Amounts, QuotaInfo};

/// `vmsup quota` and `vmsup quota --all`.
pub fn quota(client: &Client, all: bool, json: bool) -> Result<(), Failure> {
    let mut api = client.connect()?;
    if all {
        let everybody: Vec<QuotaInfo> = api.call("GET", "/v1/quotas")?;
        return if json { print_json(&everybody) } else { print(overview(&everybody, &Owners::read())) };
    }
    let own: QuotaInfo = api.call("GET", "/v1/quota")?;
    if json { print_json(&own) } else { print(details(&own)) }
}

/// What is counted: its name, and how to show an amount of it.
type Counted = (&'static str, fn(&Amounts) -> String);

const COUNTED: [Counted; 5] = [
    ("VMS", |a| a.vms.to_string()),
    ("VCPUS", |a| a.vcpus.to_string()),
    ("MEMORY", |a| mib(a.memory_mib)),
    ("STORAGE", |a| mib(a.disk_bytes.div_ceil(1 << 20))),
    ("INTERFACES", |a| a.leases.to_string()),
];

fn details(own: &QuotaInfo) -> String {
    let most = |show: fn(&Amounts) -> String| own.allowed.as_ref().map_or_else(|| "no limit".into(), |a| show(&a.most));
    let row = |(name, show): &Counted| vec![(*name).to_owned(), show(&own.used), most(*show)];
    let mut rows: Vec<Vec<String>> = COUNTED.iter().map(row).collect();
    if let Some(Allowed { networks, forward_ports, .. }) = &own.allowed {
        let ports = forward_ports.iter().map(|range| net::ports(*range));
        rows.push(vec!["NETWORKS".into(), String::new(), net::joined(networks.iter().cloned(), ", ")]);
        rows.push(vec!["FORWARDS".into(), String::new(), net::joined(ports, ",")]);
    }
    table(&["", "USED", "ALLOWED"], &rows)
}

fn overview(everybody: &[QuotaInfo], owners: &Owners) -> String {
    let head: Vec<&str> = ["OWNER"].into_iter().chain(COUNTED.iter().map(|(name, _)| *name)).collect();
    let row = |one: &QuotaInfo| {
        let cell = |show: fn(&Amounts) -> String| match &one.allowed {
            Some(allowed) => format!("{} of {}", show(&one.used), show(&allowed.most)),
            None => show(&one.used),
        };
        [owners.name(one.owner)].into_iter().chain(COUNTED.iter().map(|(_, show)| cell(*show))).collect()
    };
    table(&head, &everybody.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(allowed: bool) -> QuotaInfo {
        let amounts = |n| Amounts { vms: n, vcpus: 2 * n, memory_mib: 512 * n, leases: 0, disk_bytes: n << 30 };
        let most = Allowed { most: amounts(4), networks: vec!["blue".into()], forward_ports: vec![(22, 22), (80, 89)] };
        QuotaInfo { owner: 0, used: amounts(1), allowed: allowed.then_some(most) }
    }

    #[test]
    fn the_own_quota_is_shown_beside_what_is_used() {
        let text = details(&info(true));
        for line in ["VMS         1        4", "MEMORY      512 MiB  2 GiB", "STORAGE     1 GiB    4 GiB"] {
            assert!(text.contains(line), "{text}");
        }
        assert!(text.contains("NETWORKS             blue") && text.contains("FORWARDS             22,80-89"), "{text}");
        let free = details(&info(false));
        assert!(free.contains("VCPUS       2        no limit") && !free.contains("NETWORKS"), "{free}");
    }

    #[test]
    fn everybodys_are_shown_with_their_names() {
        let text = overview(&[info(true), QuotaInfo { owner: 4_000_000_000, ..info(false) }], &Owners::read());
        assert!(text.contains("root        1 of 4  2 of 8  512 MiB of 2 GiB"), "{text}");
        assert!(text.contains("4000000000  1       2"), "{text}");
    }
}
