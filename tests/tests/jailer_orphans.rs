//! The jailer after a killed one: its workers are the next one's orphans. A probe stands in the worker's place.

use jail_spec::{HowEnded, Reply, Slot};
use vmsup_tests::jailer::{Jailer, connect_to};
use vmsup_tests::{program, user};

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
