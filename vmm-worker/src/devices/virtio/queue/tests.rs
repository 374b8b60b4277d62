//! Chains as drivers should not write them.

use super::super::driver::*;
use super::super::rng::Rng;
use super::*;

/// A device whose queue the test reads itself.
struct Bench {
    driver: Driver,
    queue: Virtqueue,
    chain: Chain,
}

impl Bench {
    fn new() -> Self {
        let driver = Driver::start(Box::new(Rng));
        let mut queue = Virtqueue::new(64).unwrap();
        queue.setup = Setup { size: SIZE.into(), descriptors: DESCRIPTORS, driver: AVAILABLE, device: USED };
        queue.enable(&driver.mem).unwrap();
        Self { driver, queue, chain: Chain::default() }
    }

    /// Offers the chain at `head` and reads it.
    fn pop(&mut self, head: u16) -> Result<bool, QueueError> {
        self.driver.offer(head);
        self.queue.pop(&self.driver.mem, &mut self.chain)
    }

    fn refused(&mut self, head: u16) -> String {
        self.pop(head).unwrap_err().to_string()
    }
}

fn segment(address: u64, length: u32) -> Segment {
    Segment { address: GuestAddress(address), length }
}

#[test]
fn a_chain_is_what_may_be_read_and_then_what_may_be_written() {
    let mut bench = Bench::new();
    let head =
        bench.driver.chain(&[Buffer::readable(0x8000, 16), Buffer::readable(0x9000, 1), Buffer::writable(0xa000, 512)]);
    assert!(bench.pop(head).unwrap());
    assert_eq!(bench.chain.readable(), [segment(0x8000, 16), segment(0x9000, 1)]);
    assert_eq!(bench.chain.writable(), [segment(0xa000, 512)]);
    assert!(!bench.queue.pop(&bench.driver.mem, &mut bench.chain).unwrap(), "and no other");
}

#[test]
fn an_indirect_table_is_a_chain() {
    let mut bench = Bench::new();
    bench.driver.describe(DESCRIPTORS, 3, 0x5000, 3 * 16, INDIRECT, 0);
    bench.driver.describe(0x5000, 0, 0x8000, 16, NEXT, 2);
    bench.driver.describe(0x5000, 2, 0x9000, 1, WRITE, 0);
    assert!(bench.pop(3).unwrap());
    assert_eq!((bench.chain.head(), total(bench.chain.readable()), total(bench.chain.writable())), (3, 16, 1));
}

#[test]
fn a_loop_of_descriptors_is_refused() {
    let mut bench = Bench::new();
    bench.driver.describe(DESCRIPTORS, 0, 0x8000, 16, NEXT, 1);
    bench.driver.describe(DESCRIPTORS, 1, 0x8000, 16, NEXT, 0);
    assert!(bench.refused(0).contains("loop"));
    bench.driver.describe(DESCRIPTORS, 2, 0x8000, 16, NEXT, 2);
    assert!(bench.refused(2).contains("loop"));
}

#[test]
fn a_link_to_nowhere_is_refused() {
    let mut bench = Bench::new();
    bench.driver.describe(DESCRIPTORS, 0, 0x8000, 16, NEXT, SIZE);
    assert!(bench.refused(0).contains("nowhere"));
    assert!(bench.refused(SIZE).contains("nowhere"), "a head outside of the table");
    assert!(bench.refused(u16::MAX).contains("nowhere"));
}

/// CVE-2019-18960: a length that was checked against the wrong region.
#[test]
fn a_buffer_has_to_be_inside_ram_whole() {
    let mut bench = Bench::new();
    for (address, length) in [(RAM, 1), (RAM - 1, 2), (0, u32::MAX), (u64::MAX, 1), (u64::MAX - 3, 8), (1 << 40, 4)] {
        for flags in [0, WRITE] {
            bench.driver.describe(DESCRIPTORS, 0, address, length, flags, 0);
            assert!(bench.refused(0).contains("outside"), "{address:#x}+{length:#x}");
        }
    }
    bench.driver.describe(DESCRIPTORS, 0, RAM - 1, 1, 0, 0);
    assert!(bench.pop(0).unwrap());
}

#[test]
fn an_empty_buffer_is_refused() {
    let mut bench = Bench::new();
    bench.driver.describe(DESCRIPTORS, 0, 0x8000, 0, WRITE, 0);
    assert!(bench.refused(0).contains("empty"));
}

#[test]
fn what_may_be_read_does_not_stand_behind_what_may_be_written() {
    let mut bench = Bench::new();
    let head = bench.driver.chain(&[Buffer::writable(0x8000, 16), Buffer::readable(0x9000, 16)]);
    assert!(bench.refused(head).contains("behind"));
}

#[test]
fn a_misused_indirect_table_is_refused() {
    let mut bench = Bench::new();
    // In an indirect table; of an odd size; of no size; outside of RAM; without an end.
    bench.driver.describe(DESCRIPTORS, 0, 0x5000, 16, INDIRECT, 0);
    bench.driver.describe(0x5000, 0, 0x6000, 16, INDIRECT, 0);
    bench.driver.describe(0x6000, 0, 0x8000, 16, WRITE, 0);
    assert!(bench.refused(0).contains("nowhere"));
    for (address, length) in [(0x5000, 15), (0x5000, 0), (RAM, 16), (0x5000, !0xf)] {
        bench.driver.describe(DESCRIPTORS, 1, address, length, INDIRECT, 0);
        bench.driver.describe(0x5000, 0, 0x8000, 16, NEXT, 0);
        assert!(bench.pop(1).is_err(), "{address:#x}+{length:#x}");
    }
}

#[test]
fn an_indirect_table_is_no_longer_than_a_chain_may_be() {
    let mut bench = Bench::new();
    let count = CHAIN_MAX as u16 + 1;
    for n in 0..count {
        let flags = if n + 1 < count { NEXT } else { 0 };
        bench.driver.describe(0x1_0000, n, 0x8000, 16, flags, n + 1);
    }
    bench.driver.describe(DESCRIPTORS, 0, 0x1_0000, 16 * u32::from(count), INDIRECT, 0);
    assert!(bench.refused(0).contains("too long"));
    bench.driver.describe(0x1_0000, count - 2, 0x8000, 16, 0, 0);
    assert!(bench.pop(0).unwrap());
    assert_eq!(bench.chain.readable().len(), CHAIN_MAX);
}

#[test]
fn an_available_index_that_runs_ahead_is_refused() {
    let mut bench = Bench::new();
    bench.driver.put(AVAILABLE + 2, &(SIZE + 1).to_le_bytes());
    assert!(bench.queue.pop(&bench.driver.mem, &mut bench.chain).is_err());
    bench.driver.put(AVAILABLE + 2, &u16::MAX.to_le_bytes());
    assert!(bench.queue.pop(&bench.driver.mem, &mut bench.chain).is_err());
}

#[test]
fn indices_wrap_around() {
    let mut bench = Bench::new();
    let head = bench.driver.chain(&[Buffer::writable(0x8000, 16)]);
    for n in 0..70_000u32 {
        assert!(bench.pop(head).unwrap(), "{n}");
        bench.queue.push(&bench.driver.mem, head, 1).unwrap();
    }
    assert_eq!(bench.driver.used(), (70_000u32 % 65_536) as u16);
}

#[test]
fn a_part_of_segments_is_cut_at_any_byte() {
    let segments = [segment(0x100, 10), segment(0x200, 1), segment(0x300, 20)];
    let cut = |skip, take| part(&segments, skip, take).collect::<Vec<_>>();
    assert_eq!(cut(0, 31), segments);
    assert_eq!(cut(0, 1000), segments);
    assert_eq!(cut(9, 3), [segment(0x109, 1), segment(0x200, 1), segment(0x300, 1)]);
    assert_eq!(cut(10, 1), [segment(0x200, 1)]);
    assert_eq!(cut(30, 5), [segment(0x313, 1)]);
    assert_eq!(cut(31, 5), []);
    assert_eq!(cut(0, 0), []);
    // Every cut has the bytes that it should have, in order.
    let bytes =
        |s: &[Segment]| s.iter().flat_map(|s| s.address.0..s.address.0 + u64::from(s.length)).collect::<Vec<_>>();
    let all = bytes(&segments);
    for skip in 0..=31usize {
        for take in 0..=31 - skip {
            assert_eq!(bytes(&cut(skip as u64, take as u64)), all[skip..skip + take]);
        }
    }
}

#[test]
fn chains_are_given_back_together_or_not_at_all() {
    let mut bench = Bench::new();
    bench.queue.push_all(&bench.driver.mem, [(3, 30), (7, 70), (1, 10)].into_iter()).unwrap();
    assert_eq!(bench.driver.used(), 3);
    let seen: Vec<_> = (0..3).map(|_| bench.driver.take().unwrap()).collect();
    assert_eq!(seen, [(3, 30), (7, 70), (1, 10)]);
    // The last head is none of the queue's: what was written before it stays unseen.
    assert!(bench.queue.push_all(&bench.driver.mem, [(2, 1), (SIZE, 1)].into_iter()).is_err());
    assert_eq!(bench.driver.used(), 3);
    bench.queue.push_all(&bench.driver.mem, (0..SIZE).map(|head| (head, 1))).unwrap();
    assert_eq!(bench.driver.used(), 3 + SIZE, "around the end of the ring");
    assert_eq!((0..SIZE).map(|_| bench.driver.take().unwrap().0).collect::<Vec<_>>(), (0..SIZE).collect::<Vec<_>>());
}

#[test]
fn a_chain_that_was_not_needed_is_the_next_one_again() {
    let mut bench = Bench::new();
    for address in [0x8000, 0x9000] {
        let head = bench.driver.chain(&[Buffer::writable(address, 16)]);
        bench.driver.offer(head);
    }
    assert_eq!(bench.queue.available(&bench.driver.mem).unwrap(), 2);
    for _ in 0..3 {
        assert!(bench.queue.pop(&bench.driver.mem, &mut bench.chain).unwrap());
        assert_eq!(bench.chain.writable(), [segment(0x8000, 16)]);
        assert_eq!(bench.queue.available(&bench.driver.mem).unwrap(), 1);
        bench.queue.unpop();
    }
    for address in [0x8000, 0x9000] {
        assert!(bench.queue.pop(&bench.driver.mem, &mut bench.chain).unwrap());
        assert_eq!(bench.chain.writable(), [segment(address, 16)]);
    }
    assert_eq!(bench.queue.available(&bench.driver.mem).unwrap(), 0);
}

/// All positions of the wished-for index relative to what was given back, around the end of 16 bits as well (2.7.7.2).
#[test]
fn an_interrupt_is_wanted_when_the_wished_for_index_is_passed() {
    for start in [0u16, 40, u16::MAX - 2] {
        for count in 0..5u16 {
            for wish in -3i32..8 {
                let mut bench = Bench::new();
                bench.queue.activate(true);
                bench.queue.queue.set_next_used(start);
                bench.queue.asked_at = start;
                let event = start.wrapping_add(wish as u16);
                bench.driver.ask_for_interrupt_after(event);
                bench.queue.push_all(&bench.driver.mem, (0..count).map(|head| (head, 0))).unwrap();
                let passed = wish >= 0 && wish < i32::from(count);
                assert_eq!(bench.queue.wants_interrupt(&bench.driver.mem).unwrap(), passed, "{start} {count} {wish}");
                assert!(!bench.queue.wants_interrupt(&bench.driver.mem).unwrap(), "once");
            }
        }
    }
}
