//! A VM's console as the supervisor sees it: the ring that the worker writes, and the pipe that the guest reads.
//!
//! Nothing is buffered here. Every reader has its own position in the ring and takes from it as fast as its client
//! reads; who is too slow loses the oldest bytes and is told how many. What the worker wrote into the ring's counters
//! is an allegation ([`worker_api::console::available`] reduces it).
//!
//! ```text
//!  worker ──▶ ring (memfd) ──pread──▶ reader A ──▶ client     each at its own position
//!     │                    ──pread──▶ reader B ──▶ client
//!     └─ notify (eventfd) ─▶ pump: seen := written; tells the readers
//! ```
//!
//! The pump runs only while there are readers. Without any, `seen` stays behind, so that the worker never writes the
//! eventfd and a guest that talks to nobody wakes nobody.

use super::readiness::watch;
use super::{closing, memfd};
use rustix::event::EventfdFlags;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::pipe::PipeFlags;
use std::io::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::sync::watch;
use worker_api::console::{CAPACITY, DATA, RING_BYTES, SEEN, WRITTEN, available};

/// The least time between two rounds of the pump in the long run: a guest that writes without pause (or a worker that
/// writes its eventfd in a loop) costs at most 500 rounds a second.
const PACE: Duration = Duration::from_millis(2);
/// Rounds that may follow each other at once after silence: a line or a prompt is not held up.
const BURST: u32 = 16;

/// The ends that the supervisor keeps.
#[derive(Debug)]
pub struct Console {
    ring: OwnedFd,
    notify: OwnedFd,
    /// Write end of the guest's input. An open file of its own, for writing only: where the worker is gone, so is the last
    /// reader, and a write says so.
    input: OwnedFd,
    /// Someone writes, or nobody may.
    input_taken: AtomicBool,
    /// `written` as the pump last saw it.
    news: watch::Sender<u64>,
    pumping: Mutex<bool>,
}

/// The ends that go to the worker; the ring and the eventfd are shared.
#[derive(Debug)]
pub struct WorkerEnds {
    /// The ring.
    pub ring: OwnedFd,
    /// The eventfd.
    pub notify: OwnedFd,
    /// The input pipe, open for reading and writing: it never hangs up, so that a guest outlives its supervisor's end.
    pub input: OwnedFd,
}

impl Console {
    /// Makes ring, eventfd and pipe.
    ///
    /// # Errors
    /// Out of fds or memory.
    pub fn new(with_input: bool) -> Result<(Arc<Console>, WorkerEnds)> {
        let ring = memfd::sealed("vmsup-console", RING_BYTES)?;
        let notify = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let both = open_again(&read, OFlags::RDWR)?;
        let ends = WorkerEnds { ring: ring.try_clone()?, notify: notify.try_clone()?, input: both };
        Ok((Console::of(ring, notify, write, with_input), ends))
    }

    /// Takes a VM's console over from its worker: ring, eventfd and input pipe, which are an allegation. None of them may be
    /// one that makes us wait, or that shrinks under us; that the worker writes nonsense into them it could before.
    ///
    /// # Errors
    /// What is wrong with them; out of fds.
    pub fn adopted(ends: [OwnedFd; 3], with_input: bool) -> Result<Arc<Console>> {
        match fit(&ends) {
            Ok(input) => {
                let [ring, notify, _] = ends;
                Ok(Console::of(ring, notify, input, with_input))
            }
            Err(error) => {
                closing::later(ends);
                Err(error)
            }
        }
    }

    fn of(ring: OwnedFd, notify: OwnedFd, input: OwnedFd, with_input: bool) -> Arc<Console> {
        Arc::new(Console {
            ring,
            notify,
            input,
            input_taken: AtomicBool::new(!with_input),
            news: watch::Sender::new(0),
            pumping: Mutex::new(false),
        })
    }

    /// Bytes that the guest ever wrote, as the worker says.
    pub fn written(&self) -> u64 {
        let mut bytes = [0; 8];
        match rustix::io::pread(&self.ring, &mut bytes, WRITTEN) {
            Ok(8) => u64::from_le_bytes(bytes),
            _ => 0,
        }
    }

    /// A reader from the first byte that is still there, or from now on.
    pub fn reader(self: &Arc<Console>, history: bool) -> Reader {
        let written = self.written();
        let position = if history { available(0, written).1 } else { written };
        let mut pumping = self.pumping.lock().unwrap_or_else(PoisonError::into_inner);
        let news = self.news.subscribe();
        if !std::mem::replace(&mut *pumping, true) {
            tokio::spawn(self.clone().pump());
        }
        Reader { console: self.clone(), news, position }
    }

    /// All that is kept, with what it cost: (bytes, how many were written before the first of them).
    pub fn kept(&self) -> (Vec<u8>, u64) {
        let written = self.written();
        let (lost, start) = available(0, written);
        let mut bytes = vec![0; usize::try_from(written - start).unwrap_or(0).min(CAPACITY as usize)];
        let got = self.copy(start, &mut bytes);
        bytes.truncate(got);
        // What was overwritten while it was copied is not what it seems.
        let torn = self.written().saturating_sub(CAPACITY).saturating_sub(start);
        let torn = torn.min(got as u64);
        (bytes.split_off(torn as usize), lost + torn)
    }

    /// The guest's input, for one writer at a time.
    pub fn take_input(self: &Arc<Console>) -> Option<Input> {
        let free = self.input_taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).is_ok();
        free.then(|| Input { console: self.clone() })
    }

    /// Copies ring bytes from number `start` on; says how many. The caller has made sure that they are there.
    fn copy(&self, start: u64, into: &mut [u8]) -> usize {
        let mut done = 0;
        while done < into.len() {
            let at = (start + done as u64) % CAPACITY;
            let run = (into.len() - done).min((CAPACITY - at) as usize);
            match rustix::io::pread(&self.ring, &mut into[done..done + run], DATA + at) {
                Ok(n) if n > 0 => done += n,
                // Cannot happen to a memfd that is sealed against shrinking. Zeros keep the readers moving.
                _ => {
                    into[done..done + run].fill(0);
                    done += run;
                }
            }
        }
        done
    }

    /// Follows the ring while there are readers.
    async fn pump(self: Arc<Console>) {
        while let Err(error) = self.follow().await {
            // Out of memory for a registration, say: the readers still get what is there when the VM ends.
            tracing::error!(%error, "cannot follow a console; trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn follow(&self) -> Result<()> {
        let mut pace = Pace { credit: BURST, since: Instant::now() };
        loop {
            // Drained first: whatever the worker signals from here on is seen by the wait below.
            let _ = rustix::io::read(&self.notify, &mut [0; 8]);
            let written = self.written();
            rustix::io::pwrite(&self.ring, &written.to_le_bytes(), SEEN)?;
            self.publish(written);
            if self.written() == written {
                // Registered only while it is waited for: signals in between wake nobody.
                let notify = watch(self.notify.as_fd(), Interest::READABLE)?;
                tokio::select! {
                    ready = notify.readable() => drop(ready?),
                    () = self.news.closed() => {}
                }
            }
            if self.stop() {
                return Ok(());
            }
            self.publish(self.written());
            pace.wait().await;
        }
    }

    fn publish(&self, written: u64) {
        self.news.send_if_modified(|news| std::mem::replace(news, written) != written);
    }

    /// True where the last reader has gone; the next one starts a new pump.
    fn stop(&self) -> bool {
        let mut pumping = self.pumping.lock().unwrap_or_else(PoisonError::into_inner);
        *pumping = self.news.receiver_count() > 0;
        !*pumping
    }
}

/// Another open file of the same pipe, non-blocking.
fn open_again(pipe: &OwnedFd, access: OFlags) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    Ok(rustix::fs::openat(CWD, path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?)
}

fn open_for(fd: &OwnedFd, access: OFlags) -> Result<bool> {
    Ok(rustix::fs::fcntl_getfl(fd)? & OFlags::RWMODE == access)
}

/// Looks at what a worker handed over as its console, and opens the input anew. Asks the kernel only: what it may be instead is
/// a file whose file system would not answer (fstat(2) asks it).
fn fit([ring, notify, input]: &[OwnedFd; 3]) -> Result<OwnedFd> {
    let not = |what: &str| Err(Error::other(format!("what it gave as {what}")));
    if !memfd::is_sealed(ring, RING_BYTES) || !open_for(ring, OFlags::RDWR)? {
        return not("its console's ring is no sealed memfd of that size");
    }
    // A read of one that is not non-blocking would hold up everybody.
    let flags = rustix::fs::fcntl_getfl(notify)?;
    if !is_eventfd(notify)? || !flags.contains(OFlags::NONBLOCK) {
        return not("its console's signal is no non-blocking eventfd");
    }
    // F_GETPIPE_SZ: of a pipe only.
    if rustix::pipe::fcntl_getpipe_size(input).is_err() {
        return not("its console's input is no pipe");
    }
    // Ours alone, so that the worker cannot make it blocking.
    open_again(input, OFlags::WRONLY)
}

/// True for an eventfd, whose fdinfo alone has that line (proc_pid_fdinfo(5)).
fn is_eventfd(fd: &OwnedFd) -> Result<bool> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let info = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // An eventfd's are a few short lines.
    let mut text = [0; 512];
    let bytes = rustix::io::read(&info, &mut text)?;
    Ok(text[..bytes].split(|byte| *byte == b'\n').any(|line| line.starts_with(b"eventfd-count:")))
}

/// A bucket of [`BURST`] rounds that fills by one each [`PACE`].
struct Pace {
    credit: u32,
    since: Instant,
}

impl Pace {
    async fn wait(&mut self) {
        let earned = u32::try_from(self.since.elapsed().as_micros() / PACE.as_micros()).unwrap_or(BURST);
        if earned > 0 {
            self.credit = self.credit.saturating_add(earned).min(BURST);
            self.since = Instant::now();
        }
        match self.credit.checked_sub(1) {
            // Lets the readers take what was published.
            Some(left) => {
                self.credit = left;
                tokio::task::yield_now().await;
            }
            None => tokio::time::sleep(PACE).await,
        }
    }
}

/// One reader's place in the ring.
#[derive(Debug)]
pub struct Reader {
    console: Arc<Console>,
    news: watch::Receiver<u64>,
    position: u64,
}

/// What a reader found.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Bytes that were overwritten before they could be read.
    pub lost: u64,
    /// How many bytes of the buffer are filled.
    pub bytes: usize,
}

impl Reader {
    /// Takes what is there, at most a buffer full; nothing lost and no bytes where there is no news.
    pub fn take(&mut self, buffer: &mut [u8]) -> Chunk {
        let written = self.console.written();
        let (mut lost, start) = available(self.position, written);
        let want = usize::try_from(written.max(start) - start).unwrap_or(usize::MAX).min(buffer.len());
        let mut bytes = self.console.copy(start, &mut buffer[..want]);
        // The worker may have overwritten the oldest of them meanwhile: those are lost, too.
        let torn = self.console.written().saturating_sub(CAPACITY).saturating_sub(start).min(bytes as u64);
        buffer.copy_within(torn as usize..bytes, 0);
        bytes -= torn as usize;
        lost += torn;
        self.position += lost + bytes as u64;
        Chunk { lost, bytes }
    }

    /// Waits until there may be news. May be dropped and called again.
    pub async fn news(&mut self) {
        // What the pump has told, not what the ring says by now: the pump has its pace, and a worker that counts up without
        // end would let nobody else have this thread.
        while *self.news.borrow_and_update() <= self.position {
            if self.news.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// The right to write to the guest's serial port; given back when dropped.
#[derive(Debug)]
pub struct Input {
    console: Arc<Console>,
}

impl Input {
    /// Writes all of `bytes`, waiting as long as the guest does not read.
    ///
    /// # Errors
    /// The worker is gone.
    pub async fn write(&self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.console.input, bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(rustix::io::Errno::AGAIN) => {
                    let pipe = watch(self.console.input.as_fd(), Interest::WRITABLE)?;
                    drop(pipe.writable().await?);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.console.input_taken.store(false, Ordering::Release);
    }
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
