//! The jailer between supervisors: what it keeps for the next one, who may be that, and what it finds of a jailer that was
//! killed. A probe stands in the worker's place.

use jail_spec::{CgroupLimits, HowEnded, Reply, Request, Slot};
use std::path::Path;
use vmsup_tests::host::children;
use vmsup_tests::jailer::{Jailer, connect_to, meet};
use vmsup_tests::{eventually, names, program, user};

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
