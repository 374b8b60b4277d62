//! The interface from the guest's side, through registers, rings and RAM, and from its network's side: a socket of packets,
//! which to the device is a TAP.

use super::super::driver::{Buffer, Driver};
use super::*;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use std::os::fd::OwnedFd;
use worker_api::NetCounters;

mod pairs;
mod receive;
mod replies;
mod transmit;

/// The first pair's queues.
const RX: usize = 0;
const TX: usize = 1;
const MAC: [u8; 6] = [2, 0x76, 0x6d, 1, 2, 3];
const MTU: u16 = 1500;
/// Where packets of the guest lie, and where its chains for packets are.
const OUT: u64 = 0x2_0000;
const IN: u64 = 0x10_0000;

pub(in super::super) fn spec(queues: u8, offloads: bool) -> NetSpec {
    NetSpec {
        mac: MAC,
        address: [10, 77, 0, 5].into(),
        prefix: 24,
        gateway: [10, 77, 0, 1].into(),
        dns: vec![[9, 9, 9, 9].into()],
        mtu: MTU,
        queues,
        offloads,
        hostname: "guest".into(),
    }
}

/// A frame of so many bytes, none like its neighbour.
pub(super) fn frame(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|n| (n as u8).wrapping_mul(7).wrapping_add(seed) ^ (n >> 8) as u8).collect()
}

/// The same, but for what makes it TCP over IPv4.
pub(super) fn tcp(length: usize, seed: u8) -> Vec<u8> {
    let mut frame = frame(length, seed);
    frame[12..15].copy_from_slice(&[8, 0, 0x45]);
    frame[20..24].copy_from_slice(&[0x40, 0, 64, 6]);
    frame
}

/// An ARP packet, as long as Ethernet wants it; 28 to 32 is its sender's address.
pub(super) fn arp() -> Vec<u8> {
    let mut frame = frame(60, 0x21);
    frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    frame
}

/// Feature bits as one number.
pub(super) fn bits(features: &[u32]) -> u64 {
    features.iter().map(|bit| 1 << bit).sum()
}

pub(super) struct Bench {
    pub(super) driver: Driver,
    pub(super) counters: Arc<Counters>,
    /// The network's ends of the TAP's queues.
    pub(super) network: Vec<OwnedFd>,
    /// Chains for packets, by queue and head: where, and how long.
    room: std::collections::HashMap<(usize, u16), Vec<(u64, u32)>>,
    next: u64,
}

impl Bench {
    /// An interface whose driver accepts all that is offered but `refused`.
    pub(super) fn with(queues: u8, offloads: bool, refused: &[u32]) -> Self {
        let pair = || {
            let (ours, theirs) = socketpair(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                None,
            )
            .unwrap();
            (Tap::double(ours), theirs)
        };
        let (taps, network): (Vec<_>, Vec<_>) = (0..queues).map(|_| pair()).unzip();
        let net = Net::new(&spec(queues, offloads), taps).unwrap();
        let counters = net.counters();
        let mut driver = Driver::new(Box::new(net), Driver::ram());
        driver.wanted = !bits(refused);
        driver.restart();
        Self { driver, counters, network, room: Default::default(), next: IN }
    }

    pub(super) fn new() -> Self {
        Self::with(1, true, &[])
    }

    pub(super) fn counted(&self) -> NetCounters {
        self.counters.snapshot()
    }

    /// Restarts the device; chains of before are forgotten.
    pub(super) fn restart(&mut self) {
        self.driver.restart();
        self.room.clear();
        self.next = IN;
    }

    /// Leaves a chain of these lengths for packets in a receive queue.
    pub(super) fn leave(&mut self, queue: usize, lengths: &[u32]) -> u16 {
        let mut place = |length: u32| {
            let address = self.next;
            self.next = address + u64::from(length).next_multiple_of(64);
            (address, length)
        };
        let pieces: Vec<_> = lengths.iter().map(|length| place(*length)).collect();
        // A ring of memory: what was used long ago is used again.
        if self.next > 0x30_0000 {
            self.next = IN;
        }
        let buffers: Vec<_> = pieces.iter().map(|(at, length)| Buffer::writable(*at, *length)).collect();
        let head = self.driver.on(queue).submit(&buffers);
        self.room.insert((queue, head), pieces);
        head
    }

    /// Leaves chains of one piece in the first receive queue.
    pub(super) fn leave_many(&mut self, count: usize, length: u32) -> Vec<u16> {
        (0..count).map(|_| self.leave(RX, &[length])).collect()
    }

    /// The network sends a packet to a TAP queue.
    pub(super) fn arrive(&self, tap: usize, header: [u8; 10], frame: &[u8]) {
        let packet = [&header[..], &[0xee, 0xee], frame].concat();
        assert_eq!(send(&self.network[tap], &packet, SendFlags::empty()).unwrap(), packet.len());
    }

    /// The next packet that reached the network: header and frame.
    pub(super) fn left(&self, tap: usize) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut packet = vec![0; 0x2_0000];
        let (length, _) = recv(&self.network[tap], &mut packet[..], RecvFlags::empty()).ok()?;
        Some((packet[..12].to_vec(), packet[12..length].to_vec()))
    }

    /// The next packet that the driver got in a queue: header, frame, and the heads of its chains.
    pub(super) fn packet(&mut self, queue: usize) -> Option<(Vec<u8>, Vec<u8>, Vec<u16>)> {
        self.driver.on(queue);
        let (mut bytes, mut heads, mut count) = (Vec::new(), Vec::new(), 1);
        while heads.len() < count {
            let used = self.driver.take();
            assert!(used.is_some() || heads.is_empty(), "half a packet is there");
            let (head, mut written) = used?;
            for (at, length) in &self.room[&(queue, head)] {
                let here = written.min(*length);
                bytes.extend(self.driver.bytes(*at, here as usize));
                written -= here;
            }
            assert_eq!(written, 0, "more than the chain has");
            heads.push(head);
            count = usize::from(u16::from_le_bytes([bytes[10], bytes[11]]));
        }
        let frame = bytes.split_off(12);
        Some((bytes, frame, heads))
    }

    /// A frame of the next packet in the first receive queue.
    pub(super) fn frame(&mut self) -> Option<Vec<u8>> {
        self.packet(RX).map(|(_, frame, _)| frame)
    }

    /// The guest sends a packet, in pieces that end where `cuts` say; its chain came back.
    pub(super) fn send_cut(&mut self, queue: usize, header: [u8; 12], frame: &[u8], cuts: &[usize]) {
        let packet = [&header[..], frame].concat();
        self.driver.put(OUT, &packet);
        let mut ends: Vec<_> = cuts.iter().copied().filter(|cut| *cut < packet.len()).collect();
        ends.push(packet.len());
        let mut from = 0;
        let piece = |to: usize| {
            let buffer = Buffer::readable(OUT + from as u64, (to - from) as u32);
            from = to;
            buffer
        };
        let buffers: Vec<_> = ends.into_iter().map(piece).collect();
        self.driver.on(queue).submit(&buffers);
        self.driver.settle();
        assert_eq!(self.driver.take().map(|(_, written)| written), Some(0));
    }

    pub(super) fn send(&mut self, header: [u8; 12], frame: &[u8]) {
        self.send_cut(TX, header, frame, &[]);
    }

    /// A packet goes each way, whatever happened before.
    pub(super) fn works(&mut self) {
        let sent = frame(60, 3);
        self.send([0; 12], &sent);
        assert_eq!(self.left(0), Some((vec![0; 12], sent)));
        self.leave(RX, &[2048]);
        let come = frame(61, 4);
        self.arrive(0, [0; 10], &come);
        self.driver.settle();
        assert_eq!(self.frame(), Some(come));
    }
}

#[test]
fn a_driver_finds_what_it_needs_in_the_configuration() {
    let bench = Bench::with(3, true, &[]);
    let mut config = [0xff; 32];
    bench.driver.transport.lock().unwrap().device.read_config(0, &mut config);
    assert_eq!(config[..6], MAC);
    assert_eq!(config[6..12], [1, 0, 3, 0, 0xdc, 5], "link up, three pairs, 1500 bytes");
    assert_eq!(config[12..], [0; 20]);
    let mut far = [0xff; 4];
    bench.driver.transport.lock().unwrap().device.read_config(u64::MAX - 1, &mut far);
    assert_eq!(far, [0; 4]);
}

#[test]
fn offered_is_what_the_tap_and_the_number_of_queues_allow() {
    let always = [
        v::VIRTIO_NET_F_MAC,
        v::VIRTIO_NET_F_MTU,
        v::VIRTIO_NET_F_STATUS,
        v::VIRTIO_NET_F_MRG_RXBUF,
        v::VIRTIO_NET_F_CSUM,
        v::VIRTIO_NET_F_HOST_TSO4,
        v::VIRTIO_NET_F_HOST_TSO6,
        v::VIRTIO_NET_F_HOST_ECN,
    ];
    let offloads =
        [v::VIRTIO_NET_F_GUEST_CSUM, v::VIRTIO_NET_F_GUEST_TSO4, v::VIRTIO_NET_F_GUEST_TSO6, v::VIRTIO_NET_F_GUEST_ECN];
    let several = [v::VIRTIO_NET_F_MQ, v::VIRTIO_NET_F_CTRL_VQ];
    let own = |queues, with| Bench::with(queues, with, &[]).driver.offered() & 0xff_ffff;
    assert_eq!(own(1, false), bits(&always));
    assert_eq!(own(1, true), bits(&always) | bits(&offloads));
    assert_eq!(own(4, false), bits(&always) | bits(&several));
}

#[test]
fn a_dead_tap_is_a_dead_link_and_nothing_worse() {
    let mut bench = Bench::new();
    bench.works();
    bench.leave(RX, &[2048]);
    bench.driver.settle();
    let generation = bench.driver.get(0xfc);
    bench.driver.set(0x64, u32::MAX);
    bench.driver.interrupts();
    bench.network.clear();
    assert!(bench.driver.settle() < 5, "the end of a TAP is heard once");
    assert_eq!((bench.driver.interrupts(), bench.driver.get(0x60)), (1, 2), "the configuration changed");
    assert_eq!(bench.driver.get(0xfc), generation + 1);
    assert_eq!(bench.driver.get(0x104) >> 16 & 1, 0, "link down");
    bench.leave(RX, &[2048]);
    bench.send([0; 12], &frame(60, 1));
    assert!(!bench.driver.needs_reset());
    assert_eq!(bench.counted().dropped_tap, 1);
    bench.restart();
    bench.leave(RX, &[2048]);
    assert!(bench.driver.settle() < 5);
    assert_eq!(bench.driver.get(0x104) >> 16 & 1, 0, "and it stays down");
}

#[test]
fn nothing_of_before_a_reset_is_used_after_it() {
    let mut bench = Bench::new();
    bench.leave(RX, &[2048]);
    bench.leave(RX, &[2048]);
    bench.arrive(0, [0; 10], &frame(60, 1));
    bench.driver.settle();
    assert!(bench.frame().is_some());
    // One chain is left in the device's hands. The guest uses its memory otherwise from now on.
    bench.driver.reset();
    bench.driver.put(IN, &[0x5a; 0x2000]);
    bench.arrive(0, [0; 10], &frame(60, 2));
    bench.driver.settle();
    assert_eq!(bench.driver.bytes(IN, 0x2000), [0x5a; 0x2000]);
    bench.next = 0x20_0000;
    bench.driver.restart();
    bench.leave(RX, &[2048]);
    bench.driver.settle();
    assert_eq!(bench.frame(), Some(frame(60, 2)), "what waited in the TAP comes now");
    assert_eq!(bench.driver.bytes(IN, 0x2000), [0x5a; 0x2000]);
    bench.works();
}

#[test]
fn a_reset_while_the_tap_is_readable_spins_nobody() {
    let mut bench = Bench::new();
    bench.leave(RX, &[2048]);
    bench.driver.settle();
    bench.arrive(0, [0; 10], &frame(60, 1));
    bench.driver.reset();
    assert!(bench.driver.settle() <= 2);
    assert!(!bench.driver.turn(), "the TAP is readable, and nobody looks");
    bench.restart();
    bench.leave(RX, &[2048]);
    bench.driver.settle();
    assert_eq!(bench.frame(), Some(frame(60, 1)));
}

/// One device's network floods it; another one on the same reactor gets its packet in the same turn.
#[test]
fn a_flooded_interface_does_not_starve_another() {
    use super::super::worker::QueueWorker;
    use crate::reactor::Reactor;
    let (mut flooded, mut quiet) = (Bench::with(1, true, &[v::VIRTIO_NET_F_GUEST_TSO4]), Bench::new());
    let mut reactor = Reactor::new().unwrap();
    for bench in [&mut flooded, &mut quiet] {
        reactor.add(Box::new(QueueWorker::new(bench.driver.transport.clone()))).unwrap();
        bench.leave(RX, &[2048]);
    }
    reactor.turn().unwrap();
    // Segments that the driver did not agree to: each is read, and none takes a chain.
    (0..200).for_each(|_| flooded.arrive(0, [1, 1, 54, 0, 0, 2, 34, 0, 16, 0], &tcp(100, 1)));
    quiet.arrive(0, [0; 10], &frame(60, 9));
    reactor.turn().unwrap();
    assert_eq!(flooded.counted().dropped_offload, 64, "a turn and no more");
    assert_eq!(quiet.frame(), Some(frame(60, 9)));
}
