//! What `make install` places: complete, right for its PREFIX, sound in systemd's eyes, and it works: systemd itself, booted
//! in namespaces of the test's own, starts a VM with a network by these units.

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use vmsup_tests::host::{Host, children};
use vmsup_tests::user::{self, User};
use vmsup_tests::{Scratch, as_root, eventually, program, skip};

fn me() -> User {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    User { name: "me".into(), uid, gid }
}

fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

/// `make install` without its building.
fn install(dest: &Path, prefix: &str, etc: &str) {
    let bin = program("vmsup").parent().unwrap().to_owned();
    let mut make = Command::new("make");
    make.args(["-s", "install-files"]).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    make.args([format!("DESTDIR={}", dest.display()), format!("PREFIX={prefix}"), format!("SYSCONFDIR={etc}")]);
    output(make.env("VMSUP_BIN", bin));
}

/// Installed so that all paths in the units are there.
fn installed_here() -> (Scratch, PathBuf) {
    let scratch = Scratch::new(&me());
    let prefix = scratch.path().join("usr");
    install(Path::new(""), prefix.to_str().unwrap(), scratch.path().join("etc").to_str().unwrap());
    (scratch, prefix)
}

/// True where systemd's tool is; else the test is said to be skipped.
fn systemd(name: &str) -> bool {
    let there = Command::new("systemd-analyze").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !there {
        skip(name, "systemd-analyze is not installed");
    }
    there
}

const SYSTEM_UNITS: [&str; 5] =
    ["vmsup-nft.service", "vmsup-netd.service", "vmsup-jailer.socket", "vmsup-jailer@.service", "vmsup.service"];

#[test]
fn make_install_places_everything_for_its_prefix() {
    let scratch = Scratch::new(&me());
    install(scratch.path(), "/opt/vm", "/etc");
    let units = SYSTEM_UNITS.map(|unit| format!("lib/systemd/system/{unit}"));
    let texts = ["lib/systemd/user/vmsup.service", "lib/sysusers.d/vmsup.conf", "lib/tmpfiles.d/vmsup.conf"];
    let more = ["lib/sysctl.d/60-vmsup.conf", "lib/udev/rules.d/65-vmsup.rules", "share/vmsup/vmsup.nft"];
    let docs = ["share/vmsup/netd.toml", "share/vmsup/networks.md", "share/man/man1/vmsup-serve.1"];
    let names = units.iter().map(String::as_str).chain(texts).chain(more).chain(docs);
    let etc = ["etc/apparmor.d/vmsup-jailer", "etc/vmsup/netd.toml"].map(PathBuf::from);
    for name in names.map(|n| Path::new("opt/vm").join(n)).chain(etc) {
        let path = scratch.path().join(&name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", name.display()));
        assert!(!text.contains("@BINDIR@") && !text.contains("@DATADIR@"), "{}", name.display());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644, "{}", name.display());
        for line in text.lines().filter(|l| l.starts_with("Exec") || l.starts_with("profile ")) {
            let ours = line.split_whitespace().filter(|w| w.contains("/bin/vmsup") || w.contains("/share/vmsup"));
            for path in ours {
                let path = path.trim_start_matches(|c| c != '/');
                assert!(path.starts_with("/opt/vm/"), "{}: {line}", name.display());
                assert!(scratch.path().join(&path[1..]).exists(), "{}: {line}", name.display());
            }
        }
    }
    // A second installation leaves what root has edited.
    let edited = scratch.path().join("etc/vmsup/netd.toml");
    std::fs::write(&edited, "# mine\n").unwrap();
    install(scratch.path(), "/opt/vm", "/etc");
    assert_eq!(std::fs::read_to_string(&edited).unwrap(), "# mine\n");
}

/// `text` with its commented fields and tables in force, and with names that every host has.
fn all_fields(text: &str) -> String {
    let field = |line: &str| {
        let name = line.split(['=', ' ']).next().unwrap_or_default();
        line.starts_with("[[")
            || (line.contains('=') && !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
    };
    let lines = text.lines().map(|l| l.strip_prefix("# ").filter(|l| field(l)).unwrap_or(l));
    lines.collect::<Vec<_>>().join("\n").replace("\"vmsup\"", "\"root\"").replace("\"alice\"", "\"root\"")
}

#[test]
fn the_example_configuration_is_valid_with_every_field_in_force() {
    let scratch = Scratch::new(&me());
    let shipped =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/netd.toml")).unwrap();
    let plain = shipped.replace("groups = [\"vmsup\"]", "groups = [\"root\"]");
    let full = all_fields(&shipped);
    assert!(full.lines().count() == shipped.lines().count() && full.contains("\npool = 2"), "{full}");
    let file = scratch.path().join("netd.toml");
    for text in [plain, full] {
        std::fs::write(&file, &text).unwrap();
        let said = output(Command::new(program("vmsup-netd")).arg("--config").arg(&file).arg("--check"));
        assert!(said.contains("1 networks, nothing wrong"), "{said}");
    }
    // And what is not known is not passed over.
    std::fs::write(&file, shipped.replace("# pool =", "pools =")).unwrap();
    let failed = Command::new(program("vmsup-netd")).arg("--config").arg(&file).arg("--check").output().unwrap();
    assert_eq!(failed.status.code(), Some(2));
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    if !systemd("systemd_finds_nothing_wrong_with_the_units") {
        return;
    }
    let (_scratch, prefix) = installed_here();
    let folder = prefix.join("lib/systemd/system");
    let verify = |extra: &[&str], files: &[PathBuf]| {
        let mut command = Command::new("systemd-analyze");
        // The user manager wants a place for its sockets.
        command.env("XDG_RUNTIME_DIR", &prefix);
        let output =
            command.arg("verify").args(extra).args(["--man=no", "--recursive-errors=no"]).args(files).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let files = SYSTEM_UNITS.map(|unit| folder.join(unit));
    let (fine, said) = verify(&[], &files);
    assert!(fine && !said.contains("vmsup"), "{said}");
    let (fine, said) = verify(&["--user"], &[prefix.join("lib/systemd/user/vmsup.service")]);
    assert!(fine && !said.contains("vmsup"), "{said}");
    // It would say so.
    let broken = folder.join("vmsup-broken.service");
    std::fs::write(&broken, "[Service]\nExecStart=/nowhere/vmsup\nNoSuchThing=yes\n").unwrap();
    let (_, said) = verify(&[], &[broken]);
    assert!(said.contains("NoSuchThing") && said.contains("/nowhere/vmsup"), "{said}");
}

#[test]
fn the_units_are_as_closed_as_they_can_be() {
    if !systemd("the_units_are_as_closed_as_they_can_be") {
        return;
    }
    let (_scratch, prefix) = installed_here();
    for (unit, most) in [("vmsup-netd", 1.7), ("vmsup", 1.0), ("vmsup-jailer@", 2.6), ("vmsup-nft", 1.7)] {
        let file = prefix.join(format!("lib/systemd/system/{unit}.service"));
        let said = output(Command::new("systemd-analyze").args(["security", "--offline=true", "--no-pager"]).arg(file));
        let line = said.lines().rfind(|l| l.contains("Overall exposure level")).unwrap_or_else(|| panic!("{said}"));
        let level: f64 = line.split_whitespace().find_map(|w| w.parse().ok()).unwrap_or_else(|| panic!("{line}"));
        assert!(level <= most, "{unit}: {level} is more than {most}\n{said}");
    }
}

/// The calls that a unit's SystemCallFilter lets through; groups as systemd-analyze explains them.
fn filtered(unit: &Path) -> BTreeSet<String> {
    fn add(name: &str, to: &mut BTreeSet<String>) {
        if !name.starts_with('@') {
            to.insert(name.to_owned());
            return;
        }
        let said = output(Command::new("systemd-analyze").args(["syscall-filter", "--no-pager", name]));
        let members = said.lines().skip(1).map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        members.for_each(|member| add(member, to));
    }
    // systemd.exec(5): what every program needs is in it whether it is named or not.
    let mut calls = BTreeSet::new();
    add("@default", &mut calls);
    let text = std::fs::read_to_string(unit).unwrap();
    for line in text.lines().filter_map(|l| l.strip_prefix("SystemCallFilter=")) {
        let (minus, names) = line.strip_prefix('~').map_or((false, line), |names| (true, names));
        let mut named = BTreeSet::new();
        names.split_whitespace().for_each(|name| add(name, &mut named));
        if minus {
            calls.retain(|call| !named.contains(call));
        } else {
            calls.append(&mut named);
        }
    }
    calls
}

#[test]
fn the_filters_of_the_units_let_each_program_make_its_calls() {
    if !systemd("the_filters_of_the_units_let_each_program_make_its_calls") {
        return;
    }
    let (_scratch, prefix) = installed_here();
    // How a process confines itself, before its own filter is there.
    let confining =
        ["prctl", "seccomp", "prlimit64", "openat", "getdents64", "fstat", "statx", "socket", "bind", "listen"];
    let landlock =
        ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "capget", "capset", "fchown"];
    let workers: Vec<_> = policies::ALL.iter().filter(|f| f.name.starts_with("worker")).collect();
    assert_eq!(workers.len(), 5);
    let workers = workers.into_iter().flat_map(|f| f.syscalls);
    let netd = policies::NETD.syscalls.iter().chain(&confining).chain(&landlock).collect::<Vec<_>>();
    let supervisor = policies::SUPERVISOR.syscalls.iter().chain(&confining).collect();
    let jailer = policies::JAILER_CALLS.iter().chain(workers).chain(&confining).chain(&landlock[..5]);
    // setpriv, which becomes the jailer.
    let jailer = jailer.chain(&["setgroups", "setresuid", "setresgid"]).filter(|c| **c != "fchown").collect();
    for (unit, needed) in [("vmsup-netd", netd), ("vmsup", supervisor), ("vmsup-jailer@", jailer)] {
        let allowed = filtered(&prefix.join(format!("lib/systemd/system/{unit}.service")));
        let missing: Vec<_> = needed.into_iter().filter(|call| !allowed.contains(**call)).collect();
        assert!(missing.is_empty(), "{unit}: {missing:?}");
        for never in ["reboot", "init_module", "bpf", "ptrace", "kexec_load", "perf_event_open"] {
            assert!(!allowed.contains(never), "{unit}: {never}");
        }
    }
}

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
        \"nets\": [ { \"network\": \"default\" } ] }\nE\n",
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
