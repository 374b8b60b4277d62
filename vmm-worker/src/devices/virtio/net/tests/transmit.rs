//! From the guest to the network.

use super::*;

/// A header with a checksum to complete, and one with a TCP segment over IPv4 to cut.
const PARTIAL: [u8; 12] = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
const SEGMENT: [u8; 12] = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];

#[test]
fn a_packet_leaves_byte_for_byte_however_it_is_cut() {
    let mut bench = Bench::new();
    for cuts in [&[][..], &[12], &[1], &[11, 13], &[12, 26], &[75], &[76], &[77], &[3, 12, 40, 76, 500]] {
        for length in [52, 60, 64, 65, 1514] {
            bench.send_cut(TX, PARTIAL, &tcp(length, 8), cuts);
            assert_eq!(bench.left(0), Some((PARTIAL.to_vec(), tcp(length, 8))), "{length} bytes cut at {cuts:?}");
        }
    }
    let counted = bench.counted();
    assert_eq!((counted.sent_packets, counted.sent_bytes), (45, 9 * (52 + 60 + 64 + 65 + 1514)));
}

#[test]
fn frames_shorter_or_longer_than_any_are_dropped_and_counted() {
    let mut bench = Bench::new();
    for (n, length) in [(1, 0), (2, 1), (3, 13), (4, 1519), (5, 9000)] {
        bench.send([0; 12], &frame(length, 1));
        assert_eq!((bench.left(0), bench.counted().dropped_length), (None, n), "{length} bytes");
    }
    bench.driver.put(OUT, &[0; 64]);
    for length in [1, 11] {
        bench.driver.on(TX).submit(&[Buffer::readable(OUT, length)]);
        bench.driver.settle();
        assert!(bench.driver.take().is_some());
    }
    assert_eq!(bench.counted().dropped_length, 7);
    bench.send([0; 12], &frame(1518, 1));
    assert!(bench.left(0).is_some(), "with a VLAN tag it is that long");
    bench.send(SEGMENT, &tcp(65_553, 1));
    assert!(bench.left(0).is_some_and(|(_, bytes)| bytes == tcp(65_553, 1)));
    bench.send(SEGMENT, &tcp(65_554, 1));
    assert_eq!((bench.left(0), bench.counted().dropped_length), (None, 8));
    bench.works();
}

#[test]
fn a_header_that_was_not_agreed_on_is_dropped_and_counted() {
    let mut bench = Bench::with(1, true, &[v::VIRTIO_NET_F_HOST_TSO4]);
    let mut no_checksum = SEGMENT;
    (no_checksum[0], no_checksum[1]) = (0, 4);
    let mut unknown = SEGMENT;
    unknown[1] = 3;
    for (n, bad) in [(1, SEGMENT), (2, no_checksum), (3, unknown), (4, [0xff; 12])] {
        bench.send(bad, &tcp(1000, 1));
        assert_eq!((bench.left(0), bench.counted().dropped_header), (None, n), "{bad:?}");
    }
    bench.send(PARTIAL, &tcp(1000, 1));
    assert!(bench.left(0).is_some());
    bench.works();
}

/// The rules see the frame before the checksum is completed, so that none goes where they look.
#[test]
fn a_checksum_that_is_none_is_dropped_and_counted() {
    let mut bench = Bench::new();
    let mut udp = tcp(60, 1);
    udp[23] = 17;
    let mut options = tcp(100, 1);
    options[14] = 0x4f;
    let mut short = tcp(60, 1);
    short[14] = 0x40;
    let bad = [(30, 0, arp()), (26, 2, tcp(60, 1)), (34, 16, udp.clone()), (34, 16, options.clone()), (14, 16, short)];
    for (n, (start, offset, frame)) in bad.into_iter().enumerate() {
        bench.send([1, 0, 0, 0, 0, 0, start, 0, offset, 0, 0, 0], &frame);
        assert_eq!((bench.left(0), bench.counted().dropped_header), (None, n as u64 + 1), "{start} {offset}");
    }
    for (start, offset, frame) in [(34, 6, udp), (74, 16, options)] {
        let header = [1, 0, 0, 0, 0, 0, start, 0, offset, 0, 0, 0];
        bench.send(header, &frame);
        assert_eq!(bench.left(0), Some((header.to_vec(), frame)));
    }
    bench.send([0; 12], &arp());
    assert_eq!(bench.left(0), Some((vec![0; 12], arp())));
}

#[test]
fn flags_that_mean_nothing_to_the_tap_do_not_reach_it() {
    let mut bench = Bench::new();
    let mut header = SEGMENT;
    (header[0], header[10], header[11]) = (0xff, 7, 7);
    bench.send(header, &tcp(3000, 1));
    assert_eq!(bench.left(0), Some((SEGMENT.to_vec(), tcp(3000, 1))));
}

#[test]
fn a_tap_that_takes_nothing_loses_packets_and_holds_up_nobody() {
    let mut bench = Bench::new();
    let mut sent = 0;
    while bench.counted().dropped_tap == 0 {
        bench.send([0; 12], &frame(1500, 1));
        sent += 1;
        assert!(sent < 100_000, "the socket takes everything");
    }
    let counted = bench.counted();
    assert_eq!(counted.sent_packets + counted.dropped_tap, sent);
    while bench.left(0).is_some() {}
    bench.works();
}

#[test]
fn a_queue_full_of_packets_is_sent_in_order_with_one_interrupt() {
    let mut bench = Bench::new();
    for n in 0..8 {
        let at = OUT + 0x1000 * n;
        bench.driver.put(at, &[&[0; 12], &frame(60, n as u8)[..]].concat());
        let head = bench.driver.on(TX).chain(&[Buffer::readable(at, 12), Buffer::readable(at + 12, 60)]);
        bench.driver.offer(head);
    }
    bench.driver.interrupts();
    bench.driver.notify();
    assert!(bench.driver.turn());
    assert_eq!(bench.driver.interrupts(), 1);
    for n in 0..8 {
        assert_eq!(bench.left(0).map(|(_, bytes)| bytes), Some(frame(60, n)));
    }
}

#[test]
fn a_chain_without_anything_to_send_stops_the_device_until_a_reset() {
    let mut bench = Bench::new();
    bench.driver.on(TX).submit(&[Buffer::writable(OUT, 100)]);
    bench.driver.settle();
    assert!(bench.driver.needs_reset());
    bench.restart();
    bench.works();
}
