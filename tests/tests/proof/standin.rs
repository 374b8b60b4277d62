//! Until policy-set has them: the compiler and the interpreter.

use policy_set::bpf::{Data, Instruction};
use policy_set::model::{Action, Filter, Op, Width};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// As build.rs does it.
pub fn compile(filter: &Filter) -> Result<Vec<Instruction>, String> {
    let action = |a: Action| match a {
        Action::KillProcess => SeccompAction::KillProcess,
        Action::KillThread => SeccompAction::KillThread,
        Action::Trap => SeccompAction::Trap,
        Action::Errno(e) => SeccompAction::Errno(u32::from(e)),
        Action::Trace(e) => SeccompAction::Trace(u32::from(e)),
        Action::Log => SeccompAction::Log,
        Action::Allow => SeccompAction::Allow,
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in &filter.rules {
        let all = rules.entry(i64::from(filter.arch.number(&rule.syscall).ok_or("no such call")?)).or_default();
        if rule.conditions.is_empty() {
            continue;
        }
        let conditions = rule
            .conditions
            .iter()
            .map(|c| {
                let width = if c.width == Width::Dword { SeccompCmpArgLen::Dword } else { SeccompCmpArgLen::Qword };
                let op = match c.op {
                    Op::Eq => SeccompCmpOp::Eq,
                    Op::Ne => SeccompCmpOp::Ne,
                    Op::Lt => SeccompCmpOp::Lt,
                    Op::Le => SeccompCmpOp::Le,
                    Op::Gt => SeccompCmpOp::Gt,
                    Op::Ge => SeccompCmpOp::Ge,
                    Op::MaskedEq(m) => SeccompCmpOp::MaskedEq(m),
                };
                SeccompCondition::new(c.index, width, op, c.value)
            })
            .collect::<Result<_, _>>()
            .map_err(|e| e.to_string())?;
        all.push(SeccompRule::new(conditions).map_err(|e| e.to_string())?);
    }
    let arch = TargetArch::try_from(filter.arch.name()).map_err(|e| e.to_string())?;
    let program: BpfProgram = SeccompFilter::new(rules, action(filter.default), action(filter.matched), arch)
        .and_then(TryInto::try_into)
        .map_err(|e| e.to_string())?;
    Ok(program.iter().map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect())
}

/// What `bpf_check_classic` and `seccomp_check_filter` of the kernel refuse, all as EINVAL.
pub fn validate(program: &[Instruction]) -> Result<(), String> {
    if program.is_empty() || program.len() > 4_096 {
        return Err("length".to_owned());
    }
    let mut masks = vec![u16::MAX; program.len()];
    let mut stored = 0_u16;
    for (at, i) in program.iter().enumerate() {
        let wrong = |what: &str| Err(format!("instruction {at}: {what}: {i:?}"));
        let behind = program.len() - at - 1;
        stored &= masks[at];
        match i.code {
            0x20 if i.k >= 64 || i.k % 4 != 0 => return wrong("offset"),
            0x34 if i.k == 0 => return wrong("division by zero"),
            0x64 | 0x74 if i.k >= 32 => return wrong("shift"),
            0x02 | 0x03 | 0x60 | 0x61 if i.k >= 16 => return wrong("memory word"),
            0x60 | 0x61 if stored & (1 << i.k) == 0 => return wrong("loads what was not stored"),
            0x02 | 0x03 => stored |= 1 << i.k,
            0x05 if i.k as usize >= behind => return wrong("jump"),
            0x05 => {
                masks[at + 1 + i.k as usize] &= stored;
                stored = u16::MAX;
            }
            0x15 | 0x1d | 0x25 | 0x2d | 0x35 | 0x3d | 0x45 | 0x4d => {
                for offset in [i.jt, i.jf].map(usize::from) {
                    if offset >= behind {
                        return wrong("jump");
                    }
                    masks[at + 1 + offset] &= stored;
                }
                stored = u16::MAX;
            }
            0x20 | 0x80 | 0x81 | 0x00 | 0x01 | 0x60 | 0x61 | 0x04 | 0x0c | 0x14 | 0x1c | 0x24 | 0x2c | 0x34 | 0x3c
            | 0x44 | 0x4c | 0x54 | 0x5c | 0x64 | 0x6c | 0x74 | 0x7c | 0x84 | 0xa4 | 0xac | 0x06 | 0x16 | 0x07
            | 0x87 => {}
            _ => return wrong("no such instruction"),
        }
    }
    match program.last().map(|i| i.code) {
        Some(0x06 | 0x16) => Ok(()),
        _ => Err("does not end with a return".to_owned()),
    }
}

/// What a valid program returns.
pub fn run(program: &[Instruction], data: &Data) -> Result<u32, String> {
    let word = |k: u32| match k {
        0 => data.nr,
        4 => data.arch,
        8 => data.instruction_pointer as u32,
        12 => (data.instruction_pointer >> 32) as u32,
        k => (data.args[(k as usize - 16) / 8] >> (8 * (k % 8))) as u32,
    };
    let (mut at, mut a, mut x, mut memory) = (0_usize, 0_u32, 0_u32, [0_u32; 16]);
    loop {
        let i = program.get(at).ok_or("end")?;
        at += 1;
        let operand = if i.code & 0x08 == 0 { i.k } else { x };
        let k = i.k as usize;
        match i.code {
            0x20 => a = word(i.k),
            0x80 => a = 64,
            0x81 => x = 64,
            0x00 => a = i.k,
            0x01 => x = i.k,
            0x60 => a = memory[k],
            0x61 => x = memory[k],
            0x02 => memory[k] = a,
            0x03 => memory[k] = x,
            0x04 | 0x0c => a = a.wrapping_add(operand),
            0x14 | 0x1c => a = a.wrapping_sub(operand),
            0x24 | 0x2c => a = a.wrapping_mul(operand),
            0x34 | 0x3c => match a.checked_div(operand) {
                Some(result) => a = result,
                None => return Ok(0),
            },
            0x44 | 0x4c => a |= operand,
            0x54 | 0x5c => a &= operand,
            0x64 | 0x6c => a = a.wrapping_shl(operand),
            0x74 | 0x7c => a = a.wrapping_shr(operand),
            0x84 => a = a.wrapping_neg(),
            0xa4 | 0xac => a ^= operand,
            0x05 => at += k,
            0x15 | 0x1d => at += usize::from(if a == operand { i.jt } else { i.jf }),
            0x25 | 0x2d => at += usize::from(if a > operand { i.jt } else { i.jf }),
            0x35 | 0x3d => at += usize::from(if a >= operand { i.jt } else { i.jf }),
            0x45 | 0x4d => at += usize::from(if a & operand != 0 { i.jt } else { i.jf }),
            0x06 => return Ok(i.k),
            0x16 => return Ok(a),
            0x07 => x = a,
            0x87 => a = x,
            other => return Err(format!("{other:#x}")),
        }
    }
}
