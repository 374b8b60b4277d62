//! From rules to BPF, by seccompiler.

use crate::arch::Arch;
use crate::bpf::Instruction;
use crate::model::{Action, Condition, Filter, Op, Width};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// A filter that cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its architecture has no such system call.
    #[error("{file}: {arch} has no system call `{syscall}`")]
    Syscall {
        /// The filter's file.
        file: String,
        /// `x86_64`, …
        arch: &'static str,
        /// The name.
        syscall: String,
    },
    /// seccompiler refused it.
    #[error("{file}: {error}")]
    Compiler {
        /// The filter's file.
        file: String,
        /// What it said.
        error: seccompiler::BackendError,
    },
}

/// Compiles a filter. Where one rule of a system call has no conditions, its other rules do not matter.
///
/// # Errors
/// See [`Error`].
pub fn compile(filter: &Filter) -> Result<Vec<Instruction>, Error> {
    let failed = |error| Error::Compiler { file: filter.file.clone(), error };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut free: Vec<i64> = Vec::new();
    for rule in &filter.rules {
        let number = filter.arch.number(&rule.syscall).ok_or_else(|| Error::Syscall {
            file: filter.file.clone(),
            arch: filter.arch.name(),
            syscall: rule.syscall.clone(),
        })?;
        let entry = rules.entry(i64::from(number)).or_default();
        if rule.conditions.is_empty() {
            free.push(i64::from(number));
        } else {
            let conditions = rule.conditions.iter().map(condition).collect::<Result<_, _>>().map_err(failed)?;
            entry.push(SeccompRule::new(conditions).map_err(failed)?);
        }
    }
    for number in free {
        rules.insert(number, Vec::new());
    }
    let target = match filter.arch {
        Arch::X86_64 => TargetArch::x86_64,
        Arch::Aarch64 => TargetArch::aarch64,
    };
    let compiled = SeccompFilter::new(rules, action(filter.default), action(filter.matched), target).map_err(failed)?;
    let program: BpfProgram = compiled.try_into().map_err(failed)?;
    Ok(program.iter().map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect())
}

fn condition(c: &Condition) -> Result<SeccompCondition, seccompiler::BackendError> {
    let width = match c.width {
        Width::Dword => SeccompCmpArgLen::Dword,
        Width::Qword => SeccompCmpArgLen::Qword,
    };
    let op = match c.op {
        Op::Eq => SeccompCmpOp::Eq,
        Op::Ne => SeccompCmpOp::Ne,
        Op::Lt => SeccompCmpOp::Lt,
        Op::Le => SeccompCmpOp::Le,
        Op::Gt => SeccompCmpOp::Gt,
        Op::Ge => SeccompCmpOp::Ge,
        Op::MaskedEq(mask) => SeccompCmpOp::MaskedEq(mask),
    };
    SeccompCondition::new(c.index, width, op, c.value)
}

fn action(action: Action) -> SeccompAction {
    match action {
        Action::KillProcess => SeccompAction::KillProcess,
        Action::KillThread => SeccompAction::KillThread,
        Action::Trap => SeccompAction::Trap,
        Action::Errno(n) => SeccompAction::Errno(u32::from(n)),
        Action::Trace(n) => SeccompAction::Trace(u32::from(n)),
        Action::Log => SeccompAction::Log,
        Action::Allow => SeccompAction::Allow,
    }
}
