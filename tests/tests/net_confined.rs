//! netd's process, read from the outside against its policy: one capability, one thread, a filter, few fds; and the ways
//! to start it.

use std::collections::BTreeMap;
use vmsup_tests::netd::{NetHost, default_network, tenant};
use vmsup_tests::{as_root, eventually, names, user};

/// Sockets of a netd without peers.
const SOCKETS: usize = 5;

/// CAP_NET_ADMIN is number 12 (linux/capability.h).
const NET_ADMIN: u64 = 1 << 12;

fn status(pid: i32) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k.to_owned(), v.trim().to_owned())).collect()
}

/// What is true however it was started.
fn is_confined(host: &NetHost) {
    let status = status(host.pid());
    let set = |name: &str| u64::from_str_radix(&status[name], 16).unwrap();
    assert_eq!((set("CapEff"), set("CapPrm")), (NET_ADMIN, NET_ADMIN));
    assert_eq!(policies::PROCESS_NETD.capabilities, ["CAP_NET_ADMIN"]);
    assert_eq!(set("CapBnd") & !NET_ADMIN, 0, "{status:?}");
    assert_eq!((set("CapInh") | set("CapAmb")) & !NET_ADMIN, 0, "{status:?}");
    assert_eq!((&*status["NoNewPrivs"], &*status["Seccomp"], &*status["Threads"]), ("1", "2", "1"));
    let netd = user::netd();
    for (ids, own) in [("Uid", netd.uid), ("Gid", netd.gid)] {
        assert!(status[ids].split_whitespace().all(|id| id == own.to_string()), "{ids}: {}", status[ids]);
    }
    assert_eq!(status["Groups"], "");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", host.pid())).unwrap();
    for (name, title) in [("core", "Max core file size"), ("nofile", "Max open files")] {
        let wanted = policies::PROCESS_NETD.rlimits.iter().find(|(n, _)| *n == name).unwrap().1.to_string();
        let line = limits.lines().find(|l| l.starts_with(title)).unwrap();
        let values: Vec<&str> = line[title.len()..].split_whitespace().take(2).collect();
        assert_eq!(values, [&wanted, &wanted], "{name}");
    }
}

#[test]
fn netd_has_one_capability_one_thread_a_filter_and_no_way_back() {
    if !as_root("netd_has_one_capability_one_thread_a_filter_and_no_way_back") {
        return;
    }
    let host = NetHost::start(&default_network("pool = 2"));
    host.works(tenant(), "default");
    is_confined(&host);
}

#[test]
fn netd_that_is_given_its_capability_by_a_service_manager_stays_who_it_is() {
    if !as_root("netd_that_is_given_its_capability_by_a_service_manager_stays_who_it_is") {
        return;
    }
    let netd = user::netd();
    let (uid, gid) = (format!("--reuid={}", netd.uid), format!("--regid={}", netd.gid));
    let ambient = [
        "setpriv",
        &uid,
        &gid,
        "--clear-groups",
        "--inh-caps=-all,+net_admin",
        "--bounding-set=-all,+net_admin",
        "--ambient-caps=+net_admin",
        "--",
    ];
    let mut host = NetHost::start_wrapped(&ambient, &default_network("pool = 2"));
    host.works(tenant(), "default");
    is_confined(&host);
    assert_eq!(host.terminate(), Some(0));
}

#[test]
fn netd_without_its_capability_says_so() {
    if !as_root("netd_without_its_capability_says_so") {
        return;
    }
    let mut host = NetHost::without_netd(&default_network("pool = 0"));
    host.load_rules();
    let netd = user::netd();
    let ids = [format!("--reuid={}", netd.uid), format!("--regid={}", netd.gid), "--clear-groups".into()];
    let mut bare = host.command(&[]);
    let mut command = host.inside.command("setpriv");
    command.args(ids).arg("--").arg(bare.get_program()).args(bare.get_args());
    let ran = command.output().unwrap();
    let text = String::from_utf8_lossy(&ran.stderr);
    assert!(!ran.status.success() && text.contains("CAP_NET_ADMIN"), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    // Nobody is there; as it should be, it is.
    bare.arg("--version");
    let version = bare.output().unwrap();
    assert!(version.status.success() && !version.stdout.is_empty(), "{version:?}");
    host.run();
    host.works(tenant(), "default");
}

#[test]
fn its_fds_are_the_declared_ones_and_no_taps_but_the_warm() {
    if !as_root("its_fds_are_the_declared_ones_and_no_taps_but_the_warm") {
        return;
    }
    // A starter that leaves something open, which is none of netd's.
    let careless = ["sh", "-c", "exec \"$@\" 7</etc/hostname 8</dev/zero", "sh"];
    let host = NetHost::start_wrapped(&careless, &default_network("pool = 2"));
    let held: Vec<_> = {
        let client = host.client(tenant());
        (0..5).map(|vm| client.lease("default", vm).unwrap()).collect()
    };
    host.nothing_but(7, 2);
    let of = |pid: String| -> Vec<String> {
        let folder = format!("/proc/{pid}/fd");
        let target = |n: String| Some(std::fs::read_link(format!("{folder}/{n}")).ok()?.display().to_string());
        names(&folder).into_iter().filter_map(target).collect()
    };
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let seen = of(host.pid().to_string());
    for target in &seen {
        let kind = if std::path::Path::new(target).is_dir() { "directory" } else { target };
        let kind = kind.split_once(":[").map_or(kind, |(kind, _)| if kind == "anon_inode" { target } else { kind });
        *kinds.entry(kind.rsplit('/').next().unwrap().to_owned()).or_default() += 1;
    }
    // No more than these.
    let declared = [
        ("null", 3),
        // Where the test put its standard error.
        ("netd.log", 1),
        // Its listener; netlink for links, their events, nftables and its events; its peers are gone.
        ("socket", SOCKETS),
        ("anon_inode:[eventpoll]", 1),
        ("anon_inode:[signalfd]", 1),
        ("journal", 1),
        ("journal.lock", 1),
        // Directories, to open what is in them: those of journal, socket and configuration, /etc for its accounts.
        ("directory", 5),
        // The device, to open it again, and the two warm TAPs.
        ("tun", 3),
    ];
    let declared: BTreeMap<String, usize> =
        declared.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect();
    eventually("its peers to be gone", || {
        of(host.pid().to_string()).iter().filter(|t| t.starts_with("socket:")).count() == SOCKETS
    });
    let beyond: Vec<_> =
        kinds.iter().filter(|(kind, count)| declared.get(*kind).is_none_or(|most| *count > most)).collect();
    assert!(beyond.is_empty(), "{beyond:?} of {seen:?}");
    assert_eq!(kinds["socket"], SOCKETS, "{seen:?}");
    drop(held);
    host.nothing_but(2, 2);
}

#[test]
fn an_idle_netd_sleeps() {
    if !as_root("an_idle_netd_sleeps") {
        return;
    }
    let host = NetHost::start(&default_network("pool = 2"));
    let wire = host.client(tenant()).lease("default", 1).unwrap();
    host.nothing_but(3, 2);
    let switches = || -> u64 { status(host.pid())["voluntary_ctxt_switches"].parse().unwrap() };
    // Its peers are gone; what it still had to do about them is done when nothing has happened for a while.
    let mut before = switches();
    eventually("two seconds without a wake-up", || {
        std::thread::sleep(std::time::Duration::from_secs(2));
        let now = switches();
        std::mem::replace(&mut before, now) == now
    });
    assert!(wire.passes());
}

#[test]
fn its_program_is_static_and_says_how_it_is_used() {
    let netd = vmsup_tests::program("vmsup-netd");
    let run = |args: &[&str]| std::process::Command::new(&netd).args(args).output().unwrap();
    let help = run(&["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8_lossy(&help.stdout);
    for option in ["--config", "--socket", "--journal", "--user", "--check", "--version"] {
        assert!(text.contains(option), "{option} in {text}");
    }
    for wrong in [&["--nonsense"][..], &["--config"], &["extra"]] {
        let ran = run(wrong);
        let text = String::from_utf8_lossy(&ran.stderr);
        assert_eq!((ran.status.code(), text.trim_end().lines().count()), (Some(2), 1), "{wrong:?}: {text}");
    }
    let missing = run(&["--check", "--config", "/nonexistent/netd.toml"]);
    assert!(!missing.status.success());
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/nonexistent/netd.toml"));
}
