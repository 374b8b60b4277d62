//! virtio-net (5.1): a network interface over a TAP.
//!
//! ```text
//! guest's driver                 reactor                                        kernel
//! receive queue   ◄── packets ── receive: header checked ◄──── readv ────────── TAP queue
//!                 ◄── replies ── DHCP ◄──┐
//! transmit queue  ── packets ──► transmit: header, length ──── writev ────────► TAP queue
//! control queue   ── pairs ────► how many queue pairs are in use
//! ```
//!
//! On the reactor: packets, one system call each, without a copy. On the vCPU threads: configuration and reset. What the
//! guest sends is untrusted, and so is what comes from its network; what a guest may send *to whom* is not decided here but
//! by the host's rules on the other side of the TAP.

use super::queue::{self, Chain, Virtqueue};
use super::{Filled, Handled, ID_NET, QueueError, VirtioDevice};
use crate::memory::GuestMemory;
use answers::Answers;
use counters::Counters;
use header::{Agreed, Header, Incoming};
use receive::{Buffers, Read, Room};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tap::Tap;
use transmit::{Sender, Sent};
use virtio_bindings::virtio_net as v;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use worker_api::{NET_QUEUES_MAX, NetSpec};

mod answers;
mod checksum;
pub mod counters;
pub mod dhcp;
pub mod header;
mod layer4;
mod receive;
pub mod tap;
mod transmit;

#[cfg(test)]
pub(super) mod tests;

/// Descriptors of each queue: what drivers expect. Under load one turn of the reactor leaves the driver three more.
const QUEUE_SIZE: u16 = 256;
/// A pair of queues for each of the most pairs, and the control queue.
const SIZES: [u16; 2 * NET_QUEUES_MAX as usize + 1] = [QUEUE_SIZE; 2 * NET_QUEUES_MAX as usize + 1];
/// Offsets in the configuration (5.1.4).
const CONFIG_BYTES: usize = 12;
const STATUS: usize = 6;
const PAIRS: usize = 8;
const MTU: usize = 10;

/// What a driver that checks nothing and cuts nothing may leave to the device; the TAP takes all of it.
const HOST: u64 = 1 << v::VIRTIO_NET_F_CSUM
    | 1 << v::VIRTIO_NET_F_HOST_TSO4
    | 1 << v::VIRTIO_NET_F_HOST_TSO6
    | 1 << v::VIRTIO_NET_F_HOST_ECN;
/// What the device may leave to the driver, where the TAP does so.
const GUEST: u64 = 1 << v::VIRTIO_NET_F_GUEST_CSUM
    | 1 << v::VIRTIO_NET_F_GUEST_TSO4
    | 1 << v::VIRTIO_NET_F_GUEST_TSO6
    | 1 << v::VIRTIO_NET_F_GUEST_ECN;
const SEVERAL_PAIRS: u64 = 1 << v::VIRTIO_NET_F_MQ | 1 << v::VIRTIO_NET_F_CTRL_VQ;

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// From the network, by pair.
    Receive,
    /// To the network, by pair.
    Transmit(usize),
    /// Commands.
    Control,
    /// Nothing, with what driver and device agreed on.
    Unused,
}

/// The device.
pub struct Net {
    mac: [u8; 6],
    mtu: u16,
    /// What is offered.
    features: u64,
    taps: Vec<Tap>,
    /// No queue of the TAP has ended.
    link: bool,
    /// What the driver agreed to, and what follows from it.
    agreed: Agreed,
    room: Room,
    /// Pairs of queues that the driver uses. The kernel spreads packets over all queues of the TAP, whatever the driver wants.
    pairs: usize,
    buffers: Vec<Buffers>,
    answers: Answers,
    counters: Arc<Counters>,
    /// Something is to be done for queues that nobody kicked: a reply waits, or the pairs changed.
    news: Arc<EventFd>,
}

impl Net {
    /// The interface that `spec` describes, with a TAP queue for each of its queue pairs.
    ///
    /// # Errors
    /// What `eventfd2(2)` says.
    pub fn new(spec: &NetSpec, taps: Vec<Tap>) -> std::io::Result<Self> {
        let always = 1 << v::VIRTIO_NET_F_MAC
            | 1 << v::VIRTIO_NET_F_MTU
            | 1 << v::VIRTIO_NET_F_STATUS
            | 1 << v::VIRTIO_NET_F_MRG_RXBUF;
        let guest = if spec.offloads { GUEST } else { 0 };
        let several = if taps.len() > 1 { SEVERAL_PAIRS } else { 0 };
        Ok(Self {
            mac: spec.mac,
            mtu: spec.mtu,
            features: always | HOST | guest | several,
            link: true,
            agreed: Agreed::default(),
            room: Room::new(Agreed::default(), spec.mtu),
            pairs: 1,
            buffers: taps.iter().map(|_| Buffers::new()).collect(),
            answers: Answers::new(spec),
            counters: Arc::default(),
            news: Arc::new(EventFd::new(EFD_NONBLOCK)?),
            taps,
        })
    }

    /// What it did so far.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// What queue number `queue` is for (5.1.2): the control queue comes behind all pairs where the driver knows of several,
    /// else behind the first.
    fn role(&self, queue: usize) -> Role {
        let pairs = if self.agreed.has(v::VIRTIO_NET_F_MQ) { self.taps.len() } else { 1 };
        match queue {
            _ if queue < 2 * pairs && queue.is_multiple_of(2) => Role::Receive,
            _ if queue < 2 * pairs => Role::Transmit(queue / 2),
            _ if queue == 2 * pairs && self.agreed.has(v::VIRTIO_NET_F_CTRL_VQ) => Role::Control,
            _ => Role::Unused,
        }
    }

    /// Carries out a command (5.1.6.5): the number of pairs in use is the only one.
    fn control(&mut self, chain: &Chain, mem: &GuestMemory) -> Result<Handled, QueueError> {
        if chain.writable().is_empty() {
            return Err(QueueError::Chain("a command without room for its answer"));
        }
        let mut command = [0; 4];
        let known = self.agreed.has(v::VIRTIO_NET_F_MQ)
            && queue::read(mem, chain.readable(), &mut command)
            && u32::from(command[0]) == v::VIRTIO_NET_CTRL_MQ
            && u32::from(command[1]) == v::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET;
        let pairs = usize::from(u16::from_le_bytes([command[2], command[3]]));
        let good = known && (1..=self.taps.len()).contains(&pairs);
        if good {
            self.pairs = pairs;
            self.tell_news();
        }
        let answer = if good { v::VIRTIO_NET_OK } else { v::VIRTIO_NET_ERR };
        Ok(Handled::Done(queue::write(mem, chain.writable(), &[answer as u8]) as u32))
    }

    fn tell_news(&self) {
        // Fails only where the counter is full, and then the reactor is about to come.
        let _ = self.news.write(1);
    }

    /// Gives a reply to the guest that waits for it, in the chains of the first pair.
    fn deliver_reply(&mut self, queue: &mut Virtqueue, mem: &GuestMemory) -> Result<Option<Filled>, QueueError> {
        let Some(reply) = self.answers.first() else { return Ok(None) };
        let (buffers, length) = (&mut self.buffers[0], reply.len() as u64);
        let fits = buffers.write(reply, mem);
        self.answers.pop();
        if !fits {
            self.counters.dropped_buffer.one();
            return Ok(Some(Filled::Nothing));
        }
        buffers.deliver(queue, mem, Header::default(), length)?;
        Ok(Some(Filled::Chains))
    }

    /// Gives a packet of the TAP's to the driver, in the chains of `pair`, where it lies already.
    fn deliver_packet(
        &mut self,
        pair: usize,
        mut header: Header,
        length: u64,
        queue: &mut Virtqueue,
        mem: &GuestMemory,
    ) -> Result<Filled, QueueError> {
        let buffers = &mut self.buffers[pair];
        let (head, known) = buffers.head(mem, header, length);
        let good = match header.incoming(self.agreed, &head[..known], length) {
            Incoming::Fits => true,
            Incoming::Complete(partial) => partial.complete(mem, buffers.segments(), header::LENGTH as u64, length),
            Incoming::Unacceptable => false,
        };
        if !good {
            self.counters.dropped_offload.one();
            return Ok(Filled::Nothing);
        }
        buffers.deliver(queue, mem, header, length)?;
        self.counters.received_packets.one();
        self.counters.received_bytes.add(length);
        Ok(Filled::Chains)
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> u32 {
        ID_NET
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &'static [u16] {
        let pairs = self.taps.len().clamp(1, NET_QUEUES_MAX.into());
        &SIZES[..if pairs > 1 { 2 * pairs + 1 } else { 2 }]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_BYTES];
        config[..STATUS].copy_from_slice(&self.mac);
        config[STATUS] = if self.link { v::VIRTIO_NET_S_LINK_UP as u8 } else { 0 };
        config[PAIRS..MTU].copy_from_slice(&(self.taps.len() as u16).to_le_bytes());
        config[MTU..].copy_from_slice(&self.mtu.to_le_bytes());
        let known = usize::try_from(offset).ok().and_then(|from| config.get(from..)).unwrap_or(&[]);
        data.fill(0);
        data.iter_mut().zip(known).for_each(|(to, from)| *to = *from);
    }

    fn activate(&mut self, features: u64) {
        self.agreed = Agreed(features);
        self.room = Room::new(self.agreed, self.mtu);
    }

    fn handle(&mut self, queue: usize, chain: &Chain, mem: &GuestMemory) -> Result<Handled, QueueError> {
        match self.role(queue) {
            Role::Transmit(pair) => {
                let (agreed, mtu, tap) = (self.agreed, self.mtu, self.taps[pair].as_fd());
                let sender = Sender { agreed, mtu, tap, counters: &self.counters };
                if sender.send(chain, &mut self.answers, mem)? == Sent::Answered {
                    self.tell_news();
                }
                Ok(Handled::Done(0))
            }
            Role::Control => self.control(chain, mem),
            Role::Receive | Role::Unused => Err(QueueError::Chain("a request in a queue that takes none")),
        }
    }

    fn sources(&self) -> Vec<Arc<OwnedFd>> {
        self.taps.iter().map(Tap::share).collect()
    }

    fn is_filled(&self, queue: usize) -> bool {
        self.role(queue) == Role::Receive
    }

    /// With fewer pairs in use than the TAP has queues, packets of the others go to those in use (5.1.6.5.5.2).
    fn target(&self, source: usize) -> usize {
        2 * (source % self.pairs)
    }

    fn fill(
        &mut self,
        source: usize,
        queue: &mut Virtqueue,
        chain: &mut Chain,
        mem: &GuestMemory,
    ) -> Result<Filled, QueueError> {
        let pair = source % self.pairs;
        if !self.buffers[pair].gather(queue, chain, mem, self.room)? {
            return Ok(Filled::Starved);
        }
        // Replies first: they do not wait for a network that never falls silent.
        if source == 0
            && let Some(filled) = self.deliver_reply(queue, mem)?
        {
            return Ok(filled);
        }
        match self.buffers[pair].read(self.taps[source].as_fd(), mem) {
            Read::Packet(header, length) => self.deliver_packet(pair, header, length, queue, mem),
            Read::TooLong(mut header, length) => {
                let (head, known) = self.buffers[pair].head(mem, header, length);
                let expected = header.incoming(self.agreed, &head[..known], length) != Incoming::Unacceptable;
                let counters = &self.counters;
                if expected { &counters.dropped_buffer } else { &counters.dropped_offload }.one();
                Ok(Filled::Nothing)
            }
            Read::Odd => {
                self.counters.dropped_offload.one();
                Ok(Filled::Nothing)
            }
            Read::Nothing => Ok(Filled::Dry),
            Read::End => {
                self.link = false;
                Ok(Filled::Ended)
            }
        }
    }

    fn completion_event(&self) -> Option<Arc<EventFd>> {
        Some(self.news.clone())
    }

    fn reset(&mut self) -> bool {
        self.activate(0);
        self.pairs = 1;
        self.buffers.iter_mut().for_each(Buffers::clear);
        self.answers.clear();
        true
    }
}
