//! Compiles the policy files into Rust constants: `seccomp/<arch>/*.json` into BPF, `process.json` into tables.
//!
//! A file that breaks the house rules (a rule without a reason, a default action other than kill, a system call both
//! constrained and not) breaks the build, so that no binary with such a policy exists.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilterFile {
    mismatch_action: String,
    match_action: String,
    filter: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    syscall: String,
    comment: String,
    #[serde(default)]
    args: Option<Vec<serde_json::Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Process {
    comment: String,
    capabilities: Vec<String>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default)]
    rlimits: BTreeMap<String, u64>,
    #[serde(default)]
    fds: Vec<Fd>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fd {
    number: i32,
    what: String,
}

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap());
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap();
    let folder = root.join("seccomp").join(&arch);
    println!("cargo::rerun-if-changed={}", folder.display());
    println!("cargo::rerun-if-changed={}", root.join("process.json").display());
    println!("cargo::rerun-if-changed={}", root.join("landlock.json").display());
    let mut code = String::new();
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|f| f.unwrap().path())
        .collect();
    files.sort();
    let mut all = Vec::new();
    let mut workers = Vec::new();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "json")) {
        println!("cargo::rerun-if-changed={}", file.display());
        if let Some(name) = filter(file, &arch, &mut code, &mut workers) {
            all.push(name);
        }
    }
    writeln!(
        code,
        "/// Every compiled filter.\npub static ALL: &[&Filter] = &[{}];",
        all.iter().map(|n| format!("&{n}")).collect::<Vec<_>>().join(", ")
    )
    .unwrap();
    fs::write(Path::new(&env::var_os("OUT_DIR").unwrap()).join("section.rs"), section(&workers)).unwrap();
    landlock(&root.join("landlock.json"), &mut code);
    processes(&root.join("process.json"), &mut code);
    fs::write(Path::new(&env::var_os("OUT_DIR").unwrap()).join("policies.rs"), code).unwrap();
}

/// Emits one filter; `None` for a file that declares its process unfiltered.
fn filter(
    file: &Path,
    arch: &str,
    code: &mut String,
    workers: &mut Vec<(String, Vec<[u32; 4]>)>,
) -> Option<String> {
    let stem = file.file_stem().unwrap().to_str().unwrap();
    let text = fs::read_to_string(file).unwrap();
    let json: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let (name, body) = json.first_key_value().unwrap();
    assert!(json.len() == 1 && name == stem, "{}: one filter a file, named as the file", file.display());
    if body.get("unfiltered").is_some() {
        unfiltered(file, &name.to_uppercase(), body.clone(), code);
        return None;
    }
    let parsed: FilterFile = serde_json::from_value(body.clone()).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    assert!(parsed.mismatch_action == "kill_process", "{}: the default action is kill_process", file.display());
    assert!(parsed.match_action == "allow", "{}: rules allow", file.display());
    let mut constrained: BTreeMap<&str, bool> = BTreeMap::new();
    for rule in &parsed.filter {
        assert!(rule.comment.len() >= 8, "{}: {}: a rule says which code needs it", file.display(), rule.syscall);
        let has_args = rule.args.as_ref().is_some_and(|a| !a.is_empty());
        let before = constrained.insert(&rule.syscall, has_args);
        assert!(
            before.is_none() || (before == Some(true) && has_args),
            "{}: {} stands there twice, at least once without conditions",
            file.display(),
            rule.syscall
        );
    }
    let compiled =
        seccompiler::compile_from_json(text.as_bytes(), arch.try_into().expect("an architecture of seccompiler"))
            .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let program = &compiled[name.as_str()];
    let constant = name.to_uppercase().replace('-', "_");
    let syscalls: Vec<&str> = constrained.keys().copied().collect();
    writeln!(
        code,
        "/// `seccomp/{arch}/{name}.json`: {} system calls, {} instructions.",
        syscalls.len(),
        program.len()
    )
    .unwrap();
    write!(code, "pub static {constant}: Filter = Filter {{ name: {name:?}, syscalls: &{syscalls:?}, program: &").unwrap();
    let instructions: Vec<[u32; 4]> = program.iter().map(|i| [i.code.into(), i.jt.into(), i.jf.into(), i.k]).collect();
    if name.starts_with("worker-") {
        writeln!(code, "section::SECTION.{}.program }};", constant.to_lowercase()).unwrap();
        workers.push((name.clone(), instructions));
    } else {
        writeln!(code, "{} }};", array(&instructions)).unwrap();
    }
    Some(constant)
}

/// Instructions as an array of the source.
fn array(program: &[[u32; 4]]) -> String {
    let mut text = "[\n".to_owned();
    for [code, jt, jf, k] in program {
        writeln!(text, "    sock_filter {{ code: {code}, jt: {jt}, jf: {jf}, k: {k} }},").unwrap();
    }
    text + "]"
}

/// `src/section.rs`'s data: a struct with a part for each of the worker's filters, and its value.
fn section(workers: &[(String, Vec<[u32; 4]>)]) -> String {
    let (mut fields, mut values, mut parts) = (String::new(), String::new(), String::new());
    for (name, program) in workers {
        let (field, length) = (name.replace('-', "_"), program.len());
        writeln!(fields, "    pub {field}: Part<{length}>,").unwrap();
        writeln!(values, "    {field}: Part::new({name:?}, {}),", array(program)).unwrap();
        writeln!(parts, "    (&section.{field}.name, &section.{field}.program),").unwrap();
    }
    let count = workers.len();
    format!(
        "#[repr(C)]\npub(crate) struct Section {{\n    head: Head,\n{fields}}}\n\
         const CONTENT: Section = Section {{\n    head: Head::new({count}),\n{values}}};\n\
         fn parts(section: &'static Section) -> [(&'static [u8; NAME], &'static [sock_filter]); {count}] {{ [\n{parts}] }}\n"
    )
}

/// A process without a filter says why, and what it calls.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unfiltered {
    unfiltered: String,
    calls: Vec<Rule>,
}

fn unfiltered(file: &Path, constant: &str, body: serde_json::Value, code: &mut String) {
    let parsed: Unfiltered = serde_json::from_value(body).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    assert!(parsed.unfiltered.len() >= 40, "{}: why is there no filter?", file.display());
    for call in &parsed.calls {
        assert!(call.comment.len() >= 8, "{}: {}: a call says which code needs it", file.display(), call.syscall);
        assert!(call.args.is_none(), "{}: {}: nothing holds it to arguments", file.display(), call.syscall);
    }
    let calls: Vec<&str> = parsed.calls.iter().map(|c| c.syscall.as_str()).collect();
    writeln!(
        code,
        "/// The system calls of a process that is not filtered.\npub static {constant}_CALLS: &[&str] = &{calls:?};"
    )
    .unwrap();
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Landlock {
    comment: String,
    floor_abi: u8,
    newest_abi: u8,
    handled: String,
    rules: Vec<LandlockRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LandlockRule {
    /// A role, not a path: where it is may be known at run time only.
    what: String,
    access: Vec<String>,
    comment: String,
}

/// Emits `landlock.json`.
fn landlock(file: &Path, code: &mut String) {
    let all: BTreeMap<String, Landlock> =
        serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    for (name, l) in all {
        assert!(l.comment.len() >= 8, "{}: {name} says what it is for", file.display());
        assert!(
            l.handled == "all" && (name == "netd" || l.rules.is_empty()),
            "{}: {name}: everything is denied, or this build fails; only netd may have exceptions",
            file.display()
        );
        assert!(l.floor_abi >= 2 && l.floor_abi <= l.newest_abi, "{}: {name}: the floor", file.display());
        let name = name.to_uppercase();
        for (what, abi) in [("FLOOR", l.floor_abi), ("NEWEST", l.newest_abi)] {
            writeln!(
                code,
                "/// `landlock.json`.\npub const LANDLOCK_{name}_{what}: landlock::ABI = landlock::ABI::V{abi};"
            )
            .unwrap();
        }
        writeln!(
            code,
            "/// `landlock.json`: role of a place, and what may be done there.\npub static LANDLOCK_{name}_RULES: &[(&str, &[landlock::AccessFs])] = &["
        )
        .unwrap();
        for rule in &l.rules {
            assert!(rule.comment.len() >= 8, "{}: {}: a rule says which code needs it", file.display(), rule.what);
            let access: Vec<String> = rule.access.iter().map(|a| access(file, a)).collect();
            writeln!(code, "    ({:?}, &[{}]),", rule.what, access.join(", ")).unwrap();
        }
        writeln!(code, "];").unwrap();
    }
}

/// The crate's name of a right. Nothing is listed here that would let a process run a program or make a device.
fn access(file: &Path, name: &str) -> String {
    let variant = match name {
        "read_file" => "ReadFile",
        "write_file" => "WriteFile",
        "truncate" => "Truncate",
        "make_reg" => "MakeReg",
        "remove_file" => "RemoveFile",
        "ioctl_dev" => "IoctlDev",
        other => panic!("{}: {other}: no right that an exception may give", file.display()),
    };
    format!("landlock::AccessFs::{variant}")
}

/// Emits `process.json`.
fn processes(file: &Path, code: &mut String) {
    let all: BTreeMap<String, Process> =
        serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    for (name, p) in all {
        assert!(p.comment.len() >= 8, "{}: {name} says what it is", file.display());
        let rlimits: Vec<_> = p.rlimits.iter().collect();
        let fds: Vec<_> = p.fds.iter().map(|f| (f.number, f.what.as_str())).collect();
        writeln!(
            code,
            "/// {}\npub static PROCESS_{}: Process = Process {{ name: {name:?}, capabilities: &{:?}, namespaces: &{:?}, rlimits: &{rlimits:?}, fds: &{fds:?} }};",
            p.comment,
            name.to_uppercase(),
            p.capabilities,
            p.namespaces,
        )
        .unwrap();
    }
}
