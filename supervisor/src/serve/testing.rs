//! Doubles for the tests: a jailer, workers and netd that speak the real protocols from threads of the test's own process.
//!
//! Each fake worker has a real process behind it (a shell that waits), so that pidfds, kills and exits are real.

pub mod netd;

use self::netd::FakeNetd;
use super::budget::Budget;
use super::events::Events;
use super::handle::Handle;
use super::host::Guests;
use super::ops::Operations;
use super::registry::{Registry, Who};
use super::side::Received;
use super::start::Deadlines;
use super::state::Intent;
use super::tenants::{Source, Tenants, Terms};
use super::{Context, Host, Jail, Netd, memfd, state};
use crate::api::types::{CreateRequest, Desired};
use crate::spec::{Boot, Builtin, Restart, VmSpec};
use ipc::Channel;
use jail_spec::{CgroupLimits, Facts, HowEnded, Refusal, Reply, Request, Slot, UidSource, Worker};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags};
use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use worker_api::console::{CAPACITY, DATA, SEEN, WRITTEN};
use worker_api::{FdRole, StartFailure, StartSpec, Timings};

/// A directory of the test's own, removed at its end.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vmsup-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        TempDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How many starts may be under way.
pub const PLACES: u32 = 4;

/// The smallest spec.
pub fn spec(name: &str) -> VmSpec {
    VmSpec {
        name: name.into(),
        cpus: 1,
        memory_mib: 32,
        boot: Boot { kernel: None, initrd: None, cmdline: None, builtin: Some(Builtin::Hello) },
        disks: Vec::new(),
        console: None,
        limits: None,
        nets: Vec::new(),
        restart: Restart::No,
        backoff: None,
        health: None,
    }
}

/// The smallest spec, with an interface in each of these networks.
pub fn spec_in(name: &str, networks: &[&str]) -> VmSpec {
    let net = |network| serde_json::from_value(serde_json::json!({ "network": network })).unwrap();
    VmSpec { nets: networks.iter().map(net).collect(), ..spec(name) }
}

/// The request for a VM.
pub fn request(spec: VmSpec) -> CreateRequest {
    CreateRequest { spec, remove_when_ended: false, source: None, files: None }
}

/// `passwd` and `group` of a host with tenants.
pub const ACCOUNTS: (&str, &str) = (
    "root:x:0:0::/:\nalice:x:1000:1000::/:\nbob:x:1001:1001::/:\ncarol:x:1002:1002::/:\nops:x:1003:1003::/:\n",
    "root:x:0:\ntenants:x:50:alice,bob\nadmin:x:52:ops\n",
);
/// The uid that a shared supervisor of tests runs as.
pub const SUPERVISOR: u32 = 900;

/// For whom most tests make VMs, and that nothing is too much for them.
pub fn terms() -> Terms {
    Terms { owner: OWNER.uid, limit: None }
}

/// Who owns the VMs of most tests.
pub const OWNER: Who = Who { uid: 1000, all: false };

/// The handle of a VM of that number.
pub fn handle(number: u64, name: &str) -> Handle {
    let spec = spec(name);
    let intent = Intent {
        number,
        owner: rustix::process::geteuid().as_raw(),
        spec_hash: state::hash::of(&spec),
        spec,
        generation: 1,
        desired: Desired::Running,
        source: None,
        remove_when_ended: false,
        confirmed: true,
        created_at: 1,
        restarts: 0,
        ends: Vec::new(),
        runs: 1,
        over: 0,
        again: false,
    };
    Handle {
        version: super::handle::VERSION,
        boot_id: "b00t".into(),
        intent,
        pid: 100,
        start_time: 12_345,
        pidfd_inode: Some(678),
        uid: 100_000,
        slot: 3,
        warm: true,
        started_at: 2,
        began_ms: 2,
        nets: Vec::new(),
    }
}

/// What the fake workers do.
#[derive(Debug, Clone)]
pub enum Act {
    /// Start the VM, and hand its insides to the test.
    Good,
    /// Take the spec and never answer.
    Silent,
    /// Answer the spec with bytes that are no message.
    Garbage,
    /// Speak another version.
    OldRelease,
    /// Have a guest that ends before anybody could say that it ran.
    Quick(i32),
    /// Say no.
    Fail(StartFailure),
    /// Be another process than the jailer says.
    LieAboutPid,
    /// End before the spec was read.
    Die(i32),
    /// There is none: the jailer refuses.
    Refused(Refusal),
    /// There is none: the jailer never answers.
    NoAnswer,
}

/// A VM as its fake worker has it.
pub struct FakeVm {
    pub spec: StartSpec,
    pub fds: Vec<OwnedFd>,
    channel: Arc<Channel<worker_api::Reply, worker_api::Request>>,
    process: ChildStdin,
}

/// A fake worker's end of the control socket.
pub struct FakeControl(Arc<Channel<worker_api::Reply, worker_api::Request>>);

impl FakeControl {
    /// The next request; answered with `reply`.
    pub fn answer(&self, reply: &worker_api::Reply) -> worker_api::Request {
        let request = self.0.receive().unwrap().0;
        self.0.send(reply, &[]).unwrap();
        request
    }

    /// Says something.
    pub fn send(&self, reply: &worker_api::Reply) {
        self.0.send(reply, &[]).unwrap();
    }

    /// The next request, answered with `reply`; false where there will be none.
    pub fn try_answer(&self, reply: &worker_api::Reply) -> bool {
        self.0.receive().is_ok() && self.0.send(reply, &[]).is_ok()
    }

    /// Takes a request that is there, and leaves it without an answer.
    pub fn asked(&self) -> bool {
        let mut waiting = [rustix::event::PollFd::new(&*self.0, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut waiting, Some(&now)).unwrap() == 1 && self.0.receive().is_ok()
    }
}

impl FakeVm {
    pub fn fd(&self, role: FdRole) -> &OwnedFd {
        let at = self.spec.fd_roles().iter().position(|r| *r == role).unwrap();
        &self.fds[at]
    }

    /// Writes console output as a worker does; true where the notify eventfd was written.
    pub fn print(&self, bytes: &[u8]) -> bool {
        print(self.fd(FdRole::ConsoleRing), self.fd(FdRole::ConsoleNotify), bytes)
    }

    /// Ends with an exit status.
    pub fn exit(mut self, status: i32) {
        writeln!(self.process, "{status}").unwrap();
    }

    /// The next request; answered with `Done`.
    pub fn request(&self) -> worker_api::Request {
        self.answer(&worker_api::Reply::Done)
    }

    /// The next request; answered with `reply`.
    pub fn answer(&self, reply: &worker_api::Reply) -> worker_api::Request {
        self.copy().answer(reply)
    }

    /// Its end of the control socket, for another thread.
    pub fn copy(&self) -> FakeControl {
        FakeControl(self.channel.clone())
    }
}

/// Writes console output as a worker does: the bytes, the counter, the signal.
pub fn print(ring: &OwnedFd, notify: &OwnedFd, bytes: &[u8]) -> bool {
    let counter = |at| {
        let mut value = [0; 8];
        assert_eq!(rustix::io::pread(ring, &mut value, at).unwrap(), 8);
        u64::from_le_bytes(value)
    };
    let before = counter(WRITTEN);
    let mut done = 0;
    while done < bytes.len() {
        let at = (before + done as u64) % CAPACITY;
        let run = (bytes.len() - done).min((CAPACITY - at) as usize);
        done += rustix::io::pwrite(ring, &bytes[done..done + run], DATA + at).unwrap();
    }
    rustix::io::pwrite(ring, &(before + bytes.len() as u64).to_le_bytes(), WRITTEN).unwrap();
    let tell = counter(SEEN) == before;
    if tell {
        rustix::io::write(notify, &1u64.to_ne_bytes()).unwrap();
    }
    tell
}

fn no_cgroup() -> Result<String, String> {
    Err("the test has none".into())
}

/// A supervisor's insides with a fake jailer.
pub struct Bench {
    pub context: Arc<Context>,
    /// The VMs that were started, as their workers have them.
    pub vms: mpsc::Receiver<FakeVm>,
    /// What the next workers do.
    pub act: Arc<Mutex<Act>>,
    /// The jailer's end of the channel: shut down, it is a jailer that died.
    jailer: OwnedFd,
    /// The same, to say something that nobody asked for.
    pub says: Arc<Channel<Reply, Request>>,
    /// Slots that were handed out and not forgotten.
    pub slots: Arc<Mutex<BTreeSet<u32>>>,
    /// Limits that were asked for of workers which were handed out before.
    pub limits: Arc<Mutex<Vec<(u32, CgroupLimits)>>>,
    /// Why these cannot be set.
    pub unlimited: Arc<Mutex<Option<Refusal>>>,
    pub dir: TempDir,
}

impl Bench {
    /// Needs a runtime.
    pub fn new() -> Bench {
        Bench::with(Deadlines::default(), super::netd::DEADLINE)
    }

    /// With a supervisor that soon gives up waiting for jailer, workers and netd.
    pub fn impatient() -> Bench {
        let soon = Duration::from_secs(1);
        Bench::with(Deadlines { make: soon, start: soon, ..Deadlines::default() }, soon)
    }

    /// With a supervisor that soon gives up waiting for a worker that runs.
    pub fn curt() -> Bench {
        let soon = Duration::from_millis(50);
        Bench::with(Deadlines { stats: soon, control: soon, ..Deadlines::default() }, super::netd::DEADLINE)
    }

    /// On a host where limits are held.
    pub fn limited() -> Bench {
        Bench::on(Ok("/the/tests".into()), Deadlines::default(), super::netd::DEADLINE)
    }

    /// Of a supervisor that is whose `config` says, on a host with the users and groups of [`ACCOUNTS`].
    pub fn shared(config: &str) -> Bench {
        let dir = TempDir::new();
        for (name, text) in [("supervisor.toml", config), ("passwd", ACCOUNTS.0), ("group", ACCOUNTS.1)] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let own = rustix::process::geteuid().as_raw();
        let source = Source { file: dir.path().join("supervisor.toml"), etc: dir.path().to_owned(), owner: own };
        // Root and the supervisor's own user see everything, so that tests which run as root need another one.
        let tenants = Tenants::shared(SUPERVISOR, source).unwrap();
        Bench::made(dir, tenants, no_cgroup(), Deadlines::default(), super::netd::DEADLINE)
    }

    fn with(deadlines: Deadlines, answer: Duration) -> Bench {
        Bench::on(no_cgroup(), deadlines, answer)
    }

    fn on(cgroup: Result<String, String>, deadlines: Deadlines, answer: Duration) -> Bench {
        let tenants = Tenants::of_one(rustix::process::geteuid().as_raw());
        Bench::made(TempDir::new(), tenants, cgroup, deadlines, answer)
    }

    fn made(
        dir: TempDir,
        tenants: Tenants,
        cgroup: Result<String, String>,
        deadlines: Deadlines,
        answer: Duration,
    ) -> Bench {
        let (ours, theirs) = Channel::<Request, Reply>::pair().unwrap();
        let jailer = theirs.as_fd().try_clone_to_owned().unwrap();
        let act = Arc::new(Mutex::new(Act::Good));
        let slots = Arc::new(Mutex::new(BTreeSet::new()));
        let limits = Arc::new(Mutex::new(Vec::new()));
        let unlimited = Arc::new(Mutex::new(None));
        let (sender, vms) = mpsc::channel();
        let says = Arc::new(theirs);
        let fake = FakeJailer {
            channel: says.clone(),
            dir: dir.path().to_owned(),
            act: act.clone(),
            slots: slots.clone(),
            limits: limits.clone(),
            unlimited: unlimited.clone(),
            sender,
        };
        std::thread::spawn(move || fake.run());
        let facts = Facts { pid: std::process::id() as i32, uids: UidSource::Own, cgroup, pool: 0 };
        let pidfd = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        let ready = ours.as_fd().try_clone_to_owned().unwrap();
        let (jail, _) = Jail::new(ours, ready, facts, pidfd, Default::default()).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let host = Host {
            kvm: std::fs::File::open("/dev/null").unwrap().into(),
            guests: Guests {
                hello: memfd::constant("hello", b"guest").unwrap(),
                net: memfd::constant("net", b"net guest").unwrap(),
            },
            offer: worker_api::Offer::default().into(),
            workers: Arc::new(rustix::fs::open(dir.path(), flags, rustix::fs::Mode::empty()).unwrap()),
            memory_mib: 4096,
            uid: rustix::process::geteuid().as_raw(),
            boot_id: "b00t".into(),
            first_id: 0x1000,
        };
        let netd = Netd::new(dir.path().join("netd.sock"), answer, netd::NULL);
        let registry = Registry::new(0x1000, &Budget::of(4096, false));
        let starts = super::starts::Starts::new(PLACES as usize, tenants.is_shared());
        let store = state::Store::in_memory();
        let (events, operations) = (Events::new(Vec::new(), store.clone()), Operations::new(Vec::new(), store.clone()));
        std::fs::create_dir(dir.path().join("handles")).unwrap();
        let handles = rustix::fs::open(dir.path().join("handles"), flags, rustix::fs::Mode::empty()).unwrap();
        let handles = super::handle::Handles::new(handles);
        let metrics = Default::default();
        let images = dir.path().join("images");
        let context = Arc::new(Context {
            host,
            jail,
            netd,
            store,
            handles,
            events,
            operations,
            tenants,
            registry,
            metrics,
            deadlines,
            tick: super::tick::Tick::new(super::tick::PERIOD),
            looks: Arc::new(tokio::sync::Semaphore::new(1)),
            starts,
            storage: Arc::new(super::storage::Storage::for_tests(&images)),
            side: super::side::Side::new(None, 256),
        });
        Bench { context, vms, act, jailer, says, slots, limits, unlimited, dir }
    }

    /// Files that somebody handed over, by their fields.
    pub async fn handed(&self, peer: u32, files: Vec<(&str, OwnedFd)>) -> Received {
        let share = self.context.side.share(peer);
        let places = share.frame().await.unwrap();
        let (fields, fds) = files.into_iter().map(|(field, fd)| (field.to_owned(), fd)).unzip();
        let peer = ipc::peer::Peer { uid: peer, groups: Vec::new() };
        Received::new(fields, fds, peer, share, places).unwrap()
    }

    /// The files in the storage: the VM's id and the file's name.
    pub fn images(&self) -> Vec<String> {
        let names = |path: &Path| {
            let all = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
            all.map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        let images = self.dir.path().join("images");
        let vms = names(&images).into_iter();
        let mut all: Vec<String> = vms
            .flat_map(|vm| {
                let files = names(&images.join(&vm));
                if files.is_empty() { vec![vm] } else { files.iter().map(|file| format!("{vm}/{file}")).collect() }
            })
            .collect();
        all.sort();
        all
    }

    /// A netd where this supervisor expects one.
    pub fn netd(&self) -> FakeNetd {
        FakeNetd::start(self.context.netd.path())
    }

    pub fn acts(&self, act: Act) {
        *self.act.lock().unwrap() = act;
    }

    /// The jailer dies.
    pub fn kill_jailer(&self) {
        rustix::net::shutdown(&self.jailer, rustix::net::Shutdown::Both).unwrap();
    }

    /// The next VM that a fake worker started.
    pub async fn started(&self) -> FakeVm {
        loop {
            match self.vms.try_recv() {
                Ok(vm) => return vm,
                Err(mpsc::TryRecvError::Empty) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Waits until every slot was forgotten: no worker of any VM is left.
    pub async fn nothing_left(&self) {
        while !self.slots.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    }
}

struct FakeJailer {
    channel: Arc<Channel<Reply, Request>>,
    dir: PathBuf,
    act: Arc<Mutex<Act>>,
    slots: Arc<Mutex<BTreeSet<u32>>>,
    limits: Arc<Mutex<Vec<(u32, CgroupLimits)>>>,
    unlimited: Arc<Mutex<Option<Refusal>>>,
    sender: mpsc::Sender<FakeVm>,
}

impl FakeJailer {
    fn run(self) {
        let mut next = 0;
        while let Ok((request, _)) = self.channel.receive() {
            match request {
                Request::Make { seq, .. } => match self.act.lock().unwrap().clone() {
                    Act::Refused(why) => self.channel.send(&Reply::Refused { seq, why }, &[]).unwrap(),
                    Act::NoAnswer => {}
                    act => {
                        next += 1;
                        self.make(seq, Slot(next), act);
                    }
                },
                Request::Forget { slot } => {
                    assert!(self.slots.lock().unwrap().remove(&slot.0), "{slot:?} was forgotten twice");
                }
                Request::Limit { slot, limits } => {
                    self.limits.lock().unwrap().push((slot.0, limits));
                    self.channel
                        .send(&Reply::Limited { slot, failed: self.unlimited.lock().unwrap().clone() }, &[])
                        .unwrap();
                }
            }
        }
    }

    fn make(&self, seq: u64, slot: Slot, act: Act) {
        self.slots.lock().unwrap().insert(slot.0);
        let path = self.dir.join(slot.socket_name());
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        let mut process =
            Command::new("sh").args(["-c", "read status; exit $status"]).stdin(Stdio::piped()).spawn().unwrap();
        let input = process.stdin.take().unwrap();
        let pidfd =
            rustix::process::pidfd_open(Pid::from_raw(process.id() as i32).unwrap(), PidfdFlags::empty()).unwrap();
        let mut pid = std::process::id() as i32;
        if matches!(act, Act::LieAboutPid) {
            pid += 1;
        }
        let uid = rustix::process::geteuid().as_raw();
        let worker = Worker { slot, pid, start_time: 1, uid };
        self.channel.send(&Reply::Made { seq, worker, warm: true }, &[pidfd.as_fd()]).unwrap();
        let channel = self.channel.clone();
        std::thread::spawn(move || reap(process, &channel, slot, &path));
        let sender = self.sender.clone();
        std::thread::spawn(move || work(&listener, act, input, &sender));
    }
}

/// The fake jailer's share of a worker's end.
fn reap(mut process: Child, channel: &Channel<Reply, Request>, slot: Slot, socket: &Path) {
    let status = process.wait().unwrap();
    let _ = std::fs::remove_file(socket);
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => HowEnded::Exited(code),
        (None, signal) => HowEnded::Killed(signal.unwrap()),
    };
    let pid = process.id() as i32;
    // A jailer that died in the meantime tells nobody.
    let _ = channel.send(&Reply::Ended { slot, pid, how, last_words: "last\x1b[2J words".into() }, &[]);
}

/// A fake worker.
fn work(listener: &OwnedFd, act: Act, mut process: ChildStdin, sender: &mpsc::Sender<FakeVm>) {
    if let Act::Die(status) = act {
        writeln!(process, "{status}").unwrap();
        return;
    }
    let socket = rustix::net::accept_with(listener, SocketFlags::CLOEXEC).unwrap();
    let channel = Channel::<worker_api::Reply, worker_api::Request>::new(socket);
    let version = if matches!(act, Act::OldRelease) { worker_api::VERSION + 1 } else { worker_api::VERSION };
    if channel.handshake(worker_api::NAME, version, 0).is_err() {
        drop(channel);
        let _ = writeln!(process, "{}", worker_api::exit::FAILED);
        return;
    }
    let Ok((worker_api::Request::Start(spec), fds)) = channel.receive() else { return };
    match act {
        Act::Garbage => {
            rustix::net::send(channel.as_fd(), &[0xff; 40], rustix::net::SendFlags::empty()).unwrap();
            // Waits for the kill.
            let _ = channel.receive();
        }
        Act::Silent => drop(channel.receive()),
        Act::Quick(status) => {
            let _ = writeln!(process, "{status}");
        }
        Act::Fail(failure) => {
            channel.send(&worker_api::Reply::Failed(failure), &[]).unwrap();
            let _ = writeln!(process, "{}", worker_api::exit::FAILED);
        }
        _ => {
            let timings = Timings { memory: 1, vcpus: 2, devices: 3, boot: 4, threads: 5 };
            channel.send(&worker_api::Reply::Started(timings), &[]).unwrap();
            let _ = sender.send(FakeVm { spec, fds, channel: Arc::new(channel), process });
        }
    }
}
