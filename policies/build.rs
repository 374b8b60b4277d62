//! Compiles the policy files into Rust constants: filters into BPF, `landlock.json` and `process.json` into tables.
//!
//! A file that breaks the rules of the house (a rule without a reason, a default action other than kill, a system call both
//! constrained and not) breaks the build, so that no binary with such a policy exists. So does a filter of another
//! architecture that does not compile.

use policy_set::arch::Arch;
use policy_set::bpf::Instruction;
use policy_set::model::{Filter, Landlock, Process, Set, Unfiltered};
use policy_set::{compile, program, read};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap());
    let arch =
        Arch::named(&env::var("CARGO_CFG_TARGET_ARCH").unwrap()).expect("an architecture that there are policies for");
    for watched in ["seccomp", "nft", "recorded", "process.json", "landlock.json"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    let set = Set::from_folder(&root).unwrap_or_else(|e| panic!("policies: {e}"));
    let broken = read::house_rules(&set);
    assert!(broken.is_empty(), "policies:\n{}", broken.join("\n"));
    let mut code = String::new();
    let mut all = Vec::new();
    let mut workers = Vec::new();
    for filter in &set.filters {
        let program = compile::compile(filter).unwrap_or_else(|e| panic!("policies: {e}"));
        if filter.arch == arch {
            all.push(emit_filter(filter, &program, &mut code));
            if filter.process() == "worker" {
                workers.push((filter.name.as_str(), program));
            }
        }
    }
    let all: Vec<String> = all.iter().map(|n| format!("&{n}")).collect();
    writeln!(code, "/// Every compiled filter.\npub static ALL: &[&Filter] = &[{}];", all.join(", ")).unwrap();
    set.unfiltered.iter().filter(|u| u.arch == arch).for_each(|u| emit_calls(u, &mut code));
    set.landlock.iter().for_each(|(name, l)| emit_landlock(name, l, &mut code));
    set.processes.iter().for_each(|(name, p)| emit_process(name, p, &mut code));
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    emit_files(&root, &out, &mut code);
    fs::write(out.join("section.rs"), section(&workers)).unwrap();
    fs::write(out.join("policies.rs"), code).unwrap();
}

fn constant(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

fn emit_filter(filter: &Filter, program: &[Instruction], code: &mut String) -> String {
    let (name, syscalls) = (constant(&filter.name), filter.syscalls());
    let (calls, length) = (syscalls.len(), program.len());
    writeln!(code, "/// `{}`: {calls} system calls, {length} instructions.", filter.file).unwrap();
    write!(code, "pub static {name}: Filter = Filter {{ name: {:?}, syscalls: &{syscalls:?}, program: &", filter.name)
        .unwrap();
    if filter.process() == "worker" {
        writeln!(code, "section::SECTION.{}.program }};", name.to_lowercase()).unwrap();
    } else {
        writeln!(code, "{} }};", array(program)).unwrap();
    }
    name
}

/// Instructions as an array of the source.
fn array(program: &[Instruction]) -> String {
    let mut text = "[\n".to_owned();
    for i in program {
        writeln!(text, "    sock_filter {{ code: {}, jt: {}, jf: {}, k: {} }},", i.code, i.jt, i.jf, i.k).unwrap();
    }
    text + "]"
}

/// `src/section.rs`'s data: a struct with a part for each of the worker's filters, and its value.
fn section(workers: &[(&str, Vec<Instruction>)]) -> String {
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

fn emit_calls(process: &Unfiltered, code: &mut String) {
    let calls: Vec<&str> = process.calls.iter().map(|c| c.syscall.as_str()).collect();
    writeln!(
        code,
        "/// The system calls of a process that is not filtered.\npub static {}_CALLS: &[&str] = &{calls:?};",
        constant(&process.name)
    )
    .unwrap();
}

fn emit_landlock(name: &str, landlock: &Landlock, code: &mut String) {
    let name = constant(name);
    for (what, abi) in [("FLOOR", landlock.floor_abi), ("NEWEST", landlock.newest_abi)] {
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
    for rule in &landlock.rules {
        let access: Vec<String> = rule.access.iter().map(|a| format!("landlock::AccessFs::{}", camel(a))).collect();
        writeln!(code, "    ({:?}, &[{}]),", rule.what, access.join(", ")).unwrap();
    }
    writeln!(code, "];").unwrap();
}

/// `ReadFile` of `read_file`: the crate's name of a right.
fn camel(name: &str) -> String {
    let word = |w: &str| w[..1].to_uppercase() + &w[1..];
    name.split('_').map(word).collect()
}

fn emit_process(name: &str, p: &Process, code: &mut String) {
    let rlimits: Vec<_> = p.rlimits.iter().collect();
    let fds: Vec<_> = p.fds.iter().collect();
    writeln!(
        code,
        "/// {}\npub static PROCESS_{}: Process = Process {{ name: {name:?}, capabilities: &{:?}, namespaces: &{:?}, rlimits: &{rlimits:?}, fds: &{fds:?} }};",
        p.comment,
        constant(name),
        p.capabilities,
        p.namespaces,
    )
    .unwrap();
}

/// The files themselves, for who asks about them: `src/files_section.rs`'s data, and where in it each text stands.
fn emit_files(root: &Path, out: &Path, code: &mut String) {
    let files = read::texts_of(root).unwrap_or_else(|e| panic!("policies: {e}"));
    let section = program::encode(files.iter().map(|(path, text)| (path.as_str(), text.as_str())));
    writeln!(
        code,
        "/// Every file of the set: its path relative to the set, and its text.\npub static FILES: &[(&str, &str)] = &["
    )
    .unwrap();
    let mut end = program::MAGIC.len();
    for (path, text) in &files {
        let start = end + path.len() + 1 + program::DIGITS;
        end = start + text.len();
        writeln!(code, "    ({path:?}, files_section::text({start}, {})),", text.len()).unwrap();
    }
    writeln!(code, "];").unwrap();
    assert_eq!(end, section.len());
    fs::write(out.join("files.bin"), section).unwrap();
}
