//! A place of its own for each test, the built `vmsup` in it, and a supervisor made of a script.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod guest;
pub mod netd;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// A directory that goes with the test.
pub struct Place(PathBuf);

impl Place {
    pub fn new() -> Place {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vmsup-cli-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(path.join("run")).unwrap();
        Place(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file.
    pub fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// `vmsup` with arguments, in this directory, with a runtime directory of its own, no input and piped output.
    pub fn vmsup(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmsup"));
        command.args(args).current_dir(&self.0).env("XDG_RUNTIME_DIR", self.0.join("run"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> Done {
        Done::from(self.vmsup(args).output().unwrap())
    }

    /// What a command left in the runtime directory.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.0.join("run")).unwrap().map(|e| e.unwrap().path()).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How a command came out.
#[derive(Debug)]
pub struct Done {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Done {
        Done {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Done {
    /// One sentence on stderr, nothing on stdout, nothing that looks like a program's insides.
    #[track_caller]
    pub fn is_one_sentence(&self, status: i32) -> &str {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        let sentence = self.stderr.strip_prefix("vmsup: ").unwrap_or_else(|| panic!("{self:?}"));
        let sentence = sentence.strip_suffix('\n').unwrap_or_else(|| panic!("{self:?}"));
        assert!(!sentence.contains(|c: char| c.is_control()), "{self:?}");
        for inside in ["Some(", "None", "Err(", "Error {", "kind:", "panicked", "(os error", "::"] {
            assert!(!sentence.contains(inside), "{inside:?} in {sentence}");
        }
        sentence
    }
}

/// What was asked of the supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub what: String,
    pub body: String,
}

/// What it answers.
pub enum Answer {
    Json(u16, serde_json::Value),
    Bytes(&'static str, Vec<u8>),
    /// A stream of lines, which ends.
    Lines(&'static str),
    /// An upgraded stream, handed to this.
    Console(Box<dyn FnOnce(UnixStream) + Send>),
    HangUp,
}

/// A supervisor that answers as a script says.
pub struct Fake {
    pub place: Place,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Fake {
    pub fn new(script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Fake {
        let place = Place::new();
        let dir = place.path().join("run/vmsup");
        std::fs::create_dir_all(&dir).unwrap();
        let listener = UnixListener::bind(dir.join("api.sock")).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (script, log) = (Arc::new(script), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (script, log) = (script.clone(), log.clone());
                std::thread::spawn(move || serve(stream, &*script, &log));
            }
        });
        Fake { place, asked }
    }

    /// All requests so far, `METHOD TARGET`.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|a| a.what.clone()).collect()
    }

    /// The body of the first request for `what`.
    pub fn body(&self, what: &str) -> serde_json::Value {
        let asked = self.asked.lock().unwrap();
        let one = asked.iter().find(|a| a.what == what).unwrap_or_else(|| panic!("{what} was not asked"));
        serde_json::from_str(&one.body).unwrap()
    }
}

fn serve(mut stream: UnixStream, script: &dyn Fn(&Asked) -> Answer, log: &Mutex<Vec<Asked>>) {
    while let Some(asked) = request(&mut stream) {
        log.lock().unwrap().push(asked.clone());
        let written = match script(&asked) {
            Answer::Json(status, value) => answer(&mut stream, status, "", value.to_string().as_bytes()),
            Answer::Bytes(headers, body) => answer(&mut stream, 200, headers, &body),
            Answer::Lines(lines) => {
                let head = "HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n";
                let chunk = if lines.is_empty() { String::new() } else { format!("{:x}\r\n{lines}\r\n", lines.len()) };
                stream.write_all(format!("{head}{chunk}0\r\n\r\n").as_bytes())
            }
            Answer::Console(then) => {
                let head = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: vmsup-console\r\n\r\n";
                if stream.write_all(head).is_ok() {
                    then(stream);
                }
                return;
            }
            Answer::HangUp => return,
        };
        if written.is_err() {
            return;
        }
    }
}

fn answer(stream: &mut UnixStream, status: u16, headers: &str, body: &[u8]) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat())
}

fn request(stream: &mut UnixStream) -> Option<Asked> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    let what = head.lines().next()?.strip_suffix(" HTTP/1.1")?.to_owned();
    Some(Asked { what, body: String::from_utf8(body).ok()? })
}

/// A VM as the API tells of it.
pub fn vm(name: &str, end: Option<(&str, &str)>) -> serde_json::Value {
    let state = match end {
        None => "running",
        Some(("shutdown" | "reset" | "killed", _)) => "stopped",
        Some(_) => "crashed",
    };
    serde_json::json!({
        "name": name, "id": "77aa", "state": state, "pid": 4711, "owner": 1000, "cpus": 1, "memory_mib": 32,
        "nets": [], "started_at": 1, "end": end.map(|(kind, reason)| serde_json::json!({ "kind": kind, "reason": reason, "at": 2 })),
        "desired": if end.is_some() { "stopped" } else { "running" }, "generation": 1, "spec_hash": "5ec", "restarts": 0,
        "spec": { "name": name, "cpus": 1, "memory_mib": 32, "boot": { "builtin": "hello" } },
        "worker": null, "console": { "written": 0, "overwritten": 0 }
    })
}

/// An error as the API tells of it.
pub fn error(code: &str, message: &str, field: Option<&str>) -> serde_json::Value {
    serde_json::json!({ "code": code, "message": message, "field": field })
}

/// A file that is good.
pub const HELLO: &str =
    "{\n  \"name\": \"hello\",\n  \"cpus\": 1,\n  \"memory_mib\": 32,\n  \"boot\": { \"builtin\": \"hello\" }\n}\n";
