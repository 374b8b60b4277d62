//! What tests share: a kernel that is none, and small things to have something of each kind.

use crate::journal::{Journal, replay};
use crate::leases::{Book, Holder, Port, State};
use crate::netd::Netd;
use crate::network::{Network, default_mac};
use crate::ops::IfName;
use crate::permit::{Caller, Who};
use crate::places::Place;
use netd_api::{LeaseId, Request, VmId, Wanted};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

mod kernel;

pub use kernel::FakeKernel;

/// Uid and gid of netd in tests.
pub const OWN: (u32, u32) = (990, 991);
pub const BOOT: &str = "0b5f1c9e-boot";

/// A directory that goes with the test.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vmsup-netd-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    pub fn place(&self, name: &str) -> Place {
        Place::open(&self.0.join(name)).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A network for uid 1000, without a pool.
pub fn network(name: &str, bridge: &str, address: &str, prefix: u8) -> Network {
    Network {
        name: name.to_owned(),
        bridge: IfName::new(bridge).unwrap(),
        address: address.parse().unwrap(),
        prefix,
        mtu: 1500,
        nat: true,
        isolated: true,
        host: false,
        metadata: false,
        localhost: false,
        reach: Vec::new(),
        dns: Vec::new(),
        who: Who { users: vec![1000], groups: Vec::new(), ..Who::default() },
        leases: 16,
        pool: 0,
        forwards: Vec::new(),
        retired: false,
    }
}

pub fn caller(uid: u32) -> Caller {
    Caller { uid, groups: vec![uid] }
}

pub fn wanted(network: &str) -> Wanted {
    let network = network.to_owned();
    Wanted { network, vm: VmId(7), queues: 1, offloads: true, mac_suffix: None, forwards: Vec::new() }
}

pub fn lease_request(network: &str) -> Request {
    Request::Lease(wanted(network))
}

/// A leased port.
pub fn port(number: u32, network: &Network, id: LeaseId, uid: u32) -> Port {
    let address = network.hosts().0 + number;
    let (index, tap_mac, mac) = (100 + number, [2, 9, 9, 9, 9, number as u8], default_mac(address));
    let state = State::Leased(Holder { id, uid, vm: VmId(3), forwards: Vec::new() });
    Port { number, index, tap_mac, network: network.name.clone(), mac, address: address.into(), state }
}

/// A book with these leases.
pub fn book_of(network: &Network, leases: &[(LeaseId, u32)]) -> Book {
    let mut book = Book::default();
    for (number, (id, uid)) in (1..).zip(leases) {
        book.insert(port(number, network, *id, *uid));
    }
    book
}

/// netd on a fake kernel, with a journal in that directory.
pub fn start(kernel: &FakeKernel, scratch: &Scratch, networks: Vec<Network>) -> Netd<FakeKernel> {
    let (journal, text) = Journal::open(scratch.place("journal"), BOOT.to_owned()).unwrap();
    Netd::start(kernel.clone(), networks, journal, replay(&text, BOOT), OWN).unwrap()
}

/// xorshift64: the same steps in each run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
