//! Virtio devices: one transport ([`transport`], [`window`]), one queue loop ([`worker`]), and thin devices behind one trait.
//!
//! ```text
//! vCPU thread   registers ──────────► Transport ──┐ reset, activate          (under the device's lock)
//! reactor       kick eventfd ───────► QueueWorker ┼─ pop chain ─► handle ─► Done    ─► used ring ─► irqfd
//!               completion eventfd ─►             ├────────────────► Pending      ▲  ▲
//! I/O thread                            disk ◄── request ◄──────────────┘ ─ finished ┘  │
//! reactor       source (a TAP) ─────►             └─ pop chains ─► fill ────────────────┘
//! ```
//!
//! A queue is one of two kinds. The driver asks for something in it, and each chain is handled as it comes. Or the driver
//! leaves chains in it for what comes from a source: these are filled when the source has something, and the source is
//! watched only while there are any.
//!
//! All that comes from the guest (registers, rings, descriptors, requests) is untrusted. A queue that breaks the rules
//! stops its own device: DEVICE_NEEDS_RESET, until the driver resets it. Numbers of sections are those of virtio 1.2.

use crate::memory::GuestMemory;
use queue::{Chain, Virtqueue};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

pub mod block;
pub mod net;
pub mod queue;
pub mod rng;
pub mod status;
pub mod transport;
pub mod window;
pub mod worker;

#[cfg(test)]
pub(super) mod driver;
#[cfg(test)]
mod hostile;

/// Device type of a network interface (5.1).
pub const ID_NET: u32 = 1;
/// Device type of a disk (5.2).
pub const ID_BLOCK: u32 = 2;
/// Device type of an entropy source (5.4).
pub const ID_ENTROPY: u32 = 4;

/// How a driver broke the rules of a queue. It concerns that driver's device only.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Rings that cannot be used.
    #[error("virtqueue: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// A descriptor chain that cannot be walked, or that does not fit its device.
    #[error("descriptor chain: {0}")]
    Chain(&'static str),
}

/// What a device did with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// Finished; so many bytes were written into it.
    Done(u32),
    /// Begun; it comes back as a [`Completion`].
    Pending,
}

/// A chain that a device began earlier and has finished now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Index of its queue.
    pub queue: usize,
    /// Its head.
    pub head: u16,
    /// Bytes written into it.
    pub written: u32,
}

/// What a device did for a queue that its source fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// It gave back one chain or more.
    Chains,
    /// What the source had could not be given to the driver, and is gone.
    Nothing,
    /// The source has nothing at the moment.
    Dry,
    /// The driver has to offer chains first.
    Starved,
    /// The source has ended, and the device's configuration says so now.
    Ended,
}

/// What makes a virtio device the one that it is. All methods run under the device's lock: none of them blocks, and those
/// marked (vCPU) do not allocate.
pub trait VirtioDevice: Send {
    /// The device type (5).
    fn id(&self) -> u32;

    /// The feature bits that it offers beside those of the transport.
    fn features(&self) -> u64;

    /// The largest size of each of its queues, powers of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// Fills `data` from its configuration at `offset`, with zeros where there is none (vCPU).
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver is ready and agreed on `features` (vCPU).
    fn activate(&mut self, features: u64);

    /// Can it begin another chain? If not, the queue waits for a completion.
    fn has_room(&self) -> bool {
        true
    }

    /// Does or begins what a chain asks for.
    ///
    /// # Errors
    /// The chain is not what this device can answer; the device stops.
    fn handle(&mut self, queue: usize, chain: &Chain, mem: &GuestMemory) -> Result<Handled, QueueError>;

    /// Fds that queues are filled from; asked for once.
    fn sources(&self) -> Vec<Arc<OwnedFd>> {
        Vec::new()
    }

    /// Is this queue filled from sources, rather than handled?
    fn is_filled(&self, _queue: usize) -> bool {
        false
    }

    /// The queue that a source fills for now.
    fn target(&self, _source: usize) -> usize {
        0
    }

    /// Takes one thing from a source and fills chains of `queue`, its target, with it. `chain` is for popping.
    ///
    /// # Errors
    /// As [`VirtioDevice::handle`].
    fn fill(
        &mut self,
        _source: usize,
        _queue: &mut Virtqueue,
        _chain: &mut Chain,
        _mem: &GuestMemory,
    ) -> Result<Filled, QueueError> {
        Ok(Filled::Starved)
    }

    /// Readable when there may be completions, or something to do for queues that nobody kicked.
    fn completion_event(&self) -> Option<Arc<EventFd>> {
        None
    }

    /// The next chain that is finished.
    fn next_completion(&mut self, _mem: &GuestMemory) -> Option<Completion> {
        None
    }

    /// Gives up all that it began; completions of it are never told. True when nothing of it can touch guest RAM or what
    /// is behind the device any more; called again until then (vCPU).
    fn reset(&mut self) -> bool;
}
