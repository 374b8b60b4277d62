//! From system calls that were made to what a policy has to allow.
//!
//! A tracer [notes](Recorder::note) what each thread called under which filters; [`summarise`] holds that against a set:
//! which rules were used, which were not, what a filter would have denied, and what the smallest policy is that allows what
//! was seen. A trace shows what was needed while it ran, not all that ever is: proposals are for people.

use policy_set::arch::Arch;
use policy_set::bpf::Data;
use policy_set::model::{Action, Condition, Filter, Op, Rule, Set, Width};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Arguments that tell what a call does, and so belong into a rule: a command, a mode, flags. Never a size, an address or
/// an fd.
const TELLING: &[(&str, &[u8])] = &[
    ("clone", &[0]),
    ("copy_file_range", &[5]),
    ("fcntl", &[1]),
    ("fsconfig", &[1]),
    ("getsockopt", &[1, 2]),
    ("inotify_add_watch", &[2]),
    ("ioctl", &[1]),
    ("madvise", &[2]),
    ("memfd_create", &[1]),
    ("mkdirat", &[2]),
    ("mmap", &[2, 3]),
    ("mprotect", &[2]),
    ("newfstatat", &[3]),
    ("openat", &[2]),
    ("pipe2", &[1]),
    ("prctl", &[0]),
    ("rt_sigaction", &[0]),
    ("seccomp", &[0]),
    ("setsockopt", &[1, 2]),
    ("socket", &[0, 1, 2]),
    ("socketpair", &[0, 1, 2]),
    ("timer_create", &[0]),
    ("timer_settime", &[1]),
    ("unlinkat", &[2]),
];

/// With more combinations of arguments than this, a rule says nothing that an auditor can read.
const READABLE: usize = 8;

/// What is kept of each system call: which bits of which argument.
#[derive(Debug, Clone, Default)]
pub struct Lens(BTreeMap<u32, [u64; 6]>);

impl Lens {
    /// What the conditions of a set look at, and what tells what a call does.
    pub fn new(set: &Set, arch: Arch) -> Lens {
        let mut lens = Lens::default();
        let telling = TELLING.iter().flat_map(|(call, args)| args.iter().map(|index| (*call, *index, Width::Dword)));
        let rules = set.filters.iter().filter(|f| f.arch == arch).flat_map(|f| &f.rules);
        let conditions = rules.flat_map(|r| r.conditions.iter().map(|c| (r.syscall.as_str(), c.index, c.width)));
        for (call, index, width) in telling.chain(conditions) {
            let Some(nr) = arch.number(call) else { continue };
            if let Some(kept) = lens.0.entry(nr).or_default().get_mut(usize::from(index)) {
                *kept |= width.mask();
            }
        }
        lens
    }

    fn look(&self, nr: u32, args: [u64; 6]) -> [u64; 6] {
        let kept = self.0.get(&nr).copied().unwrap_or_default();
        std::array::from_fn(|n| args[n] & kept[n])
    }
}

/// Calls of one kind: the same filters, the same number, the same arguments as far as a policy looks at them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// The filters in force, in the order in which they were put there.
    pub filters: Vec<String>,
    /// Number of the system call.
    pub nr: u32,
    /// Its arguments; 0 where nobody looks.
    pub args: [u64; 6],
    /// How often.
    pub count: u64,
}

/// Number of a system call, and its arguments as far as anybody looks.
type Numbers = (u32, [u64; 6]);

/// Counts system calls.
#[derive(Debug)]
pub struct Recorder {
    lens: Lens,
    audit: u32,
    by_filters: HashMap<Vec<String>, HashMap<Numbers, u64>>,
}

impl Recorder {
    /// For what this set looks at.
    pub fn new(set: &Set, arch: Arch) -> Recorder {
        Recorder { lens: Lens::new(set, arch), audit: arch.audit(), by_filters: HashMap::new() }
    }

    /// A call was made. One of another architecture is no call of ours, and is left out.
    pub fn note(&mut self, filters: &[String], data: &Data) {
        if data.arch != self.audit {
            return;
        }
        if !self.by_filters.contains_key(filters) {
            self.by_filters.insert(filters.to_vec(), HashMap::new());
        }
        if let Some(calls) = self.by_filters.get_mut(filters) {
            *calls.entry((data.nr, self.lens.look(data.nr, data.args))).or_default() += 1;
        }
    }

    /// All of them, sorted.
    pub fn seen(&self) -> Vec<Seen> {
        let mut all: Vec<Seen> = self
            .by_filters
            .iter()
            .flat_map(|(filters, calls)| {
                calls.iter().map(|((nr, args), count)| Seen {
                    filters: filters.clone(),
                    nr: *nr,
                    args: *args,
                    count: *count,
                })
            })
            .collect();
        all.sort_unstable();
        all
    }
}

/// What was seen under one filter, and what that means for it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Traced {
    /// The filter.
    pub filter: String,
    /// False where the set has none of that name.
    pub known: bool,
    /// The calls, sorted by name and arguments.
    pub calls: Vec<Call>,
    /// Rules that nothing used.
    pub drop: Vec<Unused>,
    /// Rules for what was seen and no rule allows, as [`Rule::key`].
    pub add: Vec<String>,
    /// Rules that could say more.
    pub tighten: Vec<Tighter>,
}

/// A system call, with the arguments that tell what it does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Call {
    /// Its name, or its number where it has none.
    pub syscall: String,
    /// By index.
    pub args: BTreeMap<u8, u64>,
    /// How often.
    pub count: u64,
    /// The rules that name it, as [`Rule::key`].
    pub rules: Vec<String>,
    /// Whether the filter allows it.
    pub allowed: bool,
}

/// A rule that nothing used.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Unused {
    /// [`Rule::key`]
    pub rule: String,
    /// What its file says of that.
    pub unexercised: Option<String>,
}

/// A rule without conditions, of a call whose arguments were few.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tighter {
    /// [`Rule::key`]
    pub rule: String,
    /// What would do, each as [`Rule::key`].
    pub to: Vec<String>,
}

/// Holds what was seen against a set. Filters stack: a call counts for each filter that was in force. One [`Traced`] for each
/// filter that something was seen of, sorted.
pub fn summarise(set: &Set, arch: Arch, seen: &[Seen]) -> Vec<Traced> {
    let mut by_filter: BTreeMap<&str, BTreeMap<(u32, [u64; 6]), u64>> = BTreeMap::new();
    for one in seen {
        for filter in &one.filters {
            *by_filter.entry(filter).or_default().entry((one.nr, one.args)).or_default() += one.count;
        }
    }
    by_filter.into_iter().map(|(name, calls)| traced(set, arch, name, &calls)).collect()
}

fn traced(set: &Set, arch: Arch, name: &str, calls: &BTreeMap<(u32, [u64; 6]), u64>) -> Traced {
    let filter = set.filters.iter().find(|f| f.arch == arch && f.name == name);
    let mut traced = Traced { filter: name.to_owned(), known: filter.is_some(), ..Traced::default() };
    let mut used: BTreeSet<String> = BTreeSet::new();
    let mut add: BTreeSet<String> = BTreeSet::new();
    let mut kinds: BTreeMap<(String, BTreeMap<u8, u64>), Call> = BTreeMap::new();
    for ((nr, args), count) in calls {
        let syscall = arch.syscall(*nr).map_or_else(|| nr.to_string(), str::to_owned);
        let rules: Vec<&Rule> = filter.map_or_else(Vec::new, |f| matching(f, &syscall, args).collect());
        let allowed = filter.is_some_and(|f| permits(if rules.is_empty() { f.default } else { f.matched }));
        // What tells what the call does, and what these rules looked at: another rule's condition, on an argument that
        // means nothing here, makes no two calls of one.
        let looked = rules.iter().flat_map(|r| r.conditions.iter().map(|c| c.index));
        let shown: BTreeSet<u8> = telling(&syscall).unwrap_or_default().iter().copied().chain(looked).collect();
        let args: BTreeMap<u8, u64> = shown.into_iter().filter_map(|n| Some((n, *args.get(usize::from(n))?))).collect();
        let call = kinds.entry((syscall, args)).or_insert_with_key(|(syscall, args)| Call {
            syscall: syscall.clone(),
            args: args.clone(),
            count: 0,
            rules: rules.into_iter().map(Rule::key).collect(),
            allowed,
        });
        call.count += count;
        if !allowed {
            add.insert(exact(call).key());
        }
        used.extend(call.rules.iter().cloned());
    }
    traced.calls = kinds.into_values().collect();
    traced.add = add.into_iter().collect();
    let Some(filter) = filter else { return traced };
    for rule in &filter.rules {
        let key = rule.key();
        if !used.contains(&key) {
            traced.drop.push(Unused { rule: key, unexercised: rule.unexercised.clone() });
        } else if rule.conditions.is_empty() && telling(&rule.syscall).is_some() {
            let of = traced.calls.iter().filter(|c| c.syscall == rule.syscall);
            let to: BTreeSet<String> = of.map(|c| exact(c).key()).collect();
            if to.len() <= READABLE {
                traced.tighten.push(Tighter { rule: key, to: to.into_iter().collect() });
            }
        }
    }
    traced
}

/// The rules that name this call with these arguments.
fn matching<'a>(filter: &'a Filter, syscall: &str, args: &[u64; 6]) -> impl Iterator<Item = &'a Rule> {
    filter.rules.iter().filter(move |r| r.matches(syscall, args))
}

fn permits(action: Action) -> bool {
    matches!(action, Action::Allow | Action::Log)
}

fn telling(syscall: &str) -> Option<&'static [u8]> {
    TELLING.iter().find(|(call, _)| *call == syscall).map(|(_, args)| *args)
}

/// A rule for this call alone, as far as its arguments tell what it does.
fn exact(call: &Call) -> Rule {
    let args = telling(&call.syscall).unwrap_or_default();
    let condition = |index: &u8| {
        let value = call.args.get(index)? & Width::Dword.mask();
        Some(Condition { index: *index, width: Width::Dword, op: Op::Eq, value, comment: None })
    };
    Rule {
        syscall: call.syscall.clone(),
        conditions: args.iter().filter_map(condition).collect(),
        comment: None,
        unexercised: None,
        accepted: BTreeMap::new(),
        file: String::new(),
        line: 0,
    }
}

/// The rules that were used, by filter, as [`Rule::key`]: what `recorded/<arch>.json` holds.
pub type Record = BTreeMap<String, BTreeSet<String>>;

/// What was used, and what an earlier record says was; of rules that the set still has.
pub fn record(set: &Set, arch: Arch, earlier: &Record, traced: &[Traced]) -> Record {
    let mut record = Record::new();
    for filter in set.filters.iter().filter(|f| f.arch == arch) {
        let now = traced.iter().filter(|t| t.filter == filter.name).flat_map(|t| &t.calls).flat_map(|c| &c.rules);
        let used: BTreeSet<&String> = earlier.get(&filter.name).into_iter().flatten().chain(now).collect();
        let still = filter.rules.iter().map(Rule::key).filter(|key| used.contains(key)).collect();
        record.insert(filter.name.clone(), still);
    }
    record
}

#[cfg(test)]
mod tests;
