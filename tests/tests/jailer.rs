//! The jailer by itself: refusals, the pool, ends, limits, and what it leaves behind. A probe stands in the worker's place.

use jail_spec::{CgroupLimits, HowEnded, Refusal, Reply, Request, Slot};
use vmsup_tests::jailer::{Jailer, inspect};
use vmsup_tests::{Scratch, eventually, names, program, user};

fn refusal(jailer: &Jailer, limits: Option<CgroupLimits>) -> Refusal {
    jailer.ask(7, limits);
    match jailer.reply().0 {
        Reply::Refused { seq: 7, why } => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_program_that_cannot_be_executed_is_refused_with_the_step() {
    // A program of this release without the right to be executed.
    let folder = Scratch::new(&user::with_subuids());
    let program = folder.path().join("worker");
    std::fs::write(&program, std::fs::read(vmsup_tests::program("vmsup-worker")).unwrap()).unwrap();
    let jailer = Jailer::start(&user::with_subuids(), &program, 0);
    for _ in 0..3 {
        let Refusal::Step { step, errno } = refusal(&jailer, None) else { panic!("a step failed") };
        assert_eq!((step.as_str(), errno), ("exec", libc::EACCES));
    }
    assert_eq!(jailer.sockets(), [""; 0], "no socket is left");
}

#[test]
fn a_worker_that_ends_before_it_listens_is_refused_with_its_words() {
    // The netd of this release says one sentence and leaves with status 2.
    let jailer = Jailer::start(&user::with_subuids(), &program("vmsup-netd"), 0);
    let Refusal::Died(how, words) = refusal(&jailer, None) else { panic!("it died") };
    assert_eq!(how, HowEnded::Exited(2));
    assert!(words.starts_with("vmsup-netd:"), "{words}");
}

#[test]
fn a_pool_whose_workers_die_is_not_filled_in_a_busy_loop() {
    let jailer = Jailer::start(&user::with_subuids(), &program("vmsup-netd"), 2);
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", jailer.pid())).unwrap();
        let fields: Vec<u64> =
            stat.rsplit_once(')').unwrap().1.split_whitespace().filter_map(|f| f.parse().ok()).collect();
        // utime and stime are fields 14 and 15; the state, field 3, is no number.
        fields[10] + fields[11]
    };
    assert!(matches!(refusal(&jailer, None), Refusal::Died(..)));
    // Answers between other work: the loop turns, and what it does between two questions is bounded.
    for _ in 0..20 {
        assert!(matches!(refusal(&jailer, None), Refusal::Died(..)));
    }
    assert!(ticks() < 100, "{} ticks of CPU time for 21 questions", ticks());
}

#[test]
fn limits_without_a_cgroup_are_refused_unless_they_are_best_effort() {
    let jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 0);
    let Err(reason) = &jailer.facts.cgroup else {
        return vmsup_tests::skip(
            "limits_without_a_cgroup_are_refused_unless_they_are_best_effort",
            "a cgroup is delegated",
        );
    };
    assert!(!reason.is_empty());
    let mut limits = CgroupLimits { memory_max: Some(1 << 30), ..CgroupLimits::default() };
    assert_eq!(refusal(&jailer, Some(limits)), Refusal::NoCgroup(reason.clone()));
    limits.best_effort = true;
    jailer.ask(8, Some(limits));
    assert!(matches!(jailer.reply().0, Reply::Made { seq: 8, .. }));
}

#[test]
fn the_pool_gives_warm_workers_and_is_filled_again() {
    let jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 2);
    for round in 0..3 {
        // Two sockets of the pool, besides those of the workers taken in earlier rounds.
        eventually("a full pool", || jailer.sockets().len() == 2 + round);
        // It has bound its socket; that it listens is seen by being able to connect.
        jailer.ask(1, None);
        let (Reply::Made { worker, .. }, _fds) = jailer.reply() else { panic!("a worker") };
        drop(jailer.connect(&worker));
    }
}

#[test]
fn an_end_is_told_and_the_slot_is_used_again_only_after_it_was_forgotten() {
    let jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 0);
    let (first, first_pidfd) = jailer.make(1);
    rustix::process::pidfd_send_signal(&first_pidfd, rustix::process::Signal::KILL).unwrap();
    let Reply::Ended { slot, how, .. } = jailer.reply().0 else { panic!("it ended") };
    assert_eq!((slot, how), (first.slot, HowEnded::Killed(9)));
    assert!(!jailer.folder.path().join(slot.socket_name()).exists(), "its socket is gone");
    let (second, second_pidfd) = jailer.make(2);
    assert_ne!(second.slot, first.slot, "not forgotten, so not free");
    jailer.channel.send(&Request::Forget { slot }, &[]).unwrap();
    let (third, _third_pidfd) = jailer.make(3);
    assert_eq!((third.slot, third.uid), (first.slot, first.uid));
    assert_eq!(jailer.end(&second, &second_pidfd).0, HowEnded::Killed(9));
}

#[test]
fn forgetting_what_runs_or_never_was_does_nothing() {
    let jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 0);
    let (worker, pidfd) = jailer.make(1);
    for slot in [worker.slot, Slot(99), Slot(u32::MAX)] {
        jailer.channel.send(&Request::Forget { slot }, &[]).unwrap();
    }
    let (other, _other_pidfd) = jailer.make(2);
    assert_ne!(other.slot, worker.slot);
    assert_eq!(jailer.end(&worker, &pidfd).0, HowEnded::Killed(9));
}

#[test]
fn other_limits_are_refused_where_no_cgroup_can_hold_them() {
    let mut jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 0);
    if jailer.facts.cgroup.is_ok() {
        let name = "other_limits_are_refused_where_no_cgroup_can_hold_them";
        return vmsup_tests::skip(name, "a cgroup is delegated");
    }
    let (worker, _pidfd) = jailer.make(1);
    let mut limits = CgroupLimits { pids_max: Some(20), ..CgroupLimits::default() };
    let ask = |jailer: &Jailer, slot, limits| {
        jailer.channel.send(&Request::Limit { slot, limits }, &[]).unwrap();
        match jailer.reply().0 {
            Reply::Limited { slot: of, failed } if of == slot => failed,
            other => panic!("{other:?}"),
        }
    };
    for orphan in [false, true] {
        assert!(matches!(ask(&jailer, worker.slot, limits), Some(Refusal::NoCgroup(_))));
        assert!(matches!(ask(&jailer, Slot(9), limits), Some(Refusal::Invalid(_))));
        limits.best_effort = true;
        assert_eq!(ask(&jailer, worker.slot, limits), None);
        limits.best_effort = false;
        if !orphan {
            assert!(jailer.replace().living[0].1);
        }
    }
}

#[test]
fn fifty_workers_later_no_fd_more_is_open() {
    let jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 0);
    let open = || names(format!("/proc/{}/fd", jailer.pid())).len();
    let cycle = |n| {
        let (worker, pidfd) = jailer.make(n);
        jailer.end(&worker, &pidfd);
    };
    // The first prepares what is kept: the user namespace of the slot. Forget has no answer, but the answer to the next
    // request shows that it was handled; so both counts are taken with one worker running.
    cycle(0);
    let (worker, pidfd) = jailer.make(1);
    let before = open();
    jailer.end(&worker, &pidfd);
    (2..50).for_each(cycle);
    jailer.make(50);
    assert_eq!(open(), before);
}

#[test]
fn a_worker_is_born_with_the_declared_fds_and_no_environment() {
    let user = user::with_subuids();
    let jailer = Jailer::start(&user, &program("vmsup-probe"), 0);
    let (worker, _pidfd) = jailer.make(1);
    let seen = inspect(&user, worker.pid);
    let numbers: Vec<i32> = seen.fds.iter().map(|(number, _)| *number).collect();
    let declared: Vec<i32> = policies::PROCESS_WORKER.fds.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, declared);
    assert_eq!(seen.environ_bytes, 0);
    assert_eq!(seen.root_entries, [""; 0]);
    assert_eq!(seen.mounts.len(), 1, "{:?}", seen.mounts);
    let mount = &seen.mounts[0];
    assert!(mount.contains(" / / ro,nosuid,nodev,noexec") && mount.contains("- tmpfs"), "{mount}");
    assert!(mount.split(" - ").nth(1).unwrap().contains("ro,"), "{mount}");
    for kind in policies::PROCESS_WORKER.namespaces {
        let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let theirs = seen.namespaces.iter().find(|n| n.starts_with(&format!("{kind}:"))).unwrap();
        assert_ne!(own.to_string_lossy(), *theirs);
    }
}
