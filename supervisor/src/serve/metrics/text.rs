//! Prometheus' text format, version 0.0.4: lines of a name, labels and a number, the lines of a family together.

use super::Own;
use super::collect::Sample;
use super::family::{ALL, Kind, Metric, VM_LABELS};
use crate::api::types::{
    CgroupStats, DiskStats, GuestStats, HealthState, InterfaceStats, LatencyStats, ProcessStats, VmState, VmSummary,
};
use std::fmt::{Display, Write};

/// The most lines of an answer; the VMs behind it are counted and left out. 1000 usual VMs have fewer.
const LINES_MAX: usize = 100_000;
/// The states of VMs, as the label `state` has them.
const STATES: [(VmState, &str); 7] = [
    (VmState::Starting, "starting"),
    (VmState::Running, "running"),
    (VmState::Paused, "paused"),
    (VmState::Stopping, "stopping"),
    (VmState::Restarting, "restarting"),
    (VmState::Stopped, "stopped"),
    (VmState::Crashed, "crashed"),
];

/// Everything; of the supervisor's own where that is given.
pub fn render(own: Option<&Own>, samples: &[Sample]) -> String {
    bounded(own, samples, LINES_MAX)
}

fn bounded(own: Option<&Own>, samples: &[Sample], most: usize) -> String {
    let mut lines = Lines::default();
    let shown = samples.iter().take_while(|sample| {
        let room = lines.count < most;
        if room {
            vm(&mut lines, sample);
        }
        room
    });
    let omitted = samples.len() - shown.count();
    if let Some(own) = own {
        supervisor(&mut lines, own);
    }
    for (state, name) in STATES {
        let count = samples.iter().filter(|(summary, _)| summary.state == state).count();
        lines.add(Metric::Vms, &[("state", &name)], count);
    }
    let unanswered = samples.iter().filter(|(_, stats)| stats.unanswered.is_some()).count();
    lines.add(Metric::Unanswered, &[], unanswered);
    lines.add(Metric::Omitted, &[], omitted);
    lines.text()
}

/// Lines by family.
#[derive(Debug)]
struct Lines {
    of: Vec<String>,
    count: usize,
    /// Labels of the VM that is being written.
    vm: String,
}

impl Default for Lines {
    fn default() -> Self {
        Lines { of: vec![String::new(); ALL.len()], count: 0, vm: String::new() }
    }
}

/// A label: its name, its value.
type Label<'a> = (&'a str, &'a dyn Display);

impl Lines {
    /// One line.
    fn add(&mut self, metric: Metric, labels: &[Label<'_>], value: impl Display) {
        self.part(metric, "", labels, value);
    }

    /// One line of a family that has several names.
    fn part(&mut self, metric: Metric, suffix: &str, labels: &[Label<'_>], value: impl Display) {
        let family = &ALL[metric as usize];
        let own = labels.iter().map(|(name, _)| *name).filter(|name| *name != "le");
        debug_assert!(own.eq(family.labels.iter().copied()), "{} has other labels", family.name);
        let line = &mut self.of[metric as usize];
        line.push_str(family.name);
        line.push_str(suffix);
        let mut all = if family.is_of_a_vm() { self.vm.clone() } else { String::new() };
        for (name, value) in labels {
            label(&mut all, name, value);
        }
        if !all.is_empty() {
            // Writing to a string does not fail.
            let _ = write!(line, "{{{all}}}");
        }
        let _ = writeln!(line, " {value}");
        self.count += 1;
    }

    fn text(self) -> String {
        let mut text = String::with_capacity(self.of.iter().map(String::len).sum::<usize>() + ALL.len() * 160);
        for (family, lines) in ALL.iter().zip(self.of).filter(|(_, lines)| !lines.is_empty()) {
            let _ = writeln!(text, "# HELP {} {}", family.name, family.help);
            let _ = writeln!(text, "# TYPE {} {}", family.name, family.kind.name());
            text.push_str(&lines);
        }
        text
    }
}

/// Adds a label, its value escaped.
fn label(labels: &mut String, name: &str, value: &dyn Display) {
    if !labels.is_empty() {
        labels.push(',');
    }
    let _ = write!(labels, "{name}=\"");
    for c in value.to_string().chars() {
        match c {
            '\\' => labels.push_str("\\\\"),
            '"' => labels.push_str("\\\""),
            '\n' => labels.push_str("\\n"),
            c => labels.push(c),
        }
    }
    labels.push('"');
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn supervisor(lines: &mut Lines, own: &Own) {
    lines.add(Metric::BuildInfo, &[("version", &env!("CARGO_PKG_VERSION"))], 1);
    if let Some((cpu_us, resident)) = own.process {
        lines.add(Metric::SupervisorCpu, &[], seconds(cpu_us));
        lines.add(Metric::SupervisorResident, &[], resident);
    }
    lines.add(Metric::JailerUp, &[], u8::from(own.jailer_up));
    lines.add(Metric::StateTrouble, &[], u8::from(own.state_trouble));
    lines.add(Metric::Events, &[], own.events);
    lines.add(Metric::Operations, &[], own.operations);
    lines.add(Metric::OperationsRunning, &[], own.operations_running);
    lines.add(Metric::Starts, &[], own.starts);
    for (kind, count) in &own.ends {
        lines.add(Metric::Ends, &[("kind", kind)], count);
    }
}

/// All lines of one VM.
fn vm(lines: &mut Lines, (summary, stats): &Sample) {
    lines.vm.clear();
    let values: [&dyn Display; 3] = [&summary.name, &summary.id, &summary.owner];
    for (name, value) in VM_LABELS.iter().zip(values) {
        label(&mut lines.vm, name, value);
    }
    what_it_is(lines, summary);
    if let Some(process) = &stats.process {
        worker(lines, process);
    }
    if let Some(guest) = &stats.guest {
        counted(lines, guest);
    }
    for interface in stats.interfaces.iter().flatten() {
        ways(lines, interface);
    }
    if let Some(cgroup) = &stats.cgroup {
        limits(lines, cgroup);
    }
}

fn what_it_is(lines: &mut Lines, summary: &VmSummary) {
    if let Some((_, name)) = STATES.iter().find(|(state, _)| *state == summary.state) {
        lines.add(Metric::VmState, &[("state", name)], 1);
    }
    if let Some(at) = summary.started_at {
        lines.add(Metric::VmStarted, &[], at);
    }
    lines.add(Metric::VmRestarts, &[], summary.restarts);
    match summary.health {
        Some(HealthState::Healthy) => lines.add(Metric::VmHealthy, &[], 1),
        Some(HealthState::Unhealthy(_) | HealthState::Hung(_)) => lines.add(Metric::VmHealthy, &[], 0),
        Some(HealthState::Starting | HealthState::Unknown(_)) | None => {}
    }
    lines.add(Metric::VmVcpus, &[], summary.cpus);
    lines.add(Metric::VmMemory, &[], u128::from(summary.memory_mib) << 20);
}

fn worker(lines: &mut Lines, process: &ProcessStats) {
    lines.add(Metric::VmThreads, &[], process.threads);
    for (mode, us) in [("guest", process.guest_us), ("user", process.user_us), ("system", process.system_us)] {
        lines.add(Metric::VmCpu, &[("mode", &mode)], seconds(us));
    }
    for (of, bytes) in [("guest", process.guest_resident_bytes), ("worker", process.own_resident_bytes)] {
        lines.add(Metric::VmResident, &[("of", &of)], bytes);
    }
    for (n, time) in process.vcpus.iter().enumerate() {
        lines.add(Metric::VmRun, &[("vcpu", &n)], time.run_ns as f64 / 1e9);
        lines.add(Metric::VmSteal, &[("vcpu", &n)], time.steal_ns as f64 / 1e9);
    }
}

fn counted(lines: &mut Lines, guest: &GuestStats) {
    for (n, exits) in guest.vcpus.iter().enumerate() {
        for (reason, count) in exits.by_reason() {
            lines.add(Metric::VmExits, &[("vcpu", &n), ("reason", &reason)], count);
        }
    }
    for (n, counters) in guest.disks.iter().enumerate() {
        disk(lines, n, counters);
    }
    for (n, net) in guest.nets.iter().enumerate() {
        let labels: [Label<'_>; 2] = [("net", &n), ("network", &net.network)];
        lines.add(Metric::VmNetReceivedBytes, &labels, net.received_bytes);
        lines.add(Metric::VmNetReceivedPackets, &labels, net.received_packets);
        lines.add(Metric::VmNetSentBytes, &labels, net.sent_bytes);
        lines.add(Metric::VmNetSentPackets, &labels, net.sent_packets);
        for (reason, count) in &net.dropped {
            lines.add(Metric::VmNetDropped, &[labels[0], labels[1], ("reason", reason)], count);
        }
    }
}

fn ways(lines: &mut Lines, interface: &InterfaceStats) {
    let labels: [Label<'_>; 2] = [("interface", &interface.interface), ("network", &interface.network)];
    lines.add(Metric::VmInterfaceReceivedBytes, &labels, interface.received_bytes);
    lines.add(Metric::VmInterfaceReceivedPackets, &labels, interface.received_packets);
    lines.add(Metric::VmInterfaceSentBytes, &labels, interface.sent_bytes);
    lines.add(Metric::VmInterfaceSentPackets, &labels, interface.sent_packets);
    for (way, count) in [("receive", interface.received_dropped), ("transmit", interface.sent_dropped)] {
        lines.add(Metric::VmInterfaceDropped, &[labels[0], labels[1], ("way", &way)], count);
    }
}

fn disk(lines: &mut Lines, n: usize, disk: &DiskStats) {
    lines.add(Metric::VmDiskRead, &[("disk", &n)], disk.read_bytes);
    lines.add(Metric::VmDiskWritten, &[("disk", &n)], disk.written_bytes);
    lines.add(Metric::VmDiskErrors, &[("disk", &n)], disk.errors);
    let ops = [
        ("read", disk.reads, &disk.read_latency),
        ("write", disk.writes, &disk.write_latency),
        ("flush", disk.flushes, &disk.flush_latency),
    ];
    for (op, count, latency) in ops {
        let labels: [Label<'_>; 2] = [("disk", &n), ("op", &op)];
        lines.add(Metric::VmDiskRequests, &labels, count);
        histogram(lines, Metric::VmDiskLatency, labels, latency);
    }
}

/// Buckets as the format has them: each holds those before it, the last one all. What a worker alleges may not fit 64 bits
/// together.
fn histogram(lines: &mut Lines, metric: Metric, labels: [Label<'_>; 2], latency: &LatencyStats) {
    debug_assert_eq!(ALL[metric as usize].kind, Kind::Histogram);
    let mut sum: u128 = 0;
    for (n, count) in latency.counts.iter().enumerate() {
        sum += u128::from(*count);
        let le: String = latency.le_us.get(n).map_or_else(|| "+Inf".into(), |us| seconds(*us).to_string());
        lines.part(metric, "_bucket", &[labels[0], labels[1], ("le", &le)], sum);
    }
    lines.part(metric, "_sum", &labels, seconds(latency.sum_us));
    lines.part(metric, "_count", &labels, sum);
}

fn limits(lines: &mut Lines, cgroup: &CgroupStats) {
    lines.add(Metric::VmCgroupCpu, &[], seconds(cgroup.cpu_us));
    lines.add(Metric::VmCgroupPeriods, &[], cgroup.periods);
    lines.add(Metric::VmCgroupThrottledPeriods, &[], cgroup.throttled_periods);
    lines.add(Metric::VmCgroupThrottled, &[], seconds(cgroup.throttled_us));
    lines.add(Metric::VmCgroupMemory, &[], cgroup.memory_bytes);
    for (event, count) in &cgroup.memory_events {
        lines.add(Metric::VmCgroupMemoryEvents, &[("event", event)], count);
    }
    lines.add(Metric::VmCgroupPids, &[], cgroup.pids);
    for pressure in &cgroup.pressure {
        for (share, us) in [("some", pressure.some_us), ("full", pressure.full_us)] {
            let labels: [Label<'_>; 2] = [("resource", &pressure.resource), ("share", &share)];
            lines.add(Metric::VmPressure, &labels, seconds(us));
        }
    }
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
