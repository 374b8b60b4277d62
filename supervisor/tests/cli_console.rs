//! `run`, `console` and `logs --follow` through pipes: bytes both ways, ends, interrupts.

mod support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use support::Done;
use support::guest::Guest;

fn done(child: Child) -> Done {
    child.wait_with_output().unwrap().into()
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

fn read_exactly(stream: &mut impl Read, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(expected));
}

#[test]
fn run_shows_the_console_and_ends_well_with_a_reset_or_shutdown() {
    for kind in ["reset", "shutdown"] {
        let guest = Guest::new();
        let child = guest.spawn(&["run", "--rm", "vm.json"]);
        let mut console = guest.console();
        console.write_all(b"\x1b[0mHELLO\x00\xff\n").unwrap();
        guest.ends((kind, "over"), console);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(
            (output.stdout.as_slice(), output.stderr.as_slice()),
            (b"\x1b[0mHELLO\x00\xff\n".as_slice(), &[][..])
        );
        assert_eq!(guest.fake.body("POST /v1/vms")["remove_when_ended"], true);
        let asked = guest.fake.asked();
        assert_eq!(asked[1], "GET /v1/vms/77aa/console?history=true&input=false", "no input from /dev/null");
    }
}

#[test]
fn run_says_the_reason_of_a_bad_end() {
    for kind in ["guest_crashed", "worker_crashed", "start_failed", "killed", "unknown"] {
        let guest = Guest::new();
        let child = guest.spawn(&["run", "vm.json"]);
        let console = guest.console();
        guest.ends((kind, "a triple fault\x1b[2J"), console);
        assert_eq!(done(child).is_one_sentence(1), "hello: a triple fault\\u{1b}[2J", "{kind}");
    }
}

#[test]
fn a_mebibyte_of_output_arrives_whole() {
    let guest = Guest::new();
    let child = guest.spawn(&["run", "vm.json"]);
    let mut console = guest.console();
    let bytes: Vec<u8> = (0..1u32 << 20).map(|n| (n / 7) as u8).collect();
    let written = bytes.clone();
    let writer = std::thread::spawn(move || {
        console.write_all(&written).unwrap();
        guest.ends(("shutdown", "off"), console);
        guest
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());
}

#[test]
fn an_interrupt_presses_the_power_button_and_says_so() {
    let guest = Guest::new();
    let child = guest.spawn(&["run", "vm.json"]);
    let console = guest.console();
    signal(&child, Signal::SIGINT);
    guest.wait_for("POST /v1/vms/77aa/stop");
    guest.ends(("shutdown", "off"), console);
    let done = done(child);
    assert!(done.is_one_sentence(130).starts_with("stopping hello: its power button is pressed"), "{done:?}");
    assert_eq!(guest.fake.body("POST /v1/vms/77aa/stop"), json!({ "deadline_s": 5 }));
    assert!(!guest.fake.asked().iter().any(|a| a.ends_with("/kill")));
}

#[test]
fn a_second_interrupt_kills() {
    let guest = Guest::new();
    let child = guest.spawn(&["run", "vm.json"]);
    let console = guest.console();
    signal(&child, Signal::SIGINT);
    guest.wait_for("POST /v1/vms/77aa/stop");
    signal(&child, Signal::SIGTERM);
    guest.wait_for("POST /v1/vms/77aa/kill");
    guest.ends(("killed", "killed"), console);
    let done = done(child);
    assert_eq!(done.status, 130, "the first one counts: {done:?}");
    assert!(done.stderr.ends_with("vmsup: killing hello\n"), "{done:?}");
}

#[test]
fn a_termination_or_a_hang_up_stops_a_run_as_well() {
    for (number, status) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129), (Signal::SIGQUIT, 131)] {
        let guest = Guest::new();
        let child = guest.spawn(&["run", "vm.json"]);
        let console = guest.console();
        signal(&child, number);
        guest.wait_for("POST /v1/vms/77aa/stop");
        guest.ends(("shutdown", "off"), console);
        assert_eq!(done(child).status, status);
    }
}

#[test]
fn a_signal_that_was_to_be_ignored_is_ignored() {
    let guest = Guest::new();
    // A background job of a script is started with SIGINT ignored, nohup ignores SIGHUP.
    let mut shell = Command::new("sh");
    let program = env!("CARGO_BIN_EXE_vmsup");
    shell.args(["-c", &format!("trap '' INT HUP; exec {program} run vm.json")]);
    shell.current_dir(guest.fake.place.path()).env("XDG_RUNTIME_DIR", guest.fake.place.path().join("run"));
    let child = shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let console = guest.console();
    signal(&child, Signal::SIGINT);
    signal(&child, Signal::SIGHUP);
    signal(&child, Signal::SIGTERM);
    guest.wait_for("POST /v1/vms/77aa/stop");
    guest.ends(("shutdown", "off"), console);
    let done = done(child);
    assert_eq!(done.status, 143, "{done:?}");
    assert!(!done.stderr.contains("killing"), "only SIGTERM counts: {done:?}");
}

#[test]
fn an_interrupt_is_heard_while_nobody_reads_the_output() {
    let guest = Guest::new();
    let mut child = guest.spawn(&["run", "vm.json"]);
    let mut console = guest.console();
    // More than all buffers between here and the reader that never reads.
    console.set_nonblocking(true).unwrap();
    let mut full = 0;
    while full < 1000 {
        match console.write(&[b'x'; 4096]) {
            Ok(_) => full = 0,
            Err(_) => full += 1,
        }
        std::thread::yield_now();
    }
    signal(&child, Signal::SIGINT);
    guest.wait_for("POST /v1/vms/77aa/stop");
    guest.ends(("shutdown", "off"), console);
    let mut out = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
    assert!(!out.is_empty() && out.iter().all(|b| *b == b'x'));
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_run_whose_output_is_closed_stops_its_vm_quietly() {
    let guest = Guest::new();
    let mut child = guest.spawn(&["run", "vm.json"]);
    drop(child.stdout.take());
    let mut console = guest.console();
    console.write_all(b"anybody there?\n").unwrap();
    guest.wait_for("POST /v1/vms/77aa/stop");
    guest.ends(("shutdown", "off"), console);
    let done = done(child);
    assert_eq!((done.status, done.stderr.as_str()), (141, ""));
}

#[test]
fn a_supervisor_that_dies_in_a_run_is_one_sentence() {
    let guest = Guest::new();
    let child = guest.spawn(&["run", "vm.json"]);
    let console = guest.console();
    std::fs::remove_file(guest.fake.place.path().join("run/vmsup/api.sock")).unwrap();
    drop(console);
    assert!(done(child).is_one_sentence(1).starts_with("the supervisor went away"));
}

#[test]
fn the_console_takes_stdin_and_goes_on_after_its_end() {
    let guest = Guest::new();
    let mut child = guest.fake.place.vmsup(&["console", "hello"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut console = guest.console();
    child.stdin.take().unwrap().write_all(b"ls\x01d\n").unwrap();
    // Without a terminal there are no keys: every byte is the guest's.
    read_exactly(&mut console, b"ls\x01d\n");
    // Each round trip goes through the loop that sees the end of stdin; the first may still be before it.
    for _ in 0..3 {
        console.write_all(b"the answer comes later\n").unwrap();
        read_exactly(child.stdout.as_mut().unwrap(), b"the answer comes later\n");
    }
    assert_eq!(child.try_wait().unwrap(), None, "the end of stdin is not the end");
    guest.ends(("shutdown", "off"), console);
    assert_eq!(done(child).status, 0);
    assert_eq!(guest.fake.asked(), ["GET /v1/vms/hello/console?history=true&input=true"]);
}

#[test]
fn the_console_leaves_at_the_end_of_stdin_if_told_to() {
    let guest = Guest::new();
    let args = ["console", "--detach-on-eof", "--no-history", "hello"];
    let mut child = guest.fake.place.vmsup(&args).stdin(Stdio::piped()).spawn().unwrap();
    let mut console = guest.console();
    child.stdin.take().unwrap().write_all(b"reboot\n").unwrap();
    let done = done(child);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""));
    let mut all = String::new();
    console.read_to_string(&mut all).unwrap();
    assert_eq!(all, "reboot\n");
    assert_eq!(guest.fake.asked(), ["GET /v1/vms/hello/console?history=false&input=true"]);
}

#[test]
fn a_signal_leaves_the_console_and_the_vm_alone() {
    for args in [["console", "hello"].as_slice(), &["logs", "-f", "hello"]] {
        let guest = Guest::new();
        let child = guest.spawn(args);
        let _console = guest.console();
        signal(&child, Signal::SIGINT);
        let done = done(child);
        assert_eq!((done.status, done.stderr.as_str()), (130, ""), "{args:?}");
        assert_eq!(guest.fake.asked().len(), 1, "{args:?}: {:?}", guest.fake.asked());
    }
}

#[test]
fn a_closed_output_ends_the_console_quietly() {
    let guest = Guest::new();
    let mut child = guest.spawn(&["console", "hello"]);
    let _console = guest.console();
    drop(child.stdout.take());
    let done = done(child);
    assert_eq!((done.status, done.stderr.as_str()), (141, ""));
}
