//! Stops a process between two of its system calls, to do something to it there.

use std::cell::Cell;
use std::io;

/// A process that is traced by the thread that made this. Dropping it lets the process go on untraced.
pub struct Tracer {
    pid: i32,
    /// It stands still, at a stop that was seen.
    stopped: Cell<bool>,
}

impl Tracer {
    /// Attaches and stops it.
    ///
    /// # Errors
    /// What `ptrace(2)` says.
    pub fn attach(pid: i32) -> io::Result<Tracer> {
        request(libc::PTRACE_SEIZE, pid, libc::PTRACE_O_TRACESYSGOOD as usize)?;
        let tracer = Tracer { pid, stopped: Cell::new(false) };
        request(libc::PTRACE_INTERRUPT, pid, 0)?;
        tracer.wait();
        Ok(tracer)
    }

    /// Lets it make `calls` system calls, one after another. False where it has ended, or waits for something while what
    /// it was to be stopped in is `over`.
    pub fn advance(&self, calls: usize, mut over: impl FnMut() -> bool) -> bool {
        // It stops at the entry and at the exit of each.
        (0..2 * calls).all(|_| {
            self.stopped.set(false);
            request(libc::PTRACE_SYSCALL, self.pid, 0).is_ok()
                && loop {
                    match self.look(libc::WNOHANG) {
                        Some(stopped) => break stopped,
                        None if over() => break false,
                        None => std::thread::yield_now(),
                    }
                }
        })
    }

    /// Kills it where it stands, and lets its parent have what is left of it.
    pub fn kill(self) {
        // SAFETY: plain numbers; the pid is of a process that we trace, so it is not reused.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        // A tracer sees the end first; until it has, the parent does not.
        while self.wait() {}
    }

    /// Waits for a stop; false where it has ended.
    fn wait(&self) -> bool {
        self.look(0) == Some(true)
    }

    /// True for a stop, false for an end, none where there is no news.
    fn look(&self, options: i32) -> Option<bool> {
        let mut status = 0;
        // SAFETY: status is valid for the call.
        match unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL | options) } {
            0 => None,
            pid => {
                self.stopped.set(pid == self.pid && libc::WIFSTOPPED(status));
                Some(self.stopped.get())
            }
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Only what stands still can be let go.
        if !self.stopped.get() && request(libc::PTRACE_INTERRUPT, self.pid, 0).is_ok() {
            self.wait();
        }
        let _ = request(libc::PTRACE_DETACH, self.pid, 0);
    }
}

fn request(what: libc::c_uint, pid: i32, data: usize) -> io::Result<()> {
    // SAFETY: these requests take plain numbers and touch no memory of ours.
    match unsafe { libc::ptrace(what, pid, std::ptr::null_mut::<libc::c_void>(), data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
