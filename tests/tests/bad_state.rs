//! The state's disk is full, read-only or damaged, or the supervisor itself gets no memory: no VM is lost by it, and it is
//! said.

use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use vmsup_tests::host::Host;
use vmsup_tests::{Scratch, as_root, eventually, names, user};

/// A small file system for the state.
struct Disk {
    /// Goes after what is mounted on it.
    scratch: Scratch,
}

impl Disk {
    fn new(user: &user::User) -> Disk {
        let scratch = Scratch::new(user);
        let options = format!("size=2m,mode=0700,uid={},gid={}", user.uid, user.gid);
        mount(&["-t", "tmpfs", "-o", &options, "tmpfs"], scratch.path());
        Disk { scratch }
    }

    fn path(&self) -> &str {
        self.scratch.path().to_str().unwrap()
    }

    fn filler(&self) -> PathBuf {
        self.scratch.path().join("filler")
    }

    /// Until not one page more fits.
    fn fill(&self) {
        let mut filler = std::fs::File::create(self.filler()).unwrap();
        while filler.write_all(&[1; 4096]).is_ok() {}
    }

    fn remount(&self, how: &str) {
        mount(&["-o", &format!("remount,{how}")], self.scratch.path());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.scratch.path()).status();
    }
}

fn mount(args: &[&str], on: &Path) {
    assert!(Command::new("mount").args(args).arg(on).status().unwrap().success());
}

fn on(disk: &Disk, user: &user::User) -> Host {
    Host::start(user, &["--pool", "1", "--state-dir", disk.path()])
}

fn start(host: &Host, name: &str) -> i32 {
    host.vmsup(&["start", &host.guest(name, "deaf", "")]).ok();
    pid(host, name)
}

/// Pid of a VM that runs.
fn pid(host: &Host, name: &str) -> i32 {
    assert_eq!(host.state(name), "running", "{name}");
    i32::try_from(host.inspect(name)["pid"].as_i64().unwrap()).unwrap()
}

/// What is wrong with the state, as the events have it.
fn troubles(host: &Host) -> Vec<String> {
    let all = host.vmsup(&["events", "--json"]).ok();
    let all = all.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    all.filter(|event| event["kind"] == "state_trouble").map(|event| event["cause"].as_str().unwrap().into()).collect()
}

/// The gauge of the same.
fn is_in_trouble(host: &Host) -> bool {
    let metrics = host.get("/metrics");
    let line = metrics.lines().find(|line| line.starts_with("vmsup_state_trouble ")).expect("the gauge").to_owned();
    line.ends_with(" 1")
}

fn end(mut host: Host, vms: &[&str]) {
    host.vmsup(&["kill", "--all"]).ok();
    host.remove(vms);
    eventually("no handle", || host.handles().is_empty());
    host.leave();
    eventually("no jailer", || host.jailers().is_empty());
}

#[test]
fn a_full_state_disk_costs_no_vm_is_said_and_is_caught_up_with() {
    if !as_root("a_full_state_disk_costs_no_vm_is_said_and_is_caught_up_with") {
        return;
    }
    let user = user::with_subuids();
    let disk = Disk::new(&user);
    let mut host = on(&disk, &user);
    let first = start(&host, "first");
    disk.fill();
    // The log that is there takes some more.
    let mut vms = vec!["first".to_owned()];
    while !is_in_trouble(&host) {
        assert!(vms.len() < 200, "a full disk is no trouble for 200 VMs");
        let name = format!("vm{}", vms.len());
        start(&host, &name);
        vms.push(name);
    }
    let last = start(&host, "last");
    vms.push("last".into());
    assert!(troubles(&host).iter().any(|cause| cause.contains("cannot be written")), "{:?}", troubles(&host));
    assert_eq!(pid(&host, "first"), first);
    // Nothing of that is written: it is found again by its handles.
    host.replace();
    assert_eq!((pid(&host, "first"), pid(&host, "last")), (first, last));
    for name in &vms {
        pid(&host, name);
    }
    std::fs::remove_file(disk.filler()).unwrap();
    start(&host, "more");
    vms.push("more".into());
    eventually("the end of the trouble", || !is_in_trouble(&host));
    let ids: Vec<_> = vms.iter().map(|name| host.inspect(name)["id"].clone()).collect();
    host.replace();
    assert_eq!(vms.iter().map(|name| host.inspect(name)["id"].clone()).collect::<Vec<_>>(), ids);
    let vms: Vec<&str> = vms.iter().map(String::as_str).collect();
    end(host, &vms);
}

#[test]
fn a_state_disk_that_is_read_only_costs_no_vm_and_is_said() {
    if !as_root("a_state_disk_that_is_read_only_costs_no_vm_and_is_said") {
        return;
    }
    let user = user::with_subuids();
    let disk = Disk::new(&user);
    let mut host = on(&disk, &user);
    let first = start(&host, "first");
    host.supervisor.kill().unwrap();
    host.supervisor.wait().unwrap();
    disk.remount("ro");
    host.next();
    assert!(!troubles(&host).is_empty() && is_in_trouble(&host));
    let second = start(&host, "second");
    host.replace();
    assert_eq!((pid(&host, "first"), pid(&host, "second")), (first, second));
    disk.remount("rw");
    host.replace();
    assert!(!is_in_trouble(&host));
    assert_eq!((pid(&host, "first"), pid(&host, "second")), (first, second));
    end(host, &["first", "second"]);
    assert!(names(disk.path()).iter().any(|name| name == "vmsup.db"));
}

#[test]
fn a_corrupt_database_is_kept_aside_is_said_and_costs_no_running_vm() {
    let mut host = Host::start(&user::with_subuids(), &["--pool", "1"]);
    let worker = start(&host, "a");
    let id = host.inspect("a")["id"].clone();
    host.supervisor.kill().unwrap();
    host.supervisor.wait().unwrap();
    let state = host.state_folder();
    for name in names(&state).iter().filter(|name| name.starts_with("vmsup.db")) {
        let mut file = std::fs::File::options().read(true).write(true).open(state.join(name)).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        // All but the magic number: it is a database still, of nonsense.
        bytes.iter_mut().skip(16).for_each(|byte| *byte ^= 0x5a);
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(&bytes).unwrap();
    }
    host.next();
    assert_eq!((pid(&host, "a"), &host.inspect("a")["id"]), (worker, &id));
    assert!(names(&state).iter().any(|name| name.starts_with("vmsup.db.corrupt-")), "{:?}", names(&state));
    assert!(troubles(&host).iter().any(|cause| cause.contains("kept as")), "{:?}", troubles(&host));
    // What was found is in the new one.
    host.replace();
    assert_eq!((pid(&host, "a"), &host.inspect("a")["id"]), (worker, &id));
    end(host, &["a"]);
}

#[test]
fn a_supervisor_that_gets_no_memory_loses_no_vm() {
    let mut host = Host::start(&user::with_subuids(), &["--pool", "1"]);
    let worker = start(&host, "a");
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.pid())).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let size: u64 = size.trim().trim_end_matches(" kB").parse().unwrap();
    let limit = format!("--as={}", (size << 10) + (256 << 10));
    assert!(
        host.user.command("prlimit").arg("--pid").arg(host.pid().to_string()).arg(limit).status().unwrap().success()
    );
    // Until it is refused, or the supervisor is gone: an allocation that fails ends it.
    let mut vms = vec!["a".to_owned()];
    loop {
        let name = format!("vm{}", vms.len());
        let ran = host.vmsup(&["start", &host.guest(&name, "deaf", "")]);
        if ran.status != Some(0) {
            break;
        }
        vms.push(name);
        assert!(vms.len() < 400, "256 KiB are enough for 400 VMs");
    }
    let pids: Vec<i32> = match host.supervisor.try_wait().unwrap() {
        Some(_) => Vec::new(),
        None => vms.iter().map(|name| pid(&host, name)).collect(),
    };
    let _ = kill_process(Pid::from_raw(host.pid()).unwrap(), Signal::KILL);
    host.supervisor.wait().unwrap();
    host.next();
    assert_eq!(pid(&host, "a"), worker);
    for (name, before) in vms.iter().zip(pids) {
        assert_eq!(pid(&host, name), before);
    }
    // Of the one that was under way when memory ran out nothing is left, or it runs.
    for vm in host.ls() {
        assert_eq!(vm["state"], "running", "{vm}");
    }
    let vms: Vec<String> = host.ls().iter().map(|vm| vm["name"].as_str().unwrap().to_owned()).collect();
    let vms: Vec<&str> = vms.iter().map(String::as_str).collect();
    end(host, &vms);
}
