//! System calls without a safe wrapper: TUN ioctls, a few socket options, signalfd. The only unsafe of the crate.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Closes every fd but standard input, output and error: whatever a starter left open is none of netd's. To be called first.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: the first call of the program: nothing in it owns an fd above 2 yet, so that none becomes invalid under its
    // owner.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) } as libc::c_int)
}

/// What is set about a TAP by a plain number (linux/if_tun.h).
#[derive(Debug, Clone, Copy)]
pub enum TunOption {
    /// Who may attach to it without a capability.
    Owner(u32),
    /// Which group may.
    Group(u32),
    /// What its holder may be given: `TUN_F_*`.
    Offload(u32),
}

/// `TUNSETIFF`: makes the interface of that name, or attaches to it; `flags` are `IFF_*` of linux/if_tun.h.
pub fn tun_attach(tun: impl AsFd, name: [u8; libc::IFNAMSIZ], flags: u16) -> io::Result<()> {
    // struct ifreq: the name, and a union of 24 bytes which begins with the flags here.
    let mut request = [0u8; size_of::<libc::ifreq>()];
    request[..name.len()].copy_from_slice(&name);
    request[name.len()..][..2].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes one struct ifreq, and the array has its size; it is read byte by byte
    // (copy_from_user), so that its alignment does not matter.
    check(unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) })
}

/// `TUNSETOWNER`, `TUNSETGROUP`, `TUNSETOFFLOAD`.
pub fn tun_set(tun: impl AsFd, option: TunOption) -> io::Result<()> {
    let (request, value) = match option {
        TunOption::Owner(uid) => (libc::TUNSETOWNER, uid),
        TunOption::Group(gid) => (libc::TUNSETGROUP, gid),
        TunOption::Offload(features) => (libc::TUNSETOFFLOAD, features),
    };
    // SAFETY: these three take their argument by value: no memory of ours is touched.
    check(unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), request, libc::c_ulong::from(value)) })
}

/// `TUNSETVNETHDRSZ`: bytes of the virtio-net header before each frame.
pub fn tun_set_header_size(tun: impl AsFd, bytes: i32) -> io::Result<()> {
    // SAFETY: the call reads one int, and `bytes` is one that outlives it.
    check(unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })
}

/// Refuses fds already where they are sent, also to what is accepted from a listening Unix socket (`SO_PASSRIGHTS`, Linux
/// 6.16). Else the receiver may be the last to close them, which takes as long as whatever they are of takes to end.
///
/// # Errors
/// `ENOPROTOOPT` where the kernel does not know it.
pub fn refuse_fds(socket: impl AsFd) -> io::Result<()> {
    // linux/socket.h; libc does not have it.
    const SO_PASSRIGHTS: libc::c_int = 83;
    let off: libc::c_int = 0;
    // SAFETY: the kernel reads one int, and `off` is one that outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const off).cast(),
            size_of_val(&off) as libc::socklen_t,
        )
    })
}

/// Has the kernel say in words what was wrong with a request, and leave the request itself out of its answer
/// (`NETLINK_EXT_ACK`, `NETLINK_CAP_ACK`).
pub fn netlink_errors_in_words(socket: impl AsFd) -> io::Result<()> {
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        let on: libc::c_int = 1;
        // SAFETY: the kernel reads one int, and `on` is one that outlives the call.
        check(unsafe {
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        })?;
    }
    Ok(())
}

/// Blocks the signals for this thread, and returns an fd that is readable when one of them is pending: non-blocking,
/// close-on-exec. For programs of one thread.
#[allow(clippy::multiple_unsafe_ops_per_block)]
pub fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: all zeroes is a valid sigset_t (a plain array of bits), initialised again by sigemptyset; the set outlives
    // each call, the old mask is not asked for, and a number that is no signal makes sigaddset fail only.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            check(libc::sigaddset(&raw mut set, *signal))?;
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))?;
        libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
    };
    check(fd)?;
    // SAFETY: signalfd returned a new fd, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What tests do beyond netd's own calls: namespaces of their own, and what a hostile holder of a TAP may try.
#[cfg(test)]
pub mod testing {
    use super::*;

    /// Gives the calling thread a network namespace of its own.
    pub fn unshare_network() -> io::Result<()> {
        // SAFETY: a network namespace is no resource that the thread's memory safety rests on.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) })
    }

    /// Sends the calling thread a signal.
    pub fn raise(signal: i32) -> io::Result<()> {
        // SAFETY: a signal whose disposition nobody changed runs no code of ours.
        check(unsafe { libc::raise(signal) })
    }

    /// `TUNSETPERSIST`.
    pub fn tun_persist(tun: impl AsFd) -> io::Result<()> {
        // SAFETY: the argument is taken by value.
        check(unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) })
    }

    /// `SIOCSIFHWADDR` on the TAP's own fd.
    pub fn tun_set_mac(tun: impl AsFd, mac: [u8; 6]) -> io::Result<()> {
        let mut request = [0u8; size_of::<libc::ifreq>()];
        request[16..18].copy_from_slice(&libc::ARPHRD_ETHER.to_ne_bytes());
        request[18..24].copy_from_slice(&mac);
        // SAFETY: the call reads one struct ifreq, and the array has its size.
        check(unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::SIOCSIFHWADDR, request.as_mut_ptr()) })
    }

    /// `TUNGETIFF`: name and flags.
    pub fn tun_flags(tun: impl AsFd) -> io::Result<([u8; 16], u16)> {
        let mut request = [0u8; size_of::<libc::ifreq>()];
        // SAFETY: the call writes one struct ifreq, and the array has its size.
        check(unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNGETIFF, request.as_mut_ptr()) })?;
        let name = *request.first_chunk().unwrap();
        Ok((name, u16::from_ne_bytes([request[16], request[17]])))
    }

    /// `TUNGETVNETHDRSZ`.
    pub fn tun_header_size(tun: impl AsFd) -> io::Result<i32> {
        let mut bytes: i32 = 0;
        // SAFETY: the call writes one int.
        check(unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut bytes) })?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_makes_its_fd_readable_and_an_unknown_one_is_refused() {
        use rustix::event::{PollFd, PollFlags, poll};
        std::thread::spawn(|| {
            let fd = signal_fd(&[libc::SIGUSR1]).unwrap();
            let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            let ready = || poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&at_once)).unwrap();
            assert_eq!(ready(), 0);
            // Unblocked, it would end the process.
            testing::raise(libc::SIGUSR1).unwrap();
            assert_eq!(ready(), 1);
        })
        .join()
        .unwrap();
        assert!(signal_fd(&[10_000]).is_err());
    }
}
