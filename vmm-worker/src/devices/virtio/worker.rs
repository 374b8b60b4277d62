//! The queue loop: one for all virtio devices.
//!
//! Runs on the reactor, with the device's lock held for one bounded piece of work at a time. Who kicks is the guest, as
//! often as it likes; who completes is an I/O thread; who sends to a source is anybody on the guest's network.

use super::transport::Transport;
use super::{Filled, Handled, QueueError};
use crate::bus::lock;
use crate::reactor::{ReactorError, Subscriber, Watches};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::EventFd;

/// The most chains, completions or packets in one go. What is left waits for the other devices' turn.
const BUDGET: usize = 64;

/// Token of the completion eventfd.
const COMPLETIONS: u32 = u32::MAX;
/// Token of the first source; those below are queues.
const SOURCES: u32 = 1 << 16;

/// Is there more to do than the budget allowed?
type More = bool;

/// What becomes of a source after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It is to be watched: there are chains for what it has.
    Watch,
    /// It is to be left alone until the driver kicks, or else it would call again at once.
    Wait,
    /// It is never to be looked at again.
    Forget,
}

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

    /// Fills the target of a source as far as the budget goes.
    fn fill(&mut self, source: usize) -> Then {
        self.settle();
        let target = self.device.target(source);
        if !self.runs() || !self.queues.get(target).is_some_and(|q| q.ready()) {
            return Then::Wait;
        }
        let then = self.take_and_fill(source, target).unwrap_or_else(|_| {
            self.fail();
            Then::Wait
        });
        if then == Then::Forget {
            self.config_changed();
        }
        then
    }

    fn take_and_fill(&mut self, source: usize, target: usize) -> Result<Then, QueueError> {
        let Transport { device, queues, chain, mem, line, .. } = self;
        let queue = &mut queues[target];
        let (mut then, mut pushed) = (Then::Watch, false);
        for _ in 0..BUDGET {
            match device.fill(source, queue, chain, mem)? {
                Filled::Chains => pushed = true,
                Filled::Nothing => {}
                Filled::Dry => break,
                // Chains that came meanwhile are found in the next round.
                Filled::Starved if queue.enable_kicks(mem)? => {}
                Filled::Starved => {
                    then = Then::Wait;
                    break;
                }
                Filled::Ended => {
                    then = Then::Forget;
                    break;
                }
            }
        }
        if pushed && queue.wants_interrupt(mem)? {
            line.used();
        }
        Ok(then)
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

/// An fd that queues are filled from.
struct Source {
    fd: Arc<OwnedFd>,
    watched: bool,
    ended: bool,
}

/// A device on the reactor.
pub struct QueueWorker {
    transport: Arc<Mutex<Transport>>,
    kicks: Vec<Arc<EventFd>>,
    completions: Option<Arc<EventFd>>,
    sources: Vec<Source>,
}

impl QueueWorker {
    /// Serves the queues of `transport`.
    pub fn new(transport: Arc<Mutex<Transport>>) -> Self {
        let (kicks, completions, sources) = {
            let transport = lock(&transport);
            (transport.kicks.clone(), transport.device.completion_event(), transport.device.sources())
        };
        let sources = sources.into_iter().map(|fd| Source { fd, watched: false, ended: false }).collect();
        Self { transport, kicks, completions, sources }
    }

    fn serve(&mut self, index: usize, watches: &mut dyn Watches) {
        if lock(&self.transport).device.is_filled(index) {
            return self.fill(index, watches);
        }
        let more = lock(&self.transport).serve(index);
        if let Some(kick) = self.kicks.get(index).filter(|_| more) {
            // Readable again: the next turn goes on here. It cannot fail but by being full.
            let _ = kick.write(1);
        }
    }

    /// Fills a queue from all its sources.
    fn fill(&mut self, index: usize, watches: &mut dyn Watches) {
        for source in 0..self.sources.len() {
            let target = lock(&self.transport).device.target(source);
            if target == index {
                self.take_from(source, watches);
            }
        }
    }

    /// A turn of one source. It is not watched before its queue has chains, and not longer: what it has stays there, and
    /// whoever sends to it meets the kernel's limits.
    fn take_from(&mut self, index: usize, watches: &mut dyn Watches) {
        let Some(source) = self.sources.get_mut(index).filter(|s| !s.ended) else { return };
        let then = lock(&self.transport).fill(index);
        source.ended = then == Then::Forget;
        let done = match (source.watched, then) {
            (false, Then::Watch) => watches.watch(&*source.fd, SOURCES + index as u32),
            (true, Then::Wait | Then::Forget) => watches.unwatch(&*source.fd),
            _ => return,
        };
        // Where the kernel has no memory for a watch, the driver's next kick tries again.
        source.watched ^= done.is_ok();
    }
}

impl Subscriber for QueueWorker {
    fn register(&mut self, watches: &mut dyn Watches) -> Result<(), ReactorError> {
        for (token, kick) in (0..).zip(&self.kicks) {
            watches.watch(&**kick, token)?;
        }
        self.completions.as_ref().map_or(Ok(()), |event| watches.watch(&**event, COMPLETIONS))
    }

    fn process(&mut self, token: u32, watches: &mut dyn Watches) {
        if token < SOURCES {
            if let Some(kick) = self.kicks.get(token as usize) {
                let _ = kick.read();
                self.serve(token as usize, watches);
            }
        } else if token != COMPLETIONS {
            self.take_from((token - SOURCES) as usize, watches);
        } else if let Some(event) = &self.completions {
            let _ = event.read();
            let more = lock(&self.transport).complete();
            if more {
                let _ = event.write(1);
            }
            // There is room now for what had to wait.
            (0..self.kicks.len()).for_each(|queue| self.serve(queue, watches));
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
