//! `vmsup stats`: what VMs use, once.

use super::client::{Api, Client, vm_target};
use super::failure::Failure;
use super::output::{print, print_json, table};
use super::rates::{Rates, between, memory, percent, short, short_bytes};
use super::vms::state;
use std::time::Duration;
use vmsup::api::types::VmStats;

/// How far two answers are apart from which rates are made.
const APART: Duration = Duration::from_secs(1);

/// `vmsup stats [VM…]`.
pub fn stats(client: &Client, vms: &[String], json: bool) -> Result<(), Failure> {
    let mut api = client.connect()?;
    let before = read(&mut api, vms)?;
    if json {
        return print_json(&before);
    }
    std::thread::sleep(APART);
    let now = read(&mut api, vms)?;
    let rows: Vec<Vec<String>> = now
        .iter()
        // Asked for by nobody, a VM that does not run is no news.
        .filter(|stats| !vms.is_empty() || stats.process.is_some() || stats.guest.is_some())
        .map(|stats| {
            let earlier = before.iter().find(|before| before.id == stats.id);
            row(stats, &earlier.map(|earlier| between(earlier, stats)).unwrap_or_default())
        })
        .collect();
    let head =
        ["NAME", "STATE", "CPU %", "STEAL %", "MEMORY", "EXITS/S", "READ/S", "WRITTEN/S", "RECEIVED/S", "SENT/S", ""];
    print(table(&head, &rows))
}

fn read(api: &mut Api, vms: &[String]) -> Result<Vec<VmStats>, Failure> {
    if vms.is_empty() {
        return Ok(api.call("GET", "/v1/stats")?);
    }
    vms.iter().map(|vm| Ok(api.call("GET", &vm_target(vm, "/stats"))?)).collect()
}

fn row(stats: &VmStats, rates: &Rates) -> Vec<String> {
    let shown = |value: Option<f64>, form: fn(f64) -> String| value.map_or_else(|| "-".into(), form);
    vec![
        stats.name.clone(),
        state(stats.state).into(),
        shown(rates.cpu, percent),
        shown(rates.steal, percent),
        shown(memory(stats).map(|bytes| bytes as f64), short_bytes),
        shown(rates.exits, short),
        shown(rates.read, short_bytes),
        shown(rates.written, short_bytes),
        shown(rates.received, short_bytes),
        shown(rates.sent, short_bytes),
        stats.unanswered.clone().map(|why| format!("its process told nothing: {why}")).unwrap_or_default(),
    ]
}
