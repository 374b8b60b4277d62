//! The only way to interrupt the guest: an eventfd that KVM watches (irqfd).
//!
//! Raised by the reactor and by vCPU threads (serial port); a raise is one `write(2)`, and KVM turns it into one edge
//! on the GSI that `vm.rs` registered it for.

use std::sync::Arc;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// One interrupt line. Clones share the line.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<EventFd>);

impl Interrupt {
    /// A line that nobody listens to yet.
    ///
    /// # Errors
    /// What `eventfd2(2)` says.
    pub fn new() -> std::io::Result<Self> {
        EventFd::new(EFD_NONBLOCK).map(|fd| Self(Arc::new(fd)))
    }

    /// Raises one edge. Never blocks: the only possible failure is a counter that is full, and then an interrupt is
    /// pending anyway.
    pub fn raise(&self) {
        let _ = self.0.write(1);
    }

    /// What KVM is to watch.
    pub fn eventfd(&self) -> &EventFd {
        &self.0
    }
}

/// The serial port raises its line through this.
impl vm_superio::Trigger for Interrupt {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.raise();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_superio::Trigger;

    #[test]
    fn one_raise_is_one_interrupt() {
        let line = Interrupt::new().unwrap();
        assert!(line.eventfd().read().is_err(), "nothing was raised yet");
        line.raise();
        assert_eq!(line.eventfd().read().unwrap(), 1);
        assert!(line.eventfd().read().is_err(), "the raise was heard once");
        line.clone().trigger().unwrap();
        assert_eq!(line.eventfd().read().unwrap(), 1);
    }

    #[test]
    fn a_line_that_nobody_hears_never_blocks() {
        let line = Interrupt::new().unwrap();
        line.eventfd().write(u64::MAX - 1).unwrap();
        line.raise();
        assert_eq!(line.eventfd().read().unwrap(), u64::MAX - 1);
    }
}
