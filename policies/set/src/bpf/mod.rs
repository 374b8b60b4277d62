//! Classic BPF as seccomp takes it (`linux/filter.h`, Documentation/userspace-api/seccomp_filter.rst).

mod calls;
mod listing;
mod validate;

pub use calls::calls;
pub use listing::{line, listing};
pub use validate::{Invalid, LENGTH_MAX, validate};

use crate::model::Action;
use serde::{Deserialize, Serialize};

/// One instruction, `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Instruction {
    /// Class, size, mode or operation.
    pub code: u16,
    /// Instructions to skip where a comparison holds.
    pub jt: u8,
    /// Instructions to skip where it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// What a filter is given, `struct seccomp_data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Data {
    /// Number of the system call.
    pub nr: u32,
    /// `AUDIT_ARCH_*`.
    pub arch: u32,
    /// Where the call was made.
    pub instruction_pointer: u64,
    /// Its arguments.
    pub args: [u64; 6],
}

/// Why a program cannot go on. The kernel accepts none that could.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It ran past its end.
    #[error("it has no instruction {0}")]
    End(usize),
    /// Instructions that seccomp does not know.
    #[error("instruction {0} has a code that seccomp does not take: {1:#06x}")]
    Code(usize, u16),
    /// A load from where there is nothing.
    #[error("instruction {0} loads from offset {1}, where there is nothing")]
    Offset(usize, u32),
    /// A division by nothing.
    #[error("instruction {0} divides by zero")]
    Division(usize),
}

/// Bytes of [`Data`].
const DATA_LEN: u32 = 64;

impl Data {
    /// The 32 bits at an offset, in a little-endian layout, as both of our architectures have it.
    fn word(&self, offset: u32) -> Option<u32> {
        let half = |value: u64, high: bool| if high { (value >> 32) as u32 } else { value as u32 };
        match offset {
            0 => Some(self.nr),
            4 => Some(self.arch),
            8 | 12 => Some(half(self.instruction_pointer, offset == 12)),
            16..=60 if offset.is_multiple_of(4) => {
                Some(half(self.args[(offset as usize - 16) / 8], !offset.is_multiple_of(8)))
            }
            _ => None,
        }
    }
}

/// Runs a program: what it returns, `SECCOMP_RET_*` with its data. Jumps only go forward, so it ends.
///
/// # Errors
/// The program is none that the kernel would take.
pub fn run(program: &[Instruction], data: &Data) -> Result<u32, Fault> {
    let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; 16]);
    let mut at = 0usize;
    loop {
        let i = program.get(at).ok_or(Fault::End(at))?;
        let slot = |k: u32| usize::try_from(k).ok().filter(|k| *k < 16).ok_or(Fault::Offset(at, k));
        let mut skip = 0usize;
        let operand = if i.code & 0x08 == 0 { i.k } else { x };
        match i.code {
            // LD and LDX: a word of the data, a constant, a memory slot, the length.
            0x20 => a = data.word(i.k).ok_or(Fault::Offset(at, i.k))?,
            0x00 => a = i.k,
            0x01 => x = i.k,
            0x60 => a = memory[slot(i.k)?],
            0x61 => x = memory[slot(i.k)?],
            0x80 => a = DATA_LEN,
            0x81 => x = DATA_LEN,
            0x02 => memory[slot(i.k)?] = a,
            0x03 => memory[slot(i.k)?] = x,
            // ALU, with a constant or X.
            0x04 | 0x0c => a = a.wrapping_add(operand),
            0x14 | 0x1c => a = a.wrapping_sub(operand),
            0x24 | 0x2c => a = a.wrapping_mul(operand),
            // A division by an X of zero ends a program with 0, by the kernel's rules.
            0x34 => a = a.checked_div(operand).ok_or(Fault::Division(at))?,
            0x3c => match a.checked_div(operand) {
                Some(quotient) => a = quotient,
                None => return Ok(0),
            },
            0x44 | 0x4c => a |= operand,
            0x54 | 0x5c => a &= operand,
            0xa4 | 0xac => a ^= operand,
            // The kernel masks a shift by X to 5 bits, and takes no larger constant.
            0x64 | 0x6c => a = a.wrapping_shl(operand),
            0x74 | 0x7c => a = a.wrapping_shr(operand),
            0x84 => a = a.wrapping_neg(),
            0x05 => skip = i.k as usize,
            0x15 | 0x1d => skip = usize::from(if a == operand { i.jt } else { i.jf }),
            0x25 | 0x2d => skip = usize::from(if a > operand { i.jt } else { i.jf }),
            0x35 | 0x3d => skip = usize::from(if a >= operand { i.jt } else { i.jf }),
            0x45 | 0x4d => skip = usize::from(if a & operand != 0 { i.jt } else { i.jf }),
            0x06 => return Ok(i.k),
            0x16 => return Ok(a),
            0x07 => x = a,
            0x87 => a = x,
            code => return Err(Fault::Code(at, code)),
        }
        at = at.saturating_add(1).saturating_add(skip);
    }
}

/// What the kernel does for a return value, `SECCOMP_RET_*`. An action that it does not know kills the process.
pub fn action(returned: u32) -> Action {
    let data = (returned & 0xffff) as u16;
    match returned & 0xffff_0000 {
        0x0000_0000 => Action::KillThread,
        0x0003_0000 => Action::Trap,
        // The kernel takes no larger errno, MAX_ERRNO.
        0x0005_0000 => Action::Errno(data.min(4095)),
        // SECCOMP_RET_USER_NOTIF: a process with the listener decides, as a tracer does; ENOSYS where there is none.
        0x7fc0_0000 | 0x7ff0_0000 => Action::Trace(data),
        0x7ffc_0000 => Action::Log,
        0x7fff_0000 => Action::Allow,
        _ => Action::KillProcess,
    }
}
