//! Many VMs at once: the supervisor that comes back has all of them. (`make bench` says how long it takes and what it needs.)

use std::collections::BTreeMap;
use vmsup_tests::host::Host;
use vmsup_tests::{eventually, names, user};

const COUNT: usize = 200;
/// How many commands run at the same time.
const AT_ONCE: usize = 8;

/// What says that a VM is the one that it was: by name, its worker, its id, when it began to run, how often it was restarted.
fn all(host: &Host) -> BTreeMap<String, [serde_json::Value; 4]> {
    let of = |vm: serde_json::Value| {
        let name = vm["name"].as_str().unwrap().to_owned();
        assert_eq!(vm["state"], "running", "{vm}");
        (name, ["pid", "id", "started_at", "restarts"].map(|key| vm[key].clone()))
    };
    host.ls().into_iter().map(of).collect()
}

#[test]
fn two_hundred_vms_run_on_under_the_supervisor_that_comes_back() {
    let mut host = Host::start(&user::with_subuids(), &["--pool", "8"]);
    std::thread::scope(|scope| {
        for first in 0..AT_ONCE {
            let host = &host;
            scope.spawn(move || {
                for n in (first..COUNT).step_by(AT_ONCE) {
                    host.vmsup(&["start", &host.guest(&format!("vm{n}"), "deaf", "")]).ok();
                }
            });
        }
    });
    let before = all(&host);
    assert_eq!(before.len(), COUNT);
    assert!(before.values().all(|[pid, ..]| pid.is_u64()), "{before:?}");
    host.replace();
    assert_eq!(all(&host), before);
    // And once more, from what the adopting one wrote.
    host.replace();
    assert_eq!(all(&host), before);
    let vms: Vec<&str> = before.keys().map(String::as_str).collect();
    host.vmsup(&["kill", "--all"]).ok();
    host.remove(&vms);
    eventually("no handle", || host.handles().is_empty());
    host.leave();
    eventually("no jailer", || host.jailers().is_empty());
    assert_eq!(names(host.folder().join("workers")), [""; 0]);
}
