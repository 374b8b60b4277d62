//! Which system call an instruction is about.

use super::Instruction;

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
/// Class of an instruction, its lowest bits: loads, loads of X, arithmetic, jumps, returns, moves.
const CLASS: u16 = 0x07;

/// What is known before an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    /// The accumulator holds the number of the system call.
    number: bool,
    /// It is this one.
    call: Option<u32>,
}

/// For each instruction the number of the system call that it is about: of the only one for which it is reached, or of the
/// one that it asks for. `None` where it serves several, or the default.
pub fn calls(program: &[Instruction]) -> Vec<Option<u32>> {
    let mut known: Vec<Option<Known>> = vec![None; program.len()];
    let nothing = Known { number: false, call: None };
    known.iter_mut().take(1).for_each(|first| *first = Some(nothing));
    // Jumps only go forward, so that all that leads to an instruction stands before it.
    for (at, i) in program.iter().enumerate() {
        let Some(here) = known[at] else { continue };
        let asks = i.code == EQUAL && here.number;
        let next: [Option<(usize, Known)>; 2] = match i.code & CLASS {
            _ if i.code == JUMP => [Some((i.k as usize, here)), None],
            5 => {
                let equal = if asks { Known { call: Some(i.k), ..here } } else { here };
                [Some((usize::from(i.jt), equal)), Some((usize::from(i.jf), here))]
            }
            6 => [None, None],
            // Loads, arithmetic and X to A change the accumulator; stores and A to X do not.
            0 | 4 => [Some((0, Known { number: i.code == LOAD && i.k == 0, ..here })), None],
            7 if i.code & 0x80 != 0 => [Some((0, Known { number: false, ..here })), None],
            _ => [Some((0, here)), None],
        };
        for (skip, then) in next.into_iter().flatten() {
            if let Some(place) = known.get_mut(at.saturating_add(1).saturating_add(skip)) {
                *place = Some(place.map_or(then, |before| Known {
                    number: before.number && then.number,
                    call: before.call.filter(|_| before.call == then.call),
                }));
            }
        }
    }
    let about = |(i, known): (&Instruction, Option<Known>)| {
        let known = known?;
        if known.number && i.code == EQUAL { Some(i.k) } else { known.call }
    };
    program.iter().zip(known).map(about).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_about_the_call_that_leads_to_them() {
        let i = |code, jt, jf, k| Instruction { code, jt, jf, k };
        let program = [
            i(0x20, 0, 0, 4),           // A = arch
            i(0x15, 1, 0, 16),          // no system call
            i(0x06, 0, 0, 0),           // another architecture
            i(0x20, 0, 0, 0),           // A = nr
            i(0x15, 0, 3, 16),          // 16?
            i(0x20, 0, 0, 24),          // A = args[1]
            i(0x15, 0, 3, 44672),       // an argument
            i(0x06, 0, 0, 0x7fff_0000), // allow 16
            i(0x15, 0, 1, 1),           // 1?
            i(0x06, 0, 0, 0x7fff_0000), // allow 1
            i(0x06, 0, 0, 0x8000_0000), // 16 with another argument, and all others
        ];
        let about = |n| Some(n);
        let none = None;
        assert_eq!(
            calls(&program),
            [none, none, none, none, about(16), about(16), about(16), about(16), about(1), about(1), none]
        );
        assert!(calls(&[]).is_empty());
        assert_eq!(calls(&[i(0x05, 0, 0, u32::MAX)]), [None], "a jump past the end");
        let shared = [
            i(0x20, 0, 0, 0),
            i(0x15, 1, 0, 5),
            i(0x15, 0, 1, 6),
            i(0x06, 0, 0, 1), // 5 and 6
            i(0x06, 0, 0, 0),
        ];
        assert_eq!(calls(&shared), [None, Some(5), Some(6), None, None]);
    }
}
