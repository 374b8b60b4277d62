//! Which crate may depend on which: docs/architecture.md's table, held against `cargo tree`.

use std::collections::BTreeSet;
use std::process::Command;

/// Crate, those of ours that it may depend on, crates that its whole normal closure never holds.
const TABLE: &[(&str, &[&str], &[&str])] = &[
    ("ipc", &[], &[]),
    ("jail-spec", &["ipc"], &["worker-api", "netd-api"]),
    ("worker-api", &["ipc"], &["jail-spec", "netd-api"]),
    ("netd-api", &["ipc"], &["jail-spec", "worker-api"]),
    ("policies", &[], &["serde_json", "tokio"]),
    ("policy-set", &[], &["tokio"]),
    ("policy-audit", &["policy-set"], &["tokio"]),
    ("policy-kernel", &["policy-set"], &["tokio"]),
    (
        "vmsup",
        &["ipc", "jail-spec", "worker-api", "netd-api", "policies", "policy-set", "policy-audit", "policy-kernel"],
        &["kvm-ioctls", "virtio-queue", "netlink-sys", "vmm-worker", "jailer", "helper-netd"],
    ),
    ("jailer", &["ipc", "jail-spec", "policies"], &["clap", "tokio", "event-manager", "serde_json"]),
    ("vmm-worker", &["ipc", "worker-api", "policies"], &["tokio", "serde_json", "clap", "jail-spec"]),
    (
        "helper-netd",
        &["ipc", "netd-api", "policies"],
        &["tokio", "serde_json", "clap", "kvm-ioctls", "jail-spec", "worker-api"],
    ),
];

/// The most crates in the normal closure of the three processes whose closure is an attack surface.
const CLOSURES: &[(&str, usize)] = &[("vmm-worker", 40), ("jailer", 25), ("helper-netd", 25)];

/// Names of the normal dependencies of a crate, as features are resolved for it, down to `depth`.
fn normal_dependencies(name: &str, depth: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{lib}", "--depth", depth])
        .args(["--target", "x86_64-unknown-linux-gnu", "--package", name])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    // The first line is the crate itself; library names have underscores where packages have dashes.
    text.lines().skip(1).filter(|l| !l.is_empty()).map(|l| l.trim_end_matches(" (*)").replace('_', "-")).collect()
}

/// The crates of this workspace.
fn members() -> BTreeSet<String> {
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")).unwrap();
    let list = manifest.split_once("members = [").unwrap().1.split_once(']').unwrap().0;
    let folders = list.split(',').map(|f| f.trim().trim_matches('"')).filter(|f| !f.is_empty());
    folders
        .map(|folder| {
            let path = format!("{}/../{folder}/Cargo.toml", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(path).unwrap();
            text.lines().find_map(|l| l.strip_prefix("name = ")).unwrap().trim_matches('"').to_owned()
        })
        .collect()
}

#[test]
fn every_crate_depends_on_what_the_table_allows() {
    let members = members();
    let listed: BTreeSet<String> =
        TABLE.iter().map(|(name, ..)| (*name).to_owned()).chain(["vmsup-tests".to_owned()]).collect();
    assert_eq!(listed, members, "every crate of the workspace stands in the table");
    for (name, allowed, never) in TABLE {
        for ours in normal_dependencies(name, "1").iter().filter(|d| members.contains(*d)) {
            assert!(allowed.contains(&ours.as_str()), "{name} depends on {ours}");
        }
        let closure = normal_dependencies(name, "99");
        assert!(*name == "policies" || closure.contains("serde"), "the closure of {name} was read");
        for forbidden in *never {
            assert!(!closure.contains(*forbidden), "{name} reaches {forbidden}");
        }
    }
}

#[test]
fn the_closures_of_the_exposed_processes_stay_small() {
    for (name, most) in CLOSURES {
        let closure = normal_dependencies(name, "99");
        println!("{name}: {} crates: {closure:?}", closure.len());
        assert!(closure.len() <= *most, "{name}: {} crates, {most} allowed: {closure:?}", closure.len());
    }
}
