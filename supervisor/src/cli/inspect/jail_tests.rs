//! Tests of the jail's comparison, on a made-up worker that is as declared, and on ones that are not.

use super::super::proc::{Capabilities, Limit, Thread};
use super::*;

pub fn info() -> VmInfo {
    serde_json::from_value(serde_json::json!({
        "name": "a", "id": "1", "state": "running", "pid": 7, "owner": 1000, "cpus": 1, "memory_mib": 32,
        "nets": [{ "network": "default", "lease": 3, "interface": "vt3", "mac": "02:76:6d:00:00:02",
                   "address": "10.77.0.2", "prefix": 24, "gateway": "10.77.0.1", "mtu": 1500, "queues": 2, "forwards": [] }],
        "started_at": 0, "end": null, "desired": "running", "generation": 1, "spec_hash": "",
        "spec": { "name": "a", "cpus": 1, "memory_mib": 32, "boot": { "kernel": "/k" },
                  "disks": [{ "path": "/d0" }, { "path": "/d1", "readonly": true }] },
        "worker": { "pid": 7, "start_time": 1, "uid": 100001, "slot": 3, "warm": false, "limits": "held" }, "console": { "written": 0, "overwritten": 0 }
    }))
    .unwrap()
}

pub fn as_declared() -> (Process, Inspection) {
    let none = Capabilities { inheritable: 0, permitted: 0, effective: 0, bounding: 0, ambient: 0 };
    let thread = |tid, name: &str| Thread {
        tid,
        name: name.into(),
        kernel: false,
        capabilities: none,
        no_new_privs: true,
        seccomp: "filter".into(),
        seccomp_filters: Some(2),
    };
    let limit = |(name, value): &(&str, u64)| Limit { name: (*name).into(), soft: Some(*value), hard: Some(*value) };
    let process = Process {
        uids: vec![100001; 4],
        gids: vec![100001; 4],
        uid_map: vec![[0, 100001, 1]],
        gid_map: vec![[0, 100001, 1]],
        groups: vec![],
        threads: vec![thread(7, "vmsup-worker"), thread(9, "vcpu0")],
        rlimits: policies::PROCESS_WORKER.rlimits.iter().map(limit).collect(),
        cgroup: "/".into(),
    };
    let targets = [
        "/dev/null",
        "/dev/null",
        "pipe:[11]",
        "socket:[12]",
        "socket:[13]",
        "/dev/kvm",
        "/memfd:vmsup-ram (deleted)",
        "/k",
        "/d0",
        "/d1",
        "anon_inode:kvm-vm",
        "anon_inode:kvm-vcpu:0",
        "anon_inode:[eventfd]",
        "anon_inode:[eventpoll]",
        "/dev/net/tun",
        "/dev/net/tun",
    ];
    let inspection = Inspection {
        fds: targets.iter().enumerate().map(|(n, t)| (n as i32, (*t).to_owned())).collect(),
        environ_bytes: 0,
        root: "/".into(),
        root_entries: vec![],
        mounts: vec![],
        namespaces: policies::PROCESS_WORKER.namespaces.iter().map(|n| format!("{n}:[2]")).collect(),
        section: Ok(policies::section::bytes()),
    };
    (process, inspection)
}

fn found(change: impl FnOnce(&mut Process, &mut Inspection)) -> Vec<String> {
    let (mut process, mut inspection) = as_declared();
    change(&mut process, &mut inspection);
    let own = policies::PROCESS_WORKER.namespaces.iter().map(|n| format!("{n}:[1]")).collect();
    compare(&process, &inside(inspection, Some(&info()), own), &info())
}

fn compare(process: &Process, inside: &Inside, info: &VmInfo) -> Vec<String> {
    let uid = info.worker.as_ref().unwrap().uid;
    let parts = [of_process(process), of_ids(process, uid), of_inside(inside), of_files(inside, tap_queues(info))];
    parts.concat()
}

#[test]
fn a_jail_as_declared_has_no_deviation() {
    assert_eq!(found(|_, _| ()), Vec::<String>::new());
}

#[test]
fn each_deviation_is_named() {
    let one = |says: &str, change: &dyn Fn(&mut Process, &mut Inspection)| {
        let found = found(|p, i| change(p, i));
        assert_eq!(found.len(), 1, "{says}: {found:?}");
        assert!(found[0].contains(says), "{found:?}");
    };
    one("thread 9 (vcpu0) has a capability", &|p, _| p.threads[1].capabilities.ambient = 1);
    one("thread 9 (vcpu0) has no no_new_privs", &|p, _| p.threads[1].no_new_privs = false);
    one("thread 7 (vmsup-worker) has no seccomp filter", &|p, _| p.threads[0].seccomp = "disabled".into());
    one("thread 7 (vmsup-worker) has a capability", &|p, _| p.threads[0].capabilities.inheritable = 1 << 12);
    one("thread 7 (vmsup-worker) has a capability", &|p, _| p.threads[0].capabilities.permitted = 1 << 12);
    one("thread 7 (vmsup-worker) has a capability", &|p, _| p.threads[0].capabilities.effective = 1 << 12);
    one("thread 7 (vmsup-worker) has a capability", &|p, _| p.threads[0].capabilities.bounding = 1 << 40);
    for n in 0..4 {
        one("its supervisor says 100001", &|p, _| p.uids[n] = 0);
    }
    one("its gids are not one", &|p, _| p.gids[3] = 0);
    one("its uid map is empty", &|p, _| p.uid_map.clear());
    one("its uid map is 0 to 9 are 100001 to 100010, and not that of 100001 alone", &|p, _| p.uid_map[0][2] = 10);
    one("its uid map is 0 is 0, and not that of 100001 alone", &|p, _| p.uid_map[0][1] = 0);
    one("its gid map is 0 is 100001, 1 is 4", &|p, _| p.gid_map.push([1, 4, 1]));
    for (name, _) in policies::PROCESS_WORKER.rlimits {
        let says = format!("limit {name} ");
        one(&says, &|p, _| p.rlimits.iter_mut().find(|l| l.name == *name).unwrap().hard = None);
        one(&says, &|p, _| p.rlimits.retain(|l| l.name != *name));
    }
    for kind in policies::PROCESS_WORKER.namespaces {
        let says = format!("no {kind} namespace");
        one(&says, &|_, i| i.namespaces.retain(|n| !n.starts_with(&format!("{kind}:"))));
        one(&says, &|_, i| {
            i.namespaces
                .iter_mut()
                .filter(|n| n.starts_with(&format!("{kind}:")))
                .for_each(|n| *n = format!("{kind}:[1]"))
        });
    }
    one("has no policy section", &|_, i| i.section = Err("it has no policy section".into()));
    one("built from other policies", &|_, i| *i.section.as_mut().unwrap().last_mut().unwrap() ^= 1);
    one("limit core is unlimited", &|p, _| p.rlimits.iter_mut().find(|l| l.name == "core").unwrap().hard = None);
    one("limit nofile cannot be read", &|p, _| p.rlimits.retain(|l| l.name != "nofile"));
    one("supplementary groups", &|p, _| p.groups = vec![27]);
    one("no net namespace", &|_, i| i.namespaces.retain(|n| !n.starts_with("net:")));
    one("no pid namespace", &|_, i| {
        let n = i.namespaces.iter_mut().find(|n| n.starts_with("pid:")).unwrap();
        *n = "pid:[1]".into();
    });
    one("environment has 5 bytes", &|_, i| i.environ_bytes = 5);
    one("root directory has entries: etc", &|_, i| i.root_entries = vec!["etc".into()]);
    one("fd 30 (/etc/shadow) is not declared", &|_, i| i.fds.push((30, "/etc/shadow".into())));
    one("it holds 3 queues of TAPs, and its networks have 2", &|_, i| i.fds.push((31, "/dev/net/tun".into())));
    one("fd 1 (/dev/tty) is not declared", &|_, i| i.fds[1].1 = "/dev/tty".into());
}

#[test]
fn every_file_says_what_it_is_for() {
    let (_, inspection) = as_declared();
    let inside = inside(inspection, Some(&info()), vec![]);
    let purposes: Vec<&str> = inside.fds.iter().map(|fd| fd.purpose.as_deref().unwrap()).collect();
    assert!(purposes.contains(&"disk 0, read and write") && purposes.contains(&"disk 1, read only"), "{purposes:?}");
    assert!(purposes.contains(&"KVM's vCPU 0") && purposes.contains(&"guest RAM"), "{purposes:?}");
    assert!(purposes.contains(&"the kernel image, read only"), "{purposes:?}");
    assert!(purposes.contains(&"a queue of a network interface's TAP"), "{purposes:?}");
}

#[test]
fn a_tap_of_a_vm_without_networks_is_not_declared() {
    let (process, inspection) = as_declared();
    let mut info = info();
    info.summary.nets.clear();
    let own = policies::PROCESS_WORKER.namespaces.iter().map(|n| format!("{n}:[1]")).collect();
    let found = compare(&process, &inside(inspection, Some(&info), own), &info);
    assert_eq!(found, ["fd 14 (/dev/net/tun) is not declared", "fd 15 (/dev/net/tun) is not declared"]);
}
