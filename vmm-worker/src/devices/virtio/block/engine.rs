//! The `threads` engine: a few threads for each disk, which read, write and flush.
//!
//! Requests are passed by ownership: spare → waiting → with a thread → finished → spare. There are as many as the queue
//! has descriptors, made once, so no guest can have more in flight, and only the reactor, which fills them, allocates. A
//! thread holds what it touches: the request, the disk and guest RAM.
//!
//! Submitting and collecting run on the reactor, giving up also on a vCPU thread (reset). The lock is held for a move of
//! a pointer, never across a system call on the disk.

use super::disk::Storage;
use crate::memory::{GuestMemory, Segment};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Threads of a disk: one may be inside a slow flush while the other reads.
const THREADS: usize = 2;

/// What a thread is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Disk to guest RAM.
    Read,
    /// Guest RAM to disk.
    Write {
        /// To be flushed before it is finished.
        durable: bool,
    },
    /// Make durable what was finished before.
    Flush,
}

/// One request and all that it touches.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub operation: Operation,
    /// Where on the disk, bytes.
    pub offset: u64,
    /// Where in guest RAM.
    pub data: Vec<Segment>,
    /// Where its status byte goes.
    pub status: GuestAddress,
    /// The chain that it came in.
    pub head: u16,
    /// When its chain was taken from the queue.
    pub arrived: Option<Instant>,
    /// How it went.
    pub ok: bool,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            operation: Operation::Flush,
            offset: 0,
            data: Vec::new(),
            status: GuestAddress(0),
            head: 0,
            arrived: None,
            ok: false,
        }
    }
}

struct Shared {
    queues: Mutex<Queues>,
    work: Condvar,
    finished: Arc<EventFd>,
    storage: Box<dyn Storage>,
    mem: GuestMemory,
}

struct Queues {
    waiting: VecDeque<Request>,
    /// How many requests threads are busy with.
    busy: usize,
    finished: VecDeque<Request>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a request and carries it out.
    fn serve_one(&self) {
        let mut queues = self.lock();
        let mut request = loop {
            match queues.waiting.pop_front() {
                Some(request) => break request,
                None => queues = self.work.wait(queues).unwrap_or_else(PoisonError::into_inner),
            }
        };
        queues.busy += 1;
        drop(queues);
        request.ok = self.carry_out(&request).is_ok();
        let mut queues = self.lock();
        queues.busy -= 1;
        let first = queues.finished.is_empty();
        queues.finished.push_back(request);
        drop(queues);
        // Who finds others there knows that the reactor was called for them and has not emptied the list since.
        if first {
            let _ = self.finished.write(1);
        }
    }

    fn carry_out(&self, request: &Request) -> std::io::Result<()> {
        match request.operation {
            Operation::Read => self.storage.read(&self.mem, &request.data, request.offset),
            Operation::Write { durable } => {
                self.storage.write(&self.mem, &request.data, request.offset)?;
                if durable { self.storage.flush() } else { Ok(()) }
            }
            // Each write that was finished before is in the kernel's hands since before this call.
            Operation::Flush => self.storage.flush(),
        }
    }
}

/// A disk's engine, as its device sees it.
pub struct Engine {
    shared: Arc<Shared>,
}

impl Engine {
    /// An engine for at most `requests` at once, and its threads, which are to be started.
    ///
    /// # Errors
    /// What `eventfd2(2)` says.
    pub fn new(storage: Box<dyn Storage>, mem: GuestMemory, requests: usize) -> std::io::Result<(Self, Vec<IoThread>)> {
        let queues =
            Queues { waiting: VecDeque::with_capacity(requests), busy: 0, finished: VecDeque::with_capacity(requests) };
        let finished = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let shared = Arc::new(Shared { queues: Mutex::new(queues), work: Condvar::new(), finished, storage, mem });
        let threads = (0..THREADS).map(|_| IoThread { shared: shared.clone() }).collect();
        Ok((Self { shared }, threads))
    }

    /// Readable when something is finished.
    pub fn finished_event(&self) -> Arc<EventFd> {
        self.shared.finished.clone()
    }

    /// Gives a request to the threads.
    pub fn submit(&self, request: Request) {
        self.shared.lock().waiting.push_back(request);
        self.shared.work.notify_one();
    }

    /// A request that is finished.
    pub fn take_finished(&self) -> Option<Request> {
        self.shared.lock().finished.pop_front()
    }

    /// Takes back all requests that no thread is busy with, whatever became of them. True when none is left.
    pub fn abandon(&self, spare: &mut Vec<Request>) -> bool {
        let mut queues = self.shared.lock();
        spare.extend(queues.waiting.drain(..));
        spare.extend(queues.finished.drain(..));
        queues.busy == 0
    }
}

/// One of a disk's threads, not yet running.
pub struct IoThread {
    shared: Arc<Shared>,
}

impl IoThread {
    /// Serves the disk for ever.
    pub fn run(self) -> ! {
        loop {
            self.shared.serve_one();
        }
    }
}

impl std::fmt::Debug for IoThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoThread").finish_non_exhaustive()
    }
}
