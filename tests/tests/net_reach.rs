//! Whom a guest reaches, and who reaches it. The guest's end is the test's.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use vmsup_tests::frames::{self, ARP, IPV4, Mac, TCP, UDP};
use vmsup_tests::netd::{ELSEWHERE, METADATA, NetHost, SERVER, UPLINK, default_network, tenant};
use vmsup_tests::netns::heard;
use vmsup_tests::wire::Wire;
use vmsup_tests::{as_root, eventually, user};

/// Waits for one datagram.
fn hear(what: &str, socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut first = None;
    eventually(what, || {
        first = first.take().or_else(|| heard(socket).into_iter().next());
        first.is_some()
    });
    first.unwrap()
}

/// A MAC as ip(8) writes it.
fn shown(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[test]
fn isolated_guests_do_not_reach_each_other_on_any_way() {
    if !as_root("isolated_guests_do_not_reach_each_other_on_any_way") {
        return;
    }
    for isolated in [true, false] {
        let (host, client) = NetHost::with_default(&format!("isolated = {isolated}"));
        let (a, b) = (client.lease("default", 1).unwrap(), client.lease("default", 2).unwrap());
        let router = host.mac("vmsup0");
        assert!(a.passes() && b.passes());
        b.received();
        let data = frames::udp(5000, 5000, b"hello");
        let direct = frames::ethernet(
            b.lease.mac,
            a.lease.mac,
            IPV4,
            &frames::ipv4(a.lease.address, b.lease.address, UDP, &data),
        );
        a.send(&frames::who_has(a.own(), b.lease.address)).unwrap();
        a.send(&direct).unwrap();
        // What follows the same way, from the host, and always comes.
        host.inside.feed(
            &["ip", "neigh", "replace", &b.lease.address.to_string(), "lladdr", &shown(b.lease.mac), "dev", "vmsup0"],
            "",
        );
        let last = host.inside.udp(b.lease.gateway, 7);
        last.send_to(b"last", (b.lease.address, 7)).unwrap();
        let mut got = Vec::new();
        eventually("the last frame", || {
            got.extend(b.received());
            got.iter().any(|f| f.ends_with(b"last"))
        });
        let asked = got.iter().any(|f| frames::kind(f) == ARP && f[6..12] == a.lease.mac);
        let reached = got.iter().any(|f| f.ends_with(b"hello"));
        assert_eq!((asked, reached), (!isolated, !isolated), "isolated = {isolated}: {got:?}");
        if isolated {
            // By way of the host, too; it knows where the other is.
            b.answering(|seen| {
                host.inside.ping(b.lease.address, 0);
                seen.lock().unwrap().clear();
                a.send(&a.packet(router, b.lease.address, UDP, &data)).unwrap();
                // What follows on the same way: once it is there, the packet is not to come any more.
                assert!(host.inside.ping(b.lease.address, 8));
                let crossed = |f: &Vec<u8>| frames::parse_ipv4(f).is_some_and(|p| p.from == a.lease.address);
                assert!(!seen.lock().unwrap().iter().any(crossed), "through the host");
            });
        }
    }
}

/// Two networks of the same tenant; `more` for the first.
fn two_networks(more: &str) -> (NetHost, Wire, Wire) {
    let name = user::with_subuids().name;
    let host = NetHost::start(&format!(
        "{}\n[[network]]\nname = \"other\"\nbridge = \"vmsup1\"\nsubnet = \"10.78.0.1/24\"\nusers = [\"{name}\"]\npool = 0\n",
        default_network(&format!("pool = 0\n{more}"))
    ));
    let client = host.client(tenant());
    let (a, b) = (client.lease("default", 1).unwrap(), client.lease("other", 2).unwrap());
    (host, a, b)
}

#[test]
fn guests_of_two_networks_reach_each_other_only_where_it_is_said() {
    if !as_root("guests_of_two_networks_reach_each_other_only_where_it_is_said") {
        return;
    }
    for (more, there) in [("", false), ("reach = [\"other\"]", true)] {
        let (host, a, b) = two_networks(more);
        let data = frames::udp(5000, 5000, b"hello");
        let (router_a, router_b) = (host.mac("vmsup0"), host.mac("vmsup1"));
        let from = |f: &Vec<u8>, whom: &Wire| frames::parse_ipv4(f).is_some_and(|p| p.from == whom.lease.address);
        b.answering(|seen| {
            assert!(host.inside.ping(b.lease.address, 0));
            a.send(&a.packet(router_a, b.lease.address, UDP, &data)).unwrap();
            assert!(host.inside.ping(b.lease.address, 8));
            assert_eq!(seen.lock().unwrap().iter().any(|f| from(f, &a)), there, "{more}");
        });
        // Reaching is not being reached.
        a.answering(|seen| {
            assert!(host.inside.ping(a.lease.address, 0));
            b.send(&b.packet(router_b, a.lease.address, UDP, &frames::udp(6000, 6000, b"first"))).unwrap();
            assert!(host.inside.ping(a.lease.address, 8));
            let unasked = |f: &Vec<u8>| {
                frames::parse_ipv4(f).is_some_and(|p| {
                    p.from == b.lease.address && frames::parse_udp(&p.payload).is_some_and(|u| u.2 == b"first")
                })
            };
            assert!(!seen.lock().unwrap().iter().any(unasked), "{more}");
        });
    }
}

#[test]
fn a_guest_reaches_the_hosts_services_only_where_it_is_said() {
    if !as_root("a_guest_reaches_the_hosts_services_only_where_it_is_said") {
        return;
    }
    for open in [false, true] {
        let (host, client) = NetHost::with_default(&format!("host = {open}"));
        let wire = client.lease("default", 1).unwrap();
        let router = host.mac("vmsup0");
        let addresses = [wire.lease.gateway, UPLINK, ELSEWHERE];
        let services = addresses.map(|address| host.inside.udp(address, 5353));
        for (address, service) in addresses.iter().zip(&services) {
            wire.send(&wire.packet(router, *address, UDP, &frames::udp(5000, 5353, b"knock"))).unwrap();
            assert_eq!(heard(service).len(), usize::from(open), "{address}, host = {open}");
            let tcp = frames::tcp((wire.lease.address, *address), (5000, 22), 1, 0, 2);
            wire.received();
            wire.answering(|seen| {
                wire.send(&wire.packet(router, *address, TCP, &tcp)).unwrap();
                host.inside.ping(wire.lease.address, 0);
                // Nobody listens there: an open host says so by a reset.
                let answered =
                    |f: &Vec<u8>| frames::parse_ipv4(f).is_some_and(|p| p.protocol == TCP && p.from == *address);
                assert_eq!(seen.lock().unwrap().iter().any(answered), open, "{address}, host = {open}");
            });
        }
        // Whatever is said: loopback is the host's own.
        let own = host.inside.udp(Ipv4Addr::LOCALHOST, 5353);
        wire.send(&wire.packet(router, Ipv4Addr::LOCALHOST, UDP, &frames::udp(5000, 5353, b"knock"))).unwrap();
        assert_eq!(heard(&own), [], "host = {open}");
        assert!(wire.passes());
    }
}

#[test]
fn link_local_metadata_is_out_of_reach_unless_it_is_said() {
    if !as_root("link_local_metadata_is_out_of_reach_unless_it_is_said") {
        return;
    }
    for open in [false, true] {
        let (host, client) = NetHost::with_default(&format!("metadata = {open}"));
        let wire = client.lease("default", 1).unwrap();
        let router = host.mac("vmsup0");
        // Where a cloud has it: behind the host.
        host.outside.ip(&format!("address add {METADATA}/32 dev out0"));
        host.inside.ip(&format!("route add {METADATA}/32 via {SERVER}"));
        let (secrets, server) = (host.outside.udp(METADATA, 80), host.outside.udp(SERVER, 80));
        wire.answering(|_| {
            wire.send(&wire.packet(router, METADATA, UDP, &frames::udp(5000, 80, b"token"))).unwrap();
            wire.send(&wire.packet(router, SERVER, UDP, &frames::udp(5000, 80, b"page"))).unwrap();
            hear("the packet to the server", &server);
        });
        assert_eq!(heard(&secrets).len(), usize::from(open), "metadata = {open}");
    }
    // Nor where it is an address of the host's.
    let (host, client) = NetHost::with_default("host = true");
    let wire = client.lease("default", 1).unwrap();
    host.inside.ip(&format!("address add {METADATA}/32 dev lo"));
    let secrets = host.inside.udp(METADATA, 80);
    wire.send(&wire.packet(host.mac("vmsup0"), METADATA, UDP, &frames::udp(5000, 80, b"token"))).unwrap();
    assert_eq!(heard(&secrets), []);
}

#[test]
fn guests_go_out_with_the_hosts_address_and_get_their_answers() {
    if !as_root("guests_go_out_with_the_hosts_address_and_get_their_answers") {
        return;
    }
    let (host, client) = NetHost::with_default("");
    let wire = client.lease("default", 1).unwrap();
    let server = host.outside.udp(SERVER, 53);
    wire.answering(|seen| {
        let query = frames::udp(5000, 53, b"question");
        wire.send(&wire.packet(host.mac("vmsup0"), SERVER, UDP, &query)).unwrap();
        let (data, from) = hear("the question", &server);
        assert_eq!((&data[..], from.ip()), (&b"question"[..], UPLINK.into()));
        server.send_to(b"answer", from).unwrap();
        eventually("the answer", || {
            seen.lock().unwrap().iter().filter_map(|f| frames::parse_ipv4(f)).any(|p| {
                p.from == SERVER
                    && frames::parse_udp(&p.payload).is_some_and(|(f, t, d)| (f, t, d) == (53, 5000, b"answer"))
            })
        });
        // Nobody comes in that was not asked, even who knows the way.
        host.outside.ip(&format!("route add 10.77.0.0/24 via {UPLINK}"));
        assert!(!host.outside.ping(wire.lease.address, 0));
    });
}

#[test]
fn guests_of_a_routed_network_go_out_as_themselves_and_are_reached() {
    if !as_root("guests_of_a_routed_network_go_out_as_themselves_and_are_reached") {
        return;
    }
    let (host, client) = NetHost::with_default("nat = false");
    let wire = client.lease("default", 1).unwrap();
    host.outside.ip(&format!("route add 10.77.0.0/24 via {UPLINK}"));
    let server = host.outside.udp(SERVER, 53);
    wire.answering(|_| {
        wire.send(&wire.packet(host.mac("vmsup0"), SERVER, UDP, &frames::udp(5000, 53, b"question"))).unwrap();
        assert_eq!(hear("the question", &server).1.ip(), wire.lease.address);
        assert!(host.outside.ping(wire.lease.address, 1472));
    });
}

#[test]
fn a_large_packet_of_the_mtus_size_passes_both_ways() {
    if !as_root("a_large_packet_of_the_mtus_size_passes_both_ways") {
        return;
    }
    let (host, client) = NetHost::with_default("");
    let wire = client.lease("default", 1).unwrap();
    wire.answering(|_| {
        for bytes in [0, 56, 1472] {
            assert!(host.inside.ping(wire.lease.address, bytes), "{bytes}");
        }
    });
}
