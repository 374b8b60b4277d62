//! What the documents claim: the numbers in SECURITY.md, the licences in deny.toml, and that what is linked exists.

use policy_audit::tables;
use policy_set::model::Set;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// SECURITY.md with its tables made anew: each stands between a comment that names it and one that ends it.
fn with_tables(text: &str) -> String {
    let files = policies::FILES.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned()));
    let set = Set::from_texts("compiled in", files).unwrap();
    let tables =
        [("processes", tables::processes(&set)), ("budgets", tables::budgets(&set, policy_set::arch::Arch::X86_64))];
    tables.iter().fold(text.to_owned(), |text, (name, table)| {
        let begin = format!("<!-- made from policies: {name} -->\n");
        let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("SECURITY.md has no table {name}"));
        let (_, after) = rest.split_once("<!-- end -->").expect("the end of a table");
        format!("{before}{begin}{table}<!-- end -->{after}")
    })
}

#[test]
fn the_tables_of_security_md_are_those_of_the_policies() {
    let text = read("SECURITY.md");
    let made = with_tables(&text);
    if std::env::var_os("VMSUP_WRITE_DOCS").is_some() {
        std::fs::write(root().join("SECURITY.md"), &made).unwrap();
    } else {
        assert_eq!(text, made, "make docs");
    }
    let together = made.lines().find(|l| l.starts_with("| all worker threads together |")).unwrap();
    let together = together.split('|').nth(2).unwrap().trim();
    let readme = read("README.md").split_whitespace().collect::<Vec<_>>().join(" ");
    let vcpu = policies::WORKER_VCPU.syscalls.len();
    let sentence = format!("(a vCPU may make {vcpu} system calls, all threads together {together})");
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
    for file in [
        "README.md",
        "SECURITY.md",
        "docs/policies.md",
        "docs/architecture.md",
        "docs/devices.md",
        "docs/networks.md",
        "docs/tenants.md",
    ] {
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
