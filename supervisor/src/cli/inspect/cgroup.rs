//! The values of a worker's cgroup, held against the limits that its VM's file asks for.

use serde::Serialize;
use std::path::Path;
use vmsup::api::types::{VmInfo, WorkerInfo};
use vmsup::serve::cgroup::{leaf, mount_point};
use vmsup::spec::{Enforce, Limits};

/// A file of the cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Value {
    /// `memory.max`, …
    pub file: &'static str,
    /// What the kernel says; `None` where there is no such file.
    pub value: Option<String>,
    /// What the VM's file asks for; `None` where it does not care.
    pub asked: Option<String>,
}

/// The files that limit a worker, and what they have to say for these limits.
fn asked(limits: Option<&Limits>) -> [(&'static str, Option<String>); 4] {
    let of = |value: &dyn Fn(&Limits) -> Option<String>| limits.and_then(value);
    [
        ("memory.max", of(&|l| Some((l.memory_max_mib? << 20).to_string()))),
        ("memory.swap.max", of(&|l| l.memory_max_mib.map(|_| "0".to_owned()))),
        ("pids.max", of(&|l| Some(l.pids_max?.to_string()))),
        ("cpu.max", of(&|l| Some(format!("{} 100000", u64::from(l.cpu_percent?) * 1000)))),
    ]
}

/// Reads the cgroup of the worker, where it has one of its own: none is empty.
pub fn read(cgroup: &str, info: &VmInfo, worker: &WorkerInfo) -> Vec<Value> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let folder = mount_point(&mountinfo).and_then(|mount| leaf(&mount, &format!("0::{cgroup}"), worker.slot));
    folder.map_or_else(Vec::new, |folder| values(Path::new(&folder), info.spec.limits.as_ref()))
}

fn values(folder: &Path, limits: Option<&Limits>) -> Vec<Value> {
    let one = |(file, asked)| {
        let value = std::fs::read_to_string(folder.join(file)).ok().map(|text| text.trim_end().to_owned());
        Value { file, value, asked }
    };
    asked(limits).into_iter().map(one).collect()
}

/// Where the cgroup does not hold what is asked for. Best-effort limits that are not held are none: the supervisor says so.
pub fn differences(values: &[Value], info: &VmInfo, worker: &WorkerInfo) -> Vec<String> {
    let Some(limits) = &info.spec.limits else { return Vec::new() };
    let wanted = asked(Some(limits)).iter().any(|(_, asked)| asked.is_some());
    if !wanted || limits.enforce == Enforce::BestEffort && worker.limits.starts_with("not held") {
        return Vec::new();
    }
    if values.is_empty() {
        return vec!["it is in no cgroup of its own that could hold its limits".into()];
    }
    values.iter().filter_map(difference).collect()
}

fn difference(found: &Value) -> Option<String> {
    let asked = found.asked.as_ref()?;
    match &found.value {
        Some(value) if value == asked => None,
        // A kernel without swap accounting has no swap to account for here.
        None if found.file == "memory.swap.max" => None,
        value => {
            let value = value.as_deref().unwrap_or("not there");
            Some(format!("its cgroup's {} is {value}, its file asks for {asked}", found.file))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(limits: &str) -> (VmInfo, WorkerInfo) {
        let mut info = super::super::jail::tests::info();
        info.spec.limits = serde_json::from_str(limits).unwrap();
        let worker = info.worker.clone().unwrap();
        (info, worker)
    }

    const ALL: &str = r#"{"memory_max_mib": 64, "pids_max": 20, "cpu_percent": 50}"#;

    fn as_asked(info: &VmInfo) -> Vec<Value> {
        let one = |(file, asked): (_, Option<String>)| Value { file, value: asked.clone(), asked };
        asked(info.spec.limits.as_ref()).into_iter().map(one).collect()
    }

    #[test]
    fn each_value_that_is_not_as_asked_is_named() {
        let (info, worker) = info(ALL);
        assert!(differences(&as_asked(&info), &info, &worker).is_empty());
        let asked = ["67108864", "0", "20", "50000 100000"];
        for (n, asked) in asked.iter().enumerate() {
            let mut values = as_asked(&info);
            let file = values[n].file;
            values[n].value = Some("max".into());
            let found = differences(&values, &info, &worker);
            assert_eq!(found, [format!("its cgroup's {file} is max, its file asks for {asked}")]);
            values[n].value = None;
            assert_eq!(differences(&values, &info, &worker).is_empty(), file == "memory.swap.max");
        }
    }

    #[test]
    fn limits_without_a_cgroup_are_a_difference_unless_best_effort_will_do() {
        let (mut info, mut worker) = info(ALL);
        assert!(differences(&[], &info, &worker)[0].contains("no cgroup of its own"));
        worker.limits = "not held: none".into();
        assert_eq!(differences(&[], &info, &worker).len(), 1, "they are required");
        info.spec.limits.as_mut().unwrap().enforce = Enforce::BestEffort;
        assert!(differences(&[], &info, &worker).is_empty());
        let (nothing, worker) = self::info("{}");
        assert!(differences(&[], &nothing, &worker).is_empty());
    }

    #[test]
    fn values_are_read_without_their_line_end() {
        let folder = std::env::temp_dir().join(format!("vmsup-cgroup-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("pids.max"), "20\n").unwrap();
        let values = values(&folder, None);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(values.len(), 4);
        assert!(values.iter().all(|v| v.value.as_deref() == (v.file == "pids.max").then_some("20")));
    }
}
