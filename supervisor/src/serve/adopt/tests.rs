//! What becomes of workers that answer, lie, hang, or are gone; each fake one has a process of its own to be killed.

use super::judge::{Evidence, Living, judge};
use super::look::{start_time, unlisted};
use super::*;
use crate::serve::Jail;
use crate::serve::console::WorkerEnds;
use crate::serve::jail::{ListedEnd, ListedWorker, Listing};
use crate::serve::testing::{Bench, handle, print};
use crate::serve::worker;
use crate::spec::{Enforce, Limits};
use ipc::Channel;
use jail_spec::{Facts, HowEnded, Reply, Request, Slot, UidSource};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use worker_api::Reply as Says;

/// What a worker of an earlier supervisor does.
#[derive(Clone, Copy, PartialEq)]
enum Does {
    Runs(Status),
    /// Says that it runs, and hands over something else than a console.
    Lies,
    /// Says something that is no answer to what it was asked.
    Raves,
    /// Answers nothing.
    Hangs,
    /// Hangs up over its console, so many times; then it hands it over.
    HangsUp(u32),
    /// Hangs up on everybody at once, and lives.
    Shuns,
    /// Has as many waiting at its socket as there is room for.
    IsFull,
    /// Is of a release that speaks another version.
    IsOld,
    /// Has no socket any more.
    Ended,
}

/// A host with workers of an earlier supervisor.
struct Before {
    bench: Bench,
    evidence: Evidence,
    listing: Listing,
    processes: Vec<Child>,
    ends: Vec<WorkerEnds>,
}

/// The next supervisor, with the jailer's end of its channel.
struct After {
    jail: Arc<Jail>,
    jailer: Channel<Reply, Request>,
    fates: Vec<Fate>,
}

impl Before {
    fn new() -> Before {
        let evidence = Evidence { boot_id: "b00t".into(), ..Evidence::default() };
        let (processes, ends) = (Vec::new(), Vec::new());
        Before { bench: Bench::new(), evidence, listing: Listing::default(), processes, ends }
    }

    /// A VM with that number and slot that ran until its supervisor died.
    fn vm(&mut self, number: u64, does: Does) -> &mut Handle {
        let process = Command::new("sh").args(["-c", "read nothing"]).stdin(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(process.id() as i32).unwrap();
        self.processes.push(process);
        self.vm_in(number, does, &rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap())
    }

    fn vm_in(&mut self, number: u64, does: Does, pidfd: &OwnedFd) -> &mut Handle {
        let own = std::process::id() as i32;
        let mut handle = handle(number, &format!("vm{number}"));
        handle.slot = number as u32;
        // Who listens is this process.
        (handle.pid, handle.start_time) = (own, start_time(own).unwrap());
        handle.uid = rustix::process::geteuid().as_raw();
        handle.pidfd_inode = handle::pidfd_inode(pidfd);
        let worker = Worker { slot: Slot(handle.slot), pid: own, start_time: handle.start_time, uid: handle.uid };
        let (_, ends) = Console::new(true).unwrap();
        print(&ends.ring, &ends.notify, b"before ");
        if does != Does::Ended {
            let fds = [&ends.ring, &ends.notify, &ends.input].map(|fd| fd.try_clone().unwrap());
            let listener = listen(&self.bench.dir.path().join(worker.slot.socket_name()));
            std::thread::spawn(move || serve(&listener, does, &fds));
        }
        self.ends.push(ends);
        self.listing.living.push(ListedWorker {
            worker,
            pidfd: pidfd.try_clone().unwrap(),
            stopped: false,
            unlisted: false,
        });
        let living = Living { worker, start_time: Some(handle.start_time), inode: handle.pidfd_inode };
        self.evidence.living.push(living);
        self.evidence.rows.push(handle.intent.clone());
        self.evidence.handles.push(handle);
        self.evidence.handles.last_mut().unwrap()
    }

    async fn next(&mut self) -> After {
        let (ours, jailer) = Channel::<Request, Reply>::pair().unwrap();
        let facts = Facts { pid: 1, uids: UidSource::Own, cgroup: Err("none".into()), pool: 0 };
        let pidfd = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        let ready = ours.as_fd().try_clone_to_owned().unwrap();
        let (jail, inherited) = Jail::new(ours, ready, facts, pidfd, std::mem::take(&mut self.listing)).unwrap();
        let fates = fates(&self.bench.context, inherited, judge(&self.evidence)).await.unwrap();
        After { jail, jailer, fates }
    }

    /// Waits for a process's end: true where it was killed.
    fn was_killed(&mut self, n: usize) -> bool {
        use std::os::unix::process::ExitStatusExt;
        self.processes[n].wait().unwrap().signal() == Some(9)
    }

    fn lives(&mut self, n: usize) -> bool {
        self.processes[n].try_wait().unwrap().is_none()
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl After {
    fn only(mut self) -> (Fate, Channel<Reply, Request>) {
        assert_eq!(self.fates.len(), 1, "{:?}", self.fates);
        (self.fates.remove(0), self.jailer)
    }

    /// How the only VM ended.
    fn how(self) -> String {
        match self.only().0 {
            Fate::Ended { how, .. } => format!("{how:?}"),
            other => panic!("{other:?}"),
        }
    }
}

fn listen(path: &Path) -> OwnedFd {
    let listener =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    listener
}

/// Serves one after the other, as a worker does.
fn serve(listener: &OwnedFd, does: Does, ends: &[OwnedFd; 3]) {
    if does == Does::IsFull {
        return fill(listener);
    }
    let mut left = if let Does::HangsUp(times) = does { times } else { 0 };
    while let Ok(socket) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
        if does != Does::Shuns {
            work(socket, does, ends, &mut left);
        }
    }
}

/// Takes all the room at a socket, until the test is over.
fn fill(listener: &OwnedFd) {
    let address = rustix::net::getsockname(listener).unwrap();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let knock = || {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::connect(&socket, &address).map(|()| socket)
    };
    let _waiting: Vec<OwnedFd> = std::iter::from_fn(|| knock().ok()).collect();
    std::thread::park();
}

fn work(socket: OwnedFd, does: Does, ends: &[OwnedFd; 3], left: &mut u32) {
    let channel = Channel::<Says, worker_api::Request>::new(socket);
    let version = if does == Does::IsOld { worker_api::VERSION - 1 } else { worker_api::VERSION };
    if channel.handshake(worker_api::NAME, version, 0).is_err() {
        return;
    }
    let null = std::fs::File::open("/dev/null").unwrap();
    while let Ok((request, _)) = channel.receive() {
        let status = if let Does::Runs(status) = does { status } else { Status::Running };
        let fds = if does == Does::Lies { [null.as_fd(); 3] } else { ends.each_ref().map(|fd| fd.as_fd()) };
        let sent = match (does, request) {
            (Does::Hangs, _) => continue,
            (Does::Raves, _) => channel.send(&Says::Done, &[]),
            (_, worker_api::Request::Status) => channel.send(&Says::Status(status), &[]),
            (Does::HangsUp(_), worker_api::Request::Console) if *left > 0 => {
                *left -= 1;
                return;
            }
            (_, worker_api::Request::Console) => channel.send(&Says::Console, &fds),
            (_, other) => panic!("{other:?}"),
        };
        if sent.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_vm_that_runs_gets_the_limits_of_its_file_again() {
    let mut before = Before::new();
    for number in [1, 2] {
        before.vm(number, Does::Runs(Status::Running));
    }
    let enforce = Enforce::Required;
    let limits = Limits { memory_max_mib: Some(48), pids_max: Some(24), cpu_percent: None, enforce };
    before.evidence.rows[1].spec.limits = Some(limits.clone());
    let after = before.next().await;
    assert!(after.fates.iter().all(|fate| matches!(fate, Fate::Runs(_))), "{:?}", after.fates);
    assert_eq!(*before.bench.limits.lock().unwrap(), [(2, cgroup_limits(&limits))]);
}

#[tokio::test]
async fn limits_that_are_not_in_force_again_are_not_said_to_be() {
    for enforce in [Enforce::Required, Enforce::BestEffort] {
        let mut before = Before::new();
        before.bench = Bench::limited();
        *before.bench.unlimited.lock().unwrap() = Some(jail_spec::Refusal::Invalid("no such leaf".into()));
        before.vm(1, Does::Runs(Status::Running));
        let limits = Limits { memory_max_mib: Some(48), pids_max: None, cpu_percent: None, enforce };
        before.evidence.rows[0].spec.limits = Some(limits);
        let After { jail, jailer, fates } = before.next().await;
        crate::serve::run::settle(&before.bench.context, fates);
        let vms = before.bench.context.registry.list();
        let shown = vms[0].info().worker.unwrap().limits;
        assert!(shown.starts_with("not held: ") && shown.contains("no such leaf"), "{shown}");
        let events = before.bench.context.events.listen(Some(0)).now(1000).events;
        assert!(format!("{events:?}").contains("Unlimited"), "{events:?}");
        jail.leave();
        drop(jailer);
    }
}

#[tokio::test]
async fn a_vm_that_runs_is_found_with_its_past_and_goes_on() {
    for (status, paused) in [(Status::Running, false), (Status::Paused, true)] {
        let mut before = Before::new();
        before.vm(1, Does::Runs(status)).started_at = 77;
        let after = before.next().await;
        let jail = after.jail.clone();
        let (Fate::Runs(found), _jailer) = after.only() else { panic!("it runs") };
        assert_eq!((found.paused, found.started_at, found.held.warm, found.intent.number), (paused, 77, true, 1));
        let console = found.console.as_ref().unwrap();
        assert_eq!(console.kept().0, b"before ");
        let ends = &before.ends[0];
        print(&ends.ring, &ends.notify, b"after");
        assert_eq!(console.kept().0, b"before after");
        console.take_input().unwrap().write(b"typed").await.unwrap();
        assert_eq!(rustix::io::read(&ends.input, &mut [0; 16]), Ok(5));
        // Leaving in good order kills nobody; letting go of a VM does.
        jail.leave();
        drop(found);
        assert!(before.lives(0));
    }
}

#[tokio::test]
async fn a_vm_that_is_let_go_is_killed() {
    let mut before = Before::new();
    before.vm(1, Does::Runs(Status::Running));
    let after = before.next().await;
    drop(after.fates);
    assert!(before.was_killed(0));
}

#[tokio::test]
async fn a_start_that_was_interrupted_leaves_nothing() {
    let mut before = Before::new();
    before.vm(1, Does::Runs(Status::Empty));
    before.evidence.rows[0].confirmed = false;
    assert!(matches!(before.next().await.only().0, Fate::Never(_)));
    assert!(before.was_killed(0));
    // One that ran before is there still.
    let mut before = Before::new();
    before.vm(1, Does::Runs(Status::Empty));
    before.evidence.rows[0].ends =
        vec![crate::api::types::End { kind: crate::api::types::EndKind::Shutdown, reason: String::new(), at: 1 }];
    before.evidence.rows[0].over = 1;
    before.evidence.handles[0].intent.runs = 2;
    let after = before.next().await;
    // The run that never was is not one whose end is missing.
    let (Fate::Rests(intent), _jailer) = after.only() else { panic!("it rests") };
    assert_eq!((intent.runs, intent.over, intent.desired), (1, 1, crate::api::types::Desired::Running));
    assert!(before.was_killed(0));
}

#[tokio::test]
async fn a_worker_that_lies_is_killed_and_its_vm_has_crashed() {
    for (does, says) in [(Does::Lies, "no sealed memfd"), (Does::Raves, "something else than it was asked")] {
        let mut before = Before::new();
        before.vm(1, does);
        let how = before.next().await.how();
        assert!(how.starts_with("NotBelieved") && how.contains(says), "{how}");
        assert!(before.was_killed(0));
    }
}

#[tokio::test]
async fn a_socket_of_somebody_else_is_not_spoken_to() {
    let mut before = Before::new();
    before.vm(1, Does::Runs(Status::Running)).pid += 1;
    before.evidence.living[0].worker.pid += 1;
    before.listing.living[0].worker.pid += 1;
    let how = before.next().await.how();
    assert!(how.starts_with("NotBelieved") && how.contains("listens"), "{how}");
    assert!(before.was_killed(0));
}

#[tokio::test]
async fn a_worker_that_does_not_answer_goes_on_without_a_console() {
    for does in [Does::Hangs, Does::IsOld] {
        let mut before = Before::new();
        before.vm(1, does);
        let after = before.next().await;
        let jail = after.jail.clone();
        let (Fate::Runs(found), _jailer) = after.only() else { panic!("it runs") };
        assert!(found.console.is_none() && before.lives(0));
        jail.leave();
    }
}

#[tokio::test]
async fn a_worker_that_hangs_up_is_asked_again() {
    let mut before = Before::new();
    before.vm(1, Does::HangsUp(1));
    let after = before.next().await;
    after.jail.leave();
    let (Fate::Runs(found), _jailer) = after.only() else { panic!("it runs") };
    assert_eq!(found.console.unwrap().kept().0, b"before ");
}

#[tokio::test]
async fn a_worker_that_hangs_up_and_lives_goes_on_and_is_asked_again_later() {
    // Its console cannot be had for now: as when another worker of its uid has as many fds in flight as there may be.
    let mut before = Before::new();
    before.vm(1, Does::HangsUp(2));
    let after = before.next().await;
    after.jail.leave();
    let (Fate::Runs(found), _jailer) = after.only() else { panic!("it runs") };
    assert!(found.console.is_none() && before.lives(0));
    let ends = found.control.console(Duration::from_secs(10)).await.unwrap();
    assert_eq!(Console::adopted(ends, true).unwrap().kept().0, b"before ");
    for does in [Does::Shuns, Does::IsFull] {
        let mut before = Before::new();
        before.vm(1, does);
        let after = before.next().await;
        after.jail.leave();
        let (Fate::Runs(found), _jailer) = after.only() else { panic!("it runs") };
        assert!(found.console.is_none() && before.lives(0));
        assert!(found.control.status(Duration::from_secs(1)).await.is_err());
    }
}

#[tokio::test]
async fn a_console_that_could_not_be_had_is_asked_for_when_its_worker_answers() {
    let mut before = Before::new();
    // Once more than its adoption asks.
    before.vm(1, Does::HangsUp(3));
    let After { jail, jailer, fates } = before.next().await;
    crate::serve::run::settle(&before.bench.context, fates);
    let vm = before.bench.context.registry.list().remove(0);
    assert!(vm.console().is_err());
    while vm.console().is_err() {
        before.bench.context.tick.beat();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(vm.console().unwrap().kept().0, b"before ");
    jail.leave();
    drop(jailer);
}

#[tokio::test]
async fn a_worker_that_ends_while_it_is_asked_has_the_end_that_its_jailer_tells() {
    let mut before = Before::new();
    before.vm(1, Does::Ended);
    let (ours, jailer) = Channel::<Request, Reply>::pair().unwrap();
    let facts = Facts { pid: 1, uids: UidSource::Own, cgroup: Err("none".into()), pool: 0 };
    let pidfd = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
    let ready = ours.as_fd().try_clone_to_owned().unwrap();
    let listing = std::mem::take(&mut before.listing);
    let ended = Reply::Ended { slot: Slot(1), pid: 1, how: HowEnded::Exited(0), last_words: String::new() };
    jailer.send(&ended, &[]).unwrap();
    let (_jail, inherited) = Jail::new(ours, ready, facts, pidfd, listing).unwrap();
    let fates = fates(&before.bench.context, inherited, judge(&before.evidence)).await.unwrap();
    let [Fate::Ended { how: How::Told(end), held: Some(_), .. }] = &fates[..] else { panic!("{fates:?}") };
    assert_eq!(end.how, HowEnded::Exited(0));
}

#[tokio::test]
async fn an_end_is_forgotten_by_the_jailer_when_it_was_recorded_and_not_before() {
    let mut before = Before::new();
    before.vm(1, Does::Ended);
    before.listing.living.clear();
    before.evidence.living.clear();
    for (slot, pid) in [(1, std::process::id() as i32), (9, 1)] {
        let end = WorkerEnd::new(HowEnded::Killed(9), "");
        before.listing.ended.push(ListedEnd { slot: Slot(slot), pid, end });
        before.evidence.ended.push((Slot(slot), pid));
    }
    let after = before.next().await;
    let jail = after.jail.clone();
    jail.settled().await;
    let (fate, jailer) = after.only();
    assert!(matches!(&fate, Fate::Ended { how: How::Told(_), held: Some(_), .. }), "{fate:?}");
    // One that nobody knows is of no use to anybody.
    assert_eq!(jailer.receive().unwrap().0, Request::Forget { slot: Slot(9) });
    drop(fate);
    jail.settled().await;
    assert_eq!(jailer.receive().unwrap().0, Request::Forget { slot: Slot(1) });
}

#[tokio::test]
async fn a_worker_that_no_handle_names_is_killed() {
    let mut before = Before::new();
    before.vm(1, Does::Runs(Status::Running));
    before.evidence.handles.clear();
    assert!(before.next().await.how().contains("no handle"));
    assert!(before.was_killed(0));
}

#[tokio::test]
async fn two_hundred_vms_are_found_together() {
    let mut before = Before::new();
    before.vm(0, Does::Runs(Status::Running));
    let pidfd = before.listing.living[0].pidfd.try_clone().unwrap();
    for number in 1..200 {
        before.vm_in(number, Does::Runs(Status::Running), &pidfd);
    }
    let after = before.next().await;
    after.jail.leave();
    assert_eq!(after.fates.len(), 200);
    assert!(after.fates.iter().all(|fate| matches!(fate, Fate::Runs(found) if found.console.is_some())));
}

#[tokio::test]
async fn a_living_vm_keeps_the_leases_that_netd_has_and_releases_them_at_its_end() {
    let mut before = Before::new();
    let netd = before.bench.netd();
    let nets: Vec<_> = [5, 6]
        .map(|id| {
            let told = crate::serve::testing::netd::granted(id, 1);
            crate::serve::nets::shown(&serde_json::from_str(r#"{"network":"a"}"#).unwrap(), &told)
        })
        .into();
    before.vm(1, Does::Runs(Status::Running)).nets = nets;
    let wanted = netd_api::Wanted {
        network: "a".into(),
        vm: VmId(1),
        queues: 1,
        offloads: true,
        mac_suffix: None,
        forwards: Vec::new(),
    };
    netd.leases.lock().unwrap().insert(5, wanted);
    let (Fate::Runs(found), _jailer) = before.next().await.only() else { panic!("it runs") };
    assert_eq!((found.nets.shown.len(), found.nets.leases.len()), (2, 1), "netd has lost the other one");
    drop(found);
    netd.nothing_leased().await;
    before.bench.context.netd.settled().await;
}

/// A handle of a process that no jailer names.
fn handle_of(pid: i32) -> Handle {
    let mut handle = handle(1, "a");
    (handle.pid, handle.start_time) = (pid, start_time(pid).unwrap());
    let pidfd = rustix::process::pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    (handle.pidfd_inode, handle.uid) = (handle::pidfd_inode(&pidfd), rustix::process::geteuid().as_raw());
    handle
}

#[test]
fn how_long_a_vm_has_run_is_not_for_who_sets_the_clock_to_say() {
    let hour = Duration::from_secs(3600);
    let mut handle = handle(1, "a");
    handle.began_ms = handle::uptime().saturating_sub(hour).as_millis() as u64;
    // Half a century ahead, and long before.
    for started_at in [3_400_000_000, 1] {
        handle.started_at = started_at;
        let ran = ran(&handle);
        assert!(ran <= handle::uptime() && ran >= hour.min(handle::uptime() / 2), "{ran:?}");
    }
}

#[test]
fn the_process_of_a_handle_that_nobody_can_reach_is_ended_and_no_other() {
    let dir = crate::serve::testing::TempDir::new();
    let workers = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
    let mut child = Command::new("sleep").arg("600").spawn().unwrap();
    let mut listing = Listing::default();
    let mut handle = handle_of(child.id() as i32);
    let mut ends = |handle: &Handle| unlisted(&workers, handle, &mut listing).is_some();
    handle.start_time += 1;
    assert!(!ends(&handle), "a later process of that pid");
    handle.start_time -= 1;
    if let Some(inode) = handle.pidfd_inode {
        handle.pidfd_inode = Some(inode + 1);
        assert!(!ends(&handle), "a later process of that pid and time");
        handle.pidfd_inode = Some(inode);
    }
    assert!(child.try_wait().unwrap().is_none());
    assert!(ends(&handle));
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert!(!ends(&handle), "there is no such process");
    handle.pid = -1;
    assert!(!ends(&handle));
    assert!(listing.living.is_empty());
}

#[tokio::test]
async fn a_worker_that_its_jailer_leaves_alone_goes_on_and_its_end_is_seen() {
    let mut before = Before::new();
    // It answers who it is, or nothing at all.
    before.vm(1, Does::Runs(Status::Running));
    before.vm(2, Does::IsFull);
    let mut listing = Listing::default();
    let workers = before.bench.context.host.workers.clone();
    let mut handles = before.evidence.handles.clone();
    (handles[0].pidfd_inode, handles[0].intent.spec.name) = (handle_of(handles[0].pid).pidfd_inode, "listens".into());
    let other = handle_of(before.processes[1].id() as i32);
    (handles[1].pid, handles[1].start_time, handles[1].pidfd_inode) = (other.pid, other.start_time, other.pidfd_inode);
    let full = || worker::knock(&workers, &before.listing.living[1].worker).is_err_and(|error| error.is_full());
    while !full() {
        std::thread::yield_now();
    }
    for handle in &handles {
        let said = unlisted(&workers, handle, &mut listing).unwrap();
        assert!(said.contains(&handle.intent.spec.name) && said.contains("/etc/subuid"), "{said}");
        assert!(unlisted(&workers, handle, &mut listing).is_none(), "it is in the list by now");
    }
    let slots: Vec<_> = listing.living.iter().map(|listed| (listed.worker.slot.0, listed.unlisted)).collect();
    assert_eq!(slots, [(1, true), (2, true)]);
    // Nobody but its pidfd says that it ends.
    listing.living.remove(0);
    before.listing = listing;
    let (ours, jailer) = Channel::<Request, Reply>::pair().unwrap();
    let facts = Facts { pid: 1, uids: UidSource::Own, cgroup: Err("none".into()), pool: 0 };
    let pidfd = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
    let ready = ours.as_fd().try_clone_to_owned().unwrap();
    let listing = std::mem::take(&mut before.listing);
    let (_jail, mut inherited) = Jail::new(ours, ready, facts, pidfd, listing).unwrap();
    let mut held = inherited.living.remove(0);
    before.processes[1].kill().unwrap();
    assert!(held.ended().await.is_none());
    drop(held);
    // Nor is the jailer asked to forget one that it does not know.
    rustix::io::ioctl_fionbio(&jailer, true).unwrap();
    assert!(jailer.receive().unwrap_err().would_block());
}
