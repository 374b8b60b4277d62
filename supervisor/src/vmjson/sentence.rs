//! The words of an error: what is wrong, and what to do about it.

use super::check::{escaped, shown};
use super::de::{Problem, TypeError, choices};
use super::tree::{Fault, TreeError, position};
use netd_api::QUEUES_MAX;
use worker_api::{CPUS_MAX, MEMORY_MIB_MAX, MEMORY_MIB_MIN};

/// The field and the sentence of a text that has no tree.
pub(super) fn of_fault(text: &str, error: &TreeError) -> (Option<String>, String) {
    match &error.what {
        Fault::Depth => (None, "nested too deeply; a VM needs four levels".into()),
        Fault::Duplicate { key, first } => {
            let (line, _) = position(text, *first);
            (Some(escaped(key)), format!("stands here a second time, the first is on line {line}; remove one"))
        }
        Fault::Syntax(_) if text.trim().is_empty() => {
            (None, "an empty file; `vmsup schema` tells what belongs into it".into())
        }
        Fault::Syntax(words) if words.starts_with("EOF") => {
            let inside = words.replacen("EOF while parsing", "the file ends inside", 1);
            (None, format!("not valid JSON: {inside}; complete it"))
        }
        Fault::Syntax(words) => (None, format!("not valid JSON: {words}{}", hint(text, error.offset))),
    }
}

/// Habits from other languages that JSON does not have.
fn hint(text: &str, offset: usize) -> &'static str {
    let rest = &text.as_bytes()[offset.min(text.len())..];
    match rest.first() {
        Some(b'/' | b'#') => "; JSON has no comments, remove it",
        Some(b'\'') => "; JSON's quotes are \"double\"",
        _ => "; mend it there",
    }
}

/// The sentence of a tree that is no VM.
pub(super) fn of_type_error(error: &TypeError) -> String {
    match &error.problem {
        Problem::UnknownField { name, known } => match nearest(name, known) {
            Some(near) => format!("unknown field; did you mean \"{near}\"?"),
            None => format!("unknown field; known here: {}", known.join(", ")),
        },
        Problem::UnknownChoice { found, known } => match nearest(found, known) {
            Some(near) => format!("{} is not known; did you mean \"{near}\"?", shown(found)),
            None => format!("{} is not known; give one of {}", shown(found), choices(known)),
        },
        Problem::MissingField(name) => match example(name) {
            Some(example) => format!("missing; add it, say {example}"),
            None => "missing; add it".into(),
        },
        Problem::WrongType { found, expected } => {
            let expected = bounds(&error.field()).unwrap_or_else(|| expected.clone());
            format!("{found} is not possible; give {expected}{}", type_hint(found, &expected))
        }
        Problem::Other(message) => message.clone(),
    }
}

/// The known name that was probably meant: alike, or one of them the beginning of the other.
fn nearest(name: &str, known: &[&'static str]) -> Option<&'static str> {
    let name = name.to_lowercase();
    let score = |k: &&'static str| {
        let likeness = strsim::jaro_winkler(&name, k);
        if name.len() >= 3 && (k.starts_with(&name) || name.starts_with(*k)) { likeness.max(0.9) } else { likeness }
    };
    known
        .iter()
        .copied()
        .map(|k| (score(&k), k))
        .filter(|(s, _)| *s > 0.84)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}

/// What a number of a field may be, where that is less than its type holds.
fn bounds(field: &str) -> Option<String> {
    match field {
        "cpus" => Some(format!("a whole number from 1 to {CPUS_MAX}")),
        "memory_mib" => Some(format!("a whole number from {MEMORY_MIB_MIN} to {MEMORY_MIB_MAX} (MiB)")),
        _ if !field.starts_with("nets[") => None,
        _ => match field.rsplit('.').next() {
            Some("queues") => Some(format!("a whole number from 1 to {QUEUES_MAX}")),
            Some("host" | "guest") => Some("a whole number from 1 to 65535 (a port)".into()),
            _ => None,
        },
    }
}

fn type_hint(found: &str, expected: &str) -> &'static str {
    let number = expected.starts_with("a whole number");
    let quoted = found.strip_prefix("the text \"").and_then(|f| f.strip_suffix('"'));
    match quoted {
        Some(text) if number && text.parse::<u64>().is_ok() => ", without quotes",
        Some("true" | "false") if expected == "true or false" => ", without quotes",
        _ => "",
    }
}

/// What a field that is needed may look like.
fn example(field: &str) -> Option<&'static str> {
    Some(match field {
        "name" => "\"name\": \"vm1\"",
        "cpus" => "\"cpus\": 1",
        "memory_mib" => "\"memory_mib\": 512",
        "boot" => "\"boot\": { \"builtin\": \"hello\" }",
        "path" => "\"path\": \"root.img\"",
        "network" => "\"network\": \"default\"",
        "host" => "\"host\": 8080",
        "guest" => "\"guest\": 80",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use crate::vmjson::parse;

    /// The error of a text, as the user sees it.
    #[track_caller]
    fn sentence(text: &str) -> String {
        let sentence = parse("vm.json", text).unwrap_err().to_string();
        assert!(!sentence.contains(|c: char| c.is_control()), "{sentence:?}");
        for debug in ["Some(", "Error", "{ ", "struct ", "Spec"] {
            let example = sentence.contains("say \"boot\"") || sentence.contains("an object in { }");
            assert!(!sentence.contains(debug) || (debug == "{ " && example), "{debug:?} in {sentence}");
        }
        sentence
    }

    fn with(member: &str) -> String {
        format!(
            "{{\n\"name\": \"a\",\n\"cpus\": 1,\n\"memory_mib\": 32,\n\"boot\": {{\"builtin\": \"hello\"}},\n{member}\n}}"
        )
    }

    #[test]
    fn a_good_file_is_parsed() {
        let spec = parse("vm.json", &with("\"disks\": [{\"path\": \"x\"}], \"console\": null")).unwrap();
        assert_eq!((spec.name.as_str(), spec.cpus, spec.disks.len()), ("a", 1, 1));
        assert!(spec.console.is_none() && !spec.disks[0].readonly);
    }

    #[test]
    fn an_unknown_field_names_its_line_and_the_nearest_known_one() {
        assert_eq!(
            sentence(&with("\"memory\": 5")),
            "vm.json:6:1: memory: unknown field; did you mean \"memory_mib\"?"
        );
        assert!(sentence(&with("\"cpu\": 5")).ends_with("did you mean \"cpus\"?"));
        assert!(sentence(&with("\"Disks\": []")).ends_with("did you mean \"disks\"?"));
        assert_eq!(
            sentence(&with("\"disks\": [\n{\"path\": \"x\", \"read_only\": true}]")),
            "vm.json:7:15: disks[0].read_only: unknown field; did you mean \"readonly\"?"
        );
        assert!(sentence(&with("\"colour\": 1")).ends_with(
            "colour: unknown field; known here: name, cpus, memory_mib, boot, disks, console, limits, nets, restart, backoff, health"
        ));
        assert_eq!(
            sentence(&with("\"nets\": [{\"network\": \"a\", \"forward\": []}]")),
            "vm.json:6:27: nets[0].forward: unknown field; did you mean \"forwards\"?"
        );
        assert!(
            sentence(&with("\"nets\": [{\"network\": \"a\", \"mac\": \"\"}]"))
                .ends_with("did you mean \"mac_suffix\"?")
        );
        assert!(sentence(&with("\"a\\u001b[2J\": 1")).contains("a\\u{1b}[2J: unknown field"));
    }

    #[test]
    fn a_wrong_type_says_what_is_there_and_what_belongs_there() {
        let at = |text: &str| sentence(text);
        assert_eq!(at(&with("\"disks\": {}")), "vm.json:6:10: disks: an object is not possible; give a list in [ ]");
        assert_eq!(
            at("{\"name\": \"a\",\n \"cpus\": \"2\"}"),
            "vm.json:2:10: cpus: the text \"2\" is not possible; give a whole number from 1 to 32, without quotes"
        );
        assert!(at("{\"cpus\": 1.5}").ends_with("cpus: 1.5 is not possible; give a whole number from 1 to 32"));
        for memory in ["-1", "1e30"] {
            let said = at(&format!("{{\"memory_mib\": {memory}}}"));
            assert!(said.ends_with("give a whole number from 20 to 1048576 (MiB)"), "{said}");
        }
        assert!(at("{\"cpus\": -1}").contains("cpus: -1 is not possible"));
        assert!(at("{\"cpus\": 70000}").contains("cpus: 70000 is not possible; give a whole number from 1 to 32"));
        assert!(at("{\"memory_mib\": 99999999999999999999}").contains("memory_mib: 100000000000000000000 is not"));
        assert!(at("{\"name\": null}").contains("name: null is not possible; give text in quotes"));
        assert!(at("{\"boot\": \"vmlinuz\"}").contains("boot: the text \"vmlinuz\" is not possible; give an object"));
        assert!(at("{\"boot\": [\"vmlinuz\"]}").contains("boot: a list is not possible; give an object in { }"));
        assert!(at("[]").starts_with("vm.json:1:1: a list is not possible; give an object"));
        assert!(at("{\"boot\": {\"builtin\": \"helo\"}}").ends_with("\"helo\" is not known; did you mean \"hello\"?"));
        assert!(
            at("{\"boot\": {\"builtin\": 7}}")
                .ends_with("boot.builtin: 7 is not possible; give one of \"hello\", \"net\"")
        );
        let forward = |host: &str| {
            let forward = format!("{{\"host\": {host}, \"guest\": 80, \"protocol\": \"sctp\"}}");
            with(&format!("\"nets\": [{{\"network\": \"a\", \"forwards\": [{forward}]}}]"))
        };
        assert!(
            at(&forward("70000"))
                .ends_with("host: 70000 is not possible; give a whole number from 1 to 65535 (a port)")
        );
        assert!(at(&forward("1")).ends_with("\"sctp\" is not known; give one of \"tcp\", \"udp\""));
        assert!(
            at(&with("\"disks\": [{\"path\": \"x\", \"engine\": \"magic\"}]"))
                .ends_with("\"magic\" is not known; give one of \"auto\", \"threads\"")
        );
        assert!(
            at(&with("\"disks\": [{\"path\": \"x\", \"readonly\": \"true\"}]"))
                .ends_with("true or false, without quotes")
        );
    }

    #[test]
    fn a_missing_field_is_named_with_an_example_and_the_line_of_its_object() {
        assert_eq!(sentence("\n{\"name\": \"a\"}"), "vm.json:2:1: cpus: missing; add it, say \"cpus\": 1");
        assert_eq!(
            sentence(&with("\"disks\": [\n{\"path\": \"a\"},\n{}]")),
            "vm.json:8:1: disks[1].path: missing; add it, say \"path\": \"root.img\""
        );
    }

    #[test]
    fn a_key_that_stands_there_twice_names_both_lines() {
        assert_eq!(
            sentence(&with("\"cpus\": 2")),
            "vm.json:6:1: cpus: stands here a second time, the first is on line 3; remove one"
        );
    }

    #[test]
    fn what_is_no_json_says_where_and_why() {
        assert!(sentence("").contains("an empty file"));
        assert!(sentence("{\n // x\n}").ends_with("JSON has no comments, remove it"));
        assert!(sentence("{\n 'name': 1\n}").starts_with("vm.json:2:2: not valid JSON"));
        assert!(sentence("{\"name\": \"a\0b\"}").contains("control character"));
        assert!(sentence("{\"name\": \"a\"").ends_with("the file ends inside an object; complete it"));
        assert!(sentence(&("{\"name\": ".to_owned() + &"[".repeat(1_000_000))).contains("not valid JSON"));
        let deep = format!("{{\"name\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(sentence(&deep).contains("nested too deeply"));
    }
}
