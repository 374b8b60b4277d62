//! The control socket: who may say what, and what becomes of a peer that says something else.

mod common;

use common::{Console, Ended, Peer, Vm, Worker, ask, button, guest, hello, kvm, offer};
use rustix::net::SendFlags;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use worker_api::{CPUID_MAX, NAME, Offer, Part, Reply, Request, Status, VERSION, exit};

fn is_closed(peer: &Peer) -> bool {
    matches!(peer.receive(), Err(ipc::Error::Closed | ipc::Error::Io(_)))
}

/// A VM that runs until it is told to end.
fn running() -> (Worker, Vm, Peer) {
    let worker = Worker::start();
    let vm = Vm::new(button());
    let peer = worker.connect();
    vm.start_on(&peer).unwrap();
    vm.wait_for("button up");
    (worker, vm, peer)
}

#[test]
fn the_power_button_reaches_the_guest() {
    let (worker, vm, peer) = running();
    assert_eq!(ask(&peer, &Request::PowerButton), Reply::Done);
    assert_eq!(worker.end(), Ended::with_status(exit::SHUTDOWN));
    assert!(vm.console().contains("button pressed"), "{}", vm.console());
}

#[test]
fn a_supervisor_that_comes_back_is_served() {
    let (worker, _vm, peer) = running();
    drop(peer);
    for _ in 0..3 {
        assert_eq!(ask(&worker.connect(), &Request::Status), Reply::Status(Status::Running));
    }
    assert_eq!(ask(&worker.connect(), &Request::PowerButton), Reply::Done);
    assert_eq!(worker.end(), Ended::with_status(exit::SHUTDOWN));
}

#[test]
fn an_empty_worker_survives_a_peer_that_hangs_up() {
    let worker = Worker::start();
    drop(worker.connect_raw());
    drop(worker.connect());
    assert_eq!(ask(&worker.connect(), &Request::Status), Reply::Status(Status::Empty));
    Vm::new(hello()).start_on(&worker.connect()).unwrap();
    assert_eq!(worker.end(), Ended::with_status(exit::RESET));
}

#[test]
fn a_worker_is_one_vm_once() {
    let (worker, _vm, peer) = running();
    let other = Vm::new(hello());
    let fds: Vec<_> = other.fds.iter().map(std::os::fd::AsFd::as_fd).collect();
    peer.send(&Request::Start(other.spec.clone()), &fds).unwrap();
    assert!(is_closed(&peer));
    assert_eq!(ask(&worker.connect(), &Request::Status), Reply::Status(Status::Running));
}

#[test]
fn what_an_empty_worker_says_of_kvm_starts_it_and_others() {
    let (asked, other) = (Worker::start(), Worker::start());
    let peer = asked.connect();
    let offer = offer(&peer);
    assert!(offer.cpuid.iter().any(|entry| entry[0] == 1), "{offer:?}");
    for (peer, worker) in [(other.connect(), other), (peer, asked)] {
        let mut vm = Vm::new(hello());
        vm.spec.offer = Some(offer.clone());
        vm.start_on(&peer).unwrap();
        assert_eq!(worker.end(), Ended::with_status(exit::RESET));
        assert_eq!(vm.console(), "HELLOGUEST\n");
    }
}

#[test]
fn an_offer_past_its_bound_is_refused() {
    let worker = Worker::start();
    let mut vm = Vm::new(hello());
    vm.spec.offer = Some(Offer { cpuid: vec![[0; 7]; CPUID_MAX + 1], tsc_deadline: false });
    assert_eq!(vm.start_on(&worker.connect()).unwrap_err().part, Part::Spec);
}

#[test]
fn a_worker_that_is_a_vm_is_not_asked_what_kvm_offers() {
    let (_worker, _vm, peer) = running();
    peer.send(&Request::Offer, &[kvm().as_fd()]).unwrap();
    assert!(is_closed(&peer));
}

#[test]
fn a_malformed_request_costs_its_sender_the_connection() {
    let (worker, _vm, peer) = running();
    drop(peer);
    for bytes in [&[200u8, 1, 2][..], &[0; 8193], &[0xff; 64]] {
        let peer = worker.connect();
        rustix::net::send(&peer, bytes, SendFlags::NOSIGNAL).unwrap();
        assert!(is_closed(&peer));
    }
    assert_eq!(ask(&worker.connect(), &Request::Status), Reply::Status(Status::Running));
}

#[test]
fn a_peer_of_another_release_is_refused() {
    let worker = Worker::start();
    let peer = Peer::new(worker.connect_raw());
    let error = peer.handshake(NAME, VERSION + 1, 0).unwrap_err();
    assert!(matches!(error, ipc::Error::Version { .. }), "{error}");
    assert!(is_closed(&peer));
    assert_eq!(ask(&worker.connect(), &Request::Status), Reply::Status(Status::Empty));
}

#[test]
fn a_peer_that_never_reads_its_replies_is_dropped() {
    let (worker, _vm, peer) = running();
    rustix::io::ioctl_fionbio(&peer, true).unwrap();
    let mut refused = 0;
    loop {
        match peer.send(&Request::Status, &[]) {
            Ok(()) => refused = 0,
            Err(error) if error.would_block() => {
                refused += 1;
                assert!(refused < 1_000_000, "the worker neither reads nor hangs up");
                std::thread::yield_now();
            }
            Err(_) => break,
        }
    }
    assert_eq!(ask(&worker.connect(), &Request::Status), Reply::Status(Status::Running));
}

#[test]
fn an_empty_worker_whose_jailer_is_gone_leaves() {
    let mut worker = Worker::start();
    worker.close_report();
    let status = worker.child.wait().unwrap();
    assert_eq!(status.code(), Some(exit::ORPHANED));
}

#[test]
fn a_vm_outlives_its_jailer() {
    let (mut worker, vm, peer) = running();
    worker.close_report();
    assert_eq!(ask(&peer, &Request::Status), Reply::Status(Status::Running));
    assert_eq!(ask(&peer, &Request::PowerButton), Reply::Done);
    assert_eq!(worker.end(), Ended::with_status(exit::SHUTDOWN));
    assert!(vm.console().contains("button pressed"));
}

#[test]
fn a_vm_outlives_jailer_and_supervisor_together() {
    let (mut worker, vm, peer) = running();
    worker.close_report();
    drop(peer);
    // Both are started again, and find it by its socket.
    for _ in 0..3 {
        assert_eq!(ask(&worker.connect(), &Request::Status), Reply::Status(Status::Running));
    }
    assert_eq!(ask(&worker.connect(), &Request::PowerButton), Reply::Done);
    assert_eq!(worker.end(), Ended::with_status(exit::SHUTDOWN));
    assert!(vm.console().contains("button pressed"));
}

#[test]
fn last_words_that_nobody_hears_change_nothing_about_an_end() {
    let mut worker = Worker::start();
    let mut vm = Vm::new(guest("echo"));
    vm.start_on(&worker.connect()).unwrap();
    vm.wait_for("echo up");
    worker.close_report();
    vm.ends.input.write_all(b"\x04").unwrap();
    // Neither SIGPIPE nor another status.
    let status = worker.child.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(exit::CRASH), None));
}

#[test]
fn the_console_is_handed_to_a_supervisor_that_comes_back() {
    let worker = Worker::start();
    let vm = Vm::new(guest("echo"));
    let peer = worker.connect();
    vm.start_on(&peer).unwrap();
    vm.wait_for("echo up");
    // The first supervisor goes, and all its ends with it.
    drop((vm, peer));
    for round in 0..3 {
        let peer = worker.connect();
        let mut console = Console::of(&peer);
        console.input.write_all(format!("round {round}\n").as_bytes()).unwrap();
        // With all that was said before.
        let said: String = (0..=round).map(|n| format!("round {n}\n")).collect();
        console.wait_for(&format!("echo up\n{said}"));
    }
    let mut console = Console::of(&worker.connect());
    console.input.write_all(b"q").unwrap();
    assert_eq!(worker.end(), Ended::with_status(exit::SHUTDOWN));
    assert!(console.content().ends_with("echo down\n"), "{}", console.content());
}

#[test]
fn requests_to_a_vm_that_is_not_there_are_refused() {
    let worker = Worker::start();
    for request in [Request::PowerButton, Request::Pause, Request::Resume, Request::Console, Request::Stats] {
        let peer = worker.connect();
        peer.send(&request, &[]).unwrap();
        assert!(is_closed(&peer), "{request:?}");
    }
    assert_eq!(ask(&worker.connect(), &Request::Status), Reply::Status(Status::Empty));
    Vm::new(hello()).start_on(&worker.connect()).unwrap();
    assert_eq!(worker.end(), Ended::with_status(exit::RESET));
}

#[test]
fn a_worker_that_was_stopped_goes_on() {
    let (worker, _vm, peer) = running();
    let pid = worker.pid() as i32;
    for _ in 0..5 {
        for signal in [libc::SIGSTOP, libc::SIGCONT] {
            // SAFETY: a signal to a child that was not reaped; no pointer.
            assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        }
        assert_eq!(ask(&peer, &Request::Status), Reply::Status(Status::Running));
    }
    assert_eq!(ask(&peer, &Request::PowerButton), Reply::Done);
    assert_eq!(worker.end(), Ended::with_status(exit::SHUTDOWN));
}

#[test]
fn a_worker_that_is_started_by_hand_says_what_it_is() {
    let output = Command::new(env!("CARGO_BIN_EXE_vmsup-worker")).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("vmsup-jailer") && words.lines().count() == 1, "{words}");
}
