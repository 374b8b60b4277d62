//! DHCP, from the guest's transmit queue to its receive queue.

use super::*;

const DISCOVER: u8 = 1;

/// A client's request, as a raw socket sends it.
fn request(kind: u8, transaction: u8) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 0, 0, 0, transaction];
    message.resize(28, 0);
    message.extend(MAC);
    message.resize(236, 0);
    message.extend([99, 130, 83, 99, 53, 1, kind, 255]);
    let mut ip = vec![0x45, 0];
    ip.extend((28 + message.len() as u16).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    let ip = checksum::reference(&ip, 0, 10);
    let mut frame = [&[0xff; 6][..], &MAC, &[8, 0], &ip, &[0, 68, 0, 67]].concat();
    frame.extend((8 + message.len() as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(message);
    frame
}

/// The transaction of a reply, and the address that it offers.
fn reply(frame: &[u8]) -> (u8, [u8; 4]) {
    assert_eq!((&frame[..6], &frame[12..14]), (&MAC[..], &[8, 0][..]));
    assert_eq!(frame[34..38], [0, 67, 0, 68]);
    (frame[42 + 7], frame[42 + 16..42 + 20].try_into().unwrap())
}

#[test]
fn a_request_is_answered_here_and_never_reaches_the_network() {
    let mut bench = Bench::new();
    bench.leave(RX, &[2048]);
    // Behind the header, in the middle of what is looked at, and behind that.
    for (n, cuts) in [&[][..], &[12], &[40], &[76, 200]].into_iter().enumerate() {
        bench.leave(RX, &[2048]);
        bench.send_cut(TX, [0; 12], &request(DISCOVER, n as u8), cuts);
        let (header, frame, _) = bench.packet(RX).unwrap();
        assert_eq!(header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(reply(&frame), (n as u8, [10, 77, 0, 5]));
        assert_eq!(bench.left(0), None);
    }
    let counted = bench.counted();
    assert_eq!((counted.dhcp_answers, counted.sent_packets, counted.received_packets), (4, 0, 0));
}

#[test]
fn a_reply_comes_before_a_network_that_never_falls_silent() {
    let mut bench = Bench::new();
    (0..50).for_each(|n| bench.arrive(0, [0; 10], &frame(60, n)));
    bench.send([0; 12], &request(DISCOVER, 9));
    bench.leave_many(2, 2048);
    bench.driver.settle();
    assert_eq!(reply(&bench.frame().unwrap()), (9, [10, 77, 0, 5]));
    assert_eq!(bench.frame(), Some(frame(60, 0)));
}

#[test]
fn a_reply_goes_over_as_many_chains_as_it_takes_or_is_dropped() {
    let mut bench = Bench::new();
    bench.leave_many(8, 100);
    bench.send([0; 12], &request(DISCOVER, 1));
    let (_, frame, heads) = bench.packet(RX).unwrap();
    assert_eq!((reply(&frame).0, heads.len()), (1, (frame.len() + 12).div_ceil(100)));
    bench.restart();
    bench.leave(RX, &[100]);
    bench.send([0; 12], &request(DISCOVER, 1));
    assert_eq!((bench.frame(), bench.counted().dropped_buffer), (None, 1));
    bench.works();
}

#[test]
fn what_is_for_a_server_and_no_request_is_dropped_and_counted() {
    let mut bench = Bench::new();
    bench.leave(RX, &[2048]);
    let mut foreign = request(DISCOVER, 1);
    foreign[11] ^= 1;
    let mut long = request(DISCOVER, 1);
    long.resize(1515, 0);
    for (n, bad) in [(1, foreign), (2, request(DISCOVER, 1)[..60].to_vec()), (3, long)] {
        bench.send([0; 12], &bad);
        assert_eq!((bench.left(0), bench.frame(), bench.counted().dropped_dhcp), (None, None, n));
    }
    bench.works();
}

#[test]
fn requests_without_end_leave_few_replies_waiting() {
    let mut bench = Bench::new();
    (0..100).for_each(|n| bench.send([0; 12], &request(DISCOVER, n)));
    let counted = bench.counted();
    assert_eq!((counted.dhcp_answers, counted.dropped_dhcp), (4, 96));
    bench.leave_many(8, 2048);
    bench.driver.settle();
    for n in 0..4 {
        assert_eq!(bench.frame().map(|frame| reply(&frame).0), Some(n));
    }
    assert_eq!(bench.frame(), None);
    bench.send([0; 12], &request(DISCOVER, 200));
    assert_eq!(bench.frame().map(|frame| reply(&frame).0), Some(200));
}

#[test]
fn a_reset_forgets_replies_that_wait() {
    let mut bench = Bench::new();
    bench.send([0; 12], &request(DISCOVER, 1));
    bench.restart();
    bench.leave(RX, &[2048]);
    bench.driver.settle();
    assert_eq!(bench.frame(), None);
    bench.works();
}

#[test]
fn a_request_in_any_queue_is_answered_in_the_first() {
    let mut bench = Bench::with(2, true, &[]);
    bench.leave(0, &[2048]);
    bench.send_cut(3, [0; 12], &request(DISCOVER, 3), &[]);
    assert_eq!(bench.frame().map(|frame| reply(&frame).0), Some(3));
    assert_eq!((bench.left(0), bench.left(1)), (None, None));
}
