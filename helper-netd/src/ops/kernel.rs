//! [`Ops`] as the kernel does them: two netlink sockets for requests, two for events, `/dev/net/tun` for each TAP.

use super::flows;
use super::link::Links;
use super::nft::Rules;
use super::{Bridge, Element, IfName, Link, LinkEvent, Mac, Ops, OpsError, Tap, failed};
use crate::sys::{self, TunOption};
use netd_api::Flow;
use rustix::fs::{CWD, Mode, OFlags};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Bytes of `struct virtio_net_hdr_v1`.
const VNET_HEADER: i32 = 12;
/// TCP segments to cut, over IPv4 and IPv6, with ECN.
const SEGMENTS: u32 = libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

/// The kernel of the network namespace that it was opened in.
pub struct Kernel {
    links: Links,
    rules: Rules,
    /// Uid and gid that TAPs belong to.
    own: (u32, u32),
}

impl Kernel {
    /// Opens the sockets. Needs CAP_NET_ADMIN: nobody else hears of nftables' changes. TAPs will be of `own`, a uid and a gid.
    pub fn open(own: (u32, u32)) -> io::Result<Kernel> {
        Ok(Kernel { links: Links::open()?, rules: Rules::open()?, own })
    }
}

/// Attaches the queues; the first one makes the interface, and fails where there is one of that name.
fn tun(name: IfName, queues: u8, offloads: bool, (uid, gid): (u32, u32)) -> io::Result<Vec<OwnedFd>> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if queues > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut fds = Vec::new();
    for queue in 0..queues {
        let open = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let tun = rustix::fs::openat(CWD, "/dev/net/tun", open, Mode::empty())?;
        let new = if queue == 0 { libc::IFF_TUN_EXCL } else { 0 };
        sys::tun_attach(&tun, name.padded(), (flags | new) as u16)?;
        if queue == 0 {
            // Set at once: to a TAP without owner everybody may attach who may open /dev/net/tun.
            sys::tun_set(&tun, TunOption::Owner(uid))?;
            sys::tun_set(&tun, TunOption::Group(gid))?;
            sys::tun_set_header_size(&tun, VNET_HEADER)?;
            // Checksums are the holder's to complete, always: the kernel would do it where the sender says, in any frame, and
            // after the rules have looked at it.
            sys::tun_set(&tun, TunOption::Offload(libc::TUN_F_CSUM | if offloads { SEGMENTS } else { 0 }))?;
        }
        fds.push(tun);
    }
    Ok(fds)
}

impl Ops for Kernel {
    fn create_tap(&mut self, name: IfName, queues: u8, offloads: bool) -> Result<Tap, OpsError> {
        let queues =
            tun(name, queues, offloads, self.own).map_err(|e| failed(|| format!("making the TAP {name}"))(e.into()))?;
        let (index, mac) = self.links.look(name)?;
        Ok(Tap { queues, index, mac })
    }

    fn ensure_bridge(&mut self, bridge: &Bridge) -> Result<u32, OpsError> {
        self.links.ensure_bridge(bridge)
    }

    fn plug(&mut self, index: u32, bridge: u32, isolated: bool, mtu: u16, mac: Mac) -> Result<(), OpsError> {
        self.links.plug(index, bridge, isolated, mtu, mac)
    }

    fn restore_forwarding(&mut self, index: u32, mac: Mac) -> Result<(), OpsError> {
        self.links.restore_forwarding(index, mac)
    }

    fn unplug(&mut self, index: u32) -> Result<(), OpsError> {
        self.links.unplug(index)
    }

    fn delete_link(&mut self, index: u32) -> Result<(), OpsError> {
        self.links.delete(index)
    }

    fn links(&mut self) -> Result<Vec<Link>, OpsError> {
        self.links.all()
    }

    fn traffic(&mut self, index: u32) -> Result<(Flow, Flow), OpsError> {
        self.links.traffic(index)
    }

    fn elements(&mut self) -> Result<Vec<Element>, OpsError> {
        self.rules.elements()
    }

    fn change(&mut self, add: &[Element], remove: &[Element]) -> Result<(), OpsError> {
        self.rules.change(add, remove)
    }

    fn forget_flows(&mut self, of: &dyn Fn(Ipv4Addr) -> bool) -> Result<(), OpsError> {
        flows::forget(&mut self.rules.requests, of)
    }

    fn forget_knocks(&mut self, ports: &[u16]) -> Result<(), OpsError> {
        flows::forget_knocks(&mut self.rules.requests, ports)
    }

    fn rules_loaded(&mut self) -> Result<bool, OpsError> {
        self.rules.loaded()
    }

    fn dropping_chains(&mut self, most: usize) -> Result<Vec<String>, OpsError> {
        self.rules.dropping_chains(most)
    }

    fn ip_forward(&mut self) -> Result<bool, OpsError> {
        self.links.ip_forward()
    }

    fn link_events_fd(&self) -> BorrowedFd<'_> {
        self.links.events.fd()
    }

    fn next_link_event(&mut self) -> Option<LinkEvent> {
        self.links.next_event()
    }

    fn rule_events_fd(&self) -> BorrowedFd<'_> {
        self.rules.events.fd()
    }

    fn rules_touched(&mut self) -> bool {
        self.rules.touched()
    }
}
