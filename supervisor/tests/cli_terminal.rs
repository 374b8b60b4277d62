//! `run`, `console` and `logs` on a terminal: keys, raw mode and back, and what a guest may not do to it.

mod support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use support::guest::Guest;
use support::{Answer, Fake};

fn read_exactly(stream: &mut impl Read, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(expected));
}

/// As terminals are.
const SIZE: nix::pty::Winsize = nix::pty::Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };

/// `vmsup` with a terminal: our end of it, and the other, which tells its modes.
struct Terminal {
    ours: std::fs::File,
    theirs: std::os::fd::OwnedFd,
    child: Child,
}

impl Terminal {
    fn start(guest: &Guest, args: &[&str]) -> Terminal {
        let pty = nix::pty::openpty(&SIZE, None).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let place = guest.fake.place.path();
        // util-linux's setsid makes the terminal the controlling one.
        let mut command = Command::new("setsid");
        command.args(["--ctty", env!("CARGO_BIN_EXE_vmsup")]).args(args).current_dir(place);
        command.env("XDG_RUNTIME_DIR", place.join("run")).stdin(end()).stdout(end()).stderr(end());
        let child = command.spawn().unwrap();
        Terminal { ours: pty.master.into(), theirs: pty.slave, child }
    }

    fn is_raw(&self) -> bool {
        let modes = rustix::termios::tcgetattr(&self.theirs).unwrap();
        !modes.local_modes.intersects(rustix::termios::LocalModes::ICANON | rustix::termios::LocalModes::ISIG)
    }

    /// Reads until `text` was shown; all that was shown. Fails where the program ended without.
    fn until(&mut self, text: &str) -> String {
        let mut shown = Vec::new();
        while !String::from_utf8_lossy(&shown).contains(text) {
            let pause = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            let ended = self.child.try_wait().unwrap().is_some();
            if poll(&mut [PollFd::new(&self.ours, PollFlags::IN)], Some(&pause)).unwrap() == 0 {
                assert!(!ended, "{text:?} was not shown, but {:?}", String::from_utf8_lossy(&shown));
                continue;
            }
            let mut piece = [0; 256];
            let count = self.ours.read(&mut piece).unwrap();
            shown.extend_from_slice(&piece[..count]);
        }
        String::from_utf8_lossy(&shown).into_owned()
    }
}

#[test]
fn on_a_terminal_every_key_is_the_guests_but_those_after_ctrl_a() {
    let guest = Guest::new();
    let mut terminal = Terminal::start(&guest, &["console", "hello"]);
    let mut console = guest.console();
    terminal.until("Ctrl-a d leaves the console");
    console.write_all(b"\x1b[1mlogin: ").unwrap();
    terminal.until("\x1b[1mlogin: ");
    assert!(terminal.is_raw());
    terminal.ours.write_all(b"root\r\x03\x1a\x04\x01a").unwrap();
    read_exactly(&mut console, b"root\r\x03\x1a\x04\x01");
    terminal.ours.write_all(b"\x01d").unwrap();
    terminal.until("left the console of hello, which goes on");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
    assert!(!terminal.is_raw(), "the terminal is as it was");
    assert_eq!(guest.fake.asked().len(), 1, "{:?}", guest.fake.asked());
}

#[test]
fn on_a_terminal_a_run_is_stopped_and_killed_by_keys() {
    let guest = Guest::new();
    let mut terminal = Terminal::start(&guest, &["run", "vm.json"]);
    let mut console = guest.console();
    console.write_all(b"booted").unwrap();
    terminal.until("booted");
    terminal.ours.write_all(b"\x03").unwrap();
    read_exactly(&mut console, b"\x03");
    terminal.ours.write_all(b"\x01x").unwrap();
    guest.wait_for("POST /v1/vms/77aa/stop");
    terminal.ours.write_all(b"\x01x").unwrap();
    guest.wait_for("POST /v1/vms/77aa/kill");
    guest.ends(("killed", "killed"), console);
    let shown = terminal.until("killing hello\r\n");
    assert!(shown.contains("a second interrupt\r\n"), "{shown:?}");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(130));
    assert!(!terminal.is_raw());
}

#[test]
fn a_terminal_is_as_it_was_after_a_signal_and_after_the_vms_end() {
    let guest = Guest::new();
    let mut terminal = Terminal::start(&guest, &["console", "hello"]);
    let mut console = guest.console();
    console.write_all(b"booted").unwrap();
    terminal.until("booted");
    assert!(terminal.is_raw());
    kill(Pid::from_raw(terminal.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(terminal.child.wait().unwrap().code(), Some(143));
    assert!(!terminal.is_raw());

    let mut terminal = Terminal::start(&guest, &["console", "hello"]);
    let console = guest.console();
    guest.ends(("shutdown", "off"), console);
    terminal.until("left the console of hello, which has ended");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
    assert!(!terminal.is_raw());
}

#[test]
fn what_a_guest_wrote_cannot_command_the_terminal_that_shows_its_log() {
    let evil = b"\x1b]0;title\x07red\x1b[6n\x9b6n\rgreen\x05\n".to_vec();
    let sent = evil.clone();
    let fake = Fake::new(move |asked| match asked.what.contains("/console") {
        true => {
            let sent = sent.clone();
            Answer::Console(Box::new(move |mut s| s.write_all(&sent).unwrap()))
        }
        false => Answer::Bytes("", sent.clone()),
    });
    let guest = Guest { fake, consoles: channel().1, end: Arc::default() };
    for args in [["logs", "a"].as_slice(), &["logs", "-f", "a"]] {
        let mut terminal = Terminal::start(&guest, args);
        let shown = terminal.until("^E");
        assert!(shown.starts_with("red\u{fffd}6n\r\ngreen^E"), "{args:?}: {shown:?}");
        assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
    }
    let mut terminal = Terminal::start(&guest, &["logs", "--raw", "a"]);
    assert!(terminal.until("\x05").contains("\x1b]0;title\x07red"));
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
}

/// A supervisor with one VM, to which something happened.
fn watched() -> Fake {
    Fake::new(|asked| match asked.what.split([' ', '?']).nth(1).unwrap() {
        "/v1/vms" => Answer::Json(200, serde_json::json!([support::vm("web", None)])),
        "/v1/stats" => Answer::Json(200, serde_json::json!([])),
        "/v1/events" => Answer::Lines(
            "{\"cursor\":1,\"at_ms\":0,\"kind\":\"started\",\"vm\":\"web\",\"cause\":\"its vCPUs run\"}\n",
        ),
        _ => Answer::HangUp,
    })
}

#[test]
fn top_shows_vms_and_gives_the_terminal_back_however_it_is_left() {
    type Leave = fn(&mut Terminal);
    let leave: [(Leave, i32); 3] = [
        (|terminal| terminal.ours.write_all(b"q").unwrap(), 0),
        (|terminal| terminal.ours.write_all(b"\x03").unwrap(), 130),
        (|terminal| kill(Pid::from_raw(terminal.child.id().cast_signed()), Signal::SIGTERM).unwrap(), 143),
    ];
    for (leave, status) in leave {
        let fake = watched();
        let guest = Guest { fake, consoles: channel().1, end: Arc::default() };
        let mut terminal = Terminal::start(&guest, &["top"]);
        let shown = terminal.until("web");
        assert!(shown.contains("\x1b[?1049h"), "a screen of its own: {shown:?}");
        assert!(terminal.is_raw());
        leave(&mut terminal);
        terminal.until("\x1b[?1049l");
        assert_eq!(terminal.child.wait().unwrap().code(), Some(status));
        assert!(!terminal.is_raw(), "the terminal is as it was");
    }
}

#[test]
fn top_needs_a_terminal_unless_one_frame_is_enough() {
    let fake = watched();
    assert!(fake.place.run(&["top"]).is_one_sentence(2).contains("vmsup top --once"));
    let done = fake.place.run(&["top", "--once"]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    assert!(done.stdout.lines().nth(2).unwrap().starts_with("web       running"), "{done:?}");
    assert!(done.stdout.contains("\n00:00:00 web started: its vCPUs run\n"), "{done:?}");
    assert!(!done.stdout.contains('\x1b'), "{done:?}");
}
