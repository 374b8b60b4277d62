//! The jail, read from the outside: a running worker, thread by thread, against the declared policy.

use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use vmsup_tests::host::{Host, guest_file};
use vmsup_tests::jailer::inspect;
use vmsup_tests::{names, program, user};

/// Fields of a `/proc/…/status`.
fn status(path: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k.to_owned(), v.trim().to_owned())).collect()
}

struct Running {
    host: Host,
    pid: i32,
}

/// Two vCPUs, a writable and a read-only disk.
fn running(user: &user::User) -> Running {
    let host = Host::start(user, &["--pool", "1"]);
    let mut disks = Vec::new();
    for (name, readonly) in [("a.img", false), ("b.img", true)] {
        let path = host.work.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid)).unwrap();
        disks.push(json!({ "path": path, "readonly": readonly }));
    }
    let file = host.file(
        "vm",
        &json!({
            "name": "vm", "cpus": 2, "memory_mib": 64,
            "boot": { "kernel": guest_file("deaf") }, "disks": disks,
        }),
    );
    host.vmsup(&["start", &file]).ok();
    host.said("vm", "deaf up");
    let pid = host.inspect("vm")["pid"].as_i64().unwrap() as i32;
    Running { host, pid }
}

fn users() -> Vec<user::User> {
    [Some(user::with_subuids()), user::without_subuids()].into_iter().flatten().collect()
}

#[test]
fn every_thread_is_filtered_without_capabilities_and_has_the_declared_name() {
    for user in users() {
        let vm = running(&user);
        let mut seen = Vec::new();
        for task in names(format!("/proc/{}/task", vm.pid)) {
            let status = status(&format!("/proc/{}/task/{task}/status", vm.pid));
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(u64::from_str_radix(&status[set], 16), Ok(0), "{set} of {}", status["Name"]);
            }
            assert_eq!(status["NoNewPrivs"], "1");
            assert_eq!(status["Seccomp"], "2", "{}", status["Name"]);
            assert_eq!(status["Seccomp_filters"], "2", "start-up and its own: {}", status["Name"]);
            seen.push(status["Name"].clone());
        }
        seen.sort();
        let kinds: BTreeSet<String> =
            seen.iter().map(|n| n.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-').to_owned()).collect();
        assert_eq!(seen.iter().filter(|n| n.starts_with("vcpu")).count(), 2, "{seen:?}");
        assert_eq!(seen.iter().filter(|n| *n == "reactor").count(), 1, "{seen:?}");
        for kind in kinds {
            // The last is the kernel's own: some hosts' KVM adds a thread to each process with a VM. It runs no code of
            // the process, and is under the same filters.
            let known = ["vmsup-worker", "reactor", "vcpu", "io", "kvm-nx-lpage-re"];
            assert!(known.contains(&&*kind), "{kind} of {seen:?}");
        }
    }
}

#[test]
fn uid_and_limits_are_those_of_the_policy() {
    let user = user::with_subuids();
    let vm = running(&user);
    let status = status(&format!("/proc/{}/status", vm.pid));
    let uids: BTreeSet<&str> = status["Uid"].split_whitespace().collect();
    assert_eq!(uids.len(), 1);
    let subuid = std::fs::read_to_string("/etc/subuid").unwrap();
    if subuid.lines().any(|l| l.starts_with(&format!("{}:", user.name))) {
        assert_ne!(uids.first().unwrap().parse::<u32>().unwrap(), user.uid);
        assert_eq!(status["Groups"], "", "no supplementary group");
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", vm.pid)).unwrap();
    let limit = |title: &str| -> Vec<String> {
        let line = limits.lines().find(|l| l.starts_with(title)).unwrap();
        line[title.len()..].split_whitespace().take(2).map(str::to_owned).collect()
    };
    let titles = [
        ("core", "Max core file size"),
        ("msgqueue", "Max msgqueue size"),
        ("nice", "Max nice priority"),
        ("nofile", "Max open files"),
        ("rtprio", "Max realtime priority"),
        ("sigpending", "Max pending signals"),
        ("stack", "Max stack size"),
    ];
    for (name, value) in policies::PROCESS_WORKER.rlimits {
        if *name == "nproc" {
            continue;
        }
        let title = titles.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no title for {name}")).1;
        assert_eq!(limit(title), [value.to_string(), value.to_string()], "{name}");
    }
    let number = |title: &str| limit(title)[1].parse::<u64>().unwrap();
    assert_eq!(
        number("Max processes"),
        16,
        "control, reactor, two vCPUs, two threads for each of two disks, eight spare"
    );
    assert_eq!(number("Max file size"), 1 << 20, "its writable disk");
    let beyond_ram = number("Max address space") - (64 << 20);
    assert!(beyond_ram < 64 << 20, "{beyond_ram} bytes beyond guest RAM");
    assert_eq!(number("Max locked memory"), 64 << 10);
}

#[test]
fn the_fds_are_the_declared_ones_and_the_root_is_empty() {
    for user in users() {
        let vm = running(&user);
        let seen = inspect(&user, vm.pid);
        assert_eq!(seen.environ_bytes, 0);
        assert_eq!(seen.root_entries, [""; 0]);
        let [mount] = &seen.mounts[..] else { panic!("{:?}", seen.mounts) };
        assert!(mount.contains(" / / ro,nosuid,nodev,noexec") && mount.contains("- tmpfs none ro,"), "{mount}");
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for (_, target) in &seen.fds {
            // Pipes and sockets have a number, files the test's directory in front.
            let target = target.strip_prefix(vm.host.work.path().to_str().unwrap()).unwrap_or(target);
            let kind =
                target.split_once(":[").map_or(target, |(kind, _)| if kind == "anon_inode" { target } else { kind });
            *kinds.entry(kind.to_owned()).or_default() += 1;
        }
        let declared = [
            ("/dev/null", 2),
            // The report pipe and the console's input.
            ("pipe", 2),
            // The control socket that listens, and the supervisor's connection.
            ("socket", 2),
            ("/memfd:vmsup-ram (deleted)", 1),
            ("/memfd:vmsup-console (deleted)", 1),
            ("/a.img", 1),
            ("/b.img", 1),
            ("anon_inode:kvm-vm", 1),
            ("anon_inode:kvm-vcpu:0", 1),
            ("anon_inode:kvm-vcpu:1", 1),
            ("anon_inode:[eventpoll]", 1),
            // The console's notification and input; interrupts of the serial port, the power device, two disks and the
            // entropy device; kicks of those three; completions of the two disks.
            ("anon_inode:[eventfd]", 12),
        ];
        assert_eq!(kinds, declared.map(|(kind, count)| (kind.to_owned(), count)).into());
    }
}

#[test]
fn namespaces_are_the_vms_own() {
    let user = user::with_subuids();
    let vm = running(&user);
    let other = vm.host.guest("other", "deaf", "");
    vm.host.vmsup(&["start", &other]).ok();
    let pid = vm.host.inspect("other")["pid"].as_i64().unwrap() as i32;
    let of = |pid: i32| -> BTreeSet<String> {
        let seen = inspect(&user, pid);
        let ours = |n: &String| policies::PROCESS_WORKER.namespaces.iter().any(|k| n.starts_with(&format!("{k}:")));
        seen.namespaces.into_iter().filter(ours).collect()
    };
    let (a, b) = (of(vm.pid), of(pid));
    assert_eq!(a.len(), policies::PROCESS_WORKER.namespaces.len(), "{a:?}");
    assert!(a.is_disjoint(&b), "{a:?} {b:?}");
    for kind in policies::PROCESS_WORKER.namespaces {
        let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().to_string_lossy().into_owned();
        assert!(!a.contains(&own), "{own} is the host's");
    }
}

#[test]
fn a_worker_cannot_be_read_by_a_process_of_its_own_uid() {
    if !rustix::process::geteuid().is_root() {
        return vmsup_tests::skip("a_worker_cannot_be_read_by_a_process_of_its_own_uid", "needs root to take its uid");
    }
    let vm = running(&user::with_subuids());
    let uid = status(&format!("/proc/{}/status", vm.pid))["Uid"].split_whitespace().next().unwrap().to_owned();
    for file in ["mem", "environ", "maps", "auxv"] {
        let path = format!("/proc/{}/{file}", vm.pid);
        let id = [format!("--reuid={uid}"), format!("--regid={uid}")];
        let output = std::process::Command::new("setpriv").args(id).args(["--clear-groups", "cat", &path]).output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("Permission denied") || text.contains("not permitted"), "{path}: {output:?}");
    }
}

/// No capability in any set that can be used, now or by exec without a set-uid program.
fn without_capabilities(status: &BTreeMap<String, String>) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&status[set], 16), Ok(0), "{set} of {}", status["Name"]);
    }
}

#[test]
fn the_supervisor_is_confined_on_every_thread() {
    let host = Host::start(&user::with_subuids(), &[]);
    for task in names(format!("/proc/{}/task", host.pid())) {
        let status = status(&format!("/proc/{}/task/{task}/status", host.pid()));
        assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("1", "2"), "{}", status["Name"]);
        without_capabilities(&status);
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", host.pid())).unwrap();
    let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    assert_eq!(policies::PROCESS_SUPERVISOR.rlimits, [("core", 0)]);
}

#[test]
fn the_jailer_has_one_thread_and_no_capability() {
    let host = Host::start(&user::with_subuids(), &[]);
    let status = status(&format!("/proc/{}/status", host.jailer()));
    assert_eq!((status["Threads"].as_str(), status["Seccomp"].as_str()), ("1", "0"), "as policies/ says of the jailer");
    without_capabilities(&status);
}

/// The system calls of a jailer and of what it makes until that is a program of its own (newuidmap, the worker), by
/// strace's log.
fn calls_before_exec(log: &str) -> BTreeSet<&str> {
    let mut programs = BTreeSet::new();
    let mut calls = BTreeSet::new();
    for line in log.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        // An exec that another process's call interrupted in the log.
        if rest.trim_start().starts_with("<... execve") && rest.ends_with("= 0") {
            programs.insert(pid);
        }
        let Some((call, _)) = rest.trim_start().split_once('(') else { continue };
        if !call.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') || programs.contains(pid) {
            continue;
        }
        calls.insert(call);
        // The first exec of all is that of the jailer itself.
        if call.starts_with("execve") && calls.len() > 1 && rest.ends_with("= 0") {
            programs.insert(pid);
        }
    }
    calls
}

#[test]
fn the_jailer_calls_what_its_policy_lists_and_nothing_else() {
    use vmsup_tests::jailer::Jailer;
    if std::process::Command::new("strace").arg("-V").output().is_err() {
        return vmsup_tests::skip(
            "the_jailer_calls_what_its_policy_lists_and_nothing_else",
            "strace is not installed (make deps)",
        );
    }
    let user = user::with_subuids();
    let folder = vmsup_tests::Scratch::new(&user);
    let logs = ["first", "next"].map(|name| folder.path().join(name));
    let trace = logs.each_ref().map(|log| ["strace", "-f", "-o", log.to_str().unwrap(), "--"]);
    {
        let mut jailer = Jailer::start_wrapped(&user, &trace[0], &program("vmsup-worker"), 1);
        let (worker, pidfd) = jailer.make(1);
        jailer.end(&worker, &pidfd);
        // One that never got its VM goes with its supervisor.
        jailer.make(2);
        jailer.hang_up();
        jailer.come_back();
        // A worker that outlives its jailer; an empty one of ours would not.
        let mut jailer = Jailer::start(&user, &program("vmsup-probe"), 0);
        jailer.make(1);
        assert_eq!(jailer.replace_wrapped(&trace[1]).living.len(), 1);
    }
    let logs = logs.map(|log| std::fs::read_to_string(log).unwrap());
    let calls: BTreeSet<&str> = logs.iter().flat_map(|log| calls_before_exec(log)).collect();
    assert!(calls.contains("pivot_root") && calls.contains("clone3"), "{calls:?}");
    let unlisted: Vec<_> = calls.iter().filter(|call| !policies::JAILER_CALLS.contains(call)).collect();
    assert!(unlisted.is_empty(), "{unlisted:?}");
}
