//! A guest whose health is looked at over its network.

use serde_json::{Value, json};
use vmsup_tests::connected::{both, net_guest, plain};
use vmsup_tests::{as_root, eventually};

/// The first look comes with the supervisor's next turn of its timer, after half a minute at most.
#[test]
fn a_guest_whose_port_takes_connections_is_healthy() {
    if !as_root("a_guest_whose_port_takes_connections_is_healthy") {
        return;
    }
    let (_net, host) = both("pool = 1");
    let file = net_guest(&host, "serves", "", &plain());
    let mut spec: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    spec["health"] = json!({ "tcp": 80, "start_s": 1, "interval_s": 30 });
    host.vmsup(&["start", &host.file("serves", &spec)]).ok();
    eventually("it to be healthy", || host.inspect("serves")["health"] == "healthy");
    host.vmsup(&["kill", "--all"]).ok();
}
