//! Networks on the command line: `vmsup net`, the columns of `ls` and `inspect`, and what `doctor` says of netd.

mod support;

use serde_json::{Value, json};
use support::netd::{SPOKEN, good, netd, network};
use support::{Answer, Fake, Place, error, vm};

/// An interface of a running VM as the API tells of it.
fn leased() -> Value {
    json!({
        "network": "default", "lease": 3, "interface": "vt3", "mac": "02:76:6d:00:00:02", "address": "10.77.0.2",
        "prefix": 24, "gateway": "10.77.0.1", "mtu": 1500, "queues": 1,
        "forwards": [{ "host": 8080, "guest": 80, "protocol": "tcp" }, { "host": 53, "guest": 5353, "protocol": "udp" }]
    })
}

/// One answer for every request, and the lines that a command prints of it.
#[track_caller]
fn table(target: &'static str, answer: Value, args: &[&str]) -> Vec<Vec<String>> {
    let fake = Fake::new(move |_| Answer::Json(200, answer.clone()));
    let done = fake.place.run(args);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    assert_eq!(fake.asked(), [format!("GET {target}")]);
    let cells = |line: &str| line.split("  ").map(|c| c.trim().to_owned()).filter(|c| !c.is_empty()).collect();
    done.stdout.lines().map(cells).collect()
}

#[test]
fn net_ls_shows_what_each_network_allows() {
    let one = |name: &str, ports: Value| {
        json!({ "name": name, "bridge": "vmsup0", "gateway": "10.77.0.1", "prefix": 24, "nat": true, "isolated": true,
                "host": false, "localhost_forwards": false, "leases": 2, "limit": 16, "forward_ports": ports })
    };
    let networks = json!([one("default", json!([[8000, 8999], [2222, 2222]])), one("b\u{1b}[2J", json!([]))]);
    let lines = table("/v1/networks", networks.clone(), &["net", "ls"]);
    assert_eq!(lines[0], ["NETWORK", "BRIDGE", "SUBNET", "NAT", "ISOLATED", "HOST", "LEASES", "FORWARDS"]);
    assert_eq!(lines[1], ["default", "vmsup0", "10.77.0.1/24", "yes", "yes", "no", "2/16", "8000-8999,2222"]);
    assert_eq!((lines[2][0].as_str(), lines[2][7].as_str()), ("b\\u{1b}[2J", "-"));
    let fake = Fake::new(move |_| Answer::Json(200, networks.clone()));
    let printed: Value = serde_json::from_str(&fake.place.run(&["net", "ls", "--json"]).stdout).unwrap();
    assert_eq!(printed[0]["forward_ports"], json!([[8000, 8999], [2222, 2222]]));
}

#[test]
fn net_leases_shows_who_has_which_address() {
    let lease = |vm: Value| {
        json!({ "id": 3, "network": "default", "vm": vm, "interface": "vt3", "mac": "02:76:6d:00:00:02",
                "address": "10.77.0.2", "forwards": leased()["forwards"] })
    };
    let leases = json!([lease(json!("web1")), lease(json!(null))]);
    let lines = table("/v1/leases", leases.clone(), &["net", "leases"]);
    assert_eq!(lines[0], ["NETWORK", "VM", "INTERFACE", "MAC", "ADDRESS", "FORWARDS"]);
    let row = ["default", "web1", "vt3", "02:76:6d:00:00:02", "10.77.0.2", "8080->80/tcp 53->5353/udp"];
    assert_eq!(lines[1], row);
    assert_eq!(lines[2][1], "-");
    let fake = Fake::new(move |_| Answer::Json(200, leases.clone()));
    let printed: Value = serde_json::from_str(&fake.place.run(&["net", "leases", "--json"]).stdout).unwrap();
    assert_eq!((&printed[0]["id"], &printed[1]["vm"]), (&json!(3), &json!(null)));
}

#[test]
fn net_stats_shows_what_passed_and_what_was_dropped_by_reason() {
    let one = |dropped: Value| {
        json!({ "network": "default", "interface": "vt3", "received_packets": 1, "received_bytes": 60,
                "sent_packets": 2, "sent_bytes": 120, "dhcp_answers": 4, "dropped": dropped })
    };
    let stats = json!([one(json!({ "tap": 3, "length": 1 })), one(json!({}))]);
    let lines = table("/v1/vms/web1/net", stats.clone(), &["net", "stats", "web1"]);
    assert_eq!(lines[0], ["NETWORK", "INTERFACE", "RECEIVED", "BYTES", "SENT", "BYTES", "DHCP", "DROPPED"]);
    assert_eq!(lines[1], ["default", "vt3", "1", "60", "2", "120", "4", "length 1, tap 3"]);
    assert_eq!(lines[2][7], "-");
    let fake = Fake::new(move |_| Answer::Json(200, stats.clone()));
    let printed: Value = serde_json::from_str(&fake.place.run(&["net", "stats", "web1", "--json"]).stdout).unwrap();
    assert_eq!(printed[0]["dropped"]["tap"], 3);
}

#[test]
fn nothing_to_show_is_said_beside_an_empty_table() {
    let fake = Fake::new(|_| Answer::Json(200, json!([])));
    let done = fake.place.run(&["net", "ls"]);
    assert_eq!((done.status, done.stdout.lines().count()), (0, 1), "{done:?}");
    assert!(done.stderr.starts_with("vmsup: no network is open to you; "), "{done:?}");
    let done = fake.place.run(&["net", "stats", "web1"]);
    assert_eq!((done.status, done.stderr.as_str()), (0, "vmsup: web1 has no network interfaces\n"));
    let done = fake.place.run(&["net", "ls", "--json"]);
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("[]\n", ""));
}

#[test]
fn a_supervisor_without_netd_is_one_sentence() {
    let fake = Fake::new(|_| Answer::Json(503, error("unavailable", "no network helper answers; see doctor", None)));
    for args in [&["net", "ls"] as &[&str], &["net", "leases"], &["net", "stats", "web1"]] {
        assert_eq!(fake.place.run(args).is_one_sentence(1), "no network helper answers; see doctor", "{args:?}");
    }
}

#[test]
fn wrong_arguments_of_net_have_status_2_and_start_nothing() {
    let place = Place::new();
    for args in [&["net"] as &[&str], &["net", "frobnicate"], &["net", "stats"], &["net", "stats", "a/b"]] {
        let done = place.run(args);
        assert_eq!((done.status, done.stdout.as_str()), (2, ""), "{args:?}: {done:?}");
    }
    assert_eq!(place.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn ls_shows_addresses_and_forwards() {
    let mut with = vm("web1", None);
    let mut second = leased();
    second["address"] = json!("10.78.0.9");
    second["forwards"] = json!([]);
    with["nets"] = json!([leased(), second]);
    let lines = table("/v1/vms", json!([with, vm("db", Some(("shutdown", "off")))]), &["ls"]);
    let column = lines[0].iter().position(|c| c == "NET").unwrap();
    assert_eq!(lines[1][column], "10.77.0.2 8080->80/tcp 53->5353/udp, 10.78.0.9");
    assert_eq!((lines[2][column].as_str(), lines[2][column + 1].as_str()), ("-", "off"));
}

#[test]
fn inspect_shows_the_leases_or_where_the_vm_belongs() {
    let fake = Fake::new(|_| {
        let mut running = vm("web1", None);
        running["nets"] = json!([leased()]);
        Answer::Json(200, running)
    });
    let text = fake.place.run(&["inspect", "web1"]).stdout;
    assert!(text.contains("\nIts networks\n") && text.contains("10.77.0.2/24"), "{text}");
    assert!(text.contains("vt3") && text.contains("8080->80/tcp 53->5353/udp"), "{text}");
    let fake = Fake::new(|_| {
        let mut ended = vm("web1", Some(("shutdown", "off")));
        ended["spec"]["nets"] = json!([{ "network": "back" }]);
        Answer::Json(200, ended)
    });
    let text = fake.place.run(&["inspect", "web1"]).stdout;
    assert!(text.contains("network 0") && text.contains("back, without a lease now"), "{text}");
}

/// The exit status of `doctor`, and its lines by id, with the netd on `socket`.
fn doctor(place: &Place, socket: &std::path::Path) -> (Option<i32>, impl Fn(&str) -> Value + use<>) {
    let output = place.vmsup(&["doctor", "--json"]).env("VMSUP_NETD_SOCKET", socket).output().unwrap();
    let lines: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let one = move |id: &str| lines.iter().find(|l| l["id"] == id).cloned().unwrap_or(Value::Null);
    (output.status.code(), one)
}

#[test]
fn doctor_asks_netd_as_this_user() {
    let place = Place::new();
    let socket = netd(place.path(), SPOKEN, good(), vec![network()]);
    let (_, line) = doctor(&place, &socket);
    for name in
        ["netd", "network-rules", "ip-forwarding", "bridges", "networks", "forward-chains", "localhost-forwards"]
    {
        assert_eq!((&line(name)["state"], &line(name)["group"]), (&json!("ok"), &json!("network")), "{}", line(name));
    }
    assert!(line("networks")["found"].as_str().unwrap().contains("2 of 16 leases"), "{}", line("networks"));
    // Who listens is this test and not netd, and is not taken for it.
    let privileges = line("netd-privileges");
    assert_eq!(privileges["state"], "unknown");
    assert!(privileges["found"].as_str().unwrap().contains("and not vmsup-netd"), "{privileges}");
}

#[test]
fn doctor_names_what_netd_finds_wrong() {
    let place = Place::new();
    let status = netd_api::Status {
        rules: false,
        ip_forward: false,
        bridges_down: vec!["vmsup0".into()],
        dropping_chains: vec!["inet evil\u{1b}[2J fwd".into()],
        ..good()
    };
    let socket = netd(place.path(), SPOKEN, status, vec![]);
    let (status, line) = doctor(&place, &socket);
    assert_eq!((status, &line("network-rules")["state"]), (Some(1), &json!("failure")));
    for name in ["ip-forwarding", "bridges", "networks", "forward-chains"] {
        assert_eq!(line(name)["state"], "warning", "{}", line(name));
        assert!(!line(name)["mend"].as_str().unwrap().is_empty(), "{}", line(name));
    }
    let output = place.vmsup(&["doctor"]).env("VMSUP_NETD_SOCKET", &socket).output().unwrap();
    assert!(!output.stdout.contains(&0x1b) && output.status.code() == Some(1));
}

#[test]
fn doctor_without_a_netd_warns_and_a_netd_of_another_release_fails() {
    let place = Place::new();
    let (_, line) = doctor(&place, &place.path().join("none.sock"));
    assert_eq!((&line("netd")["state"], &line("network-rules")), (&json!("warning"), &Value::Null));
    let socket = netd(place.path(), SPOKEN + 1, good(), vec![]);
    let (status, line) = doctor(&place, &socket);
    assert_eq!((status, &line("netd")["state"]), (Some(1), &json!("failure")));
    assert!(line("netd")["found"].as_str().unwrap().contains("vmsup-netd 1"), "{}", line("netd"));
}

#[test]
fn a_socket_that_speaks_no_protocol_is_a_failure_of_netd_alone() {
    let place = Place::new();
    let path = place.path().join("netd.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let (_, line) = doctor(&place, &path);
    assert_eq!(line("netd")["state"], "failure");
    assert!(!line("netd")["found"].as_str().unwrap().contains("os error"), "{}", line("netd"));
}
