//! `vmsup apply` and `vmsup serve --watch` with real VMs, the supervisor under its filter.

use serde_json::{Value, json};
use std::path::PathBuf;
use vmsup_tests::host::{Host, guest_file};
use vmsup_tests::{Scratch, eventually, user};

/// A directory of VMs' files.
struct Fleet(Scratch);

impl Fleet {
    fn new() -> Fleet {
        let fleet = Fleet(Scratch::new(&user::with_subuids()));
        std::fs::create_dir(fleet.path()).unwrap();
        fleet
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("fleet")
    }

    fn name(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }

    /// Writes the file of a guest that ends when its power button is pressed, with more or other fields.
    fn vm(&self, name: &str, more: Value) {
        let boot = json!({ "kernel": guest_file("power"), "cmdline": "" });
        let mut spec = json!({ "name": name, "cpus": 1, "memory_mib": 32, "boot": boot });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        std::fs::write(self.path().join(".new"), spec.to_string()).unwrap();
        std::fs::rename(self.path().join(".new"), self.path().join(format!("{name}.json"))).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.path().join(format!("{name}.json"))).unwrap();
    }
}

fn last_line(output: &str) -> &str {
    output.lines().next_back().unwrap_or_default()
}

fn pid(host: &Host, name: &str) -> i64 {
    host.inspect(name)["pid"].as_i64().unwrap_or_default()
}

#[test]
fn apply_makes_changes_and_removes_vms_and_leaves_the_others_alone() {
    let host = Host::start(&user::with_subuids(), &["--pool", "1"]);
    let fleet = Fleet::new();
    host.vmsup(&["start", &host.guest("hand", "power", "")]).ok();
    for name in ["one", "two", "three"] {
        fleet.vm(name, json!({}));
    }
    let apply = ["apply", "--prune", "--timeout", "5", &fleet.name()];
    let said = host.vmsup(&apply).ok();
    assert_eq!(last_line(&said), "3 created, 0 updated in place, 0 restarted, 0 removed, 0 unchanged, 0 failed");
    let before = ["hand", "one", "two", "three"].map(|name| pid(&host, name));
    assert!(before.iter().all(|pid| *pid > 0), "{before:?}");
    let said = host.vmsup(&apply).ok();
    assert_eq!(said, "0 created, 0 updated in place, 0 restarted, 0 removed, 3 unchanged, 0 failed\n");
    fleet.vm("one", json!({ "restart": "on-failure" }));
    fleet.vm("two", json!({ "memory_mib": 40 }));
    fleet.remove("three");
    let said = host.vmsup(&apply).ok();
    assert_eq!(last_line(&said), "0 created, 1 updated in place, 1 restarted, 1 removed, 0 unchanged, 0 failed");
    assert_eq!((pid(&host, "hand"), pid(&host, "one")), (before[0], before[1]));
    assert!(![0, before[2]].contains(&pid(&host, "two")));
    assert_eq!(host.inspect("two")["memory_mib"], 40);
    assert_eq!((host.state("three"), host.state("two")), (String::new(), "running".into()));
    // What rests is started.
    host.vmsup(&["kill", "one"]).ok();
    let said = host.vmsup(&apply).ok();
    assert_eq!(said.lines().next(), Some("one started"), "{said}");
    assert_eq!(host.state("one"), "running");
    // What was there before is another's; a file that is wrong changes nothing.
    fleet.vm("hand", json!({}));
    assert_eq!(host.vmsup(&["diff", &fleet.name()]).status, Some(2));
    fleet.remove("hand");
    std::fs::write(fleet.path().join("two.json"), "{").unwrap();
    fleet.remove("one");
    let refused = host.vmsup(&apply);
    assert_eq!(refused.status, Some(2), "{refused:?}");
    assert_eq!((host.state("one"), host.state("two")), ("running".into(), "running".into()));
}

#[test]
fn a_watched_directory_is_kept_by_a_supervisor_under_its_filter() {
    let fleet = Fleet::new();
    fleet.vm("one", json!({}));
    let host = Host::start(&user::with_subuids(), &["--pool", "1", "--watch", &fleet.name(), "--watch-prune"]);
    eventually("a VM that was wanted at the start", || host.state("one") == "running");
    fleet.vm("two", json!({}));
    eventually("one that came", || host.state("two") == "running");
    let before = pid(&host, "one");
    fleet.vm("one", json!({ "memory_mib": 40 }));
    eventually("one that was changed", || host.inspect("one")["memory_mib"] == 40 && host.state("one") == "running");
    assert_ne!(pid(&host, "one"), before);
    fleet.remove("two");
    eventually("one that went", || host.state("two").is_empty());
    // A file that is wrong is said, and the VM stays what it was.
    fleet.vm("one", json!({ "cpus": 0 }));
    eventually("the fault to be said", || host.log().contains("0 is not possible; give 1 to 32 vCPUs"));
    fleet.vm("one", json!({ "memory_mib": 40 }));
    // The directory goes, and another takes its place.
    let old = fleet.0.path().join("old");
    std::fs::rename(fleet.path(), &old).unwrap();
    eventually("that it is gone to be said", || host.log().contains("cannot be watched"));
    assert_eq!(host.state("one"), "running");
    host.vmsup(&["ls"]).ok();
}
