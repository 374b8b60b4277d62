//! What is told of VMs that run, by the real programs under their filters.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use vmsup_tests::host::{Host, guest_file};
use vmsup_tests::{eventually, user};

/// A supervisor that tells metrics on this port.
fn host() -> (Host, u16) {
    // Free a moment ago, and chosen by the kernel from far more than are taken.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    (Host::start(&user::with_subuids(), &["--metrics-listen", &format!("127.0.0.1:{port}")]), port)
}

/// A VM that asks its disk for 7 sectors, writes 3 times and flushes twice.
fn start(host: &Host, name: &str) {
    let disk = host.work.path().join(format!("{name}.img"));
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    std::os::unix::fs::chown(&disk, Some(host.user.uid), Some(host.user.gid)).unwrap();
    let boot = json!({ "kernel": guest_file("requests"), "cmdline": "reads=7 writes=3 flushes=2" });
    let spec = json!({ "name": name, "cpus": 2, "memory_mib": 32, "boot": boot, "disks": [{ "path": disk }] });
    host.vmsup(&["start", &host.file(name, &spec)]).ok();
    host.said(name, "requests done");
}

fn get(mut stream: impl Read + Write, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

/// The number of the line that begins with `name`, has `label`, and is about `vm`.
fn number(text: &str, name: &str, vm: &str, label: &str) -> Option<f64> {
    let vm = format!("vm=\"{vm}\"");
    let mut lines =
        text.lines().filter(|l| l.starts_with(&format!("{name}{{")) && l.contains(&vm) && l.contains(label));
    lines.next()?.rsplit_once(' ')?.1.parse().ok()
}

#[test]
fn what_a_guest_did_is_told_over_the_socket_the_loopback_and_the_command_line() {
    let (host, port) = host();
    start(&host, "web");
    let socket = UnixStream::connect(host.folder().join("api.sock")).unwrap();
    let texts = [get(socket, "/metrics"), get(TcpStream::connect(("127.0.0.1", port)).unwrap(), "/metrics")];
    for text in texts {
        for (op, count) in [("read", 7.0), ("write", 3.0), ("flush", 2.0)] {
            let label = format!("op=\"{op}\"");
            assert_eq!(number(&text, "vmsup_vm_disk_requests_total", "web", &label), Some(count), "{text}");
            let timed = number(&text, "vmsup_vm_disk_request_duration_seconds_count", "web", &label);
            assert_eq!(timed, Some(count), "{text}");
        }
        assert_eq!(number(&text, "vmsup_vm_disk_written_bytes_total", "web", ""), Some(3.0 * 1024.0));
        assert!(
            number(&text, "vmsup_vm_vcpu_exits_total", "web", "vcpu=\"0\",reason=\"mmio\"").unwrap() > 12.0,
            "{text}"
        );
        assert!(number(&text, "vmsup_vm_vcpu_run_seconds_total", "web", "vcpu=\"1\"").is_some(), "{text}");
        assert!(number(&text, "vmsup_vm_resident_bytes", "web", "of=\"guest\"").unwrap() > 0.0, "{text}");
        assert!(text.contains("\nvmsup_worker_unanswered 0\n"), "{text}");
    }
    let stats: Value = serde_json::from_str(&host.vmsup(&["stats", "--json", "web"]).ok()).unwrap();
    assert_eq!(stats[0]["guest"]["disks"][0]["reads"], 7);
    assert_eq!(stats[0]["process"]["vcpus"].as_array().unwrap().len(), 2);
    let table = host.vmsup(&["stats"]).ok();
    assert!(table.lines().nth(1).unwrap().starts_with("web   running"), "{table}");
    let frame = host.vmsup(&["top", "--once"]).ok();
    assert!(frame.lines().nth(2).unwrap().starts_with("web       running"), "{frame}");
    host.vmsup(&["kill", "web"]).ok();
    let text = get(UnixStream::connect(host.folder().join("api.sock")).unwrap(), "/metrics");
    assert!(text.contains("\nvmsup_vms_started_total 1\n"), "{text}");
    assert!(text.contains("\nvmsup_vms_ended_total{kind=\"killed\"} 1\n"), "{text}");
    let log = host.log();
    assert!(log.lines().any(|l| l.contains("vm{id=") && l.contains("name=\"web\"}: ended kind=Killed")), "{log}");
}

#[test]
fn a_worker_that_stands_still_is_left_out_and_the_others_are_told() {
    let (host, _) = host();
    start(&host, "good");
    start(&host, "hung");
    let pid = host.ls().iter().find(|vm| vm["name"] == "hung").unwrap()["pid"].as_i64().unwrap();
    let worker = Pid::from_raw(pid as i32).unwrap();
    kill_process(worker, Signal::STOP).unwrap();
    let metrics = || get(UnixStream::connect(host.folder().join("api.sock")).unwrap(), "/metrics");
    let text = metrics();
    assert!(text.contains("\nvmsup_worker_unanswered 1\n"), "{text}");
    assert_eq!(number(&text, "vmsup_vm_disk_requests_total", "good", "op=\"read\""), Some(7.0));
    assert_eq!(number(&text, "vmsup_vm_disk_requests_total", "hung", ""), None);
    assert!(number(&text, "vmsup_vm_threads", "hung", "").is_some(), "the kernel still tells of it");
    kill_process(worker, Signal::CONT).unwrap();
    eventually("it is told of again", || number(&metrics(), "vmsup_vm_disk_requests_total", "hung", "").is_some());
    host.vmsup(&["kill", "good"]).ok();
    host.vmsup(&["kill", "hung"]).ok();
}

#[test]
fn metrics_are_told_on_the_loopback_only() {
    let (host, _) = host();
    let refused = host.vmsup(&["serve", "--metrics-listen", "0.0.0.0:9464"]);
    assert_eq!(refused.status, Some(2), "{refused:?}");
    assert!(refused.err.contains("0.0.0.0 is not the loopback"), "{refused:?}");
}
