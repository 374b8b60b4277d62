use super::*;
use policy_set::model::{Condition, Op, Width};
use std::path::Path;

fn shipped() -> Set {
    Set::from_folder(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()).unwrap()
}

/// A set of one filter, with these rules.
fn with(name: &str, rules: &str) -> Set {
    let text =
        format!(r#"{{"{name}": {{"mismatch_action": "kill_process", "match_action": "allow", "filter": [{rules}]}}}}"#);
    Set::from_texts("a test", [(format!("seccomp/x86_64/{name}.json"), text)]).unwrap()
}

fn changes(a: &Set, b: &Set) -> Vec<Change> {
    let there = diff(a, b, None).unwrap().changes;
    // Mirrored, whatever the test is about.
    let mut back: Vec<Change> = diff(b, a, None)
        .unwrap()
        .changes
        .into_iter()
        .map(|c| Change { direction: c.direction.back(), before: c.after, after: c.before, ..c })
        .collect();
    back.sort_unstable();
    let mut sorted = there.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, back);
    there
}

const READ: &str = r#"{"syscall": "read", "comment": "reads what there is"}"#;

fn ioctl(conditions: &str) -> String {
    format!(r#"{READ}, {{"syscall": "ioctl", "comment": "the device", "args": [{conditions}]}}"#)
}

fn condition(op: &str, value: u64, comment: &str) -> String {
    format!(r#"{{"index": 1, "type": "dword", "op": {op}, "val": {value}, "comment": "{comment}"}}"#)
}

#[test]
fn a_call_that_appears_is_looser_and_named_with_its_reason() {
    let found = changes(&with("netd", READ), &with("netd", &ioctl(&condition("\"eq\"", 7, "SEVEN"))));
    let [change] = &found[..] else { panic!("{found:?}") };
    assert_eq!((change.of.as_str(), change.what.as_str(), change.direction), ("netd", "ioctl", Direction::Looser));
    assert_eq!(change.example, Some([0, 7, 0, 0, 0, 0]));
    let why = Some("the device".to_owned());
    assert_eq!(change.after, [Said { text: "ioctl(1 == 0x7)".into(), words: Some("SEVEN".into()), why }]);
    assert_eq!((&change.before[..], &change.note), (&[][..], &None));
}

#[test]
fn a_wider_condition_shows_what_it_was() {
    let (eq, le) = (ioctl(&condition("\"eq\"", 7, "SEVEN")), ioctl(&condition("\"le\"", 7, "UP_TO_SEVEN")));
    let found = changes(&with("netd", &eq), &with("netd", &le));
    let [change] = &found[..] else { panic!("{found:?}") };
    assert_eq!((change.direction, change.example), (Direction::Looser, Some([0; 6])));
    assert_eq!((change.before[0].text.as_str(), change.after[0].text.as_str()), ("ioctl(1 == 0x7)", "ioctl(1 <= 0x7)"));
}

#[test]
fn what_is_moved_is_gained_and_lost() {
    let (six, seven) = (ioctl(&condition("\"eq\"", 6, "SIX")), ioctl(&condition("\"eq\"", 7, "SEVEN")));
    let found = changes(&with("netd", &six), &with("netd", &seven));
    let directions: Vec<Direction> = found.iter().map(|c| c.direction).collect();
    assert_eq!(directions, [Direction::Looser, Direction::Tighter]);
    assert_eq!((found[0].example, found[1].example), (Some([0, 7, 0, 0, 0, 0]), Some([0, 6, 0, 0, 0, 0])));
    assert!(found[0].before.is_empty() && found[1].after.is_empty());
}

#[test]
fn what_says_the_same_in_other_words_is_no_difference() {
    let both = format!(
        "{}, {}",
        ioctl(&condition("\"eq\"", 6, "SIX")),
        &ioctl(&condition("\"eq\"", 7, "S"))[READ.len() + 2..]
    );
    let mask = ioctl(&condition("{\"masked_eq\": 4294967294}", 6, "SIX or SEVEN"));
    let range = ioctl(&format!("{}, {}", condition("\"lt\"", 8, "x"), condition("\"gt\"", 5, "y")));
    for other in [&mask, &range] {
        assert_eq!(changes(&with("netd", &both), &with("netd", other)), []);
    }
    let shadowed = format!(r#"{both}, {{"syscall": "ioctl", "comment": "all of them"}}"#);
    let free = format!(r#"{READ}, {{"syscall": "ioctl", "comment": "all of them"}}"#);
    assert_eq!(changes(&with("netd", &shadowed), &with("netd", &free)), []);
}

#[test]
fn the_upper_half_of_an_argument_counts() {
    let narrow = ioctl(&condition("\"eq\"", 7, "SEVEN")).replace("dword", "qword");
    let found = changes(&with("netd", &narrow), &with("netd", &ioctl(&condition("\"eq\"", 7, "SEVEN"))));
    assert_eq!((found.len(), found[0].direction, found[0].example.unwrap()[1]), (1, Direction::Looser, 1 << 32 | 7));
}

#[test]
fn what_the_startup_filter_denies_has_no_effect() {
    let pair = |startup: &str, vcpu: &str| {
        let mut set = with("worker-startup", startup);
        set.filters.extend(with("worker-vcpu", vcpu).filters);
        set
    };
    let more = ioctl(&condition("\"eq\"", 7, "SEVEN"));
    let found = changes(&pair(READ, READ), &pair(READ, &more));
    assert_eq!((found.len(), found[0].note.as_deref()), (1, Some(NO_EFFECT)));
    let found = changes(&pair(READ, READ), &pair(&more, &more));
    assert_eq!(
        found.iter().map(|c| (c.of.as_str(), c.note.is_none())).collect::<Vec<_>>(),
        [("worker-startup", true), ("worker-vcpu", true)]
    );
}

#[test]
fn an_action_is_said_once_and_a_filter_that_is_gone_is_looser() {
    let a = with("netd", READ);
    let mut b = a.clone();
    b.filters[0].default = Action::Errno(1);
    let found = changes(&a, &b);
    assert_eq!((found.len(), found[0].direction), (1, Direction::Other));
    assert_eq!((found[0].before[0].text.as_str(), found[0].after[0].text.as_str()), ("kill the process", "errno 1"));
    b.filters[0].default = Action::Log;
    assert_eq!(changes(&a, &b)[0].direction, Direction::Looser);
    let gone = changes(&a, &with("supervisor", READ));
    let seen: Vec<_> = gone.iter().map(|c| (c.of.as_str(), c.what.as_str(), c.direction)).collect();
    assert_eq!(seen, [("netd", "filter", Direction::Looser), ("supervisor", "filter", Direction::Tighter)]);
}

/// Each part of a set that is not a filter, changed; what is said, and which way it goes.
#[test]
fn rights_that_are_no_system_calls_show() {
    type Edit = fn(&mut Set);
    let cases: &[(Edit, &str, &str, Direction)] = &[
        (|s| s.landlock.get_mut("netd").unwrap().floor_abi = 1, "netd", "oldest ABI", Direction::Looser),
        (|s| s.landlock.get_mut("worker").unwrap().newest_abi = 9, "worker", "newest ABI", Direction::Tighter),
        (
            |s| s.landlock.get_mut("netd").unwrap().rules[0].access.push("make_dir".into()),
            "netd",
            "rights to journal directory",
            Direction::Looser,
        ),
        (
            |s| drop(s.landlock.get_mut("netd").unwrap().rules.pop()),
            "netd",
            "rights to accounts directory",
            Direction::Tighter,
        ),
        (|s| drop(s.landlock.remove("worker")), "worker", "landlock", Direction::Looser),
        (
            |s| s.processes.get_mut("worker").unwrap().capabilities.push("CAP_SYS_ADMIN".into()),
            "worker",
            "capabilities",
            Direction::Looser,
        ),
        (
            |s| drop(s.processes.get_mut("worker").unwrap().namespaces.pop()),
            "worker",
            "namespaces of its own",
            Direction::Looser,
        ),
        (
            |s| {
                s.processes.get_mut("worker").unwrap().rlimits.insert("nofile".into(), 8);
            },
            "worker",
            "rlimit nofile",
            Direction::Tighter,
        ),
        (
            |s| {
                s.processes.get_mut("worker").unwrap().rlimits.remove("core");
            },
            "worker",
            "rlimit core",
            Direction::Looser,
        ),
        (
            |s| drop(s.processes.get_mut("worker").unwrap().fds.insert(9, "a directory".into())),
            "worker",
            "fds at birth",
            Direction::Looser,
        ),
        (
            |s| drop(s.processes.get_mut("worker").unwrap().fds.insert(0, "a terminal".into())),
            "worker",
            "fd 0",
            Direction::Other,
        ),
        (
            |s| {
                s.processes.get_mut("netd").unwrap().budgets.insert("netd".into(), 99);
            },
            "netd",
            "budget of netd",
            Direction::Looser,
        ),
        (
            |s| s.nft.get_mut("vmsup.nft").unwrap().push_str("\nflush ruleset\n"),
            "vmsup.nft",
            "rules of nftables",
            Direction::Other,
        ),
        (|s| s.unfiltered.retain(|u| u.arch != Arch::X86_64), "jailer", "filter", Direction::Other),
        (
            |s| s.unfiltered.iter_mut().filter(|u| u.arch == Arch::X86_64).for_each(|u| drop(u.calls.remove(0))),
            "jailer",
            "calls that it is known to make",
            Direction::Other,
        ),
    ];
    let set = shipped();
    for (edit, of, what, direction) in cases {
        let mut other = set.clone();
        edit(&mut other);
        let found = changes(&set, &other);
        let [change] = &found[..] else { panic!("{what}: {found:?}") };
        assert_eq!((change.of.as_str(), change.what.as_str(), change.direction), (*of, *what, *direction));
    }
}

#[test]
fn spacing_and_comments_of_nftables_do_not_show_and_order_does() {
    let with = |text: &str| {
        let mut set = with("netd", READ);
        set.nft.insert("a.nft".into(), text.into());
        set
    };
    let a = with("table inet t {\n  chain c { drop }\n  log prefix \"# 1\"\n}\n");
    assert_eq!(changes(&a, &with("table  inet t { # ours\n\nchain c { drop }\nlog prefix \"# 1\"\n}")), []);
    assert_eq!(changes(&a, &with("table inet t {\n chain c { drop }\n log prefix \"# 2\"\n}"))[0].after.len(), 1);
    let moved = changes(&a, &with("table inet t {\n  log prefix \"# 1\"\n  chain c { drop }\n}\n"));
    assert_eq!((moved.len(), moved[0].before.len()), (1, 0));
    assert!(moved[0].note.as_deref().unwrap().contains("another order"));
}

/// Numbers that are the same in every run (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for n in (1..all.len()).rev() {
            all.swap(n, self.below(n + 1));
        }
    }

    fn condition(&mut self, index: u8) -> Condition {
        let ops = [Op::Eq, Op::Ne, Op::Lt, Op::Le, Op::Gt, Op::Ge, Op::MaskedEq(6), Op::MaskedEq(1 << 40 | 3)];
        let width = [Width::Dword, Width::Qword][self.below(2)];
        let value = [0, 1, 2, 3, 6, 7, 0xffff_ffff, 1 << 40][self.below(8)] & width.mask();
        Condition { index, width, op: ops[self.below(8)], value, comment: None }
    }

    fn rules(&mut self) -> Vec<Rule> {
        let mut rules = with("netd", READ).filters.remove(0).rules;
        for _ in 0..1 + self.below(4) {
            let mut conditions = vec![self.condition(0)];
            for index in 0..2u8 {
                if self.below(2) == 0 {
                    conditions.push(self.condition(index));
                }
            }
            rules.push(Rule { syscall: "ioctl".into(), conditions, ..rules[0].clone() });
        }
        rules
    }
}

#[test]
fn order_and_words_never_show() {
    let set = shipped();
    let mut random = Random(5);
    for _ in 0..3 {
        let mut other = set.clone();
        random.shuffle(&mut other.filters);
        for filter in &mut other.filters {
            random.shuffle(&mut filter.rules);
            filter.file = "elsewhere".into();
            for rule in &mut filter.rules {
                random.shuffle(&mut rule.conditions);
                (rule.comment, rule.unexercised, rule.line) = (None, None, 1);
                rule.conditions.iter_mut().for_each(|c| c.comment = None);
            }
        }
        for landlock in other.landlock.values_mut() {
            random.shuffle(&mut landlock.rules);
            landlock.comment.clear();
        }
        other.processes.values_mut().for_each(|p| p.comment.clear());
        let found = diff(&set, &other, None).unwrap();
        assert_eq!((found.changes, found.sampled), (vec![], vec![]));
    }
    assert_eq!(changes(&set, &set), []);
}

/// No rule of the shipped set can go, and no condition of it, without being seen.
#[test]
fn each_rule_that_is_dropped_or_loosened_shows() {
    for filter in shipped().filters {
        let alone = |filter: Filter| Set { filters: vec![filter], ..Set::default() };
        let set = alone(filter.clone());
        for n in 0..filter.rules.len() {
            let call = &filter.rules[n].syscall;
            let mut without = filter.clone();
            without.rules.remove(n);
            let found = diff(&set, &alone(without), None).unwrap().changes;
            let [change] = &found[..] else { panic!("{}: {}: {found:?}", filter.file, filter.rules[n].key()) };
            assert_eq!((&change.what, change.direction), (call, Direction::Tighter), "{}", filter.file);
            for m in 0..filter.rules[n].conditions.len() {
                let mut looser = filter.clone();
                looser.rules[n].conditions.remove(m);
                let found = diff(&set, &alone(looser), None).unwrap().changes;
                let [change] = &found[..] else { panic!("{}: {}: {found:?}", filter.file, filter.rules[n].key()) };
                assert_eq!((&change.what, change.direction), (call, Direction::Looser), "{}", filter.file);
            }
        }
    }
}

/// Against asking two filters about many arguments: what that finds, the difference has, and its examples are true.
#[test]
fn a_difference_is_what_two_programs_do_differently() {
    let mut random = Random(7);
    let interesting: Vec<u64> = (0..10)
        .chain([0xffff_fffe, 0xffff_ffff, 1 << 32, 1 << 40, (1 << 40) + 3, (1 << 40) + 7, (1 << 32) + 7, u64::MAX])
        .collect();
    let (mut same, mut different) = (0, 0);
    for _ in 0..300 {
        let mut set = with("netd", READ);
        set.filters[0].rules = random.rules();
        let mut other = set.clone();
        let rules = &mut other.filters[0].rules;
        let n = 1 + random.below(rules.len() - 1);
        match random.below(4) {
            0 => drop(rules.remove(n)),
            1 => drop(rules[n].conditions.pop()),
            2 => rules[n].conditions[0].value ^= 1,
            _ => *rules = random.rules(),
        }
        let found = changes(&set, &other);
        let programs = [&set, &other].map(|s| compile(&s.filters[0]).unwrap());
        let does = |n: usize, args: [u64; 6]| {
            let data = Data { nr: 16, arch: Arch::X86_64.audit(), instruction_pointer: 0, args };
            permits(action(run(&programs[n], &data).unwrap()))
        };
        let mut ways = BTreeSet::new();
        for a in &interesting {
            for b in &interesting {
                let args = [*a, *b, 0, 0, 0, 0];
                match (does(0, args), does(1, args)) {
                    (false, true) => {
                        ways.insert(Direction::Looser);
                    }
                    (true, false) => {
                        ways.insert(Direction::Tighter);
                    }
                    _ => {}
                }
            }
        }
        let told: BTreeSet<Direction> = found.iter().map(|c| c.direction).collect();
        assert!(told.is_superset(&ways), "{ways:?} but {found:?}\n{set:#?}\n{other:#?}");
        for change in &found {
            let args = change.example.unwrap();
            assert_eq!(
                (does(0, args), does(1, args)),
                (change.direction == Direction::Tighter, change.direction == Direction::Looser)
            );
        }
        if found.is_empty() { same += 1 } else { different += 1 }
    }
    assert!(same > 10 && different > 100, "{same} {different}");
}
