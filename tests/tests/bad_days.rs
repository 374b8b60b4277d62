//! Bad days: something is killed, full, cut or flooded, at the worst moment. After each nothing of that VM is left and
//! the next start works.

use serde_json::json;
use std::io::Read;
use std::process::Stdio;
use vmsup_tests::host::{Host, children, guest_file};
use vmsup_tests::tracer::Tracer;
use vmsup_tests::{eventually, skip, user};

const POOL: usize = 1;

fn host() -> Host {
    Host::start(&user::with_subuids(), &["--pool", "1"])
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// A VM that says hello runs to its end: the host works.
fn the_next_start_works(host: &Host) {
    let file =
        host.file("next", &json!({ "name": "next", "cpus": 1, "memory_mib": 32, "boot": { "builtin": "hello" } }));
    let out = host.vmsup(&["run", "--rm", &file]).ok();
    assert_eq!(out, "HELLOGUEST\n");
}

#[test]
fn a_worker_killed_while_it_runs_is_a_crash_and_leaves_nothing() {
    let host = host();
    let fds = host.fds();
    host.vmsup(&["start", &host.guest("victim", "deaf", "")]).ok();
    host.vmsup(&["start", &host.guest("bystander", "deaf", "")]).ok();
    kill(host.inspect("victim")["pid"].as_i64().unwrap() as i32);
    eventually("its end", || host.state("victim") == "crashed");
    assert_eq!(host.inspect("victim")["end"]["kind"], "worker_crashed");
    assert_eq!(host.state("bystander"), "running");
    host.vmsup(&["kill", "bystander"]).ok();
    host.remove(&["victim", "bystander"]);
    host.nothing_left(POOL, fds);
    the_next_start_works(&host);
}

/// Kills the warm worker that the next start will take after `steps` system calls of it. False where the start was over
/// before that.
fn start_with_a_worker_that_dies(host: &Host, steps: usize) -> bool {
    let worker = host.warm_worker();
    let tracer = Tracer::attach(worker).unwrap();
    let file = host.guest("victim", "deaf", "");
    let mut start = host.spawn(&["start", &file]);
    let reached = tracer.advance(steps, || start.try_wait().unwrap().is_some());
    tracer.kill();
    let ended = start.wait_with_output().unwrap();
    if ended.status.success() {
        // Where it died before it was handed over, another one is the VM.
        if host.inspect("victim")["pid"].as_i64().is_some_and(|pid| pid != i64::from(worker)) {
            host.vmsup(&["kill", "victim"]).ok();
        }
        eventually("its end", || ["crashed", "stopped"].contains(&&*host.state("victim")));
    } else {
        let text = String::from_utf8_lossy(&ended.stderr);
        assert_eq!((ended.status.code(), text.lines().count()), (Some(1), 1), "{text}");
        assert!(text.starts_with("vmsup: "), "{text}");
    }
    reached
}

#[test]
fn a_worker_killed_at_any_step_of_its_start_leaves_nothing() {
    if !rustix::process::geteuid().is_root() {
        return skip("a_worker_killed_at_any_step_of_its_start_leaves_nothing", "tracing the worker needs root");
    }
    let host = host();
    let fds = host.fds();
    // Every step at first, where it is given its VM, then in strides; a start has some hundred system calls.
    for steps in (1..20).chain((20..).step_by(7)) {
        if !start_with_a_worker_that_dies(&host, steps) {
            break;
        }
        host.remove(&["victim"]);
        host.nothing_left(POOL, fds);
    }
    host.remove(&["victim"]);
    host.nothing_left(POOL, fds);
    the_next_start_works(&host);
}

#[test]
fn a_jailer_killed_at_any_step_leaves_running_vms_to_the_next_supervisor() {
    if !rustix::process::geteuid().is_root() {
        return skip(
            "a_jailer_killed_at_any_step_leaves_running_vms_to_the_next_supervisor",
            "tracing the jailer needs root",
        );
    }
    for steps in (1..).step_by(11) {
        // Without a pool each start makes a worker, which is what is to be interrupted.
        let host = Host::start(&user::with_subuids(), &["--pool", "0"]);
        host.vmsup(&["start", &host.guest("old", "deaf", "")]).ok();
        let old = host.inspect("old")["pid"].as_i64().unwrap() as i32;
        let jailer = host.jailer();
        let tracer = Tracer::attach(jailer).unwrap();
        let mut new = host.spawn(&["start", &host.guest("new", "deaf", "")]);
        let reached = tracer.advance(steps, || new.try_wait().unwrap().is_some());
        let half_made: Vec<i32> = children(jailer).into_iter().filter(|pid| *pid != old).collect();
        tracer.kill();
        let new = new.wait_with_output().unwrap();
        // The supervisor, which can make no other jailer, leaves in good order, and its VM goes on with the next one.
        let mut host = host;
        assert!(host.supervisor.wait().unwrap().success(), "{}", host.log());
        assert!(!host.folder().join("api.sock").exists());
        host.next();
        assert_eq!(host.inspect("old")["pid"], old, "after {steps} steps");
        assert_eq!(host.state("old"), "running", "after {steps} steps");
        host.vmsup(&["kill", "old"]).ok();
        // A VM whose start was answered runs, too. What was empty or half made has seen its report pipe close.
        let new_runs = host.state("new") == "running";
        assert!(new_runs || !new.status.success(), "after {steps} steps: {new:?}");
        let new = if new_runs { host.inspect("new")["pid"].as_i64() } else { None };
        for pid in half_made.into_iter().filter(|pid| Some(i64::from(*pid)) != new) {
            eventually("a half-made worker to leave", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
        }
        if !reached {
            break;
        }
    }
}

#[test]
fn a_supervisor_out_of_fds_refuses_with_a_sentence_and_recovers() {
    let limit = ["prlimit", "--nofile=300:300"];
    let host = Host::start_wrapped(&user::with_subuids(), &limit, &["--pool", "1"]);
    let mut started = Vec::new();
    let sentence = loop {
        let name = format!("vm{}", started.len());
        let ran = host.vmsup(&["start", &host.guest(&name, "deaf", "")]);
        if ran.status != Some(0) {
            break ran.sentence(1);
        }
        started.push(name);
        assert!(started.len() < 300, "300 fds were enough for 300 VMs");
    };
    assert!(sentence.contains("file"), "{sentence}");
    for name in &started {
        assert_eq!(host.state(name), "running");
    }
    host.vmsup(&["kill", &started[0]]).ok();
    the_next_start_works(&host);
}

#[test]
fn a_full_disk_is_the_guests_io_error_and_nobody_elses() {
    if !rustix::process::geteuid().is_root() {
        return skip("a_full_disk_is_the_guests_io_error_and_nobody_elses", "mounting a small file system needs root");
    }
    let host = host();
    let folder = host.work.path().join("small");
    std::fs::create_dir(&folder).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k,mode=0777", "tmpfs"])
        .arg(&folder)
        .status()
        .unwrap();
    assert!(mounted.success());
    let path = folder.join("disk.img");
    // As large as the file system, and then the file system is filled up: no write can get a page.
    std::fs::File::create(&path).unwrap().set_len(4096 * 512).unwrap();
    std::os::unix::fs::chown(&path, Some(host.user.uid), Some(host.user.gid)).unwrap();
    let _ = std::fs::write(folder.join("filler"), vec![1u8; 1 << 17]);
    let file = host.file(
        "full",
        &json!({
            "name": "full", "cpus": 1, "memory_mib": 32,
            "boot": { "kernel": guest_file("block") }, "disks": [{ "path": path }],
        }),
    );
    let ran = host.vmsup(&["run", &file]);
    let unmounted = std::process::Command::new("umount").arg("-l").arg(&folder).status().unwrap();
    assert!(unmounted.success());
    assert!(ran.out.contains("FAIL write") && ran.out.contains("BLOCK FAIL"), "{ran:?}");
    assert_eq!(ran.status, Some(0), "the guest itself went on to its end: {ran:?}");
    the_next_start_works(&host);
}

#[test]
fn a_kernel_truncated_while_it_is_read_is_refused_with_a_sentence() {
    if !rustix::process::geteuid().is_root() {
        return skip("a_kernel_truncated_while_it_is_read_is_refused_with_a_sentence", "tracing the worker needs root");
    }
    let host = host();
    let fds = host.fds();
    let mut refused = 0;
    for steps in (4..).step_by(4) {
        let kernel = host.work.path().join("kernel.elf");
        std::fs::copy(guest_file("deaf"), &kernel).unwrap();
        let tracer = Tracer::attach(host.warm_worker()).unwrap();
        let file =
            host.file("cut", &json!({ "name": "cut", "cpus": 1, "memory_mib": 32, "boot": { "kernel": kernel } }));
        let mut start = host.spawn(&["start", &file]);
        let running = tracer.advance(steps, || start.try_wait().unwrap().is_some());
        std::fs::OpenOptions::new().write(true).open(&kernel).unwrap().set_len(100).unwrap();
        drop(tracer);
        let ended = start.wait_with_output().unwrap();
        if ended.status.success() {
            // It was read before it was cut.
            host.vmsup(&["kill", "cut"]).ok();
        } else {
            let text = String::from_utf8_lossy(&ended.stderr);
            assert!(text.contains("boot.kernel") && text.lines().count() == 1, "{text}");
            refused += 1;
        }
        host.remove(&["cut"]);
        host.nothing_left(POOL, fds);
        if !running {
            break;
        }
    }
    assert!(refused > 0, "no cut came before the end of the reading");
    the_next_start_works(&host);
}

#[test]
fn a_flood_of_output_is_bounded_and_counted_and_never_blocks_the_guest() {
    let host = host();
    // Nobody reads: the guest comes to its end all the same.
    host.vmsup(&["start", &host.guest("flood", "flood", "kib=384")]).ok();
    eventually("its end", || host.state("flood") == "stopped");
    let console = &host.inspect("flood")["console"];
    let (written, overwritten) = (console["written"].as_u64().unwrap(), console["overwritten"].as_u64().unwrap());
    assert!(written > 384 * 1024, "{console}");
    assert_eq!(written - overwritten, 256 * 1024, "{console}");
    let kept = host.logs("flood");
    assert!(kept.len() <= 256 * 1024 + 200, "{}", kept.len());
    assert!(kept.contains("FLOOD-END"), "the newest bytes are kept");
}

#[test]
fn a_reader_that_never_reads_blocks_neither_the_guest_nor_other_readers() {
    let host = host();
    let file = host.guest("flood", "flood", "kib=384");
    let mut lazy = host.command(&["run", &file]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("its end", || host.state("flood") == "stopped");
    assert!(host.logs("flood").contains("FLOOD-END"));
    // Now it reads after all: what it lost is said, and the end is there.
    let mut out = String::new();
    lazy.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert!(lazy.wait().unwrap().success());
    assert!(out.contains("FLOOD-END"), "the end of {} bytes", out.len());
    assert!(out.len() > 384 * 1024 || out.contains("bytes of console output lost"), "{} bytes", out.len());
}

#[test]
fn a_stopped_worker_can_be_killed() {
    let host = host();
    let fds = host.fds();
    host.vmsup(&["start", &host.guest("hung", "deaf", "")]).ok();
    let pid = host.inspect("hung")["pid"].as_i64().unwrap() as i32;
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    host.vmsup(&["kill", "hung"]).ok();
    assert_eq!(host.inspect("hung")["end"]["kind"], "killed");
    host.remove(&["hung"]);
    host.nothing_left(POOL, fds);
}

#[test]
fn a_supervisor_that_is_killed_leaves_its_vms_and_their_jailer_alone() {
    let mut host = host();
    host.vmsup(&["start", &host.guest("a", "deaf", "")]).ok();
    let vm = host.inspect("a")["pid"].as_i64().unwrap() as i32;
    let jailer = host.jailer();
    let empty: Vec<i32> = host.workers().into_iter().filter(|pid| *pid != vm).collect();
    kill(host.pid());
    host.supervisor.wait().unwrap();
    let alive = |pid: i32| std::path::Path::new(&format!("/proc/{pid}")).exists();
    for pid in empty {
        eventually("the end of an empty worker", || !alive(pid));
    }
    assert!(alive(vm) && alive(jailer));
    for pid in [vm, jailer] {
        kill(pid);
        eventually("the end of what this test leaves", || !alive(pid));
    }
}

#[test]
fn a_second_supervisor_in_one_directory_refuses() {
    let host = host();
    let sentence = host.vmsup(&["serve"]).sentence(3);
    assert!(sentence.contains("supervisor"), "{sentence}");
    the_next_start_works(&host);
}
