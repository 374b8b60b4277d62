//! The queue loop: one for all virtio devices.
//!
//! Runs on the reactor, with the device's lock held for one bounded piece of work at a time. Who kicks is the guest, as
//! often as it likes; who completes is an I/O thread.

use super::transport::Transport;
use super::{Handled, QueueError};
use crate::bus::lock;
use crate::reactor::{ReactorError, Subscriber, Watches};
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::EventFd;

/// The most chains or completions in one go. What is left waits for the other devices' turn.
const BUDGET: usize = 64;

/// Token of the completion eventfd; those below are queues.
const COMPLETIONS: u32 = u32::MAX;

/// Is there more to do than the budget allowed?
type More = bool;

impl Transport {
    /// Serves a queue as far as the budget goes.
    fn serve(&mut self, index: usize) -> More {
        self.settle();
        if !self.runs() || !self.queues.get(index).is_some_and(|q| q.ready()) {
            return false;
        }
        self.pop_and_handle(index).unwrap_or_else(|_| {
            self.fail();
            false
        })
    }

    fn pop_and_handle(&mut self, index: usize) -> Result<More, QueueError> {
        let Transport { device, queues, chain, mem, line, .. } = self;
        let queue = &mut queues[index];
        let (mut more, mut pushed) = (true, false);
        for _ in 0..BUDGET {
            if !device.has_room() {
                // A completion makes room, and comes back here.
                more = false;
                break;
            }
            if queue.pop(mem, chain)? {
                if let Handled::Done(written) = device.handle(index, chain, mem)? {
                    queue.push(mem, chain.head(), written)?;
                    pushed = true;
                }
            } else if !queue.enable_kicks(mem)? {
                more = false;
                break;
            }
        }
        if pushed && queue.wants_interrupt(mem)? {
            line.used();
        }
        Ok(more)
    }

    /// Gives back what the device has finished.
    fn complete(&mut self) -> More {
        self.settle();
        if !self.runs() {
            // Of a device that failed or is being reset, nobody hears.
            self.device.reset();
            return false;
        }
        self.push_finished().unwrap_or_else(|_| {
            self.fail();
            false
        })
    }

    fn push_finished(&mut self) -> Result<More, QueueError> {
        let Transport { device, queues, mem, line, .. } = self;
        let (mut more, mut pushed) = (true, false);
        for _ in 0..BUDGET {
            let Some(done) = device.next_completion(mem) else {
                more = false;
                break;
            };
            queues[done.queue].push(mem, done.head, done.written)?;
            pushed = true;
        }
        let mut wanted = false;
        for queue in queues.iter_mut().filter(|q| pushed && q.ready()) {
            wanted |= queue.wants_interrupt(mem)?;
        }
        if wanted {
            line.used();
        }
        Ok(more)
    }
}

/// A device on the reactor.
pub struct QueueWorker {
    transport: Arc<Mutex<Transport>>,
    kicks: Vec<Arc<EventFd>>,
    completions: Option<Arc<EventFd>>,
}

impl QueueWorker {
    /// Serves the queues of `transport`.
    pub fn new(transport: Arc<Mutex<Transport>>) -> Self {
        let (kicks, completions) = {
            let transport = lock(&transport);
            (transport.kicks.clone(), transport.device.completion_event())
        };
        Self { transport, kicks, completions }
    }

    fn serve(&self, index: usize) {
        let more = lock(&self.transport).serve(index);
        if let Some(kick) = self.kicks.get(index).filter(|_| more) {
            // Readable again: the next turn goes on here. It cannot fail but by being full.
            let _ = kick.write(1);
        }
    }
}

impl Subscriber for QueueWorker {
    fn register(&mut self, watches: &mut dyn Watches) -> Result<(), ReactorError> {
        for (token, kick) in (0..).zip(&self.kicks) {
            watches.watch(&**kick, token)?;
        }
        self.completions.as_ref().map_or(Ok(()), |event| watches.watch(&**event, COMPLETIONS))
    }

    fn process(&mut self, token: u32, _: &mut dyn Watches) {
        if token != COMPLETIONS {
            if let Some(kick) = self.kicks.get(token as usize) {
                let _ = kick.read();
                self.serve(token as usize);
            }
        } else if let Some(event) = &self.completions {
            let _ = event.read();
            let more = lock(&self.transport).complete();
            if more {
                let _ = event.write(1);
            }
            // There is room now for what had to wait.
            (0..self.kicks.len()).for_each(|queue| self.serve(queue));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::{AVAILABLE, Buffer, Driver};
    use super::super::queue::Chain;
    use super::super::{Completion, VirtioDevice};
    use super::*;
    use crate::memory::GuestMemory;
    use vm_memory::{Bytes, GuestAddress};

    /// A device whose driver never tires: while it serves a chain, the next one becomes available, and its threads
    /// finish something whenever they are asked.
    struct Endless {
        completes: bool,
        event: Arc<EventFd>,
    }

    impl VirtioDevice for Endless {
        fn id(&self) -> u32 {
            0
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_sizes(&self) -> &'static [u16] {
            &[16]
        }
        fn read_config(&self, _: u64, data: &mut [u8]) {
            data.fill(0);
        }
        fn activate(&mut self, _: u64) {}
        fn handle(&mut self, _: usize, _: &Chain, mem: &GuestMemory) -> Result<Handled, QueueError> {
            let index: u16 = mem.read_obj(GuestAddress(AVAILABLE + 2)).unwrap();
            mem.write_obj(index.wrapping_add(1), GuestAddress(AVAILABLE + 2)).unwrap();
            Ok(if self.completes { Handled::Pending } else { Handled::Done(0) })
        }
        fn completion_event(&self) -> Option<Arc<EventFd>> {
            Some(self.event.clone())
        }
        fn next_completion(&mut self, _: &GuestMemory) -> Option<Completion> {
            self.completes.then_some(Completion { queue: 0, head: 0, written: 0 })
        }
        fn reset(&mut self) -> bool {
            true
        }
    }

    fn endless(completes: bool) -> (Driver, Arc<EventFd>) {
        let event = Arc::new(EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap());
        let mut driver = Driver::start(Box::new(Endless { completes, event: event.clone() }));
        driver.chain(&[Buffer::writable(0x8000, 16)]);
        (driver, event)
    }

    #[test]
    fn a_queue_that_never_empties_gets_its_turn_and_no_more() {
        let (mut driver, _) = endless(false);
        driver.offer(0);
        driver.notify();
        for turn in 1..=10 {
            assert!(driver.turn(), "the reactor comes back by itself");
            assert_eq!(driver.used(), turn * 64, "turn {turn}");
        }
    }

    #[test]
    fn completions_without_end_get_their_turn_and_no_more() {
        let (mut driver, event) = endless(true);
        event.write(1).unwrap();
        for turn in 1..=10 {
            assert!(driver.turn(), "the reactor comes back by itself");
            assert_eq!(driver.used(), turn * 64, "turn {turn}");
        }
    }

    #[test]
    fn a_thousand_kicks_are_one_event() {
        let (mut driver, _) = endless(false);
        for _ in 0..1000 {
            driver.notify();
        }
        assert_eq!(driver.settle(), 1);
    }
}
