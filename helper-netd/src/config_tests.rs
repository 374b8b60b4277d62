//! What stands in the file, and what is wrong with it.

use super::*;
use crate::testing::network;

const HEAD: &str = "[[network]]\nname = \"default\"\nbridge = \"vmsup0\"\nsubnet = \"10.77.0.1/24\"\n";

fn accounts() -> Accounts {
    Accounts::of("root:x:0:0::/:\nalice:x:1000:1000::/:\n", "vmsup:x:500:\n", "")
}

fn read(text: &str) -> Result<Vec<Network>, (usize, String)> {
    parse(text, &accounts())
}

#[test]
fn what_is_left_out_is_the_safe_choice() {
    let networks = read(HEAD).unwrap();
    let [only] = networks.as_slice() else { panic!("{networks:?}") };
    let expected = Network { who: Who::default(), pool: 2, ..network("default", "vmsup0", "10.77.0.1", 24) };
    assert_eq!(*only, expected, "NAT and isolation, nobody may use it, no way to the host or to metadata");
    assert_eq!(read("").unwrap(), []);
}

#[test]
fn everything_that_can_be_said_is_heard() {
    let text = format!(
        "{HEAD}nat = false\ndns = [\"9.9.9.9\"]\nmtu = 9000\nusers = [\"alice\", 7]\ngroups = [\"vmsup\", 8]\nleases = 3\n\
         isolated = false\nhost = true\nmetadata = true\nreach = [\"b\"]\nlocalhost_forwards = true\npool = 0\n\
         [[network.forward]]\nusers = [\"alice\"]\nports = [\"8000-8999\", 2222]\n\
         [[network]]\nname = \"b\"\nbridge = \"br-b\"\nsubnet = \"10.78.0.1/16\"\n"
    );
    let networks = read(&text).unwrap();
    let one = &networks[0];
    assert_eq!((one.nat, one.mtu, one.leases, one.isolated, one.pool), (false, 9000, 3, false, 0));
    assert!(one.host && one.metadata && one.localhost);
    assert_eq!(one.who, Who { users: vec![1000, 7], groups: vec![500, 8], ..Who::default() });
    assert_eq!(one.reach, [IfName::new("br-b").unwrap()]);
    let alice = Who { users: vec![1000], groups: vec![], ..Who::default() };
    assert_eq!(one.forwards, [(alice, vec![(8000, 8999), (2222, 2222)])]);
}

#[test]
fn what_is_wrong_is_refused_with_its_line() {
    let second =
        |what: &str| format!("{HEAD}[[network]]\nname = \"b\"\nbridge = \"br-b\"\nsubnet = \"10.78.0.1/24\"\n{what}");
    let cases = [
        (format!("{HEAD}mtuu = 1\n"), 5, "mtuu"),
        (second("pools = 1\n"), 9, "pools"),
        (format!("{HEAD}users = [-1]\n"), 5, "users"),
        (format!("{HEAD}users = [\"bob\"]\n"), 5, "bob"),
        (second("users = [\"bob\"]\n"), 9, "bob"),
        (format!("{HEAD}groups = [\"wheel\"]\n"), 5, "wheel"),
        (format!("{HEAD}mtu = 100\n"), 5, "mtu"),
        (format!("{HEAD}mtu = 66000\n"), 5, "mtu"),
        (format!("{HEAD}leases = 0\n"), 5, "leases"),
        (format!("{HEAD}pool = 17\n"), 5, "pool"),
        (format!("{HEAD}dns = [\"1.1.1.1\", \"1.1.1.2\", \"1.1.1.3\", \"1.1.1.4\"]\n"), 5, "dns"),
        (format!("{HEAD}reach = [\"default\"]\n"), 5, "reach"),
        (format!("{HEAD}[[network.forward]]\nports = [\"9-8\"]\n"), 6, "9-8"),
        (format!("{HEAD}[[network.forward]]\nports = [0]\n"), 6, "ports"),
        (format!("{HEAD}[[network.forward]]\nusers = [1]\n"), 5, "ports"),
        (second("").replace("br-b", "vmsup0"), 7, "vmsup0"),
        (second("").replace("10.78.0.1/24", "10.0.0.1/8"), 8, "overlaps"),
        (second("").replace("\"b\"", "\"default\""), 6, "default"),
        (HEAD.replace("vmsup0", "vt9"), 3, "bridge"),
        (HEAD.replace("vmsup0", "sixteen-letters-"), 3, "bridge"),
        (HEAD.replace("default", "a b"), 2, "name"),
        (HEAD.replace("/24", "/30"), 4, "prefix"),
        (HEAD.replace("/24", "/7"), 4, "prefix"),
        (HEAD.replace("/24", ""), 4, "prefix"),
        (HEAD.replace("10.77.0.1/", "10.77.0.0/"), 4, "own address"),
        (HEAD.replace("10.77.0.1/", "10.77.0.255/"), 4, "own address"),
        (HEAD.replace("10.77.0.1/", "169.254.1.1/"), 4, "no address"),
        ("[[network\n".to_owned(), 1, ""),
    ];
    for (text, line, word) in cases {
        let (at, reason) = read(&text).unwrap_err();
        assert_eq!(at, line, "{reason} in\n{text}");
        assert!(reason.contains(word) && !reason.contains(" at line "), "{word}: {reason}");
    }
}

#[test]
fn there_is_an_end_to_networks() {
    let one = |n: usize| format!("[[network]]\nname = \"n{n}\"\nbridge = \"br{n}\"\nsubnet = \"10.{n}.0.1/24\"\n");
    let text: String = (0..NETWORKS_MAX).map(one).collect();
    assert_eq!(read(&text).unwrap().len(), NETWORKS_MAX);
    assert_eq!(read(&(text + &one(NETWORKS_MAX))).unwrap_err().0, 4 * NETWORKS_MAX + 1);
}

#[test]
fn a_file_that_others_could_have_written_is_not_read() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = crate::testing::Scratch::new();
    let file = scratch.0.join("netd.toml");
    std::fs::write(&file, HEAD).unwrap();
    let etc = Place::open(std::path::Path::new("/etc/passwd")).unwrap();
    let own = rustix::process::geteuid().as_raw();
    let read_with = |mode: u32, owner: u32| {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        read_place(&scratch.place("netd.toml"), &etc, owner)
    };
    assert_eq!(read_with(0o644, own).unwrap().len(), 1);
    for mode in [0o666, 0o664, 0o646] {
        assert!(matches!(read_with(mode, own), Err(Error::Untrusted(_))), "{mode:o}");
    }
    if own != 0 {
        assert!(matches!(read_with(0o644, own + 1), Err(Error::Untrusted(_))));
    }
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert!(matches!(read_place(&scratch.place("netd.toml"), &etc, own), Err(Error::Read { .. })));
}

fn read_place(place: &Place, etc: &Place, owner: u32) -> Result<Vec<Network>, Error> {
    super::read(place, etc, owner)
}

#[test]
fn a_network_with_leases_keeps_its_bridge_and_subnet_or_goes_on_unseen() {
    let old = [Rc::new(network("a", "br-a", "10.1.0.1", 24)), Rc::new(network("b", "br-b", "10.2.0.1", 24))];
    let used = |name: &str| name == "a";
    let a = &old[0];
    for wrong in [
        Network { bridge: IfName::new("br-x").unwrap(), ..(**a).clone() },
        Network { prefix: 16, ..(**a).clone() },
        network("x", "br-a", "10.9.0.1", 24),
        network("x", "br-x", "10.1.0.129", 25),
    ] {
        assert!(matches!(merge(&old, vec![wrong.clone()], used), Err(Error::InUse(_))), "{wrong:?}");
    }
    let merged = merge(&old, vec![network("c", "br-b", "10.2.0.1", 24)], used).unwrap();
    let names: Vec<_> = merged.iter().map(|n| (n.name.as_str(), n.retired)).collect();
    assert_eq!(names, [("c", false), ("a", true)], "b had no leases, so that its bridge is free");
    let back = merge(&merged, vec![(**a).clone()], used).unwrap();
    assert_eq!(back, [Rc::clone(a)], "a retired network that is configured again is as it was");
}
