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
