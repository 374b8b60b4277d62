//! The console's ring: a memfd of [`RING_BYTES`] that the worker writes and the supervisor reads with `pread(2)`.
//!
//! ```text
//! 0        8        64       72                4096                     RING_BYTES
//! | written |        | seen   |                 | data, CAPACITY bytes   |
//! ```
//!
//! `written` counts all the bytes that the guest ever wrote (little-endian u64, stored by the worker after the bytes);
//! byte number n is at `DATA + n % CAPACITY`, so the ring holds the last [`CAPACITY`] bytes and the guest never waits.
//! A reader that is more than [`CAPACITY`] behind has lost the difference, and knows how much that is.
//!
//! `seen` is where the reader is, written by the supervisor. The worker signals the notify eventfd when it adds to a
//! ring whose reader had caught up (`seen == written` before the addition); a reader stores `seen` and then looks at
//! `written` once more, so that no wake-up is lost and a flood costs one wake-up for each time the reader catches up.
//! Both sides take the other's counter as an allegation: it is compared, never used as an index unreduced.

/// Size of the whole memfd, bytes.
pub const RING_BYTES: u64 = DATA + CAPACITY;
/// Offset of the `written` counter.
pub const WRITTEN: u64 = 0;
/// Offset of the `seen` counter; on a cache line of its own.
pub const SEEN: u64 = 64;
/// Offset of the data.
pub const DATA: u64 = 4096;
/// Bytes of console output that are kept; a power of two.
pub const CAPACITY: u64 = 256 * 1024;

/// The part of the stream that can be read by a reader at `position` when `written` bytes were written in all: the
/// bytes that it lost, and the number of the first byte that is there. A counter that went backwards is taken as zero
/// news.
pub fn available(position: u64, written: u64) -> (u64, u64) {
    let oldest = written.saturating_sub(CAPACITY);
    let start = position.max(oldest).min(written.max(position));
    (start - position, start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_keeps_up_loses_nothing() {
        assert_eq!(available(0, 0), (0, 0));
        assert_eq!(available(5, 10), (0, 5));
        assert_eq!(available(0, CAPACITY), (0, 0));
    }

    #[test]
    fn a_reader_too_far_behind_knows_how_much_it_lost() {
        assert_eq!(available(0, CAPACITY + 7), (7, 7));
        assert_eq!(available(100, 3 * CAPACITY), (2 * CAPACITY - 100, 2 * CAPACITY));
    }

    #[test]
    fn a_lying_counter_never_moves_a_reader_back_or_past_the_end() {
        assert_eq!(available(1000, 10), (0, 1000));
        let (lost, start) = available(3, u64::MAX);
        assert_eq!(start, u64::MAX - CAPACITY);
        assert_eq!(lost, start - 3);
    }
}
