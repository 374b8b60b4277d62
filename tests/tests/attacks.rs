//! Attacks on the supervisor and the jailer that are resisted: by a worker that is somebody else's by now, by clients
//! that send anything, by another user of the host.
//!
//! This program is also the hostile worker: started in a worker's place (argv[0] tells) it does to its supervisor what
//! the VM's command line names, with the jail around it but without its own filters, so with more than a real one has.

use ipc::Channel;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::json;
use std::io::Write;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use vmsup_tests::host::{Host, guest_file};
use vmsup_tests::{Scratch, eventually, user};
use worker_api::{NAME, Offer, Reply, Request, Timings, VERSION, console};

/// The hostile worker comes before the test harness, which would take the jail for a place to run tests in.
// SAFETY: a function of the C ABI without arguments is what the C runtime calls here, after its own constructors.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

extern "C" fn before_main() {
    if std::env::args_os().next().is_some_and(|name| name == "vmsup-worker") {
        hostile_worker();
    }
}

/// What the hostile worker does, by its VM's command line.
fn hostile_worker() -> ! {
    // SAFETY: the jailer placed the control socket there, and nothing else of this program owns it.
    let listener = unsafe { OwnedFd::from_raw_fd(3) };
    rustix::net::listen(&listener, 1).unwrap();
    eprintln!("ready");
    let channel: Channel<Reply, Request> = Channel::new(rustix::net::accept(&listener).unwrap());
    channel.greet(NAME, VERSION, 0).unwrap();
    channel.meet(NAME, VERSION, 0).unwrap();
    let mut first = channel.receive().unwrap();
    if first.0 == Request::Offer {
        channel.send(&Reply::Offer(Offer::default()), &[]).unwrap();
        first = channel.receive().unwrap();
    }
    let (Request::Start(spec), fds) = first else { std::process::exit(99) };
    let [_kvm, _ram, ring, notify, input, ..] = &fds[..] else { std::process::exit(98) };
    let started = || channel.send(&Reply::Started(Timings::default()), &[]).unwrap();
    match spec.cmdline.as_str() {
        "fds" => send_with(&channel, &[0], &vec![channel.as_fd(); 200]),
        "undeclared-fds" => send_with(&channel, &started_frame(), &[channel.as_fd(), ring.as_fd()]),
        "garbage" => send_with(&channel, &[0xfb; 3000], &[]),
        "huge" => send_with(&channel, &[0; 60_000], &[]),
        "empty" => send_with(&channel, &[], &[]),
        "another-answer" => channel.send(&Reply::Done, &[]).unwrap(),
        "words" => {
            started();
            std::io::stderr().write_all(b"\x1b[2J\xff\xfe\xe2\x80\xaegood\nsecond\n").unwrap();
            std::process::exit(77);
        }
        "lies" => {
            started();
            claim(ring, u64::MAX);
        }
        "backwards" => {
            started();
            claim(ring, 100);
            rustix::io::write(notify, &1u64.to_le_bytes()).unwrap();
            claim(ring, 3);
        }
        "no-input" => {
            started();
            drop(fds);
        }
        "noise" => {
            started();
            rustix::io::ioctl_fionbio(&channel, true).unwrap();
            while channel.send(&Reply::Done, &[]).is_ok() {}
            for written in (0u64..).step_by(99_991) {
                claim(ring, written);
                let _ = rustix::io::write(notify, &u64::from(u32::MAX).to_le_bytes());
                let _ = rustix::io::read(input, &mut [0; 4096][..]);
            }
        }
        _ => started(),
    }
    // Now it ignores whatever it is asked.
    loop {
        std::thread::park();
    }
}

/// Says in the ring that so many bytes were written: through a mapping, as write(2) is closed to a worker without a
/// writable disk.
fn claim(ring: &OwnedFd, written: u64) {
    use std::sync::atomic::{AtomicPtr, Ordering};
    static MAPPING: AtomicPtr<u64> = AtomicPtr::new(std::ptr::null_mut());
    let mut page = MAPPING.load(Ordering::Relaxed);
    if page.is_null() {
        let (rights, fd) = (libc::PROT_READ | libc::PROT_WRITE, std::os::fd::AsRawFd::as_raw_fd(ring));
        // SAFETY: a new mapping of the ring's first page, at a place of the kernel's choice.
        page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, rights, libc::MAP_SHARED, fd, 0) }.cast();
        assert!(!page.is_null() && page.cast() != libc::MAP_FAILED);
        MAPPING.store(page, Ordering::Relaxed);
    }
    let counter = page.wrapping_byte_add(console::WRITTEN as usize);
    // SAFETY: the page was mapped above, writable, and is never unmapped; the counter stands at its start.
    unsafe { counter.write_volatile(written.to_le()) };
}

fn started_frame() -> Vec<u8> {
    ipc::codec::encode(&Reply::Started(Timings::default()), 1000).unwrap()
}

/// Past the typed end.
fn send_with(channel: &Channel<Reply, Request>, bytes: &[u8], fds: &[std::os::fd::BorrowedFd<'_>]) {
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(250))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let bytes = [rustix::io::IoSlice::new(bytes)];
    rustix::net::sendmsg(channel, &bytes, &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// A host whose workers are all this program.
fn hostile_host() -> (Host, Scratch) {
    let user = user::with_subuids();
    let folder = Scratch::new(&user);
    let program = folder.path().join("vmsup-worker");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let host = Host::start(&user, &["--pool", "1", "--worker", program.to_str().unwrap()]);
    (host, folder)
}

#[test]
fn a_worker_that_answers_nonsense_is_killed_and_leaves_nothing() {
    let (host, _folder) = hostile_host();
    eventually("a warm worker", || host.workers().len() == 1);
    let fds = host.fds();
    host.vmsup(&["start", &host.guest("bystander", "deaf", "quiet")]).ok();
    for attack in ["fds", "undeclared-fds", "garbage", "huge", "empty", "another-answer"] {
        let ran = host.vmsup(&["start", &host.guest("evil", "deaf", attack)]);
        let sentence = ran.sentence(1);
        assert!(sentence.contains("worker") || sentence.contains("guest never ran"), "{attack}: {sentence}");
        assert_eq!((host.state("evil").as_str(), host.state("bystander").as_str()), ("", "running"), "{attack}");
    }
    host.vmsup(&["kill", "bystander"]).ok();
    host.remove(&["bystander"]);
    host.nothing_left(1, fds);
}

#[test]
fn a_worker_that_lies_and_floods_costs_its_own_vm_only() {
    let (host, _folder) = hostile_host();
    eventually("a warm worker", || host.workers().len() == 1);
    let fds = host.fds();
    let names = ["lies", "backwards", "no-input", "noise"];
    for attack in names {
        host.vmsup(&["start", &host.guest(attack, "deaf", attack)]).ok();
    }
    // Somebody reads and writes each console all the while.
    let attach = |name: &&str| {
        let mut child = host.command(&["console", name]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&[b'x'; 30_000]).unwrap();
        child
    };
    let readers: Vec<_> = names.iter().map(attach).collect();
    for attack in names {
        assert!(host.command(&["logs", attack]).output().unwrap().stdout.len() <= 256 << 10, "{attack}");
        host.inspect(attack);
        // The power button is pressed in vain.
        host.vmsup(&["stop", "--timeout", "0", attack]).ok();
        assert_eq!(host.inspect(attack)["end"]["kind"], "killed", "{attack}");
    }
    for mut reader in readers {
        reader.wait().unwrap();
    }
    host.remove(&names);
    host.nothing_left(1, fds);
}

#[test]
fn last_words_of_a_hostile_worker_are_one_harmless_line() {
    let (host, _folder) = hostile_host();
    host.vmsup(&["start", &host.guest("words", "deaf", "words")]).ok();
    eventually("its end", || host.state("words") == "crashed");
    let reason = host.inspect("words")["end"]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("status 77") && reason.contains("good") && !reason.contains("second"), "{reason}");
    assert!(!reason.chars().any(|c| c.is_control() || c == '\u{202e}'), "{reason}");
    assert!(!host.log().contains('\x1b'), "{}", host.log());
}

#[test]
fn a_client_that_sends_garbage_is_refused_and_costs_nothing() {
    let host = Host::start(&user::with_subuids(), &["--pool", "0"]);
    let fds = host.fds();
    let post = |body: &[u8]| {
        let head =
            format!("POST /v1/vms HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    };
    let spec = |name: &str, path: &str| {
        json!({ "spec": { "name": name, "cpus": 1, "memory_mib": 32, "boot": { "kernel": path } } }).to_string()
    };
    let good = guest_file("deaf");
    let folder = host.folder().display().to_string();
    let mut requests = vec![
        post(&vec![b'['; 200_000]),
        post(&vec![b' '; 300_000]),
        post(b"{\"spec\":\xff\xfe}"),
        post(b"null"),
        post(spec("a/../b", &good).as_bytes()),
        post(spec("-x", &good).as_bytes()),
        post(spec("a\n\u{1b}[2J", &good).as_bytes()),
        post(spec("", &good).as_bytes()),
        b"POST /v1/vms HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n".to_vec(),
        b"POST /v1/vms HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\nffffffffffffffff\r\n".to_vec(),
        b"GET /v1/vms/%00%ff/console?history=maybe HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
        b"GET /v1/vms/%2e%2e%2flock HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        [b"GET /".as_slice(), &vec![b'a'; 100_000], b" HTTP/1.1\r\n\r\n"].concat(),
        [b"GET / HTTP/1.1\r\n".as_slice(), &b"x: y\r\n".repeat(5000), b"\r\n"].concat(),
    ];
    for path in [
        "/proc/self/mem",
        "/proc/self/environ",
        "/proc/self/fd/0",
        "/proc/self/exe/x",
        "/dev/kvm",
        "/dev/zero",
        "/sys/kernel/notes",
        "relative",
        "",
        "/",
        "/etc/shadow",
        "/nul\0l",
    ] {
        requests.push(post(spec("vm", path).as_bytes()));
    }
    requests.push(post(spec("vm", &format!("{folder}/lock")).as_bytes()));
    requests.push(post(spec("vm", &format!("{folder}/api.sock")).as_bytes()));
    for request in &requests {
        let answer = host.http(request);
        let shown = String::from_utf8_lossy(&request[..request.len().min(300)]);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{shown}\n{answer}");
        assert!(!answer.contains('\x1b'), "{answer}");
    }
    assert_eq!(host.ls().len(), 0);
    host.nothing_left(0, fds);
}

#[test]
fn another_user_reaches_neither_the_api_nor_a_worker() {
    let user = user::with_subuids();
    let Some(other) = user::without_subuids() else {
        return vmsup_tests::skip("another_user_reaches_neither_the_api_nor_a_worker", "being two users needs root");
    };
    // Also where the socket stands in a directory of everybody's.
    let socket = format!("/tmp/vmsup-attacks-{}.sock", std::process::id());
    let runtime = Scratch::new(&user);
    let command = |who: &user::User, args: &[&str]| {
        let mut command = who.command(vmsup_tests::program("vmsup"));
        command.args(args).env("XDG_RUNTIME_DIR", runtime.path()).stdin(Stdio::null());
        command
    };
    let mut serve =
        command(&user, &["serve", "--pool", "1", "--socket", &socket]).stderr(Stdio::null()).spawn().unwrap();
    eventually("its socket", || UnixStream::connect(&socket).is_ok());
    assert!(command(&user, &["--socket", &socket, "ls"]).output().unwrap().status.success());
    let stranger = command(&other, &["--socket", &socket, "ls"]).output().unwrap();
    assert!(!stranger.status.success());
    assert!(String::from_utf8_lossy(&stranger.stderr).contains("no permission"), "{stranger:?}");
    let workers = runtime.path().join("vmsup/workers");
    assert!(!other.command("ls").arg(&workers).stderr(Stdio::null()).status().unwrap().success());
    let pid = rustix::process::Pid::from_child(&serve);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(serve.wait().unwrap().success());
    assert!(!std::path::Path::new(&socket).exists());
}
