//! VMs in a network: netd in its namespace, a supervisor beside it, and the guest that is built in.

use crate::host::Host;
use crate::netd::{Client, NetHost, default_network};
use crate::user;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// netd and a supervisor of `vmsup-test`'s.
pub fn both(more: &str) -> (NetHost, Host) {
    let net = NetHost::start(&default_network(more));
    let host = Host::start_on(&user::with_subuids(), &net, &["--pool", "1"]);
    (net, host)
}

/// A client of netd's that is the supervisor's user.
pub fn owner(net: &NetHost) -> Client {
    net.client(&user::with_subuids())
}

/// A file of the guest that is built in, in the network `default`.
pub fn net_guest(host: &Host, name: &str, cmdline: &str, net: &Value) -> String {
    let mut boot = json!({ "builtin": "net" });
    if !cmdline.is_empty() {
        boot["cmdline"] = cmdline.into();
    }
    host.file(name, &json!({ "name": name, "cpus": 1, "memory_mib": 32, "boot": boot, "nets": [net] }))
}

/// An interface in the network `default`, nothing more said.
pub fn plain() -> Value {
    json!({ "network": "default" })
}

/// Starts the guest that is built in and waits until it has its address, which is the lease's.
///
/// # Panics
/// Where it has none.
pub fn started(host: &Host, name: &str, cmdline: &str, net: &Value) -> Ipv4Addr {
    host.vmsup(&["start", &net_guest(host, name, cmdline, net)]).ok();
    let seen = host.inspect(name)["nets"][0].clone();
    let address = seen["address"].as_str().unwrap();
    host.said(name, &format!("NET mac={} ip={address} gw=10.77.0.1 mtu=1500", seen["mac"].as_str().unwrap()));
    address.parse().unwrap()
}

/// The counters of a VM's first interface, the dropped ones by reason among them.
///
/// # Panics
/// Where it has none.
pub fn stats(host: &Host, name: &str) -> BTreeMap<String, u64> {
    let all: Value = serde_json::from_str(&host.vmsup(&["net", "stats", "--json", name]).ok()).unwrap();
    let mut counters = BTreeMap::new();
    for (key, value) in all[0].as_object().unwrap() {
        match value {
            Value::Number(count) => drop(counters.insert(key.clone(), count.as_u64().unwrap())),
            Value::Object(dropped) => {
                counters.extend(
                    dropped.iter().map(|(reason, count)| (format!("dropped {reason}"), count.as_u64().unwrap())),
                );
            }
            _ => {}
        }
    }
    counters
}
