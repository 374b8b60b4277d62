//! The names of all metrics: one table, from which the exporter writes, and against which `docs/metrics.md` and the dashboard
//! are checked. Names and units follow Prometheus' conventions: base units, `_total` for what only grows.

/// A family of metrics.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// What kind of number it is.
    pub kind: Kind,
    /// Its labels, behind [`VM_LABELS`] where it is about a VM.
    pub labels: &'static [&'static str],
    /// What it means: one line.
    pub help: &'static str,
}

/// A kind of number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until what it counts begins anew.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How many were no larger than each of a few bounds.
    Histogram,
}

impl Kind {
    /// As the text format has it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// The labels of every family about a VM.
pub const VM_LABELS: [&str; 3] = ["vm", "id", "owner"];

impl Family {
    /// It is about a VM.
    pub fn is_of_a_vm(&self) -> bool {
        self.name.starts_with("vmsup_vm_")
    }
}

macro_rules! metrics {
    ($($metric:ident $name:literal $kind:ident [$($label:literal),*] $help:literal;)*) => {
        /// A metric: an index into [`ALL`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Metric { $(#[doc = $help] $metric),* }

        /// All families, in the order in which they are written.
        pub const ALL: &[Family] =
            &[$(Family { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help }),*];
    };
}

metrics! {
    BuildInfo "vmsup_build_info" Gauge ["version"] "The supervisor's release; always 1.";
    SupervisorCpu "vmsup_supervisor_cpu_seconds_total" Counter [] "Processor time of the supervisor itself.";
    SupervisorResident "vmsup_supervisor_resident_bytes" Gauge [] "Memory of the supervisor itself.";
    JailerUp "vmsup_jailer_up" Gauge [] "1 while the jailer lives; without one no VM can be started.";
    StateTrouble "vmsup_state_trouble" Gauge [] "1 while the durable state cannot be written.";
    Events "vmsup_events_total" Counter [] "Events since this supervisor began.";
    Operations "vmsup_operations_total" Counter [] "Number of the last operation; goes on across restarts of the supervisor.";
    OperationsRunning "vmsup_operations_running" Gauge [] "Operations under way.";
    Starts "vmsup_vms_started_total" Counter [] "Times that a VM's vCPUs began to run under this supervisor.";
    Ends "vmsup_vms_ended_total" Counter ["kind"] "Ends of VMs under this supervisor, by kind.";
    Vms "vmsup_vms" Gauge ["state"] "VMs, by state.";
    Unanswered "vmsup_worker_unanswered" Gauge [] "Workers that told nothing in time, whose own counters are left out here.";
    Omitted "vmsup_vms_omitted" Gauge [] "VMs that are left out here because this answer would be too large.";
    VmState "vmsup_vm_state" Gauge ["state"] "1 for the state that the VM is in.";
    VmStarted "vmsup_vm_start_time_seconds" Gauge [] "When its vCPUs began to run, seconds since 1970.";
    VmRestarts "vmsup_vm_restarts_total" Counter [] "How often it was started again since its owner last started it.";
    VmHealthy "vmsup_vm_healthy" Gauge [] "1 while it is well, 0 while it is not or hangs; for VMs with a health check that can be looked at, and those that hang.";
    VmVcpus "vmsup_vm_vcpus" Gauge [] "vCPUs, from its file.";
    VmMemory "vmsup_vm_memory_bytes" Gauge [] "Guest memory, from its file.";
    VmThreads "vmsup_vm_threads" Gauge [] "Threads of its worker.";
    VmCpu "vmsup_vm_cpu_seconds_total" Counter ["mode"] "Processor time of its worker: guest, user or system.";
    VmRun "vmsup_vm_vcpu_run_seconds_total" Counter ["vcpu"] "Time that a vCPU's thread was on a processor.";
    VmSteal "vmsup_vm_vcpu_steal_seconds_total" Counter ["vcpu"] "Time that a vCPU's thread waited for a processor.";
    VmResident "vmsup_vm_resident_bytes" Gauge ["of"] "Memory of its worker: of the guest, or of the worker's own.";
    VmExits "vmsup_vm_vcpu_exits_total" Counter ["vcpu", "reason"] "Times that a vCPU left the guest: pio, mmio, interrupted or other.";
    VmDiskRequests "vmsup_vm_disk_requests_total" Counter ["disk", "op"] "Requests that were carried out: read, write or flush.";
    VmDiskRead "vmsup_vm_disk_read_bytes_total" Counter ["disk"] "Bytes that were read.";
    VmDiskWritten "vmsup_vm_disk_written_bytes_total" Counter ["disk"] "Bytes that were written.";
    VmDiskErrors "vmsup_vm_disk_errors_total" Counter ["disk"] "Requests that failed, or made no sense.";
    VmDiskLatency "vmsup_vm_disk_request_duration_seconds" Histogram ["disk", "op"] "From a request's arrival to its completion.";
    VmNetReceivedBytes "vmsup_vm_net_receive_bytes_total" Counter ["net", "network"] "Bytes that reached the guest.";
    VmNetReceivedPackets "vmsup_vm_net_receive_packets_total" Counter ["net", "network"] "Packets that reached the guest.";
    VmNetSentBytes "vmsup_vm_net_transmit_bytes_total" Counter ["net", "network"] "Bytes that the guest sent into the network.";
    VmNetSentPackets "vmsup_vm_net_transmit_packets_total" Counter ["net", "network"] "Packets that the guest sent into the network.";
    VmNetDropped "vmsup_vm_net_dropped_packets_total" Counter ["net", "network", "reason"] "Packets that its worker dropped, by reason; reasons with none are left out.";
    VmInterfaceReceivedBytes "vmsup_vm_interface_receive_bytes_total" Counter ["interface", "network"] "Bytes that went to the guest, as the host's kernel counted them.";
    VmInterfaceReceivedPackets "vmsup_vm_interface_receive_packets_total" Counter ["interface", "network"] "Packets that went to the guest, as the host's kernel counted them.";
    VmInterfaceSentBytes "vmsup_vm_interface_transmit_bytes_total" Counter ["interface", "network"] "Bytes that came from the guest, as the host's kernel counted them.";
    VmInterfaceSentPackets "vmsup_vm_interface_transmit_packets_total" Counter ["interface", "network"] "Packets that came from the guest, as the host's kernel counted them.";
    VmInterfaceDropped "vmsup_vm_interface_dropped_packets_total" Counter ["interface", "network", "way"] "Packets that the host's interface dropped, by way: receive (to the guest) or transmit.";
    VmCgroupCpu "vmsup_vm_cgroup_cpu_seconds_total" Counter [] "Processor time, as its cgroup counts it.";
    VmCgroupPeriods "vmsup_vm_cgroup_periods_total" Counter [] "Periods of its CPU limit that have passed.";
    VmCgroupThrottledPeriods "vmsup_vm_cgroup_throttled_periods_total" Counter [] "Periods in which its CPU limit held it back.";
    VmCgroupThrottled "vmsup_vm_cgroup_throttled_seconds_total" Counter [] "Time for which its CPU limit held it back.";
    VmCgroupMemory "vmsup_vm_cgroup_memory_bytes" Gauge [] "Memory that is charged to its cgroup.";
    VmCgroupMemoryEvents "vmsup_vm_cgroup_memory_events_total" Counter ["event"] "How often its cgroup met a limit of memory: high, max, oom, oom_kill and others.";
    VmCgroupPids "vmsup_vm_cgroup_pids" Gauge [] "Threads in its cgroup.";
    VmPressure "vmsup_vm_cgroup_pressure_seconds_total" Counter ["resource", "share"] "Time in which some or all (full) of its threads waited for cpu, memory or io.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn file(path: &str) -> String {
        let path = format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    #[test]
    fn names_and_kinds_follow_the_conventions() {
        let names: BTreeSet<&str> = ALL.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), ALL.len());
        for Family { name, kind, labels, help } in ALL {
            assert!(name.starts_with("vmsup_") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert!(help.ends_with('.') && !help.contains(['\n', '\\', '|']), "{name}");
            assert!(labels.iter().all(|label| !VM_LABELS.contains(label) && *label != "le"), "{name}");
            let other_units = ["_ms", "_us", "_ns", "_kb", "_mib", "_percent"];
            assert!(
                !other_units.iter().any(|unit| name.contains(&format!("{unit}_")) || name.ends_with(unit)),
                "{name}"
            );
        }
    }

    #[test]
    fn the_manual_has_a_row_for_each_metric_and_no_other() {
        let manual = file("docs/metrics.md");
        // Those of `vmsup inspect` are the command's (cli/inspect/prometheus.rs).
        let ours = |line: &&str| line.starts_with("| `vmsup_") && !line.starts_with("| `vmsup_verify_");
        let rows: Vec<&str> = manual.lines().filter(ours).collect();
        let expected: Vec<String> = ALL
            .iter()
            .map(|family| {
                let Family { name, kind, labels, help } = family;
                let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
                format!("| `{name}` | {} | {} | {help} |", kind.name(), labels.join(", "))
            })
            .collect();
        assert_eq!(rows, expected, "docs/metrics.md should have these rows:\n{}", expected.join("\n"));
    }

    /// Names of metrics in an expression.
    fn named(expression: &str) -> impl Iterator<Item = &str> {
        let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words.filter(|word| word.starts_with("vmsup_"))
    }

    fn expressions<'a>(value: &'a serde_json::Value, found: &mut Vec<&'a str>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (key, value) in fields {
                    match value.as_str() {
                        // The other `query` chooses the data source.
                        Some("prometheus") => {}
                        Some(text) if matches!(key.as_str(), "expr" | "query" | "definition") => found.push(text),
                        _ => expressions(value, found),
                    }
                }
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
            _ => {}
        }
    }

    #[test]
    fn the_dashboard_asks_only_for_metrics_that_there_are() {
        let dashboard: serde_json::Value = serde_json::from_str(&file("packaging/grafana/vmsup.json")).unwrap();
        let mut found = Vec::new();
        expressions(&dashboard, &mut found);
        assert!(found.len() > 15, "{found:?}");
        let mut names: BTreeSet<String> = ALL.iter().map(|family| family.name.to_owned()).collect();
        for family in ALL.iter().filter(|family| family.kind == Kind::Histogram) {
            names.extend(["_bucket", "_sum", "_count"].map(|part| format!("{}{part}", family.name)));
        }
        for expression in found {
            assert!(named(expression).count() > 0, "{expression}");
            for name in named(expression) {
                assert!(names.contains(name), "{name} in {expression}");
            }
            assert_eq!(expression.matches('(').count(), expression.matches(')').count(), "{expression}");
        }
    }

    #[test]
    fn the_dashboards_panels_have_places_and_numbers_of_their_own() {
        let dashboard: serde_json::Value = serde_json::from_str(&file("packaging/grafana/vmsup.json")).unwrap();
        assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39 && dashboard["uid"] == "vmsup");
        let panels = dashboard["panels"].as_array().unwrap();
        let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len());
        let mut cells = BTreeSet::new();
        for panel in panels {
            let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(at("x") + at("w") <= 24, "{panel}");
            for cell in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
                assert!(cells.insert(cell), "{} covers another panel", panel["title"]);
            }
        }
    }
}
