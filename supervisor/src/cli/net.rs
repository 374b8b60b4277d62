//! `vmsup net …`: networks, leases and counters as the API tells them, and how the other tables show a VM's networks.

use super::client::{Client, vm_target};
use super::failure::{Failure, notice};
use super::output::{print, print_json, table};
use vmsup::api::types::{LeaseEntry, NetStats, Network, VmNet};
use vmsup::spec::{Forward, Protocol};

/// `vmsup net ls`.
pub fn ls(client: &Client, json: bool) -> Result<(), Failure> {
    let networks: Vec<Network> = client.connect()?.call("GET", "/v1/networks")?;
    if json {
        return print_json(&networks);
    }
    if networks.is_empty() {
        notice("no network is open to you; `vmsup doctor` tells how the host's root gives you one");
    }
    let head = ["NETWORK", "BRIDGE", "SUBNET", "NAT", "ISOLATED", "HOST", "LEASES", "FORWARDS"];
    let rows: Vec<Vec<String>> = networks.iter().map(network).collect();
    print(table(&head, &rows))
}

fn network(network: &Network) -> Vec<String> {
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    vec![
        network.name.clone(),
        network.bridge.clone(),
        format!("{}/{}", network.gateway, network.prefix),
        yes(network.nat),
        yes(network.isolated),
        yes(network.host),
        format!("{}/{}", network.leases, network.limit),
        joined(network.forward_ports.iter().map(|range| ports(*range)), ","),
    ]
}

/// A range of ports as netd's configuration writes it.
pub fn ports((first, last): (u16, u16)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

/// `vmsup net leases`.
pub fn leases(client: &Client, json: bool) -> Result<(), Failure> {
    let leases: Vec<LeaseEntry> = client.connect()?.call("GET", "/v1/leases")?;
    if json {
        return print_json(&leases);
    }
    let row = |lease: &LeaseEntry| {
        vec![
            lease.network.clone(),
            lease.vm.clone().unwrap_or_else(|| "-".into()),
            lease.interface.clone(),
            lease.mac.clone(),
            lease.address.clone(),
            forwards(&lease.forwards),
        ]
    };
    let rows: Vec<Vec<String>> = leases.iter().map(row).collect();
    print(table(&["NETWORK", "VM", "INTERFACE", "MAC", "ADDRESS", "FORWARDS"], &rows))
}

/// `vmsup net stats VM`.
pub fn stats(client: &Client, vm: &str, json: bool) -> Result<(), Failure> {
    let stats: Vec<NetStats> = client.connect()?.call("GET", &vm_target(vm, "/net"))?;
    if json {
        return print_json(&stats);
    }
    if stats.is_empty() {
        notice(&format!("{vm} has no network interfaces"));
    }
    let head = ["NETWORK", "INTERFACE", "RECEIVED", "BYTES", "SENT", "BYTES", "DHCP", "DROPPED"];
    let rows: Vec<Vec<String>> = stats.iter().map(counters).collect();
    print(table(&head, &rows))
}

fn counters(stats: &NetStats) -> Vec<String> {
    vec![
        stats.network.clone(),
        stats.interface.clone(),
        stats.received_packets.to_string(),
        stats.received_bytes.to_string(),
        stats.sent_packets.to_string(),
        stats.sent_bytes.to_string(),
        stats.dhcp_answers.to_string(),
        joined(stats.dropped.iter().map(|(reason, count)| format!("{reason} {count}")), ", "),
    ]
}

/// An interface in one cell: its address, and the host's ports that lead to it.
pub fn brief(net: &VmNet) -> String {
    match net.forwards.as_slice() {
        [] => net.address.clone(),
        some => format!("{} {}", net.address, forwards(some)),
    }
}

/// Forwards in one cell: `8080->80/tcp 53->5353/udp`.
pub fn forwards(forwards: &[Forward]) -> String {
    let one = |forward: &Forward| {
        let protocol = match forward.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        format!("{}->{}/{protocol}", forward.host, forward.guest)
    };
    joined(forwards.iter().map(one), " ")
}

/// All parts in one cell, a dash where there are none.
pub fn joined(parts: impl Iterator<Item = String>, with: &str) -> String {
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() { "-".into() } else { parts.join(with) }
}
