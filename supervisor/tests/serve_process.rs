//! The real process `vmsup serve`, under its real filter, with a jailer that is a copy of this test program.
//!
//! What a process is from outside: its confinement on every thread, its socket, its lock, its end.

use ipc::Channel;
use jail_spec::{Facts, Refusal, Reply, Request, UidSource};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Set by the script that starts this program in the jailer's place.
const FAKE: &str = "VMSUP_TEST_FAKE_JAILER";

/// Not a test of its own: what runs in the jailer's place. It refuses every worker.
#[test]
fn fake_jailer() {
    if std::env::var_os(FAKE).is_none() {
        return;
    }
    let channel = Channel::<Reply, Request>::new(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    channel.handshake(jail_spec::NAME, jail_spec::VERSION, 0).unwrap();
    let facts = Facts {
        pid: std::process::id() as i32,
        uids: UidSource::Own,
        cgroup: Err("the test has none".into()),
        pool: 0,
    };
    channel.send(&Reply::Ready(facts), &[]).unwrap();
    channel.send(&Reply::Listed, &[]).unwrap();
    while let Ok((request, _)) = channel.receive() {
        if let Request::Make { seq, .. } = request {
            channel.send(&Reply::Refused { seq, why: Refusal::Full { slots: 0 } }, &[]).unwrap();
        }
    }
}

struct Supervisor {
    dir: PathBuf,
    child: Child,
}

impl Supervisor {
    /// `None` on a machine without a KVM for this user, which is said.
    fn start(limit: Option<u32>) -> Option<Supervisor> {
        let mut supervisor = Supervisor::spawn(limit)?;
        // The log says when it serves.
        let mut log = BufReader::new(supervisor.child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("serving") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it left");
        }
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Some(supervisor)
    }

    fn spawn(limit: Option<u32>) -> Option<Supervisor> {
        if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            println!("SKIPPED serve_process: no /dev/kvm for this user: {error}");
            return None;
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vmsup-serve-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&dir).unwrap();
        let child = Supervisor::command(&dir, limit).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        Some(Supervisor { dir, child })
    }

    fn command(dir: &Path, limit: Option<u32>) -> Command {
        let jailer = dir.join("jailer");
        let own = std::env::current_exe().unwrap();
        let script = format!("#!/bin/sh\n{FAKE}=1 exec '{}' --exact fake_jailer >/dev/null\n", own.display());
        std::fs::write(&jailer, script).unwrap();
        std::fs::set_permissions(&jailer, std::fs::Permissions::from_mode(0o700)).unwrap();
        let mut command = match limit {
            None => Command::new(env!("CARGO_BIN_EXE_vmsup")),
            Some(limit) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_vmsup")]);
                shell
            }
        };
        command.args(["serve", "--pool", "0", "--worker", "/bin/true", "--jailer"]).arg(jailer);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("XDG_RUNTIME_DIR", dir).stdin(Stdio::null());
        command.env("XDG_STATE_HOME", dir.join("state"));
        command
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("vmsup/api.sock")
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).unwrap()).collect()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// The jailer: the supervisor's only child.
    fn jailer(&self) -> rustix::process::Pid {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        rustix::process::Pid::from_raw(children.split_whitespace().next().unwrap().parse().unwrap()).unwrap()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

const MISSING_DISK: &str = r#"{"spec":{"name":"a","cpus":1,"memory_mib":32,"boot":{"builtin":"hello"},
    "disks":[{"path":"/no/such/disk"}]}}"#;
const HELLO: &str = r#"{"spec":{"name":"a","cpus":1,"memory_mib":32,"boot":{"builtin":"hello"}}}"#;

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap().trim()
}

#[test]
fn the_filter_is_in_force_on_every_thread() {
    let Some(supervisor) = Supervisor::start(None) else { return };
    // Files are opened on a thread of their own: now there are two.
    assert!(supervisor.ask("POST", "/v1/vms", MISSING_DISK).contains("no such file"));
    let threads = supervisor.threads();
    assert!(threads.len() >= 2, "{}", threads.len());
    for status in &threads {
        let name = field(status, "Name");
        assert_eq!(field(status, "Seccomp"), "2", "{name}");
        assert_eq!(field(status, "NoNewPrivs"), "1", "{name}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", supervisor.child.id())).unwrap();
    let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
}

#[test]
fn a_supervisor_out_of_fds_recovers() {
    // The limit leaves room for a few connections, not even for those that its budget has.
    let Some(supervisor) = Supervisor::start(Some(30)) else { return };
    let connections: Vec<UnixStream> = (0..60).map(|_| UnixStream::connect(supervisor.socket()).unwrap()).collect();
    // The last ones are in the backlog; the supervisor is still there when they go.
    let mut answered = UnixStream::connect(supervisor.socket()).unwrap();
    answered.write_all(b"GET /v1/vms HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    drop(connections);
    let mut answer = String::new();
    answered.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // A start is refused at the door, before it costs anything.
    let refused = supervisor.ask("POST", "/v1/vms", HELLO);
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("ulimit"), "{refused}");
}

#[test]
fn a_signal_ends_it_in_good_order() {
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let Some(mut supervisor) = Supervisor::start(None) else { return };
        let jailer = rustix::process::pidfd_open(supervisor.jailer(), rustix::process::PidfdFlags::empty()).unwrap();
        supervisor.signal(signal);
        assert!(supervisor.child.wait().unwrap().success());
        assert!(!supervisor.socket().exists());
        // The jailer leaves when its channel hangs up.
        let mut fds = [rustix::event::PollFd::new(&jailer, rustix::event::PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut fds, None).unwrap(), 1);
    }
}

#[test]
fn a_supervisor_without_jailer_and_vms_leaves_so_that_both_are_started_anew() {
    let Some(mut supervisor) = Supervisor::start(None) else { return };
    rustix::process::kill_process(supervisor.jailer(), rustix::process::Signal::KILL).unwrap();
    assert!(supervisor.child.wait().unwrap().success());
    assert!(!supervisor.socket().exists());
}

#[test]
fn a_second_supervisor_refuses_with_a_sentence_and_the_first_serves_on() {
    let Some(supervisor) = Supervisor::start(None) else { return };
    let output = Supervisor::command(&supervisor.dir, None).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    let sentence = said.lines().find(|line| line.starts_with("vmsup: ")).unwrap_or_else(|| panic!("{said}"));
    assert!(sentence.contains("already"), "{sentence}");
    assert!(supervisor.ask("GET", "/v1/vms", "").ends_with("[]"));
}

#[test]
fn a_supervisor_in_the_background_says_ready_once_its_socket_accepts() {
    let Some(first) = Supervisor::spawn(None) else { return };
    let mut supervisor = first;
    // The one that spawn() started is not the one to look at.
    supervisor.child.kill().unwrap();
    supervisor.child.wait().unwrap();
    let mut child = Supervisor::command(&supervisor.dir, None)
        .arg("--background")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    // Both ends close: nothing of the starter's is held by the supervisor or its jailer.
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "ready\n");
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "ready\n");
    supervisor.child = child;
    assert!(supervisor.ask("GET", "/v1/version", "").starts_with("HTTP/1.1 200"));
    let log = supervisor.dir.join("vmsup/supervisor.log");
    assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::read_to_string(&log).unwrap().contains("serving"));
}
