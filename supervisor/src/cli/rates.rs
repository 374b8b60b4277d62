//! From two answers about a VM to what it does per second. Pure.
//!
//! Half of these numbers are the word of a worker that may be compromised: none is believed to be plausible, and one that
//! went back (another worker, or a lie) is no rate.

use vmsup::api::types::{DiskStats, GuestStats, LatencyStats, ProcessStats, VmStats};

/// What a VM does per second; what cannot be said is none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rates {
    /// Processor time, per cent of one CPU.
    pub cpu: Option<f64>,
    /// Time that its vCPUs waited for a processor, per cent of one CPU.
    pub steal: Option<f64>,
    /// Exits of its vCPUs.
    pub exits: Option<f64>,
    /// Bytes read from its disks.
    pub read: Option<f64>,
    /// Bytes written to its disks.
    pub written: Option<f64>,
    /// Bytes that reached it from its networks.
    pub received: Option<f64>,
    /// Bytes that it sent.
    pub sent: Option<f64>,
    /// How long half of its disk requests took at most, µs.
    pub disk_p50_us: Option<f64>,
    /// The same of 99 of 100.
    pub disk_p99_us: Option<f64>,
}

/// Between two answers about the same VM.
pub fn between(before: &VmStats, now: &VmStats) -> Rates {
    let ms = now.at_ms.saturating_sub(before.at_ms);
    if before.id != now.id || ms == 0 {
        return Rates::default();
    }
    let per_second = |count: u64| count as f64 * 1000.0 / ms as f64;
    let of_process = |total: fn(&ProcessStats) -> u64| {
        let grown = grown(total(before.process.as_ref()?), total(now.process.as_ref()?))?;
        Some(per_second(grown))
    };
    let of_guest = |total: fn(&GuestStats) -> u64| {
        let grown = grown(total(before.guest.as_ref()?), total(now.guest.as_ref()?))?;
        Some(per_second(grown))
    };
    let disks = |stats: &VmStats| stats.guest.as_ref().map(|guest| durations(&guest.disks));
    let latency = disks(before).zip(disks(now)).and_then(|(before, now)| since(&before, &now));
    Rates {
        cpu: of_process(|p| sum([p.user_us, p.system_us, p.guest_us])).map(|us| us / 10_000.0),
        steal: of_process(|p| sum(p.vcpus.iter().map(|v| v.steal_ns))).map(|ns| ns / 10_000_000.0),
        exits: of_guest(|g| sum(g.vcpus.iter().flat_map(|v| v.by_reason().map(|(_, n)| n)))),
        read: of_guest(|g| sum(g.disks.iter().map(|d| d.read_bytes))),
        written: of_guest(|g| sum(g.disks.iter().map(|d| d.written_bytes))),
        received: of_guest(|g| sum(g.nets.iter().map(|n| n.received_bytes))),
        sent: of_guest(|g| sum(g.nets.iter().map(|n| n.sent_bytes))),
        disk_p50_us: latency.as_ref().and_then(|l| quantile(l, 0.5)),
        disk_p99_us: latency.as_ref().and_then(|l| quantile(l, 0.99)),
    }
}

/// Memory of a VM: its guest's and its worker's.
pub fn memory(stats: &VmStats) -> Option<u64> {
    let process = stats.process.as_ref()?;
    Some(process.guest_resident_bytes.saturating_add(process.own_resident_bytes))
}

fn sum(numbers: impl IntoIterator<Item = u64>) -> u64 {
    numbers.into_iter().fold(0, u64::saturating_add)
}

fn grown(before: u64, now: u64) -> Option<u64> {
    now.checked_sub(before)
}

/// All requests of all disks in one histogram; of those that have the same bounds, which are all of one release.
fn durations(disks: &[DiskStats]) -> LatencyStats {
    let mut all = LatencyStats::default();
    for latency in disks.iter().flat_map(|d| [&d.read_latency, &d.write_latency, &d.flush_latency]) {
        if all.counts.is_empty() {
            all = latency.clone();
        } else if all.le_us == latency.le_us && all.counts.len() == latency.counts.len() {
            for (sum, count) in all.counts.iter_mut().zip(&latency.counts) {
                *sum = sum.saturating_add(*count);
            }
        }
    }
    all
}

/// What came to a histogram in between.
fn since(before: &LatencyStats, now: &LatencyStats) -> Option<LatencyStats> {
    if before.le_us != now.le_us || before.counts.len() != now.counts.len() {
        return None;
    }
    let counts =
        before.counts.iter().zip(&now.counts).map(|(before, now)| grown(*before, *now)).collect::<Option<_>>()?;
    Some(LatencyStats { le_us: now.le_us.clone(), counts, sum_us: 0 })
}

/// The duration, µs, that a part `q` of all was not longer than, as if those in a bucket were spread over it evenly. Where
/// that is in the last bucket, its lower bound: there is no upper one.
fn quantile(latency: &LatencyStats, q: f64) -> Option<f64> {
    let total: u128 = latency.counts.iter().map(|count| u128::from(*count)).sum();
    if total == 0 {
        return None;
    }
    let wanted = total as f64 * q;
    let (mut passed, mut lower) = (0.0, 0.0);
    for (n, count) in latency.counts.iter().enumerate() {
        let Some(upper) = latency.le_us.get(n).map(|us| *us as f64) else { break };
        if *count > 0 && passed + *count as f64 >= wanted {
            return Some(lower + (upper - lower) * ((wanted - passed) / *count as f64));
        }
        (passed, lower) = (passed + *count as f64, upper);
    }
    Some(lower)
}

/// A number in at most five characters: `999`, `12.3K`, `4.0G`.
pub fn short(value: f64) -> String {
    scaled(value, 1000.0)
}

/// Bytes in at most five characters, the units of 1024.
pub fn short_bytes(bytes: f64) -> String {
    scaled(bytes, 1024.0)
}

fn scaled(value: f64, step: f64) -> String {
    const UNITS: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];
    let (mut value, mut unit) = (value.max(0.0), 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        (value, unit) = (value / step, unit + 1);
    }
    match unit {
        0 => format!("{value:.0}"),
        _ if value < 99.95 => format!("{value:.1}{}", UNITS[unit]),
        _ => format!("{value:.0}{}", UNITS[unit]),
    }
}

/// Per cent in at most five characters.
pub fn percent(value: f64) -> String {
    if value < 99.95 { format!("{value:.1}") } else { format!("{:.0}", value.min(99_999.0)) }
}

/// A duration in at most five characters.
pub fn micros(us: f64) -> String {
    match us {
        us if us < 999.5 => format!("{us:.0}us"),
        us if us < 99_950.0 => format!("{:.1}ms", us / 1e3).replace(".0ms", "ms"),
        us if us < 999_500.0 => format!("{:.0}ms", us / 1e3),
        us => format!("{:.1}s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmsup::api::types::{NetStats, VcpuExits, VcpuTime, VmState};

    fn stats(at_ms: u64, n: u64) -> VmStats {
        let latency = LatencyStats { le_us: vec![100, 200], counts: vec![n, n, 0], sum_us: 0 };
        let disk = DiskStats { read_bytes: 2048 * n, read_latency: latency.clone(), ..DiskStats::default() };
        let write = DiskStats { written_bytes: n, write_latency: latency, ..DiskStats::default() };
        let net = NetStats {
            network: "a".into(),
            interface: "vt1".into(),
            received_packets: 0,
            received_bytes: 10 * n,
            sent_packets: 0,
            sent_bytes: 20 * n,
            dhcp_answers: 0,
            dropped: Default::default(),
        };
        let time = VcpuTime { run_ns: 0, steal_ns: 100_000_000 * n };
        VmStats {
            name: "a".into(),
            id: "1".into(),
            owner: 1,
            state: VmState::Running,
            at_ms,
            process: Some(ProcessStats { user_us: 500_000 * n, vcpus: vec![time; 2], ..ProcessStats::default() }),
            cgroup: None,
            guest: Some(GuestStats {
                vcpus: vec![VcpuExits { pio: n, mmio: n, ..VcpuExits::default() }; 2],
                disks: vec![disk, write],
                nets: vec![net],
            }),
            interfaces: None,
            unanswered: None,
        }
    }

    #[test]
    fn what_grew_is_told_per_second() {
        let rates = between(&stats(10_000, 1), &stats(12_000, 3));
        let expected = Rates {
            cpu: Some(50.0),
            steal: Some(20.0),
            exits: Some(4.0),
            read: Some(2048.0),
            written: Some(1.0),
            received: Some(10.0),
            sent: Some(20.0),
            disk_p50_us: Some(100.0),
            disk_p99_us: Some(198.0),
        };
        assert_eq!(rates, expected);
    }

    #[test]
    fn counters_that_went_back_or_belong_to_another_vm_are_no_rate() {
        assert_eq!(between(&stats(10_000, 3), &stats(12_000, 1)), Rates::default());
        assert_eq!(between(&stats(10_000, 1), &stats(10_000, 3)), Rates::default());
        assert_eq!(between(&stats(12_000, 1), &stats(10_000, 3)), Rates::default());
        assert_eq!(between(&stats(10_000, 1), &VmStats { id: "2".into(), ..stats(12_000, 3) }), Rates::default());
        let silent = VmStats { guest: None, ..stats(12_000, 3) };
        let rates = between(&stats(10_000, 1), &silent);
        assert_eq!((rates.cpu, rates.exits, rates.disk_p50_us), (Some(50.0), None, None));
    }

    #[test]
    fn no_counters_that_a_worker_may_allege_stop_the_count() {
        let mut wild = stats(12_000, 3);
        let guest = wild.guest.as_mut().unwrap();
        guest.vcpus = vec![VcpuExits { pio: u64::MAX, mmio: u64::MAX, interrupted: u64::MAX, other: u64::MAX }; 2];
        guest.disks[0].read_latency =
            LatencyStats { le_us: vec![100, 200], counts: vec![u64::MAX; 3], sum_us: u64::MAX };
        let rates = between(&stats(10_000, 1), &wild);
        assert!(rates.exits.is_some_and(f64::is_finite) && rates.disk_p99_us.is_some_and(f64::is_finite), "{rates:?}");
        // Histograms of another form than before.
        let other = LatencyStats { le_us: vec![1], counts: vec![1], sum_us: 0 };
        wild.guest.as_mut().unwrap().disks[0].read_latency = other;
        assert_eq!(between(&stats(10_000, 1), &wild).disk_p50_us, None);
    }

    #[test]
    fn a_quantile_is_within_its_bucket_and_never_beyond_the_bounds() {
        let of =
            |counts: &[u64], q| quantile(&LatencyStats { le_us: vec![20, 50], counts: counts.into(), sum_us: 0 }, q);
        assert_eq!(of(&[0, 0, 0], 0.5), None);
        assert_eq!(of(&[10, 0, 0], 0.5), Some(10.0));
        assert_eq!(of(&[0, 10, 0], 1.0), Some(50.0));
        assert_eq!(of(&[0, 0, 10], 0.5), Some(50.0));
        assert_eq!(of(&[1, 0, 1], 0.99), Some(50.0));
    }

    #[test]
    fn numbers_fit_their_columns() {
        let mut value = 0.1;
        while value < 1e18 {
            for text in [short(value), short_bytes(value)] {
                assert!(text.len() <= 5, "{value}: {text}");
            }
            value *= 1.37;
        }
        assert_eq!(
            (short(0.0), short(999.0), short(1500.0), short(123_456.0)),
            ("0".into(), "999".into(), "1.5K".into(), "123K".into())
        );
        assert_eq!((short_bytes(1536.0), short_bytes(1048576.0)), ("1.5K".into(), "1.0M".into()));
        assert_eq!((percent(0.0), percent(99.9), percent(3200.0)), ("0.0".into(), "99.9".into(), "3200".into()));
        let all: Vec<String> = [20.0, 1500.0, 2000.0, 100_000.0, 1e6].into_iter().map(micros).collect();
        assert_eq!(all, ["20us", "1.5ms", "2ms", "100ms", "1.0s"]);
    }
}
