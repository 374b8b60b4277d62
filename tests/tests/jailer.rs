//! The jailer by itself: refusals, the pool, ends, and what it leaves behind. A probe stands in the worker's place.

use jail_spec::{CgroupLimits, HowEnded, Refusal, Reply, Slot};
use std::path::Path;
use vmsup_tests::jailer::{Jailer, inspect};
use vmsup_tests::{eventually, names, program, user};

fn refusal(jailer: &Jailer, limits: Option<CgroupLimits>) -> Refusal {
    jailer.ask(7, limits);
    match jailer.reply().0 {
        Reply::Refused { seq: 7, why } => why,
        other => panic!("{other:?}"),
    }
}

fn alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_program_that_cannot_be_executed_is_refused_with_the_step() {
    let jailer = Jailer::start(&user::with_subuids(), Path::new("/etc/passwd"), 0);
    for _ in 0..3 {
        let Refusal::Step { step, errno } = refusal(&jailer, None) else { panic!("a step failed") };
        assert_eq!((step.as_str(), errno), ("exec", libc::EACCES));
    }
    assert_eq!(names(jailer.folder.path()), [""; 0], "no socket is left");
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
        eventually("a full pool", || names(jailer.folder.path()).len() == 2 + round);
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
    jailer.channel.send(&jail_spec::Request::Forget { slot }, &[]).unwrap();
    let (third, _third_pidfd) = jailer.make(3);
    assert_eq!((third.slot, third.uid), (first.slot, first.uid));
    assert_eq!(jailer.end(&second, &second_pidfd).0, HowEnded::Killed(9));
}

#[test]
fn forgetting_what_runs_or_never_was_does_nothing() {
    let jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 0);
    let (worker, pidfd) = jailer.make(1);
    for slot in [worker.slot, Slot(99), Slot(u32::MAX)] {
        jailer.channel.send(&jail_spec::Request::Forget { slot }, &[]).unwrap();
    }
    let (other, _other_pidfd) = jailer.make(2);
    assert_ne!(other.slot, worker.slot);
    assert_eq!(jailer.end(&worker, &pidfd).0, HowEnded::Killed(9));
}

#[test]
fn a_supervisor_that_hangs_up_leaves_no_worker_and_no_socket() {
    let jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 2);
    let (a, _a) = jailer.make(1);
    let (b, _b) = jailer.make(2);
    assert!(alive(a.pid) && alive(b.pid));
    let mut jailer = jailer;
    rustix::net::shutdown(&jailer.channel, rustix::net::Shutdown::Both).unwrap();
    assert!(jailer.child.wait().unwrap().success());
    assert!(!alive(a.pid) && !alive(b.pid));
    assert_eq!(names(jailer.folder.path()), [""; 0]);
}

#[test]
fn a_malformed_request_ends_the_jailer_and_its_workers() {
    let mut jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 0);
    let (worker, _pidfd) = jailer.make(1);
    rustix::net::send(&jailer.channel, &[250, 1, 2, 3], rustix::net::SendFlags::empty()).unwrap();
    assert_eq!(jailer.child.wait().unwrap().code(), Some(1));
    assert!(!alive(worker.pid));
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

#[test]
fn a_jailer_waits_for_another_in_its_directory_to_be_gone() {
    use jail_spec::{NAME, Request, VERSION};
    let user = user::with_subuids();
    let mut first = Jailer::start(&user, &program("vmsup-probe"), 0);
    let (worker, _pidfd) = first.make(1);
    let (channel, theirs) = ipc::Channel::<Request, Reply>::pair().unwrap();
    let mut second = user
        .command(program("vmsup-jailer"))
        .args(["serve", "--pool", "0", "--worker"])
        .arg(program("vmsup-probe"))
        .current_dir(first.folder.path())
        .stdin(std::process::Stdio::from(theirs.into_fd()))
        .spawn()
        .unwrap();
    // It may not give out names, uids and cgroup leaves that are in use: it says nothing, however long one listens.
    let soon = rustix::event::Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
    let mut set = [rustix::event::PollFd::new(&channel, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut set, Some(&soon)), Ok(0));
    rustix::net::shutdown(&first.channel, rustix::net::Shutdown::Both).unwrap();
    channel.handshake(NAME, VERSION, 0).unwrap();
    assert!(matches!(channel.receive().unwrap().0, Reply::Ready(_)));
    assert!(!alive(worker.pid), "the first has reaped what was its");
    assert!(first.child.wait().unwrap().success());
    drop(channel);
    assert!(second.wait().unwrap().success());
}
