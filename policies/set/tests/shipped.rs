//! The set of this repository, as a folder.

use policy_set::arch::Arch;
use policy_set::bpf::{self, Data};
use policy_set::compile::compile;
use policy_set::model::{Action, Set};
use policy_set::read::house_rules;
use std::path::Path;

fn shipped() -> Set {
    Set::from_folder(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()).unwrap()
}

#[test]
fn the_shipped_set_is_read_whole_and_keeps_the_rules_of_the_house() {
    let set = shipped();
    assert_eq!(house_rules(&set), Vec::<String>::new());
    let names =
        |arch| -> Vec<&str> { set.filters.iter().filter(|f| f.arch == arch).map(|f| f.name.as_str()).collect() };
    let filters =
        ["netd", "supervisor", "worker-control", "worker-io", "worker-reactor", "worker-startup", "worker-vcpu"];
    assert_eq!(names(Arch::X86_64), filters);
    assert_eq!(names(Arch::Aarch64), filters, "every architecture has all of them");
    assert_eq!(set.unfiltered.iter().filter(|u| u.name == "jailer").count(), Arch::ALL.len());
    assert!(set.landlock.contains_key("worker") && set.processes.contains_key("netd"));
    assert!(set.nft["vmsup.nft"].contains("table"));
}

#[test]
fn every_filter_compiles_and_does_with_a_call_what_its_file_says() {
    for filter in &shipped().filters {
        let program = compile(filter).unwrap();
        let ask = |name: &str, args: [u64; 6], arch: u32| {
            let nr = filter.arch.number(name).unwrap();
            bpf::action(bpf::run(&program, &Data { nr, arch, instruction_pointer: 0, args }).unwrap())
        };
        assert_eq!(ask("exit_group", [0; 6], filter.arch.audit()), Action::Allow, "{}", filter.file);
        assert_eq!(ask("exit_group", [0; 6], 0x4000_0003), Action::KillProcess, "{}: as i386", filter.file);
        assert_eq!(ask("ptrace", [0; 6], filter.arch.audit()), Action::KillProcess, "{}", filter.file);
    }
}

#[test]
fn what_is_no_plain_file_in_a_set_is_refused_and_not_waited_for() {
    let root = std::env::temp_dir().join(format!("policy-set-{}", std::process::id()));
    let file = root.join("seccomp/x86_64/netd.json");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    let said = Set::from_folder(&root).unwrap_err().to_string();
    std::fs::remove_dir_all(&root).unwrap();
    assert!(said.contains("netd.json") && said.contains("no plain file"), "{said}");
}
