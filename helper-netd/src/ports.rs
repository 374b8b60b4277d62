//! Ports from their making to their end: cold ones, the pool of warm ones, hand-over, release.
//!
//! Closing the last fd of a TAP takes 16 ms. So a lease whose taker went away before it got its fd goes back to the pool
//! where it can, and one that is released is unplugged at once and deleted only if somebody still holds it a second later.

use crate::journal::lease_line;
use crate::leases::{Holder, Port, State};
use crate::log;
use crate::netd::Netd;
use crate::network::Network;
use crate::ops::{IfName, Ops, OpsError};
use netd_api::{Protocol, Refusal};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long the holder of a released TAP has to close it.
const GRACE: Duration = Duration::from_secs(1);
/// How long a pool is left alone that could not be filled.
const REST: Duration = Duration::from_secs(10);

impl<O: Ops> Netd<O> {
    /// Makes a port: TAP, bridge's port, up. It is warm, its element is not in the set yet, and no connection of an earlier
    /// holder leads to its address. `uid`: who it is for.
    pub(crate) fn make(
        &mut self,
        network: &Network,
        suffix: Option<[u8; 3]>,
        queues: u8,
        offloads: bool,
        uid: Option<u32>,
    ) -> Result<(u32, Vec<OwnedFd>), Refusal> {
        let (address, mac) = match self.book.place(network, suffix, uid) {
            Ok(free) => free,
            Err(warm) => {
                self.drop_warm(warm.ok_or(Refusal::NetworkFull)?);
                self.book.place(network, suffix, uid).map_err(|_| Refusal::NetworkFull)?
            }
        };
        let bridge = *self.bridges.get(&network.name).ok_or(Refusal::Failed)?;
        if !self.swept || self.book.is_soiled(address) {
            self.sweep()?;
        }
        let number = self.book.next_port();
        self.note(&format!("port {number}"))?;
        let ops = &mut self.ops;
        let made = ops.create_tap(IfName::port(number), queues, offloads).and_then(|tap| {
            ops.plug(tap.index, bridge, network.isolated, network.mtu, mac)?;
            Ok(tap)
        });
        let tap = made.map_err(|error| {
            self.trouble(&error);
            Refusal::Failed
        })?;
        let network = network.name.clone();
        let (index, tap_mac, state) = (tap.index, tap.mac, State::Warm);
        self.book.insert(Port { number, index, tap_mac, network, mac, address, state });
        Ok((number, tap.queues))
    }

    /// Ends what connection tracking knows of all free addresses: the flows of a forward would go on for the next holder, who
    /// may have no right to it. Where the kernel cannot be asked, an address that was another's is the last choice
    /// ([`crate::leases::Book::place`]).
    pub(crate) fn sweep(&mut self) -> Result<(), Refusal> {
        let (networks, taken) = (&self.networks, self.book.ports().map(|p| p.address).collect::<BTreeSet<_>>());
        let free = |a: Ipv4Addr| {
            let among = |n: &Rc<Network>| (n.hosts().0..=n.hosts().1).contains(&a.into()) && n.address != a;
            networks.iter().any(among) && !taken.contains(&a)
        };
        match self.ops.forget_flows(&free) {
            Ok(()) => self.book.cleansed(),
            Err(error @ OpsError::NoFlows) => {
                if !std::mem::replace(&mut self.blind, true) {
                    log!("{error}; connections of a lease may outlive it where addresses run short");
                }
            }
            Err(error) => {
                self.trouble(&error);
                return Err(Refusal::Failed);
            }
        }
        self.swept = true;
        Ok(())
    }

    /// Lets clients who sent to a UDP forward of the port before it was there reach it now. Where that fails, they reach it
    /// once they have been silent for half a minute.
    fn forget_knocks(&mut self, port: &Port) {
        let forwards = port.holder().map(|holder| &holder.forwards[..]).unwrap_or_default();
        let ports: Vec<u16> = forwards.iter().filter(|f| f.protocol == Protocol::Udp).map(|f| f.host).collect();
        if ports.is_empty() {
            return;
        }
        match self.ops.forget_knocks(&ports) {
            Ok(()) | Err(OpsError::NoFlows) => {}
            Err(error) => log!("{error}"),
        }
    }

    /// The network whose pool is to be filled next.
    pub fn wanting(&mut self, now: Instant) -> Option<Rc<Network>> {
        self.resting.retain(|_, until| *until > now);
        self.networks.iter().find(|n| self.is_clean() && self.wants_warm(n)).cloned()
    }

    /// Makes one warm port where one is wanting; says whether there may be more to make.
    pub fn refill(&mut self, now: Instant) -> bool {
        let Some(network) = self.wanting(now) else { return false };
        let made = self.make(&network, None, 1, true, None).and_then(|(number, queues)| {
            let add = self.book.port(number).map(|p| self.elements_of(p)).unwrap_or_default();
            if let Err(refusal) = self.follow(&add, &[]) {
                self.book.remove(number);
                return Err(refusal);
            }
            self.warm.extend(queues.into_iter().map(|queue| (number, queue)));
            Ok(())
        });
        if made.is_err() {
            log!("network \"{}\": its pool is not filled; trying again later", network.name);
            self.resting.insert(network.name.clone(), now + REST);
        }
        true
    }

    /// Fewer warm ports than configured, and more free addresses than a full pool: in a network that is nearly full they
    /// are for requests.
    fn wants_warm(&self, network: &Network) -> bool {
        let warm = self.book.of_network(&network.name).filter(|p| p.state == State::Warm).count();
        let ready = self.bridges.contains_key(&network.name) && !self.resting.contains_key(&network.name);
        ready && warm < usize::from(network.pool) && self.book.free(network) > usize::from(network.pool)
    }

    /// Lets go of a warm port. Takes milliseconds: for a request that needs its address or MAC, and for a new configuration.
    pub(crate) fn drop_warm(&mut self, number: u32) {
        let Some(port) = self.book.remove(number) else { return };
        let _ = self.follow(&[], &self.elements_of(&port));
        self.warm.remove(&number);
    }

    /// Lets go of all warm ports of a network but so many.
    pub(crate) fn shrink_pool(&mut self, network: &str, keep: usize) {
        let warm = self.book.of_network(network).filter(|p| p.state == State::Warm).map(|p| p.number);
        for number in warm.skip(keep).collect::<Vec<_>>() {
            self.drop_warm(number);
        }
    }

    /// Makes a warm port somebody's: book, elements, journal. `add_all`: its own element is not in the set yet.
    pub(crate) fn lease_port(&mut self, number: u32, holder: Holder, add_all: bool) -> Result<Port, Refusal> {
        self.book.set(number, State::Leased(holder));
        let port = self.book.port(number).cloned().ok_or(Refusal::Failed)?;
        let add = &self.elements_of(&port)[usize::from(!add_all)..];
        self.follow(add, &[])?;
        self.forget_knocks(&port);
        let line = port.holder().map(|holder| lease_line(&port, holder)).ok_or(Refusal::Failed)?;
        self.note(&line)?;
        Ok(port)
    }

    /// A lease that never left: the port is warm again where the pool can use it, else it goes.
    pub(crate) fn take_back(&mut self, number: u32, mut queues: Vec<OwnedFd>, plain: bool) {
        let Some(port) = self.book.port(number).cloned() else { return };
        self.book.set(number, State::Warm);
        let _ = self.follow(&[], &self.elements_of(&port)[1..]);
        if let Some(holder) = port.holder() {
            let _ = self.note(&format!("end {}", holder.id.0));
        }
        // Its forwards were in force for a moment.
        let forwarded = port.holder().filter(|h| !h.forwards.is_empty()).map(|h| h.uid);
        let unsoiled = forwarded.is_none_or(|uid| {
            let ended = self.ops.forget_flows(&|address| address == port.address).is_ok();
            if !ended {
                self.book.soil(port.address, uid);
            }
            ended
        });
        match queues.pop() {
            Some(queue) if plain && unsoiled && self.is_clean() => drop(self.warm.insert(number, queue)),
            _ => self.drop_warm(number),
        }
    }

    /// Ends a lease whose interface may still be held: nothing passes from here on.
    pub(crate) fn end(&mut self, number: u32, why: &str) {
        let Some(port) = self.book.port(number).cloned() else { return };
        let uid = port.holder().map_or(u32::MAX, |h| h.uid);
        self.book.set(number, State::Ending(uid, Instant::now() + GRACE));
        self.ended(&port, why);
        match self.ops.unplug(port.index) {
            // It may be gone already: the event says so next.
            Ok(()) | Err(OpsError::Differs { .. }) => {}
            Err(error) => log!("{error}; it is deleted in a second"),
        }
    }

    /// An interface is gone, and with it its lease.
    pub(crate) fn gone(&mut self, number: u32) {
        let Some(port) = self.book.remove(number) else { return };
        self.warm.remove(&number);
        self.touches.remove(&number);
        if port.live() {
            self.ended(&port, "its interface is gone");
        }
        self.forget_retired();
    }

    /// What was a port's is free, but for its address.
    fn ended(&mut self, port: &Port, why: &str) {
        let _ = self.follow(&[], &self.elements_of(port));
        let Some(holder) = port.holder() else { return log!("{}: {why}; it was nobody's", port.name()) };
        log!("lease {}: {why}; {} {} of uid {} ended", holder.id.0, port.name(), port.address, holder.uid);
        let _ = self.note(&format!("end {}", holder.id.0));
    }

    /// Deletes an interface that somebody holds a second after the end of its lease. One a turn: who lets a hundred come to
    /// this keeps no request of others waiting longer than for one.
    pub(crate) fn delete_overdue(&mut self, now: Instant) {
        let overdue = |p: &&Port| matches!(p.state, State::Ending(_, at) if at <= now);
        let found = self.book.ports().find(overdue).map(|p| (p.name(), p.number));
        if let Some((name, number)) = found {
            log!("{name}: still held after the end of its lease; deleted");
            self.delete(number);
        }
    }

    /// Deletes the interface of a port that is ending; tries again later where that fails.
    pub(crate) fn delete(&mut self, number: u32) {
        let Some(Port { index, state: State::Ending(uid, _), .. }) = self.book.port(number).cloned() else { return };
        match self.ops.delete_link(index) {
            Ok(()) => self.gone(number),
            Err(error) => {
                log!("{error}; tried again in a second");
                self.book.set(number, State::Ending(uid, Instant::now() + GRACE));
            }
        }
    }
}
