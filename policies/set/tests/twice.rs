//! What a file says twice, or says by saying nothing, is refused: the reader of the file and the compiler would differ.

use policy_set::arch::Arch;
use policy_set::foreign;
use policy_set::model::Set;

fn body(rules: &str) -> String {
    format!(r#"{{"mismatch_action": "kill_process", "match_action": "allow", "filter": [{rules}]}}"#)
}

fn refused(files: &[(&str, String)]) -> String {
    Set::from_texts("test", files.iter().map(|(file, text)| ((*file).to_owned(), text.clone())))
        .unwrap_err()
        .to_string()
}

const FILE: &str = "seccomp/x86_64/a.json";
const LEAVES: &str = r#"{"syscall": "exit_group", "comment": "leaves the process"}"#;
const OPENS: &str = r#"{"syscall": "openat", "comment": "opens every file"}"#;

#[test]
fn a_second_filter_of_the_same_name_does_not_replace_the_first() {
    let twice = format!(r#"{{"a": {}, "a": {}}}"#, body(LEAVES), body(OPENS));
    assert!(refused(&[(FILE, twice.clone())]).contains("`a` stands there twice"));
    let foreign = foreign::read("a.json", Arch::X86_64, &twice).unwrap_err().to_string();
    assert!(foreign.contains("`a` stands there twice"), "{foreign}");
}

#[test]
fn a_second_entry_of_a_process_or_a_record_does_not_replace_the_first() {
    let filter = (FILE, format!(r#"{{"a": {}}}"#, body(LEAVES)));
    let process = r#"{"comment": "what it is", "capabilities": []}"#;
    let processes = ("process.json", format!(r#"{{"a": {process}, "a": {process}}}"#));
    assert!(refused(&[filter.clone(), processes]).contains("twice"));
    let record = ("recorded/x86_64.json", r#"{"a": [], "a": ["exit_group()"]}"#.to_owned());
    assert!(refused(&[filter, record]).contains("twice"));
}

#[test]
fn empty_conditions_are_not_taken_for_none() {
    let rule = r#"{"syscall": "openat", "args": [], "comment": "opens every file"}"#;
    let text = format!(r#"{{"a": {}}}"#, body(rule));
    assert!(refused(&[(FILE, text.clone())]).contains("`args` is empty"));
    assert!(foreign::read("a.json", Arch::X86_64, &text).unwrap_err().to_string().contains("`args` is empty"));
}
