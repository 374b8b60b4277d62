//! A supervisor with one VM whose guest is the test.

use super::{Answer, Asked, Fake, HELLO, vm};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};

/// How a made-up VM ends.
pub type End = (&'static str, &'static str);

/// A supervisor with one VM, whose console is at the other end of a channel: the test is the guest.
pub struct Guest {
    pub fake: Fake,
    pub consoles: Receiver<UnixStream>,
    pub end: Arc<(Mutex<Option<End>>, Condvar)>,
}

impl Guest {
    /// A guest that runs until [`Guest::ends`].
    pub fn new() -> Guest {
        let (sender, consoles): (Sender<UnixStream>, _) = channel();
        let sender = Mutex::new(sender);
        let end: Arc<(Mutex<Option<End>>, Condvar)> = Arc::default();
        let ended = end.clone();
        let fake = Fake::new(move |asked: &Asked| {
            let sender = sender.lock().unwrap().clone();
            match asked.what.as_str() {
                "POST /v1/vms" => Answer::Json(201, vm("hello", None)),
                what if what.contains("/console") => Answer::Console(Box::new(move |s| sender.send(s).unwrap())),
                // stop, kill and wait are answered when the VM has ended.
                _ => {
                    let mut end = ended.0.lock().unwrap();
                    while end.is_none() {
                        end = ended.1.wait(end).unwrap();
                    }
                    Answer::Json(200, vm("hello", *end))
                }
            }
        });
        fake.place.file("vm.json", HELLO);
        Guest { fake, consoles, end }
    }

    /// The test's end of the next console that is attached.
    pub fn console(&self) -> UnixStream {
        self.consoles.recv().unwrap()
    }

    /// The VM ends; `console` is closed as the supervisor does.
    pub fn ends(&self, how: End, console: UnixStream) {
        *self.end.0.lock().unwrap() = Some(how);
        self.end.1.notify_all();
        drop(console);
    }

    /// Starts `vmsup` and does not wait.
    pub fn spawn(&self, args: &[&str]) -> Child {
        self.fake.place.vmsup(args).spawn().unwrap()
    }

    /// Waits until something was asked of the supervisor.
    pub fn wait_for(&self, what: &str) {
        while !self.fake.asked().iter().any(|asked| asked == what) {
            std::thread::yield_now();
        }
    }
}
