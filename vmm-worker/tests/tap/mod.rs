//! A TAP in a network of the test's own: a thread in a new network namespace, which goes when the thread ends.
#![allow(dead_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::time::{Duration, Instant};
use worker_api::NetSpec;

/// The lease that the host's side of [`Tap`] fits.
pub fn lease() -> NetSpec {
    NetSpec {
        mac: [0x02, 0x76, 0x6d, 0, 0, 5],
        address: [10, 77, 0, 5].into(),
        prefix: 24,
        gateway: [10, 77, 0, 1].into(),
        dns: vec![[9, 9, 9, 9].into(), [1, 1, 1, 1].into()],
        mtu: 1500,
        queues: 1,
        offloads: true,
        hostname: "web-1".into(),
    }
}

/// Runs `test` in a network namespace of its own, or says why it cannot.
pub fn in_own_network(name: &str, test: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED {name}: only root makes network namespaces");
        return;
    }
    if let Err(error) = open_tun() {
        println!("SKIPPED {name}: /dev/net/tun: {error}");
        return;
    }
    let thread = std::thread::spawn(|| {
        // SAFETY: no pointer; it concerns this thread only, which ends with the test.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// `/dev/net/tun`, non-blocking.
pub fn open_tun() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")
}

/// A TAP named `t0`, non-blocking: of `offloads` as netd makes it, else without virtio's header.
pub fn tap(offloads: bool) -> File {
    tap_named(b"t0", offloads)
}

/// The same, of that name.
pub fn tap_named(name: &[u8; 2], offloads: bool) -> File {
    let tun = open_tun().unwrap();
    // SAFETY: all of `ifreq` may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = name[0] as libc::c_char;
    request.ifr_name[1] = name[1] as libc::c_char;
    let header = if offloads { libc::IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | header) as libc::c_short;
    // SAFETY: the kernel reads and writes an `ifreq`, which `request` is for as long as the call lasts.
    let made = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &mut request) };
    assert_eq!(made, 0, "TUNSETIFF: {}", io::Error::last_os_error());
    if offloads {
        let size: libc::c_int = 12;
        // SAFETY: the kernel reads an int, which `size` is for as long as the call lasts.
        let sized = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &size) };
        let all = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        // SAFETY: no pointer: the argument is the flags themselves.
        let offloaded = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD as _, all) };
        assert_eq!((sized, offloaded), (0, 0), "{}", io::Error::last_os_error());
    }
    tun
}

/// `ip(8)`, in this thread's network.
pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip (Debian: iproute2)");
    assert!(status.success(), "ip {arguments}");
}

/// Looks at `condition` until it holds; a minute is the limit.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < end, "a minute without {what}");
        std::thread::yield_now();
    }
}
