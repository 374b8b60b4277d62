//! Questions to a filter: may this call be made, by which rule, and why.
//!
//! The compiled program answers, run as the kernel runs it; the file then says which rule that is. Where the two disagree
//! the answer is an error, since then one of them is not what it is taken for.

use crate::bpf::{self, Data, Fault, Instruction};
use crate::model::{Action, Filter, Rule};
use serde::Serialize;

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict<'a> {
    /// What the kernel does.
    pub action: Action,
    /// The rules that name the call with these arguments; none: the default action.
    pub rules: Vec<&'a Rule>,
}

/// No answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The architecture has no such call.
    #[error("{arch} has no system call `{syscall}`")]
    Syscall {
        /// `x86_64`, …
        arch: &'static str,
        /// The name.
        syscall: String,
    },
    /// The program is none.
    #[error("{filter}: {fault}")]
    Program {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        fault: Fault,
    },
    /// File and program disagree.
    #[error(
        "{filter}: the compiled program says `{program}` to {syscall}, its file says `{file}`: they are not of one version"
    )]
    Disagree {
        /// The filter.
        filter: String,
        /// The call.
        syscall: String,
        /// What the program does.
        program: Action,
        /// What the file says.
        file: Action,
    },
}

/// Asks a compiled filter about a call.
///
/// # Errors
/// See [`Error`].
pub fn check<'a>(
    filter: &'a Filter,
    program: &[Instruction],
    syscall: &str,
    args: [u64; 6],
) -> Result<Verdict<'a>, Error> {
    let nr = filter
        .arch
        .number(syscall)
        .ok_or_else(|| Error::Syscall { arch: filter.arch.name(), syscall: syscall.to_owned() })?;
    let data = Data { nr, arch: filter.arch.audit(), instruction_pointer: 0, args };
    let returned = bpf::run(program, &data).map_err(|fault| Error::Program { filter: filter.name.clone(), fault })?;
    let action = bpf::action(returned);
    let rules: Vec<&Rule> = filter.rules.iter().filter(|r| r.matches(syscall, &args)).collect();
    let file = if rules.is_empty() { filter.default } else { filter.matched };
    if file != action {
        let (filter, syscall) = (filter.name.clone(), syscall.to_owned());
        return Err(Error::Disagree { filter, syscall, program: action, file });
    }
    Ok(Verdict { action, rules })
}

/// What a filter does with a system call, whatever its arguments.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ever<'a> {
    /// Some rule has no conditions.
    Always(&'a Rule),
    /// These rules, each with conditions.
    If(Vec<&'a Rule>),
    /// No rule names it.
    Never,
}

/// What the rules say of a system call.
pub fn ever<'a>(filter: &'a Filter, syscall: &str) -> Ever<'a> {
    let rules: Vec<&Rule> = filter.rules.iter().filter(|r| r.syscall == syscall).collect();
    match rules.iter().find(|r| r.conditions.is_empty()) {
        Some(free) => Ever::Always(free),
        None if rules.is_empty() => Ever::Never,
        None => Ever::If(rules),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Arch;
    use crate::compile::compile;
    use crate::model::Set;

    fn set() -> Set {
        let text = r#"{"netd": {"mismatch_action": "kill_process", "match_action": "allow", "filter": [
            {"syscall": "read", "comment": "reads what there is"},
            {"syscall": "ioctl", "comment": "one command", "args": [{"index": 1, "type": "dword", "op": "eq", "val": 7, "comment": "SEVEN"}]}
        ]}}"#;
        Set::from_texts("a test", [("seccomp/x86_64/netd.json".to_owned(), text.to_owned())]).unwrap()
    }

    #[test]
    fn a_verdict_is_the_programs_and_names_the_rule() {
        let set = set();
        let filter = set.filter(Arch::X86_64, "netd").unwrap();
        let program = compile(filter).unwrap();
        let ask = |name: &str, args| check(filter, &program, name, args).unwrap();
        assert_eq!(ask("read", [1; 6]).rules[0].key(), "read()");
        // The upper half of the argument is not looked at.
        let seven = ask("ioctl", [0, 0xffff_ffff_0000_0007, 0, 0, 0, 0]);
        assert_eq!((seven.action, seven.rules[0].line), (Action::Allow, 3));
        let eight = ask("ioctl", [0, 8, 0, 0, 0, 0]);
        assert_eq!((eight.action, eight.rules.len()), (Action::KillProcess, 0));
        assert!(matches!(ever(filter, "ioctl"), Ever::If(rules) if rules.len() == 1));
        assert!(matches!(ever(filter, "read"), Ever::Always(_)));
        assert_eq!(ever(filter, "write"), Ever::Never);
        assert!(matches!(check(filter, &program, "red", [0; 6]), Err(Error::Syscall { .. })));
    }

    #[test]
    fn a_program_of_another_version_is_no_answer() {
        let set = set();
        let filter = set.filter(Arch::X86_64, "netd").unwrap();
        let mut other = filter.clone();
        other.rules.pop();
        let program = compile(&other).unwrap();
        assert!(matches!(check(filter, &program, "ioctl", [0, 7, 0, 0, 0, 0]), Err(Error::Disagree { .. })));
        assert!(matches!(check(filter, &program[..1], "read", [0; 6]), Err(Error::Program { .. })));
    }
}
