//! Several users of one supervisor, as they are: processes of users of their own, who try to see and to touch what is another's.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use vmsup_tests::host::{Host, Ran, guest_file};
use vmsup_tests::user::{self, User};
use vmsup_tests::{Scratch, as_root, eventually};

/// Two tenants of three VMs each. The group of netd's user are the administrators.
const CONFIG: &str = r#"
[access]
users = ["vmsup-test2", "vmsup-bare"]
administrators = "vmsup-netd"
[quota]
vms = 3
vcpus = 3
memory_mib = 256
"#;

/// A shared supervisor, and those who come to it.
struct House {
    host: Host,
    config: Scratch,
    alice: Tenant,
    bob: Tenant,
    admin: Tenant,
    stranger: Tenant,
}

/// Somebody with files of their own.
struct Tenant {
    user: User,
    files: Scratch,
    socket: String,
}

impl Tenant {
    fn new(user: User, host: &Host) -> Tenant {
        let socket = host.folder().join("api.sock").to_str().unwrap().to_owned();
        Tenant { files: Scratch::new(&user), user, socket }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.user.command(vmsup_tests::program("vmsup"));
        command.args(["--socket", &self.socket]).args(args).stdin(Stdio::null());
        command
    }

    fn vmsup(&self, args: &[&str]) -> Ran {
        self.command(args).output().unwrap().into()
    }

    fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.vmsup(args).ok()).unwrap()
    }

    /// A VM that sleeps until it is killed.
    fn file(&self, name: &str) -> String {
        let boot = serde_json::json!({ "kernel": guest_file("deaf") });
        let json = serde_json::json!({ "name": name, "cpus": 1, "memory_mib": 32, "boot": boot });
        let path = self.files.path().join(format!("{name}.json"));
        std::fs::write(&path, json.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn start(&self, name: &str) -> String {
        let started = self.json(&["start", "--json", &self.file(name)]);
        started["id"].as_str().unwrap().to_owned()
    }

    fn names(&self) -> Vec<String> {
        let all = self.json(&["ls", "--json"]);
        all.as_array().unwrap().iter().map(|vm| vm["name"].as_str().unwrap().to_owned()).collect()
    }

    fn used(&self) -> (u64, u64) {
        let quota = self.json(&["quota", "--json"]);
        (quota["used"]["vms"].as_u64().unwrap(), quota["used"]["vcpus"].as_u64().unwrap())
    }

    /// Every line that the supervisor has for them of what happened and was done.
    fn told(&self) -> String {
        self.vmsup(&["events", "--json"]).ok()
            + &self.vmsup(&["ops", "--json"]).ok()
            + &self.vmsup(&["stats", "--json"]).ok()
    }
}

impl House {
    fn new(name: &str) -> Option<House> {
        if !as_root(name) {
            return None;
        }
        let owner = user::with_subuids();
        let config = Scratch::new(&owner);
        let file = config.path().join("supervisor.toml");
        std::fs::write(&file, CONFIG).unwrap();
        let host = Host::start(&owner, &["--pool", "1", "--config", file.to_str().unwrap()]);
        // What is around the runtime directory is the test's.
        let around = host.folder().parent().unwrap().to_owned();
        std::fs::set_permissions(around, std::fs::Permissions::from_mode(0o711)).unwrap();
        let of = |user| Tenant::new(user, &host);
        let (alice, bob) = (of(user::second_tenant()), of(user::without_subuids()?));
        let (admin, stranger) = (of(user::netd()), of(user::stranger()));
        Some(House { host, config, alice, bob, admin, stranger })
    }
}

#[test]
fn a_tenant_neither_sees_nor_touches_anothers_vm() {
    let Some(house) = House::new("a_tenant_neither_sees_nor_touches_anothers_vm") else { return };
    let House { alice, bob, .. } = &house;
    let id = alice.start("secret");
    assert_eq!((alice.names(), bob.names()), (vec!["secret".to_owned()], vec![]));
    for key in ["secret", &id] {
        for command in [
            &["inspect", key][..],
            &["logs", key],
            &["console", key],
            &["wait", key],
            &["stop", key],
            &["kill", key],
            &["pause", key],
            &["resume", key],
            &["rm", key],
            &["rm", "--force", key],
            &["start", key],
            &["stats", key],
            &["net", "stats", key],
        ] {
            let said = bob.vmsup(command).sentence(1);
            // A name may be a file's, too.
            let expected =
                if command[0] == "start" { "there is neither a VM nor a file named" } else { "there is no VM" };
            assert!(said.contains(expected) && said.contains(key), "{command:?}: {said}");
        }
        assert_eq!(bob.vmsup(&["events", "--json", "--vm", key]).ok(), "");
    }
    // Operations are numbered from 1.
    let cancelled = bob.vmsup(&["ops", "cancel", "1"]).sentence(1);
    assert!(cancelled.contains("there is no operation 1"), "{cancelled}");
    let told = bob.told();
    let uid = format!(":{}", alice.user.uid);
    for word in ["secret", &id, &uid, &uid.replace(':', ": ")] {
        assert!(!told.contains(word), "{word} in {told}");
    }
    assert_eq!(alice.json(&["inspect", "--json", "secret"])["state"], "running");
    // One of the same name is another one.
    assert_ne!(bob.start("secret"), id);
    bob.vmsup(&["kill", "secret"]).ok();
    bob.vmsup(&["rm", "--all"]).ok();
    assert_eq!(alice.json(&["inspect", "--json", "secret"])["state"], "running");
    alice.vmsup(&["kill", "secret"]).ok();
}

#[test]
fn twenty_starts_at_once_get_what_the_quota_says_and_no_more() {
    let Some(house) = House::new("twenty_starts_at_once_get_what_the_quota_says_and_no_more") else { return };
    let House { alice, bob, .. } = &house;
    let files: Vec<String> = (0..20).map(|n| alice.file(&format!("v{n}"))).collect();
    let starting: Vec<_> = files
        .iter()
        .map(|file| alice.command(&["start", file]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    let all: Vec<Ran> = starting.into_iter().map(|child| child.wait_with_output().unwrap().into()).collect();
    let (made, refused): (Vec<Ran>, Vec<Ran>) = all.into_iter().partition(|ran| ran.status == Some(0));
    assert_eq!(made.len(), 3, "{refused:?}");
    for ran in refused {
        let said = ran.sentence(1);
        assert!(said.contains("your quota is 3 VMs, you use 3, and this takes 1; remove a VM"), "{said}");
    }
    assert_eq!((alice.names().len(), alice.used()), (3, (3, 3)));
    bob.start("mine");
    let own = bob.vmsup(&["quota"]).ok();
    for row in [&["VMS", "1", "3"][..], &["NETWORKS", "-"]] {
        assert!(own.lines().any(|line| line.split_whitespace().eq(row.iter().copied())), "{row:?} in {own}");
    }
    alice.vmsup(&["kill", "--all"]).ok();
    assert_eq!(alice.used(), (3, 0));
    alice.vmsup(&["rm", "--all"]).ok();
    assert_eq!((alice.used(), bob.names()), ((0, 0), vec!["mine".to_owned()]));
}

#[test]
fn an_administrator_sees_all_of_it_and_a_stranger_one_sentence() {
    let Some(house) = House::new("an_administrator_sees_all_of_it_and_a_stranger_one_sentence") else { return };
    let House { alice, bob, admin, stranger, .. } = &house;
    let (hers, _his) = (alice.start("web"), bob.start("web"));
    let table = admin.vmsup(&["ls"]).ok();
    assert!(table.contains("vmsup-test2") && table.contains("vmsup-bare"), "{table}");
    let all = admin.vmsup(&["quota", "--all"]).ok();
    assert!(all.contains("vmsup-bare   1 of 3  1 of 3"), "{all}");
    assert!(admin.told().contains(&hers));
    // "All" are an administrator's own, of which there are none.
    let left = admin.vmsup(&["stop", "--all"]);
    assert!(left.err.contains("2 VMs of others are left"), "{left:?}");
    admin.vmsup(&["kill", &hers]).ok();
    assert_eq!(alice.json(&["inspect", "--json", "web"])["end"]["kind"], "killed");
    assert_eq!(bob.json(&["inspect", "--json", "web"])["state"], "running");
    for command in [&["ls"][..], &["start", &stranger.file("mine")], &["events"], &["quota", "--all"]] {
        let said = stranger.vmsup(command).sentence(1);
        assert!(said.contains("you are not among the users of this supervisor"), "{said}");
    }
    // A tenant is no administrator by asking like one.
    assert_eq!(bob.json(&["quota", "--all", "--json"]).as_array().unwrap().len(), 1);
    // To the supervisor's own user, who ends everything at a shutdown, all VMs are one.
    house.host.vmsup(&["kill", "--all"]).ok();
    assert_eq!(bob.json(&["inspect", "--json", "web"])["end"]["kind"], "killed");
}

#[test]
fn the_next_supervisor_knows_whose_each_vm_is_and_what_each_has() {
    let name = "the_next_supervisor_knows_whose_each_vm_is_and_what_each_has";
    let Some(mut house) = House::new(name) else { return };
    let id = house.alice.start("a");
    house.alice.start("b");
    house.alice.vmsup(&["kill", "b"]).ok();
    house.bob.start("a");
    house.host.replace();
    let House { alice, bob, .. } = &house;
    assert_eq!((alice.names(), bob.names()), (vec!["a".to_owned(), "b".to_owned()], vec!["a".to_owned()]));
    assert_eq!(alice.json(&["inspect", "--json", "a"])["id"], id.as_str());
    assert_eq!((alice.used(), bob.used()), ((2, 1), (1, 1)));
    assert!(!bob.told().contains(&id));
    alice.start("c");
    let said = alice.vmsup(&["start", &alice.file("d")]).sentence(1);
    assert!(said.contains("your quota is 3 VMs, you use 3"), "{said}");
    bob.vmsup(&["kill", "--all"]).ok();
    alice.vmsup(&["kill", "--all"]).ok();
    assert_eq!((alice.used(), bob.used()), ((3, 0), (1, 0)));
}

#[test]
fn a_configuration_is_read_again_whole_or_not_at_all() {
    let Some(house) = House::new("a_configuration_is_read_again_whole_or_not_at_all") else { return };
    let House { host, config, alice, bob, .. } = &house;
    alice.start("a");
    let file = config.path().join("supervisor.toml");
    let reread = |text: &str, said: &str| {
        let before = host.log().matches(said).count();
        std::fs::write(&file, text).unwrap();
        let pid = rustix::process::Pid::from_raw(host.pid()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
        eventually(said, || host.log().matches(said).count() > before);
    };
    let mut follower =
        bob.command(&["events", "--follow"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    reread(&CONFIG.replace("vms = 3", "vms = three"), "supervisor.toml:");
    assert!(host.log().contains("what was read before goes on"), "{}", host.log());
    alice.start("b");
    reread(&CONFIG.replace("vms = 3", "vms = 2").replace(", \"vmsup-bare\"", ""), "the configuration was read again");
    let said = alice.vmsup(&["start", &alice.file("c")]).sentence(1);
    assert!(said.contains("your quota is 2 VMs, you use 2"), "{said}");
    assert!(bob.vmsup(&["ls"]).sentence(1).contains("you are not among the users"));
    eventually("Bob to be hung up on", || follower.try_wait().unwrap().is_some());
    reread("[access]\nusers = []\n", "the configuration was read again");
    assert!(alice.vmsup(&["ls"]).sentence(1).contains("you are not among the users"));
    assert_eq!(host.ls().len(), 2, "her VMs go on");
    host.vmsup(&["kill", "--all"]).ok();
}

/// All that is in a directory, and the directory.
fn walk(path: &Path, found: &mut Vec<std::path::PathBuf>) {
    found.push(path.to_owned());
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            walk(&entry.unwrap().path(), found);
        }
    }
}

#[test]
fn of_the_runtime_directory_tenants_reach_the_sockets_alone() {
    let Some(house) = House::new("of_the_runtime_directory_tenants_reach_the_sockets_alone") else { return };
    house.alice.start("a");
    let (folder, state) = (house.host.folder(), house.host.state_folder());
    let mut all = Vec::new();
    walk(&folder, &mut all);
    walk(&state, &mut all);
    let sockets = [folder.join("api.sock"), folder.join("files.sock")];
    assert!(sockets.iter().all(|socket| all.contains(socket)), "{all:?}");
    assert!(all.iter().any(|path| path.starts_with(folder.join("handles")) && path.extension().is_some()), "{all:?}");
    let may = |right: &str, path: &Path| {
        let mut test = house.bob.user.command("test");
        test.arg(right).arg(path).status().unwrap().success()
    };
    for path in all {
        let open = sockets.contains(&path);
        assert_eq!((may("-r", &path), may("-w", &path)), (open, open), "{}", path.display());
        assert_eq!(may("-x", &path), path == folder, "{}", path.display());
    }
    house.alice.vmsup(&["kill", "a"]).ok();
}
