//! A host on which the supervisor is killed again and again, beside a VM that has nothing to do with it.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use vmsup_tests::host::{Host, guest_file};
use vmsup_tests::{Scratch, eventually, names, user};

pub mod scenarios;

const POOL: usize = 1;

/// A directory of VMs' files.
pub struct Fleet(Scratch);

impl Fleet {
    fn new() -> Fleet {
        let fleet = Fleet(Scratch::new(&user::with_subuids()));
        std::fs::create_dir(fleet.path()).unwrap();
        fleet
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("fleet")
    }

    pub fn name(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }

    /// Writes the file of a guest that ends when its power button is pressed, with more or other fields.
    pub fn vm(&self, name: &str, more: Value) {
        let boot = json!({ "kernel": guest_file("power"), "cmdline": "" });
        let mut spec = json!({ "name": name, "cpus": 1, "memory_mib": 32, "boot": boot });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        std::fs::write(self.path().join(".new"), spec.to_string()).unwrap();
        std::fs::rename(self.path().join(".new"), self.path().join(format!("{name}.json"))).unwrap();
    }

    pub fn empty(&self) {
        for name in names(self.path()) {
            std::fs::remove_file(self.path().join(name)).unwrap();
        }
    }
}

/// The host.
pub struct Scene {
    pub host: Host,
    pub fleet: Fleet,
    /// What a scenario wants to know later.
    pub noted: Value,
    /// What the supervisor of a scenario is armed with.
    pub faults: String,
    bystander: i64,
    /// How many fds a supervisor has open.
    fds: usize,
    /// The supervisor has faults, and one fd more for them: its own pidfd.
    armed: bool,
}

pub fn lives(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

impl Scene {
    /// A host whose supervisor watches a directory where that is wanted.
    pub fn new(watch: bool) -> Scene {
        let fleet = Fleet::new();
        let name = fleet.name();
        let watching = ["--watch", &name, "--watch-prune"];
        let args = [&["--pool", "1"][..], if watch { &watching } else { &[] }].concat();
        let host = Host::start(&user::with_subuids(), &args);
        host.vmsup(&["start", &host.guest("bystander", "deaf", "")]).ok();
        let bystander = host.inspect("bystander")["pid"].as_i64().unwrap();
        let (noted, faults) = (Value::Null, String::new());
        let mut scene = Scene { host, fleet, noted, faults, bystander, fds: usize::MAX - 1, armed: false };
        scene.host.replace();
        scene.nothing_but_the_bystander();
        scene.fds = scene.host.fds();
        scene
    }

    /// A supervisor with these faults takes over, or dies at that.
    pub fn arm(&mut self, faults: &str) {
        self.host.supervisor.kill().unwrap();
        self.host.supervisor.wait().unwrap();
        self.host.next_with_faults(faults, 1);
        eventually("a supervisor", || {
            UnixStream::connect(self.socket()).is_ok() || self.host.supervisor.try_wait().unwrap().is_some()
        });
        self.armed = true;
    }

    fn socket(&self) -> PathBuf {
        self.host.folder().join("api.sock")
    }

    /// A command to the supervisor that is there: where it is none, none is started.
    pub fn asks(&self, args: &[&str]) -> Command {
        let socket = self.socket();
        self.host.command(&[&["--socket", socket.to_str().unwrap()], args].concat())
    }

    /// How often a step was made to hang.
    pub fn hung(&self) -> usize {
        self.host.log().matches("vmsup: hangs at ").count()
    }

    /// Waits for the end of the supervisor, whom somebody `asks` to leave; true where it was killed, false where it left in
    /// good order.
    pub fn was_killed(&mut self, asks: bool) -> bool {
        if asks {
            // Gone already, it hears nothing.
            let pid = Pid::from_child(&self.host.supervisor);
            let _ = kill_process(pid, Signal::TERM);
        }
        let mut status = None;
        eventually("the end of the supervisor", || {
            status = self.host.supervisor.try_wait().unwrap();
            status.is_some()
        });
        let status = status.unwrap();
        assert!(status.success() || status.signal() == Some(9), "{status:?}");
        !status.success()
    }

    /// The next supervisor, a whole one: all that runs is the bystander and what the scenario accounts for.
    pub fn mend(&mut self) {
        self.host.next();
        self.armed = false;
        let bystander = self.host.inspect("bystander");
        assert_eq!((&bystander["pid"], &bystander["state"]), (&json!(self.bystander), &json!("running")));
    }

    /// No VM, process, socket, handle or fd but those of the bystander and the pool.
    pub fn nothing_but_the_bystander(&self) {
        let vms: Vec<Value> = self.host.ls().into_iter().map(|vm| vm["name"].clone()).collect();
        assert_eq!(vms, ["bystander"]);
        self.nothing_but(1);
        eventually("no fd more than before", || self.host.fds() <= self.fds + usize::from(self.armed));
    }

    /// No process, socket or handle but those of so many VMs and the pool.
    pub fn nothing_but(&self, vms: usize) {
        let host = &self.host;
        eventually("no worker but the VMs' and the pool's", || host.workers().len() == POOL + vms);
        // Each worker has its control socket, and each that was handed over a note of its pid.
        let count = |end: &str| {
            let all = names(host.folder().join("workers"));
            all.iter().filter(|name| name.starts_with('w') && name.ends_with(end)).count()
        };
        eventually("no socket but the VMs' and the pool's", || (count(".sock"), count(".pid")) == (POOL + vms, vms));
        eventually("no handle but the VMs'", || host.handles().len() == vms);
    }

    /// Whatever there is of the scenario's VM goes.
    pub fn clean(&self) {
        self.fleet.empty();
        self.host.vmsup(&["rm", "--force", "v"]);
        self.host.vmsup(&["rm", "--force", "other"]);
        self.nothing_but_the_bystander();
    }

    /// All ends, and nothing of anything is left.
    pub fn leaves_nothing(mut self) {
        self.host.vmsup(&["kill", "bystander"]).ok();
        self.host.remove(&["bystander"]);
        let workers = self.host.workers();
        self.host.leave();
        let host = &self.host;
        eventually("no jailer", || host.jailers().is_empty());
        eventually("no worker", || !workers.iter().any(|pid| lives(*pid)));
        let left = [names(host.folder().join("workers")), names(host.folder().join("handles"))].concat();
        assert!(left.is_empty(), "{left:?}");
        // Nor does the database know of anything.
        self.host.next();
        assert!(self.host.ls().is_empty());
        self.host.leave();
    }
}
