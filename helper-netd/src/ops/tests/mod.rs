//! netd's ops against the kernel, each test in a network namespace of its own. The guests are the tests themselves: they
//! write raw frames into the TAPs and read what comes out.

mod frame;
mod frames;
mod links;
mod names;
mod packets;
mod rules;

use super::{Bridge, Element, IfName, Kernel, LinkEvent, Mac, Ops, Tap};
use crate::sys::testing;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::{Duration, Instant};

pub const BRIDGE_MAC: Mac = [2, 0x76, 0x6d, 0xff, 0, 1];
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../policies/nft/vmsup.nft");

/// Whose the TAPs are: root's.
const OWN: (u32, u32) = (0, 0);

/// Runs the test on a thread with a network namespace of its own, as root; says so where it cannot.
pub fn in_namespace(name: &str, test: impl FnOnce(Kernel) + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        return println!("SKIPPED {name}: makes network namespaces, and is not root");
    }
    let run = move || {
        testing::unshare_network().unwrap();
        run("ip link set lo up");
        test(Kernel::open(OWN).unwrap());
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(run).unwrap().join().unwrap();
}

/// Runs a program in the thread's namespace; the words of its output.
pub fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap_or_else(|e| panic!("{command}: {e}"));
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn nft(command: &str) -> String {
    let output = Command::new("nft").arg(command).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn load_rules() {
    run(&format!("nft -f {RULES}"));
}

/// Packets that a counter has counted.
pub fn counted(family: &str, counter: &str) -> u64 {
    let listed = nft(&format!("list counter {family} vmsup {counter}"));
    let mut words = listed.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).unwrap_or_else(|| panic!("{listed}")).parse().unwrap()
}

pub fn name(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

pub fn bridge(bridge: &str, address: Ipv4Addr) -> Bridge {
    let mac = [BRIDGE_MAC[0], BRIDGE_MAC[1], BRIDGE_MAC[2], 0xff, 0, address.octets()[1]];
    Bridge { name: name(bridge), mac, address, prefix: 24, mtu: 1500, localhost: false }
}

pub fn vmsup0(kernel: &mut Kernel) -> u32 {
    kernel.ensure_bridge(&Bridge { mac: BRIDGE_MAC, ..bridge("vmsup0", GATEWAY) }).unwrap()
}

/// A guest as netd would make it: a plugged TAP with its lease in the set.
pub struct Guest {
    pub tap: OwnedFd,
    pub index: u32,
    pub port: IfName,
    pub mac: Mac,
    pub address: Ipv4Addr,
}

impl Guest {
    pub fn new(kernel: &mut Kernel, number: u32, bridge: u32, isolated: bool, address: Ipv4Addr) -> Guest {
        let octets = address.octets();
        let (port, mac) = (IfName::port(number), [2, 0x76, 0x6d, octets[1], octets[2], octets[3]]);
        let Tap { mut queues, index, .. } = kernel.create_tap(port, 1, true).unwrap();
        kernel.plug(index, bridge, isolated, 1500, mac).unwrap();
        kernel.change(&[Element::Lease { port, mac, address }], &[]).unwrap();
        Guest { tap: queues.remove(0), index, port, mac, address }
    }

    pub fn lease(&self) -> Element {
        Element::Lease { port: self.port, mac: self.mac, address: self.address }
    }

    pub fn send(&self, frame: &[u8]) {
        send(&self.tap, frame);
    }

    /// The next frame that fits; the others are dropped.
    pub fn expect(&self, what: &str, fits: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        expect(&self.tap, what, fits)
    }
}

/// Has the guest ask for its gateway's MAC until it is told: a bridge that just got its first port sends a moment later.
pub fn meet_host(guest: &Guest, gateway: Ipv4Addr) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let request = frame::Arp::request(guest.mac, guest.address).to(gateway).from(guest.mac);
    loop {
        guest.send(&request);
        if std::iter::from_fn(|| next(&guest.tap)).any(|frame| frame::kind(&frame) == 0x806 && frame[21] == 2) {
            return;
        }
        assert!(Instant::now() < deadline, "in vain: the host's ARP reply");
        std::thread::yield_now();
    }
}

/// Writes a frame behind an empty virtio-net header. The kernel is through with it when this returns.
pub fn send(tap: &OwnedFd, frame: &[u8]) {
    let packet = [&[0; 12], frame].concat();
    assert_eq!(rustix::io::write(tap, &packet), Ok(packet.len()));
}

/// The next frame that the kernel has for the holder, without waiting.
pub fn next(tap: &OwnedFd) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 2048];
    match rustix::io::read(tap, &mut buffer) {
        Ok(bytes) => Some(buffer[12..bytes].to_vec()),
        Err(Errno::AGAIN) => None,
        Err(e) => panic!("reading a TAP: {e}"),
    }
}

pub fn expect(tap: &OwnedFd, what: &str, fits: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        while let Some(frame) = next(tap) {
            if fits(&frame) {
                return frame;
            }
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        let wait = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        poll(&mut [PollFd::new(tap, PollFlags::IN)], Some(&wait)).unwrap();
    }
}

/// Waits for an event that fits; the others are dropped.
pub fn expect_event(kernel: &mut Kernel, what: &str, mut fits: impl FnMut(&LinkEvent) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        while let Some(event) = kernel.next_link_event() {
            if fits(&event) {
                return;
            }
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        let wait = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        poll(&mut [PollFd::from_borrowed_fd(kernel.link_events_fd(), PollFlags::IN)], Some(&wait)).unwrap();
    }
}

/// Numbers that look random and are the same each time (xorshift).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit
    }

    pub fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.below(256) as u8).collect()
    }
}
