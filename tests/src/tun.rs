//! What the holder of a TAP's fd can ask the kernel for with it (linux/if_tun.h), good and bad.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Requests that take a number.
pub const TUNSETPERSIST: u64 = 0x4004_54cb;
/// Who may attach.
pub const TUNSETOWNER: u64 = 0x4004_54cc;
/// Which group may attach.
pub const TUNSETGROUP: u64 = 0x4004_54ce;
/// What the kernel may leave to the reader: checksums, segments.
pub const TUNSETOFFLOAD: u64 = 0x4004_54d0;
/// Carrier on or off.
pub const TUNSETCARRIER: u64 = 0x4004_54e2;
const TUNSETIFF: u64 = 0x4004_54ca;
const TUNGETIFF: u64 = 0x8004_54d2;
const TUNGETVNETHDRSZ: u64 = 0x8004_54d7;
const IFF_TAP: i16 = 0x0002;
const IFF_MULTI_QUEUE: i16 = 0x0100;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;

fn result(code: i32) -> io::Result<()> {
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn empty() -> libc::ifreq {
    // SAFETY: all zeroes is a valid ifreq.
    unsafe { std::mem::zeroed() }
}

fn named(name: &str) -> libc::ifreq {
    let mut request = empty();
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// A request that takes a number.
///
/// # Errors
/// What ioctl(2) says.
pub fn set(tap: &OwnedFd, request: u64, value: u64) -> io::Result<()> {
    // SAFETY: these requests take a number and touch no memory of ours.
    result(unsafe { libc::ioctl(tap.as_raw_fd(), request, value) })
}

/// The interface's name.
///
/// # Errors
/// What ioctl(2) says.
pub fn name(tap: &OwnedFd) -> io::Result<String> {
    let mut request = empty();
    // SAFETY: the request is filled with an ifreq, which lives through the call.
    result(unsafe { libc::ioctl(tap.as_raw_fd(), TUNGETIFF, &raw mut request) })?;
    Ok(request.ifr_name.iter().take_while(|c| **c != 0).map(|c| *c as u8 as char).collect())
}

/// Bytes of the header before each frame.
///
/// # Errors
/// What ioctl(2) says.
pub fn header_bytes(tap: &OwnedFd) -> io::Result<i32> {
    let mut bytes = 0i32;
    // SAFETY: the request writes an int, which lives through the call.
    result(unsafe { libc::ioctl(tap.as_raw_fd(), TUNGETVNETHDRSZ, &raw mut bytes) })?;
    Ok(bytes)
}

/// Gives the interface another address.
///
/// # Errors
/// What ioctl(2) says.
pub fn set_mac(tap: &OwnedFd, mac: [u8; 6]) -> io::Result<()> {
    let mut request = named(&name(tap)?);
    let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
    for (to, from) in address.sa_data.iter_mut().zip(mac) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = address;
    // SAFETY: the request reads an ifreq, which lives through the call.
    result(unsafe { libc::ioctl(tap.as_raw_fd(), libc::SIOCSIFHWADDR, &raw mut request) })
}

/// Attaches to the interface `name` with an fd of one's own, as one of several queues or as the only one.
///
/// # Errors
/// What open(2) or ioctl(2) say.
pub fn attach(name: &str, queues: bool) -> io::Result<OwnedFd> {
    let tun = OwnedFd::from(std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun")?);
    let mut request = named(name);
    request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | if queues { IFF_MULTI_QUEUE } else { 0 };
    // SAFETY: the request reads and writes an ifreq, which lives through the call.
    result(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    Ok(tun)
}

/// Names of the interfaces that a process holds fds of, one for each fd.
pub fn held(pid: i32) -> Vec<String> {
    let folder = format!("/proc/{pid}/fdinfo");
    let texts = crate::names(&folder).into_iter().filter_map(|n| std::fs::read_to_string(format!("{folder}/{n}")).ok());
    let name = |text: String| Some(text.lines().find_map(|l| l.strip_prefix("iff:"))?.trim().to_owned());
    texts.filter_map(name).filter(|name| !name.is_empty()).collect()
}
