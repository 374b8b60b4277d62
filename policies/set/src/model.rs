//! What policy files say.

use crate::arch::Arch;
use serde::Serialize;
use std::collections::BTreeMap;

/// A set of policy files: ours, compiled in or from a folder, or a foreign one.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Set {
    /// Where it is from, for sentences: `compiled in`, a folder, a program, a revision.
    pub origin: String,
    /// By architecture, then name.
    pub filters: Vec<Filter>,
    /// Processes without a filter, by architecture, then name.
    pub unfiltered: Vec<Unfiltered>,
    /// `landlock.json`, by process.
    pub landlock: BTreeMap<String, Landlock>,
    /// `process.json`, by process.
    pub processes: BTreeMap<String, Process>,
    /// `nft/*.nft`: name of the file, and its text.
    pub nft: BTreeMap<String, String>,
    /// `recorded/<arch>.json`: the rules that a trace of the test suite saw in use, by architecture and filter, as
    /// [`Rule::key`]. Empty where the set has no such file.
    pub recorded: BTreeMap<Arch, BTreeMap<String, Vec<String>>>,
}

/// The filter of a process, or of one of its threads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Filter {
    /// Name of its file without the suffix: `worker-vcpu`, `netd`.
    pub name: String,
    /// What it is compiled for.
    pub arch: Arch,
    /// The file that it stands in, relative to the set.
    pub file: String,
    /// What is done with a call that no rule allows.
    pub default: Action,
    /// What is done with a call that a rule names.
    pub matched: Action,
    /// In the order of the file; those of included files stand where the include stands.
    pub rules: Vec<Rule>,
    /// Findings about the whole filter that are explained in its file: id of the finding, and why it is as it is.
    pub accepted: BTreeMap<String, String>,
}

/// A system call that a filter names, perhaps with conditions that all have to hold.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rule {
    /// Name of the system call.
    pub syscall: String,
    /// All of them hold; none: any arguments.
    pub conditions: Vec<Condition>,
    /// Which code needs it. Only foreign sets may lack it.
    pub comment: Option<String>,
    /// Why the test suite does not use it.
    pub unexercised: Option<String>,
    /// Findings about this rule that are explained here: id of the finding, and why it is as it is.
    pub accepted: BTreeMap<String, String>,
    /// The file that it stands in, relative to the set: the filter's, or an included one.
    pub file: String,
    /// Line in that file, from 1.
    pub line: u32,
}

/// What an argument has to be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Condition {
    /// Which argument, from 0 to 5.
    pub index: u8,
    /// How much of it is looked at.
    pub width: Width,
    /// How it is compared.
    pub op: Op,
    /// With what.
    pub value: u64,
    /// What the value means: `KVM_RUN`.
    pub comment: Option<String>,
}

/// How much of an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Width {
    /// Its lower 32 bits.
    Dword,
    /// All 64.
    Qword,
}

/// A comparison, unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
    /// Equal in the bits of this mask.
    MaskedEq(u64),
}

/// What the kernel does with a call, `SECCOMP_RET_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Ends the process.
    KillProcess,
    /// Ends the thread, and leaves the others.
    KillThread,
    /// SIGSYS.
    Trap,
    /// Not made; this errno instead.
    Errno(u16),
    /// A tracer decides; none: ENOSYS.
    Trace(u16),
    /// Made, and logged.
    Log,
    /// Made.
    Allow,
}

/// A process without a filter: why, and what it calls.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Unfiltered {
    /// Name of its file without the suffix.
    pub name: String,
    /// The architecture whose calls are listed.
    pub arch: Arch,
    /// The file that it stands in, relative to the set.
    pub file: String,
    /// Why.
    pub reason: String,
    /// What it calls; nothing holds it to that.
    pub calls: Vec<Rule>,
}

/// What `landlock.json` says of a process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Landlock {
    /// What it is for.
    pub comment: String,
    /// The oldest ABI that will do.
    pub floor_abi: u8,
    /// The newest ABI that is made use of.
    pub newest_abi: u8,
    /// The exceptions.
    pub rules: Vec<LandlockRule>,
}

/// An exception of a landlock ruleset.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LandlockRule {
    /// Role of the place; where it is may be known at run time only.
    pub what: String,
    /// What may be done there.
    pub access: Vec<String>,
    /// Which code needs it.
    pub comment: String,
}

/// What `process.json` says of a process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Process {
    /// What it is.
    pub comment: String,
    /// Capabilities that it keeps.
    pub capabilities: Vec<String>,
    /// Namespaces of its own.
    pub namespaces: Vec<String>,
    /// Resource limits, both of soft and hard.
    pub rlimits: BTreeMap<String, u64>,
    /// Fds that it is born with.
    pub fds: BTreeMap<i32, String>,
    /// Most system calls that its filters may allow, by filter; `worker` itself: all of its threads together.
    pub budgets: BTreeMap<String, usize>,
}

impl Filter {
    /// The process that it is of: `worker` of `worker-vcpu`.
    pub fn process(&self) -> &str {
        self.name.split_once('-').map_or(self.name.as_str(), |(process, _)| process)
    }

    /// The thread, or the phase (`startup`), where it is not of the whole process.
    pub fn thread(&self) -> Option<&str> {
        self.name.split_once('-').map(|(_, thread)| thread)
    }

    /// The system calls that it names, sorted, each once.
    pub fn syscalls(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self.rules.iter().map(|r| r.syscall.as_str()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl Condition {
    /// Whether an argument is what it has to be.
    pub fn holds(&self, args: &[u64; 6]) -> bool {
        let mask = self.width.mask();
        let Some(arg) = args.get(usize::from(self.index)).map(|arg| arg & mask) else { return false };
        let value = self.value & mask;
        match self.op {
            Op::Eq => arg == value,
            Op::Ne => arg != value,
            Op::Lt => arg < value,
            Op::Le => arg <= value,
            Op::Gt => arg > value,
            Op::Ge => arg >= value,
            Op::MaskedEq(bits) => arg & bits == value & bits,
        }
    }
}

impl Width {
    /// The bits that are looked at.
    pub fn mask(self) -> u64 {
        match self {
            Width::Dword => u64::from(u32::MAX),
            Width::Qword => u64::MAX,
        }
    }
}

impl Rule {
    /// Whether it names a call with these arguments.
    pub fn matches(&self, syscall: &str, args: &[u64; 6]) -> bool {
        self.syscall == syscall && self.conditions.iter().all(|c| c.holds(args))
    }

    /// What tells a rule from others of its filter, whatever its comments and its place: `ioctl(1 == 0xae80)`. Conditions
    /// are sorted; values are hexadecimal.
    pub fn key(&self) -> String {
        let mut conditions: Vec<&Condition> = self.conditions.iter().collect();
        conditions.sort_unstable_by_key(|c| (c.index, c.width, c.op, c.value));
        let conditions: Vec<String> = conditions.iter().map(|c| c.to_string()).collect();
        format!("{}({})", self.syscall, conditions.join(", "))
    }
}

impl std::fmt::Display for Condition {
    /// `1 == 0xae80`, `2 & 0x4 == 0x0`; `1:64 == 0x0` where all 64 bits are looked at.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.index, if self.width == Width::Qword { ":64" } else { "" })?;
        match self.op {
            Op::MaskedEq(mask) => write!(f, " & {mask:#x} == {:#x}", self.value),
            Op::Eq => write!(f, " == {:#x}", self.value),
            Op::Ne => write!(f, " != {:#x}", self.value),
            Op::Lt => write!(f, " < {:#x}", self.value),
            Op::Le => write!(f, " <= {:#x}", self.value),
            Op::Gt => write!(f, " > {:#x}", self.value),
            Op::Ge => write!(f, " >= {:#x}", self.value),
        }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Action::KillProcess => f.write_str("kill the process"),
            Action::KillThread => f.write_str("kill the thread"),
            Action::Trap => f.write_str("SIGSYS"),
            Action::Errno(errno) => write!(f, "errno {errno}"),
            Action::Trace(_) => f.write_str("ask a tracer"),
            Action::Log => f.write_str("log and allow"),
            Action::Allow => f.write_str("allow"),
        }
    }
}
