//! Stops a process between two of its system calls, to do something to it there.

use std::io;

/// A process that is traced by the thread that made this. Dropping it lets the process go on untraced.
pub struct Tracer {
    pid: i32,
}

impl Tracer {
    /// Attaches and stops it.
    ///
    /// # Errors
    /// What `ptrace(2)` says.
    pub fn attach(pid: i32) -> io::Result<Tracer> {
        request(libc::PTRACE_SEIZE, pid, libc::PTRACE_O_TRACESYSGOOD as usize)?;
        let tracer = Tracer { pid };
        request(libc::PTRACE_INTERRUPT, pid, 0)?;
        tracer.wait();
        Ok(tracer)
    }

    /// Lets it run to its next entry to or exit from a system call. False where it has ended.
    pub fn step(&self) -> bool {
        request(libc::PTRACE_SYSCALL, self.pid, 0).is_ok() && self.wait()
    }

    /// Kills it where it stands.
    pub fn kill(self) {
        // SAFETY: plain numbers; the pid is of a process that we trace, so it is not reused.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
    }

    /// Waits for a stop; false where it has ended.
    fn wait(&self) -> bool {
        let mut status = 0;
        // SAFETY: status is valid for the call.
        let pid = unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
        pid == self.pid && libc::WIFSTOPPED(status)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
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
