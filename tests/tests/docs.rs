//! What the documents claim: the numbers in SECURITY.md, the licences in deny.toml, and that what is linked exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

#[test]
fn the_numbers_of_system_calls_in_security_md_are_those_of_the_filters() {
    let text = read("SECURITY.md");
    let row = |title: &str| -> usize {
        let line = text.lines().find(|l| l.starts_with(&format!("| {title} |"))).unwrap_or_else(|| panic!("{title}"));
        line.split('|').nth(2).unwrap().trim().parse().unwrap_or_else(|_| panic!("a number in: {line}"))
    };
    let filters = [&policies::WORKER_VCPU, &policies::WORKER_REACTOR, &policies::WORKER_CONTROL];
    for filter in filters.into_iter().chain([&policies::WORKER_STARTUP, &policies::NETD]) {
        assert_eq!(row(filter.name), filter.syscalls.len(), "{}", filter.name);
    }
    let union: BTreeSet<_> =
        filters.iter().chain(&[&policies::WORKER_IO]).flat_map(|f| f.syscalls.iter().copied()).collect();
    assert_eq!(row("all worker threads together"), union.len());
    let readme = read("README.md").split_whitespace().collect::<Vec<_>>().join(" ");
    let sentence = format!(
        "(a vCPU may make {} system calls, all threads together {})",
        policies::WORKER_VCPU.syscalls.len(),
        union.len()
    );
    assert!(readme.contains(&sentence), "README.md: {sentence}");
}

#[test]
fn what_the_documents_link_to_exists() {
    let mut files = vec!["README.md".to_owned(), "SECURITY.md".to_owned(), "CHANGELOG.md".to_owned()];
    for folder in ["docs", "docs/decisions"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap().flatten() {
            if entry.path().extension().is_some_and(|e| e == "md") {
                files.push(format!("{folder}/{}", entry.file_name().to_string_lossy()));
            }
        }
    }
    let mut links = 0;
    for file in &files {
        let text = read(file);
        let base = root().join(file).parent().unwrap().to_owned();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if target.starts_with("http") || target.starts_with('#') {
                continue;
            }
            let path = target.split('#').next().unwrap();
            assert!(base.join(path).exists(), "{file} links to {target}");
            links += 1;
        }
    }
    assert!(links > 5, "{links} links in {files:?}");
}

#[test]
fn tests_that_the_documents_name_exist() {
    let mut sources = String::new();
    let output = Command::new("grep")
        .args(["-rhoE", "fn [a-z0-9_]+", "--include=*.rs"])
        .args(["tests", "supervisor", "jailer", "vmm-worker", "policies", "helper-netd"])
        .current_dir(root())
        .output()
        .unwrap();
    sources.push_str(&String::from_utf8_lossy(&output.stdout));
    let functions: BTreeSet<&str> = sources.lines().map(|l| l.trim_start_matches("fn ")).collect();
    let mut named = 0;
    for file in
        ["README.md", "SECURITY.md", "docs/architecture.md", "docs/devices.md", "docs/networks.md", "docs/tenants.md"]
    {
        let text = read(file);
        for word in text.split('`').filter(|w| {
            w.matches('_').count() >= 4 && w.chars().all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit())
        }) {
            assert!(functions.contains(word), "{file} names the test {word}");
            named += 1;
        }
    }
    assert!(named >= 2, "{named}");
}

#[test]
fn every_dependency_has_a_licence_that_deny_toml_allows() {
    let deny = read("deny.toml");
    let list = deny.split_once("allow = [").unwrap().1.split_once(']').unwrap().0;
    let allowed: Vec<&str> = list.split(',').map(|l| l.trim().trim_matches('"')).filter(|l| !l.is_empty()).collect();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = json["packages"].as_array().unwrap();
    assert!(packages.len() > 50);
    for package in packages {
        let expression = package["license"].as_str().unwrap_or("none").replace('/', " OR ");
        // AND binds tighter than OR: one alternative must be allowed in all its parts.
        let fine = expression
            .replace(['(', ')'], "")
            .split(" OR ")
            .any(|alternative| alternative.split(" AND ").all(|part| allowed.contains(&part.trim())));
        assert!(fine, "{}: {expression}", package["name"]);
    }
}
