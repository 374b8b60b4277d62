//! What `policy_proof.rs` consists of.

pub mod mutants;
pub mod oracle;
pub mod paths;
pub mod programs;
pub mod samples;

use policy_set::bpf::{Data, Instruction};
use vmsup_tests::verdicts::{Abi, Sample, Verdict};

/// `AUDIT_ARCH_I386` of `linux/audit.h`.
const AUDIT_ARCH_I386: u32 = 0x4000_0003;

/// What a filter is given for a sample.
pub fn data(sample: &Sample) -> Data {
    let arch = match sample.abi {
        Abi::Native => oracle::ARCH.audit(),
        Abi::I386 => AUDIT_ARCH_I386,
    };
    let args = match sample.abi {
        Abi::Native => sample.args,
        Abi::I386 => sample.args.map(|arg| arg & 0xffff_ffff),
    };
    Data { nr: sample.nr, arch, instruction_pointer: 0, args }
}

/// What the interpreter says that the kernel does under these programs.
pub fn interpreted(programs: &[&[Instruction]], sample: &Sample) -> Verdict {
    let data = data(sample);
    let returned: Vec<u32> = programs
        .iter()
        .map(|p| policy_set::bpf::run(p, &data).unwrap_or_else(|fault| panic!("{sample}: {fault:?}")))
        .collect();
    Verdict::seen_of(&returned)
}

/// Numbers that only look random: the same in each run.
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next one (xorshift64*).
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }

    /// One of them.
    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// True in so many of a hundred.
    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}
