//! A VM that is paused runs nothing, whatever its vCPUs were at, and goes on where it was.

mod common;

use common::{Ended, Peer, Vm, Worker, ask, button, guest};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use worker_api::{NAME, Reply, Request, Status, VERSION, exit};

/// Where `tests/guest/counter.c` counts; 64 bytes a CPU.
const COUNTERS: u64 = 0x20_0000;

/// A VM whose vCPUs count in RAM.
struct Counting {
    worker: Worker,
    peer: Peer,
    vm: Vm,
    ram: File,
    /// How many vCPUs count.
    cpus: u64,
}

impl Counting {
    fn start(cpus: u8, counting: u64, options: &str) -> Self {
        let worker = Worker::start();
        let mut vm = Vm::with(guest("counter"), cpus, 64);
        vm.spec.cmdline = format!("cpus={cpus} {options}");
        let ram = File::from(vm.fds[1].try_clone().unwrap());
        let peer = worker.connect();
        vm.start_on(&peer).unwrap();
        vm.wait_for("counter up");
        Self { worker, peer, vm, ram, cpus: counting }
    }

    fn counters(&self) -> Vec<u32> {
        let read = |cpu| {
            let mut word = [0; 4];
            self.ram.read_exact_at(&mut word, COUNTERS + 64 * cpu).unwrap();
            u32::from_le_bytes(word)
        };
        (0..self.cpus).map(read).collect()
    }

    /// Waits until every vCPU has counted on; says how many requests the worker answered meanwhile.
    fn wait_until_all_move(&self) -> usize {
        let (before, deadline) = (self.counters(), Instant::now() + Duration::from_secs(60));
        for asked in 1.. {
            assert_eq!(ask(&self.peer, &Request::Status), Reply::Status(Status::Running));
            if self.counters().iter().zip(&before).all(|(now, before)| now != before) {
                return asked;
            }
            assert!(Instant::now() < deadline, "a vCPU does not run: {before:?}, then {:?}", self.counters());
        }
        unreachable!("a minute has passed")
    }

    fn pause(&self) {
        assert_eq!(ask(&self.peer, &Request::Pause), Reply::Done);
    }

    fn resume(&self) {
        assert_eq!(ask(&self.peer, &Request::Resume), Reply::Done);
    }

    /// Nothing is counted while the worker answers so many requests.
    fn stands_still(&self, requests: usize) {
        let before = self.counters();
        for _ in 0..requests {
            assert_eq!(ask(&self.peer, &Request::Status), Reply::Status(Status::Paused));
        }
        assert_eq!(self.counters(), before, "a paused vCPU has run");
    }
}

/// Pauses and resumes a few times, with stretches that are long for this guest.
fn pauses_and_goes_on(vm: &Counting) {
    for _ in 0..5 {
        let long = 20 * vm.wait_until_all_move().max(50);
        vm.pause();
        vm.stands_still(long);
        vm.resume();
    }
    vm.wait_until_all_move();
}

#[test]
fn a_paused_vm_runs_no_instruction() {
    pauses_and_goes_on(&Counting::start(1, 1, ""));
}

#[test]
fn a_pause_is_one_of_all_vcpus() {
    pauses_and_goes_on(&Counting::start(4, 4, ""));
}

#[test]
fn a_guest_that_exits_all_the_time_can_be_paused() {
    pauses_and_goes_on(&Counting::start(3, 3, "exits=1"));
}

#[test]
fn a_guest_that_sleeps_between_interrupts_can_be_paused() {
    pauses_and_goes_on(&Counting::start(1, 1, "sleep=1"));
}

#[test]
fn vcpus_that_were_never_started_can_be_paused() {
    // The others wait for their start-up interrupt, inside KVM_RUN.
    let worker = Worker::start();
    let vm = Vm::with(button(), 4, 64);
    let peer = worker.connect();
    vm.start_on(&peer).unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&peer, &Request::Pause), Reply::Done);
        assert_eq!(ask(&peer, &Request::Status), Reply::Status(Status::Paused));
        assert_eq!(ask(&peer, &Request::Resume), Reply::Done);
    }
    assert_eq!(ask(&peer, &Request::PowerButton), Reply::Done);
    assert_eq!(worker.end(), Ended::with_status(exit::SHUTDOWN));
}

/// Each pause meets the vCPUs somewhere else: in the guest, in an exit, on their way from one pause to the next.
#[test]
fn no_moment_is_a_wrong_one_for_a_pause() {
    for options in ["", "exits=1"] {
        let vm = Counting::start(4, 4, options);
        for round in 0..400 {
            vm.pause();
            let before = vm.counters();
            if round % 3 > 0 {
                vm.stands_still(round % 7);
            }
            assert_eq!(vm.counters(), before, "round {round}");
            vm.resume();
        }
        vm.wait_until_all_move();
    }
}

#[test]
fn a_pause_or_resume_that_is_done_already_is_done() {
    let vm = Counting::start(2, 2, "");
    vm.resume();
    vm.wait_until_all_move();
    vm.pause();
    vm.pause();
    vm.stands_still(500);
    vm.resume();
    vm.resume();
    vm.wait_until_all_move();
}

#[test]
fn a_vm_that_is_paused_as_it_begins_begins_later() {
    for _ in 0..20 {
        let worker = Worker::start();
        let vm = Vm::with(guest("counter"), 2, 64);
        let peer = worker.connect();
        vm.start_on(&peer).unwrap();
        assert_eq!(ask(&peer, &Request::Pause), Reply::Done);
        let so_far = vm.console();
        for _ in 0..50 {
            assert_eq!(ask(&peer, &Request::Status), Reply::Status(Status::Paused));
        }
        assert_eq!(vm.console(), so_far);
        assert_eq!(ask(&peer, &Request::Resume), Reply::Done);
        vm.wait_for("counter up");
    }
}

#[test]
fn a_power_button_pressed_in_a_pause_waits_for_its_end() {
    let worker = Worker::start();
    let vm = Vm::new(guest("power"));
    let peer = worker.connect();
    vm.start_on(&peer).unwrap();
    vm.wait_for("power up\n");
    assert_eq!(ask(&peer, &Request::Pause), Reply::Done);
    assert_eq!(ask(&peer, &Request::PowerButton), Reply::Done);
    for _ in 0..500 {
        assert_eq!(ask(&peer, &Request::Status), Reply::Status(Status::Paused));
    }
    assert_eq!(vm.console(), "power up\n");
    // The guest may be gone before its answer is read.
    peer.send(&Request::Resume, &[]).unwrap();
    assert_eq!(worker.end(), Ended::with_status(exit::SHUTDOWN));
    assert!(vm.console().contains("power button after 1 interrupts"), "{}", vm.console());
}

#[test]
fn a_paused_vm_waits_for_its_next_supervisor() {
    let mut vm = Counting::start(2, 2, "");
    vm.pause();
    // The jailer goes as well: nobody holds the other end of the report pipe.
    vm.worker.close_report();
    // One peer at a time: the next is served when the first has hung up.
    vm.peer = Peer::new(vm.worker.connect_raw());
    vm.peer.handshake(NAME, VERSION, 0).unwrap();
    vm.stands_still(500);
    vm.resume();
    vm.wait_until_all_move();
}

#[test]
fn a_worker_that_was_stopped_in_a_pause_is_still_paused() {
    let vm = Counting::start(2, 2, "exits=1");
    vm.pause();
    for signal in [libc::SIGSTOP, libc::SIGCONT] {
        // SAFETY: a signal to a child that was not reaped; no pointer.
        assert_eq!(unsafe { libc::kill(vm.worker.pid() as i32, signal) }, 0);
    }
    vm.stands_still(500);
    vm.resume();
    vm.wait_until_all_move();
}

/// As in its jail: the kernel keeps signals from the first process of a pid namespace that it has no handler for.
#[test]
fn a_worker_that_is_pid_1_can_be_paused() {
    drop(guest("counter"));
    // The next process that this thread starts, which is the worker, is the first in a new namespace.
    // SAFETY: no pointer; it concerns this thread's children only.
    if unsafe { libc::unshare(libc::CLONE_NEWPID) } != 0 {
        println!("SKIPPED a_worker_that_is_pid_1_can_be_paused: {}", std::io::Error::last_os_error());
        return;
    }
    let vm = Counting::start(2, 2, "");
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.worker.pid())).unwrap();
    assert!(status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")), "{status}");
    pauses_and_goes_on(&vm);
}

#[test]
fn a_paused_vm_can_be_killed() {
    let mut vm = Counting::start(2, 2, "");
    vm.pause();
    vm.worker.child.kill().unwrap();
    let ended = vm.worker.end();
    assert_eq!((ended.status, ended.signal), (None, Some(libc::SIGKILL)));
    drop(vm.vm);
}
