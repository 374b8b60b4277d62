//! virtio-blk (5.2): a disk.
//!
//! On the reactor: reads a request, checks it, and hands it to the disk's own threads ([`engine`]); gives back what they
//! have finished. On the vCPU threads: nothing but configuration and reset. Writes are write-back: the host's page cache
//! may hold them until the guest flushes. A driver that does not know flushes gets every write through to the disk.

use super::queue::{self, CHAIN_MAX, Chain};
use super::{Completion, Handled, ID_BLOCK, QueueError, VirtioDevice};
use crate::memory::GuestMemory;
use counters::Counters;
use disk::{Disk, SECTOR};
use engine::{Engine, IoThread, Operation, Request};
use request::{Parsed, Todo};
use std::sync::Arc;
use std::time::{Duration, Instant};
use virtio_bindings::virtio_blk as v;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;
use worker_api::SERIAL_MAX;

pub mod counters;
pub mod disk;
pub mod engine;
pub mod request;

/// Descriptors of the queue, and so the most requests in flight.
const QUEUE_SIZE: u16 = 128;
/// Data segments of a request: a chain has a header and a status as well.
const SEGMENTS_MAX: u32 = CHAIN_MAX as u32 - 2;
/// Offsets in the configuration (5.2.4).
const CONFIG_BYTES: usize = 24;
const SEG_MAX: usize = 12;
const BLK_SIZE: usize = 20;

const _: () = assert!(SERIAL_MAX == v::VIRTIO_BLK_ID_BYTES as usize);

/// The device.
pub struct Block {
    readonly: bool,
    sectors: u64,
    serial: [u8; SERIAL_MAX],
    engine: Engine,
    /// Requests that are not in use. All that there ever are were made at the beginning; only the reactor fills them,
    /// and their lists of segments grow there.
    spare: Vec<Request>,
    /// The driver knows flushes; else each write is made durable before it is answered.
    flushes: bool,
    counters: Arc<Counters>,
}

impl Block {
    /// The device of `disk`, and its threads.
    ///
    /// # Errors
    /// What `eventfd2(2)` says.
    pub fn new(disk: Disk, serial: &str, mem: &GuestMemory) -> std::io::Result<(Self, Vec<IoThread>)> {
        let (readonly, sectors) = (disk.readonly(), disk.sectors());
        let (engine, threads) = Engine::new(Box::new(disk), mem.clone(), QUEUE_SIZE.into())?;
        Ok((Self::with_engine(readonly, sectors, serial, engine), threads))
    }

    fn with_engine(readonly: bool, sectors: u64, serial: &str, engine: Engine) -> Self {
        let mut bytes = [0; SERIAL_MAX];
        bytes.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
        let spare = (0..QUEUE_SIZE).map(|_| Request::default()).collect();
        Self { readonly, sectors, serial: bytes, engine, spare, flushes: false, counters: Arc::default() }
    }

    /// What it did so far.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Hands a request to the threads.
    fn begin(
        &mut self,
        chain: &Chain,
        parsed: &Parsed,
        operation: Operation,
        offset: u64,
        length: u64,
    ) -> Result<Handled, QueueError> {
        let mut request = self.spare.pop().ok_or(QueueError::Chain("more requests than the disk has room for"))?;
        let (from, skip) = match operation {
            Operation::Write { .. } => (chain.readable(), request::HEADER),
            Operation::Read | Operation::Flush => (chain.writable(), 0),
        };
        request.data.clear();
        request.data.extend(queue::part(from, skip, length));
        (request.operation, request.offset) = (operation, offset);
        (request.head, request.status) = (chain.head(), parsed.status);
        request.arrived = Some(Instant::now());
        self.engine.submit(request);
        Ok(Handled::Pending)
    }

    fn identify(&self, chain: &Chain, parsed: &Parsed, mem: &GuestMemory) -> Handled {
        if queue::total(chain.writable()) <= SERIAL_MAX as u64 {
            self.counters.refused();
            return answer(mem, parsed.status, v::VIRTIO_BLK_S_IOERR, 0);
        }
        let written = queue::write(mem, chain.writable(), &self.serial);
        answer(mem, parsed.status, v::VIRTIO_BLK_S_OK, written as u32)
    }
}

/// Writes the status byte of a request that is finished, with `written` bytes before it.
fn answer(mem: &GuestMemory, place: GuestAddress, status: u32, written: u32) -> Handled {
    // Inside RAM: the chain was checked, and RAM does not change.
    let _ = mem.write_obj(status as u8, place);
    Handled::Done(written + 1)
}

impl VirtioDevice for Block {
    fn id(&self) -> u32 {
        ID_BLOCK
    }

    fn features(&self) -> u64 {
        let always = 1 << v::VIRTIO_BLK_F_SEG_MAX | 1 << v::VIRTIO_BLK_F_BLK_SIZE | 1 << v::VIRTIO_BLK_F_FLUSH;
        always | u64::from(self.readonly) << v::VIRTIO_BLK_F_RO
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_BYTES];
        config[..8].copy_from_slice(&self.sectors.to_le_bytes());
        config[SEG_MAX..SEG_MAX + 4].copy_from_slice(&SEGMENTS_MAX.to_le_bytes());
        config[BLK_SIZE..BLK_SIZE + 4].copy_from_slice(&(SECTOR as u32).to_le_bytes());
        let known = usize::try_from(offset).ok().and_then(|from| config.get(from..)).unwrap_or(&[]);
        data.fill(0);
        data.iter_mut().zip(known).for_each(|(to, from)| *to = *from);
    }

    fn activate(&mut self, features: u64) {
        self.flushes = features & 1 << v::VIRTIO_BLK_F_FLUSH != 0;
    }

    fn has_room(&self) -> bool {
        !self.spare.is_empty()
    }

    fn handle(&mut self, _queue: usize, chain: &Chain, mem: &GuestMemory) -> Result<Handled, QueueError> {
        let parsed =
            request::parse(chain, mem, self.sectors, self.readonly).inspect_err(|_| self.counters.refused())?;
        match parsed.todo {
            Todo::Read { offset, length } => self.begin(chain, &parsed, Operation::Read, offset, length),
            Todo::Write { offset, length } => {
                let durable = !self.flushes;
                self.begin(chain, &parsed, Operation::Write { durable }, offset, length)
            }
            Todo::Flush => self.begin(chain, &parsed, Operation::Flush, 0, 0),
            Todo::Identify => Ok(self.identify(chain, &parsed, mem)),
            Todo::Answer(status) => {
                self.counters.refused();
                Ok(answer(mem, parsed.status, status, 0))
            }
        }
    }

    fn completion_event(&self) -> Option<Arc<EventFd>> {
        Some(self.engine.finished_event())
    }

    fn next_completion(&mut self, mem: &GuestMemory) -> Option<Completion> {
        let request = self.engine.take_finished()?;
        self.counters.finished(&request, request.arrived.map_or(Duration::ZERO, |arrived| arrived.elapsed()));
        let read = if request.operation == Operation::Read { queue::total(&request.data) as u32 } else { 0 };
        let (status, written) = if request.ok { (v::VIRTIO_BLK_S_OK, read) } else { (v::VIRTIO_BLK_S_IOERR, 0) };
        let (place, head) = (request.status, request.head);
        self.spare.push(request);
        let _ = mem.write_obj(status as u8, place);
        Some(Completion { queue: 0, head, written: written + 1 })
    }

    fn reset(&mut self) -> bool {
        self.flushes = false;
        self.engine.abandon(&mut self.spare)
    }
}

#[cfg(test)]
mod tests;
