//! The jail, tried from the inside by a probe in the worker's place and read from the outside.

use ipc::Channel;
use jail_spec::UidSource;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::fd::AsFd;
use vmsup_tests::jailer::Jailer;
use vmsup_tests::probe::{ATTEMPTS, FILTERS, Outcome, Try};
use vmsup_tests::{program, skip, user};

/// What the jail alone may let through: it harms nobody there, and the filters on top deny it.
const LET_THROUGH_BY_THE_JAIL_ALONE: &[&str] = &[
    // The empty root.
    "open-root-directory",
    // In a network namespace that has no interface up.
    "bind-tcp",
    // Bounded by the rlimits and the cgroup.
    "fork",
    "executable-memory",
    "make-memory-executable",
    // Has no capability outside of itself and is subject to the same filters.
    "new-user-namespace",
    "new-vm",
    "io-uring",
    "userfaultfd",
    "keyring",
    "perf-event",
];

/// What each filter has to allow for the worker's own work.
const NEEDED: &[(&str, &str)] = &[("new-vm", "worker-startup")];

fn table(user: &user::User) -> BTreeMap<(&'static str, &'static str), Outcome> {
    let jailer = Jailer::start(user, &program("vmsup-probe"), 0);
    let (prisoner, _pidfd) = jailer.make(1);
    let (other, _other_pidfd) = jailer.make(2);
    let channel: Channel<Try, Outcome> = Channel::new(jailer.connect(&prisoner));
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").unwrap();
    let mut table = BTreeMap::new();
    for attempt in ATTEMPTS {
        for filter in FILTERS {
            let request = Try { attempt: attempt.into(), filter: filter.into(), other: other.pid };
            channel.send(&request, &[kvm.as_fd()]).unwrap();
            table.insert((attempt, filter), channel.receive().unwrap().0);
        }
    }
    table
}

fn print(title: &str, table: &BTreeMap<(&'static str, &'static str), Outcome>) {
    println!("{title}");
    print!("{:24}", "");
    for filter in FILTERS {
        print!("{:>16}", filter.trim_start_matches("worker-"));
    }
    println!();
    for attempt in ATTEMPTS {
        print!("{attempt:24}");
        for filter in FILTERS {
            let text = match table[&(attempt, filter)] {
                Outcome::Succeeded => "ALLOWED".to_owned(),
                Outcome::Refused(errno) => {
                    let text = std::io::Error::from_raw_os_error(errno).to_string();
                    text.split(" (").next().unwrap_or("").chars().take(15).collect()
                }
                Outcome::Killed(libc::SIGSYS) => "killed".to_owned(),
                Outcome::Killed(signal) => format!("signal {signal}"),
            };
            print!("{text:>16}");
        }
        println!();
    }
}

fn judge(table: &BTreeMap<(&'static str, &'static str), Outcome>) {
    let mut holes = Vec::new();
    for ((attempt, filter), outcome) in table {
        let allowed = if *filter == "jail" {
            LET_THROUGH_BY_THE_JAIL_ALONE.contains(attempt)
        } else {
            NEEDED.contains(&(attempt, filter))
        };
        match outcome {
            Outcome::Succeeded if !allowed => holes.push(format!("{attempt} under {filter} worked")),
            Outcome::Killed(signal) if *signal != libc::SIGSYS => {
                holes.push(format!("{attempt} under {filter} ended by signal {signal}"));
            }
            _ => {}
        }
    }
    assert!(holes.is_empty(), "{holes:#?}");
    assert_eq!(table[&("new-vm", "worker-startup")], Outcome::Succeeded, "the probe's own proof that it can succeed");
}

#[test]
fn nothing_gets_out_of_a_jail_with_a_uid_of_its_own() {
    let user = user::with_subuids();
    let table = table(&user);
    print("uid of its own:", &table);
    judge(&table);
}

#[test]
fn nothing_gets_out_of_a_jail_with_the_users_uid() {
    let Some(user) = user::without_subuids() else {
        return skip("nothing_gets_out_of_a_jail_with_the_users_uid", "needs root to choose the user");
    };
    let table = table(&user);
    print("the user's uid:", &table);
    judge(&table);
}

#[test]
fn workers_have_uids_of_their_own_where_the_user_has_a_range() {
    let user = user::with_subuids();
    let jailer = Jailer::start(&user, &program("vmsup-probe"), 1);
    let UidSource::Subordinate { first_uid, count, .. } = jailer.facts.uids else {
        return skip(
            "workers_have_uids_of_their_own_where_the_user_has_a_range",
            "the user has no range in /etc/subuid, or newuidmap is missing",
        );
    };
    let (a, _a) = jailer.make(1);
    let (b, _b) = jailer.make(2);
    assert_ne!(a.uid, b.uid);
    for worker in [a, b] {
        assert!((first_uid..first_uid + count).contains(&worker.uid));
        let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid)).unwrap();
        let uids: Vec<&str> = status.lines().find(|l| l.starts_with("Uid:")).unwrap().split_whitespace().collect();
        assert_eq!(uids[1..], [worker.uid.to_string().as_str(); 4]);
    }
}
