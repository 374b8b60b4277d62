//! Quotas, ports, MACs and addresses.

use super::*;
use crate::permit::Who;
use crate::testing::{book_of, caller, network, port, wanted};

fn forward(host: u16) -> Forward {
    Forward { protocol: Protocol::Tcp, host, guest: 80 }
}

#[test]
fn a_quota_counts_leases_and_endings_of_the_uid_in_the_network() {
    let mut net = network("a", "br-a", "10.1.0.1", 24);
    net.leases = 2;
    let mut book = book_of(&net, &[(LeaseId(1), 1000), (LeaseId(2), 2000), (LeaseId(3), 1000)]);
    let full = Err(Refusal::Quota { limit: 2 });
    assert_eq!(book.admit(&net, &caller(1000), &wanted("a")), full);
    assert_eq!(book.admit(&net, &caller(2000), &wanted("a")), Ok(()));
    book.set(1, State::Ending(1000, Instant::now()));
    assert_eq!(book.admit(&net, &caller(1000), &wanted("a")), full, "somebody may hold it still");
    book.remove(1);
    assert_eq!(book.admit(&net, &caller(1000), &wanted("a")), Ok(()));
    let other = Network { leases: 2, ..network("b", "br-b", "10.2.0.1", 24) };
    book.insert(Port { network: "b".into(), ..port(9, &other, LeaseId(9), 1000) });
    assert_eq!(book.admit(&net, &caller(1000), &wanted("a")), Ok(()), "another network has its own quota");
}

#[test]
fn a_port_is_forwarded_by_whom_it_is_allowed_and_once() {
    let mut net = network("a", "br-a", "10.1.0.1", 24);
    net.forwards = vec![(Who { users: vec![1000], groups: vec![], ..Who::default() }, vec![(8000, 8009), (22, 22)])];
    let mut book = book_of(&net, &[(LeaseId(1), 2000)]);
    let ask = |book: &Book, uid, port| {
        book.admit(&net, &caller(uid), &Wanted { forwards: vec![forward(port)], ..wanted("a") })
    };
    for (port, allowed) in [(7999, false), (8000, true), (8009, true), (8010, false), (22, true)] {
        let answer = if allowed { Ok(()) } else { Err(Refusal::PortNotAllowed { port }) };
        assert_eq!(ask(&book, 1000, port), answer);
        assert_eq!(ask(&book, 2000, port), Err(Refusal::PortNotAllowed { port }));
    }
    let holder = Holder { id: LeaseId(1), uid: 2000, vm: VmId(1), forwards: vec![forward(8000)] };
    book.set(1, State::Leased(holder));
    assert_eq!(ask(&book, 1000, 8000), Err(Refusal::PortTaken { port: 8000 }));
    let udp = Forward { protocol: Protocol::Udp, ..forward(8000) };
    assert_eq!(book.admit(&net, &caller(1000), &Wanted { forwards: vec![udp], ..wanted("a") }), Ok(()));
    book.set(1, State::Ending(2000, Instant::now()));
    assert_eq!(ask(&book, 1000, 8000), Ok(()), "a forward ends with its lease");
}

#[test]
fn an_address_rests_before_it_is_given_again_and_is_never_doubled() {
    let net = network("a", "br-a", "10.1.0.3", 29);
    let mut book = Book::default();
    let mut given = Vec::new();
    for number in 1..=5 {
        let (address, mac) = book.place(&net, None, None).unwrap();
        given.push(address.octets()[3]);
        book.insert(Port { address, mac, ..port(number, &net, LeaseId(number.into()), 1000) });
    }
    assert_eq!(given, [1, 2, 4, 5, 6], "neither the host's nor the network's nor broadcast");
    assert_eq!(book.place(&net, None, None), Err(None));
    assert_eq!(book.free(&net), 0);
    book.remove(1);
    book.remove(4);
    assert_eq!(book.place(&net, None, None).unwrap().0.octets()[3], 1, "the one that rested longest");
}

#[test]
fn an_address_goes_to_another_uid_only_where_nothing_else_is_free() {
    let net = network("a", "br-a", "10.1.0.1", 29);
    let mut book = Book::default();
    for (number, uid) in [(1, 1000), (2, 2000), (3, 1000)] {
        let (address, mac) = book.place(&net, None, Some(uid)).unwrap();
        book.insert(Port { address, mac, ..port(number, &net, LeaseId(number.into()), uid) });
    }
    (1..=3).for_each(|number| drop(book.remove(number)));
    let mut next = |uid| {
        let (address, mac) = book.place(&net, None, uid).unwrap();
        book.insert(Port { address, mac, ..port(book.last_port + 1, &net, LeaseId(9), 1000) });
        address.octets()[3]
    };
    assert_eq!([next(Some(2000)), next(None)], [5, 6], "never used");
    assert_eq!(next(Some(2000)), 3, "its own");
    assert_eq!(next(Some(2000)), 4, "there is no other");
}

#[test]
fn a_mac_is_one_guests_and_a_default_one_gives_way() {
    let net = network("a", "br-a", "10.1.0.1", 24);
    let mut book = Book::default();
    // Somebody asked for the MAC that 10.1.0.2 would have.
    let (address, mac) = book.place(&net, Some([1, 0, 2]), None).unwrap();
    assert_eq!((address.octets()[3], mac), (2, guest_mac([1, 0, 2])));
    book.insert(Port { address: Ipv4Addr::new(10, 1, 0, 9), mac, ..port(1, &net, LeaseId(1), 1000) });
    let ask = Wanted { mac_suffix: Some([1, 0, 2]), ..wanted("a") };
    assert_eq!(book.admit(&net, &caller(1000), &ask), Err(Refusal::MacTaken));
    book.set(1, State::Ending(1000, Instant::now()));
    assert_eq!(book.admit(&net, &caller(1000), &ask), Ok(()), "a VM that is started again has its MAC at once");
    book.set(1, State::Leased(Holder { id: LeaseId(1), uid: 1, vm: VmId(1), forwards: vec![] }));
    book.last_address.clear();
    let (address, other) = book.place(&net, None, None).unwrap();
    assert_eq!(address.octets()[3], 2);
    assert_ne!(other, mac, "10.1.0.2 has another MAC than it would have");
}

#[test]
fn a_warm_port_is_for_who_asks_for_its_kind_and_never_in_the_way() {
    let net = network("a", "br-a", "10.1.0.1", 29);
    let mut book = book_of(&net, &[(LeaseId(1), 1000), (LeaseId(2), 1000)]);
    book.set(2, State::Warm);
    let suffix = |p: &Port| [p.mac[3], p.mac[4], p.mac[5]];
    let of_warm = suffix(book.port(2).unwrap());
    assert_eq!(book.warm_for(&net, &wanted("a")), Some(2));
    assert_eq!(book.warm_for(&net, &Wanted { mac_suffix: Some(of_warm), ..wanted("a") }), Some(2));
    for other in [
        Wanted { queues: 2, ..wanted("a") },
        Wanted { offloads: false, ..wanted("a") },
        Wanted { mac_suffix: Some([9; 3]), ..wanted("a") },
    ] {
        assert_eq!(book.warm_for(&net, &other), None);
    }
    assert_eq!(book.place(&net, Some(of_warm), None), Err(Some(2)), "its MAC is wanted");
    for number in 3..=5 {
        let (address, _) = book.place(&net, None, None).unwrap();
        book.insert(Port { address, ..port(number, &net, LeaseId(number.into()), 1000) });
    }
    assert_eq!(book.place(&net, None, None), Err(Some(2)), "its address is the last one");
}

#[test]
fn numbers_go_on_behind_what_is_entered() {
    let net = network("a", "br-a", "10.1.0.1", 24);
    let mut book = book_of(&net, &[(LeaseId(40), 1000)]);
    book.insert(port(7, &net, LeaseId(50), 1000));
    book.remove(7);
    assert_eq!((book.next_port(), book.next_lease()), (8, LeaseId(51)));
}
