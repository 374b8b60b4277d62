//! Closing what somebody else made, where nobody waits for it.
//!
//! close(2) of a file whose file system another program serves (FUSE) or another host (NFS) waits for that one, for ever where
//! it wants that. So fds that a worker gives us and that are refused, and guest files that are not on a local file system, are
//! closed on threads of their own: a few, made when there is something to close, gone when there is nothing more. What finds
//! all of them hanging stays open, and no more of such files are opened then ([`is_behind`]).

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// Threads that may hang.
const THREADS: usize = 4;
/// How many may wait for them before no more are opened.
const WAITING: usize = 64;

static CLOSER: LazyLock<Arc<Closer>> = LazyLock::new(Arc::default);

/// Closes these by and by.
pub fn later(fds: impl IntoIterator<Item = OwnedFd>) {
    let fds: Vec<OwnedFd> = fds.into_iter().collect();
    if !fds.is_empty() {
        CLOSER.take(Box::new(fds));
    }
}

/// True where closing hangs, and too much waits for it already.
pub fn is_behind() -> bool {
    CLOSER.lock().waiting.len() > WAITING
}

#[derive(Default)]
struct Closer(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    threads: usize,
    waiting: VecDeque<Box<dyn Send>>,
}

impl Closer {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Closer>, what: Box<dyn Send>) {
        let mut inner = self.lock();
        inner.waiting.push_back(what);
        if inner.threads == THREADS {
            return;
        }
        let closer = self.clone();
        let thread = std::thread::Builder::new().name("vmsup-close".into());
        match thread.spawn(move || closer.close()) {
            Ok(_) => inner.threads += 1,
            // The next one takes it along.
            Err(error) => tracing::warn!(%error, "no thread to close files; they stay open for now"),
        }
    }

    fn close(&self) {
        loop {
            let mut inner = self.lock();
            let Some(what) = inner.waiting.pop_front() else {
                inner.threads -= 1;
                return;
            };
            drop(inner);
            drop(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Something whose closing waits until the other end is gone.
    struct Hangs(Receiver<()>);

    impl Drop for Hangs {
        fn drop(&mut self) {
            let _ = self.0.recv();
        }
    }

    fn hangs() -> (Sender<()>, Box<Hangs>) {
        let (let_go, wait) = channel();
        (let_go, Box::new(Hangs(wait)))
    }

    #[test]
    fn what_hangs_holds_up_nobody_while_a_thread_is_left_and_then_what_comes_waits() {
        let closer = Arc::new(Closer::default());
        let mut held: Vec<Sender<()>> = Vec::new();
        for _ in 1..THREADS {
            let (let_go, hangs) = hangs();
            closer.take(hangs);
            held.push(let_go);
        }
        let (reader, writer) = std::io::pipe().unwrap();
        closer.take(Box::new(writer));
        // The end of a pipe is read when nobody has its other end open.
        assert_eq!(std::io::read_to_string(reader).unwrap(), "");
        while closer.lock().threads > THREADS - 1 {
            std::thread::yield_now();
        }
        let (last, hang) = hangs();
        closer.take(hang);
        let (more, hang) = hangs();
        closer.take(hang);
        while closer.lock().waiting.len() > 1 {
            std::thread::yield_now();
        }
        assert_eq!(closer.lock().threads, THREADS);
        drop((held, last, more));
        while closer.lock().threads > 0 {
            std::thread::yield_now();
        }
        assert!(closer.lock().waiting.is_empty(), "and nothing idles");
    }
}
