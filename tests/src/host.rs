//! A whole vmsup to talk to: a supervisor of an ordinary user, with its jailer and workers, driven by the CLI.

use crate::{Scratch, eventually, names, program, user::User};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A supervisor in the foreground, in a runtime directory of its own.
pub struct Host {
    /// Whose it is.
    pub user: User,
    /// Its process.
    pub supervisor: Child,
    /// What it was started with.
    started: Vec<String>,
    /// XDG_RUNTIME_DIR, and XDG_STATE_HOME below it.
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
        let vmsup = program("vmsup").to_str().unwrap().to_owned();
        let started: Vec<String> =
            wrapper.iter().copied().chain([&*vmsup, "serve"]).chain(args.iter().copied()).map(str::to_owned).collect();
        let supervisor = serve(user, &started, &runtime, &work, &[]);
        let mut host = Host { user: user.clone(), supervisor, started, runtime, work };
        host.wait_until_it_serves();
        host
    }

    /// The next supervisor, started as the first one was, which is gone.
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn next(&mut self) {
        self.supervisor = serve(&self.user, &self.started, &self.runtime, &self.work, &[]);
        self.wait_until_it_serves();
    }

    /// The next supervisor, started as the first one was, which is gone: the program that has faults, with these
    /// (`VMSUP_FAULT`, and the seed of those that strike at random). Not waited for: it may not live to serve.
    pub fn next_with_faults(&mut self, faults: &str, seed: u64) {
        let programs = ["vmsup", "vmsup-jailer", "vmsup-worker", "faults/vmsup"].map(program);
        let [whole, jailer, worker, faulty] = programs.map(|path| path.to_str().unwrap().to_owned());
        let mut started: Vec<String> =
            self.started.iter().map(|arg| if *arg == whole { faulty.clone() } else { arg.clone() }).collect();
        started.extend(["--jailer".into(), jailer, "--worker".into(), worker]);
        let env = [("VMSUP_FAULT", faults), ("VMSUP_FAULT_SEED", &seed.to_string())];
        self.supervisor = serve(&self.user, &started, &self.runtime, &self.work, &env);
    }

    /// Kills the supervisor, and starts the next one.
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn replace(&mut self) {
        self.supervisor.kill().unwrap();
        self.supervisor.wait().unwrap();
        self.next();
    }

    /// Sends SIGTERM to the supervisor, and waits until it has left in good order.
    ///
    /// # Panics
    /// Where it did not.
    pub fn leave(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.supervisor);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.supervisor.wait().unwrap().success(), "{}", self.log());
    }

    /// It answers: before that it takes over what there is.
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn wait_until_it_serves(&mut self) {
        let socket = self.folder().join("api.sock");
        eventually("the supervisor's socket", || {
            assert!(self.supervisor.try_wait().unwrap().is_none(), "the supervisor ended: {}", self.log());
            UnixStream::connect(&socket).is_ok()
        });
    }

    /// The supervisor's runtime directory.
    pub fn folder(&self) -> PathBuf {
        self.runtime.path().join("vmsup")
    }

    /// The directory of its durable state.
    pub fn state_folder(&self) -> PathBuf {
        self.runtime.path().join("state/vmsup")
    }

    /// What the supervisor and its jailer said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.work.path().join("supervisor.log")).unwrap_or_default()
    }

    /// A command of the CLI, not yet run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.user.command(program("vmsup"));
        command.args(args).env("XDG_RUNTIME_DIR", self.runtime.path()).stdin(Stdio::null());
        command.env("XDG_STATE_HOME", self.runtime.path().join("state"));
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

    /// What the API answers to these bytes, up to 1 MiB of it; nothing where it hangs up.
    ///
    /// # Panics
    /// Where nobody listens.
    pub fn http(&self, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.folder().join("api.sock")).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
        // A supervisor that has answered before it read all of it may have hung up already.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.take(1 << 20).read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// What the API has at this path.
    ///
    /// # Panics
    /// Where it refuses.
    pub fn get(&self, path: &str) -> String {
        let answer = self.http(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        answer
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
    /// Where there is none.
    pub fn jailer(&self) -> i32 {
        self.jailers().into_iter().min().expect("a jailer")
    }

    /// Pids of the jailers that work in this host's directory, whoever started them: one, or none.
    pub fn jailers(&self) -> Vec<i32> {
        let workers = self.folder().join("workers");
        let is_one = |pid: &i32| {
            is(*pid, "vmsup-jailer") && std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == workers)
        };
        let all: Vec<i32> = names("/proc").iter().filter_map(|name| name.parse().ok()).filter(is_one).collect();
        // A worker that is being made is one by name and place, too, until it executes its own program.
        let child = |pid: &i32| parent(*pid).is_none_or(|parent| all.contains(&parent));
        all.iter().copied().filter(|pid| !child(pid)).collect()
    }

    /// The handles of the VMs that run, as files.
    pub fn handles(&self) -> Vec<PathBuf> {
        let folder = self.folder().join("handles");
        names(&folder).into_iter().map(|name| folder.join(name)).collect()
    }

    /// Pids of the jailer's workers, warm ones included, half-made ones not.
    pub fn workers(&self) -> Vec<i32> {
        let mut all = self.jailers().into_iter().flat_map(children).collect::<Vec<i32>>();
        all.retain(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.starts_with("vmsup-w")));
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
        let sockets = || names(self.folder().join("workers")).into_iter().filter(|name| name.starts_with('w')).count();
        eventually("no socket but the pool's", || sockets() == pool);
        eventually("no handle", || self.handles().is_empty());
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
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
        // What outlives its supervisor is this test's to end: one in the background first, which would be told of the rest.
        let background = background(&self.runtime.path().join("vmsup"));
        let handles = std::fs::read_dir(self.folder().join("handles")).into_iter().flatten().flatten();
        let orphans = handles.filter_map(|entry| {
            let handle: serde_json::Value = serde_json::from_slice(&std::fs::read(entry.path()).ok()?).ok()?;
            i32::try_from(handle["pid"].as_i64()?).ok().filter(|pid| is(*pid, "vmsup-worker"))
        });
        let left: Vec<i32> =
            background.into_iter().chain(self.jailers()).chain(self.workers()).chain(orphans).collect();
        for pid in left.into_iter().filter_map(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Field 4 of `/proc/PID/stat`; none where the process is gone.
fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Starts a supervisor with this more in its environment; what it says is appended to its log.
fn serve(user: &User, started: &[String], runtime: &Scratch, work: &Scratch, env: &[(&str, &str)]) -> Child {
    let log = std::fs::File::options().append(true).create(true).open(work.path().join("supervisor.log")).unwrap();
    user.command(&started[0])
        .args(&started[1..])
        .env("XDG_RUNTIME_DIR", runtime.path())
        .env("XDG_STATE_HOME", runtime.path().join("state"))
        .env("VMSUP_LOG", "debug")
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Pids of the supervisors that a command of the CLI started: those that hold the lock of this directory.
fn background(folder: &Path) -> Vec<i32> {
    let lock = folder.join("lock");
    let holds = |pid: &i32| {
        is(*pid, "vmsup")
            && names_or_none(&format!("/proc/{pid}/fd"))
                .iter()
                .any(|fd| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).is_ok_and(|path| path == lock))
    };
    names("/proc").iter().filter_map(|name| name.parse().ok()).filter(holds).collect()
}

/// True where that process runs the program of that name.
fn is(pid: i32, program: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == program)
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
