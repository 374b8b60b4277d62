//! netd on a kernel in memory: every rule that holds between book, kernel and journal.

use super::*;
use crate::journal::replay;
use crate::ops::{IfName, LinkEvent};
use crate::permit::Who;
use crate::testing::{BOOT, FakeKernel, Random, Scratch, caller, lease_request, network, start, wanted};
use netd_api::{Forward, Lease, LeaseId, Protocol, Reply, Request, Wanted};

struct Host {
    kernel: FakeKernel,
    scratch: Scratch,
    netd: Netd<FakeKernel>,
}

fn with(networks: Vec<Network>) -> Host {
    let (kernel, scratch) = (FakeKernel::new(), Scratch::new());
    let netd = start(&kernel, &scratch, networks);
    Host { kernel, scratch, netd }
}

fn plain() -> Network {
    let forwards = vec![(Who { users: vec![1000, 2000], groups: vec![], ..Who::default() }, vec![(8000, 8999)])];
    Network {
        who: Who { users: vec![1000, 2000], groups: vec![], ..Who::default() },
        forwards,
        ..network("a", "br-a", "10.1.0.1", 24)
    }
}

fn pooled(pool: u8) -> Network {
    Network { pool, ..plain() }
}

fn forward(host: u16) -> Forward {
    Forward { protocol: Protocol::Tcp, host, guest: 80 }
}

impl Host {
    /// As the loop does it: the kernel's events, then what is due.
    fn pump(&mut self) {
        self.kernel.collect(true);
        for _ in 0..20 {
            self.netd.link_events();
            self.netd.rule_events();
            self.netd.tick(Instant::now());
            while self.netd.refill(Instant::now()) {}
        }
    }

    /// Until nothing is left to do.
    fn settle(&mut self) {
        self.pump();
        assert!(self.kernel.world().events.is_empty());
    }

    fn ask(&mut self, uid: u32, wanted: Wanted) -> Result<(Lease, Vec<OwnedFd>), Refusal> {
        match self.netd.answer(&caller(uid), &Request::Lease(wanted)) {
            (Reply::Leased(lease), queues) => Ok((lease, queues)),
            (Reply::Refused(refusal), _) => Err(refusal),
            (other, _) => panic!("{other:?}"),
        }
    }

    fn lease(&mut self, uid: u32) -> (Lease, Vec<OwnedFd>) {
        self.ask(uid, wanted("a")).unwrap()
    }

    fn release(&mut self, uid: u32, lease: LeaseId) -> Reply {
        self.netd.answer(&caller(uid), &Request::Release { lease }).0
    }

    fn restart(&mut self, networks: Vec<Network>) {
        self.netd.warm.clear();
        self.kernel.collect(true);
        self.netd = start(&self.kernel, &self.scratch, networks);
        self.settle();
    }

    /// A disobedient holder's interface is unplugged, and a second later it is gone.
    fn goes(&mut self, hostile: &Lease) {
        let index = self.kernel.index_of(&hostile.interface).expect("its holder has a second");
        let link = self.kernel.world().links[&index].link.clone();
        assert_eq!((link.bridge, link.up), (None, false));
        self.check();
        let due = self.netd.due().expect("its deletion is due");
        self.netd.delete_overdue(due);
        self.settle();
        assert!(!self.has(&hostile.interface));
        self.check();
    }

    fn has(&self, name: &str) -> bool {
        self.kernel.index_of(name).is_some()
    }

    /// What must hold whenever netd has nothing left to do.
    fn check(&self) {
        let world = self.kernel.world();
        assert_eq!(world.elements, self.netd.desired(), "the kernel's sets are what the book says");
        let mut addresses = BTreeSet::new();
        let mut macs = BTreeSet::new();
        for port in self.netd.book.ports() {
            assert!(addresses.insert((port.network.clone(), port.address)), "{} twice", port.address);
            let link = &world.links.get(&port.index).expect("a port has its interface").link;
            assert_eq!(link.name, port.name());
            if port.live() {
                assert!(macs.insert((port.network.clone(), port.mac)), "a MAC twice");
                let bridge = self.netd.bridges[&port.network];
                assert_eq!((link.bridge, link.up), (Some(bridge), true), "{} is plugged and up", port.name());
                assert_eq!(world.forwarding.get(&(bridge, port.mac)), Some(&port.index), "{} is reached", port.name());
            }
        }
        let known: BTreeSet<u32> = self.netd.book.ports().map(|p| p.index).collect();
        let ports: BTreeSet<u32> =
            world.links.values().filter(|l| l.link.name.port_number().is_some()).map(|l| l.link.index).collect();
        assert_eq!(known, ports, "no interface without its port");
        let text = std::fs::read_to_string(self.scratch.0.join("journal")).unwrap();
        let told = replay(&text, BOOT);
        assert_eq!(told.faults, Vec::<String>::new());
        assert!(told.book.leases().eq(self.netd.book.leases()), "the journal tells the same leases");
        assert_eq!((told.book.last_port, told.book.last_lease), (self.netd.book.last_port, self.netd.book.last_lease));
    }
}

mod events;
mod flows;
mod leases;
mod random;
mod requests;
mod restarts;
