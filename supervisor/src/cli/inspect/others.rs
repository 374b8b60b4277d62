//! Workers of this host that are of no VM that was looked at, found by their names: warm ones, which wait for a VM; and, as root,
//! those of other supervisors, or of none any more.

use super::jail::{self, Inside};
use super::proc::{self, Process};
use super::verify::{Verified, WORKER_FILTERS, filter_counts};
use super::{host, installed};
use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::Duration;

/// What a worker is called while it waits for a VM (`vmm-worker/src/main.rs`), and afterwards (`control.rs`).
const NAMES: [&str; 2] = ["vmsup-warm", "vmsup-worker"];
/// Filters of a warm worker: it narrows each thread when it becomes a VM.
const WARM_FILTERS: u32 = 1;
/// A worker that is just being made, or becoming a VM, is looked at again after a while, this often.
const LOOKS: u32 = 4;
const BETWEEN: Duration = Duration::from_millis(150);

/// All but those of `known`.
pub fn workers(known: &BTreeSet<i32>) -> Vec<Verified> {
    host::pids().into_iter().filter(|pid| !known.contains(pid)).filter_map(one).collect()
}

fn one(pid: i32) -> Option<Verified> {
    let mut verified = look(pid)?;
    for _ in 1..LOOKS {
        if verified.is_good() {
            break;
        }
        sleep(BETWEEN);
        // It may have ended: then there is nothing to tell.
        verified = look(pid)?;
    }
    Some(verified)
}

/// `None`: it is no worker, is gone, or is another user's, at which only that one and root may look.
fn look(pid: i32) -> Option<Verified> {
    let text = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    let name = text("comm")?;
    let name = NAMES.into_iter().find(|n| *n == name.trim_end())?;
    let start = proc::parse_start_time(&text("stat")?)?;
    let process = proc::read(pid, start).ok()?;
    let inside = jail::look_inside(pid).map(|inspection| jail::inside(inspection, None, jail::own_namespaces()));
    if inside.is_err() && !rustix::process::geteuid().is_root() {
        return None;
    }
    // The helper looked by pid.
    proc::read(pid, start).ok()?;
    let warm = name == NAMES[0];
    let mut verified = verify(pid, warm, &process, inside.as_ref().map_err(String::as_str));
    installed::worker(&mut verified, &process, warm);
    Some(verified)
}

/// Pure: what is declared of every worker, and of a warm one.
fn verify(pid: i32, warm: bool, process: &Process, inside: Result<&Inside, &str>) -> Verified {
    let mut verified = Verified {
        vm: None,
        process: if warm { "warm-worker" } else { "worker" }.into(),
        pid,
        section_sha256: None,
        differences: jail::of_process(process),
        not_seen: Vec::new(),
        filters_read_back: false,
    };
    verified.differences.extend(jail::of_ids(process, process.uids.first().copied().unwrap_or_default()));
    verified.differences.extend(filter_counts(process, if warm { WARM_FILTERS } else { WORKER_FILTERS }));
    match inside {
        Ok(inside) => {
            verified.section_sha256.clone_from(&inside.section_sha256);
            verified.differences.extend(jail::of_inside(inside));
            if warm {
                verified.differences.extend(jail::of_files(inside, 0));
            }
        }
        Err(why) => verified.differences.push(format!(
            "it has the name of a worker, and its namespaces, files and policy section cannot be read: {why}"
        )),
    }
    if !warm {
        let which =
            "its files and limits: no supervisor that was asked says which VM it is; name its own with --socket";
        verified.not_seen.push(which.into());
    }
    verified
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::inspect::jail::tests::as_declared;

    fn found(warm: bool, change: impl FnOnce(&mut Process, &mut jail_spec::Inspection)) -> Verified {
        let (mut process, mut inspection) = as_declared();
        if warm {
            process.threads.truncate(1);
            process.threads[0].name = NAMES[0].into();
            process.threads[0].seccomp_filters = Some(1);
            inspection.fds.truncate(4);
        }
        change(&mut process, &mut inspection);
        let own = policies::PROCESS_WORKER.namespaces.iter().map(|n| format!("{n}:[1]")).collect();
        verify(7, warm, &process, Ok(&jail::inside(inspection, None, own)))
    }

    #[test]
    fn a_warm_worker_is_under_its_first_filter_and_has_no_files_yet() {
        let good = found(true, |_, _| ());
        assert!(good.is_good() && good.not_seen.is_empty() && good.process == "warm-worker", "{good:?}");
        assert!(good.section_sha256.is_some());
        let one = |says: &str, change: &dyn Fn(&mut Process, &mut jail_spec::Inspection)| {
            let found = found(true, |p, i| change(p, i)).differences;
            assert!(found.len() == 1 && found[0].contains(says), "{says}: {found:?}");
        };
        one("is under 2 seccomp filters, declared are 1", &|p, _| p.threads[0].seccomp_filters = Some(2));
        one("is under 0 seccomp filters, declared are 1", &|p, _| p.threads[0].seccomp_filters = Some(0));
        one("has no no_new_privs", &|p, _| p.threads[0].no_new_privs = false);
        one("its uid map is", &|p, _| p.uid_map[0][2] = 2);
        one("fd 9 (/etc/shadow) is not declared", &|_, i| i.fds.push((9, "/etc/shadow".into())));
        one("fd 9 (/dev/net/tun) is not declared", &|_, i| i.fds.push((9, "/dev/net/tun".into())));
        one("no net namespace", &|_, i| i.namespaces.retain(|n| !n.starts_with("net:")));
        one("was built from other policies", &|_, i| *i.section.as_mut().unwrap().last_mut().unwrap() ^= 1);
    }

    #[test]
    fn a_worker_of_an_unknown_vm_says_that_its_files_are_not_verified() {
        let good = found(false, |_, _| ());
        assert!(good.is_good() && good.not_seen[0].contains("says which VM it is"), "{good:?}");
        let bad = found(false, |p, _| p.threads[1].seccomp_filters = Some(1));
        assert_eq!(bad.differences, ["thread 9 (vcpu0) is under 1 seccomp filters, declared are 2"]);
    }

    #[test]
    fn what_bears_the_name_and_is_no_worker_is_a_difference() {
        let (process, _) = as_declared();
        let found = verify(7, false, &process, Err("process 7 is not a worker of this user"));
        assert!(found.differences.len() == 1 && found.differences[0].contains("has the name of a worker"), "{found:?}");
    }
}
