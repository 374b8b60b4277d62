//! What stands in the file, what it means for whom, and what is wrong with it.

use super::*;
use crate::serve::testing::TempDir;
use std::os::unix::fs::PermissionsExt;

const PASSWD: &str = "root:x:0:0::/:\nalice:x:1000:1000::/:\nbob:x:1001:1001::/:\n";
const GROUP: &str = "root:x:0:\nusers:x:50:alice,bob\nbig:x:51:bob\nadmin:x:52:\n";

fn accounts() -> Accounts {
    Accounts::of(PASSWD, GROUP, "alice:100000:65536\n")
}

fn config(text: &str) -> Config {
    parse(text, accounts()).unwrap()
}

fn peer(uid: u32, groups: &[u32]) -> Peer {
    Peer { uid, groups: groups.into() }
}

const FULL: &str = r#"
[access]
users = ["alice", 1005]
groups = ["users"]
administrators = "admin"

[quota]
vms = 2
networks = ["default"]

[quota.groups.users]
vms = 3
vcpus = 4
networks = ["blue", "red"]

[quota.groups.51]
vms = 5
vcpus = 1
networks = ["blue"]
forwards = [22, "8000-8099"]

[quota.users.alice]
vms = 1
disk_gib = 2
"#;

#[test]
fn who_is_named_may_and_nobody_else() {
    let config = config(FULL);
    let tenant = Some(Standing::Tenant);
    for (uid, groups, expected) in [
        (1000, &[1000][..], tenant),
        (1005, &[], tenant),
        (1001, &[1001, 50], tenant),
        (1001, &[1001], None),
        (50, &[], None),
        (4000, &[52], Some(Standing::Administrator)),
        (1000, &[50, 52], Some(Standing::Administrator)),
        // A user namespace of Alice's: she has 65536 uids there, and her groups with each.
        (100_007, &[50], None),
        (100_007, &[52], None),
    ] {
        assert_eq!(config.standing(&peer(uid, groups)), expected, "{uid} {groups:?}");
    }
    let nobody = self::config("[access]\n");
    assert_eq!(nobody.standing(&peer(1000, &[50, 52])), None);
    assert_eq!(self::config("").standing(&peer(1000, &[50])), None, "an empty file lets nobody in");
}

#[test]
fn the_own_quota_counts_then_the_best_of_the_groups_then_the_general_one() {
    let config = config(FULL);
    let alice = config.quota(&peer(1000, &[50, 51]));
    assert_eq!((alice.most.vms, alice.most.vcpus, alice.most.disk_bytes), (1, 4, 2 * GIB));
    assert_eq!(
        (&*alice.networks, &*alice.forwards),
        (&["blue".into(), "red".into()][..], &[(22, 22), (8000, 8099)][..])
    );
    let bob = config.quota(&peer(1001, &[51, 50]));
    assert_eq!((bob.most.vms, bob.most.vcpus, bob.most.disk_bytes), (5, 4, DEFAULT.disk_bytes));
    let other = config.quota(&peer(1005, &[]));
    assert_eq!((other.most.vms, other.most.vcpus, other.networks), (2, DEFAULT.vcpus, vec!["default".into()]));
    let nothing = self::config("").quota(&peer(1000, &[]));
    assert_eq!(nothing, Quota { most: DEFAULT, networks: Vec::new(), forwards: Vec::new() }, "no network unless named");
}

#[test]
fn the_quota_of_who_is_not_connected_goes_by_the_files() {
    let config = config(FULL);
    assert_eq!(config.limit_of(1001).unwrap().most.vms, 5);
    assert_eq!(config.limit_of(1000).unwrap().most.vms, 1);
    assert!(config.limit_of(0).is_none());
    let text = FULL.replace("\"admin\"", "\"big\"");
    assert!(self::config(&text).limit_of(1001).is_none(), "an administrator");
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    for (text, line, says) in [
        ("[access]\nuser = [1]\n", 2, "unknown field `user`"),
        ("[acces]\n", 1, "unknown field `acces`"),
        ("[access]\nusers = [\"alice\",\n\"carol\"]\n", 2, "users: \"carol\" is no user in /etc/passwd"),
        ("\n[access]\ngroups = [\"carol\"]\n", 3, "groups: \"carol\" is no group"),
        ("[access]\nadministrators = \"alice\"\n", 2, "administrators: \"alice\" is no group"),
        ("[access]\nusers = [-1]\n", 2, "expected a name or a number"),
        ("[quota]\nvms = -1\n", 2, "vms"),
        ("[quota]\nvms = 4097\n", 2, "vms: 4097 is more than 4096"),
        ("[quota]\nmemory = 3\n", 2, "unknown field `memory`"),
        ("[quota]\nnetworks = [\"a b\"]\n", 2, "networks: \"a b\" is no name"),
        ("[quota]\nforwards = [0]\n", 2, "forwards: 0: a port"),
        ("[quota]\nforwards = [\"9-8\"]\n", 2, "forwards: \"9-8\": a port"),
        ("[quota]\nvms = 1\n[quota.users.carol]\nvms = 1\n", 3, "\"carol\" is no user"),
        ("[quota.users.alice]\ndisk_gib = 9999999\n", 2, "disk_gib: 9999999 is more"),
        ("[quota.users.alice]\nvms = 1\n[quota.users.1000]\nvms = 1\n", 1, "uid 1000 has another quota"),
        ("[quota.groups.users]\nvms = \"many\"\n", 2, "invalid type"),
        ("[quota.users.alice.users.bob]\nvms = 1\n", 1, "has no others in it"),
        ("[access\n", 1, "expected"),
    ] {
        let (at, reason) = parse(text, accounts()).unwrap_err();
        assert!(reason.contains(says) && !reason.contains(" at line "), "{text}: {reason}");
        assert_eq!(at, line, "{reason} in\n{text}");
    }
}

#[test]
fn a_file_that_others_could_have_written_is_not_read() {
    let temp = TempDir::new();
    let own = rustix::process::geteuid().as_raw();
    let file = temp.path().join("supervisor.toml");
    for (name, text) in [("supervisor.toml", "[quota]\nvms = 7\n"), ("passwd", PASSWD), ("group", GROUP)] {
        std::fs::write(temp.path().join(name), text).unwrap();
    }
    let source = Source { file: file.clone(), etc: temp.path().to_owned(), owner: own };
    let chmod = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    chmod(0o644);
    assert_eq!(read(&source).unwrap().quota(&peer(1000, &[])).most.vms, 7);
    for mode in [0o666, 0o664, 0o646] {
        chmod(mode);
        assert!(matches!(read(&source), Err(Error::Untrusted(_))), "{mode:o}");
    }
    chmod(0o644);
    let owner = if own == 0 { 1 } else { own };
    std::os::unix::fs::chown(&file, Some(owner), None).unwrap();
    let source = Source { owner, ..source };
    let stranger = Source { owner: owner + 2, ..source.clone() };
    assert!(matches!(read(&stranger), Err(Error::Untrusted(_))));
    std::fs::write(&file, "[quota]\nvms = true\n").unwrap();
    let said = read(&source).unwrap_err().to_string();
    assert!(said.contains("supervisor.toml:2: "), "{said}");
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(read(&source), Err(Error::Read { .. })));
    rustix::fs::mkfifoat(CWD, &file, Mode::RUSR).unwrap();
    assert!(matches!(read(&source), Err(Error::Read { .. })), "and nobody waits for a FIFO");
}
