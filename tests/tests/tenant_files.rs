//! The files of tenants: open files that they hand over on the side socket, and what becomes of them in the supervisor's storage.
//!
//! The supervisor is vmsup-test's, and shared with vmsup-test2 and vmsup-bare.

use ipc::{Channel, Message};
use rustix::io::IoSlice;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, sendmsg, socket_with,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use vmsup_tests::host::{Host, Ran, guest_file};
use vmsup_tests::netns::{Caller, as_caller};
use vmsup_tests::user::{self, User};
use vmsup_tests::{Scratch, as_root, eventually, names, program, skip};

/// What is spoken on the side socket (supervisor/src/side.rs).
const NAME: &str = "vmsup-files";
const VERSION: u16 = 1;

#[derive(Debug, Serialize, Deserialize)]
enum Offer {
    Files { fields: Vec<String> },
}

impl Message for Offer {
    const MAX_BYTES: usize = 60_000;

    fn fd_count(&self) -> usize {
        let Offer::Files { fields } = self;
        fields.len()
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Ticket(String),
    Refused(String),
}

impl Message for Answer {
    const MAX_BYTES: usize = 512;
    const MAX_FDS: usize = 0;
}

type Side = Channel<Offer, Answer>;

/// A supervisor of several, and what it was told.
struct Shared {
    host: Host,
    _config: Scratch,
}

/// One of them, with a directory that nobody else may enter.
struct Tenant {
    user: User,
    home: Scratch,
    socket: PathBuf,
}

impl Shared {
    /// With this quota of storage for each.
    fn start(disk_gib: u32) -> Shared {
        let (user, config) = (user::with_subuids(), Scratch::new(&user::with_subuids()));
        let path = config.path().join("supervisor.toml");
        let text = format!("[access]\nusers = [\"vmsup-test2\", \"vmsup-bare\"]\n[quota]\ndisk_gib = {disk_gib}\n");
        std::fs::write(&path, text).unwrap();
        let host = Host::start(&user, &["--config", path.to_str().unwrap()]);
        let shared = Shared { host, _config: config };
        shared.open();
        shared
    }

    /// Lets others through the directory of the test's own; that of the supervisor lets them through by itself.
    fn open(&self) {
        let above = self.host.folder().parent().unwrap().to_owned();
        std::fs::set_permissions(above, std::fs::Permissions::from_mode(0o711)).unwrap();
    }

    fn tenants(&self) -> [Tenant; 2] {
        [user::second_tenant(), user::without_subuids().unwrap()].map(|user| Tenant {
            home: Scratch::new(&user),
            user,
            socket: self.host.folder().join("api.sock"),
        })
    }

    /// The files in its storage, `.part` ones included.
    fn images(&self) -> Vec<PathBuf> {
        let folder = self.host.state_folder().join("images");
        let vms = names(&folder).into_iter().map(|vm| folder.join(vm));
        vms.flat_map(|vm| names(&vm).into_iter().map(move |file| vm.join(file))).collect()
    }

    /// Nothing at all is in it.
    fn is_empty(&self) -> bool {
        names(self.host.state_folder().join("images")).is_empty()
    }
}

impl Tenant {
    fn vmsup(&self, args: &[&str]) -> Ran {
        self.command(args).output().unwrap().into()
    }

    fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = self.user.command(program("vmsup"));
        command.arg("--socket").arg(&self.socket).args(args).stdin(Stdio::null());
        command
    }

    /// A file of the tenant's, which nobody else can read.
    fn file(&self, name: &str, write: impl FnOnce(&Path)) -> String {
        let path = self.home.path().join(name);
        write(&path);
        std::os::unix::fs::chown(&path, Some(self.user.uid), Some(self.user.gid)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A bare-metal guest as a file of the tenant's.
    fn kernel(&self, guest: &str) -> String {
        self.file(guest, |path| assert!(std::fs::copy(guest_file(guest), path).unwrap() > 0))
    }

    /// A disk of zeroes.
    fn disk(&self, name: &str, bytes: u64) -> String {
        self.file(name, |path| std::fs::File::create(path).unwrap().set_len(bytes).unwrap())
    }

    fn spec(&self, spec: &Value) -> String {
        let name = format!("{}.json", spec["name"].as_str().unwrap());
        self.file(&name, |path| std::fs::write(path, spec.to_string()).unwrap())
    }

    /// Does something with a thread's credentials for the tenant's: what the kernel says of it to others is the tenant's.
    fn does<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        as_caller(&Caller::from(&self.user), work)
    }

    fn side(&self) -> PathBuf {
        self.socket.with_file_name("files.sock")
    }

    /// Hands files over; its connection and its ticket.
    fn hands(&self, files: Vec<(&str, OwnedFd)>) -> (Side, String) {
        let path = self.side();
        self.does(move || {
            let side = greeted(&path);
            side.meet(NAME, VERSION, 0).unwrap();
            let fields = files.iter().map(|(field, _)| (*field).to_owned()).collect();
            let fds: Vec<_> = files.iter().map(|(_, fd)| fd.as_fd()).collect();
            side.send(&Offer::Files { fields }, &fds).unwrap();
            match side.receive().unwrap().0 {
                Answer::Ticket(ticket) => (side, ticket),
                Answer::Refused(why) => panic!("{why}"),
            }
        })
    }

    /// `POST /v1/vms`, and what comes back: the status and the body.
    fn creates(&self, body: &Value) -> (u16, Value) {
        let (socket, body) = (self.socket.clone(), body.to_string());
        self.does(move || {
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            let length = body.len();
            let head = "POST /v1/vms HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
            write!(stream, "{head}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::Null))
        })
    }
}

/// A connection that has said its header.
fn greeted(path: &Path) -> Side {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let patience = Some(Duration::from_secs(30));
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, patience).unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    let side = Side::new(socket);
    let _ = side.greet(NAME, VERSION, 0);
    side
}

fn raw(to: &Side, bytes: &[u8], with: &[BorrowedFd<'_>]) {
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(with.is_empty() || control.push(SendAncillaryMessage::ScmRights(with)));
    // It may have hung up on us already.
    let _ = sendmsg(to, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
}

fn open(path: &str, write: bool) -> OwnedFd {
    std::fs::File::options().read(true).write(write).open(path).unwrap().into()
}

#[test]
fn a_file_that_only_its_tenant_can_read_boots_and_boots_again_without_it() {
    if !as_root("a_file_that_only_its_tenant_can_read_boots_and_boots_again_without_it") {
        return;
    }
    let shared = Shared::start(1);
    let [tenant, other] = shared.tenants();
    let disk = tenant.disk("disk", 1 << 20);
    let spec = json!({
        "name": "a", "cpus": 1, "memory_mib": 32, "boot": { "kernel": tenant.kernel("block") },
        "disks": [{ "path": disk }],
    });
    // As it is: the guest writes to its owner's file.
    let out = tenant.vmsup(&["run", "--rm", &tenant.spec(&spec)]).ok();
    assert!(out.contains("BLOCK PASS"), "{out}");
    assert!(std::fs::read(&disk).unwrap().iter().any(|byte| *byte != 0));
    assert!(shared.is_empty());
    // Imported: it writes to the supervisor's copy.
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    tenant.vmsup(&["start", &tenant.spec(&spec)]).ok();
    tenant.vmsup(&["wait", "a"]).ok();
    assert!(tenant.vmsup(&["logs", "a"]).ok().contains("BLOCK PASS"));
    assert!(std::fs::read(&disk).unwrap().iter().all(|byte| *byte == 0));
    let images = shared.images();
    assert_eq!(images.len(), 2, "{images:?}");
    for image in &images {
        let stat = image.metadata().unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.uid()), (0o600, shared.host.user.uid));
    }
    // Its owner's files are gone, the VM has its own.
    std::fs::remove_file(&disk).unwrap();
    std::fs::remove_file(spec["boot"]["kernel"].as_str().unwrap()).unwrap();
    tenant.vmsup(&["start", "a"]).ok();
    tenant.vmsup(&["wait", "a"]).ok();
    // Nobody else has a part in that.
    assert!(other.vmsup(&["rm", "a"]).sentence(1).contains("no VM"));
    assert!(other.vmsup(&["ops"]).ok().lines().count() == 1);
    tenant.vmsup(&["rm", "a"]).ok();
    assert!(shared.is_empty());
}

#[test]
fn a_path_that_only_the_supervisor_can_read_is_out_of_reach() {
    if !as_root("a_path_that_only_the_supervisor_can_read_is_out_of_reach") {
        return;
    }
    let shared = Shared::start(1);
    let [tenant, other] = shared.tenants();
    // A kernel and a disk of the supervisor's own user.
    let secret = shared.host.work.path().join("kernel");
    std::fs::copy(guest_file("hello"), &secret).unwrap();
    std::os::unix::fs::chown(&secret, Some(shared.host.user.uid), None).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let secret = secret.to_str().unwrap().to_owned();
    let vm = |kernel: &str, disks: &[&str]| {
        let disks: Vec<Value> = disks.iter().map(|path| json!({ "path": path })).collect();
        json!({ "name": "a", "cpus": 1, "memory_mib": 32, "boot": { "kernel": kernel }, "disks": disks })
    };
    let create = |who: &Tenant, spec: Value, ticket: Option<&str>, rm: bool| {
        let mut body = json!({ "spec": spec, "remove_when_ended": rm });
        if let Some(ticket) = ticket {
            body["files"] = ticket.into();
        }
        let (status, answer) = who.creates(&body);
        assert_eq!(status, 400, "{answer}");
        answer["message"].as_str().unwrap().to_owned()
    };
    // By its path, whatever the API is told; by the CLI, which opens it as the tenant.
    assert!(create(&tenant, vm(&secret, &[]), None, false).contains("opens no file by its path"));
    assert!(create(&tenant, vm(&secret, &[]), None, true).contains("opens no file by its path"));
    assert!(tenant.vmsup(&["start", &tenant.spec(&vm(&secret, &[]))]).sentence(2).contains("ermission"));
    // By a ticket for something else.
    let kernel = tenant.kernel("hello");
    let handed = || vec![("boot.kernel", open(&kernel, false))];
    let (side, ticket) = tenant.hands(handed());
    assert!(create(&tenant, vm(&kernel, &[&secret]), Some(&ticket), true).contains("not handed over"));
    // That took the ticket. One is good once, for who got it, while their connection stands.
    assert!(create(&tenant, vm(&kernel, &[]), Some(&ticket), true).contains("ticket"));
    drop(side);
    let (side, ticket) = tenant.hands(handed());
    assert!(create(&other, vm(&kernel, &[]), Some(&ticket), true).contains("ticket"));
    drop(side);
    eventually("the ticket to go", || create(&tenant, vm("/x", &[]), Some(&ticket), true).contains("ticket"));
    // By an fd that gives no right to read or to write it.
    let path = rustix::fs::OFlags::PATH;
    let fd = rustix::fs::open(&secret, path, rustix::fs::Mode::empty()).unwrap();
    let (_side, ticket) = tenant.hands(vec![("boot.kernel", fd)]);
    assert!(create(&tenant, vm(&secret, &[]), Some(&ticket), false).contains("opened in a way"));
    let disk = tenant.disk("disk", 4096);
    let (_side, ticket) =
        tenant.hands(vec![("boot.kernel", open(&kernel, false)), ("disks[0].path", open(&disk, false))]);
    assert!(create(&tenant, vm(&kernel, &[&disk]), Some(&ticket), true).contains("reading and writing"));
    assert!(shared.is_empty());
    // All of it left the tenant what is theirs.
    tenant.vmsup(&["start", &tenant.spec(&vm(&kernel, &[&disk]))]).ok();
    tenant.vmsup(&["rm", "--force", "a"]).ok();
}

#[test]
fn a_tenant_that_floods_the_side_socket_floods_alone() {
    if !as_root("a_tenant_that_floods_the_side_socket_floods_alone") {
        return;
    }
    let shared = Shared::start(1);
    let [hostile, tenant] = shared.tenants();
    let before = fds(shared.host.pid());
    let path = hostile.side();
    // 200 connections: that say nothing, that only greet, that send 253 fds.
    let silent: Vec<Side> = hostile.does(|| {
        let null = std::fs::File::open("/dev/null").unwrap();
        (0..200)
            .map(|n| {
                let side = greeted(&path);
                if n % 3 == 0 {
                    raw(&side, &[0; 100], &vec![null.as_fd(); 253]);
                }
                side
            })
            .collect()
    });
    let spec = json!({ "name": "a", "cpus": 1, "memory_mib": 32, "boot": { "kernel": tenant.kernel("hello") } });
    let spec = tenant.spec(&spec);
    tenant.vmsup(&["start", &spec]).ok();
    tenant.vmsup(&["wait", "a"]).ok();
    drop(silent);
    // 10,000 random frames, with fds and without.
    hostile.does(|| {
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for _ in 0..10_000 {
            let side = greeted(&path);
            let bytes: Vec<u8> = (0..random() % 300).map(|_| random() as u8).collect();
            raw(&side, &bytes, &vec![null.as_fd(); (random() % 4) as usize]);
        }
    });
    tenant.vmsup(&["start", &spec]).ok();
    tenant.vmsup(&["wait", "a"]).ok();
    tenant.vmsup(&["rm", "a"]).ok();
    eventually("the supervisor to have closed all of it", || fds(shared.host.pid()) <= before + 2);
    assert!(shared.is_empty());
}

fn fds(pid: i32) -> usize {
    names(format!("/proc/{pid}/fd")).len()
}

/// Enough to be seen while it is copied.
const LARGE: usize = 768 << 20;

/// A VM with a large disk whose import has begun.
fn importing(shared: &Shared, tenant: &Tenant) -> std::process::Child {
    let disk = tenant.file("large", |path| std::fs::write(path, vec![7u8; LARGE]).unwrap());
    let spec = json!({
        "name": "a", "cpus": 1, "memory_mib": 32, "boot": { "kernel": tenant.kernel("hello") }, "disks": [{ "path": disk }],
    });
    let mut command = tenant.command(&["start", &tenant.spec(&spec)]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the import to begin", || {
        shared.images().iter().any(|path| path.extension().is_some_and(|e| e == "part"))
    });
    child
}

#[test]
fn an_import_that_is_cancelled_midway_leaves_nothing() {
    if !as_root("an_import_that_is_cancelled_midway_leaves_nothing") {
        return;
    }
    let shared = Shared::start(4);
    let [tenant, _] = shared.tenants();
    let start = importing(&shared, &tenant);
    let running = |kind: &str| {
        let operations: Value = serde_json::from_str(&tenant.vmsup(&["ops", "--json"]).ok()).unwrap();
        operations.as_array().unwrap().iter().find(|op| op["kind"] == kind && op["state"] == "running").cloned()
    };
    eventually("the start to say that it imports", || running("create").unwrap()["stage"] == "import");
    let (create, import) = (running("create").unwrap(), running("import").unwrap());
    assert_eq!((&import["vm"], &import["stage"]), (&json!("a"), &json!("copy")));
    tenant.vmsup(&["ops", "cancel", &create["id"].to_string()]).ok();
    let ran = Ran::from(start.wait_with_output().unwrap());
    assert!(ran.sentence(1).contains("cancelled"));
    eventually("nothing to be left", || shared.is_empty());
    assert!(!tenant.vmsup(&["ls"]).ok().contains("a "));
}

#[test]
fn an_import_whose_supervisor_was_killed_leaves_nothing_and_the_name_is_free() {
    if !as_root("an_import_whose_supervisor_was_killed_leaves_nothing_and_the_name_is_free") {
        return;
    }
    let mut shared = Shared::start(4);
    let [tenant, _] = shared.tenants();
    let start = importing(&shared, &tenant);
    shared.host.replace();
    shared.open();
    assert!(!start.wait_with_output().unwrap().status.success());
    eventually("nothing to be left", || shared.is_empty());
    let spec = json!({ "name": "a", "cpus": 1, "memory_mib": 32, "boot": { "kernel": tenant.kernel("hello") } });
    tenant.vmsup(&["start", &tenant.spec(&spec)]).ok();
    tenant.vmsup(&["wait", "a"]).ok();
    tenant.vmsup(&["rm", "a"]).ok();
}

#[test]
fn what_was_imported_outlives_its_supervisor_and_counts_against_the_quota() {
    if !as_root("what_was_imported_outlives_its_supervisor_and_counts_against_the_quota") {
        return;
    }
    let mut shared = Shared::start(1);
    let [tenant, other] = shared.tenants();
    let vm = |who: &Tenant, name: &str, mib: u64| {
        let (kernel, disk) = (who.kernel("hello"), who.disk(&format!("{name}-disk"), mib << 20));
        who.spec(&json!({
            "name": name, "cpus": 1, "memory_mib": 32, "boot": { "kernel": kernel }, "disks": [{ "path": disk }],
        }))
    };
    // By logical size, before anything is copied.
    let sentence = tenant.vmsup(&["start", &vm(&tenant, "huge", 1 << 20)]).sentence(1);
    assert!(sentence.contains("quota") && shared.is_empty(), "{sentence}");
    tenant.vmsup(&["start", &vm(&tenant, "a", 600)]).ok();
    tenant.vmsup(&["wait", "a"]).ok();
    let second = vm(&tenant, "b", 600);
    assert!(tenant.vmsup(&["start", &second]).sentence(1).contains("quota"));
    let blocks: u64 = shared.images().iter().map(|path| path.metadata().unwrap().blocks()).sum();
    assert!(blocks * 512 < 4 << 20, "holes are kept: {blocks} blocks");
    // Somebody else has a quota of their own.
    other.vmsup(&["start", &vm(&other, "b", 600)]).ok();
    other.vmsup(&["wait", "b"]).ok();
    other.vmsup(&["rm", "b"]).ok();
    shared.host.replace();
    shared.open();
    tenant.vmsup(&["start", "a"]).ok();
    tenant.vmsup(&["wait", "a"]).ok();
    eventually("the next supervisor to have counted", || tenant.vmsup(&["start", &second]).err.contains("quota"));
    tenant.vmsup(&["rm", "a"]).ok();
    tenant.vmsup(&["start", &second]).ok();
    tenant.vmsup(&["wait", "b"]).ok();
    tenant.vmsup(&["rm", "b"]).ok();
    assert!(shared.is_empty());
}

#[test]
fn apply_hands_files_over_and_imports_what_is_new() {
    if !as_root("apply_hands_files_over_and_imports_what_is_new") {
        return;
    }
    let shared = Shared::start(1);
    let [tenant, _] = shared.tenants();
    let folder = tenant.home.path().join("vms");
    std::fs::create_dir(&folder).unwrap();
    std::os::unix::fs::chown(&folder, Some(tenant.user.uid), None).unwrap();
    let disk = tenant.disk("disk", 1 << 20);
    let write = |kernel: &str, memory: u32| {
        let spec = json!({
            "name": "a", "cpus": 1, "memory_mib": memory, "boot": { "kernel": kernel }, "disks": [{ "path": disk }],
        });
        std::fs::write(folder.join("a.json"), spec.to_string()).unwrap();
        std::os::unix::fs::chown(folder.join("a.json"), Some(tenant.user.uid), None).unwrap();
    };
    let apply = || tenant.vmsup(&["apply", folder.to_str().unwrap()]).ok();
    let deaf = tenant.kernel("deaf");
    write(&deaf, 32);
    assert!(apply().contains("1 created"));
    let inode = |part: &str| {
        let images = shared.images();
        let one = images.iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(part)).unwrap();
        (images.len(), one.metadata().unwrap().ino())
    };
    let (disk_before, kernel_before) = (inode("disk-"), inode("kernel-"));
    // What the path leads to is not looked at while the spec stays.
    std::fs::write(&disk, vec![1; 1 << 20]).unwrap();
    assert!(apply().contains("1 unchanged"));
    assert_eq!(inode("disk-"), disk_before);
    // Another kernel: that alone is new.
    write(&tenant.kernel("echo"), 48);
    tenant.vmsup(&["apply", "--timeout", "1", folder.to_str().unwrap()]).ok();
    assert_eq!(inode("disk-"), disk_before);
    assert_ne!(inode("kernel-"), kernel_before);
    tenant.vmsup(&["rm", "--force", "a"]).ok();
    assert!(shared.is_empty());
}

#[test]
fn a_block_device_is_imported_whole() {
    const TEST: &str = "a_block_device_is_imported_whole";
    if !as_root(TEST) {
        return;
    }
    let shared = Shared::start(1);
    let [tenant, _] = shared.tenants();
    let backing = tenant.file("backing", |path| {
        let mut bytes = vec![0u8; 3 << 20];
        bytes[2 << 20..].fill(9);
        std::fs::write(path, bytes).unwrap();
    });
    let Some(device) = Loop::of(&backing) else { return skip(TEST, "no loop device can be had here") };
    let node = tenant.home.path().join("device");
    let rdev = std::fs::metadata(&device.0).unwrap().rdev();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &node, rustix::fs::FileType::BlockDevice, mode, rdev).unwrap();
    std::os::unix::fs::chown(&node, Some(tenant.user.uid), None).unwrap();
    let spec = json!({
        "name": "a", "cpus": 1, "memory_mib": 32, "boot": { "kernel": tenant.kernel("hello") }, "disks": [{ "path": node }],
    });
    tenant.vmsup(&["start", &tenant.spec(&spec)]).ok();
    tenant.vmsup(&["wait", "a"]).ok();
    let images = shared.images();
    let disk = images.iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("disk-")).unwrap();
    assert!(std::fs::read(disk).unwrap() == std::fs::read(&backing).unwrap());
    assert!(disk.metadata().unwrap().blocks() * 512 < 2 << 20, "zeroes are holes");
    tenant.vmsup(&["rm", "a"]).ok();
}

/// A loop device, until it is dropped.
struct Loop(String);

impl Loop {
    fn of(file: &str) -> Option<Loop> {
        let made = std::process::Command::new("losetup").args(["--find", "--show", file]).output().ok()?;
        made.status.success().then(|| Loop(String::from_utf8(made.stdout).unwrap().trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
    }
}
