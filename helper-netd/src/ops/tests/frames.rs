//! What leaves a port: only ARP and IPv4 from its lease (`table bridge vmsup`).

use super::frame::{Arp, BROADCAST, ICMP, UDP, echo_request, ethernet, flow, ipv4, kind, udp};
use super::{BRIDGE_MAC, Element, GATEWAY, Guest, IfName, Kernel, Mac, Ops};
use super::{counted, in_namespace, load_rules, meet_host, name, next, run};
use crate::ops::BridgeSet;
use std::net::Ipv4Addr;

const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
const STRANGER: Mac = [2, 0, 0, 0, 0, 0x55];

/// The guest under test, and one that sees what passes, on a network that isolates nobody.
fn guests(kernel: &mut Kernel) -> (Guest, Guest) {
    load_rules();
    bridged_packets_are_routed("0");
    let bridge = super::vmsup0(kernel);
    let guest = Guest::new(kernel, 1, bridge, false, Ipv4Addr::new(10, 77, 0, 2));
    let witness = Guest::new(kernel, 2, bridge, false, NEIGHBOUR);
    (guest, witness)
}

/// Where there is br_netfilter, a new namespace has bridged packets pass by the hooks of routed ones, too.
fn bridged_packets_are_routed(value: &str) -> bool {
    std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", value).is_ok()
}

/// What of the guest's arrives at the witness until a good frame, sent last, does.
fn arrivals(guest: &Guest, witness: &Guest) -> Vec<Vec<u8>> {
    let last = Arp::request(guest.mac, guest.address).from(guest.mac);
    guest.send(&last);
    let mut frames = Vec::new();
    // A TAP's reader finds a frame when its sender's write returns: both ends of a bridge are one call.
    while let Some(frame) = next(&witness.tap) {
        if frame[6..12] != BRIDGE_MAC {
            frames.push(frame);
        }
    }
    assert_eq!(frames.pop(), Some(last), "the next good frame passes");
    frames
}

/// Each bad frame, by the counter that it should be in.
fn bad_frames(guest: &Guest) -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let (mac, address) = (guest.mac, guest.address);
    let arp = Arp::request(mac, address);
    let packet = ipv4(address, NEIGHBOUR, UDP, 0, &udp(1000, 2000, b"data"));
    let from = |source| ipv4(source, NEIGHBOUR, UDP, 0, &udp(1000, 2000, b"data"));
    let tagged = |tag: &[u8], kind: u16, rest: &[u8]| [&BROADCAST[..], &mac, tag, &kind.to_be_bytes(), rest].concat();
    let arp_body = &arp.from(mac)[14..];
    let dhcp = udp(67, 68, &[2; 240]);
    let mut broken = packet.clone();
    broken[0] = 0x41;
    vec![
        ("802.1Q", "drop_vlan", tagged(&[0x81, 0, 0, 5], 0x800, &packet)),
        ("802.1Q, priority only", "drop_vlan", tagged(&[0x81, 0, 0xe0, 0], 0x806, arp_body)),
        ("802.1ad", "drop_vlan", tagged(&[0x88, 0xa8, 0, 5], 0x800, &packet)),
        ("two tags", "drop_vlan", tagged(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6], 0x800, &packet)),
        ("802.1Q around nothing", "drop_vlan", tagged(&[0x81, 0, 0, 5], 0x8100, &[0; 20])),
        ("ARP of no Ethernet", "drop_arp_kind", Arp { hardware: 6, ..arp }.from(mac)),
        ("ARP of no IPv4", "drop_arp_kind", Arp { protocol: 0x86dd, ..arp }.from(mac)),
        ("ARP with long MACs", "drop_arp_kind", Arp { lengths: [8, 4], ..arp }.from(mac)),
        ("ARP with long addresses", "drop_arp_kind", Arp { lengths: [6, 16], ..arp }.from(mac)),
        ("RARP's operation", "drop_arp_kind", Arp { operation: 3, ..arp }.from(mac)),
        ("an ARP probe", "drop_arp_probe", Arp { address: Ipv4Addr::UNSPECIFIED, ..arp }.from(mac)),
        ("ARP of a neighbour's address", "drop_arp_sender", Arp { address: NEIGHBOUR, ..arp }.from(mac)),
        ("ARP of the gateway's address", "drop_arp_sender", Arp { address: GATEWAY, operation: 2, ..arp }.from(mac)),
        ("ARP with another's MAC inside", "drop_arp_sender", Arp { mac: STRANGER, ..arp }.from(mac)),
        ("ARP with another's MAC outside", "drop_arp_sender", arp.from(STRANGER)),
        ("ARP cut off", "drop_arp_sender", arp.from(mac)[..14 + 16].to_vec()),
        ("IPv4 of another MAC", "drop_ip_source", ethernet(BROADCAST, STRANGER, 0x800, &packet)),
        ("IPv4 of the bridge's MAC", "drop_ip_source", ethernet(BROADCAST, BRIDGE_MAC, 0x800, &packet)),
        ("IPv4 of a neighbour", "drop_ip_source", ethernet(BROADCAST, mac, 0x800, &from(NEIGHBOUR))),
        ("IPv4 of the gateway", "drop_ip_source", ethernet(BROADCAST, mac, 0x800, &from(GATEWAY))),
        ("IPv4 of nobody", "drop_ip_source", ethernet(BROADCAST, mac, 0x800, &from(Ipv4Addr::UNSPECIFIED))),
        ("IPv4 of a loopback", "drop_ip_source", ethernet(BROADCAST, mac, 0x800, &from(Ipv4Addr::LOCALHOST))),
        ("IPv4 of an outsider", "drop_ip_source", ethernet(BROADCAST, mac, 0x800, &from(Ipv4Addr::new(192, 0, 2, 1)))),
        ("a DHCP answer", "drop_dhcp", ethernet(BROADCAST, mac, 0x800, &ipv4(address, NEIGHBOUR, UDP, 0, &dhcp))),
        (
            "the first fragment of a DHCP answer",
            "drop_dhcp",
            ethernet(BROADCAST, mac, 0x800, &ipv4(address, NEIGHBOUR, UDP, 0x2000, &dhcp[..8])),
        ),
        ("IPv6", "drop_ipv6", ethernet(BROADCAST, mac, 0x86dd, &[0x60; 60])),
        ("a router advertisement's address", "drop_ipv6", ethernet([0x33, 0x33, 0, 0, 0, 1], mac, 0x86dd, &[0x60; 60])),
        ("a length instead of a type", "drop_other", ethernet(BROADCAST, mac, 38, &[0x42; 38])),
        ("a spanning tree's", "drop_link_local", ethernet([1, 0x80, 0xc2, 0, 0, 0], mac, 38, &[0x42; 38])),
        ("LLDP to all", "drop_other", ethernet(BROADCAST, mac, 0x88cc, &[0; 46])),
        ("PPPoE", "drop_other", ethernet(BROADCAST, mac, 0x8863, &[0; 46])),
        ("IPv4 cut off", "drop_other", ethernet(BROADCAST, mac, 0x800, &packet[..12])),
        ("IPv4, to the link alone", "drop_link_local", ethernet([1, 0x80, 0xc2, 0, 0, 2], mac, 0x800, &packet)),
        ("LLDP", "drop_link_local", ethernet([1, 0x80, 0xc2, 0, 0, 0xe], mac, 0x88cc, &[0; 46])),
    ]
}

#[test]
fn a_bad_frame_is_dropped_for_its_reason_and_the_next_good_one_passes() {
    in_namespace("a_bad_frame_is_dropped_for_its_reason_and_the_next_good_one_passes", |mut kernel| {
        let (guest, witness) = guests(&mut kernel);
        for (what, counter, frame) in bad_frames(&guest) {
            let before = counted("bridge", counter);
            guest.send(&frame);
            assert_eq!(arrivals(&guest, &witness), Vec::<Vec<u8>>::new(), "{what} passed");
            assert_eq!(counted("bridge", counter), before + 1, "{what}: {counter}");
        }
    });
}

#[test]
fn a_frame_of_no_length_or_without_a_whole_header_harms_nobody() {
    in_namespace("a_frame_of_no_length_or_without_a_whole_header_harms_nobody", |mut kernel| {
        let (guest, witness) = guests(&mut kernel);
        for length in 0..14 {
            let packet = vec![0; 12 + length];
            assert!(rustix::io::write(&guest.tap, &packet).is_err(), "{length}");
        }
        // A header that asks for segments of no bytes, of a protocol that there is none of.
        let good = ethernet(witness.mac, guest.mac, 0x800, &ipv4(guest.address, NEIGHBOUR, UDP, 0, &udp(1, 2, b"x")));
        let bad_header = [&[1, 0x7f, 0xff, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0], &good[..]].concat();
        assert!(rustix::io::write(&guest.tap, &bad_header).is_err());
        assert_eq!(arrivals(&guest, &witness), Vec::<Vec<u8>>::new());
    });
}

#[test]
fn good_frames_pass_unchanged() {
    in_namespace("good_frames_pass_unchanged", |mut kernel| {
        let (guest, witness) = guests(&mut kernel);
        let packet = |fragment, payload: &[u8]| {
            ethernet(witness.mac, guest.mac, 0x800, &ipv4(guest.address, NEIGHBOUR, UDP, fragment, payload))
        };
        // The later fragment begins with what would be the port of a DHCP server.
        let good = [
            packet(0, &udp(68, 67, b"discover")),
            packet(0x2000, &udp(1000, 2000, &[1; 16])),
            packet(1, &udp(67, 68, b"no port")),
            Arp { operation: 2, ..Arp::request(guest.mac, guest.address) }.from(guest.mac),
        ];
        for frame in &good {
            guest.send(frame);
        }
        assert_eq!(arrivals(&guest, &witness), good);
    });
}

#[test]
fn without_its_lease_a_port_passes_nothing_and_another_ports_lease_is_no_help() {
    in_namespace("without_its_lease_a_port_passes_nothing_and_another_ports_lease_is_no_help", |mut kernel| {
        let (guest, witness) = guests(&mut kernel);
        let arp = Arp::request(guest.mac, guest.address).from(guest.mac);
        kernel.change(&[], &[guest.lease()]).unwrap();
        guest.send(&arp);
        let port = IfName::port(3);
        kernel.change(&[Element::Lease { port, mac: guest.mac, address: guest.address }], &[]).unwrap();
        guest.send(&arp);
        assert_eq!(counted("bridge", "drop_arp_sender"), 2);
        kernel.change(&[guest.lease()], &[]).unwrap();
        assert_eq!(arrivals(&guest, &witness), Vec::<Vec<u8>>::new());
    });
}

#[test]
fn isolated_guests_do_not_see_each_other_and_both_see_the_host() {
    in_namespace("isolated_guests_do_not_see_each_other_and_both_see_the_host", |mut kernel| {
        load_rules();
        let bridge = super::vmsup0(&mut kernel);
        let guests = [2, 3].map(|n| Guest::new(&mut kernel, n, bridge, true, Ipv4Addr::new(10, 77, 0, n as u8)));
        let data = ipv4(guests[0].address, guests[1].address, UDP, 0, &udp(1, 2, b"hello"));
        guests[0].send(&ethernet(guests[1].mac, guests[0].mac, 0x800, &data));
        guests[0].send(&ethernet(BROADCAST, guests[0].mac, 0x800, &data));
        for guest in &guests {
            assert!(std::iter::from_fn(|| next(&guest.tap)).all(|frame| flow(&frame).is_none()));
            meet_host(guest, GATEWAY);
        }
    });
}

#[test]
fn a_port_without_a_bridge_reaches_nothing_of_the_host() {
    in_namespace("a_port_without_a_bridge_reaches_nothing_of_the_host", |mut kernel| {
        let (guest, _witness) = guests(&mut kernel);
        meet_host(&guest, GATEWAY);
        kernel.change(&[Element::Bridge(BridgeSet::Bridges, name("vmsup0"))], &[]).unwrap();
        let ping = ipv4(guest.address, GATEWAY, ICMP, 0, &echo_request());
        guest.send(&ethernet(BRIDGE_MAC, guest.mac, 0x800, &ping));
        guest.expect("an echo reply", |frame| kind(frame) == 0x800 && frame[23] == ICMP && frame[34] == 0);
        run("ip link del vmsup0");
        run("ip addr add 10.77.0.1/24 dev lo");
        let own = kernel.links().unwrap().into_iter().find(|link| link.name == guest.port).unwrap().mac;
        guest.send(&ethernet(own, guest.mac, 0x800, &ping));
        assert_eq!(counted("inet", "drop_port"), 1);
    });
}

#[test]
fn with_br_netfilter_a_network_that_isolates_nobody_passes_where_its_bridge_reaches_itself() {
    let test = "with_br_netfilter_a_network_that_isolates_nobody_passes_where_its_bridge_reaches_itself";
    in_namespace(test, move |mut kernel| {
        let (guest, witness) = guests(&mut kernel);
        if !bridged_packets_are_routed("1") {
            return println!("SKIPPED {test}: no br_netfilter");
        }
        let bridge = name("vmsup0");
        kernel.change(&[Element::Bridge(BridgeSet::Bridges, bridge)], &[]).unwrap();
        let data = ipv4(guest.address, NEIGHBOUR, UDP, 0, &udp(1, 2, b"hello"));
        let frame = ethernet(witness.mac, guest.mac, 0x800, &data);
        guest.send(&frame);
        assert_eq!(arrivals(&guest, &witness), Vec::<Vec<u8>>::new());
        assert_eq!(counted("inet", "drop_reach"), 1);
        kernel.change(&[Element::Reach { from: bridge, to: bridge }], &[]).unwrap();
        guest.send(&frame);
        assert_eq!(arrivals(&guest, &witness).len(), 1);
    });
}

#[test]
fn no_frame_reaches_the_host_past_the_bridge() {
    in_namespace("no_frame_reaches_the_host_past_the_bridge", |mut kernel| {
        let (guest, witness) = guests(&mut kernel);
        meet_host(&guest, GATEWAY);
        while next(&witness.tap).is_some() {}
        let ping = ipv4(guest.address, GATEWAY, ICMP, 0, &echo_request());
        let server = std::net::UdpSocket::bind((GATEWAY, 5353)).unwrap();
        server.set_nonblocking(true).unwrap();
        let datagram = ipv4(Ipv4Addr::new(192, 0, 2, 1), GATEWAY, UDP, 0, &udp(1000, 5353, b"spoofed"));
        for last in 0..16 {
            let group = [1, 0x80, 0xc2, 0, 0, last];
            guest.send(&ethernet(group, STRANGER, 0x800, &datagram));
            guest.send(&ethernet(group, guest.mac, 0x800, &ping));
            let mut arp = Arp::request(STRANGER, guest.address).from(STRANGER);
            arp[..6].copy_from_slice(&group);
            guest.send(&arp);
            assert_eq!(arrivals(&guest, &witness), Vec::<Vec<u8>>::new(), "{last:x}");
            let answers = std::iter::from_fn(|| next(&guest.tap)).filter(|frame| frame[..6] != BROADCAST).count();
            assert_eq!(answers, 1, "{last:x}: the good frame's answer is the only one");
            assert!(server.recv(&mut [0; 9]).is_err(), "{last:x}");
        }
        // All but 01, which no bridge passes on.
        assert_eq!(counted("bridge", "drop_link_local"), 15 * 3);
    });
}
