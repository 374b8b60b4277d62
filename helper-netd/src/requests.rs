//! What peers ask for, one handler a message. Each request was permitted before it comes here.

use crate::leases::{Holder, Port};
use crate::log;
use crate::netd::Netd;
use crate::ops::Ops;
use crate::permit::{self, Caller, permit};
use netd_api::{
    FORWARDS_MAX, Flow, Lease, LeaseId, LeaseInfo, NETWORK_NAME_MAX, NetworkInfo, PAGE, QUEUES_MAX, Refusal, Reply,
    Request, Status, Traffic, Wanted,
};
use std::os::fd::OwnedFd;

/// The most ranges of ports, and chains, that a reply tells.
const RANGES_TOLD: usize = 8;
const CHAINS_TOLD: usize = 4;

/// A reply, with the fds that go along.
type Answer = (Reply, Vec<OwnedFd>);

impl<O: Ops> Netd<O> {
    /// Permit, validate, act. The fds of a lease are to be handed to the caller, or back with [`Netd::undelivered`].
    pub fn answer(&mut self, caller: &Caller, request: &Request) -> Answer {
        let permitted = permit(request, caller, &self.networks, &self.book);
        let acted = permitted.and_then(|()| validate(request)).and_then(|()| self.act(caller, request));
        acted.unwrap_or_else(|refusal| (Reply::Refused(refusal), Vec::new()))
    }

    fn act(&mut self, caller: &Caller, request: &Request) -> Result<Answer, Refusal> {
        let reply = match request {
            Request::Lease(wanted) => return self.lease(caller, wanted),
            Request::Release { lease } => self.release(caller, *lease)?,
            Request::Networks => self.networks_of(caller),
            Request::Leases { after } => self.leases_of(caller, *after),
            Request::Status => self.status(),
            Request::Traffic { after } => self.traffic_of(caller, *after),
        };
        Ok((reply, Vec::new()))
    }

    fn lease(&mut self, caller: &Caller, wanted: &Wanted) -> Result<Answer, Refusal> {
        let network = permit::network(&wanted.network, caller, &self.networks)?;
        self.book.admit(&network, caller, wanted)?;
        if !self.is_clean() {
            self.settle()?;
        }
        let warm = self.book.warm_for(&network, wanted).and_then(|number| Some((number, self.warm.remove(&number)?)));
        let is_warm = warm.is_some();
        let (number, queues) = match warm {
            Some((number, queue)) => (number, vec![queue]),
            None => self.make(&network, wanted.mac_suffix, wanted.queues, wanted.offloads, Some(caller.uid))?,
        };
        let (id, uid, vm, forwards) = (self.book.next_lease(), caller.uid, wanted.vm, wanted.forwards.clone());
        let port = match self.lease_port(number, Holder { id, uid, vm, forwards }, !is_warm) {
            Ok(port) => port,
            Err(refusal) => {
                self.take_back(number, queues, is_warm);
                return Err(refusal);
            }
        };
        let lease = Lease {
            id,
            interface: port.name().to_string(),
            queues: wanted.queues,
            mac: port.mac,
            address: port.address,
            prefix: network.prefix,
            gateway: network.address,
            dns: network.dns.clone(),
            mtu: network.mtu,
        };
        Ok((Reply::Leased(lease), queues))
    }

    /// The caller has its reply, and its own copies of the fds: ours are closed.
    pub fn delivered(&mut self, caller: &Caller, reply: &Reply) {
        if let Reply::Leased(lease) = reply {
            let (id, uid) = (lease.id.0, caller.uid);
            log!("lease {id}: {} {} for uid {uid}", lease.interface, lease.address);
        }
    }

    /// The caller went away before it had its reply.
    pub fn undelivered(&mut self, caller: &Caller, request: &Request, reply: &Reply, queues: Vec<OwnedFd>) {
        if let (Request::Lease(wanted), Reply::Leased(lease)) = (request, reply)
            && let Some(number) = self.book.owned(lease.id, caller.uid)
        {
            self.take_back(number, queues, wanted.queues == 1 && wanted.offloads);
        }
    }

    fn release(&mut self, caller: &Caller, id: LeaseId) -> Result<Reply, Refusal> {
        let number = self.book.owned(id, caller.uid).ok_or(Refusal::NotYours)?;
        self.end(number, "released");
        Ok(Reply::Released)
    }

    fn networks_of(&self, caller: &Caller) -> Reply {
        let info = |n: &crate::network::Network| NetworkInfo {
            name: n.name.clone(),
            bridge: n.bridge.to_string(),
            gateway: n.address,
            prefix: n.prefix,
            nat: n.nat,
            isolated: n.isolated,
            host: n.host,
            localhost_forwards: n.localhost,
            leases: self.book.count(&n.name, caller.uid),
            limit: n.leases,
            forwards: n.ranges(caller).take(RANGES_TOLD).collect(),
        };
        Reply::Networks(self.networks.iter().filter(|n| n.who.includes(caller)).map(|n| info(n)).collect())
    }

    /// A page of the caller's leases.
    fn page(&self, caller: &Caller, after: LeaseId) -> Vec<(&Port, &Holder)> {
        let own = self.book.leases().filter(|(_, h)| h.uid == caller.uid && h.id > after);
        let mut own: Vec<(&Port, &Holder)> = own.collect();
        own.sort_by_key(|(_, holder)| holder.id);
        own.truncate(PAGE);
        own
    }

    fn leases_of(&self, caller: &Caller, after: LeaseId) -> Reply {
        Reply::Leases(self.page(caller, after).into_iter().map(|(port, holder)| info(port, holder)).collect())
    }

    fn traffic_of(&mut self, caller: &Caller, after: LeaseId) -> Reply {
        let page: Vec<(LeaseId, u32)> = self.page(caller, after).iter().map(|(port, h)| (h.id, port.index)).collect();
        let counted = page.into_iter().map(|(id, index)| match self.ops.traffic(index) {
            Ok((sent, received)) => Traffic { id, sent, received },
            // It is going; its lease ends with the event that says so. Told as nothing, so that a full page stays one.
            Err(_) => Traffic { id, sent: Flow::default(), received: Flow::default() },
        });
        Reply::Traffic(counted.collect())
    }

    fn status(&mut self) -> Reply {
        let links = self.ops.links().unwrap_or_default();
        let up = |n: &crate::network::Network| links.iter().any(|l| l.name == n.bridge && l.up);
        let down = self.networks.iter().filter(|n| !n.retired && !up(n)).map(|n| n.bridge.to_string());
        Reply::Status(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            rules: self.rules,
            ip_forward: self.ops.ip_forward().unwrap_or(false),
            bridges_down: down.collect(),
            dropping_chains: self.ops.dropping_chains(CHAINS_TOLD).unwrap_or_default(),
            leases: self.book.leases().count() as u32,
        })
    }
}

fn info(port: &Port, holder: &Holder) -> LeaseInfo {
    LeaseInfo {
        id: holder.id,
        network: port.network.clone(),
        vm: holder.vm,
        interface: port.name().to_string(),
        mac: port.mac,
        address: port.address,
        forwards: holder.forwards.clone(),
    }
}

/// Bounds of what a request says, whoever asks.
fn validate(request: &Request) -> Result<(), Refusal> {
    let Request::Lease(wanted) = request else { return Ok(()) };
    let forwards = &wanted.forwards;
    let twice =
        |n: usize| forwards[..n].iter().any(|f| (f.protocol, f.host) == (forwards[n].protocol, forwards[n].host));
    let fits = (1..=QUEUES_MAX).contains(&wanted.queues)
        && wanted.network.len() <= NETWORK_NAME_MAX
        && forwards.len() <= FORWARDS_MAX
        && forwards.iter().all(|f| f.host != 0 && f.guest != 0)
        && !(0..forwards.len()).any(twice);
    if fits { Ok(()) } else { Err(Refusal::Invalid) }
}
