//! Architectures, and the names and numbers of their system calls.

use serde::{Deserialize, Serialize};

/// An architecture that there are policies for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arch {
    /// AMD64.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Arch {
    /// All of them.
    pub const ALL: [Arch; 2] = [Arch::X86_64, Arch::Aarch64];

    /// As folders and compilers name it.
    pub fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// By its name.
    pub fn named(name: &str) -> Option<Arch> {
        Arch::ALL.into_iter().find(|a| a.name() == name)
    }

    /// The one that this program was built for.
    pub fn host() -> Option<Arch> {
        Arch::named(std::env::consts::ARCH)
    }

    /// `AUDIT_ARCH_*` of `linux/audit.h`: what a filter finds in `seccomp_data.arch`.
    pub fn audit(self) -> u32 {
        match self {
            Arch::X86_64 => 0xc000_003e,
            Arch::Aarch64 => 0xc000_00b7,
        }
    }

    /// Number of a system call; `None` where this architecture has none of that name.
    pub fn number(self, name: &str) -> Option<u32> {
        match self {
            Arch::X86_64 => name.parse::<syscalls::x86_64::Sysno>().ok().map(|s| s.id().cast_unsigned()),
            Arch::Aarch64 => name.parse::<syscalls::aarch64::Sysno>().ok().map(|s| s.id().cast_unsigned()),
        }
    }

    /// Name of a system call.
    pub fn syscall(self, number: u32) -> Option<&'static str> {
        let number = usize::try_from(number).ok()?;
        match self {
            Arch::X86_64 => syscalls::x86_64::Sysno::new(number).map(|s| s.name()),
            Arch::Aarch64 => syscalls::aarch64::Sysno::new(number).map(|s| s.name()),
        }
    }

    /// Every system call: number and name, ascending.
    pub fn syscalls(self) -> Vec<(u32, &'static str)> {
        let mut all: Vec<(u32, &'static str)> = match self {
            Arch::X86_64 => syscalls::x86_64::Sysno::iter().map(|s| (s.id().cast_unsigned(), s.name())).collect(),
            Arch::Aarch64 => syscalls::aarch64::Sysno::iter().map(|s| (s.id().cast_unsigned(), s.name())).collect(),
        };
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_those_of_the_kernels_tables() {
        assert_eq!(Arch::X86_64.number("openat"), Some(257));
        assert_eq!(Arch::Aarch64.number("openat"), Some(56));
        assert_eq!(Arch::Aarch64.number("open"), None, "Arm has no open(2)");
        assert_eq!(Arch::X86_64.syscall(231), Some("exit_group"));
        for arch in Arch::ALL {
            let all = arch.syscalls();
            assert!(all.len() > 300, "{}: {}", arch.name(), all.len());
            assert!(all.iter().all(|(number, name)| arch.number(name) == Some(*number)));
            assert_eq!(Arch::named(arch.name()), Some(arch));
        }
    }
}
