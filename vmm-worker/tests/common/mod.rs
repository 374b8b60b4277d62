//! Plays jailer and supervisor for one worker: starts the binary as the jailer would (without the jail itself), hands it
//! a VM, and watches how it ends.
#![allow(dead_code)]

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use worker_api::{NAME, Offer, Reply, Request, StartFailure, StartSpec, Timings, VERSION, console};

pub type Peer = ipc::Channel<Request, Reply>;

/// A worker, as its jailer and its supervisor see it.
pub struct Worker {
    pub child: Child,
    pub report: BufReader<File>,
    socket: PathBuf,
}

/// How a worker ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    pub status: Option<i32>,
    pub signal: Option<i32>,
    /// All lines of the report pipe after `ready`.
    pub words: String,
}

impl Ended {
    pub fn with_status(status: i32) -> Self {
        Ended { status: Some(status), signal: None, words: String::new() }
    }
}

/// `/dev/kvm`, as a supervisor opens it.
pub fn kvm() -> File {
    File::options().read(true).write(true).open("/dev/kvm").expect("/dev/kvm is needed for these tests")
}

/// What a worker that is still empty says that KVM offers.
pub fn offer(peer: &Peer) -> Offer {
    peer.send(&Request::Offer, &[kvm().as_fd()]).unwrap();
    let Reply::Offer(offer) = peer.receive().expect("an offer").0 else { panic!("an offer") };
    offer
}

/// A request without fds, and its reply.
pub fn ask(peer: &Peer, request: &Request) -> Reply {
    peer.send(request, &[]).unwrap();
    peer.receive().expect("a reply").0
}

fn seqpacket() -> OwnedFd {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

/// Runs in the child, before exec: system calls only.
fn become_worker(socket: i32) -> std::io::Result<()> {
    // No worker outlives its test.
    // SAFETY: no pointer.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // Nor has it an fd of whoever runs the tests.
    // SAFETY: no pointer; the flag takes effect at exec only.
    unsafe { libc::close_range(4, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) };
    // SAFETY: 3 is an fd that the child does not use otherwise: the standard library has put 0 to 2 in place, and
    // everything else is close-on-exec.
    let moved = unsafe { libc::dup2(socket, 3) };
    // SAFETY: no pointer. (dup2 of 3 to itself has left the flag.)
    let kept = unsafe { libc::fcntl(3, libc::F_SETFD, 0) };
    if (moved, kept) == (3, 0) { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

impl Worker {
    /// Starts a worker and waits until it is ready.
    pub fn start() -> Worker {
        let mut worker = Self::unready();
        let mut line = String::new();
        worker.report.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        worker
    }

    /// Starts a worker.
    pub fn unready() -> Worker {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let socket = std::env::temp_dir().join(format!("vmm-worker-test-{}-{number}.sock", std::process::id()));
        let bound = seqpacket();
        rustix::net::bind(&bound, &rustix::net::SocketAddrUnix::new(&socket).unwrap()).unwrap();
        let (report, words) = std::io::pipe().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmsup-worker"));
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(words);
        let raw = bound.as_raw_fd();
        // SAFETY: what runs in the child is async-signal-safe, as `become_worker` says.
        unsafe { command.pre_exec(move || become_worker(raw)) };
        let child = command.spawn().unwrap();
        drop(command);
        Worker { child, report: BufReader::new(File::from(OwnedFd::from(report))), socket }
    }

    /// A connection that has exchanged greetings.
    pub fn connect(&self) -> Peer {
        let peer = Peer::new(self.connect_raw());
        peer.handshake(NAME, VERSION, 0).unwrap();
        peer
    }

    /// A connection that has said nothing yet, and that waits a minute at most.
    pub fn connect_raw(&self) -> OwnedFd {
        use rustix::net::sockopt::{Timeout, set_socket_timeout};
        let socket = seqpacket();
        set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(60))).unwrap();
        rustix::net::connect(&socket, &rustix::net::SocketAddrUnix::new(&self.socket).unwrap()).unwrap();
        socket
    }

    /// Closes the reader of the report pipe, as a jailer does that is gone.
    pub fn close_report(&mut self) {
        let (nothing, _) = std::io::pipe().unwrap();
        self.report = BufReader::new(File::from(OwnedFd::from(nothing)));
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end.
    pub fn end(mut self) -> Ended {
        let status = self.child.wait().unwrap();
        let mut words = String::new();
        self.report.read_to_string(&mut words).unwrap();
        let _ = std::fs::remove_file(&self.socket);
        Ended { status: status.code(), signal: status.signal(), words }
    }

    /// A field of `/proc/PID/task/*/status` by thread name, sorted.
    pub fn threads(&self, field: &str) -> Vec<(String, String)> {
        let mut all: Vec<_> = std::fs::read_dir(format!("/proc/{}/task", self.pid()))
            .unwrap()
            .map(|task| {
                let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
                let get = |key: &str| {
                    let line = status.lines().find(|l| l.starts_with(&format!("{key}:"))).unwrap();
                    line[key.len() + 1..].trim().to_owned()
                };
                (get("Name"), get(field))
            })
            .collect();
        all.sort();
        all
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// What a VM is made of, with the supervisor's ends.
pub struct Vm {
    pub spec: StartSpec,
    pub fds: Vec<OwnedFd>,
    pub ends: Console,
}

/// A supervisor's ends of a console.
pub struct Console {
    pub ring: File,
    pub notify: File,
    pub input: File,
}

pub fn sealed_memfd(bytes: u64) -> OwnedFd {
    let fd = memfd_create("vm", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, bytes).unwrap();
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    fd
}

impl Vm {
    /// A VM with one vCPU and 64 MiB that boots `kernel`.
    pub fn new(kernel: impl Into<OwnedFd>) -> Vm {
        Vm::with(kernel, 1, 64)
    }

    pub fn with(kernel: impl Into<OwnedFd>, cpus: u8, memory_mib: u32) -> Vm {
        let spec = StartSpec {
            cpus,
            memory_mib,
            initrd: false,
            cmdline: format!("cpus={cpus}"),
            disks: Vec::new(),
            nets: Vec::new(),
            offer: None,
        };
        let ring = sealed_memfd(console::RING_BYTES);
        let notify = File::from(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap());
        // The guest's end can be written as well: while the worker holds it, the pipe never ends.
        let (reader, input) = std::io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let input_both = File::options().read(true).write(true).open(path).unwrap();
        let fds = vec![
            kvm().into(),
            sealed_memfd(u64::from(memory_mib) << 20),
            ring.try_clone().unwrap(),
            notify.try_clone().unwrap().into(),
            input_both.into(),
            kernel.into(),
        ];
        let ends = Console { ring: ring.into(), notify, input: File::from(OwnedFd::from(input)) };
        Vm { spec, fds, ends }
    }

    pub fn initrd(mut self, initrd: impl Into<OwnedFd>) -> Vm {
        self.spec.initrd = true;
        self.fds.push(initrd.into());
        self
    }

    /// Sends `Start` and takes the reply.
    pub fn start_on(&self, peer: &Peer) -> Result<Timings, StartFailure> {
        let fds: Vec<BorrowedFd<'_>> = self.fds.iter().map(AsFd::as_fd).collect();
        peer.send(&Request::Start(self.spec.clone()), &fds).unwrap();
        match peer.receive().expect("a reply to Start").0 {
            Reply::Started(timings) => Ok(timings),
            Reply::Failed(failure) => Err(failure),
            other => panic!("{other:?} to a Start"),
        }
    }

    /// What the guest wrote to its console so far, of the part that the ring still has.
    pub fn console(&self) -> String {
        self.ends.content()
    }

    /// Waits until the guest wrote `text`.
    pub fn wait_for(&self, text: &str) {
        self.ends.wait_for(text);
    }
}

impl Console {
    /// As a worker hands it to a supervisor that comes back.
    pub fn of(peer: &Peer) -> Console {
        peer.send(&Request::Console, &[]).unwrap();
        let (reply, fds) = peer.receive().expect("the console");
        assert_eq!(reply, Reply::Console);
        let [ring, notify, input] = <[OwnedFd; 3]>::try_from(fds).unwrap().map(File::from);
        Console { ring, notify, input }
    }

    /// What the guest wrote to its console so far, of the part that the ring still has.
    pub fn content(&self) -> String {
        let mut counter = [0; 8];
        self.ring.read_exact_at(&mut counter, console::WRITTEN).unwrap();
        let (_, start) = console::available(0, u64::from_le_bytes(counter));
        let bytes: Vec<u8> = (start..u64::from_le_bytes(counter))
            .map(|n| {
                let mut byte = [0];
                self.ring.read_exact_at(&mut byte, console::DATA + n % console::CAPACITY).unwrap();
                byte[0]
            })
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the guest wrote `text`.
    pub fn wait_for(&self, text: &str) {
        loop {
            let seen = self.content();
            if seen.contains(text) {
                return;
            }
            // The protocol of the ring: store what was seen, look once more, and sleep only if there is no news.
            self.ring.write_all_at(&(seen.len() as u64).to_le_bytes(), console::SEEN).unwrap();
            if self.content().len() != seen.len() {
                continue;
            }
            let mut fds = [PollFd::new(&self.notify, PollFlags::IN)];
            let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
            let ready = poll(&mut fds, Some(&limit)).unwrap();
            assert!(ready > 0, "60 s without {text:?}; the console has {:?}", self.content());
            let _ = (&self.notify).read(&mut [0; 8]);
        }
    }
}

/// A guest of `tests/guest`, built where it is not yet.
pub fn guest(name: &str) -> File {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
        // Several test programs may build at once.
        let lock = File::create(out.with_extension("lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let status = Command::new("make")
            .args(["--silent", "-C", concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/guest")])
            .arg(format!("OUT={}", out.display()))
            .status()
            .expect("make builds the guests");
        assert!(status.success(), "the guests cannot be built");
        out
    });
    File::open(folder.join(format!("{name}.elf"))).unwrap()
}

/// A guest that runs until its power button is pressed; it says `button up` and `button pressed`.
pub fn button() -> File {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("button-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let status = Command::new("gcc")
        .args(["-nostdlib", "-static", "-no-pie", "-Wl,-n,--build-id=none,-z,noexecstack"])
        .args(["-T", concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/guest/hello.ld"), "-o"])
        .arg(&out)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guests/button.S"))
        .status()
        .expect("gcc builds the guests");
    assert!(status.success());
    let file = File::open(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    file
}

pub fn hello() -> File {
    guest("hello")
}

/// A file with this content, and without a name.
pub fn file(bytes: &[u8]) -> File {
    let file = File::from(memfd_create("file", MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(bytes, 0).unwrap();
    file
}
