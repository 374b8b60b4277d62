//! Several pairs of queues, and the queue that says how many are in use.

use super::*;

/// The control queue of an interface with two pairs, and where commands lie.
const CONTROL: usize = 4;
const COMMAND: u64 = 0x6000;
const ANSWER: u64 = 0x7000;
const OK: u8 = v::VIRTIO_NET_OK as u8;
const ERR: u8 = v::VIRTIO_NET_ERR as u8;

fn command(bench: &mut Bench, queue: usize, bytes: &[u8]) -> u8 {
    bench.driver.put(COMMAND, bytes);
    bench.driver.put(ANSWER, &[0xee]);
    let cut = 2.min(bytes.len() as u32);
    let parts = [
        Buffer::readable(COMMAND, cut),
        Buffer::readable(COMMAND + u64::from(cut), bytes.len() as u32 - cut),
        Buffer::writable(ANSWER, 1),
    ];
    let parts: Vec<_> = parts.into_iter().filter(|part| part.length > 0).collect();
    bench.driver.on(queue).submit(&parts);
    bench.driver.settle();
    assert_eq!(bench.driver.take().map(|(_, written)| written), Some(1));
    bench.driver.bytes(ANSWER, 1)[0]
}

fn set_pairs(bench: &mut Bench, pairs: u16) -> u8 {
    let [low, high] = pairs.to_le_bytes();
    command(bench, CONTROL, &[4, 0, low, high])
}

fn arrives_in(bench: &mut Bench, tap: usize, queue: usize, seed: u8) {
    bench.leave(queue, &[2048]);
    bench.arrive(tap, [0; 10], &frame(60, seed));
    bench.driver.settle();
    assert_eq!(bench.packet(queue).map(|(_, bytes, _)| bytes), Some(frame(60, seed)), "TAP {tap}, queue {queue}");
}

#[test]
fn until_the_driver_wants_more_all_packets_come_in_the_first_queue() {
    let mut bench = Bench::with(2, true, &[]);
    arrives_in(&mut bench, 0, 0, 1);
    arrives_in(&mut bench, 1, 0, 2);
    assert_eq!(set_pairs(&mut bench, 2), OK);
    arrives_in(&mut bench, 0, 0, 3);
    arrives_in(&mut bench, 1, 2, 4);
    assert_eq!(set_pairs(&mut bench, 1), OK);
    arrives_in(&mut bench, 1, 0, 5);
    assert_eq!(set_pairs(&mut bench, 2), OK);
    bench.restart();
    arrives_in(&mut bench, 1, 0, 6);
}

#[test]
fn a_queue_that_was_filled_before_it_was_wanted_is_served_at_once() {
    let mut bench = Bench::with(2, true, &[]);
    bench.leave(2, &[2048]);
    bench.arrive(1, [0; 10], &frame(60, 1));
    bench.driver.settle();
    assert_eq!(bench.packet(2), None);
    assert_eq!(set_pairs(&mut bench, 2), OK);
    assert_eq!(bench.packet(2).map(|(_, bytes, _)| bytes), Some(frame(60, 1)), "without another kick");
}

#[test]
fn each_transmit_queue_has_its_tap_queue() {
    let mut bench = Bench::with(3, true, &[]);
    for pair in 0..3 {
        bench.send_cut(2 * pair + 1, [0; 12], &frame(60, pair as u8), &[]);
        assert_eq!(bench.left(pair).map(|(_, bytes)| bytes), Some(frame(60, pair as u8)));
    }
}

#[test]
fn one_pair_without_chains_does_not_hold_up_the_other() {
    let mut bench = Bench::with(2, true, &[]);
    set_pairs(&mut bench, 2);
    bench.arrive(0, [0; 10], &frame(60, 1));
    arrives_in(&mut bench, 1, 2, 2);
    assert!(!bench.driver.turn(), "the first pair's TAP queue is not looked at");
    bench.leave(0, &[2048]);
    bench.driver.settle();
    assert_eq!(bench.packet(0).map(|(_, bytes, _)| bytes), Some(frame(60, 1)));
}

#[test]
fn no_other_command_is_known() {
    let mut bench = Bench::with(2, true, &[]);
    for bad in [
        &[4, 0, 0, 0][..],
        &[4, 0, 3, 0],
        &[4, 0, 0, 1],
        &[4, 0, 255, 255],
        &[4, 1, 1, 0],
        &[0, 0, 1, 0],
        &[1, 1, 2, 0x76, 0x6d, 0, 0, 1],
        &[2, 0, 1, 0],
        &[5, 0, 1, 0],
        &[4, 0, 1],
        &[4],
    ] {
        assert_eq!(command(&mut bench, CONTROL, bad), ERR, "{bad:?}");
        arrives_in(&mut bench, 1, 0, 1);
    }
}

#[test]
fn a_command_without_room_for_an_answer_stops_the_device_until_a_reset() {
    let mut bench = Bench::with(2, true, &[]);
    bench.driver.on(CONTROL).submit(&[Buffer::readable(COMMAND, 4)]);
    bench.driver.settle();
    assert!(bench.driver.needs_reset());
    bench.restart();
    bench.works();
}

/// Without VIRTIO_NET_F_MQ the control queue comes behind the first pair (5.1.2).
#[test]
fn a_driver_of_one_pair_finds_its_control_queue_behind_it() {
    let mut bench = Bench::with(2, true, &[v::VIRTIO_NET_F_MQ]);
    assert_eq!(command(&mut bench, 2, &[4, 0, 2, 0]), ERR, "it did not agree to several");
    arrives_in(&mut bench, 1, 0, 1);
    bench.driver.on(3).submit(&[Buffer::readable(OUT, 100)]);
    bench.driver.settle();
    assert!(bench.driver.needs_reset(), "the other queues are of no use to it");
}
