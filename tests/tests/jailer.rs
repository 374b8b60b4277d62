//! The jailer by itself: refusals, the pool, ends, what it keeps for the next supervisor, what it finds of a jailer that was
//! killed, and what it leaves behind. A probe stands in the worker's place.

use jail_spec::{CgroupLimits, HowEnded, Refusal, Reply, Request, Slot};
use std::path::Path;
use vmsup_tests::host::children;
use vmsup_tests::jailer::{Jailer, connect_to, inspect, meet};
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

/// Field 22 of `/proc/PID/stat`.
fn start_time(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap()
}

/// Whether something comes through a channel within a time in which it would come.
fn speaks_soon(channel: &ipc::Channel<Request, Reply>) -> bool {
    let soon = rustix::event::Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
    let mut set = [rustix::event::PollFd::new(channel, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut set, Some(&soon)).unwrap() > 0
}

/// Whether somebody listens on a worker's socket.
fn listens(jailer: &Jailer, name: &str) -> bool {
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::SEQPACKET, None).unwrap();
    let address = rustix::net::SocketAddrUnix::new(jailer.folder.path().join(name)).unwrap();
    rustix::net::connect(&socket, &address).is_ok()
}

#[test]
fn a_program_that_cannot_be_executed_is_refused_with_the_step() {
    let jailer = Jailer::start(&user::with_subuids(), Path::new("/etc/passwd"), 0);
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
fn a_jailer_with_nothing_to_keep_leaves_nothing_when_its_supervisor_hangs_up() {
    let mut jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 2);
    eventually("a full pool", || jailer.sockets().len() == 2);
    let (worker, pidfd) = jailer.make(1);
    jailer.end(&worker, &pidfd);
    let workers = children(jailer.pid());
    assert!(!workers.is_empty());
    jailer.hang_up();
    assert!(jailer.child.wait().unwrap().success());
    assert!(!workers.into_iter().any(alive));
    assert_eq!(names(jailer.folder.path()), [""; 0]);
}

#[test]
fn what_was_handed_over_outlives_its_supervisor_and_is_told_to_the_next() {
    let mut jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 1);
    let (a, a_pidfd) = jailer.make(1);
    let (b, _b_pidfd) = jailer.make(2);
    eventually("a worker in the pool", || jailer.sockets().len() == 3);
    let pid = jailer.facts.pid;
    jailer.hang_up();
    // What is empty is nobody's.
    eventually("an empty pool", || jailer.sockets() == [a.slot.socket_name(), b.slot.socket_name()]);
    let known = jailer.come_back();
    assert_eq!(jailer.facts.pid, pid);
    assert!(known.ended.is_empty());
    let workers: Vec<_> = known.living.iter().map(|(worker, orphan, _)| (*worker, *orphan)).collect();
    assert_eq!(workers, [(a, false), (b, false)], "the same pids, start times and uids");
    assert_eq!(start_time(b.pid), b.start_time);
    // The pidfd that comes along works, and is of the same process.
    let inode = |fd: &std::os::fd::OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
    assert_eq!(inode(&known.living[0].2), inode(&a_pidfd));
    assert_eq!(jailer.end(&b, &known.living[1].2).0, HowEnded::Killed(9));
    // And the pool is filled again.
    eventually("a full pool", || jailer.sockets().len() == 2);
    drop(jailer.connect(&a));
}

#[test]
fn a_worker_that_never_got_its_vm_goes_with_its_supervisor_and_keeps_no_jailer() {
    for connected in [false, true] {
        let mut jailer = Jailer::start(&user::with_subuids(), &program("vmsup-worker"), 0);
        let (worker, _pidfd) = jailer.make(1);
        let control = connected.then(|| jailer.connect(&worker));
        jailer.hang_up();
        drop(control);
        assert!(jailer.child.wait().unwrap().success());
        assert!(!alive(worker.pid));
        assert_eq!(names(jailer.folder.path()), [""; 0]);
    }
}

#[test]
fn two_jailers_with_one_cgroup_do_not_touch_each_others_workers() {
    let user = user::with_subuids();
    let cgroup = vmsup_tests::Scratch::new(&user);
    std::fs::write(cgroup.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
    let start = |folder: &vmsup_tests::Scratch| {
        let (channel, theirs) = ipc::Channel::<Request, Reply>::pair().unwrap();
        let mut command = user.command(program("vmsup-jailer"));
        command.args(["serve", "--worker"]).arg(program("vmsup-probe")).arg("--cgroup").arg(cgroup.path());
        command.current_dir(folder.path()).stdin(std::process::Stdio::from(theirs.into_fd()));
        (command.stderr(std::process::Stdio::piped()).spawn().unwrap(), channel)
    };
    let (own, other) = (vmsup_tests::Scratch::new(&user), vmsup_tests::Scratch::new(&user));
    let (mut first, channel) = start(&own);
    meet(&channel);
    let second = start(&other).0.wait_with_output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(&format!("process {}", first.id())) && said.contains("--cgroup"), "{said}");
    drop(channel);
    assert!(first.wait().unwrap().success());
}

#[test]
fn an_end_is_told_to_each_supervisor_until_it_is_forgotten() {
    let mut jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 0);
    let (worker, pidfd) = jailer.make(1);
    jailer.hang_up();
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
    eventually("its end", || !alive(worker.pid));
    for _ in 0..2 {
        let known = jailer.come_back();
        assert!(known.living.is_empty());
        let [Reply::Ended { slot, pid, how: HowEnded::Killed(9), .. }] = known.ended[..] else { panic!("{known:?}") };
        assert_eq!((slot, pid), (worker.slot, worker.pid));
        let (other, pidfd) = jailer.make(2);
        assert_ne!(other.slot, worker.slot, "not forgotten, so not free");
        jailer.end(&other, &pidfd);
        jailer.hang_up();
    }
    assert_eq!(jailer.come_back().ended.len(), 1);
    jailer.channel.send(&Request::Forget { slot: worker.slot }, &[]).unwrap();
    // Nothing is left to keep.
    jailer.hang_up();
    assert!(jailer.child.wait().unwrap().success());
    assert_eq!(names(jailer.folder.path()), [""; 0]);
}

#[test]
fn an_order_under_way_is_dropped_with_its_supervisor() {
    let mut jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 0);
    let (kept, _pidfd) = jailer.make(1);
    jailer.ask(2, None);
    // The order and the hang-up stand in the channel one after the other.
    drop(std::mem::replace(&mut jailer.channel, ipc::Channel::pair().unwrap().0));
    let known = jailer.come_back();
    assert_eq!(known.living.iter().map(|(worker, ..)| worker.slot).collect::<Vec<_>>(), [kept.slot]);
    assert_eq!((jailer.sockets(), children(jailer.pid())), (vec![kept.slot.socket_name()], vec![kept.pid]));
}

#[test]
fn a_malformed_request_counts_as_a_hang_up_and_costs_no_vm() {
    let mut jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 0);
    let (worker, _pidfd) = jailer.make(1);
    rustix::net::send(&jailer.channel, &[250, 1, 2, 3], rustix::net::SendFlags::empty()).unwrap();
    assert!(matches!(jailer.channel.receive(), Err(ipc::Error::Closed)));
    assert_eq!(jailer.come_back().living[0].0, worker);
}

#[test]
fn one_supervisor_at_a_time_and_the_next_waits() {
    let jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 0);
    let (worker, pidfd) = jailer.make(1);
    let next = ipc::Channel::<Request, Reply>::new(connect_to(&jailer.folder.path().join(jail_spec::SOCKET)));
    next.greet(jail_spec::NAME, jail_spec::VERSION, 0).unwrap();
    assert!(!speaks_soon(&next), "the first is served");
    assert_eq!(jailer.end(&worker, &pidfd).0, HowEnded::Killed(9));
    jailer.make(2);
    assert!(!speaks_soon(&next));
    jailer.hang_up();
    next.meet(jail_spec::NAME, jail_spec::VERSION, 0).unwrap();
    assert!(matches!(next.receive().unwrap().0, Reply::Ready(_)));
    assert!(matches!(next.receive().unwrap().0, Reply::Holds { .. }));
}

#[test]
fn whoever_waits_at_the_door_of_a_jailer_that_leaves_is_served() {
    for _ in 0..20 {
        let mut jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 0);
        // There is nothing to keep: the jailer is about to leave when it hears of the one and of the other at once.
        let door = jailer.folder.path().join(jail_spec::SOCKET);
        let next = connect_to(&door);
        jailer.hang_up();
        jailer.channel = ipc::Channel::new(next);
        assert!(meet(&jailer.channel).1.living.is_empty());
        let (worker, _pidfd) = jailer.make(1);
        assert!(door.exists(), "and there is a door for the one after");
        jailer.hang_up();
        assert_eq!(jailer.come_back().living[0].0, worker);
    }
}

#[test]
fn a_peer_that_says_nothing_holds_up_neither_ends_nor_the_next_supervisor() {
    let mut jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 0);
    let (a, _a) = jailer.make(1);
    let (b, b_pidfd) = jailer.make(2);
    jailer.hang_up();
    let silent = connect_to(&jailer.folder.path().join(jail_spec::SOCKET));
    let silent = ipc::Channel::<Request, Reply>::new(silent);
    silent.meet(jail_spec::NAME, jail_spec::VERSION, 0).unwrap();
    // It is inside now, and does not answer. Workers are reaped all the same.
    rustix::process::pidfd_send_signal(&b_pidfd, rustix::process::Signal::KILL).unwrap();
    eventually("the reaping", || !alive(b.pid));
    // Before long the next one has its turn.
    let known = jailer.come_back();
    assert_eq!((known.living.len(), known.ended.len()), (1, 1));
    assert_eq!(known.living[0].0, a);
    assert!(matches!(silent.receive(), Err(ipc::Error::Closed)), "the silent one was dropped");
}

#[test]
fn a_supervisor_that_does_not_read_is_dropped_and_costs_no_vm() {
    let mut jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 0);
    let (worker, _pidfd) = jailer.make(1);
    // Answers that nobody reads, until there is room for no more of them. Sent by a thread: once the jailer waits for a
    // reader it reads nothing itself.
    let channel = std::mem::replace(&mut jailer.channel, ipc::Channel::pair().unwrap().0);
    let flood = std::thread::spawn(move || {
        let limits = CgroupLimits { best_effort: true, ..CgroupLimits::default() };
        while channel.send(&Request::Limit { slot: Slot(4000), limits }, &[]).is_ok() {}
        channel
    });
    let known = jailer.come_back();
    assert_eq!(known.living[0].0, worker);
    drop(flood.join().unwrap());
}

#[test]
fn a_peer_of_another_user_is_turned_away() {
    if !rustix::process::geteuid().is_root() {
        return vmsup_tests::skip("a_peer_of_another_user_is_turned_away", "becoming another user needs root");
    }
    let mut jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 0);
    let (worker, _pidfd) = jailer.make(1);
    jailer.hang_up();
    let door = jailer.folder.path().join(jail_spec::SOCKET);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&door).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // Suppose that the directory and the socket let everybody in.
    for (path, mode) in [(jailer.folder.path(), 0o755), (&door, 0o666)] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    let script = "import socket,sys; s=socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1]); \
                  sys.exit(len(s.recv(100)))";
    let mut stranger = user::second_tenant().command("python3");
    let said = stranger.args(["-c", script]).arg(&door).status().unwrap();
    assert_eq!(said.code(), Some(0), "not even a greeting");
    assert_eq!(jailer.come_back().living[0].0, worker);
}

#[test]
fn a_stopped_worker_is_told_at_once_and_so_is_that_it_goes_on() {
    let mut jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 0);
    let (worker, pidfd) = jailer.make(1);
    let (other, _other) = jailer.make(2);
    let told = |jailer: &Jailer, wanted: bool| {
        let Reply::Stopped { slot, stopped } = jailer.reply().0 else { panic!("it is told") };
        assert_eq!((slot, stopped), (worker.slot, wanted));
    };
    use rustix::process::{Signal, pidfd_send_signal};
    pidfd_send_signal(&pidfd, Signal::STOP).unwrap();
    told(&jailer, true);
    pidfd_send_signal(&pidfd, Signal::CONT).unwrap();
    told(&jailer, false);
    // Also to one who comes later.
    pidfd_send_signal(&pidfd, Signal::STOP).unwrap();
    told(&jailer, true);
    jailer.hang_up();
    assert_eq!(jailer.come_back().living.len(), 2);
    told(&jailer, true);
    assert_eq!(jailer.end(&worker, &pidfd).0, HowEnded::Killed(9));
    drop(jailer.connect(&other));
}

#[test]
fn a_stopped_worker_of_the_pool_is_given_to_nobody() {
    let jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 1);
    let mut warm = 0;
    eventually("a warm worker", || {
        let ([pid], [socket]) = (&children(jailer.pid())[..], &jailer.sockets()[..]) else { return false };
        warm = *pid;
        listens(&jailer, socket)
    });
    let pid = rustix::process::Pid::from_raw(warm).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    eventually("its end", || !alive(warm));
    let (worker, _pidfd) = jailer.make(1);
    assert_ne!(worker.pid, warm);
    drop(jailer.connect(&worker));
}

#[test]
fn workers_of_a_killed_jailer_are_the_next_ones_orphans_and_their_slots_stay_theirs() {
    let mut jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 0);
    let (a, _a) = jailer.make(1);
    let (b, _b) = jailer.make(2);
    let known = jailer.replace();
    assert!(known.ended.is_empty());
    let workers: Vec<_> = known.living.iter().map(|(worker, orphan, _)| (*worker, *orphan)).collect();
    assert_eq!(workers, [(a, true), (b, true)], "the same pids, start times and uids, by what the kernel says");
    let (c, c_pidfd) = jailer.make(3);
    assert!(c.slot != a.slot && c.slot != b.slot && c.uid != a.uid && c.uid != b.uid);
    assert_eq!(jailer.end(&c, &c_pidfd).0, HowEnded::Killed(9));
    // Its end is seen, and how it came is nobody's to say; then its slot is free.
    let (how, words) = jailer.end(&a, &known.living[0].2);
    assert_eq!((how, words.as_str()), (HowEnded::Unknown, ""));
    assert!(!jailer.folder.path().join(a.slot.socket_name()).exists());
    let (d, _d_pidfd) = jailer.make(4);
    assert_eq!((d.slot, d.uid), (a.slot, a.uid));
    // They stay through a hang-up like the jailer's own, and are kept for the next.
    jailer.hang_up();
    let known = jailer.come_back();
    let workers: Vec<_> = known.living.iter().map(|(worker, orphan, _)| (*worker, *orphan)).collect();
    assert_eq!(workers, [(d, false), (b, true)]);
}

#[test]
fn an_orphan_that_does_not_answer_is_found_by_its_record() {
    let mut jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 0);
    let (worker, pidfd) = jailer.make(1);
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::STOP).unwrap();
    assert_eq!(jailer.reply().0, Reply::Stopped { slot: worker.slot, stopped: true });
    // Its backlog is full.
    let path = jailer.folder.path().join(worker.slot.socket_name());
    let mut waiting = Vec::new();
    loop {
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::NONBLOCK,
            None,
        );
        let socket = socket.unwrap();
        match rustix::net::connect(&socket, &rustix::net::SocketAddrUnix::new(&path).unwrap()) {
            Ok(()) => waiting.push(socket),
            Err(errno) => break assert_eq!(errno, rustix::io::Errno::AGAIN),
        }
    }
    // A record of a process that is another by now names nobody, and then its slot is not used.
    let record = jailer.folder.path().join("w0.pid");
    let honest = std::fs::read_link(&record).unwrap();
    std::fs::remove_file(&record).unwrap();
    std::os::unix::fs::symlink(format!("{} {}", worker.pid, worker.start_time + 1), &record).unwrap();
    assert!(jailer.replace().living.is_empty());
    assert_ne!(jailer.make(1).0.slot, worker.slot);
    std::fs::remove_file(&record).unwrap();
    std::os::unix::fs::symlink(honest, &record).unwrap();
    let mut known = jailer.replace();
    known.living.retain(|(worker, ..)| worker.slot == Slot(0));
    assert_eq!(known.living.len(), 1);
    assert_eq!((known.living[0].0, known.living[0].1), (worker, true));
    assert_eq!(jailer.end(&worker, &known.living[0].2).0, HowEnded::Unknown);
}

#[test]
fn a_socket_that_somebody_else_listens_on_is_left_alone_and_its_slot_not_used() {
    if !rustix::process::geteuid().is_root() {
        let name = "a_socket_that_somebody_else_listens_on_is_left_alone_and_its_slot_not_used";
        return vmsup_tests::skip(name, "being somebody else needs root");
    }
    let user = user::with_subuids();
    let mut jailer = Jailer::start(&user, &program("vmsup-probe"), 0);
    let (kept, _pidfd) = jailer.make(1);
    assert_eq!(kept.slot, Slot(0));
    // This process, which is root. And one that nobody listens on any more, and a file in a socket's place.
    let bind = |name: &str| {
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::SEQPACKET, None).unwrap();
        let address = rustix::net::SocketAddrUnix::new(jailer.folder.path().join(name)).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        // Whoever the name belongs to, the listener is who it is.
        std::os::unix::fs::chown(jailer.folder.path().join(name), Some(user.uid), Some(user.gid)).unwrap();
        rustix::net::listen(&socket, 4).unwrap();
        socket
    };
    let foreign = bind("w1.sock");
    drop(bind("w2.sock"));
    std::fs::create_dir(jailer.folder.path().join("w3.sock")).unwrap();
    let known = jailer.replace();
    assert_eq!(known.living.iter().map(|(worker, ..)| *worker).collect::<Vec<_>>(), [kept]);
    assert_eq!(jailer.sockets(), ["w0.sock", "w1.sock", "w3.sock"]);
    let slots: Vec<Slot> = (0..3).map(|n| jailer.make(n).0.slot).collect();
    assert_eq!(slots, [Slot(2), Slot(4), Slot(5)]);
    // It is still there, and it is the one that was there.
    drop(connect_to(&jailer.folder.path().join("w1.sock")));
    drop(foreign);
}

#[test]
fn a_service_managers_stop_costs_no_vm() {
    let mut jailer = Jailer::start(&user::with_subuids(), &program("vmsup-probe"), 1);
    let (worker, _pidfd) = jailer.make(1);
    eventually("a worker in the pool", || jailer.sockets().len() == 2);
    let pid = rustix::process::Pid::from_child(&jailer.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(jailer.child.wait().unwrap().success());
    assert!(alive(worker.pid));
    let left = ["w0.pid", "w0.sock"];
    assert_eq!(names(jailer.folder.path()), left, "no door, and nothing that is empty");
    assert_eq!(jailer.replace().living[0].0, worker);
}

#[test]
fn a_jailer_on_a_service_managers_socket_serves_one_after_another_and_leaves_the_socket() {
    let user = user::with_subuids();
    let folder = vmsup_tests::Scratch::new(&user);
    let path = folder.path().join("listen");
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::SEQPACKET, None).unwrap();
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&socket, 4).unwrap();
    let come = || {
        let channel = ipc::Channel::<Request, Reply>::new(connect_to(&path));
        let known = meet(&channel).1;
        (channel, known)
    };
    let start = || {
        let mut command = user.command(program("vmsup-jailer"));
        command.args(["serve", "--pool", "0", "--worker"]).arg(program("vmsup-probe")).current_dir(folder.path());
        command.stdin(std::process::Stdio::from(socket.try_clone().unwrap())).spawn().unwrap()
    };
    let mut jailer = start();
    let (first, _) = come();
    first.send(&Request::Make { seq: 1, limits: None, rlimits: vmsup_tests::jailer::ROOMY }, &[]).unwrap();
    let (Reply::Made { worker, .. }, _pidfd) = first.receive().unwrap() else { panic!("a worker") };
    drop(first);
    let (second, known) = come();
    assert_eq!(known.living[0].0, worker);
    assert_eq!(names(folder.path()), ["listen", "w0.pid", "w0.sock"], "no door of its own");
    rustix::process::pidfd_send_signal(&known.living[0].2, rustix::process::Signal::KILL).unwrap();
    assert!(matches!(second.receive().unwrap().0, Reply::Ended { .. }));
    second.send(&Request::Forget { slot: worker.slot }, &[]).unwrap();
    drop(second);
    assert!(jailer.wait().unwrap().success());
    assert_eq!(names(folder.path()), ["listen"]);
    // The service manager starts another when somebody comes.
    let mut jailer = start();
    drop(come());
    assert!(jailer.wait().unwrap().success());
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

#[test]
fn a_jailer_waits_for_another_in_its_directory_to_be_gone() {
    use jail_spec::{NAME, VERSION};
    let user = user::with_subuids();
    let mut first = Jailer::start(&user, &program("vmsup-probe"), 0);
    let (worker, pidfd) = first.make(1);
    let (channel, theirs) = ipc::Channel::<Request, Reply>::pair().unwrap();
    let mut second = user
        .command(program("vmsup-jailer"))
        .args(["serve", "--pool", "0", "--worker"])
        .arg(program("vmsup-probe"))
        .current_dir(first.folder.path())
        .stdin(std::process::Stdio::from(theirs.into_fd()))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // It may not give out names, uids and cgroup leaves that are in use: it says nothing, however long one listens.
    assert!(!speaks_soon(&channel));
    // But on its log, whom it waits for.
    let mut said = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(second.stderr.take().unwrap()), &mut said).unwrap();
    assert!(said.contains(&format!("process {}", first.pid())) && said.contains("vmsup stop --all"), "{said}");
    first.end(&worker, &pidfd);
    first.hang_up();
    channel.handshake(NAME, VERSION, 0).unwrap();
    assert!(matches!(channel.receive().unwrap().0, Reply::Ready(_)));
    assert!(first.child.wait().unwrap().success());
    assert!(first.folder.path().join(jail_spec::SOCKET).exists(), "the second has a door, which the first left alone");
    drop(channel);
    assert!(second.wait().unwrap().success());
}
