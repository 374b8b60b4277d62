//! The main job, natively: VMs from the command line to the guest and back, with bare-metal guests.

use serde_json::json;
use std::io::{Read, Write};
use std::process::Stdio;
use vmsup_tests::host::{Host, guest_file};
use vmsup_tests::tracer::Tracer;
use vmsup_tests::{eventually, names, skip, user};

fn host() -> Host {
    Host::start(&user::with_subuids(), &["--pool", "1"])
}

#[test]
fn run_shows_the_console_and_leaves_with_0_when_the_guest_resets_itself() {
    for user in [Some(user::with_subuids()), user::without_subuids()].into_iter().flatten() {
        let host = Host::start(&user, &[]);
        let file = host
            .file("hello", &json!({ "name": "hello", "cpus": 1, "memory_mib": 128, "boot": { "builtin": "hello" } }));
        let ran = host.vmsup(&["run", "--rm", &file]);
        assert_eq!(ran.out, "HELLOGUEST\n", "{ran:?}");
        assert_eq!(ran.status, Some(0));
        assert!(host.ls().is_empty());
    }
}

#[test]
fn run_leaves_with_1_and_the_reason_when_the_guest_crashes() {
    let host = host();
    let ran = host.vmsup(&["run", &host.guest("triple", "triple", "")]);
    let reason = ran.sentence(1);
    assert!(reason.contains("triple fault"), "{reason}");
    assert_eq!(host.state("triple"), "crashed");
    assert_eq!(host.inspect("triple")["end"]["kind"], "guest_crashed");
}

#[test]
fn run_of_a_vm_that_is_started_again_ends_with_its_first_run_and_says_so() {
    let host = host();
    let spec = json!({ "name": "a", "cpus": 1, "memory_mib": 32, "boot": { "builtin": "hello" }, "restart": "always" });
    let ran = host.vmsup(&["run", &host.file("a", &spec)]);
    assert_eq!((ran.out.as_str(), ran.status), ("HELLOGUEST\n", Some(0)), "{ran:?}");
    assert!(ran.err.contains("started again") && ran.err.contains("vmsup console a"), "{ran:?}");
    eventually("its restart", || host.inspect("a")["restarts"].as_u64() > Some(0));
    host.vmsup(&["kill", "a"]);
    host.remove(&["a"]);
}

#[test]
fn every_vcpu_runs() {
    let host = host();
    let mut spec = json!({ "name": "smp", "cpus": 4, "memory_mib": 32 });
    spec["boot"] = json!({ "kernel": guest_file("smp"), "cmdline": "cpus=4" });
    let out = host.vmsup(&["run", &host.file("smp", &spec)]).ok();
    for cpu in 0..4 {
        assert!(out.contains(&format!("cpu {cpu} up")), "{out}");
    }
}

#[test]
fn all_of_guest_memory_is_there() {
    let host = host();
    let out = host.vmsup(&["run", &host.guest("walker", "walker", "")]).ok();
    assert!(out.contains("PASS") && !out.contains("FAIL"), "{out}");
}

fn disk(host: &Host, name: &str, sectors: u64) -> String {
    let path = host.work.path().join(name);
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(sectors * 512).unwrap();
    std::os::unix::fs::chown(&path, Some(host.user.uid), Some(host.user.gid)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn block_guest(host: &Host, name: &str, readonly: bool, path: &str) -> String {
    host.file(
        name,
        &json!({
            "name": name, "cpus": 1, "memory_mib": 32,
            "boot": { "kernel": guest_file("block"), "cmdline": if readonly { "ro=1" } else { "" } },
            "disks": [{ "path": path, "readonly": readonly, "serial": "disk-of-test" }],
        }),
    )
}

#[test]
fn a_disk_is_read_written_flushed_and_verified() {
    let host = host();
    let path = disk(&host, "disk.img", 4096);
    let out = host.vmsup(&["run", &block_guest(&host, "block", false, &path)]).ok();
    assert!(out.contains("BLOCK PASS") && !out.contains("FAIL"), "{out}");
    assert!(std::fs::read(&path).unwrap().iter().any(|byte| *byte != 0), "something was written");
}

#[test]
fn a_readonly_disk_is_not_written() {
    let host = host();
    let path = disk(&host, "disk.img", 4096);
    let before = std::fs::read(&path).unwrap();
    let ran = host.vmsup(&["run", &block_guest(&host, "block", true, &path)]);
    assert!(ran.out.contains("BLOCK PASS"), "{ran:?}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn two_vms_cannot_write_one_disk() {
    let host = host();
    let path = disk(&host, "disk.img", 4096);
    let spec = |name: &str, readonly: bool| {
        host.file(
            name,
            &json!({
                "name": name, "cpus": 1, "memory_mib": 32,
                "boot": { "kernel": guest_file("deaf") },
                "disks": [{ "path": path, "readonly": readonly }],
            }),
        )
    };
    host.vmsup(&["start", &spec("a", false)]).ok();
    for readonly in [false, true] {
        let sentence = host.vmsup(&["start", &spec("b", readonly)]).sentence(1);
        assert!(sentence.contains("disks[0].path") && sentence.contains("disk.img"), "{sentence}");
    }
    host.vmsup(&["kill", "a"]).ok();
    host.vmsup(&["start", &spec("b", true)]).ok();
    host.vmsup(&["start", &spec("c", true)]).ok();
}

#[test]
fn a_guest_that_hears_its_power_button_stops_cleanly() {
    let host = host();
    host.vmsup(&["start", &host.guest("power", "power", "")]).ok();
    eventually("power up", || !host.logs("power").is_empty());
    host.vmsup(&["stop", "power", "--timeout", "60"]).ok();
    assert_eq!(host.state("power"), "stopped");
    assert_eq!(host.inspect("power")["end"]["kind"], "shutdown");
    assert!(host.logs("power").contains("power button"));
}

#[test]
fn a_guest_that_ignores_its_power_button_is_killed_at_the_deadline() {
    let host = host();
    let fds = host.fds();
    host.vmsup(&["start", &host.guest("deaf", "deaf", "")]).ok();
    host.said("deaf", "deaf up");
    host.vmsup(&["stop", "deaf", "--timeout", "1"]).ok();
    assert_eq!(host.inspect("deaf")["end"]["kind"], "killed");
    host.vmsup(&["rm", "deaf"]).ok();
    host.nothing_left(1, fds);
}

#[test]
fn of_two_vms_of_one_name_one_wins() {
    let host = host();
    let file = host.guest("twin", "deaf", "");
    let children: Vec<_> = (0..6).map(|_| host.spawn(&["start", &file])).collect();
    let ends: Vec<_> = children.into_iter().map(|c| c.wait_with_output().unwrap()).collect();
    let won = ends.iter().filter(|o| o.status.success()).count();
    assert_eq!(won, 1, "{ends:?}");
    for lost in ends.iter().filter(|o| !o.status.success()) {
        let text = String::from_utf8_lossy(&lost.stderr);
        assert!(text.contains("twin"), "{text}");
    }
    assert_eq!(host.ls().len(), 1);
    host.vmsup(&["kill", "twin"]).ok();
    // A name whose VM has ended is free.
    host.vmsup(&["start", &file]).ok();
}

#[test]
fn a_console_takes_input_and_shows_output_over_pipes() {
    let host = host();
    host.vmsup(&["start", &host.guest("echo", "echo", "")]).ok();
    eventually("echo up", || !host.logs("echo").is_empty());
    let mut console = host
        .command(&["console", "echo"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = console.stdin.take().unwrap();
    input.write_all(b"abcdefq").unwrap();
    input.flush().unwrap();
    let mut out = String::new();
    console.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert!(console.wait().unwrap().success());
    assert!(out.contains("abcdef"), "{out}");
    eventually("its end", || host.state("echo") == "stopped");
    drop(input);
}

#[test]
fn an_escape_sequence_in_the_output_does_not_reach_a_table() {
    let host = host();
    host.vmsup(&["run", &host.guest("triple", "triple", "")]);
    let table = host.vmsup(&["ls"]).ok();
    assert!(table.contains("triple") && !table.contains('\x1b'), "{table}");
}

#[test]
fn ctrl_c_in_run_stops_the_guest_and_leaves_nothing() {
    let host = host();
    let fds = host.fds();
    let file = host.guest("deaf", "deaf", "");
    let mut run = host.spawn(&["run", "--rm", &file]);
    let mut start = [0u8; 7];
    run.stdout.as_mut().unwrap().read_exact(&mut start).unwrap();
    assert_eq!(&start, b"deaf up");
    let pid = rustix::process::Pid::from_child(&run);
    // The first asks politely; this guest is deaf, so the second kills.
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    eventually("the power button", || host.state("deaf") == "stopping");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130));
    eventually("its end", || host.ls().is_empty());
    host.nothing_left(1, fds);
}

#[test]
fn a_stalled_disk_does_not_freeze_the_guest() {
    if !rustix::process::geteuid().is_root() {
        return skip("a_stalled_disk_does_not_freeze_the_guest", "stopping the disk's threads needs root");
    }
    let host = host();
    let path = disk(&host, "disk.img", 4096);
    let mut spec = json!({ "name": "ticker", "cpus": 1, "memory_mib": 32 });
    spec["boot"] = json!({ "kernel": guest_file("ticker"), "cmdline": "wait=60" });
    spec["disks"] = json!([{ "path": path }]);
    host.vmsup(&["start", &host.file("ticker", &spec)]).ok();
    host.said("ticker", "ticker up");
    // The disk stalls: its threads stand still, as they would inside a system call on a dead network file system.
    let tasks = format!("/proc/{}/task", host.inspect("ticker")["pid"]);
    let threads = names(&tasks)
        .into_iter()
        .filter(|tid| std::fs::read_to_string(format!("{tasks}/{tid}/comm")).is_ok_and(|name| name.starts_with("io")));
    let stalled: Vec<_> = threads.map(|tid| Tracer::attach(tid.parse().unwrap()).unwrap()).collect();
    assert_eq!(stalled.len(), 2);
    // The request went out at the 60th tick; ten more come without it.
    host.said("ticker", "tick 70\n");
    assert!(!host.logs("ticker").contains("disk done"));
    drop(stalled);
    host.said("ticker", "disk done, status 0");
    eventually("its end", || host.state("ticker") == "stopped");
}

#[test]
fn a_hostile_guest_harms_nobody() {
    let host = host();
    let path = disk(&host, "disk.img", 4096);
    host.vmsup(&["start", &host.guest("neighbour", "deaf", "")]).ok();
    let mut spec = json!({ "name": "hostile", "cpus": 1, "memory_mib": 32 });
    spec["boot"] = json!({ "kernel": guest_file("hostile"), "cmdline": "seed=1 rounds=8" });
    spec["disks"] = json!([{ "path": path }]);
    let out = host.vmsup(&["run", &host.file("hostile", &spec)]).ok();
    assert!(out.contains("HOSTILE SURVIVED"), "{out}");
    assert_eq!(host.state("neighbour"), "running");
}
