//! What the kernel takes: `bpf_check_classic` of net/core/filter.c, and `seccomp_check_filter` of kernel/seccomp.c.

use super::Instruction;

/// Most instructions of a program, `BPF_MAXINSNS`.
pub const LENGTH_MAX: usize = 4096;

/// A program that the kernel refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// No instruction, or too many.
    #[error("{0} instructions, where 1 to {LENGTH_MAX} are possible")]
    Length(usize),
    /// Seccomp does not know this instruction.
    #[error("instruction {0}: seccomp does not take the code {1:#06x}")]
    Code(usize, u16),
    /// A load from where there is nothing, or not aligned.
    #[error("instruction {0}: loads from offset {1}")]
    Offset(usize, u32),
    /// A memory slot that does not exist.
    #[error("instruction {0}: memory slot {1}, where there are 16")]
    Slot(usize, u32),
    /// A slot that may be read before it was written.
    #[error("instruction {0}: memory slot {1} may be read before it was written")]
    Unwritten(usize, u32),
    /// A division by the constant 0, or a shift by more than 31.
    #[error("instruction {0}: a constant that cannot be: {1}")]
    Constant(usize, u32),
    /// A jump out of the program.
    #[error("instruction {0}: jumps out of the program")]
    Jump(usize),
    /// It does not end in a return.
    #[error("the last instruction is no return")]
    End,
}

/// Whether the kernel would take a program.
///
/// # Errors
/// The first instruction that it refuses.
pub fn validate(program: &[Instruction]) -> Result<(), Invalid> {
    if program.is_empty() || program.len() > LENGTH_MAX {
        return Err(Invalid::Length(program.len()));
    }
    for (at, i) in program.iter().enumerate() {
        one(program.len(), at, i)?;
    }
    if !matches!(program.last().map(|i| i.code), Some(0x06 | 0x16)) {
        return Err(Invalid::End);
    }
    memory(program)
}

fn one(length: usize, at: usize, i: &Instruction) -> Result<(), Invalid> {
    let inside = |skip: usize| if at + skip + 1 < length { Ok(()) } else { Err(Invalid::Jump(at)) };
    match i.code {
        0x20 if i.k >= super::DATA_LEN || !i.k.is_multiple_of(4) => Err(Invalid::Offset(at, i.k)),
        0x60 | 0x61 | 0x02 | 0x03 if i.k >= 16 => Err(Invalid::Slot(at, i.k)),
        0x34 if i.k == 0 => Err(Invalid::Constant(at, 0)),
        0x64 | 0x74 if i.k >= 32 => Err(Invalid::Constant(at, i.k)),
        0x05 => usize::try_from(i.k).map_or(Err(Invalid::Jump(at)), inside),
        0x15 | 0x1d | 0x25 | 0x2d | 0x35 | 0x3d | 0x45 | 0x4d => {
            inside(usize::from(i.jt)).and_then(|()| inside(usize::from(i.jf)))
        }
        0x20 | 0x00 | 0x01 | 0x60 | 0x61 | 0x80 | 0x81 | 0x02 | 0x03 => Ok(()),
        0x04 | 0x0c | 0x14 | 0x1c | 0x24 | 0x2c | 0x34 | 0x3c | 0x44 | 0x4c | 0x54 | 0x5c => Ok(()),
        0x64 | 0x6c | 0x74 | 0x7c | 0x84 | 0xa4 | 0xac | 0x06 | 0x16 | 0x07 | 0x87 => Ok(()),
        code => Err(Invalid::Code(at, code)),
    }
}

/// Each slot is written on every way to where it is read. Jumps go forward only, so one pass sees all ways.
fn memory(program: &[Instruction]) -> Result<(), Invalid> {
    // Slots that are written on all ways that lead here; all ones where none was seen yet.
    let mut written = vec![u16::MAX; program.len()];
    let mut here = 0u16;
    for (at, i) in program.iter().enumerate() {
        here &= written[at];
        let mut reach = |skip: usize| {
            if let Some(there) = written.get_mut(at + 1 + skip) {
                *there &= here;
            }
        };
        match i.code {
            0x02 | 0x03 => here |= 1 << i.k,
            0x60 | 0x61 if here & (1 << i.k) == 0 => return Err(Invalid::Unwritten(at, i.k)),
            0x05 => {
                reach(i.k as usize);
                here = u16::MAX;
            }
            0x15 | 0x1d | 0x25 | 0x2d | 0x35 | 0x3d | 0x45 | 0x4d => {
                reach(usize::from(i.jt));
                reach(usize::from(i.jf));
                here = u16::MAX;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::{Data, run};

    fn i(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
        Instruction { code, jt, jf, k }
    }

    const RETURN: Instruction = Instruction { code: 0x06, jt: 0, jf: 0, k: 0 };

    #[test]
    fn what_the_kernel_refuses_is_refused_with_its_place() {
        let cases: &[(&[Instruction], Invalid)] = &[
            (&[], Invalid::Length(0)),
            (&[i(0x20, 0, 0, 0)], Invalid::End),
            (&[i(0x20, 0, 0, 64), RETURN], Invalid::Offset(0, 64)),
            (&[i(0x20, 0, 0, 2), RETURN], Invalid::Offset(0, 2)),
            (&[i(0x28, 0, 0, 0), RETURN], Invalid::Code(0, 0x28)),
            (&[i(0x02, 0, 0, 16), RETURN], Invalid::Slot(0, 16)),
            (&[i(0x60, 0, 0, 1), RETURN], Invalid::Unwritten(0, 1)),
            (&[i(0x34, 0, 0, 0), RETURN], Invalid::Constant(0, 0)),
            (&[i(0x64, 0, 0, 32), RETURN], Invalid::Constant(0, 32)),
            (&[i(0x05, 0, 0, 1), RETURN], Invalid::Jump(0)),
            (&[i(0x05, 0, 0, u32::MAX), RETURN], Invalid::Jump(0)),
            (&[i(0x15, 0, 1, 0), RETURN], Invalid::Jump(0)),
            // Written on one way only.
            (&[i(0x15, 1, 0, 0), i(0x02, 0, 0, 3), i(0x60, 0, 0, 3), RETURN], Invalid::Unwritten(2, 3)),
        ];
        for (program, wanted) in cases {
            assert_eq!(validate(program), Err(*wanted), "{program:?}");
        }
        let both = [i(0x15, 1, 0, 0), i(0x02, 0, 0, 3), i(0x03, 0, 0, 3), i(0x60, 0, 0, 3), RETURN];
        assert_eq!(validate(&both), Ok(()));
        assert_eq!(validate(&vec![RETURN; LENGTH_MAX]), Ok(()));
        assert_eq!(validate(&vec![RETURN; LENGTH_MAX + 1]), Err(Invalid::Length(LENGTH_MAX + 1)));
    }

    /// xorshift64*
    struct Random(u64);
    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }
    }

    #[test]
    fn what_is_valid_runs_to_a_return_whatever_it_is_given() {
        const CODES: &[u16] = &[
            0x20, 0x00, 0x01, 0x60, 0x61, 0x80, 0x81, 0x02, 0x03, 0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3c, 0x44,
            0x4c, 0x54, 0x5c, 0x64, 0x6c, 0x74, 0x7c, 0x84, 0xa4, 0xac, 0x05, 0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45,
            0x4d, 0x06, 0x16, 0x07, 0x87,
        ];
        let mut random = Random(7);
        let mut valid = 0;
        for _ in 0..200_000 {
            let length = random.next() % 12 + 1;
            let mut program: Vec<Instruction> = (0..length)
                .map(|_| {
                    let n = random.next();
                    let code = CODES[n as usize % CODES.len()];
                    i(code, (n >> 8) as u8 % 4, (n >> 16) as u8 % 4, (n >> 24) as u32 % 70)
                })
                .collect();
            program.push(RETURN);
            if validate(&program).is_err() {
                continue;
            }
            valid += 1;
            let data = Data { nr: random.next() as u32, arch: 7, instruction_pointer: 9, args: [random.next(); 6] };
            run(&program, &data).unwrap_or_else(|fault| panic!("{program:?}: {fault}"));
        }
        assert!(valid > 5_000, "{valid}");
    }
}
