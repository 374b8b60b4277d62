//! Composition: by explicit include, and by nothing else.

use policy_set::arch::Arch;
use policy_set::model::Set;
use policy_set::read::house_rules;

const LEAVE: &str = r#"{"leave": {"comment": "how a process ends", "filter": [{"syscall": "exit_group", "comment": "the end of it"}]}}"#;

fn filter(include: &str, rules: &str) -> String {
    format!(
        r#"{{"netd": {{"mismatch_action": "kill_process", "match_action": "allow", "include": [{include}], "filter": [{rules}]}}}}"#
    )
}

fn set(files: &[(&str, &str)]) -> Result<Set, String> {
    let files = files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned()));
    Set::from_texts("a test", files).map_err(|e| e.to_string())
}

const READ: &str = r#"{"syscall": "read", "comment": "what there is to read"}"#;

#[test]
fn included_rules_stand_where_the_filter_names_them_and_keep_their_place() {
    let netd = filter(r#""leave""#, READ);
    for arch in Arch::ALL {
        let file = format!("seccomp/{}/netd.json", arch.name());
        let set = set(&[(&file, &netd), ("seccomp/include/leave.json", LEAVE)]).unwrap();
        let filter = set.filter(arch, "netd").unwrap();
        let places: Vec<_> = filter.rules.iter().map(|r| (r.syscall.as_str(), r.file.as_str())).collect();
        assert_eq!(places, [("exit_group", "seccomp/include/leave.json"), ("read", file.as_str())]);
        assert_eq!(house_rules(&set), Vec::<String>::new());
    }
}

#[test]
fn an_include_that_is_not_there_not_used_or_nested_is_refused() {
    let netd = "seccomp/x86_64/netd.json";
    let leave = "seccomp/include/leave.json";
    let missing = set(&[(netd, &filter(r#""leave""#, READ))]).unwrap_err();
    assert!(missing.contains("netd.json") && missing.contains("no seccomp/include/leave.json"), "{missing}");
    let unused = set(&[(netd, &filter("", READ)), (leave, LEAVE)]).unwrap_err();
    assert!(unused.contains("leave.json") && unused.contains("no filter includes it"), "{unused}");
    let nested = LEAVE.replace("\"comment\": \"how", "\"include\": [\"more\"], \"comment\": \"how");
    let nested = set(&[(netd, &filter(r#""leave""#, READ)), (leave, &nested)]).unwrap_err();
    assert!(nested.contains("leave.json:1") && nested.contains("include"), "{nested}");
    let misnamed = LEAVE.replace("{\"leave\"", "{\"other\"");
    let misnamed = set(&[(netd, &filter(r#""leave""#, READ)), (leave, &misnamed)]).unwrap_err();
    assert!(misnamed.contains("named as the file"), "{misnamed}");
}

#[test]
fn a_rule_that_an_include_brings_a_second_time_breaks_the_rules_of_the_house() {
    let twice = filter(r#""leave""#, r#"{"syscall": "exit_group", "comment": "the end once more"}"#);
    let set = set(&[("seccomp/x86_64/netd.json", &twice), ("seccomp/include/leave.json", LEAVE)]).unwrap();
    let broken = house_rules(&set);
    assert!(broken.iter().any(|b| b.contains("exit_group") && b.contains("already")), "{broken:?}");
}
