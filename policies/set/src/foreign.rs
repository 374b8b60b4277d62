//! Reads sets of others: JSON as seccompiler takes it and Firecracker's projects keep it, one file for an architecture, one
//! filter for each thread.
//!
//! ```json
//! { "vcpu": { "default_action": "trap", "filter_action": "allow",
//!             "filter": [ { "syscall": "ioctl", "args": [ … ], "comment": "…" } ] } }
//! ```
//!
//! Newer files say `mismatch_action` and `match_action`. What is not of this format is refused by its name.

use crate::arch::Arch;
use crate::model::{Filter, Set};
use crate::wire::{self, Error, Once, Source, WireAction};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Most filters of a file.
const FILTERS_MAX: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ForeignFilter<'a> {
    #[serde(alias = "default_action")]
    mismatch_action: WireAction,
    #[serde(alias = "filter_action")]
    match_action: WireAction,
    #[serde(borrow)]
    filter: Vec<&'a RawValue>,
}

/// Reads the text of one file, whose name is for sentences.
///
/// # Errors
/// What is not of the format, by file and line; a system call that the architecture does not have.
pub fn read(file: &str, arch: Arch, text: &str) -> Result<Set, Error> {
    let source = Source { file, text };
    let Once(all): Once<&RawValue> = source.parse(text)?;
    if all.is_empty() || all.len() > FILTERS_MAX {
        return Err(source.error(None, format!("{} filters, where 1 to {FILTERS_MAX} are possible", all.len())));
    }
    let mut set = Set { origin: file.to_owned(), ..Set::default() };
    for (name, body) in all {
        let parsed: ForeignFilter<'_> = source.parse(body.get())?;
        let rules = wire::rules(source, &parsed.filter, Some(arch))?;
        if let Some(ours) = rules.iter().find(|r| r.unexercised.is_some() || !r.accepted.is_empty()) {
            return Err(source.error(Some(ours.line), "unknown field: only vmsup's own files explain themselves"));
        }
        let free = |call: &str| rules.iter().any(|r| r.syscall == call && r.conditions.is_empty());
        if let Some(mixed) = rules.iter().find(|r| !r.conditions.is_empty() && free(&r.syscall)) {
            let what =
                format!("`{}` stands there with conditions and without: seccompiler drops the latter", mixed.syscall);
            return Err(source.error(Some(mixed.line), what));
        }
        set.filters.push(Filter {
            name,
            arch,
            file: file.to_owned(),
            default: parsed.mismatch_action.into(),
            matched: parsed.match_action.into(),
            rules,
            accepted: BTreeMap::new(),
        });
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::{Data, action, run};
    use crate::compile::compile;
    use crate::model::{Action, Op, Width};

    const TEXT: &str = r#"{
  "api": {
    "default_action": "trap",
    "filter_action": "allow",
    "filter": [
      {"syscall": "accept4", "comment": "Called by the server"},
      {"syscall": "socket", "args": [
        {"index": 0, "type": "dword", "op": "eq", "val": 1, "comment": "libc::AF_UNIX"},
        {"index": 1, "type": "dword", "op": {"masked_eq": 255}, "val": 1}
      ]}
    ]
  },
  "vcpu": { "mismatch_action": {"errno": 13}, "match_action": "log", "filter": [ {"syscall": "exit"} ] }
}"#;

    #[test]
    fn a_set_by_thread_is_read_and_compiles_and_evaluates() {
        let set = read("foreign.json", Arch::X86_64, TEXT).unwrap();
        let [api, vcpu] = &set.filters[..] else { panic!("{set:?}") };
        assert_eq!((api.name.as_str(), api.default, api.matched), ("api", Action::Trap, Action::Allow));
        assert_eq!((vcpu.default, vcpu.matched), (Action::Errno(13), Action::Log));
        assert_eq!((api.rules[1].line, api.rules[1].comment.as_deref()), (7, None));
        let second = &api.rules[1].conditions[1];
        assert_eq!((second.op, second.width, second.comment.as_deref()), (Op::MaskedEq(255), Width::Dword, None));
        let ask = |filter: &Filter, name: &str, args: [u64; 6]| {
            let data =
                Data { nr: filter.arch.number(name).unwrap(), arch: filter.arch.audit(), args, ..Data::default() };
            action(run(&compile(filter).unwrap(), &data).unwrap())
        };
        assert_eq!(ask(api, "socket", [1, 0x0008_0001, 0, 0, 0, 0]), Action::Allow);
        assert_eq!(ask(api, "socket", [2, 1, 0, 0, 0, 0]), Action::Trap);
        assert_eq!(ask(vcpu, "exit", [0; 6]), Action::Log);
        assert_eq!(ask(vcpu, "read", [0; 6]), Action::Errno(13));
    }

    #[test]
    fn what_is_not_of_the_format_is_refused_by_its_name_and_line() {
        let refused = |from: &str, to: &str| {
            let text = TEXT.replacen(from, to, 1);
            assert_ne!(text, TEXT, "{from}");
            read("foreign.json", Arch::X86_64, &text).unwrap_err().to_string()
        };
        for (from, to, line, word) in [
            ("\"trap\"", "\"notify\"", 3, "notify"),
            ("{\"errno\": 13}", "{\"return\": 13}", 13, "return"),
            ("\"eq\"", "\"in\"", 8, "in"),
            ("{\"masked_eq\": 255}", "{\"any_of\": 255}", 9, "any_of"),
            ("\"syscall\": \"accept4\"", "\"syscalls\": \"accept4\"", 6, "syscalls"),
            ("\"syscall\": \"accept4\"", "\"syscall\": \"accept5\"", 6, "accept5"),
            ("\"index\": 0", "\"index\": 6", 8, "argument 6"),
            ("\"val\": 1,", "\"val\": 4294967297,", 8, "32 bits"),
            ("\"filter\": [\n", "\"priority\": 1, \"filter\": [\n", 5, "priority"),
            ("\"comment\": \"Called", "\"unexercised\": \"Called", 6, "unknown field"),
        ] {
            let said = refused(from, to);
            assert!(said.starts_with(&format!("foreign.json:{line}: ")) && said.contains(word), "{to}: {said}");
        }
        let mixed = refused(
            "{\"syscall\": \"exit\"}",
            "{\"syscall\": \"exit\"}, {\"syscall\": \"exit\", \"args\": [{\"index\": 0, \"type\": \"dword\", \"op\": \"eq\", \"val\": 1}]}",
        );
        assert!(mixed.contains("`exit`") && mixed.contains("with conditions and without"), "{mixed}");
        assert!(read("foreign.json", Arch::X86_64, "{}").unwrap_err().to_string().contains("0 filters"));
        let long = " ".repeat(wire::FILE_MAX + 1);
        assert!(read("foreign.json", Arch::X86_64, &long).unwrap_err().to_string().contains("at most"));
    }
}
