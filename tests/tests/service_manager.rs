//! Started by a service manager: a jailer that a socket unit starts serves like a child; and systemd itself, booted in
//! namespaces of the test's own, starts a VM with a network by the installed units.

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use vmsup_tests::host::{Host, children};
use vmsup_tests::installed::{install, me};
use vmsup_tests::user::{self, User};
use vmsup_tests::{Scratch, as_root, eventually, program, skip};

/// A service manager with one socket unit: starts a jailer for each connection, as vmsup-jailer.socket does. `folder` is
/// the jailer's working directory in the runtime directory of who connects.
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
        let connection = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC).unwrap();
        let peer = rustix::net::sockopt::socket_peercred(&connection).unwrap().pid;
        let environ = std::fs::read(format!("/proc/{}/environ", peer.as_raw_nonzero())).unwrap();
        let environ = String::from_utf8(environ).unwrap();
        let runtime = environ.split('\0').find_map(|v| v.strip_prefix("XDG_RUNTIME_DIR=")).unwrap();
        let mut command = user.command(program("vmsup-jailer"));
        command.args(["serve", "--pool", "1", "--worker"]).arg(program("vmsup-worker"));
        command.current_dir(Path::new(runtime).join(folder)).stdin(Stdio::from(connection)).spawn().unwrap()
    });
    (scratch, thread)
}

#[test]
fn a_jailer_of_a_service_manager_serves_like_a_child() {
    let user = user::with_subuids();
    let (scratch, jailer) = manager(&user, "vmsup/workers");
    let socket = scratch.path().join("jailer.sock");
    let host = Host::start(&user, &["--jailer-socket", socket.to_str().unwrap()]);
    let mut jailer = jailer.join().unwrap();
    assert_eq!(children(host.pid()), [0; 0], "it has no child");
    let version = || -> serde_json::Value { serde_json::from_str(&host.vmsup(&["version", "--json"]).ok()).unwrap() };
    assert!(version().to_string().contains(&format!("\"pid\":{}", jailer.id())), "{}", version());
    let file = |name: &str| {
        host.file(
            name,
            &serde_json::json!({
                "name": name, "cpus": 1, "memory_mib": 32, "boot": { "builtin": "hello" },
            }),
        )
    };
    // From its start to its end.
    let ran = host.vmsup(&["run", "--rm", &file("first")]);
    assert!(ran.status.is_some() && !ran.out.is_empty(), "{ran:?}");
    // Its end is noticed, with nothing but the hang-up and the pid that it said: new VMs are refused.
    host.vmsup(&["start", &host.guest("second", "echo", "")]).ok();
    jailer.kill().unwrap();
    jailer.wait().unwrap();
    eventually("the supervisor to notice", || host.log().contains("the jailer is gone"));
    assert_eq!(host.state("second"), "running", "it lives on");
    let said = host.vmsup(&["start", &file("third")]).sentence(1);
    assert!(said.contains("the jailer is gone"), "{said}");
    host.vmsup(&["kill", "second"]).ok();
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

    /// A line of the status of the newest process of this name.
    fn status(&self, name: &str, line: &str) -> String {
        let pid = self.ok(&["pgrep", "-n", "-x", name]);
        let status = self.ok(&["cat", &format!("/proc/{}/status", pid.trim())]);
        let found = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
        found.unwrap_or_else(|| panic!("{line} in {status}")).trim().to_owned()
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

#[test]
fn the_units_start_a_vm_with_a_network_under_systemd() {
    let name = "the_units_start_a_vm_with_a_network_under_systemd";
    if !as_root(name) {
        return;
    }
    for needed in ["/lib/systemd/systemd", "/usr/sbin/nft", "/usr/bin/newuidmap", "/dev/kvm"] {
        if !Path::new(needed).exists() {
            return skip(name, &format!("{needed} is not there"));
        }
    }
    let manager = Manager::boot();
    manager.ok(&["systemctl", "start", "vmsup-nft", "vmsup-netd", "vmsup"]);
    for unit in ["vmsup-nft", "vmsup-netd", "vmsup", "vmsup-jailer.socket"] {
        assert_eq!(manager.ok(&["systemctl", "is-active", unit]).trim(), "active", "{unit}");
    }
    manager.ok(&[
        "sh",
        "-c",
        "cat > /var/lib/vmsup/vm.json <<E\n\
        { \"name\": \"one\", \"cpus\": 1, \"memory_mib\": 32, \"boot\": { \"builtin\": \"net\" },\n\
        \"disks\": [ { \"path\": \"disk.img\" } ], \"nets\": [ { \"network\": \"default\" } ] }\nE\n\
        truncate -s 1M /var/lib/vmsup/disk.img && chown vmsup /var/lib/vmsup/disk.img",
    ]);
    manager.vmsup(&["start", "/var/lib/vmsup/vm.json"]);
    let address =
        manager.vmsup(&["net", "leases"]).split_whitespace().find(|w| w.starts_with("10.77.")).unwrap().to_owned();
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
    assert!(doctor.contains("each VM has a uid of its own") && doctor.contains("CAP_NET_ADMIN alone"), "{doctor}");

    // Rules loaded again, netd told to read its file, killed, and started again: the guest answers, its lease is known.
    manager.ok(&["systemctl", "reload", "vmsup-nft"]);
    manager.ok(&["systemctl", "reload", "vmsup-netd"]);
    manager.ok(&["systemctl", "kill", "--signal=KILL", "vmsup-netd"]);
    manager.ok(&["systemctl", "restart", "vmsup-netd"]);
    answers();
    assert!(manager.vmsup(&["net", "leases"]).contains(&address));

    // The supervisor's unit takes its VMs along in this release, and another one with another jailer is there.
    manager.ok(&["systemctl", "restart", "vmsup"]);
    eventually("a supervisor", || manager.run(&["test", "-S", "/run/vmsup/api.sock"]).1);
    manager.vmsup(&["start", "/var/lib/vmsup/vm.json"]);
    manager.ok(&["systemctl", "stop", "vmsup", "vmsup-netd"]);
    eventually("no worker to be left", || !manager.run(&["pgrep", "-x", "vmsup-worker"]).1);
}
