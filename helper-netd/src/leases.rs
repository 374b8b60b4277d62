//! The book: which ports there are, whose they are, and what is taken. Pure; the kernel and the journal follow it.
//!
//! ```text
//!            made                asked for              released, or its taker did not take it
//!   (number) ────> Warm ───────────────────> Leased ───────────────────────────> Ending
//!                   │ interface gone           │ interface gone                     │ interface gone,
//!                   v                          v                                    v or deleted after a second
//!                (nothing)                 (nothing)                            (nothing)
//! ```
//!
//! Numbers of ports and leases are never used again within a boot. An address is free again when its interface is gone; a
//! MAC and a host's port as soon as the elements are, so that a VM can be started again at once. A port that is ending
//! still counts for its owner's quota.

use crate::network::{Network, default_mac, guest_mac};
use crate::ops::{Element, IfName, Mac};
use crate::permit::Caller;
use netd_api::{Forward, LeaseId, Protocol, Refusal, VmId, Wanted};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Instant;

/// A TAP of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its number: the interface is `vt<number>`.
    pub number: u32,
    /// Its interface index.
    pub index: u32,
    /// The MAC of the host's side, at its making.
    pub tap_mac: Mac,
    /// Name of its network.
    pub network: String,
    /// Its guest's MAC.
    pub mac: Mac,
    /// Its guest's address.
    pub address: Ipv4Addr,
    /// Where it is.
    pub state: State,
}

/// Where a port is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Complete, and nobody's.
    Warm,
    /// Somebody's.
    Leased(Holder),
    /// Unplugged; gone when nobody holds it any more, deleted at that time.
    Ending(u32, Instant),
}

/// Whose a port is, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Number of the lease.
    pub id: LeaseId,
    /// Owner.
    pub uid: u32,
    /// The owner's own number of its VM.
    pub vm: VmId,
    /// Ports of the host that lead to the guest.
    pub forwards: Vec<Forward>,
}

impl Port {
    /// The interface's name.
    pub fn name(&self) -> IfName {
        IfName::port(self.number)
    }

    /// The holder of a leased port.
    pub fn holder(&self) -> Option<&Holder> {
        match &self.state {
            State::Leased(holder) => Some(holder),
            State::Warm | State::Ending(..) => None,
        }
    }

    /// Its frames may pass.
    pub fn live(&self) -> bool {
        !matches!(self.state, State::Ending(..))
    }

    /// Its elements in the kernel's sets, the one of the lease first. `localhost`: its forwards hold for 127.0.0.0/8, too.
    pub fn elements(&self, localhost: bool) -> Vec<Element> {
        if !self.live() {
            return Vec::new();
        }
        let mut elements = vec![Element::Lease { port: self.name(), mac: self.mac, address: self.address }];
        for Forward { protocol, host, guest } in self.holder().iter().flat_map(|h| &h.forwards).copied() {
            let protocol = match protocol {
                Protocol::Tcp => libc::IPPROTO_TCP,
                Protocol::Udp => libc::IPPROTO_UDP,
            } as u8;
            elements.push(Element::Forward { protocol, host, address: self.address, guest });
            elements.extend(localhost.then_some(Element::Localhost { protocol, host }));
        }
        elements
    }
}

/// All ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Book {
    ports: BTreeMap<u32, Port>,
    /// The largest number that a lease ever had.
    pub last_lease: u64,
    /// The largest number that a port ever had.
    pub last_port: u32,
    /// The address given out last, by network: the next one is behind it, so that an address rests before it is somebody
    /// else's.
    last_address: BTreeMap<String, u32>,
    /// Free addresses that connections of a holder may still lead to, and whose they were.
    former: BTreeMap<u32, u32>,
}

/// So many make it time to end their connections; where that cannot be done, no more than twice as many are remembered.
const FORMER: usize = 65_536;

impl Book {
    /// Every port, by number.
    pub fn ports(&self) -> impl Iterator<Item = &Port> {
        self.ports.values()
    }

    /// The port with that number.
    pub fn port(&self, number: u32) -> Option<&Port> {
        self.ports.get(&number)
    }

    /// The port with that interface.
    pub fn of_index(&self, index: u32) -> Option<&Port> {
        self.ports().find(|p| p.index == index)
    }

    /// Ports of a network.
    pub fn of_network<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Port> {
        self.ports().filter(move |p| p.network == name)
    }

    /// Leased ports and their holders.
    pub fn leases(&self) -> impl Iterator<Item = (&Port, &Holder)> {
        self.ports().filter_map(|p| Some((p, p.holder()?)))
    }

    /// The number of the port of a lease, where the lease is this uid's.
    pub fn owned(&self, id: LeaseId, uid: u32) -> Option<u32> {
        self.leases().find(|(_, h)| h.id == id && h.uid == uid).map(|(p, _)| p.number)
    }

    /// How many leases of a network count for this uid.
    pub fn count(&self, network: &str, uid: u32) -> u32 {
        let of_uid = |p: &&Port| match &p.state {
            State::Warm => false,
            State::Leased(holder) => holder.uid == uid,
            State::Ending(owner, _) => *owner == uid,
        };
        self.of_network(network).filter(of_uid).count() as u32
    }

    /// May this caller have what it wants, as things are?
    ///
    /// # Errors
    /// The refusal to answer with.
    pub fn admit(&self, network: &Network, caller: &Caller, wanted: &Wanted) -> Result<(), Refusal> {
        if self.count(&network.name, caller.uid) >= network.leases {
            return Err(Refusal::Quota { limit: network.leases });
        }
        for forward in &wanted.forwards {
            let port = forward.host;
            if !network.ranges(caller).any(|(first, last)| (first..=last).contains(&port)) {
                return Err(Refusal::PortNotAllowed { port });
            }
            let key = (forward.protocol, port);
            if self.leases().any(|(_, h)| h.forwards.iter().any(|f| (f.protocol, f.host) == key)) {
                return Err(Refusal::PortTaken { port });
            }
        }
        let mac = wanted.mac_suffix.map(guest_mac);
        if self.of_network(&network.name).any(|p| p.holder().is_some() && Some(p.mac) == mac) {
            return Err(Refusal::MacTaken);
        }
        Ok(())
    }

    /// A warm port that is what is wanted.
    pub fn warm_for(&self, network: &Network, wanted: &Wanted) -> Option<u32> {
        let plain = wanted.queues == 1 && wanted.offloads;
        let mac = wanted.mac_suffix.map(guest_mac);
        let fits = |p: &&Port| plain && p.state == State::Warm && mac.is_none_or(|m| p.mac == m);
        self.of_network(&network.name).find(fits).map(|p| p.number)
    }

    /// A free address, and a MAC that nobody in the network has. Rather one that was never used, or this uid's, than one
    /// that was another's: where connections cannot be ended, those of the other would lead there.
    ///
    /// # Errors
    /// The number of a warm port that is in the way; `None` where the network is full of leases.
    pub fn place(
        &self,
        network: &Network,
        suffix: Option<[u8; 3]>,
        uid: Option<u32>,
    ) -> Result<(Ipv4Addr, Mac), Option<u32>> {
        let warm = |p: &&Port| p.state == State::Warm;
        if let Some(mac) = suffix.map(guest_mac)
            && let Some(port) = self.of_network(&network.name).filter(warm).find(|p| p.mac == mac)
        {
            return Err(Some(port.number));
        }
        let taken: BTreeSet<u32> = self.of_network(&network.name).map(|p| u32::from(p.address)).collect();
        let macs: BTreeSet<Mac> = self.of_network(&network.name).filter(|p| p.live()).map(|p| p.mac).collect();
        let ((first, last), host) = (network.hosts(), u32::from(network.address));
        let before =
            self.last_address.get(&network.name).copied().filter(|a| (first..=last).contains(a)).unwrap_or(last);
        let free = || (before + 1..=last).chain(first..=before).filter(|a| *a != host && !taken.contains(a));
        // The MAC that follows from the address may be one that somebody asked for.
        let mac_of =
            |a: u32| (0..=u8::MAX).map(move |n| default_mac(a ^ u32::from(n) << 16)).find(|m| !macs.contains(m));
        let placed = |a: u32| Some((Ipv4Addr::from(a), suffix.map(guest_mac).or_else(|| mac_of(a))?));
        let own = |a: &u32| self.former.get(a).is_none_or(|former| Some(*former) == uid);
        let found = free().filter(own).find_map(placed).or_else(|| free().find_map(placed));
        found.ok_or_else(|| self.of_network(&network.name).find(warm).map(|p| p.number))
    }

    /// How many addresses of the network are free.
    pub fn free(&self, network: &Network) -> usize {
        let (first, last) = network.hosts();
        ((last - first) as usize).saturating_sub(self.of_network(&network.name).count())
    }

    /// The number of a new port.
    pub fn next_port(&mut self) -> u32 {
        self.last_port += 1;
        self.last_port
    }

    /// The number of a new lease.
    pub fn next_lease(&mut self) -> LeaseId {
        self.last_lease += 1;
        LeaseId(self.last_lease)
    }

    /// Enters a port.
    pub fn insert(&mut self, port: Port) {
        self.last_port = self.last_port.max(port.number);
        self.last_lease = self.last_lease.max(port.holder().map_or(0, |h| h.id.0));
        self.last_address.insert(port.network.clone(), port.address.into());
        self.ports.insert(port.number, port);
    }

    /// Sets where a port is; returns what it was.
    pub fn set(&mut self, number: u32, state: State) -> Option<State> {
        self.ports.get_mut(&number).map(|p| std::mem::replace(&mut p.state, state))
    }

    /// Connections of that uid may lead to the address.
    pub fn soil(&mut self, address: Ipv4Addr, uid: u32) {
        if self.former.len() >= 2 * FORMER {
            self.former.pop_first();
        }
        self.former.insert(address.into(), uid);
    }

    /// May connections lead to that free address, or is there too much to remember?
    pub fn is_soiled(&self, address: Ipv4Addr) -> bool {
        self.former.len() >= FORMER || self.former.contains_key(&address.into())
    }

    /// No connection leads to any free address.
    pub fn cleansed(&mut self) {
        self.former.clear();
    }

    /// Strikes a port out.
    pub fn remove(&mut self, number: u32) -> Option<Port> {
        let port = self.ports.remove(&number)?;
        let owner = match &port.state {
            State::Warm => None,
            State::Leased(holder) => Some(holder.uid),
            State::Ending(uid, _) => Some(*uid),
        };
        if let Some(uid) = owner {
            self.soil(port.address, uid);
        }
        Some(port)
    }
}

#[cfg(test)]
#[path = "leases_tests.rs"]
mod tests;
