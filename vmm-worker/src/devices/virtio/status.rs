//! The device status (2.1): how far driver and device got with each other. Pure.
//!
//! ```text
//!                 ACKNOWLEDGE      DRIVER      FEATURES_OK              DRIVER_OK
//!   reset ──► 0 ──────────────► 1 ────────► 3 ────────────────► 0xb ───────────────► 0xf  running
//!     ▲                                          refused where the        in a write of its own
//!     │                                          features do not do
//!     └── a write of 0, at any time         + FAILED, by the driver    + DEVICE_NEEDS_RESET, by the device
//! ```
//!
//! A driver adds bits, in this order. A write that would take one away, or skip one, changes nothing from there on.

use virtio_bindings::virtio_config as v;

const ACKNOWLEDGE: u8 = v::VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
const DRIVER: u8 = v::VIRTIO_CONFIG_S_DRIVER as u8;
const DRIVER_OK: u8 = v::VIRTIO_CONFIG_S_DRIVER_OK as u8;
const FEATURES_OK: u8 = v::VIRTIO_CONFIG_S_FEATURES_OK as u8;
const NEEDS_RESET: u8 = v::VIRTIO_CONFIG_S_NEEDS_RESET as u8;
const FAILED: u8 = v::VIRTIO_CONFIG_S_FAILED as u8;

/// The status register.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status(u8);

/// What a write to the status register asks of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Nothing but what the register shows now.
    Nothing,
    /// To forget all it knows.
    Reset,
    /// To begin: the driver is ready.
    Begin,
}

impl Status {
    /// The value that the driver reads.
    pub fn bits(self) -> u8 {
        self.0
    }

    fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }

    fn broken(self) -> bool {
        self.0 & (NEEDS_RESET | FAILED) != 0
    }

    /// The driver may say which features it wants.
    pub fn takes_features(self) -> bool {
        self.has(DRIVER) && !self.has(FEATURES_OK) && !self.broken()
    }

    /// The driver may set up queues.
    pub fn takes_queues(self) -> bool {
        self.has(FEATURES_OK) && !self.has(DRIVER_OK) && !self.broken()
    }

    /// The device serves its queues.
    pub fn runs(self) -> bool {
        self.has(DRIVER_OK) && !self.broken()
    }

    /// The driver writes `value`; `acceptable` says whether the device can work with the features that it wants.
    pub fn write(&mut self, value: u32, acceptable: bool) -> Asked {
        let Ok(value) = u8::try_from(value) else { return Asked::Nothing };
        if value == 0 {
            return Asked::Reset;
        }
        // NEEDS_RESET is the device's own: a driver may not know yet that it is there.
        if self.0 & !NEEDS_RESET & !value != 0 {
            return Asked::Nothing;
        }
        self.0 |= value & FAILED;
        if self.broken() {
            return Asked::Nothing;
        }
        self.advance(value, acceptable)
    }

    fn advance(&mut self, value: u8, acceptable: bool) -> Asked {
        // FEATURES_OK has to be read back before DRIVER_OK (3.1.1), so the two never come in one write.
        let agreed = self.has(FEATURES_OK);
        let steps = [(ACKNOWLEDGE, true), (DRIVER, true), (FEATURES_OK, acceptable), (DRIVER_OK, agreed)];
        let before = *self;
        for (bit, allowed) in steps.into_iter().filter(|(bit, _)| !before.has(*bit)) {
            if value & bit == 0 || !allowed {
                return Asked::Nothing;
            }
            self.0 |= bit;
            if bit == DRIVER_OK {
                return Asked::Begin;
            }
        }
        Asked::Nothing
    }

    /// The device cannot go on. True when the driver is to be told by an interrupt (2.1.2: only once it said DRIVER_OK).
    pub fn fail(&mut self) -> bool {
        let first = !self.has(NEEDS_RESET);
        self.0 |= NEEDS_RESET;
        first && self.has(DRIVER_OK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(writes: &[u32]) -> Status {
        let mut status = Status::default();
        for write in writes {
            let _ = status.write(*write, true);
        }
        status
    }

    #[test]
    fn a_driver_that_keeps_the_order_gets_a_running_device() {
        let mut status = Status::default();
        for (write, bits, asked) in [(1, 1, Asked::Nothing), (3, 3, Asked::Nothing), (0xb, 0xb, Asked::Nothing)] {
            assert_eq!((status.write(write, true), status.bits()), (asked, bits));
            assert!(!status.runs());
        }
        assert_eq!(status.write(0xf, true), Asked::Begin);
        assert!(status.runs());
        assert_eq!(status.write(0xf, true), Asked::Nothing, "once");
    }

    #[test]
    fn each_step_needs_the_one_before() {
        for (before, write, bits) in
            [(&[][..], 2, 0), (&[], 8, 0), (&[], 4, 0), (&[1], 9, 1), (&[1], 5, 1), (&[1, 3], 7, 3), (&[], 3, 3)]
        {
            let mut status = after(before);
            status.write(write, true);
            assert_eq!(status.bits(), bits, "{before:?} and then {write:#x}");
        }
    }

    #[test]
    fn driver_ok_needs_a_write_of_its_own() {
        let mut status = after(&[1, 3]);
        assert_eq!(status.write(0xf, true), Asked::Nothing);
        assert_eq!(status.bits(), 0xb);
        assert_eq!(status.write(0xf, true), Asked::Begin);
    }

    #[test]
    fn features_that_do_not_do_are_refused() {
        let mut status = after(&[1, 3]);
        status.write(0xb, false);
        assert_eq!(status.bits(), 3);
        assert!(status.takes_features());
        status.write(0xf, false);
        assert_eq!(status.bits(), 3);
    }

    #[test]
    fn a_bit_is_never_taken_away_but_by_a_reset() {
        let mut status = after(&[1, 3, 0xb, 0xf]);
        for write in [1, 3, 0xb, 8, 0x100, 0x10, u32::MAX << 8] {
            assert_eq!(status.write(write, true), Asked::Nothing);
            assert_eq!(status.bits(), 0xf, "{write:#x}");
        }
        assert_eq!(status.write(0, true), Asked::Reset);
    }

    #[test]
    fn what_may_be_written_when() {
        let allowed = |s: Status| (s.takes_features(), s.takes_queues(), s.runs());
        assert_eq!(allowed(after(&[])), (false, false, false));
        assert_eq!(allowed(after(&[1])), (false, false, false));
        assert_eq!(allowed(after(&[1, 3])), (true, false, false));
        assert_eq!(allowed(after(&[1, 3, 0xb])), (false, true, false));
        assert_eq!(allowed(after(&[1, 3, 0xb, 0xf])), (false, false, true));
        assert_eq!(allowed(after(&[1, 3, 0xb, 0xf, 0x8f])), (false, false, false), "FAILED");
    }

    #[test]
    fn a_broken_device_takes_nothing_but_a_reset() {
        let mut status = after(&[1, 3, 0xb, 0xf]);
        assert!(status.fail(), "a running driver is told");
        assert!(!status.fail(), "once");
        assert_eq!((status.bits(), status.runs()), (0x4f, false));
        assert_eq!(status.write(0xf, true), Asked::Nothing, "a driver that does not know yet");
        assert_eq!(status.bits(), 0x4f);
        assert_eq!(status.write(0, true), Asked::Reset);

        let mut early = after(&[1, 3, 0xb]);
        assert!(!early.fail(), "before DRIVER_OK there is no interrupt");
        early.write(0x4f, true);
        assert_eq!(early.bits(), 0x4b, "no DRIVER_OK on a broken device");
    }

    #[test]
    fn a_driver_can_give_up_at_any_time() {
        for before in [&[][..], &[1], &[1, 3], &[1, 3, 0xb], &[1, 3, 0xb, 0xf]] {
            let mut status = after(before);
            let bits = status.bits();
            status.write(u32::from(bits | FAILED), true);
            assert_eq!(status.bits(), bits | FAILED);
            assert!(!status.runs());
        }
    }
}
