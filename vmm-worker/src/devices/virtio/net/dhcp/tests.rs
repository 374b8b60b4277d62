//! Requests and replies as plain bytes, by their places in RFC 2131: nothing here shares a layout with the code under test.

use super::*;

mod mutated;

const MAC: [u8; 6] = [0x02, 0x76, 0x6d, 0, 0, 5];
const XID: [u8; 4] = [0xde, 0xad, 0xbe, 0xef];
const ADDRESS: [u8; 4] = [10, 77, 0, 5];
const GATEWAY: [u8; 4] = [10, 77, 0, 1];
const OTHER: [u8; 4] = [10, 77, 0, 6];
/// Where the message and its options begin in a frame.
const MESSAGE: usize = 42;
const OPTIONS: usize = MESSAGE + 240;

fn spec() -> NetSpec {
    NetSpec {
        mac: MAC,
        address: ADDRESS.into(),
        prefix: 24,
        gateway: GATEWAY.into(),
        dns: vec![[9, 9, 9, 9].into(), [1, 1, 1, 1].into()],
        mtu: 1400,
        queues: 1,
        offloads: true,
        hostname: "web-1".into(),
    }
}

/// One's complement sum of 16-bit words, to be 0xffff where a checksum is in it and right.
fn folded(parts: &[&[u8]]) -> u16 {
    let all = parts.concat();
    let mut sum: u64 = all.chunks(2).map(|w| u64::from(w[0]) * 256 + u64::from(*w.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A request of `kind` with these options, from a client that has no address.
fn request(kind: u8, options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0];
    message.extend(XID);
    message.resize(28, 0);
    message.extend(MAC);
    message.resize(236, 0);
    message.extend([99, 130, 83, 99, 53, 1, kind]);
    for (code, value) in options {
        message.extend([*code, value.len() as u8]);
        message.extend(*value);
    }
    message.push(255);
    frame([0; 4], [255; 4], &message)
}

fn frame(from: [u8; 4], to: [u8; 4], message: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((28 + message.len() as u16).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(from);
    frame.extend(to);
    let checksum = !folded(&[&frame[14..34]]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    // As a driver leaves it that lets its device complete checksums: not what is in the message.
    frame.extend([0, 68, 0, 67]);
    frame.extend((8 + message.len() as u16).to_be_bytes());
    frame.extend([0x12, 0x34]);
    frame.extend(message);
    frame
}

/// The frame with its IP checksum right again.
fn mended(mut frame: Vec<u8>) -> Vec<u8> {
    frame[24..26].fill(0);
    let checksum = !folded(&[&frame[14..34]]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame
}

fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// The request of a client that has this address.
fn having(address: [u8; 4], frame: Vec<u8>) -> Vec<u8> {
    with(frame, MESSAGE + 12, &address)
}

struct Reply(Vec<u8>);

impl Reply {
    /// The value of an option that is there once.
    fn option(&self, code: u8) -> Option<&[u8]> {
        let (mut rest, mut found) = (&self.0[OPTIONS..], None);
        loop {
            match rest {
                [0, after @ ..] => rest = after,
                [255, after @ ..] => {
                    assert!(after.iter().all(|b| *b == 0), "nothing follows the end");
                    return found;
                }
                [this, length, after @ ..] => {
                    let (value, after) = after.split_at(usize::from(*length));
                    if *this == code {
                        assert!(found.replace(value).is_none(), "option {code} is there twice");
                    }
                    rest = after;
                }
                _ => panic!("the options have no end"),
            }
        }
    }

    fn message(&self, at: usize, length: usize) -> &[u8] {
        &self.0[MESSAGE + at..MESSAGE + at + length]
    }

    fn kind(&self) -> u8 {
        self.option(53).unwrap()[0]
    }

    fn destination(&self) -> (&[u8], &[u8]) {
        (&self.0[..6], &self.0[30..34])
    }
}

fn ask(spec: &NetSpec, frame: &[u8]) -> Option<Reply> {
    let mut reply = [0xaa; REPLY_MAX];
    let length = DhcpServer::new(spec).answer(frame, &mut reply)?;
    let reply = Reply(reply[..length].to_vec());
    check_frame(&reply.0);
    Some(reply)
}

/// What every reply must be, whatever it answers.
fn check_frame(frame: &[u8]) {
    assert!(frame.len() >= MESSAGE + 300, "no shorter than a message of BOOTP");
    assert!(frame.len() <= 14 + 576, "no longer than what each client takes");
    assert_eq!(frame[6..12], SERVER_MAC);
    assert_eq!(frame[12..14], [8, 0]);
    assert_eq!((frame[14], frame[23]), (0x45, 17));
    assert_eq!(usize::from(u16::from_be_bytes([frame[16], frame[17]])), frame.len() - 14);
    assert_eq!(folded(&[&frame[14..34]]), 0xffff, "IP's checksum");
    assert_eq!(frame[26..30], GATEWAY);
    assert_eq!(frame[34..38], [0, 67, 0, 68]);
    assert_eq!(usize::from(u16::from_be_bytes([frame[38], frame[39]])), frame.len() - 34);
    assert_ne!(frame[40..42], [0, 0], "UDP's checksum is there");
    let pseudo = [&frame[26..34], &[0, 17], &frame[38..40]].concat();
    assert_eq!(folded(&[&pseudo, &frame[34..]]), 0xffff, "UDP's checksum");
    assert_eq!(frame[MESSAGE..MESSAGE + 4], [2, 1, 6, 0]);
    assert_eq!(frame[MESSAGE + 236..OPTIONS], [99, 130, 83, 99]);
}

#[test]
fn a_client_without_an_address_is_offered_the_lease_and_gets_it() {
    let offer = ask(&spec(), &request(1, &[(50, &OTHER)])).unwrap();
    assert_eq!(offer.kind(), 2, "an offer, of another address than it would like");
    let ack = ask(&spec(), &request(3, &[(54, &GATEWAY), (50, &ADDRESS)])).unwrap();
    assert_eq!(ack.kind(), 5);
    for reply in [offer, ack] {
        assert_eq!(reply.message(4, 4), XID);
        assert_eq!(reply.message(12, 4), [0; 4], "ciaddr");
        assert_eq!(reply.message(16, 4), ADDRESS, "yiaddr");
        assert_eq!(reply.message(28, 6), MAC);
        assert_eq!(reply.destination(), (&MAC[..], &ADDRESS[..]));
        assert_eq!(reply.option(54), Some(&GATEWAY[..]));
        assert_eq!(reply.option(1), Some(&[255, 255, 255, 0][..]));
        assert_eq!(reply.option(3), Some(&GATEWAY[..]));
        assert_eq!(reply.option(28), Some(&[10, 77, 0, 255][..]));
        assert_eq!(reply.option(6), Some(&[9, 9, 9, 9, 1, 1, 1, 1][..]));
        assert_eq!(reply.option(26), Some(&1400u16.to_be_bytes()[..]));
        assert_eq!(reply.option(12), Some(&b"web-1"[..]));
        let seconds = |code| u32::from_be_bytes(reply.option(code).unwrap().try_into().unwrap());
        assert!(0 < seconds(58) && seconds(58) < seconds(59) && seconds(59) < seconds(51), "T1, T2, lease");
    }
}

#[test]
fn what_a_network_does_not_have_is_not_told() {
    let poor = NetSpec { dns: Vec::new(), hostname: String::new(), prefix: 31, ..spec() };
    let offer = ask(&poor, &request(1, &[])).unwrap();
    assert_eq!((offer.option(6), offer.option(12), offer.option(28)), (None, None, None));
    assert_eq!(offer.option(1), Some(&[255, 255, 255, 254][..]));
}

#[test]
fn netmasks_have_as_many_bits_as_their_prefix() {
    for prefix in 0..=32 {
        assert_eq!((mask(prefix).leading_ones(), mask(prefix).count_ones()), (prefix.into(), prefix.into()));
    }
}

#[test]
fn a_client_that_asks_for_broadcast_gets_it_until_it_has_its_address() {
    let flags = |frame| with(frame, MESSAGE + 10, &[0x80, 0]);
    let offer = ask(&spec(), &flags(request(1, &[]))).unwrap();
    assert_eq!(offer.destination(), (&[255; 6][..], &[255; 4][..]));
    assert_eq!(offer.message(10, 2), [0x80, 0]);
    let renewed = ask(&spec(), &flags(having(ADDRESS, request(3, &[])))).unwrap();
    assert_eq!((renewed.kind(), renewed.destination()), (5, (&MAC[..], &ADDRESS[..])));
}

#[test]
fn a_client_that_remembers_its_address_keeps_it() {
    let rebooted = ask(&spec(), &request(3, &[(50, &ADDRESS)])).unwrap();
    assert_eq!((rebooted.kind(), rebooted.message(16, 4)), (5, &ADDRESS[..]));
    let rebinding = ask(&spec(), &having(ADDRESS, request(3, &[]))).unwrap();
    assert_eq!((rebinding.kind(), rebinding.message(12, 4)), (5, &ADDRESS[..]));
    // Renewing goes straight to the server, through a bridge that has a MAC of its own.
    let message = having(ADDRESS, request(3, &[]))[MESSAGE..].to_vec();
    let renewing = with(frame(ADDRESS, GATEWAY, &message), 0, &[2, 0, 0, 0, 0, 1]);
    assert!(DhcpServer::is_for_server(&renewing[..64]));
    assert_eq!(ask(&spec(), &renewing).unwrap().kind(), 5);
}

#[test]
fn a_client_that_believes_in_another_address_is_refused() {
    for wrong in [
        request(3, &[(50, &OTHER)]),
        request(3, &[(54, &GATEWAY), (50, &OTHER)]),
        having(OTHER, request(3, &[])),
        having(OTHER, request(3, &[(50, &ADDRESS)])),
    ] {
        let nak = ask(&spec(), &wrong).unwrap();
        assert_eq!(nak.kind(), 6);
        assert_eq!(nak.destination(), (&[255; 6][..], &[255; 4][..]), "its address is wrong: to all");
        assert_eq!((nak.message(12, 4), nak.message(16, 4)), (&[0; 4][..], &[0; 4][..]));
        assert_eq!(nak.option(54), Some(&GATEWAY[..]));
        assert!([1, 3, 6, 26, 51].iter().all(|code| nak.option(*code).is_none()), "nothing else is told");
    }
}

#[test]
fn a_client_with_an_address_is_informed_without_being_given_one() {
    let ack = ask(&spec(), &having(ADDRESS, request(8, &[]))).unwrap();
    assert_eq!((ack.kind(), ack.message(16, 4)), (5, &[0; 4][..]));
    assert_eq!(ack.destination(), (&MAC[..], &ADDRESS[..]));
    assert_eq!((ack.option(51), ack.option(58), ack.option(59)), (None, None, None));
    assert_eq!(ack.option(3), Some(&GATEWAY[..]));
    assert!(ask(&spec(), &having(OTHER, request(8, &[]))).is_none());
}

#[test]
fn the_clients_identifier_comes_back_and_one_that_cannot_is_not_answered() {
    let offer = ask(&spec(), &request(1, &[(61, b"\x01abc")])).unwrap();
    assert_eq!(offer.option(61), Some(&b"\x01abc"[..]));
    assert_eq!(ask(&spec(), &request(3, &[(50, &OTHER), (61, b"n")])).unwrap().option(61), Some(&b"n"[..]));
    let longest = NetSpec { hostname: "h".repeat(63), dns: vec![[9; 4].into(); 3], ..spec() };
    let longest_id = |length| ask(&longest, &request(1, &[(61, &vec![7; length][..])]));
    let fits = (0..256).take_while(|length| longest_id(*length).is_some()).count() - 1;
    assert!(fits > 130, "a DUID (RFC 8415, 11.1) of 130 bytes with its IAID, not only {fits} bytes");
    assert_eq!(longest_id(fits).unwrap().0.len(), 14 + 576);
    assert!((fits + 1..256).all(|length| longest_id(length).is_none()));
}

#[test]
fn what_is_no_request_of_the_leases_own_client_gets_no_answer() {
    let good = request(1, &[]);
    assert!(ask(&spec(), &good).is_some());
    let spoilt = [
        ("another source MAC", with(good.clone(), 11, &[9])),
        ("another chaddr", with(good.clone(), MESSAGE + 33, &[9])),
        ("a relay", with(good.clone(), MESSAGE + 24, &[10, 0, 0, 9])),
        ("a reply", with(good.clone(), MESSAGE, &[2])),
        ("another kind of hardware", with(good.clone(), MESSAGE + 1, &[6])),
        ("another length of address", with(good.clone(), MESSAGE + 2, &[16])),
        ("no cookie", with(good.clone(), MESSAGE + 236, &[0])),
        ("another port", with(good.clone(), 36, &[0, 68])),
        ("another ethertype", with(good.clone(), 12, &[0x86, 0xdd])),
        ("a wrong IP checksum", with(good.clone(), 24, &[0, 0])),
        ("another protocol", mended(with(good.clone(), 23, &[6]))),
        ("a first fragment", mended(with(good.clone(), 20, &[0x20, 0]))),
        ("a later fragment", mended(with(good.clone(), 20, &[0, 1]))),
        ("another version of IP", mended(with(good.clone(), 14, &[0x65]))),
        ("another host", mended(with(good.clone(), 30, &OTHER))),
        ("more than the frame has", mended(with(good.clone(), 16, &[5, 0]))),
        ("more UDP than IP has", with(good.clone(), 38, &[5, 0])),
        ("less UDP than a header", with(good.clone(), 38, &[0, 7])),
    ];
    for (what, frame) in spoilt {
        assert!(ask(&spec(), &frame).is_none(), "{what}");
    }
    for kind in [0, 2, 4, 5, 6, 7, 9, 255] {
        assert!(ask(&spec(), &request(kind, &[(50, &ADDRESS)])).is_none(), "message type {kind}");
    }
    assert!(ask(&spec(), &request(3, &[])).is_none(), "a request for nothing");
    assert!(ask(&spec(), &request(3, &[(54, &OTHER), (50, &ADDRESS)])).is_none(), "another server's client");
}

#[test]
fn an_option_that_is_cut_off_twice_there_or_of_a_wrong_length_spoils_the_request() {
    let raw = |options: &[u8]| {
        let message = [&request(1, &[])[MESSAGE..OPTIONS], options].concat();
        ask(&spec(), &frame([0; 4], [255; 4], &message))
    };
    assert!(raw(&[53, 1, 1, 255]).is_some());
    assert!(raw(&[0, 0, 53, 1, 1, 0, 55, 0, 57, 2, 5, 220]).is_some(), "pads, unknown options, and no end");
    assert!(raw(&[53, 1, 1, 255, 53, 1, 1, 61]).is_some(), "behind the end there is nothing");
    for bad in [
        &[][..],
        &[255],
        &[53],
        &[53, 1],
        &[53, 0, 255],
        &[53, 2, 1, 1, 255],
        &[53, 1, 1, 61],
        &[53, 1, 1, 61, 3, 1, 2],
        &[53, 1, 1, 53, 1, 1, 255],
        &[53, 1, 1, 50, 5, 1, 2, 3, 4, 5, 255],
        &[53, 1, 1, 54, 3, 1, 2, 3, 255],
    ] {
        assert!(raw(bad).is_none(), "{bad:?}");
    }
}

#[test]
fn checksums_of_udp_may_be_missing_or_unfinished() {
    for checksum in [[0, 0], [0xff, 0xff], [0x56, 0x78]] {
        assert!(ask(&spec(), &with(request(1, &[]), 40, &checksum)).is_some());
    }
}

#[test]
fn a_request_is_known_by_its_first_64_bytes_behind_few_options_of_ip() {
    let good = request(1, &[]);
    assert!(DhcpServer::is_for_server(&good[..64]));
    assert!(DhcpServer::is_for_server(&good[..38]));
    assert!((0..38).all(|length| !DhcpServer::is_for_server(&good[..length])));
    assert!(!DhcpServer::is_for_server(&with(good.clone(), 36, &[0, 53])));
    assert!(!DhcpServer::is_for_server(&with(good.clone(), 23, &[6])), "TCP");
    assert!(!DhcpServer::is_for_server(&with(good.clone(), 20, &[0, 1])), "no ports in a later fragment");
    assert!(!DhcpServer::is_for_server(&with(good.clone(), 12, &[0x81, 0])), "a VLAN's is not the lease's");
    let mut routed = good.clone();
    routed.splice(34..34, [1; 8]);
    let total = u16::try_from(routed.len() - 14).unwrap().to_be_bytes();
    let mut routed = with(with(routed, 14, &[0x47]), 16, &total);
    routed[24..26].fill(0);
    let checksum = !folded(&[&routed[14..42]]);
    let routed = with(routed, 24, &checksum.to_be_bytes());
    assert!(DhcpServer::is_for_server(&routed[..64]));
    assert!(ask(&spec(), &routed).is_some());
}
