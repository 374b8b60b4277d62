use super::*;
use std::path::Path;

/// Findings of a netd filter with these rules.
fn of(rules: &str) -> Vec<Finding> {
    let text = format!(
        r#"{{"netd": {{"default_action": "kill_process", "filter_action": "allow", "filter": [{rules}{{"syscall": "exit_group", "comment": "the end of it"}}]}}}}"#
    );
    audit(&policy_set::foreign::read("netd.json", Arch::X86_64, &text).unwrap())
}

fn ids(found: &[Finding]) -> Vec<&'static str> {
    found.iter().map(|f| f.id).collect()
}

fn rule(call: &str, args: &str) -> String {
    let args = if args.is_empty() { String::new() } else { format!(r#", "args": [{args}]"#) };
    format!(r#"{{"syscall": "{call}", "comment": "somebody needs it"{args}}},"#)
}

fn arg(index: u8, op: &str, val: u64) -> String {
    format!(r#"{{"index": {index}, "type": "dword", "op": {op}, "val": {val}}}"#)
}

#[test]
fn each_kind_has_one_row_and_every_finding_of_the_shipped_set_has_its_kind() {
    let all: BTreeSet<_> = KINDS.iter().map(|k| k.id).collect();
    assert_eq!(all.len(), KINDS.len());
    let set = Set::from_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap();
    assert!(
        audit(&set).iter().all(|f| KINDS.iter().any(|k| k.id == f.id && f.severity <= k.severity.max(Severity::High)))
    );
}

#[test]
fn the_shipped_set_explains_every_finding_above_info_on_every_architecture() {
    let set = Set::from_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap();
    let open: Vec<String> = audit(&set)
        .iter()
        .filter(|f| f.counts_as() > Severity::Info)
        .map(|f| format!("{}:{} {:?} {} {}", f.file, f.line.unwrap_or(0), f.severity, f.id, f.message))
        .collect();
    assert!(open.is_empty(), "{}", open.join("\n"));
}

#[test]
fn a_dangerous_call_with_any_arguments_is_found_and_one_with_conditions_is_not() {
    assert_eq!(ids(&of(&rule("ioctl", ""))), ["dangerous-unconstrained"]);
    assert!(of(&rule("ioctl", &arg(1, "\"eq\"", 7))).is_empty());
    assert!(of(&rule("read", "")).is_empty());
}

#[test]
fn executable_memory_is_found_by_asking_the_program() {
    assert_eq!(ids(&of(&rule("mmap", ""))), ["executable-memory"]);
    assert!(of(&rule("mmap", &arg(2, r#"{"masked_eq": 4}"#, 0))).is_empty());
    assert!(of(&rule("mmap", &arg(2, "\"lt\"", 4))).is_empty());
    assert_eq!(ids(&of(&rule("mmap", &arg(2, "\"lt\"", 8)))), ["executable-memory"]);
    assert_eq!(ids(&of(&rule("mprotect", &arg(0, "\"eq\"", 0)))), ["executable-memory"]);
}

#[test]
fn namespaces_through_clone_are_found() {
    assert!(ids(&of(&rule("clone", &arg(0, r#"{"masked_eq": 1}"#, 0)))).contains(&"namespaces"));
    assert_eq!(ids(&of(&rule("clone", &arg(0, "\"eq\"", 4001536)))), ["half-argument"]);
}

#[test]
fn rules_that_are_too_much_or_cannot_match_are_found() {
    let seven = rule("ioctl", &arg(1, "\"eq\"", 7));
    let below = rule("ioctl", &arg(1, "\"lt\"", 8));
    assert_eq!(ids(&of(&format!("{seven}{seven}"))), ["redundant"]);
    assert_eq!(ids(&of(&format!("{seven}{below}"))), ["redundant"]);
    let never = rule("ioctl", &format!("{},{}", arg(1, "\"eq\"", 7), arg(1, "\"eq\"", 8)));
    assert_eq!(ids(&of(&never)), ["never-matches"]);
}

#[test]
fn a_missing_reason_a_weak_default_and_no_way_to_end_are_found() {
    let text = r#"{"vmm": {"default_action": "trap", "filter_action": "allow", "filter": [{"syscall": "read"}]}}"#;
    let found = audit(&policy_set::foreign::read("f.json", Arch::X86_64, text).unwrap());
    let found: BTreeSet<_> = ids(&found).into_iter().collect();
    assert_eq!(found, BTreeSet::from(["no-exit", "no-reason", "weak-default"]));
}

#[test]
fn what_is_accepted_is_for_information_and_what_need_not_be_is_stale() {
    let text = |call: &str| {
        format!(
            r#"{{"netd": {{"mismatch_action": "kill_process", "match_action": "allow", "filter": [
        {{"syscall": "{call}", "comment": "somebody needs it", "accept": {{"dangerous-unconstrained": "a filter cannot read what it points to"}}}},
        {{"syscall": "exit_group", "comment": "the end of it"}}]}}}}"#
        )
    };
    let of = |call| audit(&Set::from_texts("a test", [("seccomp/x86_64/netd.json".to_owned(), text(call))]).unwrap());
    let found = of("openat");
    assert_eq!(ids(&found), ["dangerous-unconstrained"]);
    assert_eq!(found[0].counts_as(), Severity::Info);
    assert_eq!(ids(&of("read")), ["stale-accept"]);
}
