//! A browser without a screen, by the Chrome DevTools Protocol.
//!
//! Chromium reads commands from fd 3 and writes answers and events to fd 4, each a JSON text that ends with a NUL
//! (`--remote-debugging-pipe`): no port, so nothing else can talk to it.

use crate::user::User;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

/// Programs that will do, the smallest first.
const PROGRAMS: [&str; 3] = ["chromium-headless-shell", "chromium", "google-chrome"];

/// A running browser with one page; ends when dropped.
pub struct Browser {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    next: u64,
    session: Value,
    /// What it told without being asked.
    pub events: Vec<Value>,
}

/// Where one is installed.
pub fn installed() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    PROGRAMS.iter().find_map(|name| folders.iter().map(|f| f.join(name)).find(|p| p.is_file()))
}

impl Browser {
    /// Starts one whose profile is in this folder, as that user.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn start(program: &Path, profile: &Path, user: &User) -> Browser {
        // The sandbox of Chromium wants user namespaces of its own or a setuid helper, which containers have not; the page
        // is ours.
        let mut child = user
            .command("sh")
            .arg("-c")
            .arg(
                "exec \"$0\" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars \
                 --remote-debugging-pipe --user-data-dir=\"$1\" about:blank 3<&0 4>&1 </dev/null >/dev/null 2>&1",
            )
            .args([program, profile])
            .env("HOME", profile)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh is there");
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut browser = Browser { child, to, from, next: 0, session: Value::Null, events: Vec::new() };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = attached["sessionId"].clone();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Asks, and waits for the answer; what comes in between is kept in `events`.
    ///
    /// # Panics
    /// Where the browser refuses, or is gone.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({"id": id, "method": method, "params": params});
        if !self.session.is_null() {
            message["sessionId"] = self.session.clone();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).unwrap_or_else(|e| panic!("{method}: the browser is gone: {e}"));
        loop {
            let message = self.read(method);
            if message["id"] == id {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    /// Waits for an event of this name that was not seen yet.
    ///
    /// # Panics
    /// Where the browser is gone.
    pub fn wait(&mut self, event: &str) {
        loop {
            if let Some(at) = self.events.iter().position(|e| e["method"] == event) {
                self.events.remove(at);
                return;
            }
            let message = self.read(event);
            self.events.push(message);
        }
    }

    /// What an expression is, by value.
    ///
    /// # Panics
    /// Where it throws.
    pub fn evaluate(&mut self, script: &str) -> Value {
        let answer = self.call("Runtime.evaluate", json!({"expression": script, "returnByValue": true}));
        assert!(answer["exceptionDetails"].is_null(), "{answer}");
        answer["result"]["value"].clone()
    }

    fn read(&mut self, waiting: &str) -> Value {
        let mut bytes = Vec::new();
        self.from.read_until(0, &mut bytes).expect("the pipe can be read");
        assert_eq!(bytes.pop(), Some(0), "the browser is gone while we wait for {waiting}");
        serde_json::from_slice(&bytes).expect("JSON")
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
