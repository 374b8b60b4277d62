//! What `make install` places: complete, right for its PREFIX, and sound in systemd's eyes. That it works is
//! `service_manager.rs`.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use vmsup_tests::installed::{install, installed_here, me, output};
use vmsup_tests::{Scratch, program, skip};

/// True where systemd's tool is; else the test is said to be skipped.
fn systemd(name: &str) -> bool {
    let there = Command::new("systemd-analyze").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !there {
        skip(name, "systemd-analyze is not installed");
    }
    there
}

const SYSTEM_UNITS: [&str; 7] = [
    "vmsup-nft.service",
    "vmsup-netd.service",
    "vmsup-jailer.socket",
    "vmsup-jailer.service",
    "vmsup.socket",
    "vmsup.service",
    "vmsup-guests.service",
];
const USER_UNITS: [&str; 4] = ["vmsup.socket", "vmsup.service", "vmsup-jailer.socket", "vmsup-jailer.service"];

#[test]
fn make_install_places_everything_for_its_prefix() {
    let scratch = Scratch::new(&me());
    install(scratch.path(), "/opt/vm", "/etc");
    let units = SYSTEM_UNITS.map(|unit| format!("lib/systemd/system/{unit}"));
    let users = USER_UNITS.map(|unit| format!("lib/systemd/user/{unit}"));
    let texts = ["lib/sysusers.d/vmsup.conf", "lib/tmpfiles.d/vmsup.conf"];
    let more = ["lib/sysctl.d/60-vmsup.conf", "lib/udev/rules.d/65-vmsup.rules", "share/vmsup/vmsup.nft"];
    let own = ["vmsup-network.conf", "vmsup-slice.conf", "../man/man1/vmsup-serve.1"];
    let docs = ["netd.toml", "supervisor.toml", "networks.md", "devices.md", "tenants.md"].into_iter().chain(own);
    let docs: Vec<String> = docs.map(|n| format!("share/vmsup/{n}")).collect();
    let units = units.iter().chain(&users).map(String::as_str);
    let names = units.chain(texts).chain(more).chain(docs.iter().map(String::as_str));
    let etc = ["etc/apparmor.d/vmsup-jailer", "etc/vmsup/netd.toml", "etc/vmsup/supervisor.toml"].map(PathBuf::from);
    for name in names.map(|n| Path::new("opt/vm").join(n)).chain(etc) {
        let path = scratch.path().join(&name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", name.display()));
        for placeholder in ["@BINDIR@", "@DATADIR@", "@PREFIX@", "@SYSCONFDIR@"] {
            assert!(!text.contains(placeholder), "{}: {placeholder}", name.display());
        }
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
    let edited = ["netd.toml", "supervisor.toml"].map(|name| scratch.path().join("etc/vmsup").join(name));
    for file in &edited {
        std::fs::write(file, "# mine\n").unwrap();
    }
    install(scratch.path(), "/opt/vm", "/etc");
    for file in edited {
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "# mine\n", "{}", file.display());
    }
}

#[test]
fn what_is_installed_names_and_links_to_what_is_installed() {
    let scratch = Scratch::new(&me());
    // Both hold a path that is replaced: what was replaced once must not be replaced again.
    let (prefix, etc) = ("/usr/local/opt", "/usr/local/etc");
    install(scratch.path(), prefix, etc);
    let read =
        |path: &str| std::fs::read_to_string(scratch.path().join(&path[1..])).unwrap_or_else(|e| panic!("{path}: {e}"));
    let unit = read(&format!("{prefix}/lib/systemd/system/vmsup-netd.service"));
    let said =
        |start: &str| unit.lines().find_map(|l| l.strip_prefix(start)).unwrap_or_else(|| panic!("{start}")).to_owned();
    assert_eq!(said("ConditionPathExists="), format!("{etc}/vmsup/netd.toml"));
    assert_eq!(said("ExecStart="), format!("{prefix}/bin/vmsup-netd --config {etc}/vmsup/netd.toml"));
    let unit = read(&format!("{prefix}/lib/systemd/system/vmsup.service"));
    assert!(unit.contains(&format!("{prefix}/bin/vmsup serve --config {etc}/vmsup/supervisor.toml --")), "{unit}");
    let folder = scratch.path().join(&prefix[1..]).join("share/vmsup");
    let mut links = 0;
    for file in ["networks.md", "devices.md", "tenants.md", "netd.toml", "supervisor.toml"] {
        let text = read(&format!("{prefix}/share/vmsup/{file}"));
        for checkout in ["packaging/", "../", "/etc/vmsup/", "/usr/local/share", "policies/nft/", " docs/"] {
            let found = text.lines().find(|l| l.replace(etc, "").contains(checkout));
            assert!(found.is_none(), "{file}: {checkout} in {found:?}");
        }
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap().split('#').next().unwrap();
            assert!(target.is_empty() || folder.join(target).is_file(), "{file} links to {target}");
            links += 1;
        }
        // The same files by their whole paths.
        for word in text.split(['`', ' ', '\n']).filter(|w| w.starts_with("/usr/local/")) {
            assert!(scratch.path().join(&word[1..]).exists(), "{file} names {word}");
        }
    }
    assert!(links > 2, "{links}");
    assert!(read(&format!("{prefix}/share/vmsup/networks.md")).contains(&format!("{etc}/apparmor.d/vmsup-jailer")));
}

#[test]
fn the_example_of_who_may_use_the_supervisor_lets_nobody_in_and_is_valid_with_every_field_in_force() {
    let scratch = Scratch::new(&me());
    let shipped =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/supervisor.toml")).unwrap();
    let lists = |line: &str| line.starts_with("# [") || line.starts_with("# ") && line.contains(" = ");
    let uncommented = shipped.lines().map(|l| l.strip_prefix("# ").filter(|_| lists(l)).unwrap_or(l));
    let full = uncommented.collect::<Vec<_>>().join("\n").replace("alice]", "root]");
    assert!(full.contains("\nforwards = []") && full.contains("\n[quota.users.root]"), "{full}");
    let file = scratch.path().join("supervisor.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        Command::new(program("vmsup")).args(["serve", "--check", "--config"]).arg(&file).output().unwrap()
    };
    for (text, says) in [(&shipped, "nobody may use it but"), (&full, "members of 1 group are its administrators")] {
        let checked = check(text);
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.success() && said.contains(says), "{checked:?}");
    }
    let wrong = check(&shipped.replace("# vms = 8 ", "vmss = 8 "));
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    assert!(said.contains("supervisor.toml:") && said.contains("vmss"), "{said}");
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
    let (fine, said) = verify(&["--user"], &USER_UNITS.map(|unit| prefix.join("lib/systemd/user").join(unit)));
    assert!(fine && !said.contains("vmsup"), "{said}");
    // The drop-in for the slice, as one: systemd makes it where there is no file of it.
    let slice = folder.join("vmsup.slice");
    std::fs::copy(prefix.join("share/vmsup/vmsup-slice.conf"), &slice).unwrap();
    let (fine, said) = verify(&[], &[slice]);
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
    let folder = prefix.join("lib/systemd/system");
    // With the drop-in that gives the supervisor the host's network.
    let open = std::fs::read_to_string(folder.join("vmsup.service")).unwrap();
    let more = std::fs::read_to_string(prefix.join("share/vmsup/vmsup-network.conf")).unwrap();
    std::fs::write(folder.join("vmsup-open.service"), open + &more).unwrap();
    let units = [
        ("vmsup-netd", 1.7),
        ("vmsup", 1.0),
        ("vmsup-open", 1.3),
        ("vmsup-jailer", 2.6),
        ("vmsup-nft", 1.7),
        ("vmsup-guests", 1.0),
    ];
    for (unit, most) in units {
        let file = folder.join(format!("{unit}.service"));
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
    for (unit, needed) in [("vmsup-netd", netd), ("vmsup", supervisor), ("vmsup-jailer", jailer)] {
        let allowed = filtered(&prefix.join(format!("lib/systemd/system/{unit}.service")));
        let missing: Vec<_> = needed.into_iter().filter(|call| !allowed.contains(**call)).collect();
        assert!(missing.is_empty(), "{unit}: {missing:?}");
        for never in ["reboot", "init_module", "bpf", "ptrace", "kexec_load", "perf_event_open"] {
            assert!(!allowed.contains(never), "{unit}: {never}");
        }
    }
}
