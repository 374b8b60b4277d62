//! VMs outlive their supervisor and its jailer, however these end, and the next ones go on with them.

use rustix::process::{Pid, Signal, kill_process};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use vmsup_tests::host::Host;
use vmsup_tests::{eventually, user};

fn host() -> Host {
    Host::start(&user::with_subuids(), &["--pool", "1"])
}

fn start(host: &Host, name: &str, guest: &str) -> i32 {
    host.vmsup(&["start", &host.guest(name, guest, "")]).ok();
    host.said(name, &format!("{guest} up"));
    pid(host, name)
}

fn pid(host: &Host, name: &str) -> i32 {
    i32::try_from(host.inspect(name)["pid"].as_i64().unwrap()).unwrap()
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

fn lives(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Types into the console of the guest `echo`, and waits for the answer.
fn type_and_read(host: &Host, name: &str, typed: &str) {
    let mut console = host
        .command(&["console", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    console.stdin.as_mut().unwrap().write_all(typed.as_bytes()).unwrap();
    host.said(name, typed);
    let _ = console.kill();
    console.wait().unwrap();
}

/// The kinds of the events so far.
fn events(host: &Host) -> Vec<String> {
    let all = host.vmsup(&["events", "--json"]).ok();
    let kind = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["kind"].as_str().unwrap().to_owned();
    all.lines().map(kind).collect()
}

/// Ends all that there is in good order, and sees that nothing is left of it.
fn nothing_is_left_of(mut host: Host, names: &[&str]) {
    for name in names {
        host.vmsup(&["kill", name]);
    }
    host.remove(names);
    eventually("no handle", || host.handles().is_empty());
    let workers = host.workers();
    host.leave();
    eventually("no jailer", || host.jailers().is_empty());
    for worker in workers {
        eventually("no worker", || !lives(worker));
    }
    let sockets = vmsup_tests::names(host.folder().join("workers"));
    assert!(sockets.is_empty(), "{sockets:?}");
}

#[test]
fn a_killed_supervisor_leaves_its_vm_running_and_the_next_one_goes_on() {
    let mut host = host();
    let worker = start(&host, "a", "echo");
    let id = host.inspect("a")["id"].clone();
    type_and_read(&host, "a", "before");
    let jailer = host.jailer();
    host.replace();
    assert_eq!((pid(&host, "a"), host.state("a")), (worker, "running".into()));
    assert_eq!((&host.inspect("a")["id"], host.jailer()), (&id, jailer));
    assert!(host.logs("a").contains("before"), "{}", host.logs("a"));
    type_and_read(&host, "a", "after");
    assert!(host.logs("a").contains("echo up") && !host.log().contains("panicked"));
    // Once more, so that what was taken over is taken over as well.
    host.replace();
    type_and_read(&host, "a", "again");
    // The guest's own end is told as ever.
    let mut console = host.command(&["console", "a"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    console.stdin.take().unwrap().write_all(b"q").unwrap();
    assert!(console.wait().unwrap().success());
    eventually("its end", || host.state("a") == "stopped");
    assert_eq!(host.inspect("a")["end"]["kind"], "shutdown");
    nothing_is_left_of(host, &["a"]);
}

#[test]
fn a_supervisor_that_is_told_to_leave_says_what_goes_on_and_a_command_brings_the_next_one() {
    let mut host = host();
    let worker = start(&host, "a", "deaf");
    host.leave();
    assert!(host.log().contains("1 VM goes on") && host.log().contains("vmsup stop --all"), "{}", host.log());
    assert!(lives(worker) && !host.folder().join("api.sock").exists());
    let ran = host.vmsup(&["ls", "--json"]);
    assert!(ran.err.contains("started a supervisor"), "{ran:?}");
    let all: serde_json::Value = serde_json::from_str(&ran.ok()).unwrap();
    assert_eq!((&all[0]["pid"], &all[0]["state"]), (&worker.into(), &"running".into()));
    host.vmsup(&["kill", "a"]).ok();
    assert_eq!(host.inspect("a")["end"]["kind"], "killed");
}

#[test]
fn vms_that_end_with_their_host_come_back_as_their_files_say() {
    let mut host = host();
    let stays = start(&host, "stays", "deaf");
    let mut file: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(host.guest("back", "deaf", "")).unwrap()).unwrap();
    file["restart"] = "always".into();
    host.vmsup(&["start", &host.file("back", &file)]).ok();
    let back = pid(&host, "back");
    host.vmsup(&["stop", "--all", "--for-shutdown", "--timeout", "0"]).ok();
    assert!(!lives(stays) && !lives(back));
    assert_eq!((host.state("stays"), host.state("back")), ("stopped".into(), "crashed".into()));
    assert_eq!(host.inspect("back")["end"]["kind"], "host_down");
    host.leave();
    host.next();
    eventually("its start", || host.state("back") == "running");
    assert_eq!(host.state("stays"), "stopped");
    // Whoever stops it for good has it stay.
    host.vmsup(&["stop", "back", "--timeout", "0"]).ok();
    host.leave();
    host.next();
    assert_eq!(host.state("back"), "stopped");
    nothing_is_left_of(host, &["stays", "back"]);
}

#[test]
fn a_vm_that_ended_while_nobody_looked_has_its_true_end() {
    let mut host = host();
    let (dies, goes_on) = (start(&host, "dies", "deaf"), start(&host, "goes-on", "deaf"));
    // This one switches itself off by and by.
    host.vmsup(&["start", &host.guest("quits", "flood", "kib=384")]).ok();
    let quits = pid(&host, "quits");
    host.supervisor.kill().unwrap();
    host.supervisor.wait().unwrap();
    kill(dies);
    for worker in [dies, quits] {
        eventually("the end of a worker", || !lives(worker));
    }
    host.next();
    // An end is told once it is recorded.
    for (name, kind) in [("dies", "worker_crashed"), ("quits", "shutdown")] {
        eventually("its end to be told", || !host.inspect(name)["end"].is_null());
        assert_eq!(host.inspect(name)["end"]["kind"], kind);
    }
    assert_eq!(pid(&host, "goes-on"), goes_on);
    nothing_is_left_of(host, &["quits", "dies", "goes-on"]);
}

#[test]
fn vms_outlive_their_jailer_and_the_next_one_finds_them() {
    let mut host = host();
    let worker = start(&host, "a", "echo");
    let first = host.jailer();
    kill(first);
    // Being confined it could make no other: it leaves, so that both are started anew.
    assert!(host.supervisor.wait().unwrap().success(), "{}", host.log());
    assert!(lives(worker) && host.log().contains("the jailer is gone"), "{}", host.log());
    host.next();
    assert_ne!(host.jailer(), first);
    assert_eq!((pid(&host, "a"), host.state("a")), (worker, "running".into()));
    type_and_read(&host, "a", "orphan");
    assert!(events(&host).contains(&"jailer_lost".to_owned()), "{:?}", events(&host));
    // Nobody but init could reap it: that it ended is seen, how is not.
    kill(worker);
    eventually("its end", || host.state("a") == "crashed");
    assert_eq!(host.inspect("a")["end"]["kind"], "unknown");
    nothing_is_left_of(host, &["a"]);
}

#[test]
fn a_vm_outlives_jailer_and_supervisor_killed_at_once() {
    let mut host = host();
    let worker = start(&host, "a", "deaf");
    kill(host.pid());
    kill(host.jailer());
    host.supervisor.wait().unwrap();
    host.next();
    assert_eq!((pid(&host, "a"), host.state("a")), (worker, "running".into()));
    nothing_is_left_of(host, &["a"]);
}

#[test]
fn a_handle_that_is_cut_short_or_missing_costs_its_vm_and_no_other() {
    let mut host = host();
    start(&host, "good", "deaf");
    let good = host.handles();
    for spoil in ["cut", "missing"] {
        let worker = start(&host, "bad", "deaf");
        let handle = host.handles().into_iter().find(|path| !good.contains(path)).unwrap();
        host.supervisor.kill().unwrap();
        host.supervisor.wait().unwrap();
        match spoil {
            "cut" => std::fs::OpenOptions::new().write(true).open(&handle).unwrap().set_len(40).unwrap(),
            _ => std::fs::remove_file(&handle).unwrap(),
        }
        host.next();
        // What runs there is not known, so that it ends, and the VM that is in the database says so.
        eventually("the end of a worker that nobody knows", || !lives(worker));
        eventually("its end to be told", || host.state("bad") != "stopping");
        assert_eq!((host.state("good"), host.state("bad")), ("running".into(), "crashed".into()), "{spoil}");
        assert_eq!(host.inspect("bad")["end"]["kind"], "unknown");
        host.remove(&["bad"]);
        let aside = handle.with_extension("json.bad");
        assert_eq!(aside.exists(), spoil == "cut");
        let _ = std::fs::remove_file(aside);
    }
    nothing_is_left_of(host, &["good"]);
}

#[test]
fn a_handle_that_names_another_process_is_not_believed() {
    let mut host = host();
    let worker = start(&host, "a", "deaf");
    host.supervisor.kill().unwrap();
    host.supervisor.wait().unwrap();
    let path = host.handles().pop().unwrap();
    let mut handle: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    handle["start_time"] = (handle["start_time"].as_u64().unwrap() + 1).into();
    std::fs::write(&path, handle.to_string()).unwrap();
    host.next();
    eventually("the end of a worker that nobody knows", || !lives(worker));
    // Its death is first, the word of it second.
    eventually("its end to be known", || !host.inspect("a")["end"].is_null());
    let end = host.inspect("a")["end"].clone();
    assert_eq!(end["kind"], "unknown");
    assert!(end["reason"].as_str().unwrap().contains("start time"), "{end}");
    nothing_is_left_of(host, &["a"]);
}

#[test]
fn a_lost_database_costs_no_running_vm() {
    let mut host = host();
    let worker = start(&host, "a", "deaf");
    let state = host.state_folder();
    host.supervisor.kill().unwrap();
    host.supervisor.wait().unwrap();
    for name in vmsup_tests::names(&state) {
        std::fs::remove_file(state.join(name)).unwrap();
    }
    host.next();
    assert_eq!((pid(&host, "a"), host.state("a")), (worker, "running".into()));
    assert!(events(&host).contains(&"state_trouble".to_owned()), "{:?}", events(&host));
    nothing_is_left_of(host, &["a"]);
}

#[test]
fn a_second_supervisor_on_one_state_directory_refuses() {
    let host = host();
    let other = host.work.path().join("other");
    let state = host.state_folder();
    let paths = [other.to_str().unwrap(), state.to_str().unwrap()];
    // In the foreground its log is on stderr, too.
    let ran = host.vmsup(&["serve", "--runtime-dir", paths[0], "--state-dir", paths[1]]);
    assert_eq!(ran.status, Some(1), "{ran:?}");
    assert!(ran.err.contains("\nvmsup: another supervisor uses"), "{ran:?}");
    nothing_is_left_of(host, &[]);
}
