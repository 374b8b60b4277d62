//! Started by a service manager: a jailer that a socket unit starts serves like a child; and systemd itself, booted in
//! namespaces of the test's own, starts a VM with a network by the installed units.

use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use vmsup_tests::host::{Host, children};
use vmsup_tests::installed::{install, me};
use vmsup_tests::user::{self, User};
use vmsup_tests::{Scratch, as_root, eventually, program, skip};

/// A service manager with one socket unit: when somebody connects it starts a jailer with the listening socket as its standard
/// input, as vmsup-jailer.socket does. `folder` is the jailer's working directory in the runtime directory of who connects.
fn manager(user: &User, folder: &'static str) -> (Scratch, std::thread::JoinHandle<Child>) {
    let scratch = Scratch::new(user);
    let listener: OwnedFd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let path = scratch.path().join("jailer.sock");
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    let user = user.clone();
    let thread = std::thread::spawn(move || {
        rustix::event::poll(&mut [PollFd::new(&listener, PollFlags::IN)], None).unwrap();
        let runtime = runtime_of_who_names(path.to_str().unwrap());
        let mut command = user.command(program("vmsup-jailer"));
        command.args(["serve", "--pool", "1", "--worker"]).arg(program("vmsup-worker"));
        command.current_dir(Path::new(&runtime).join(folder)).stdin(Stdio::from(listener)).spawn().unwrap()
    });
    (scratch, thread)
}

/// XDG_RUNTIME_DIR of the process that has `word` on its command line.
fn runtime_of_who_names(word: &str) -> String {
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let has = |path: &PathBuf| {
        std::fs::read(path.join("cmdline")).is_ok_and(|line| line.split(|b| *b == 0).any(|w| w == word.as_bytes()))
    };
    let process = processes.filter(|path| path.join("environ").exists()).find(has).expect("who connected");
    let environ = String::from_utf8(std::fs::read(process.join("environ")).unwrap()).unwrap();
    environ.split('\0').find_map(|v| v.strip_prefix("XDG_RUNTIME_DIR=")).unwrap().to_owned()
}

#[test]
fn a_jailer_of_a_service_manager_serves_like_a_child() {
    let user = user::with_subuids();
    let (scratch, jailer) = manager(&user, "vmsup/workers");
    let socket = scratch.path().join("jailer.sock");
    let mut host = Host::start(&user, &["--jailer-socket", socket.to_str().unwrap()]);
    let mut jailer = jailer.join().unwrap();
    assert_eq!(children(host.pid()), [0; 0], "it has no child");
    let version = || -> serde_json::Value { serde_json::from_str(&host.vmsup(&["version", "--json"]).ok()).unwrap() };
    assert!(version().to_string().contains(&format!("\"pid\":{}", jailer.id())), "{}", version());
    let file = host.file(
        "first",
        &serde_json::json!({ "name": "first", "cpus": 1, "memory_mib": 32, "boot": { "builtin": "hello" } }),
    );
    // From its start to its end.
    let ran = host.vmsup(&["run", "--rm", &file]);
    assert!(ran.status.is_some() && !ran.out.is_empty(), "{ran:?}");
    // Its end is noticed, with nothing but the hang-up and the pid that it said: the supervisor, which can make no new one,
    // leaves in good order, and leaves the VM.
    host.vmsup(&["start", &host.guest("second", "echo", "")]).ok();
    let worker = host.ls().iter().find(|vm| vm["name"] == "second").unwrap()["pid"].as_i64().unwrap();
    jailer.kill().unwrap();
    jailer.wait().unwrap();
    assert!(host.supervisor.wait().unwrap().success(), "{}", host.log());
    assert!(host.log().contains("the jailer is gone"), "{}", host.log());
    assert!(Path::new(&format!("/proc/{worker}")).exists(), "the VM lives on");
    let worker_pid = rustix::process::Pid::from_raw(i32::try_from(worker).unwrap()).unwrap();
    rustix::process::kill_process(worker_pid, rustix::process::Signal::KILL).unwrap();
    eventually("the VM to end", || !Path::new(&format!("/proc/{worker}")).exists());
}

#[test]
fn a_jailer_that_cannot_be_used_is_refused_with_a_sentence() {
    let user = user::with_subuids();
    let serve = |socket: &Path| {
        let runtime = Scratch::new(&user);
        let mut command = user.command(program("vmsup"));
        command.args(["serve", "--jailer-socket"]).arg(socket).env("XDG_RUNTIME_DIR", runtime.path());
        let ended = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        String::from_utf8_lossy(&ended.stderr).into_owned()
    };
    let nobody = serve(Path::new("/nonexistent/jailer.sock"));
    assert!(nobody.contains("systemctl start vmsup-jailer.socket"), "{nobody}");
    let (scratch, jailer) = manager(&user, "vmsup");
    let elsewhere = serve(&scratch.path().join("jailer.sock"));
    assert!(elsewhere.contains("does not work in") && elsewhere.contains("vmsup/workers"), "{elsewhere}");
    // It leaves with who found fault with it.
    assert!(jailer.join().unwrap().wait().unwrap().success());
}

/// systemd as pid 1 of namespaces of its own, with vmsup installed (`tests/service-manager`).
struct Manager {
    process: Child,
    init: i32,
    _scratch: (Scratch, Scratch),
}

impl Manager {
    fn boot() -> Manager {
        let (root, dest) = (Scratch::new(&me()), Scratch::new(&me()));
        install(dest.path(), "/usr", "/etc");
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(dest.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("service-manager");
        let log = std::fs::File::create(root.path().join("log")).unwrap();
        let mut command = Command::new(script);
        command.arg(root.path()).arg(dest.path()).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let process = command.spawn().unwrap();
        let mut manager = Manager { process, init: 0, _scratch: (root, dest) };
        let said = |m: &Manager| std::fs::read_to_string(m._scratch.0.path().join("log")).unwrap_or_default();
        eventually("systemd to run", || {
            assert!(manager.process.try_wait().unwrap().is_none(), "it ended: {}", said(&manager));
            manager.init = children(manager.process.id() as i32).first().copied().unwrap_or(0);
            std::fs::read_to_string(format!("/proc/{}/comm", manager.init)).is_ok_and(|c| c == "systemd\n")
                && manager.run(&["systemctl", "is-system-running"]).0.trim() == "running"
        });
        manager
    }

    fn run(&self, command: &[&str]) -> (String, bool) {
        let mut enter = Command::new("nsenter");
        enter.args(["-t", &self.init.to_string(), "-m", "-p", "-u", "-i", "-n", "-C", "--"]);
        enter.args(["timeout", "30", "sh", "-c", "cd / && exec \"$@\"", "sh"]).args(command);
        let output = enter.env_clear().env("PATH", "/usr/sbin:/usr/bin").stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (text, output.status.success())
    }

    fn ok(&self, command: &[&str]) -> String {
        let (said, fine) = self.run(command);
        assert!(fine, "{command:?}: {said}\n{}", self.run(&["journalctl", "--no-pager", "-n", "60"]).0);
        said
    }

    /// As the system user vmsup.
    fn vmsup(&self, args: &[&str]) -> String {
        self.ok(&[&["setpriv", "--reuid=vmsup", "--regid=vmsup", "--init-groups", "--", "vmsup"], args].concat())
    }

    /// What `systemctl show` says of a unit.
    fn show(&self, unit: &str, property: &str) -> String {
        self.ok(&["systemctl", "show", "-P", property, unit]).trim().to_owned()
    }

    /// A unit's main process; 0 where there is none.
    fn main_pid(&self, unit: &str) -> String {
        self.show(unit, "MainPID")
    }

    /// Runs a command, and waits until the unit has another main process.
    fn replaces(&self, unit: &str, command: &[&str]) {
        let before = self.main_pid(unit);
        self.ok(command);
        eventually(&format!("another {unit} after {command:?}"), || {
            let now = self.main_pid(unit);
            now != "0" && now != before && self.show(unit, "ActiveState") == "active"
        });
    }

    /// State and pid of the VM `one`.
    fn one(&self) -> (String, i64) {
        let list: serde_json::Value = serde_json::from_str(&self.vmsup(&["ls", "--json"])).unwrap();
        let one = list.as_array().unwrap().iter().find(|vm| vm["name"] == "one").unwrap();
        (one["state"].as_str().unwrap().to_owned(), one["pid"].as_i64().unwrap_or(0))
    }

    /// Everything that VMs may leave in the runtime directory, and the workers.
    fn traces(&self) -> String {
        let script = "ls /run/vmsup/handles; ls /run/vmsup/workers | grep -c '^w'; pgrep -c vmsup-w";
        self.run(&["sh", "-c", script]).0.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// A line of the status of the newest process of this name.
    fn status(&self, name: &str, line: &str) -> String {
        let pid = self.ok(&["pgrep", "-n", "-x", name]);
        let status = self.ok(&["cat", &format!("/proc/{}/status", pid.trim())]);
        let found = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
        found.unwrap_or_else(|| panic!("{line} in {status}")).trim().to_owned()
    }
}

impl Manager {
    /// With the units started, and a VM `one` in the network.
    fn with_a_vm(&self) {
        self.ok(&["systemctl", "start", "vmsup-nft", "vmsup-netd", "vmsup"]);
        self.ok(&[
            "sh",
            "-c",
            "cat > /var/lib/vmsup/vm.json <<E\n\
            { \"name\": \"one\", \"cpus\": 1, \"memory_mib\": 32, \"boot\": { \"builtin\": \"net\" },\n\
            \"disks\": [ { \"path\": \"disk.img\" } ], \"nets\": [ { \"network\": \"default\" } ] }\nE\n\
            truncate -s 1M /var/lib/vmsup/disk.img && chown vmsup /var/lib/vmsup/disk.img",
        ]);
        self.vmsup(&["start", "/var/lib/vmsup/vm.json"]);
        eventually("the guest to have its address", || self.vmsup(&["logs", "one"]).contains("NET "));
    }

    /// The address of its lease.
    fn address(&self) -> String {
        let leases = self.vmsup(&["net", "leases"]);
        leases.split_whitespace().find(|w| w.starts_with("10.77.")).unwrap_or_else(|| panic!("{leases}")).to_owned()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // The namespaces' processes end with their pid 1; then their cgroups are empty.
        let name = format!("vmsup-test-{}", self.process.id());
        let trees = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for tree in trees.chain(["/sys/fs/cgroup".into()]) {
            let group = tree.join(&name);
            let gone = || {
                let mut find = Command::new("find");
                let _ = find.arg(&group).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", "+"]).output();
                !group.exists()
            };
            if group.exists() && !std::thread::panicking() {
                eventually("the cgroups to be empty", gone);
            }
        }
    }
}

/// True where systemd can be booted and has all that the units need.
fn ready(name: &str) -> bool {
    let needed = ["/lib/systemd/systemd", "/usr/sbin/nft", "/usr/bin/newuidmap", "/dev/kvm"];
    if !as_root(name) {
        return false;
    }
    let missing = needed.iter().find(|file| !Path::new(file).exists());
    if let Some(missing) = missing {
        skip(name, &format!("{missing} is not there"));
    }
    missing.is_none()
}

#[test]
fn the_units_start_a_vm_with_a_network_under_systemd() {
    let name = "the_units_start_a_vm_with_a_network_under_systemd";
    if !ready(name) {
        return;
    }
    let manager = Manager::boot();
    manager.with_a_vm();
    for unit in ["vmsup-nft", "vmsup-netd", "vmsup", "vmsup-jailer", "vmsup.socket", "vmsup-jailer.socket"] {
        assert_eq!(manager.show(unit, "ActiveState"), "active", "{unit}");
    }
    let address = manager.address();
    let answers = || eventually("the guest to answer", || manager.run(&["ping", "-c1", "-W1", &address]).1);
    answers();

    // One capability for netd, none for the others; a uid of its own for each worker, so newuidmap works.
    assert_eq!(u64::from_str_radix(&manager.status("vmsup-netd", "CapEff"), 16).unwrap(), 1 << 12);
    for process in ["vmsup", "vmsup-jailer", "vmsup-worker"] {
        assert_eq!(u64::from_str_radix(&manager.status(process, "CapEff"), 16).unwrap(), 0, "{process}");
        assert_eq!(manager.status(process, "Seccomp"), "2", "{process}");
        let uid: u32 = manager.status(process, "Uid").split_whitespace().next().unwrap().parse().unwrap();
        assert_ne!(uid, 0, "{process}");
        assert_eq!(process == "vmsup-worker", uid >= 100_000, "{process} runs as {uid}");
    }
    let doctor = manager.run(&["setpriv", "--reuid=vmsup", "--regid=vmsup", "--init-groups", "vmsup", "doctor"]).0;
    for found in ["each VM has a uid of its own", "CAP_NET_ADMIN alone", "active: systemd starts supervisor and jailer"]
    {
        assert!(doctor.contains(found), "{found}: {doctor}");
    }
    assert!(
        doctor.contains("/var/lib/vmsup;") && doctor.contains("the supervisor writes what its VMs are"),
        "{doctor}"
    );

    // Rules loaded again, netd told to read its file, killed, and started again: the guest answers, its lease is known.
    manager.ok(&["systemctl", "reload", "vmsup-nft"]);
    manager.ok(&["systemctl", "reload", "vmsup-netd"]);
    manager.ok(&["systemctl", "kill", "--signal=KILL", "vmsup-netd"]);
    manager.ok(&["systemctl", "restart", "vmsup-netd"]);
    answers();
    assert!(manager.vmsup(&["net", "leases"]).contains(&address));

    manager.ok(&["systemctl", "stop", "vmsup", "vmsup-jailer", "vmsup-netd"]);
}

#[test]
fn under_systemd_a_vm_outlives_supervisor_and_jailer() {
    let name = "under_systemd_a_vm_outlives_supervisor_and_jailer";
    if !ready(name) {
        return;
    }
    let manager = Manager::boot();
    manager.with_a_vm();
    let address = manager.address();
    let (state, pid) = manager.one();
    assert_eq!(state, "running");
    let said = manager.vmsup(&["logs", "one"]);
    assert!(said.contains("NET "), "{said}");
    let still_there = |what: &str| {
        assert_eq!(manager.one(), ("running".into(), pid), "{what}");
        // What it said before is known, it answers, and the lease is its own.
        let logs = manager.vmsup(&["logs", "one"]);
        assert!(logs.starts_with(&said), "{what}: {logs}");
        eventually(what, || manager.run(&["ping", "-c1", "-W1", &address]).1);
        assert_eq!(manager.address(), address, "{what}");
        assert_eq!(manager.show("vmsup", "StatusText"), "1 VM runs.", "{what}");
    };
    let jailer = manager.main_pid("vmsup-jailer");
    manager.replaces("vmsup", &["systemctl", "restart", "vmsup"]);
    still_there("restart vmsup");
    manager.replaces("vmsup", &["systemctl", "kill", "--signal=KILL", "vmsup"]);
    still_there("kill vmsup");
    assert_eq!(manager.main_pid("vmsup-jailer"), jailer, "the same jailer all the time");
    manager.replaces("vmsup", &["systemctl", "kill", "--kill-who=main", "--signal=KILL", "vmsup-jailer"]);
    still_there("kill vmsup-jailer");
    manager.replaces("vmsup", &["systemctl", "restart", "vmsup-jailer"]);
    still_there("restart vmsup-jailer");

    // Nobody is there but the socket, and a client.
    manager.ok(&["systemctl", "stop", "vmsup"]);
    assert_eq!(manager.main_pid("vmsup"), "0");
    still_there("a client starts the supervisor");

    // One that hangs is replaced, in less time than the shipped unit gives it.
    manager.ok(&[
        "sh",
        "-c",
        "mkdir -p /run/systemd/system/vmsup.service.d && printf '[Service]\\nWatchdogSec=2\\n' \
         >/run/systemd/system/vmsup.service.d/watchdog.conf && systemctl daemon-reload",
    ]);
    manager.replaces("vmsup", &["systemctl", "restart", "vmsup"]);
    manager.replaces("vmsup", &["systemctl", "kill", "--signal=STOP", "vmsup"]);
    still_there("a supervisor that hung");

    // Its power button, and nothing is left of it but what is warm.
    assert_eq!(manager.show("vmsup-guests", "ActiveState"), "active");
    manager.ok(&["systemctl", "stop", "vmsup-guests"]);
    // Its jailer was a later one than the one that made it: nobody can tell how it ended.
    assert_eq!(manager.one(), ("crashed".into(), 0));
    manager.vmsup(&["rm", "one"]);
    eventually("two warm workers and nothing else", || manager.traces() == "2 2");
    assert_eq!(manager.vmsup(&["ls", "--json"]).trim(), "[]");
    assert!(!manager.run(&["ping", "-c1", "-W1", &address]).1, "its lease is gone");
    manager.ok(&["systemctl", "stop", "vmsup.socket", "vmsup"]);
    eventually("no worker and no jailer", || !manager.run(&["pgrep", "vmsup-[jw]"]).1);
}
