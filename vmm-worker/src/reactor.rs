//! The reactor: one thread that waits for every device fd of the VM.
//!
//! Behind two small traits stands `event-manager`; devices see the traits only, so that their tests drive them without
//! a thread and without epoll. All watches are level-triggered. A subscriber does a bounded piece of work for each
//! event and leaves its fd readable when there is more (an eventfd is written again): the others get their turn in
//! between, whatever the guest floods.

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use std::convert::Infallible;
use std::os::fd::AsRawFd;

/// The reactor cannot go on, or cannot take a subscriber.
#[derive(Debug, thiserror::Error)]
#[error("the device reactor cannot {what}: {cause}")]
pub struct ReactorError {
    what: &'static str,
    cause: String,
}

/// Where a subscriber says which fds it waits for.
pub trait Watches {
    /// Calls the subscriber with `token` as long as `fd` is readable, or hung up.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    fn watch(&mut self, fd: &dyn AsRawFd, token: u32) -> Result<(), ReactorError>;

    /// Stops watching `fd`. Before it is closed.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    fn unwatch(&mut self, fd: &dyn AsRawFd) -> Result<(), ReactorError>;
}

/// Who wants to know that an fd of its own is readable.
pub trait Subscriber: Send {
    /// Called once, first: watches what is to be watched from the beginning.
    ///
    /// # Errors
    /// That of a watch.
    fn register(&mut self, watches: &mut dyn Watches) -> Result<(), ReactorError>;

    /// An fd is readable: a bounded piece of work.
    fn process(&mut self, token: u32, watches: &mut dyn Watches);
}

/// Events taken from the kernel at once; with more ready fds than this they take turns.
const EVENTS: usize = 32;

/// The reactor of one VM.
pub struct Reactor {
    manager: EventManager<Adapter>,
}

impl Reactor {
    /// A reactor without subscribers.
    ///
    /// # Errors
    /// What `epoll_create1(2)` says.
    pub fn new() -> Result<Self, ReactorError> {
        let manager = EventManager::new_with_capacity(EVENTS).map_err(|e| failure("start", &e))?;
        Ok(Self { manager })
    }

    /// Takes a subscriber and lets it register its fds.
    ///
    /// # Errors
    /// One of its fds cannot be watched.
    pub fn add(&mut self, subscriber: Box<dyn Subscriber>) -> Result<(), ReactorError> {
        let id = self.manager.add_subscriber(Adapter { subscriber, registered: Ok(()) });
        let adapter = self.manager.subscriber_mut(id).map_err(|e| failure("take a device", &e))?;
        std::mem::replace(&mut adapter.registered, Ok(()))
    }

    /// Waits and dispatches for ever.
    ///
    /// # Errors
    /// What `epoll_wait(2)` says; the VM cannot go on then.
    pub fn run(&mut self) -> Result<Infallible, ReactorError> {
        loop {
            self.turn()?;
        }
    }

    /// Waits for one batch of events and dispatches it.
    ///
    /// # Errors
    /// As [`Reactor::run`].
    pub fn turn(&mut self) -> Result<(), ReactorError> {
        self.manager.run().map(drop).map_err(|e| failure("wait for events", &e))
    }
}

impl std::fmt::Debug for Reactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reactor").finish_non_exhaustive()
    }
}

fn failure(what: &'static str, cause: &event_manager::Error) -> ReactorError {
    ReactorError { what, cause: cause.to_string() }
}

/// A subscriber as `event-manager` wants it.
struct Adapter {
    subscriber: Box<dyn Subscriber>,
    registered: Result<(), ReactorError>,
}

impl MutEventSubscriber for Adapter {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.registered = self.subscriber.register(&mut Epoll { ops });
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        self.subscriber.process(events.data(), &mut Epoll { ops });
    }
}

struct Epoll<'a, 'b> {
    ops: &'a mut EventOps<'b>,
}

impl Watches for Epoll<'_, '_> {
    fn watch(&mut self, fd: &dyn AsRawFd, token: u32) -> Result<(), ReactorError> {
        let events = Events::with_data_raw(fd.as_raw_fd(), token, EventSet::IN);
        self.ops.add(events).map_err(|e| failure("watch an fd", &e))
    }

    fn unwatch(&mut self, fd: &dyn AsRawFd) -> Result<(), ReactorError> {
        self.ops.remove(Events::empty_raw(fd.as_raw_fd())).map_err(|e| failure("forget an fd", &e))
    }
}

/// A reactor that a test turns by hand, on the test's own thread.
#[cfg(test)]
pub(crate) mod mock {
    use super::*;
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};

    pub(crate) struct MockReactor {
        epoll: Epoll,
    }

    impl MockReactor {
        pub(crate) fn new() -> Self {
            Self { epoll: Epoll::new().unwrap() }
        }

        /// Dispatches what is ready, each fd once, without waiting; says which tokens those were.
        pub(crate) fn turn(&mut self, subscriber: &mut dyn Subscriber) -> Vec<u32> {
            self.dispatch(subscriber, 0)
        }

        /// Waits for another thread's event first. A minute without one is a failure.
        pub(crate) fn wait_turn(&mut self, subscriber: &mut dyn Subscriber) {
            assert!(!self.dispatch(subscriber, 60_000).is_empty(), "no event came");
        }

        fn dispatch(&mut self, subscriber: &mut dyn Subscriber, milliseconds: i32) -> Vec<u32> {
            let mut events = [EpollEvent::default(); EVENTS];
            let count = self.epoll.wait(milliseconds, &mut events).unwrap();
            let tokens: Vec<u32> = events[..count].iter().map(|e| e.data() as u32).collect();
            tokens.iter().for_each(|token| subscriber.process(*token, self));
            tokens
        }
    }

    impl Watches for MockReactor {
        fn watch(&mut self, fd: &dyn AsRawFd, token: u32) -> Result<(), ReactorError> {
            let event = EpollEvent::new(EventSet::IN, token.into());
            self.epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event).unwrap();
            Ok(())
        }

        fn unwatch(&mut self, fd: &dyn AsRawFd) -> Result<(), ReactorError> {
            self.epoll.ctl(ControlOperation::Delete, fd.as_raw_fd(), EpollEvent::default()).unwrap();
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Mutex};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    /// Tells its name for each event; a flooder is readable again at once, for ever.
    struct Teller {
        name: &'static str,
        fd: Arc<EventFd>,
        floods: bool,
        told: Sender<(&'static str, u32)>,
    }

    impl Subscriber for Teller {
        fn register(&mut self, watches: &mut dyn Watches) -> Result<(), ReactorError> {
            watches.watch(&*self.fd, 7)
        }

        fn process(&mut self, token: u32, _: &mut dyn Watches) {
            self.fd.read().unwrap();
            if self.floods {
                self.fd.write(1).unwrap();
            }
            self.told.send((self.name, token)).unwrap();
        }
    }

    /// A reactor, the fds that wake its subscribers, and what they tell.
    type Bench = (Reactor, Vec<Arc<EventFd>>, Receiver<(&'static str, u32)>);

    fn bench(subscribers: &[(&'static str, bool)]) -> Bench {
        let mut reactor = Reactor::new().unwrap();
        let (told, heard) = channel();
        let mut fds = Vec::new();
        for (name, floods) in subscribers {
            let fd = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
            fds.push(fd.clone());
            reactor.add(Box::new(Teller { name, fd, floods: *floods, told: told.clone() })).unwrap();
        }
        (reactor, fds, heard)
    }

    #[test]
    fn an_event_reaches_its_subscriber_with_its_token() {
        let (mut reactor, fds, heard) = bench(&[("a", false), ("b", false)]);
        fds[1].write(1).unwrap();
        reactor.turn().unwrap();
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), [("b", 7)]);
    }

    #[test]
    fn a_flood_on_one_device_does_not_starve_another() {
        let (mut reactor, fds, heard) = bench(&[("flood", true), ("quiet", false)]);
        fds[0].write(1).unwrap();
        for round in 0..100 {
            reactor.turn().unwrap();
            assert_eq!(heard.try_iter().collect::<Vec<_>>(), [("flood", 7)], "round {round}");
            fds[1].write(1).unwrap();
            reactor.turn().unwrap();
            let mut both: Vec<_> = heard.try_iter().collect();
            both.sort_unstable();
            assert_eq!(both, [("flood", 7), ("quiet", 7)], "round {round}: one turn serves both");
        }
    }

    #[test]
    fn more_ready_fds_than_one_batch_all_get_their_turn() {
        let names: Vec<_> = (0..3 * EVENTS).map(|_| ("f", true)).collect();
        let (mut reactor, fds, heard) = bench(&names);
        let served: Arc<Mutex<usize>> = Arc::default();
        fds.iter().for_each(|fd| fd.write(1).unwrap());
        for _ in 0..3 {
            reactor.turn().unwrap();
            *served.lock().unwrap() += heard.try_iter().count();
        }
        assert_eq!(*served.lock().unwrap(), 3 * EVENTS, "each once in three turns, though all stay ready");
    }

    /// Wants an fd that cannot be watched.
    struct Impossible(std::fs::File);

    impl Subscriber for Impossible {
        fn register(&mut self, watches: &mut dyn Watches) -> Result<(), ReactorError> {
            watches.watch(&self.0, 0)
        }
        fn process(&mut self, _: u32, _: &mut dyn Watches) {}
    }

    #[test]
    fn an_fd_that_cannot_be_watched_is_an_error_of_add() {
        let file = std::fs::File::open("/proc/self/maps").unwrap();
        let error = Reactor::new().unwrap().add(Box::new(Impossible(file))).unwrap_err();
        assert!(error.to_string().starts_with("the device reactor cannot watch an fd"), "{error}");
    }
}
