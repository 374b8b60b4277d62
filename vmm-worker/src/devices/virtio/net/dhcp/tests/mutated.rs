//! Requests cut off, changed at random, and garbage: no panic, and never anything but the lease.

use super::*;

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn a_frame_cut_off_anywhere_is_harmless_and_unanswered() {
    let whole = having(ADDRESS, request(3, &[(61, &[1; 19]), (55, &[1, 3, 6, 12, 26]), (12, b"guest")]));
    assert!(ask(&spec(), &whole).is_some());
    for length in 0..whole.len() {
        assert!(ask(&spec(), &whole[..length]).is_none(), "{length} bytes");
        DhcpServer::is_for_server(&whole[..length]);
    }
    // Shorter, and consistent: the options end earlier.
    for length in 0..whole.len() - MESSAGE {
        if let Some(reply) = ask(&spec(), &frame([0; 4], [255; 4], &whole[MESSAGE..MESSAGE + length])) {
            assert!(length >= 240 + 3 && [5, 6].contains(&reply.kind()));
        }
    }
}

#[test]
fn garbage_and_mutated_requests_never_panic_and_never_give_away_anything_else() {
    let state = &mut 0x9e37_79b9_7f4a_7c15;
    let seeds = [
        request(1, &[(55, &[1, 3, 6]), (61, &[1; 7])]),
        request(3, &[(54, &GATEWAY), (50, &ADDRESS)]),
        having(ADDRESS, request(8, &[])),
    ];
    let (mut answered, mut server, mut reply) = (0, DhcpServer::new(&spec()), [0; REPLY_MAX]);
    for round in 0..50_000u32 {
        let mut frame = seeds[round as usize % seeds.len()].clone();
        if round.is_multiple_of(8) {
            frame = (0..random(state) % REQUEST_MAX as u64).map(|_| random(state) as u8).collect();
        }
        for _ in 0..random(state) % 4 {
            let at = random(state) as usize % frame.len().max(1);
            // Most of what decides stands in the headers and the options.
            let at = if random(state).is_multiple_of(2) { at % 60 } else { at };
            if let Some(byte) = frame.get_mut(at) {
                *byte = random(state) as u8;
            }
        }
        if random(state).is_multiple_of(8) {
            frame.resize(random(state) as usize % (REQUEST_MAX + 1), random(state) as u8);
        }
        if round.is_multiple_of(2) && frame.len() >= 34 {
            frame = mended(frame);
        }
        if let Some(length) = server.answer(&frame, &mut reply) {
            answered += 1;
            assert!(DhcpServer::is_for_server(&frame[..64]));
            check_frame(&reply[..length]);
            assert!([[0; 4], ADDRESS].contains(&reply[MESSAGE + 16..MESSAGE + 20].try_into().unwrap()), "yiaddr");
        }
    }
    assert!((1_000..45_000).contains(&answered), "{answered} answers: both ways were taken");
}
