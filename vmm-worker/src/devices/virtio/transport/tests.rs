//! The registers, with the entropy device behind them.

use super::super::driver::*;
use super::super::rng::Rng;
use super::*;
use crate::bus::lock;
use virtio_bindings::virtio_mmio::*;

fn fresh() -> Driver {
    Driver::new(Box::new(Rng), Driver::ram())
}

fn running() -> Driver {
    Driver::start(Box::new(Rng))
}

fn works(driver: &mut Driver) {
    assert_eq!(driver.request(&[Buffer::writable(0x8000, 16)]).1, 16);
}

#[test]
fn a_driver_recognises_the_device() {
    let driver = fresh();
    assert_eq!(driver.get(VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.get(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.get(VIRTIO_MMIO_DEVICE_ID), 4);
    assert_eq!(driver.get(VIRTIO_MMIO_CONFIG_GENERATION), 0);
    for register in [VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_BASE_LOW] {
        assert_eq!(driver.get(register), u32::MAX, "no shared memory");
    }
    assert_eq!(driver.offered(), F_VERSION_1 | F_EVENT_IDX | F_INDIRECT);
    driver.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.get(VIRTIO_MMIO_DEVICE_FEATURES), 0);
}

#[test]
fn registers_are_words_and_nothing_else_reaches_them() {
    let driver = running();
    for (offset, length) in [(0u64, 1), (0, 2), (0, 8), (1, 4), (0x71, 4), (0x70, 1)] {
        let mut data = vec![0xee; length];
        lock(&driver.transport).read(offset, &mut data);
        assert_eq!(data, vec![0; length], "{offset:#x}");
        lock(&driver.transport).write(offset, &vec![0; length]);
    }
    assert_eq!(driver.status(), 0xf, "no narrow write of 0 was a reset");
}

#[test]
fn a_driver_without_version_1_is_refused() {
    let mut driver = fresh();
    driver.wanted = !F_VERSION_1;
    driver.negotiate();
    assert_eq!(driver.status(), 3);
    driver.set(VIRTIO_MMIO_STATUS, 7);
    assert_eq!(driver.status(), 3, "no DRIVER_OK either");
}

#[test]
fn a_feature_that_was_not_offered_is_refused() {
    let mut driver = fresh();
    driver.reset();
    driver.set(VIRTIO_MMIO_STATUS, 1);
    driver.set(VIRTIO_MMIO_STATUS, 3);
    driver.want(F_VERSION_1 | 1 << 34);
    driver.set(VIRTIO_MMIO_STATUS, 0xb);
    assert_eq!(driver.status(), 3);
    driver.want(F_VERSION_1);
    driver.set(VIRTIO_MMIO_STATUS, 0xb);
    assert_eq!(driver.status(), 0xb, "it may try again");
}

#[test]
fn features_are_fixed_once_they_are_agreed_on() {
    let mut driver = fresh();
    driver.want(F_VERSION_1);
    driver.set(VIRTIO_MMIO_STATUS, 1);
    driver.want(F_VERSION_1);
    driver.set(VIRTIO_MMIO_STATUS, 3);
    driver.set(VIRTIO_MMIO_STATUS, 0xb);
    assert_eq!(driver.status(), 3, "what was said before DRIVER does not count");
    driver.restart();
    driver.want(0);
    assert_ne!(lock(&driver.transport).selected.wanted, 0);
}

#[test]
fn a_queue_is_set_up_between_features_and_driver_ok_only() {
    let mut driver = fresh();
    for status in [0u32, 1, 3] {
        driver.set(VIRTIO_MMIO_STATUS, status);
        driver.set_queue(SIZE.into(), DESCRIPTORS, AVAILABLE, USED);
        driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0, "at status {status}");
    }
    driver.negotiate();
    driver.set(VIRTIO_MMIO_STATUS, 0xf);
    driver.set_queue(SIZE.into(), DESCRIPTORS, AVAILABLE, USED);
    driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0, "after DRIVER_OK");
    driver.restart();
    works(&mut driver);
}

/// CVE-2026-5747: the size of a queue changed after its activation.
#[test]
fn a_queue_that_is_ready_is_fixed() {
    let mut driver = running();
    works(&mut driver);
    let before = lock(&driver.transport).queues[0].setup;
    driver.set_queue(64, 0xdead_0000, 0xdead_0000, 0xdead_0000);
    driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
    driver.set(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 1);
    assert_eq!(lock(&driver.transport).queues[0].setup, before);
    works(&mut driver);

    driver.negotiate();
    driver.set_queue(SIZE.into(), DESCRIPTORS, AVAILABLE, USED);
    driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
    driver.set(VIRTIO_MMIO_QUEUE_NUM, 64);
    assert_eq!(lock(&driver.transport).queues[0].setup, before, "ready, and DRIVER_OK still to come");
}

#[test]
fn a_queue_that_is_taken_back_can_be_set_up_anew() {
    let mut driver = fresh();
    driver.negotiate();
    driver.set_queue(8, DESCRIPTORS, AVAILABLE, USED);
    driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
    driver.set(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0);
    driver.set_queue(SIZE.into(), DESCRIPTORS, AVAILABLE, USED);
    driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
    driver.set(VIRTIO_MMIO_STATUS, 0xf);
    works(&mut driver);
}

#[test]
fn an_impossible_queue_is_refused_without_an_interrupt() {
    let mut driver = fresh();
    for (size, descriptors, available, used) in [
        (0, DESCRIPTORS, AVAILABLE, USED),
        (3, DESCRIPTORS, AVAILABLE, USED),
        (128, DESCRIPTORS, AVAILABLE, USED),
        (0x1_0010, DESCRIPTORS, AVAILABLE, USED),
        (16, DESCRIPTORS + 8, AVAILABLE, USED),
        (16, DESCRIPTORS, AVAILABLE + 1, USED),
        (16, DESCRIPTORS, AVAILABLE, USED + 2),
        (16, RAM - 16, AVAILABLE, USED),
        (16, DESCRIPTORS, RAM - 2, USED),
        (16, DESCRIPTORS, AVAILABLE, RAM - 4),
        (16, !0xf, AVAILABLE, USED),
        (16, DESCRIPTORS, 0, USED),
        (16, DESCRIPTORS, AVAILABLE, 1 << 40),
    ] {
        driver.negotiate();
        driver.set_queue(size, descriptors, available, used);
        driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0, "{size} {descriptors:#x} {available:#x} {used:#x}");
        assert!(driver.needs_reset());
        driver.set(VIRTIO_MMIO_STATUS, 0x4f);
        assert_eq!(driver.status(), 0x4b, "no DRIVER_OK");
    }
    assert_eq!(driver.interrupts(), 0, "before DRIVER_OK there is nobody to tell");
    driver.restart();
    works(&mut driver);
}

#[test]
fn a_queue_that_is_not_there_is_nothing() {
    let mut driver = fresh();
    driver.negotiate();
    for queue in [1, 7, u32::MAX] {
        driver.set(VIRTIO_MMIO_QUEUE_SEL, queue);
        assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        driver.set(VIRTIO_MMIO_QUEUE_NUM, 8);
        driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0);
        driver.set(VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }
    driver.restart();
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
    works(&mut driver);
}

#[test]
fn buffers_that_were_there_before_driver_ok_are_found() {
    let mut driver = fresh();
    driver.negotiate();
    driver.set_queue(SIZE.into(), DESCRIPTORS, AVAILABLE, USED);
    driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
    driver.submit(&[Buffer::writable(0x8000, 16)]);
    driver.settle();
    assert_eq!(driver.used(), 0, "nothing is served before DRIVER_OK");
    driver.set(VIRTIO_MMIO_STATUS, 0xf);
    driver.settle();
    assert_eq!(driver.used(), 1);
}

#[test]
fn an_interrupt_says_why_until_it_is_acknowledged() {
    let mut driver = running();
    works(&mut driver);
    assert_eq!((driver.interrupts(), driver.get(VIRTIO_MMIO_INTERRUPT_STATUS)), (1, 1));
    driver.submit(&[Buffer::readable(0x8000, 16)]);
    driver.settle();
    assert_eq!((driver.interrupts(), driver.get(VIRTIO_MMIO_INTERRUPT_STATUS)), (1, 3));
    driver.set(VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    driver.set(VIRTIO_MMIO_INTERRUPT_ACK, u32::MAX);
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn a_driver_that_polls_gets_no_interrupts() {
    let mut driver = fresh();
    driver.wanted = F_VERSION_1;
    driver.restart();
    driver.put(AVAILABLE, &1u16.to_le_bytes());
    works(&mut driver);
    assert_eq!((driver.interrupts(), driver.get(VIRTIO_MMIO_INTERRUPT_STATUS)), (0, 0));
    driver.put(AVAILABLE, &0u16.to_le_bytes());
    works(&mut driver);
    assert_eq!((driver.interrupts(), driver.get(VIRTIO_MMIO_INTERRUPT_STATUS)), (1, 1));
}

#[test]
fn event_indices_delay_the_interrupt_to_the_completion_that_was_asked_for() {
    let mut driver = running();
    driver.ask_for_interrupt_after(2);
    for completions in 1..=4 {
        driver.submit(&[Buffer::writable(0x8000, 16)]);
        driver.settle();
        assert_eq!(driver.used(), completions);
        assert_eq!(driver.interrupts(), u64::from(completions == 3), "completion {completions}");
    }
}

#[test]
fn a_reset_device_answers_again() {
    let mut driver = running();
    for _ in 0..3 {
        works(&mut driver);
        driver.submit(&[Buffer::readable(0x8000, 1)]);
        driver.settle();
        assert!(driver.needs_reset());
        driver.submit(&[Buffer::writable(0x8000, 16)]);
        driver.settle();
        assert_eq!(driver.take(), None, "a failed device serves nothing");
        driver.reset();
        assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0);
        driver.restart();
    }
    works(&mut driver);
}

#[test]
fn a_kick_after_a_reset_touches_no_ram() {
    let mut driver = running();
    let head = driver.chain(&[Buffer::writable(0x8000, 16)]);
    driver.offer(head);
    driver.notify();
    driver.set(VIRTIO_MMIO_STATUS, 0);
    driver.settle();
    assert_eq!(driver.bytes(0x8000, 16), [0; 16]);
    assert_eq!(driver.used(), 0);
}

#[test]
fn a_full_ring_of_kicks_is_served_in_bounded_turns() {
    let mut driver = running();
    // The driver keeps the ring full: each completion makes room for the next request.
    for round in 0..20u16 {
        let head = driver.chain(&[Buffer::writable(0x8000, 16)]);
        for _ in 0..SIZE {
            driver.offer(head);
        }
        driver.notify();
        assert!(driver.turn());
        assert_eq!(driver.used(), (round + 1) * SIZE, "one turn took the whole ring");
    }
    assert!(driver.settle() <= 2);
}

#[test]
fn a_notification_without_ioeventfd_is_one_too() {
    let mut driver = running();
    let head = driver.chain(&[Buffer::writable(0x8000, 16)]);
    driver.offer(head);
    driver.set(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    assert!(!driver.turn(), "there is no such queue");
    driver.set(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert!(driver.turn());
    assert_eq!(driver.used(), 1);
}
