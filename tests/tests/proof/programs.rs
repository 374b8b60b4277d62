//! Small BPF programs that only look random, about half of which the kernel takes.

use crate::proof::Random;
use policy_set::bpf::Instruction;

/// What a program may return: each action of seccomp(2), unknown ones, data of every kind.
const RETURNS: [u32; 12] = [
    0x8000_0000,
    0x0000_0000,
    0x0003_0011,
    0x0005_0000,
    0x0005_0001,
    0x0005_ffff,
    0x7fc0_0000,
    0x7ff0_0005,
    0x7ffc_0000,
    0x7fff_0000,
    0x0001_0000,
    0x9000_0000,
];

/// Every instruction that seccomp takes: loads, stores, arithmetic, jumps, returns, moves.
const CODES: [u16; 41] = [
    0x20, 0x20, 0x80, 0x81, 0x00, 0x01, 0x60, 0x61, 0x02, 0x03, 0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3c, 0x44,
    0x4c, 0x54, 0x5c, 0x64, 0x6c, 0x74, 0x7c, 0x84, 0xa4, 0xac, 0x05, 0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d,
    0x06, 0x07, 0x87,
];

/// The next program. Its words are those that samples have: few, so that comparisons hold now and then.
pub fn random(random: &mut Random) -> Vec<Instruction> {
    let length = 2 + random.below(14);
    let mut program: Vec<Instruction> = (0..length - 1).map(|at| instruction(random, length - at - 1)).collect();
    program.push(match random.below(4) {
        0 => Instruction { code: 0x16, jt: 0, jf: 0, k: 0 },
        _ => Instruction { code: 0x06, jt: 0, jf: 0, k: random.of(&RETURNS) },
    });
    if random.percent(25) {
        break_one(random, &mut program);
    }
    program
}

/// One with so many instructions behind it.
fn instruction(random: &mut Random, behind: usize) -> Instruction {
    let code = random.of(&CODES);
    let jump = |random: &mut Random| random.below(behind.min(255)) as u8;
    let (mut jt, mut jf) = (0, 0);
    let k = match code {
        0x20 => 4 * random.below(16) as u32,
        // Few words, so that some are loaded that were stored.
        0x60 | 0x61 | 0x02 | 0x03 => random.below(3) as u32,
        0x64 | 0x74 => random.below(32) as u32,
        0x34 => 1 + random.below(9) as u32,
        0x05 => u32::from(jump(random)),
        0x06 => random.of(&RETURNS),
        _ => word(random),
    };
    if code & 7 == 5 && code != 0x05 {
        (jt, jf) = (jump(random), jump(random));
    }
    Instruction { code, jt, jf, k }
}

/// A word as samples and programs have it.
pub fn word(random: &mut Random) -> u32 {
    match random.below(5) {
        0 => random.below(4) as u32,
        1 => 1 << random.below(32),
        2 => random.next() as u32,
        3 => random.of(&RETURNS),
        _ => u32::MAX - random.below(3) as u32,
    }
}

/// Makes one instruction one that the kernel may not take.
fn break_one(random: &mut Random, program: &mut Vec<Instruction>) {
    let at = random.below(program.len());
    let i = &mut program[at];
    match random.below(8) {
        0 => i.code = random.below(256) as u16,
        1 => *i = Instruction { code: 0x20, jt: 0, jf: 0, k: 1 + random.below(80) as u32 },
        2 => *i = Instruction { code: 0x34, jt: 0, jf: 0, k: 0 },
        3 => *i = Instruction { code: random.of(&[0x64, 0x74]), jt: 0, jf: 0, k: 30 + random.below(4) as u32 },
        4 => {
            *i =
                Instruction { code: random.of(&[0x60, 0x61, 0x02, 0x03]), jt: 0, jf: 0, k: 14 + random.below(4) as u32 }
        }
        5 => *i = Instruction { code: 0x15, jt: random.below(20) as u8, jf: 0, k: 0 },
        6 => *i = Instruction { code: 0x05, jt: 0, jf: 0, k: random.below(20) as u32 },
        _ => drop(program.pop()),
    }
}
