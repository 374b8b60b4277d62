//! vmsup's other processes on this host, found by their names: supervisors, jailers and netd, held against their policies.

use super::installed;
use super::proc::{self, Process};
use super::verify::{Verified, filter_counts};
use policies::Filter;

/// What is declared of a process: name on the host, in the policies, and the filter of all of its threads.
fn declared(name: &str) -> Option<(&'static policies::Process, Option<&'static Filter>)> {
    Some(match name {
        "vmsup" => (&policies::PROCESS_SUPERVISOR, Some(&policies::SUPERVISOR)),
        "vmsup-jailer" => (&policies::PROCESS_JAILER, None),
        "vmsup-netd" => (&policies::PROCESS_NETD, Some(&policies::NETD)),
        _ => return None,
    })
}

/// All that are there. A name can be anybody's: what is not ours and bears one is named, rather than left out.
pub fn processes() -> Vec<Verified> {
    pids().into_iter().filter_map(one).collect()
}

/// Every process that this one may see, sorted.
pub fn pids() -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<i32> = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

fn one(pid: i32) -> Option<Verified> {
    let text = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    let comm = text("comm")?;
    let (policy, filter) = declared(comm.trim_end())?;
    // Commands of the CLI have the supervisor's name; what they are told to do makes the difference.
    let arguments = text("cmdline").unwrap_or_default();
    if policy.name != "netd" && arguments.split('\0').nth(1) != Some("serve") && !arguments.contains("\0serve\0") {
        return None;
    }
    let process = proc::read(pid, proc::parse_start_time(&text("stat")?)?).ok()?;
    let mut verified = Verified {
        vm: None,
        process: policy.name.into(),
        pid,
        section_sha256: None,
        differences: differences(&process, policy, filter.is_some()),
        not_seen: Vec::new(),
        filters_read_back: false,
    };
    if let Some(filter) = filter {
        installed::process_with(&mut verified, &process, |_| Some(vec![filter]));
    }
    Some(verified)
}

/// `CAP_NET_ADMIN` as a bit of a mask: the only one that any process of ours keeps.
const NET_ADMIN: u64 = 1 << 12;

fn differences(process: &Process, policy: &policies::Process, filtered: bool) -> Vec<String> {
    let mut found = Vec::new();
    let kept = if policy.capabilities == ["CAP_NET_ADMIN"] { NET_ADMIN } else { 0 };
    for thread in &process.threads {
        let who = format!("thread {} ({})", thread.tid, thread.name);
        let c = thread.capabilities;
        // The bounding set of who was started by a user is the user's; without a set-uid program nothing comes of it.
        if (c.inheritable | c.permitted | c.effective | c.ambient) & !kept != 0 {
            found.push(format!("{who} has a capability that its policy does not list"));
        }
        if filtered && thread.seccomp != "filter" {
            found.push(format!("{who} has no seccomp filter"));
        }
        if filtered && !thread.no_new_privs {
            found.push(format!("{who} has no no_new_privs"));
        }
    }
    if filtered {
        found.extend(filter_counts(process, 1));
    }
    for (name, value) in policy.rlimits {
        match process.rlimits.iter().find(|l| l.name == *name) {
            Some(l) if l.hard.is_some_and(|hard| hard <= *value) => {}
            Some(l) => found.push(format!("limit {name} is {}, declared is {value}", super::jail::shown(l.hard))),
            None => found.push(format!("limit {name} cannot be read")),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::proc::{Capabilities, Limit, Thread};
    use super::*;

    fn supervisor() -> Process {
        let thread = Thread {
            tid: 7,
            name: "vmsup".into(),
            kernel: false,
            capabilities: Capabilities { inheritable: 0, permitted: 0, effective: 0, bounding: u64::MAX, ambient: 0 },
            no_new_privs: true,
            seccomp: "filter".into(),
            seccomp_filters: Some(1),
        };
        let core = Limit { name: "core".into(), soft: Some(0), hard: Some(0) };
        Process {
            uids: vec![],
            gids: vec![],
            uid_map: vec![],
            gid_map: vec![],
            groups: vec![],
            threads: vec![thread],
            rlimits: vec![core],
            cgroup: String::new(),
        }
    }

    #[test]
    fn each_difference_of_a_supervisor_is_named() {
        let found = |change: &dyn Fn(&mut Process)| {
            let mut process = supervisor();
            change(&mut process);
            differences(&process, &policies::PROCESS_SUPERVISOR, true)
        };
        assert!(found(&|_| ()).is_empty());
        let one = |says: &str, change: &dyn Fn(&mut Process)| {
            let found = found(change);
            assert!(found.len() == 1 && found[0].contains(says), "{says}: {found:?}");
        };
        one("has a capability", &|p| p.threads[0].capabilities.effective = 1);
        one("has a capability", &|p| p.threads[0].capabilities.permitted = NET_ADMIN);
        one("no seccomp filter", &|p| p.threads[0].seccomp = "disabled".into());
        one("no no_new_privs", &|p| p.threads[0].no_new_privs = false);
        one("is under 2", &|p| p.threads[0].seccomp_filters = Some(2));
        one("limit core is unlimited", &|p| p.rlimits[0].hard = None);
        one("limit core cannot be read", &|p| p.rlimits.clear());
    }
}
