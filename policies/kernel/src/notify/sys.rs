//! `seccomp_unotify(2)`: the system calls, and the two structures that the kernel fills and reads.

#![allow(unsafe_code)]

use libc::{seccomp_notif, seccomp_notif_resp};
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd};

/// A system call that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Names it in the answer.
    pub id: u64,
    /// The thread that made it, as the pid namespace of this process has it; 0 where it is gone from there.
    pub tid: i32,
    /// Number.
    pub nr: u32,
    /// `AUDIT_ARCH_*`.
    pub arch: u32,
    /// Where it was made.
    pub instruction_pointer: u64,
    /// Arguments.
    pub args: [u64; 6],
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The kernel makes it.
    Continue,
    /// It is not made, and returns 0.
    Done,
}

/// Bytes of the kernel's two structures. They may be larger than those that this program was built with: a buffer has
/// to hold them whole.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    notification: usize,
    response: usize,
}

impl Sizes {
    /// Asks the kernel.
    ///
    /// # Errors
    /// A kernel before 5.0.
    pub fn ask() -> Result<Sizes> {
        let mut sizes = libc::seccomp_notif_sizes { seccomp_notif: 0, seccomp_notif_resp: 0, seccomp_data: 0 };
        // SAFETY: the kernel writes one such structure, which lives on this stack until the call returns.
        let done = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_NOTIF_SIZES, 0, std::ptr::from_mut(&mut sizes))
        };
        if done != 0 {
            return Err(Error::last_os_error());
        }
        Ok(Sizes {
            notification: usize::from(sizes.seccomp_notif).max(size_of::<seccomp_notif>()),
            response: usize::from(sizes.seccomp_notif_resp).max(size_of::<seccomp_notif_resp>()),
        })
    }

    /// The next call that waits. Does not return until there is one: ask `poll(2)` first.
    ///
    /// # Errors
    /// `ENOENT` where its thread was killed in the meantime.
    pub fn receive(self, listener: BorrowedFd<'_>) -> Result<Waiting> {
        // Of u64, which gives it the alignment of the structure; zeroed, as the kernel demands.
        let mut buffer = vec![0u64; self.notification.div_ceil(8)];
        // SAFETY: the kernel writes as many bytes as it said that its structure has, and the buffer holds them.
        let done = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, buffer.as_mut_ptr()) };
        if done != 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: the buffer is aligned for, and at least as large as, the structure, whose fields are all integers, and
        // was filled by the kernel or by us.
        let notification = unsafe { &*buffer.as_ptr().cast::<seccomp_notif>() };
        let data = &notification.data;
        Ok(Waiting {
            id: notification.id,
            tid: notification.pid.cast_signed(),
            nr: data.nr.cast_unsigned(),
            arch: data.arch,
            instruction_pointer: data.instruction_pointer,
            args: data.args,
        })
    }

    /// Answers a call.
    ///
    /// # Errors
    /// `ENOENT` where its thread was killed in the meantime.
    pub fn answer(self, listener: BorrowedFd<'_>, id: u64, answer: Answer) -> Result<()> {
        let mut buffer = vec![0u64; self.response.div_ceil(8)];
        let flags = match answer {
            Answer::Continue => 1, // SECCOMP_USER_NOTIF_FLAG_CONTINUE
            Answer::Done => 0,
        };
        // SAFETY: the buffer is aligned for, and at least as large as, the structure, and nobody else refers to it.
        unsafe { *buffer.as_mut_ptr().cast() = seccomp_notif_resp { id, val: 0, error: 0, flags } };
        // SAFETY: the kernel reads as many bytes as it said that its structure has, and the buffer holds them.
        let done = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, buffer.as_mut_ptr()) };
        if done == 0 { Ok(()) } else { Err(Error::last_os_error()) }
    }
}
