//! A whole vmsup to talk to: a supervisor of an ordinary user, with its jailer and workers, driven by the CLI.

use crate::{Scratch, eventually, names, program, user::User};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A supervisor in the foreground, in a runtime directory of its own.
pub struct Host {
    /// Whose it is.
    pub user: User,
    /// Its process.
    pub supervisor: Child,
    /// XDG_RUNTIME_DIR.
    runtime: Scratch,
    /// For files of the test, readable by the user.
    pub work: Scratch,
}

/// What a command of the CLI did.
#[derive(Debug)]
pub struct Ran {
    /// Exit status; `None` after a signal.
    pub status: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            status: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// Its standard output, where it succeeded.
    ///
    /// # Panics
    /// Where it did not.
    pub fn ok(self) -> String {
        assert_eq!(self.status, Some(0), "{self:?}");
        self.out
    }

    /// Its standard error, where it failed with `status` in one sentence that is fit for people.
    ///
    /// # Panics
    /// Where it did not.
    pub fn sentence(self, status: i32) -> String {
        assert_eq!(self.status, Some(status), "{self:?}");
        let text = self.err.trim_end().to_owned();
        assert_eq!(text.lines().count(), 1, "one line: {text}");
        assert!(text.starts_with("vmsup: "), "{text}");
        for debris in ["Os {", "Error {", "Some(", "Err(", "panicked", "unwrap"] {
            assert!(!text.contains(debris), "{text}");
        }
        text
    }
}

impl Host {
    /// Starts `vmsup serve` with these further arguments as `user`.
    pub fn start(user: &User, args: &[&str]) -> Host {
        Host::start_wrapped(user, &[], args)
    }

    /// As [`Host::start`], with the netd of `net`.
    pub fn start_on(user: &User, net: &crate::netd::NetHost, args: &[&str]) -> Host {
        let socket = net.socket();
        let netd = ["--netd", socket.to_str().unwrap()];
        Host::start_wrapped(user, &[], &[args, &netd].concat())
    }

    /// As [`Host::start`], with a program in front that execs the supervisor (`prlimit --nofile=64`, say).
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn start_wrapped(user: &User, wrapper: &[&str], args: &[&str]) -> Host {
        let (runtime, work) = (Scratch::new(user), Scratch::new(user));
        let log = std::fs::File::create(work.path().join("supervisor.log")).unwrap();
        let vmsup = program("vmsup");
        let mut command = match wrapper {
            [] => user.command(&vmsup),
            [first, rest @ ..] => {
                let mut command = user.command(first);
                command.args(rest).arg(&vmsup);
                command
            }
        };
        let supervisor = command
            .arg("serve")
            .args(args)
            .env("XDG_RUNTIME_DIR", runtime.path())
            .env("VMSUP_LOG", "debug")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut host = Host { user: user.clone(), supervisor, runtime, work };
        let socket = host.folder().join("api.sock");
        eventually("the supervisor's socket", || {
            assert!(host.supervisor.try_wait().unwrap().is_none(), "the supervisor ended: {}", host.log());
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        host
    }

    /// The supervisor's runtime directory.
    pub fn folder(&self) -> PathBuf {
        self.runtime.path().join("vmsup")
    }

    /// What the supervisor and its jailer said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.work.path().join("supervisor.log")).unwrap_or_default()
    }

    /// A command of the CLI, not yet run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.user.command(program("vmsup"));
        command.args(args).env("XDG_RUNTIME_DIR", self.runtime.path()).stdin(Stdio::null());
        command
    }

    /// Runs a command of the CLI to its end.
    pub fn vmsup(&self, args: &[&str]) -> Ran {
        self.command(args).output().unwrap().into()
    }

    /// Starts a command of the CLI with its output in pipes.
    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Writes a `vm.json` and returns its path.
    pub fn file(&self, name: &str, json: &serde_json::Value) -> String {
        let path = self.work.path().join(format!("{name}.json"));
        std::fs::write(&path, serde_json::to_string_pretty(json).unwrap()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A `vm.json` of a bare-metal guest of `tests/guest`.
    pub fn guest(&self, name: &str, guest: &str, cmdline: &str) -> String {
        self.file(
            name,
            &serde_json::json!({
                "name": name, "cpus": 1, "memory_mib": 32,
                "boot": { "kernel": guest_file(guest), "cmdline": cmdline },
            }),
        )
    }

    /// `vmsup inspect --json`.
    ///
    /// # Panics
    /// Where there is no such VM.
    pub fn inspect(&self, name: &str) -> serde_json::Value {
        serde_json::from_str(&self.vmsup(&["inspect", "--json", name]).ok()).unwrap()
    }

    /// `vmsup ls --json`.
    pub fn ls(&self) -> Vec<serde_json::Value> {
        serde_json::from_str(&self.vmsup(&["ls", "--json"]).ok()).unwrap()
    }

    /// The state of a VM as `ls` has it, empty where it is not listed.
    pub fn state(&self, name: &str) -> String {
        let all = self.ls();
        let vm = all.iter().find(|vm| vm["name"] == name);
        vm.map_or(String::new(), |vm| vm["state"].as_str().unwrap().to_owned())
    }

    /// The console's bytes that are kept.
    pub fn logs(&self, name: &str) -> String {
        self.vmsup(&["logs", name]).ok()
    }

    /// Waits until the guest has written `text`.
    pub fn said(&self, name: &str, text: &str) {
        eventually(&format!("{name} to say {text}"), || self.logs(name).contains(text));
    }

    /// Pid of the supervisor: `setpriv` becomes it, it does not fork.
    pub fn pid(&self) -> i32 {
        self.supervisor.id() as i32
    }

    /// Pid of the jailer.
    ///
    /// # Panics
    /// Where the supervisor has none.
    pub fn jailer(&self) -> i32 {
        *children(self.pid()).first().expect("a jailer")
    }

    /// Pids of the workers, warm ones included, half-made ones not.
    pub fn workers(&self) -> Vec<i32> {
        let mut all = children(self.pid()).first().map(|jailer| children(*jailer)).unwrap_or_default();
        all.retain(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c == "vmsup-worker\n"));
        all
    }

    /// Forgets VMs that have ended; those that never came to be are not there to forget.
    ///
    /// # Panics
    /// Where one is still there afterwards.
    pub fn remove(&self, names: &[&str]) {
        for name in names {
            self.vmsup(&["rm", name]);
            assert_eq!(self.state(name), "", "{name} is forgotten");
        }
    }

    /// Waits until the pool holds one worker and that one waits for its VM, which root can see: it is inside ppoll(2).
    ///
    /// # Panics
    /// Where that does not come to be.
    pub fn warm_worker(&self) -> i32 {
        let mut found = 0;
        eventually("a warm worker", || {
            let [worker] = self.workers()[..] else { return false };
            found = worker;
            std::fs::read_to_string(format!("/proc/{worker}/syscall")).is_ok_and(|call| call.starts_with("271 "))
        });
        found
    }

    /// Waits until nothing of any VM is left but `pool` warm workers: no process, socket, memfd or further fd of the
    /// supervisor than `fds`.
    pub fn nothing_left(&self, pool: usize, fds: usize) {
        eventually("no worker but the pool's", || self.workers().len() == pool);
        let sockets = || {
            names(self.folder().join("workers"))
                .into_iter()
                .filter(|n| n.starts_with('w') && n.ends_with(".sock"))
                .count()
        };
        eventually("no socket but the pool's", || sockets() == pool);
        let open = || {
            let folder = format!("/proc/{}/fd", self.pid());
            let mut all: Vec<String> = names(&folder)
                .iter()
                .filter_map(|n| Some(std::fs::read_link(format!("{folder}/{n}")).ok()?.display().to_string()))
                .collect();
            all.sort();
            all
        };
        eventually(&format!("no fd more than {fds} of {:?}", open()), || self.fds() <= fds);
    }

    /// How many fds the supervisor has open.
    pub fn fds(&self) -> usize {
        names(format!("/proc/{}/fd", self.pid())).len()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the supervisor:\n{}", self.log());
        }
        let pid = rustix::process::Pid::from_child(&self.supervisor);
        // What outlives its supervisor is this test's to end.
        let left = [children(self.pid()), self.workers()].concat();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        let _ = self.supervisor.wait();
        for process in left {
            if let Some(process) = rustix::process::Pid::from_raw(process) {
                let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
            }
        }
    }
}

/// A guest of `tests/guest`, built.
///
/// # Panics
/// Where it is not there: `make build` makes it.
pub fn guest_file(name: &str) -> String {
    let folder = std::env::var_os("VMSUP_GUEST")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest"), PathBuf::from);
    let path = folder.join(format!("{name}.elf"));
    let path = path.canonicalize().unwrap_or_else(|e| panic!("{}: {e}; run make build first", path.display()));
    path.to_str().unwrap().to_owned()
}

/// Pids of the children of a process.
pub fn children(pid: i32) -> Vec<i32> {
    let mut all = Vec::new();
    for task in names_or_none(&format!("/proc/{pid}/task")) {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{task}/children")).unwrap_or_default();
        all.extend(text.split_whitespace().filter_map(|n| n.parse::<i32>().ok()));
    }
    all
}

fn names_or_none(folder: &str) -> Vec<String> {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect()
}
