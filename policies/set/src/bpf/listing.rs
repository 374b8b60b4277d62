//! A program for people.

use super::{Instruction, action};

/// A line for each instruction, `  4: if A == 0xe7 goto 5 else 6`. Jumps name the instruction that they lead to.
pub fn listing(program: &[Instruction]) -> Vec<String> {
    program.iter().enumerate().map(|(at, i)| format!("{at:4}: {}", line(at, i))).collect()
}

/// One instruction, as it stands at a place.
pub fn line(at: usize, i: &Instruction) -> String {
    let operand = if i.code & 0x08 == 0 { format!("{:#x}", i.k) } else { "X".to_owned() };
    let jump = |op: &str| {
        let to = |skip: u8| at + 1 + usize::from(skip);
        format!("if A {op} {operand} goto {} else {}", to(i.jt), to(i.jf))
    };
    match i.code {
        0x20 => format!("A = {}", field(i.k)),
        0x00 => format!("A = {:#x}", i.k),
        0x01 => format!("X = {:#x}", i.k),
        0x60 => format!("A = M[{}]", i.k),
        0x61 => format!("X = M[{}]", i.k),
        0x80 => "A = length".to_owned(),
        0x81 => "X = length".to_owned(),
        0x02 => format!("M[{}] = A", i.k),
        0x03 => format!("M[{}] = X", i.k),
        0x04 | 0x0c => format!("A += {operand}"),
        0x14 | 0x1c => format!("A -= {operand}"),
        0x24 | 0x2c => format!("A *= {operand}"),
        0x34 | 0x3c => format!("A /= {operand}"),
        0x44 | 0x4c => format!("A |= {operand}"),
        0x54 | 0x5c => format!("A &= {operand}"),
        0xa4 | 0xac => format!("A ^= {operand}"),
        0x64 | 0x6c => format!("A <<= {operand}"),
        0x74 | 0x7c => format!("A >>= {operand}"),
        0x84 => "A = -A".to_owned(),
        0x05 => format!("goto {}", (at as u64) + 1 + u64::from(i.k)),
        0x15 | 0x1d => jump("=="),
        0x25 | 0x2d => jump(">"),
        0x35 | 0x3d => jump(">="),
        0x45 | 0x4d => jump("&"),
        0x06 => format!("return {}", action(i.k)),
        0x16 => "return A".to_owned(),
        0x07 => "X = A".to_owned(),
        0x87 => "A = X".to_owned(),
        code => format!("unknown code {code:#06x}, jt {}, jf {}, k {:#x}", i.jt, i.jf, i.k),
    }
}

fn field(offset: u32) -> String {
    match offset {
        0 => "nr".to_owned(),
        4 => "arch".to_owned(),
        8 => "instruction_pointer, low".to_owned(),
        12 => "instruction_pointer, high".to_owned(),
        16..=60 if offset.is_multiple_of(4) => {
            let half = if offset.is_multiple_of(8) { "low" } else { "high" };
            format!("args[{}], {half}", (offset - 16) / 8)
        }
        other => format!("data[{other}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_names_fields_and_places() {
        let i = |code, jt, jf, k| Instruction { code, jt, jf, k };
        let program = [
            i(0x20, 0, 0, 4),
            i(0x15, 1, 0, 0xc000_003e),
            i(0x06, 0, 0, 0x8000_0000),
            i(0x20, 0, 0, 28),
            i(0x05, 0, 0, 0),
            i(0x06, 0, 0, 0x7fff_0000),
        ];
        assert_eq!(
            listing(&program),
            [
                "   0: A = arch",
                "   1: if A == 0xc000003e goto 3 else 2",
                "   2: return kill the process",
                "   3: A = args[1], high",
                "   4: goto 5",
                "   5: return allow",
            ]
        );
    }
}
