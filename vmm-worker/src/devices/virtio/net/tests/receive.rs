//! From the network to the guest.

use super::*;

const GUEST_CSUM: u32 = v::VIRTIO_NET_F_GUEST_CSUM;
const GUEST_TSO4: u32 = v::VIRTIO_NET_F_GUEST_TSO4;
const GUEST_TSO6: u32 = v::VIRTIO_NET_F_GUEST_TSO6;
const MRG_RXBUF: u32 = v::VIRTIO_NET_F_MRG_RXBUF;

/// A checksum to complete, and a TCP segment over IPv4 to cut.
const PARTIAL: [u8; 10] = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0];
const SEGMENT: [u8; 10] = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0];

#[test]
fn a_packet_arrives_byte_for_byte() {
    let mut bench = Bench::new();
    for (n, length) in [52, 60, 1514].into_iter().enumerate() {
        let head = bench.leave(RX, &[1530]);
        bench.arrive(0, PARTIAL, &tcp(length, n as u8));
        bench.driver.settle();
        let header = vec![1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0];
        assert_eq!(bench.packet(RX), Some((header, tcp(length, n as u8), vec![head])));
    }
    let counted = bench.counted();
    assert_eq!((counted.received_packets, counted.received_bytes), (3, 52 + 60 + 1514));
}

#[test]
fn a_header_may_be_cut_anywhere() {
    let mut bench = Bench::new();
    for lengths in [[12, 2000], [1, 2000], [11, 2000], [13, 2000], [600, 1400]] {
        bench.leave(RX, &lengths);
        bench.arrive(0, PARTIAL, &tcp(1000, 5));
        bench.driver.settle();
        assert_eq!(bench.frame(), Some(tcp(1000, 5)), "{lengths:?}");
    }
}

#[test]
fn a_packet_goes_over_as_many_chains_as_it_takes() {
    let mut bench = Bench::new();
    let heads: Vec<u16> = (0..6).map(|_| bench.leave(RX, &[100, 156])).collect();
    bench.arrive(0, [0; 10], &frame(1000, 1));
    bench.driver.settle();
    let (header, bytes, used) = bench.packet(RX).unwrap();
    assert_eq!((bytes, used, header[10]), (frame(1000, 1), heads[..4].to_vec(), 4));
    // 1012 bytes are three chains of 256 and some, and exactly four chains are 1024.
    bench.leave_many(4, 256);
    for (length, chains) in [(244, 1), (245, 2)] {
        bench.arrive(0, [0; 10], &frame(length, 2));
        bench.driver.settle();
        let (_, bytes, used) = bench.packet(RX).unwrap();
        assert_eq!((bytes, used.len()), (frame(length, 2), chains));
    }
    assert_eq!(bench.packet(RX), None);
}

#[test]
fn chains_that_a_packet_left_over_serve_the_next_ones_in_order() {
    let mut bench = Bench::new();
    let heads = bench.leave_many(12, 512);
    for n in 0..6 {
        bench.arrive(0, [0; 10], &frame(600, n));
        bench.driver.settle();
        let (_, bytes, used) = bench.packet(RX).unwrap();
        assert_eq!((bytes, &used[..]), (frame(600, n), &heads[2 * usize::from(n)..][..2]));
    }
}

#[test]
fn without_mergeable_buffers_a_packet_has_one_chain_or_is_dropped() {
    let mut bench = Bench::with(1, false, &[MRG_RXBUF]);
    let heads: Vec<u16> = [400, 1526, 400].iter().map(|length| bench.leave(RX, &[*length])).collect();
    bench.arrive(0, [0; 10], &frame(389, 1));
    bench.arrive(0, [0; 10], &frame(388, 2));
    bench.arrive(0, [0; 10], &frame(1514, 3));
    bench.driver.settle();
    assert_eq!(bench.counted().dropped_buffer, 1, "389 bytes and a header are 401");
    for (length, seed, head) in [(388, 2, heads[0]), (1514, 3, heads[1])] {
        let (header, bytes, used) = bench.packet(RX).unwrap();
        assert_eq!((bytes, used, &header[10..]), (frame(length, seed), vec![head], &[1, 0][..]));
    }
}

#[test]
fn a_packet_too_long_for_all_chains_is_dropped_and_the_next_one_comes() {
    let mut bench = Bench::with(1, false, &[]);
    bench.leave(RX, &[300]);
    bench.leave(RX, &[300]);
    bench.arrive(0, [0; 10], &frame(589, 1));
    bench.arrive(0, [0; 10], &frame(588, 2));
    bench.driver.settle();
    assert_eq!(bench.frame(), Some(frame(588, 2)));
    assert_eq!((bench.frame(), bench.counted().dropped_buffer), (None, 1));
}

#[test]
fn without_chains_nobody_looks_at_the_tap_until_a_kick() {
    let mut bench = Bench::new();
    bench.leave(RX, &[2048]);
    (0..3).for_each(|n| bench.arrive(0, [0; 10], &frame(60, n)));
    bench.driver.settle();
    assert_eq!(bench.frame(), Some(frame(60, 0)));
    assert!(!bench.driver.turn(), "the TAP is readable, and the reactor sleeps");
    assert_eq!(bench.driver.wants_kick_at(), 1, "for the next chain the driver is to kick");
    for n in 1..3 {
        bench.leave(RX, &[2048]);
        bench.driver.settle();
        assert_eq!(bench.frame(), Some(frame(60, n)));
        assert!(!bench.driver.turn());
    }
    bench.leave(RX, &[2048]);
    bench.driver.settle();
    assert!(!bench.driver.turn(), "an empty TAP is watched in peace");
    bench.arrive(0, [0; 10], &frame(60, 7));
    assert!(bench.driver.turn(), "it is watched");
    assert_eq!(bench.frame(), Some(frame(60, 7)));
}

#[test]
fn a_turn_is_one_interrupt_for_all_its_packets() {
    let mut bench = Bench::new();
    bench.leave_many(8, 2048);
    bench.driver.settle();
    bench.driver.interrupts();
    (0..8).for_each(|n| bench.arrive(0, [0; 10], &frame(60, n)));
    assert!(bench.driver.turn());
    assert_eq!(bench.driver.on(RX).used(), 8);
    assert_eq!(bench.driver.interrupts(), 1);
    // The driver wants none before three more packets.
    bench.driver.ask_for_interrupt_after(10);
    bench.leave_many(4, 2048);
    for packet in 9..=12 {
        bench.arrive(0, [0; 10], &frame(60, 1));
        bench.driver.settle();
        assert_eq!(bench.driver.interrupts(), u64::from(packet == 11), "packet {packet}");
    }
}

#[test]
fn a_checksum_is_completed_for_a_driver_that_does_not() {
    let mut bench = Bench::with(1, true, &[GUEST_CSUM, GUEST_TSO4, GUEST_TSO6]);
    for length in [1514, 1001] {
        let sent = tcp(length, 0x31);
        let expected = checksum::reference(&sent, 34, 16);
        assert_ne!(sent, expected);
        bench.leave(RX, &[77]);
        bench.leave(RX, &[2048]);
        bench.arrive(0, PARTIAL, &sent);
        bench.driver.settle();
        let (header, bytes, _) = bench.packet(RX).unwrap();
        assert_eq!((header[0], bytes), (0, expected));
    }
    bench.leave(RX, &[2048]);
    bench.arrive(0, [2, 0, 0, 0, 0, 0, 0, 0, 0, 0], &frame(60, 1));
    bench.driver.settle();
    assert_eq!(bench.packet(RX).unwrap().0[0], 0, "nor does it hear that one was checked");
    // A place outside of the frame, which no kernel says.
    bench.arrive(0, PARTIAL, &tcp(51, 1));
    bench.leave(RX, &[2048]);
    bench.driver.settle();
    assert_eq!((bench.frame(), bench.counted().dropped_offload), (None, 1));
}

/// Whoever completes it writes into a frame that the host's rules have judged already: here into an ARP sender's address.
#[test]
fn a_checksum_that_is_none_changes_no_frame() {
    for refused in [&[][..], &[GUEST_CSUM, GUEST_TSO4, GUEST_TSO6]] {
        let mut bench = Bench::with(1, true, refused);
        bench.leave(RX, &[2048]);
        let fragment = [&tcp(60, 1)[..20], &[0x20, 0], &tcp(60, 1)[22..]].concat();
        for (start, offset, frame) in [(30, 0, arp()), (34, 16, arp()), (26, 2, tcp(60, 1)), (34, 16, fragment)] {
            bench.arrive(0, [1, 0, 0, 0, 0, 0, start, 0, offset, 0], &frame);
        }
        bench.driver.settle();
        assert_eq!((bench.frame(), bench.counted().dropped_offload), (None, 4));
        bench.arrive(0, [0; 10], &arp());
        bench.driver.settle();
        assert_eq!(bench.frame(), Some(arp()));
        bench.works();
    }
}

/// The kernel completes none towards a TAP: the device does, for a driver that was offered nothing.
#[test]
fn a_guest_without_offloads_gets_whole_checksums() {
    let mut bench = Bench::with(1, false, &[]);
    bench.leave(RX, &[2048]);
    let sent = tcp(1514, 5);
    bench.arrive(0, PARTIAL, &sent);
    bench.driver.settle();
    assert_eq!(bench.frame(), Some(checksum::reference(&sent, 34, 16)));
}

#[test]
fn a_segment_that_the_driver_did_not_agree_to_is_dropped_and_counted() {
    let mut bench = Bench::with(1, true, &[GUEST_TSO4, GUEST_TSO6]);
    bench.leave(RX, &[2048]);
    bench.arrive(0, SEGMENT, &tcp(1400, 1));
    bench.arrive(0, SEGMENT, &tcp(40_000, 2));
    bench.arrive(0, PARTIAL, &tcp(1514, 3));
    bench.driver.settle();
    assert_eq!(bench.frame(), Some(tcp(1514, 3)));
    let counted = bench.counted();
    assert_eq!((counted.dropped_offload, counted.dropped_buffer, counted.received_packets), (2, 0, 1));
}

#[test]
fn the_largest_segment_arrives_whole() {
    let mut bench = Bench::new();
    let heads = bench.leave_many(16, 4200);
    bench.arrive(0, SEGMENT, &tcp(65_553, 9));
    bench.driver.settle();
    let (header, bytes, used) = bench.packet(RX).unwrap();
    assert_eq!((&header[..10], bytes == tcp(65_553, 9), used), (&SEGMENT[..], true, heads));
}

#[test]
fn a_large_packet_waits_in_the_tap_while_most_chains_are_with_the_driver() {
    let mut bench = Bench::new();
    bench.leave_many(16, 8192);
    (0..3).for_each(|n| bench.arrive(0, SEGMENT, &tcp(65_000, n)));
    bench.driver.settle();
    assert_eq!(bench.packet(RX).map(|(_, bytes, used)| (bytes == tcp(65_000, 0), used.len())), Some((true, 8)));
    assert_eq!(bench.packet(RX).map(|(_, bytes, used)| (bytes == tcp(65_000, 1), used.len())), Some((true, 8)));
    // The driver gives back a few: too few for what waits, and more is sure to come.
    bench.leave_many(7, 8192);
    bench.driver.settle();
    assert!(!bench.driver.turn(), "nothing is read that would be lost");
    bench.leave(RX, &[8192]);
    bench.leave(RX, &[8192]);
    bench.driver.settle();
    assert!(bench.frame().is_some_and(|bytes| bytes == tcp(65_000, 2)));
    assert_eq!(bench.counted().dropped_buffer, 0);
}

#[test]
fn a_driver_with_little_room_for_good_gets_what_fits() {
    let mut bench = Bench::new();
    let mut heads = bench.leave_many(4, 2048);
    for n in 0..20 {
        bench.arrive(0, [0; 10], &frame(1514, n));
        if n % 5 == 0 {
            bench.arrive(0, SEGMENT, &tcp(20_000, n));
        }
        bench.driver.settle();
        assert_eq!(bench.frame(), Some(frame(1514, n)));
        heads.push(bench.leave(RX, &[2048]));
    }
    assert_eq!(bench.counted().dropped_buffer, 4);
}

#[test]
fn more_segments_than_one_system_call_takes_are_left_for_later() {
    let mut bench = Bench::new();
    // An indirect table each, of 60 segments: the third does not fit beside the first two.
    let length = 60;
    for (n, table) in [0x4_0000u64, 0x4_1000, 0x4_2000].into_iter().enumerate() {
        for at in 0..60u16 {
            let place = IN + 0x1_0000 * n as u64 + u64::from(at) * length;
            bench.driver.describe(table, at, place, length as u32, if at < 59 { 3 } else { 2 }, at + 1);
        }
        let descriptors = bench.driver.on(RX).descriptors();
        bench.driver.describe(descriptors, n as u16, table, 60 * 16, 4, 0);
        bench.room.insert((RX, n as u16), (0..60).map(|at| (IN + 0x1_0000 * n as u64 + at * length, 60)).collect());
        bench.driver.offer(n as u16);
    }
    bench.driver.notify();
    for (n, length, used) in [(0, 7000, vec![0, 1]), (1, 3000, vec![2])] {
        bench.arrive(0, [0; 10], &frame(length, n));
        bench.driver.settle();
        assert_eq!(bench.packet(RX).map(|(_, bytes, heads)| (bytes, heads)), Some((frame(length, n), used)));
    }
    assert!(!bench.driver.needs_reset());
}

#[test]
fn a_chain_without_room_for_anything_stops_the_device_until_a_reset() {
    let mut bench = Bench::new();
    bench.driver.on(RX).submit(&[Buffer::readable(IN, 2048)]);
    bench.driver.settle();
    assert!(bench.driver.needs_reset());
    bench.arrive(0, [0; 10], &frame(60, 1));
    assert!(bench.driver.settle() <= 1, "a stopped device reads nothing");
    bench.restart();
    bench.leave(RX, &[2048]);
    bench.driver.settle();
    assert_eq!(bench.frame(), Some(frame(60, 1)));
    bench.works();
}
