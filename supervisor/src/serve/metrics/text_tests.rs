//! The text held against the format's rules by a parser of its own, which takes nothing that the format does not say.

use super::*;
use crate::api::types::{Desired, InterfaceStats, NetStats, Pressure, VcpuExits, VcpuTime, VmStats};
use std::collections::{BTreeMap, BTreeSet};

/// A line: its labels, its value.
type Line = (BTreeMap<String, String>, f64);

/// What was parsed: for each family its kind, and its lines by name.
type Parsed = BTreeMap<String, (String, Vec<(String, Line)>)>;

/// Parses all of it, or panics.
pub fn parse(text: &str) -> Parsed {
    assert!(text.ends_with('\n'));
    let mut families = Parsed::new();
    let mut current: Option<String> = None;
    let mut helped: Option<String> = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            helped = Some(rest.split_once(' ').unwrap().0.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(helped.take().as_deref(), Some(name), "HELP stands before TYPE");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(families.insert(name.to_owned(), (kind.to_owned(), Vec::new())).is_none(), "{name} stands twice");
            current = Some(name.to_owned());
        } else {
            let (name, parsed) = sample(line);
            let family = current.as_ref().unwrap();
            let (kind, lines) = families.get_mut(family).unwrap();
            let suffix = name.strip_prefix(family.as_str()).unwrap_or_else(|| panic!("{line} is in {family}"));
            let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.contains(&suffix), "{line} is in {family}");
            lines.push((name, parsed));
        }
    }
    families
}

/// `name{label="value",…} number`.
fn sample(line: &str) -> (String, Line) {
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap();
    let (name, mut rest) = line.split_at(end);
    assert!(name.starts_with(|c: char| c.is_ascii_alphabetic()), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && !label.is_empty(), "{line}");
            let (value, after) = quoted(after);
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            match after.strip_prefix(',') {
                Some(next) => rest = next,
                None => {
                    rest = after.strip_prefix('}').unwrap_or_else(|| panic!("{line}"));
                    break;
                }
            }
        }
    }
    let number = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line}"));
    assert!(number.bytes().all(|b| b.is_ascii_digit() || b == b'.'), "{line}");
    (name.to_owned(), (labels, number.parse().unwrap()))
}

/// A value up to its closing quote, and what is behind that.
fn quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    loop {
        match chars.next().unwrap() {
            (_, '\\') => value.push(match chars.next().unwrap().1 {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                c => panic!("an escape that is none: {c}"),
            }),
            (at, '"') => return (value, &text[at + 1..]),
            (_, c) => value.push(c),
        }
    }
}

fn summary(name: &str, state: VmState) -> VmSummary {
    VmSummary {
        name: name.into(),
        id: "00000000000000aa".into(),
        state,
        pid: None,
        owner: 1000,
        cpus: 2,
        memory_mib: 512,
        nets: Vec::new(),
        started_at: Some(1_700_000_000),
        end: None,
        desired: Desired::Running,
        generation: 1,
        spec_hash: String::new(),
        source: None,
        restarts: 3,
        health: None,
    }
}

fn bare(name: &str, state: VmState) -> Sample {
    let stats = VmStats {
        name: name.into(),
        id: "00000000000000aa".into(),
        owner: 1000,
        state,
        at_ms: 0,
        process: None,
        cgroup: None,
        guest: None,
        interfaces: None,
        unanswered: None,
    };
    (summary(name, state), stats)
}

/// With something in every family about a VM.
fn full(name: &str) -> Sample {
    let (mut summary, mut stats) = bare(name, VmState::Running);
    summary.health = Some(HealthState::Hung("stands still".into()));
    let interface = InterfaceStats { network: "default".into(), interface: "vt1".into(), ..Default::default() };
    stats.interfaces = Some(vec![interface]);
    let time = VcpuTime { run_ns: 1_500_000_000, steal_ns: 7 };
    stats.process = Some(ProcessStats { user_us: 10, threads: 5, vcpus: vec![time; 2], ..Default::default() });
    stats.cgroup = Some(CgroupStats {
        memory_events: [("oom_kill".to_owned(), 1)].into(),
        pressure: vec![Pressure { resource: "io".into(), some_us: 5, full_us: 4 }],
        ..Default::default()
    });
    let latency = LatencyStats { le_us: vec![20, 1_000_000], counts: vec![4, 3, 2], sum_us: 9 };
    let disk = DiskStats { reads: 9, read_latency: latency.clone(), write_latency: latency, ..Default::default() };
    let net = NetStats {
        network: "a\"b\\c\nd".into(),
        interface: "vt1".into(),
        received_packets: 1,
        received_bytes: u64::MAX,
        sent_packets: 3,
        sent_bytes: 4,
        dhcp_answers: 0,
        dropped: [("tap".to_owned(), 2)].into(),
    };
    stats.guest = Some(GuestStats { vcpus: vec![VcpuExits::default(); 2], disks: vec![disk], nets: vec![net] });
    (summary, stats)
}

fn own() -> Own {
    Own { ends: vec![("killed", 2)], process: Some((1_000_000, 4096)), jailer_up: true, ..Own::default() }
}

#[test]
fn every_family_is_written_as_the_table_says() {
    let parsed = parse(&render(Some(&own()), &[full("web"), full("db")]));
    let families: BTreeSet<&str> = parsed.keys().map(String::as_str).collect();
    assert_eq!(families, ALL.iter().map(|family| family.name).collect());
    let mut series = BTreeSet::new();
    for family in ALL {
        let (kind, lines) = &parsed[family.name];
        assert_eq!(kind, family.kind.name());
        for (name, (labels, _)) in lines {
            let of_vm = family.is_of_a_vm().then_some(VM_LABELS).into_iter().flatten();
            let mut expected: BTreeSet<&str> = of_vm.chain(family.labels.iter().copied()).collect();
            if name.ends_with("_bucket") {
                expected.insert("le");
            }
            assert_eq!(labels.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected, "{name}");
            assert!(series.insert((name.clone(), labels.clone())), "{name} {labels:?} stands twice");
        }
    }
}

#[test]
fn buckets_of_a_histogram_only_grow_and_the_last_one_is_its_count() {
    let (summary, mut stats) = full("web");
    // The most that a worker can allege.
    let disk = &mut stats.guest.as_mut().unwrap().disks[0];
    disk.flush_latency = LatencyStats { le_us: vec![20, 50], counts: vec![u64::MAX; 3], sum_us: u64::MAX };
    let parsed = parse(&render(Some(&own()), &[(summary, stats)]));
    let (_, lines) = &parsed["vmsup_vm_disk_request_duration_seconds"];
    for (op, count) in [("read", 9.0), ("write", 9.0), ("flush", 3.0 * u64::MAX as f64)] {
        let of = |suffix: &str| {
            let name = format!("vmsup_vm_disk_request_duration_seconds{suffix}");
            lines.iter().filter(move |(n, (labels, _))| *n == name && labels["op"] == op).map(|(_, line)| line)
        };
        let buckets: Vec<(f64, f64)> = of("_bucket").map(|(l, value)| (l["le"].parse().unwrap(), *value)).collect();
        assert_eq!(buckets.len(), 3);
        assert!(buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1), "{buckets:?}");
        assert_eq!(buckets[2], (f64::INFINITY, count));
        assert_eq!(of("_count").map(|line| line.1).collect::<Vec<_>>(), [count]);
        assert_eq!(of("_sum").count(), 1);
    }
    assert_eq!(lines.iter().find(|(_, (labels, _))| labels.get("le").is_some()).unwrap().1.0["le"], "0.00002");
}

#[test]
fn a_label_says_what_it_was_given_whatever_is_in_it() {
    let parsed = parse(&render(Some(&own()), &[full("a\"} 1\nvmsup_jailer_up 0\\")]));
    let (_, lines) = &parsed["vmsup_vm_net_receive_bytes_total"];
    assert_eq!(lines[0].1.0["network"], "a\"b\\c\nd");
    assert_eq!(lines[0].1.0["vm"], "a\"} 1\nvmsup_jailer_up 0\\");
    assert_eq!(parsed["vmsup_jailer_up"].1.iter().map(|line| line.1.1).collect::<Vec<_>>(), [1.0]);
}

#[test]
fn a_vm_that_rests_has_no_numbers_of_a_worker() {
    let mut asked = bare("silent", VmState::Running);
    asked.1.unanswered = Some("it does not answer".into());
    let parsed = parse(&render(Some(&own()), &[bare("rests", VmState::Stopped), asked, full("web")]));
    assert_eq!(parsed["vmsup_vm_vcpus"].1.len(), 3);
    assert_eq!(parsed["vmsup_vm_disk_errors_total"].1.len(), 1);
    assert_eq!(parsed["vmsup_worker_unanswered"].1[0].1.1, 1.0);
    let states: BTreeMap<&str, f64> =
        parsed["vmsup_vms"].1.iter().map(|(_, (labels, n))| (labels["state"].as_str(), *n)).collect();
    assert_eq!((states["running"], states["stopped"], states["crashed"], states.len()), (2.0, 1.0, 0.0, 7));
}

#[test]
fn an_answer_is_bounded_and_says_how_many_vms_it_leaves_out() {
    let samples: Vec<Sample> = (0..50).map(|n| full(&format!("vm{n}"))).collect();
    let parsed = parse(&bounded(Some(&own()), &samples, 200));
    let shown = parsed["vmsup_vm_vcpus"].1.len();
    assert!((2..10).contains(&shown), "{shown}");
    assert_eq!(parsed["vmsup_vms_omitted"].1[0].1.1, (50 - shown) as f64);
    assert_eq!(parse(&render(Some(&own()), &samples))["vmsup_vms_omitted"].1[0].1.1, 0.0);
}
