use super::*;

fn rule(syscall: &str, conditions: &[(u8, Op, u64)]) -> Rule {
    let conditions = conditions.iter().map(|(index, op, value)| Condition {
        index: *index,
        width: Width::Dword,
        op: *op,
        value: *value,
        comment: None,
    });
    Rule {
        syscall: syscall.to_owned(),
        conditions: conditions.collect(),
        comment: Some("some code".into()),
        unexercised: None,
        accepted: BTreeMap::new(),
        file: String::new(),
        line: 1,
    }
}

fn filter(name: &str, rules: Vec<Rule>) -> Filter {
    Filter {
        name: name.to_owned(),
        arch: Arch::X86_64,
        file: format!("seccomp/x86_64/{name}.json"),
        default: Action::KillProcess,
        matched: Action::Allow,
        rules,
        accepted: BTreeMap::new(),
    }
}

fn set() -> Set {
    let startup = vec![
        rule("ioctl", &[(1, Op::Eq, 0xae80)]),
        rule("ioctl", &[(1, Op::Eq, 0xae01)]),
        rule("memfd_create", &[]),
        rule("mmap", &[(2, Op::MaskedEq(4), 0)]),
        rule("read", &[]),
    ];
    let vcpu = vec![rule("ioctl", &[(1, Op::Eq, 0xae80)]), rule("read", &[])];
    Set { filters: vec![filter("worker-startup", startup), filter("worker-vcpu", vcpu)], ..Set::default() }
}

/// Stacks, by what they are called here.
fn stack(thread: Option<&str>) -> Vec<String> {
    std::iter::once("worker-startup").chain(thread).map(str::to_owned).collect()
}

fn traced_calls(calls: &[(&[String], &str, [u64; 6])]) -> Vec<Traced> {
    let set = set();
    let mut recorder = Recorder::new(&set, Arch::X86_64);
    for (filters, name, args) in calls {
        let nr = Arch::X86_64.number(name).unwrap();
        recorder.note(filters, &Data { nr, arch: Arch::X86_64.audit(), instruction_pointer: 0, args: *args });
    }
    summarise(&set, Arch::X86_64, &recorder.seen())
}

#[test]
fn calls_that_differ_only_where_nobody_looks_are_one() {
    let startup = stack(None);
    let read = |fd, size| (&startup[..], "read", [fd, 0x7fff_0000, size, 0, 0, 0]);
    let traced = traced_calls(&[read(3, 10), read(4, 20), read(5, 30)]);
    assert_eq!(traced.len(), 1);
    let [call] = &traced[0].calls[..] else { panic!("{traced:?}") };
    assert_eq!((call.syscall.as_str(), call.count, call.args.len()), ("read", 3, 0));
    assert_eq!(call.rules, ["read()"]);
}

/// What a thread does under its own filter, the start-up filter allowed too.
#[test]
fn a_call_counts_for_every_filter_of_the_stack() {
    let traced = traced_calls(&[(&stack(Some("worker-vcpu")), "ioctl", [9, 0xae80, 0, 0, 0, 0])]);
    assert_eq!(traced.iter().map(|t| t.filter.as_str()).collect::<Vec<_>>(), ["worker-startup", "worker-vcpu"]);
    for filter in &traced {
        assert_eq!(filter.calls[0].rules, ["ioctl(1 == 0xae80)"], "{}", filter.filter);
        assert!(filter.calls[0].allowed && filter.add.is_empty());
        assert!(filter.drop.iter().any(|u| u.rule == "read()"), "nothing read");
    }
    assert!(traced[0].drop.iter().any(|u| u.rule == "ioctl(1 == 0xae01)"));
}

#[test]
fn what_no_rule_allows_is_proposed_with_the_arguments_that_tell_what_it_does() {
    let startup = stack(None);
    let traced = traced_calls(&[
        (&startup, "ioctl", [9, 0xffff_ffff_0000_5401, 0x1234, 0, 0, 0]),
        (&startup, "mmap", [0, 4096, 7, 0x22, u64::MAX, 0]),
        (&startup, "sched_yield", [1, 2, 3, 4, 5, 6]),
    ]);
    assert_eq!(traced[0].add, ["ioctl(1 == 0x5401)", "mmap(2 == 0x7, 3 == 0x22)", "sched_yield()"]);
    assert!(traced[0].calls.iter().all(|c| !c.allowed && c.rules.is_empty()));
}

#[test]
fn a_rule_without_conditions_is_proposed_with_those_that_would_do() {
    let startup = stack(None);
    let traced = traced_calls(&[(&startup, "memfd_create", [0x7fff_0000, 3, 0, 0, 0, 0])]);
    let to = vec!["memfd_create(1 == 0x3)".to_owned()];
    assert_eq!(traced[0].tighten, [Tighter { rule: "memfd_create()".into(), to }]);
    let flags = (0..20).map(|n| (&startup[..], "memfd_create", [0, n, 0, 0, 0, 0]));
    let many = traced_calls(&flags.collect::<Vec<_>>());
    assert!(many[0].tighten.is_empty(), "twenty rules are no better to read than one");
}

#[test]
fn calls_of_another_architecture_are_left_out_and_a_filter_that_the_set_lacks_is_named() {
    let set = set();
    let mut recorder = Recorder::new(&set, Arch::X86_64);
    let data = Data { nr: 0, arch: Arch::Aarch64.audit(), instruction_pointer: 0, args: [0; 6] };
    recorder.note(&stack(None), &data);
    assert!(recorder.seen().is_empty());
    recorder.note(&["other".into()], &Data { arch: Arch::X86_64.audit(), ..data });
    let traced = summarise(&set, Arch::X86_64, &recorder.seen());
    assert_eq!((traced[0].filter.as_str(), traced[0].known), ("other", false));
    assert_eq!(traced[0].add, ["read()"]);
}

#[test]
fn a_record_grows_and_forgets_rules_that_are_gone() {
    let traced = traced_calls(&[(&stack(None), "read", [0; 6])]);
    let earlier = Record::from([
        ("worker-startup".into(), ["ioctl(1 == 0xae80)", "gone()"].map(str::to_owned).into()),
        ("gone".into(), BTreeSet::new()),
    ]);
    let record = record(&set(), Arch::X86_64, &earlier, &traced);
    let keys: Vec<&str> = record["worker-startup"].iter().map(String::as_str).collect();
    assert_eq!(keys, ["ioctl(1 == 0xae80)", "read()"]);
    assert!(record["worker-vcpu"].is_empty() && record.len() == 2);
}

#[test]
fn conditions_are_held_against_as_much_of_an_argument_as_they_look_at() {
    let high = 0x1_0000_0001;
    let condition = |width, op, value| Condition { index: 0, width, op, value, comment: None };
    for (width, op, value, expected) in [
        (Width::Dword, Op::Eq, 1, true),
        (Width::Qword, Op::Eq, 1, false),
        (Width::Qword, Op::Ne, 1, true),
        (Width::Dword, Op::Lt, 2, true),
        (Width::Qword, Op::Gt, 2, true),
        (Width::Dword, Op::Ge, 1, true),
        (Width::Dword, Op::Le, 0, false),
        (Width::Qword, Op::MaskedEq(1 << 32), 1 << 32, true),
    ] {
        let holds = condition(width, op, value).holds(&[high, 0, 0, 0, 0, 0]);
        assert_eq!(holds, expected, "{width:?} {op:?} {value}");
    }
}

/// `fcntl`'s third argument means something with some commands only.
#[test]
fn an_argument_that_only_another_rule_looks_at_makes_no_two_calls_of_one() {
    let mut set = set();
    let setfl = rule("fcntl", &[(1, Op::Eq, 4), (2, Op::MaskedEq(0x800), 0x800)]);
    set.filters[0].rules.extend([rule("fcntl", &[(1, Op::Eq, 1)]), setfl]);
    let mut recorder = Recorder::new(&set, Arch::X86_64);
    let nr = Arch::X86_64.number("fcntl").unwrap();
    for args in [[3, 1, 0x7f00, 0, 0, 0], [3, 1, 0x5500, 0, 0, 0], [3, 4, 0x802, 0, 0, 0]] {
        recorder.note(&stack(None), &Data { nr, arch: Arch::X86_64.audit(), instruction_pointer: 0, args });
    }
    let traced = summarise(&set, Arch::X86_64, &recorder.seen());
    let kinds: Vec<(BTreeMap<u8, u64>, u64)> = traced[0].calls.iter().map(|c| (c.args.clone(), c.count)).collect();
    assert_eq!(kinds, [(BTreeMap::from([(1, 1)]), 2), (BTreeMap::from([(1, 4), (2, 0x802)]), 1)]);
}
