//! `vmsup inspect --verify`: what runs is held against the policies, also by reading the installed filters back.

use serde_json::Value;
use std::process::Command;
use vmsup_tests::host::{Host, Ran};
use vmsup_tests::tampered::{allowing, write};
use vmsup_tests::{Scratch, eventually, program, skip, user};

/// A command of the CLI by root, of the supervisor of `host`.
fn as_root(host: &Host, args: &[&str]) -> Ran {
    let socket = host.folder().join("api.sock");
    Command::new(program("vmsup")).arg("--socket").arg(socket).args(args).output().unwrap().into()
}

fn is_root(name: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(name, "the kernel shows installed filters to root only");
    }
    root
}

#[test]
fn a_running_vm_is_as_declared_and_says_what_only_root_may_see() {
    let host = Host::start(&user::with_subuids(), &["--pool", "1"]);
    host.vmsup(&["start", &host.guest("vm", "deaf", "")]).ok();
    host.said("vm", "deaf up");
    let out = host.vmsup(&["inspect", "vm", "--verify"]).ok();
    assert!(out.contains("is as declared") && out.contains("as root, vmsup inspect --verify reads them back"), "{out}");
    let report: Value = serde_json::from_str(&host.vmsup(&["inspect", "vm", "--verify", "--json"]).ok()).unwrap();
    assert_eq!(report["verified"]["differences"], serde_json::json!([]));
    assert_eq!(report["verified"]["section_sha256"].as_str().unwrap().len(), 64);
    assert_eq!(host.vmsup(&["inspect"]).status, Some(2));
    assert_eq!(host.vmsup(&["inspect", "vm", "--all"]).status, Some(2));
}

#[test]
fn root_reads_the_installed_filters_back_and_the_vm_goes_on() {
    if !is_root("root_reads_the_installed_filters_back_and_the_vm_goes_on") {
        return;
    }
    let host = Host::start(&user::with_subuids(), &["--pool", "0"]);
    host.vmsup(&["start", &host.guest("vm", "deaf", "")]).ok();
    host.said("vm", "deaf up");
    for _ in 0..3 {
        let report: Value =
            serde_json::from_str(&as_root(&host, &["inspect", "vm", "--verify", "--json"]).ok()).unwrap();
        assert_eq!(report["verified"]["filters_read_back"], true);
        let pid = report["pid"].as_i64().unwrap();
        for task in vmsup_tests::names(format!("/proc/{pid}/task")) {
            let status = std::fs::read_to_string(format!("/proc/{pid}/task/{task}/status")).unwrap();
            assert!(status.contains("TracerPid:\t0") && !status.contains("State:\tt"), "{status}");
        }
    }
    assert_eq!(host.state("vm"), "running");
    host.vmsup(&["kill", "vm"]).ok();
}

/// The one worker in the pool, when it waits.
fn warm(host: &Host) -> i32 {
    let mut found = 0;
    eventually("a warm worker", || {
        let read = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let waits = |status: String| status.starts_with("Name:\tvmsup-warm\n") && status.contains("Seccomp:\t2");
        found = host.workers().into_iter().find(|pid| waits(read(pid))).unwrap_or_default();
        found > 0
    });
    found
}

/// A jailer and a worker that were both built from the same other policies: the jailer lets the worker run.
fn tampered_pair(filter: &str) -> (Host, Scratch) {
    let user = user::with_subuids();
    let folder = Scratch::new(&user);
    let programs = ["vmsup-worker", "vmsup-jailer"].map(|name| write(&folder, &user, name, &allowing(name, filter)));
    let [worker, jailer] = programs.each_ref().map(|path| path.to_str().unwrap());
    let host = Host::start(&user, &["--pool", "0", "--worker", worker, "--jailer", jailer]);
    host.vmsup(&["start", &host.guest("vm", "deaf", "")]).ok();
    host.said("vm", "deaf up");
    (host, folder)
}

#[test]
fn a_tampered_pair_is_caught_without_root_by_the_section_of_its_program() {
    let (host, _folder) = tampered_pair("worker-vcpu");
    let ran = host.vmsup(&["inspect", "vm", "--verify"]);
    assert_eq!(ran.status, Some(1), "{ran:?}");
    assert!(ran.out.contains("was built from other policies") && ran.out.contains("filter worker-vcpu"), "{}", ran.out);
}

#[test]
fn a_tampered_pair_is_caught_by_root_by_the_installed_filter_itself() {
    if !is_root("a_tampered_pair_is_caught_by_root_by_the_installed_filter_itself") {
        return;
    }
    let (host, _folder) = tampered_pair("worker-reactor");
    let ran = as_root(&host, &["inspect", "vm", "--verify"]);
    assert_eq!(ran.status, Some(1), "{ran:?}");
    let told = ran.out.lines().any(|l| {
        l.contains("(reactor): the installed filter worker-reactor differs at instruction")
            && l.contains("return allow, declared is return kill the process")
    });
    assert!(told, "{}", ran.out);
}

#[test]
fn root_finds_the_workers_of_supervisors_that_were_not_asked() {
    if !is_root("root_finds_the_workers_of_supervisors_that_were_not_asked") {
        return;
    }
    let [asked, other] = [0, 1].map(|_| Host::start(&user::with_subuids(), &["--pool", "1"]));
    other.vmsup(&["start", &other.guest("vm", "deaf", "")]).ok();
    other.said("vm", "deaf up");
    let running = other.inspect("vm")["pid"].as_i64().unwrap();
    let warm = i64::from(warm(&other));
    let ran = as_root(&asked, &["inspect", "--all", "--verify", "--json"]);
    let all: Vec<Value> = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
    for (pid, process, notes) in [(running, "worker", 1), (warm, "warm-worker", 0)] {
        let one = all.iter().find(|v| v["pid"] == pid).unwrap_or_else(|| panic!("{pid}: {ran:?}"));
        assert_eq!((&one["process"], &one["vm"]), (&process.into(), &Value::Null), "{one}");
        assert_eq!(one["differences"], serde_json::json!([]), "{one}");
        assert_eq!(one["not_seen"].as_array().unwrap().len(), notes, "{one}");
        assert_eq!(one["filters_read_back"], true, "{one}");
        assert_eq!(one["section_sha256"].as_str().unwrap().len(), 64);
    }
}

#[test]
fn all_processes_of_a_host_are_told_for_people_and_for_prometheus() {
    let host = Host::start(&user::with_subuids(), &["--pool", "1"]);
    for name in ["one", "two"] {
        host.vmsup(&["start", &host.guest(name, "deaf", "")]).ok();
    }
    // Other tests' processes are of this host, too, so that the status is theirs as well.
    let ran = host.vmsup(&["inspect", "--all", "--verify", "--json"]);
    let all: Vec<Value> = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
    for vm in ["one", "two"] {
        let one = all.iter().find(|v| v["vm"] == vm).unwrap();
        assert_eq!(one["differences"], serde_json::json!([]), "{one}");
    }
    for (process, pid) in [("supervisor", host.pid()), ("jailer", host.jailer())] {
        let one = all.iter().find(|v| v["pid"] == pid).unwrap();
        assert_eq!((&one["process"], &one["differences"]), (&process.into(), &serde_json::json!([])));
    }
    let warm = warm(&host);
    let ran = host.vmsup(&["inspect", "--all", "--verify", "--json"]);
    let all: Vec<Value> = serde_json::from_str(&ran.out).unwrap();
    let one = all.iter().find(|v| v["pid"] == warm).unwrap_or_else(|| panic!("{warm}: {ran:?}"));
    assert_eq!((&one["process"], &one["differences"]), (&"warm-worker".into(), &serde_json::json!([])), "{one}");
    let text = host.vmsup(&["inspect", "--all", "--prometheus"]).out;
    assert!(text.contains("vmsup_verify_ok{vm=\"one\",process=\"worker\""), "{text}");
    assert!(text.contains("vmsup_verify_policy_info{vm=\"two\",process=\"worker\""), "{text}");
}
