//! What happens to interfaces, and what netd does about it.
//!
//! The holder of a TAP's fd can change some of it without a capability: it could outlive its VM (TUNSETPERSIST), be attached
//! a second time (TUNSETOWNER, TUNSETGROUP), or take the MAC of another guest, which removes that guest's forwarding
//! entry. Whoever does so loses the interface, and the others of the bridge get back what they had. So does who changes it
//! without end, to nothing: each change is an event for netd to read, and costs its holder a system call.
//!
//! An event tells how things were: what netd itself did since then is not in it. So a suspicion is only a reason to look,
//! with one exception: nothing ever changes the MAC of a TAP but a disobedient holder, also where it was changed back.

use crate::leases::Port;
use crate::log;
use crate::netd::Netd;
use crate::ops::{Link, LinkEvent, Ops};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The most events of one turn of the loop.
const EVENTS: usize = 256;
/// The most events of one leased port within [`WINDOW`]: plugging it again makes ten, and nothing else happens to it while
/// its holder keeps still.
const TOUCHES: u32 = 100;
const WINDOW: Duration = Duration::from_secs(10);

/// What is wrong with a port, compared with its making.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    /// Its holder, or root, changed what is not theirs to change.
    Disobedient(&'static str),
    /// It is no bridge's port: its bridge was deleted.
    Unplugged,
}

/// Compares a port with what the kernel says.
fn compare(port: &Port, link: &Link, bridge: Option<u32>, own: (u32, u32)) -> Result<(), Fault> {
    let Some(tun) = link.tun else { return Err(Fault::Disobedient("it is no TAP")) };
    let changed = [
        (link.mac != port.tap_mac, "its MAC was changed"),
        (tun.persist, "it was made persistent"),
        (tun.owner != Some(own.0) || tun.group != Some(own.1), "it was given to another owner"),
        (!link.up, "it was taken down"),
        (link.bridge.is_some() && bridge.is_some() && link.bridge != bridge, "it was moved to another bridge"),
    ];
    match changed.into_iter().find(|(wrong, _)| *wrong) {
        Some((_, what)) => Err(Fault::Disobedient(what)),
        None if link.bridge.is_none() => Err(Fault::Unplugged),
        None => Ok(()),
    }
}

impl<O: Ops> Netd<O> {
    /// Takes the events that are there.
    pub fn link_events(&mut self) {
        let mut latest: BTreeMap<u32, Link> = BTreeMap::new();
        let (mut look, mut lost) = (false, false);
        for _ in 0..EVENTS {
            match self.ops.next_link_event() {
                None => break,
                Some(LinkEvent::Lost) => {
                    log!("events of interfaces were lost; looking at all of them");
                    lost = true;
                }
                Some(LinkEvent::Gone { name, index }) => {
                    latest.remove(&index);
                    match self.book.of_index(index).map(|p| p.number) {
                        Some(number) => self.gone(number),
                        None => look |= self.networks.iter().any(|n| n.bridge == name),
                    }
                }
                Some(LinkEvent::Changed(link)) => {
                    if let Some((number, what)) = self.misused(&link) {
                        self.expel(number, what);
                        lost = true;
                    }
                    latest.insert(link.index, link);
                }
            }
        }
        look |= latest.values().any(|link| self.suspicious(link));
        if look || lost {
            self.look(lost);
        }
    }

    /// What the event itself says against the holder of a port, whatever came after it.
    fn misused(&mut self, link: &Link) -> Option<(u32, &'static str)> {
        let port = self.book.of_index(link.index).filter(|p| p.live())?;
        if port.tap_mac != link.mac {
            return Some((port.number, "its MAC was changed"));
        }
        port.holder()?;
        let now = Instant::now();
        let (since, touches) = self.touches.entry(port.number).or_insert((now, 0));
        if now - *since > WINDOW {
            (*since, *touches) = (now, 0);
        }
        *touches += 1;
        (*touches > TOUCHES).then_some((port.number, "it was changed again and again"))
    }

    fn suspicious(&self, link: &Link) -> bool {
        if let Some(network) = self.networks.iter().find(|n| n.bridge == link.name) {
            return !link.up
                || link.mac != network.bridge().mac
                || self.bridges.get(&network.name) != Some(&link.index);
        }
        match self.book.of_index(link.index) {
            Some(port) => {
                let bridge = self.bridges.get(&port.network).copied();
                port.live() && compare(port, link, bridge, self.own).is_err()
            }
            None => link.name.port_number().is_some(),
        }
    }

    /// Looks at all interfaces, and makes them what the book says. `all`: also what cannot be seen to be wrong.
    pub(crate) fn look(&mut self, all: bool) {
        let before = match self.ops.links() {
            Ok(links) => links,
            Err(error) => return self.trouble(&error),
        };
        self.mend_bridges(&before, all);
        let there: BTreeMap<u32, &Link> = before.iter().map(|l| (l.index, l)).collect();
        let stray = |l: &&Link| l.name.port_number().is_some() && self.book.of_index(l.index).is_none();
        let strays: Vec<&Link> = before.iter().filter(stray).collect();
        let mut disturbed = BTreeSet::new();
        for port in self.book.ports().cloned().collect::<Vec<_>>() {
            let bridge = self.bridges.get(&port.network).copied();
            match there.get(&port.index).filter(|l| l.name == port.name()) {
                None => self.gone(port.number),
                Some(_) if !port.live() => {}
                Some(link) => match compare(&port, link, bridge, self.own) {
                    Ok(()) => {}
                    Err(Fault::Unplugged) => self.plug_again(&port),
                    Err(Fault::Disobedient(what)) => {
                        self.expel(port.number, what);
                        disturbed.insert(port.network);
                    }
                },
            }
        }
        for link in strays {
            log!("{}: an interface without a lease; deleted", link.name);
            if let Err(error) = self.ops.delete_link(link.index) {
                self.trouble(&error);
            }
        }
        self.restore(|network| all || disturbed.contains(network));
    }

    /// Makes bridges that are not there, not up or not themselves what they should be.
    fn mend_bridges(&mut self, links: &[Link], all: bool) {
        for network in self.networks.clone() {
            let wanted = network.bridge();
            let known = self.bridges.get(&network.name);
            let fine = |l: &Link| l.name == wanted.name && l.up && l.mac == wanted.mac && Some(&l.index) == known;
            if !all && links.iter().any(fine) {
                continue;
            }
            match self.ops.ensure_bridge(&wanted) {
                Ok(index) => drop(self.bridges.insert(network.name.clone(), index)),
                Err(error) => {
                    self.bridges.remove(&network.name);
                    self.trouble(&format_args!("network \"{}\": {error}", network.name));
                }
            }
        }
    }

    fn plug_again(&mut self, port: &Port) {
        let (Some(network), Some(bridge)) = (self.network(&port.network), self.bridges.get(&port.network)) else {
            return;
        };
        log!("{}: plugged into {} again", port.name(), network.bridge);
        if let Err(error) = self.ops.plug(port.index, *bridge, network.isolated, network.mtu, port.mac) {
            self.trouble(&error);
        }
    }

    /// Ends the lease of a disobedient holder. Unplugged, its interface harms nobody until it is deleted; that it counts for
    /// the quota so long bounds how often netd can be made to delete one.
    fn expel(&mut self, number: u32, what: &str) {
        self.end(number, what);
    }

    /// Puts the forwarding entries of all ports of these networks back.
    fn restore(&mut self, of: impl Fn(&str) -> bool) {
        for port in self.book.ports().filter(|p| p.live() && of(&p.network)).cloned().collect::<Vec<_>>() {
            if let Err(error) = self.ops.restore_forwarding(port.index, port.mac) {
                self.trouble(&error);
            }
        }
    }
}
