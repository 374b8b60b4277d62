//! Holding what was read of a process against what the policies say. Pure but for [`vm`], which also has the filters read back.

use super::Report;
use super::installed;
use super::proc::Process;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// How many filters each thread of a worker with a VM is under: start-up, and its own.
pub const WORKER_FILTERS: u32 = 2;

/// What came of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Name of the VM, of a worker.
    pub vm: Option<String>,
    /// `worker`, `supervisor`, `jailer` or `netd`.
    pub process: String,
    /// Its pid.
    pub pid: i32,
    /// SHA-256 of the policy section of the program that it runs, of a worker.
    pub section_sha256: Option<String>,
    /// Where it is not as the policies say. Empty is as it should be.
    pub differences: Vec<String>,
    /// What could not be looked at, and how to.
    pub not_seen: Vec<String>,
    /// The installed filters were read back from the kernel.
    pub filters_read_back: bool,
}

impl Verified {
    /// All that could be seen is as declared.
    pub fn is_good(&self) -> bool {
        self.differences.is_empty()
    }
}

/// A VM's worker.
pub fn vm(report: &Report) -> Verified {
    let mut verified = Verified {
        vm: Some(report.info.summary.name.clone()),
        process: "worker".into(),
        pid: report.jail.as_ref().map_or(0, |jail| jail.pid),
        section_sha256: None,
        differences: Vec::new(),
        not_seen: Vec::new(),
        filters_read_back: false,
    };
    let Some(jail) = &report.jail else {
        // A VM that does not run breaks no policy; a worker that cannot be looked at is another matter.
        verified.differences.extend(report.jail_error.clone());
        return verified;
    };
    verified.differences.clone_from(&jail.deviations);
    verified.differences.extend(filter_counts(&jail.process, WORKER_FILTERS));
    match &jail.inside {
        Some(inside) => verified.section_sha256.clone_from(&inside.section_sha256),
        None => verified.differences.push(format!(
            "namespaces, mounts, files and the program's policy section cannot be read: {}",
            jail.inside_error.as_deref().unwrap_or("unknown")
        )),
    }
    installed::worker(&mut verified, &jail.process, false);
    verified
}

/// Threads that are under another number of filters; the kernel's own, which KVM adds, have those of whoever brought them.
pub fn filter_counts(process: &Process, expected: u32) -> Vec<String> {
    let wrong = process.threads.iter().filter(|t| !t.kernel && t.seccomp_filters.is_some_and(|n| n != expected));
    wrong
        .map(|t| {
            let count = t.seccomp_filters.unwrap_or_default();
            format!("thread {} ({}) is under {count} seccomp filters, declared are {expected}", t.tid, t.name)
        })
        .collect()
}

/// Where the section of a running program is not this program's own.
pub fn section(found: &Result<Vec<u8>, String>) -> Option<String> {
    match found {
        Ok(bytes) => policies::section::difference(bytes).map(|how| {
            format!(
                "its program was built from other policies (section {}, here {}): {how}",
                &sha256(bytes)[..12],
                &sha256(&policies::section::bytes())[..12]
            )
        }),
        Err(why) => Some(format!("the policy section of its program: {why}")),
    }
}

/// No VM shares a namespace of its own with another one.
pub fn apart(reports: &[Report], verified: &mut [Verified]) {
    for (n, one) in reports.iter().enumerate() {
        for (m, other) in reports.iter().enumerate().filter(|(m, _)| *m != n) {
            let inside = |report: &Report| report.jail.as_ref().and_then(|j| j.inside.as_ref().map(namespaces));
            let (Some(mine), Some(theirs)) = (inside(one), inside(other)) else { continue };
            for shared in mine.iter().filter(|namespace| theirs.contains(namespace)) {
                let name = &reports[m].info.summary.name;
                verified[n].differences.push(format!("its {shared} namespace is that of VM {name}, too"));
            }
        }
    }
}

fn namespaces(inside: &super::jail::Inside) -> Vec<String> {
    let declared = policies::PROCESS_WORKER.namespaces;
    let own = inside.namespaces.iter().filter(|n| declared.contains(&n.kind.as_str()));
    own.map(|n| format!("{}:[{}]", n.kind, n.inode)).collect()
}

/// As hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::super::jail::{self, Jail};
    use super::super::proc::{Capabilities, Thread};
    use super::*;

    fn process(filters: &[(u32, bool)]) -> Process {
        let none = Capabilities { inheritable: 0, permitted: 0, effective: 0, bounding: 0, ambient: 0 };
        let thread = |(n, (filters, kernel)): (usize, &(u32, bool))| Thread {
            tid: n as i32,
            name: format!("t{n}"),
            kernel: *kernel,
            capabilities: none,
            no_new_privs: true,
            seccomp: "filter".into(),
            seccomp_filters: Some(*filters),
        };
        Process {
            uids: vec![],
            gids: vec![],
            uid_map: vec![],
            gid_map: vec![],
            groups: vec![],
            threads: filters.iter().enumerate().map(thread).collect(),
            rlimits: vec![],
            cgroup: String::new(),
        }
    }

    #[test]
    fn a_thread_under_one_filter_too_few_is_named() {
        assert!(filter_counts(&process(&[(2, false), (2, false), (1, true)]), 2).is_empty());
        let found = filter_counts(&process(&[(2, false), (1, false), (3, false)]), 2);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], "thread 1 (t1) is under 1 seccomp filters, declared are 2");
    }

    #[test]
    fn a_section_of_other_policies_is_named_with_its_hash_and_filter() {
        let mut bytes = policies::section::bytes();
        assert_eq!(section(&Ok(bytes.clone())), None);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let said = section(&Ok(bytes.clone())).unwrap();
        assert!(said.contains(&sha256(&bytes)[..12]) && said.contains("filter worker-vcpu"), "{said}");
        assert!(section(&Err("it has no policy section".into())).unwrap().contains("has no policy section"));
        assert_eq!(&sha256(b"")[..12], "e3b0c44298fc");
    }

    #[test]
    fn each_namespace_that_two_vms_share_is_named_for_both() {
        let declared = policies::PROCESS_WORKER.namespaces;
        // The inode of each kind, in both.
        let found = |shared: Option<&str>| {
            let report = |name: &str, n: usize| {
                let (process, mut inspection) = jail::tests::as_declared();
                let inode = |kind: &str| if Some(kind) == shared { 1 } else { n };
                inspection.namespaces = declared.iter().map(|kind| format!("{kind}:[{}]", inode(kind))).collect();
                // The same for all: it is the host's.
                inspection.namespaces.push("time:[9]".into());
                let mut info = jail::tests::info();
                info.summary.name = name.into();
                let jail = Jail {
                    pid: n as i32,
                    process,
                    cgroup_limits: vec![],
                    inside: Some(jail::inside(inspection, Some(&info), vec!["time:[9]".into()])),
                    inside_error: None,
                    asserted: vec![],
                    deviations: vec![],
                };
                Report { info, jail: Some(jail), jail_error: None, verified: None }
            };
            let reports = [report("a", 11), report("b", 12), report("c", 13)];
            let mut verified = [blank(), blank(), blank()];
            apart(&reports, &mut verified);
            verified.map(|v| v.differences)
        };
        assert_eq!(found(None), [const { Vec::<String>::new() }; 3]);
        for kind in declared {
            let [a, b, c] = found(Some(kind));
            assert_eq!(a.len() + b.len() + c.len(), 6);
            assert_eq!(a[0], format!("its {kind}:[1] namespace is that of VM b, too"));
            assert_eq!(b[0], format!("its {kind}:[1] namespace is that of VM a, too"));
        }
    }

    fn blank() -> Verified {
        Verified {
            vm: None,
            process: String::new(),
            pid: 0,
            section_sha256: None,
            differences: vec![],
            not_seen: vec![],
            filters_read_back: false,
        }
    }
}
