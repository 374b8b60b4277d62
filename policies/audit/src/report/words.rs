//! Text of a set, made harmless, and what it means in words.

use policy_set::model::{Condition, Op, Rule, Width};

const ORDINALS: [&str; 6] = ["first", "second", "third", "fourth", "fifth", "sixth"];

/// Without what reorders a line or is no text: what a set says cannot look like something else.
pub fn clean(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let shown = |c| match c {
        '\n' | '\t' | '\r' => ' ',
        c if hidden(c) => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(shown).collect()
}

/// What an argument has to be, without its name: `second argument is 0xae80`.
pub fn condition(c: &Condition) -> String {
    let argument = ORDINALS.get(usize::from(c.index)).copied().unwrap_or("no");
    let wide = if c.width == Width::Qword { " (all 64 bits)" } else { "" };
    let compared = match c.op {
        Op::Eq => format!("is {:#x}", c.value),
        Op::Ne => format!("is not {:#x}", c.value),
        Op::Lt => format!("is less than {:#x}", c.value),
        Op::Le => format!("is at most {:#x}", c.value),
        Op::Gt => format!("is more than {:#x}", c.value),
        Op::Ge => format!("is at least {:#x}", c.value),
        Op::MaskedEq(mask) if c.value == 0 => format!("has none of the bits {mask:#x}"),
        Op::MaskedEq(mask) if c.value == mask => format!("has the bits {mask:#x}"),
        Op::MaskedEq(mask) => format!("has of the bits {mask:#x} just {:#x}", c.value),
    };
    format!("{argument} argument{wide} {compared}")
}

/// All of a rule's conditions in one line.
pub fn conditions(rule: &Rule) -> String {
    let all: Vec<String> = rule
        .conditions
        .iter()
        .map(|c| match &c.comment {
            Some(name) => format!("{} ({})", condition(c), clean(name)),
            None => condition(c),
        })
        .collect();
    if all.is_empty() { "any arguments".to_owned() } else { all.join(", and ") }
}

/// The reason of a rule.
pub fn reason(rule: &Rule) -> String {
    rule.comment.as_deref().map_or_else(|| "no reason given".to_owned(), clean)
}

/// `seccomp/x86_64/netd.json:7`.
pub fn place(file: &str, line: Option<u32>) -> String {
    line.map_or_else(|| clean(file), |line| format!("{}:{line}", clean(file)))
}

/// `worker/vcpu`, as commands take it.
pub fn shown(name: &str) -> String {
    clean(&name.replacen('-', "/", 1))
}

/// A limit, with its size in MiB where it is one.
pub fn limit(value: u64) -> String {
    const MIB: u64 = 1 << 20;
    if value >= MIB && value.is_multiple_of(MIB) { format!("{value} ({} MiB)", value / MIB) } else { value.to_string() }
}

/// `1 rule`, `2 rules`.
pub fn count(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// Tables of a file of nftables, each with its chains. Names alone: what a chain does stands in the file.
pub fn chains(text: &str) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines() {
        let name = |after: &str| after.strip_suffix('{').map(|name| name.trim().to_owned());
        if let Some(table) = line.strip_prefix("table ").and_then(name) {
            found.push((table, Vec::new()));
        } else if let (Some(chain), Some((_, chains))) =
            (line.trim().strip_prefix("chain ").and_then(name), found.last_mut())
        {
            chains.push(chain);
        }
    }
    found
}

/// Whether something can be read from outside of a process, with what, and what it is.
pub const EVIDENCE: &[(&str, bool, &str)] = &[
    ("System call filters: mode and count of every thread", true, "/proc/PID/task/TID/status: vmsup inspect --verify"),
    (
        "System call filters: the programs themselves",
        true,
        "as root, by ptrace: vmsup inspect --verify compares each instruction",
    ),
    (
        "The policy section of a worker's program",
        true,
        "the jailer compares its hash before exec; vmsup inspect --verify compares that of a running worker",
    ),
    ("Capabilities, no_new_privs, uids and gids", true, "/proc/PID/task/TID/status, /proc/PID/uid_map and gid_map"),
    ("Namespaces", true, "/proc/PID/ns, held against the host's and every other VM's"),
    ("Resource limits, cgroup, root and mounts", true, "/proc/PID/limits, cgroup, root, mountinfo"),
    ("Open fds", true, "/proc/PID/fd; a worker's by a helper in its user namespace: vmsup inspect"),
    ("Rules of nftables", true, "as root: nft list ruleset"),
    (
        "Landlock",
        false,
        "the kernel has no window to it: the process says at start which ABI it is held to, and does not run otherwise",
    ),
    ("Securebits", false, "the kernel has no window to them: set and read back by the process at start"),
];
