//! What netd says, looked at before it is believed: it goes into workers' specs, tables and JSON.

use super::NetdError;
use netd_api::{
    DNS_MAX, FORWARDS_MAX, Lease, LeaseId, LeaseInfo, NETWORK_NAME_MAX, NETWORKS_MAX, NetworkInfo, PAGE, Traffic,
    Wanted,
};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, major, minor};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

/// The longest name of an interface, bytes (IFNAMSIZ without the NUL).
const INTERFACE_MAX: usize = 15;
/// Prefixes of subnets in which there is room for a host and a guest, bits.
const PREFIX: std::ops::RangeInclusive<u8> = 8..=30;
/// The most ranges of host ports that are told of a network.
const RANGES_MAX: usize = 8;

fn confused<T>(what: impl Into<String>) -> Result<T, NetdError> {
    Err(NetdError::Confused(what.into()))
}

/// A lease, and the fds that came with it.
///
/// # Errors
/// [`NetdError::Confused`].
pub fn lease(lease: &Lease, fds: &[OwnedFd], wanted: &Wanted, tap_device: (u32, u32)) -> Result<(), NetdError> {
    interface(&lease.interface)?;
    if lease.queues != wanted.queues || fds.len() != usize::from(wanted.queues) {
        return confused(format!("{} queues, where {} were wanted", lease.queues, wanted.queues));
    }
    mac(lease.mac)?;
    if wanted.mac_suffix.is_some_and(|suffix| suffix != lease.mac[3..]) {
        return confused("another MAC than was wanted");
    }
    if !PREFIX.contains(&lease.prefix) {
        return confused(format!("a prefix of {} bits", lease.prefix));
    }
    let subnet = |address: Ipv4Addr| address.to_bits() >> (32 - u32::from(lease.prefix));
    let guests = guest_address(lease.address);
    if !guests || lease.address == lease.gateway || subnet(lease.address) != subnet(lease.gateway) {
        return confused(format!("address {} with gateway {}", lease.address, lease.gateway));
    }
    if lease.dns.len() > DNS_MAX {
        return confused(format!("{} DNS servers", lease.dns.len()));
    }
    if lease.mtu < worker_api::MTU.0 {
        return confused(format!("an MTU of {}", lease.mtu));
    }
    fds.iter().try_for_each(|fd| tap(fd, tap_device))
}

/// An open TAP, as far as an fd can show it: the ioctl that would tell more is not allowed here.
fn tap(fd: &OwnedFd, device: (u32, u32)) -> Result<(), NetdError> {
    let unknown = |error: rustix::io::Errno| NetdError::Confused(format!("an fd that cannot be looked at ({error})"));
    let stat = fstat(fd).map_err(unknown)?;
    let device_of = (major(stat.st_rdev), minor(stat.st_rdev));
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || device_of != device {
        return confused("a file that is no TAP");
    }
    // The worker's one thread for all devices would wait in a blocking read.
    let flags = fcntl_getfl(fd).map_err(unknown)?;
    if !flags.contains(OFlags::NONBLOCK | OFlags::RDWR) {
        return confused("a TAP that blocks, or cannot be read and written");
    }
    Ok(())
}

/// What the caller may use.
///
/// # Errors
/// [`NetdError::Confused`].
pub fn networks(networks: Vec<NetworkInfo>) -> Result<Vec<NetworkInfo>, NetdError> {
    if networks.len() > NETWORKS_MAX {
        return confused(format!("{} networks", networks.len()));
    }
    for info in &networks {
        network(&info.name)?;
        interface(&info.bridge)?;
        if !PREFIX.contains(&info.prefix) {
            return confused(format!("a prefix of {} bits", info.prefix));
        }
        if info.forwards.len() > RANGES_MAX || info.forwards.iter().any(|(first, last)| first > last) {
            return confused("ranges of ports that are none");
        }
    }
    Ok(networks)
}

/// A page of the caller's leases behind `after`: their numbers grow, so that who asks on comes to an end.
///
/// # Errors
/// [`NetdError::Confused`].
pub fn leases(page: Vec<LeaseInfo>, after: LeaseId) -> Result<Vec<LeaseInfo>, NetdError> {
    page_of(&page, after, |info| info.id)?;
    for info in &page {
        network(&info.network)?;
        interface(&info.interface)?;
        mac(info.mac)?;
        if info.forwards.len() > FORWARDS_MAX {
            return confused(format!("{} forwards of one lease", info.forwards.len()));
        }
    }
    Ok(page)
}

/// A page of what the caller's interfaces counted.
///
/// # Errors
/// [`NetdError::Confused`].
pub fn traffic(page: Vec<Traffic>, after: LeaseId) -> Result<Vec<Traffic>, NetdError> {
    page_of(&page, after, |traffic| traffic.id)?;
    Ok(page)
}

fn page_of<T>(page: &[T], mut after: LeaseId, id: impl Fn(&T) -> LeaseId) -> Result<(), NetdError> {
    if page.len() > PAGE {
        return confused(format!("{} leases in one page", page.len()));
    }
    for lease in page {
        if id(lease) <= after {
            return confused("leases out of order");
        }
        after = id(lease);
    }
    Ok(())
}

fn network(name: &str) -> Result<(), NetdError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    match name.len() {
        1..=NETWORK_NAME_MAX if name.bytes().all(good) => Ok(()),
        _ => confused("a network's name that cannot be"),
    }
}

fn interface(name: &str) -> Result<(), NetdError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    match name.len() {
        1..=INTERFACE_MAX if name.bytes().all(good) => Ok(()),
        _ => confused("an interface's name that cannot be"),
    }
}

fn mac(mac: [u8; 6]) -> Result<(), NetdError> {
    if mac[0] & 1 != 0 || mac == [0; 6] { confused("a MAC that no interface can have") } else { Ok(()) }
}

fn guest_address(address: Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_broadcast() || address.is_multicast() || address.is_loopback())
}
