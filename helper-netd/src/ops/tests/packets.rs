//! What is routed: to the host, to other networks, to the outside and back (`table inet vmsup`).

use super::frame::{ICMP, UDP, echo_request, ethernet, flow, ipv4, kind, udp};
use super::{BRIDGE_MAC, Bridge, Element, GATEWAY, Guest, IfName, Kernel, Mac, Ops};
use super::{bridge, counted, expect, in_namespace, load_rules, name, next, run, send};
use crate::ops::BridgeSet::{self, Bridges, Host, Metadata, Nat, Routed};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;

const OUTSIDER_MAC: Mac = [2, 0, 0, 0, 0, 9];
const OUTSIDER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const TCP: u8 = 6;

/// A host with a way out (`out0`, whose other end is `outside`) and two networks, `vmsup0` with two isolated guests and
/// `vmsup1` with one.
struct World {
    kernel: Kernel,
    outside: OwnedFd,
    outside_mac: Mac,
    guests: [Guest; 3],
}

impl World {
    fn new(mut kernel: Kernel) -> World {
        load_rules();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let mut out = kernel.create_tap(name("out0"), 1, false).unwrap();
        run("ip addr add 192.0.2.1/24 dev out0");
        run("ip link set out0 up");
        run("ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev out0 nud permanent");
        run("ip route add default via 192.0.2.9");
        let first = kernel.ensure_bridge(&Bridge { mac: BRIDGE_MAC, ..bridge("vmsup0", GATEWAY) }).unwrap();
        let second = kernel.ensure_bridge(&bridge("vmsup1", Ipv4Addr::new(10, 78, 0, 1))).unwrap();
        let guests = [(1, first, [10, 77, 0, 2]), (2, first, [10, 77, 0, 3]), (3, second, [10, 78, 0, 2])]
            .map(|(number, bridge, address)| Guest::new(&mut kernel, number, bridge, true, address.into()));
        for (guest, device) in guests.iter().zip(["vmsup0", "vmsup0", "vmsup1"]) {
            let mac = guest.mac.map(|byte| format!("{byte:02x}")).join(":");
            run(&format!("ip neigh add {} lladdr {mac} dev {device} nud permanent", guest.address));
        }
        for guest in &guests {
            let [a, b, c, _] = guest.address.octets();
            super::meet_host(guest, Ipv4Addr::new(a, b, c, 1));
        }
        let mut world = World { kernel, outside: out.queues.remove(0), outside_mac: out.mac, guests };
        world.allow(&[(Bridges, "vmsup0"), (Bridges, "vmsup1")]);
        world
    }

    fn allow(&mut self, sets: &[(BridgeSet, &str)]) {
        let elements: Vec<Element> = sets.iter().map(|(set, bridge)| Element::Bridge(*set, name(bridge))).collect();
        self.kernel.change(&elements, &[]).unwrap();
    }

    fn add(&mut self, element: Element) {
        self.kernel.change(&[element], &[]).unwrap();
    }

    /// Sends a datagram from a guest by way of its gateway.
    fn guest_sends(&self, guest: usize, from_port: u16, to: Ipv4Addr, port: u16) {
        let guest = &self.guests[guest];
        let gateway = if guest.address.octets()[1] == 77 { BRIDGE_MAC } else { [2, 0x76, 0x6d, 0xff, 0, 78] };
        let packet = ipv4(guest.address, to, UDP, 0, &udp(from_port, port, b"data"));
        guest.send(&ethernet(gateway, guest.mac, 0x800, &packet));
    }

    fn outsider_sends(&self, from_port: u16, to: Ipv4Addr, port: u16) {
        let packet = ipv4(OUTSIDER, to, UDP, 0, &udp(from_port, port, b"data"));
        send(&self.outside, &ethernet(self.outside_mac, OUTSIDER_MAC, 0x800, &packet));
    }

    /// The flows of all datagrams that came out since the last look.
    fn at_outside(&self) -> Vec<(Ipv4Addr, u16, Ipv4Addr, u16)> {
        flows(&self.outside)
    }

    fn at_guest(&self, guest: usize) -> Vec<(Ipv4Addr, u16, Ipv4Addr, u16)> {
        flows(&self.guests[guest].tap)
    }

    /// That so many packets more than before are counted for the reason when the closure is through, and nothing comes out
    /// anywhere.
    fn drops(&self, counter: &str, what: &str, act: impl FnOnce(&World)) {
        let before = counted("inet", counter);
        act(self);
        assert_eq!(counted("inet", counter), before + 1, "{what}: {counter}");
        assert_eq!(self.at_outside(), [], "{what}");
        for guest in 0..3 {
            assert_eq!(self.at_guest(guest), [], "{what}");
        }
    }
}

fn flows(tap: &OwnedFd) -> Vec<(Ipv4Addr, u16, Ipv4Addr, u16)> {
    std::iter::from_fn(|| next(tap)).filter_map(|frame| flow(&frame)).collect()
}

#[test]
fn guests_go_out_with_the_hosts_address_where_there_is_nat_and_answers_come_back() {
    in_namespace("guests_go_out_with_the_hosts_address_where_there_is_nat_and_answers_come_back", |kernel| {
        let mut world = World::new(kernel);
        let guest = world.guests[0].address;
        world.guest_sends(0, 1000, OUTSIDER, 53);
        assert_eq!(world.at_outside(), [(guest, 1000, OUTSIDER, 53)], "routed as it is");
        world.allow(&[(Nat, "vmsup0")]);
        world.guest_sends(0, 1001, OUTSIDER, 53);
        assert_eq!(world.at_outside(), [(HOST, 1001, OUTSIDER, 53)]);
        world.outsider_sends(53, HOST, 1001);
        assert_eq!(world.at_guest(0), [(OUTSIDER, 53, guest, 1001)]);
    });
}

#[test]
fn outsiders_reach_guests_by_forwards_only_unless_the_network_is_routed() {
    in_namespace("outsiders_reach_guests_by_forwards_only_unless_the_network_is_routed", |kernel| {
        let mut world = World::new(kernel);
        let (guest, other) = (world.guests[0].address, world.guests[2].address);
        world.drops("drop_inbound", "by its own address", |world| world.outsider_sends(1000, guest, 80));
        world.add(Element::Forward { protocol: UDP, host: 8080, address: guest, guest: 80 });
        world.add(Element::Forward { protocol: TCP, host: 9090, address: guest, guest: 80 });
        world.outsider_sends(1001, HOST, 8080);
        assert_eq!(world.at_guest(0), [(OUTSIDER, 1001, guest, 80)]);
        world.guest_sends(0, 80, OUTSIDER, 1001);
        assert_eq!(world.at_outside(), [(HOST, 8080, OUTSIDER, 1001)], "the answer is the host's");
        world.outsider_sends(1002, HOST, 9090);
        world.outsider_sends(1003, HOST, 8081);
        world.outsider_sends(1003, Ipv4Addr::LOCALHOST, 8080);
        assert_eq!(world.at_guest(0), [], "another protocol, another port, a loopback's address from outside");
        world.allow(&[(Routed, "vmsup1")]);
        world.outsider_sends(1004, other, 80);
        assert_eq!(world.at_guest(2), [(OUTSIDER, 1004, other, 80)]);
        world.drops("drop_inbound", "another network", |world| world.outsider_sends(1005, guest, 80));
    });
}

#[test]
fn guests_do_not_reach_the_host_but_to_ping_their_gateway() {
    in_namespace("guests_do_not_reach_the_host_but_to_ping_their_gateway", |kernel| {
        let mut world = World::new(kernel);
        let other_gateway = Ipv4Addr::new(10, 78, 0, 1);
        let server = UdpSocket::bind("0.0.0.0:5353").unwrap();
        server.set_nonblocking(true).unwrap();
        for address in [GATEWAY, HOST, other_gateway, Ipv4Addr::new(10, 77, 0, 255), Ipv4Addr::BROADCAST] {
            world.drops("drop_host", &address.to_string(), |world| world.guest_sends(0, 1000, address, 5353));
        }
        let pings = |world: &World, to| {
            let guest = &world.guests[0];
            guest.send(&ethernet(BRIDGE_MAC, guest.mac, 0x800, &ipv4(guest.address, to, ICMP, 0, &echo_request())));
        };
        let reply = |frame: &[u8]| kind(frame) == 0x800 && frame[23] == ICMP && frame[34] == 0;
        pings(&world, GATEWAY);
        world.guests[0].expect("the gateway's reply", reply);
        for address in [HOST, other_gateway] {
            world.drops("drop_host", "ping", |world| pings(world, address));
        }
        assert!(server.recv(&mut [0; 9]).is_err(), "nothing came");
        // Of its own accord the host may speak to a guest, and is answered.
        server.send_to(b"hello", (world.guests[0].address, 7)).unwrap();
        world.guests[0].expect("the host's datagram", |frame| flow(frame).is_some());
        world.guest_sends(0, 7, GATEWAY, 5353);
        assert_eq!(server.recv(&mut [0; 9]).unwrap(), 4);
        world.allow(&[(Host, "vmsup1")]);
        world.guest_sends(2, 1000, other_gateway, 5353);
        assert_eq!(server.recv(&mut [0; 9]).unwrap(), 4);
        world.drops("drop_host", "the network without", |world| world.guest_sends(0, 1000, HOST, 5353));
    });
}

#[test]
fn a_guest_never_reaches_the_hosts_loopback() {
    in_namespace("a_guest_never_reaches_the_hosts_loopback", |kernel| {
        let mut world = World::new(kernel);
        world.kernel.ensure_bridge(&Bridge { mac: BRIDGE_MAC, localhost: true, ..bridge("vmsup0", GATEWAY) }).unwrap();
        world.allow(&[(Host, "vmsup0"), (Metadata, "vmsup0")]);
        world.add(Element::Localhost { protocol: UDP, host: 5353 });
        let server = UdpSocket::bind("127.0.0.1:5353").unwrap();
        server.set_nonblocking(true).unwrap();
        for address in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 9, 9, 9)] {
            world.drops("drop_loopback", "CVE-2020-8558", |world| world.guest_sends(0, 1000, address, 5353));
        }
        assert!(server.recv(&mut [0; 9]).is_err());
    });
}

#[test]
fn link_local_addresses_are_unreachable_unless_the_network_says_so() {
    in_namespace("link_local_addresses_are_unreachable_unless_the_network_says_so", |kernel| {
        let mut world = World::new(kernel);
        let own = Ipv4Addr::new(169, 254, 1, 1);
        run("ip addr add 169.254.1.1/32 dev lo");
        let server = UdpSocket::bind("169.254.1.1:80").unwrap();
        server.set_nonblocking(true).unwrap();
        world.allow(&[(Host, "vmsup0"), (Nat, "vmsup0"), (Nat, "vmsup1"), (Metadata, "vmsup1")]);
        for address in [METADATA, own] {
            world.drops("drop_metadata", &address.to_string(), |world| world.guest_sends(0, 1000, address, 80));
        }
        assert!(server.recv(&mut [0; 9]).is_err());
        world.guest_sends(2, 1000, METADATA, 80);
        assert_eq!(world.at_outside(), [(HOST, 1000, METADATA, 80)]);
        world.guest_sends(2, 1000, own, 80);
        assert_eq!(server.recv(&mut [0; 9]).unwrap(), 4);
    });
}

#[test]
fn networks_reach_each_other_only_where_and_whither_it_is_said() {
    in_namespace("networks_reach_each_other_only_where_and_whither_it_is_said", |kernel| {
        let mut world = World::new(kernel);
        world.allow(&[(Nat, "vmsup0"), (Nat, "vmsup1"), (Routed, "vmsup1"), (Host, "vmsup0")]);
        let [a, neighbour, b] = [0, 1, 2].map(|n| world.guests[n].address);
        world.drops("drop_reach", "another network", |world| world.guest_sends(0, 1000, b, 80));
        world.drops("drop_reach", "an isolated neighbour, by way of the host", |world| {
            world.guest_sends(0, 1000, neighbour, 80);
        });
        // Neither by another's forward: the host's port is the host's to a guest.
        world.add(Element::Forward { protocol: UDP, host: 8080, address: b, guest: 80 });
        let server = UdpSocket::bind((HOST, 8080)).unwrap();
        server.set_nonblocking(true).unwrap();
        world.guest_sends(0, 1000, HOST, 8080);
        assert_eq!((world.at_guest(2), server.recv(&mut [0; 9]).unwrap()), (vec![], 4));
        world.add(Element::Reach { from: name("vmsup0"), to: name("vmsup1") });
        world.guest_sends(0, 1001, b, 80);
        assert_eq!(world.at_guest(2), [(a, 1001, b, 80)], "with its own address");
        world.guest_sends(2, 80, a, 1001);
        assert_eq!(world.at_guest(0), [(b, 80, a, 1001)], "an answer");
        world.drops("drop_reach", "the other way round", |world| world.guest_sends(2, 1000, a, 80));
        world.add(Element::Reach { from: name("vmsup0"), to: name("vmsup0") });
        world.guest_sends(0, 1002, neighbour, 80);
        assert_eq!(world.at_guest(1), [(a, 1002, neighbour, 80)]);
    });
}

#[test]
fn forwards_hold_for_localhost_only_where_it_is_said() {
    in_namespace("forwards_hold_for_localhost_only_where_it_is_said", |kernel| {
        let mut world = World::new(kernel);
        let guest = world.guests[0].address;
        let [client, server] = ["127.0.0.1:0", "127.0.0.1:8080"].map(|address| UdpSocket::bind(address).unwrap());
        for socket in [&client, &server] {
            socket.set_nonblocking(true).unwrap();
        }
        world.add(Element::Forward { protocol: UDP, host: 8080, address: guest, guest: 80 });
        client.send_to(b"local", "127.0.0.1:8080").unwrap();
        assert_eq!((server.recv(&mut [0; 9]).unwrap(), world.at_guest(0).len()), (5, 0), "the loopback is the host's");
        // The host's other addresses lead to the guest for the host's own programs, too.
        UdpSocket::bind((HOST, 4000)).unwrap().send_to(b"own", (HOST, 8080)).unwrap();
        assert_eq!(world.at_guest(0), [(HOST, 4000, guest, 80)]);
        world.kernel.ensure_bridge(&Bridge { mac: BRIDGE_MAC, localhost: true, ..bridge("vmsup0", GATEWAY) }).unwrap();
        world.add(Element::Localhost { protocol: UDP, host: 8080 });
        let client = UdpSocket::bind("127.0.0.1:4001").unwrap();
        client.set_nonblocking(true).unwrap();
        client.send_to(b"local", "127.0.0.1:8080").unwrap();
        assert_eq!(world.at_guest(0), [(GATEWAY, 4001, guest, 80)]);
        world.guest_sends(0, 80, GATEWAY, 4001);
        let (bytes, from) = client.recv_from(&mut [0; 9]).unwrap();
        assert_eq!((bytes, from.to_string().as_str()), (4, "127.0.0.1:8080"));
    });
}

#[test]
fn what_touches_no_bridge_of_ours_is_left_alone() {
    in_namespace("what_touches_no_bridge_of_ours_is_left_alone", |kernel| {
        let mut world = World::new(kernel);
        let tap = world.kernel.create_tap(name("other0"), 1, false).unwrap();
        run("ip addr add 198.51.100.1/24 dev other0");
        run("ip link set other0 up");
        run("ip neigh add 198.51.100.9 lladdr 02:00:00:00:00:08 dev other0 nud permanent");
        let other = Ipv4Addr::new(198, 51, 100, 9);
        world.outsider_sends(1000, other, 80);
        expect(&tap.queues[0], "what is forwarded", |frame| flow(frame) == Some((OUTSIDER, 1000, other, 80)));
        let server = UdpSocket::bind((HOST, 5353)).unwrap();
        world.outsider_sends(1000, HOST, 5353);
        assert_eq!(server.recv(&mut [0; 9]).unwrap(), 4);
        assert_eq!(IfName::new("other0").unwrap().port_number(), None);
    });
}

#[test]
fn what_belongs_to_no_connection_and_could_begin_none_is_dropped() {
    in_namespace("what_belongs_to_no_connection_and_could_begin_none_is_dropped", |kernel| {
        let mut world = World::new(kernel);
        world.allow(&[(Host, "vmsup0"), (Routed, "vmsup0")]);
        // TCP without any flag.
        let nothing = [&[0, 1, 0, 2][..], &[0; 8], &[0x50, 0, 0, 0, 0, 0, 0, 0]].concat();
        let guest = &world.guests[0];
        for to in [GATEWAY, OUTSIDER] {
            world.drops("drop_invalid", "from a guest", |_| {
                guest.send(&ethernet(BRIDGE_MAC, guest.mac, 0x800, &ipv4(guest.address, to, TCP, 0, &nothing)));
            });
        }
        world.drops("drop_invalid", "to a guest", |world| {
            let packet = ipv4(OUTSIDER, guest.address, TCP, 0, &nothing);
            send(&world.outside, &ethernet(world.outside_mac, OUTSIDER_MAC, 0x800, &packet));
        });
    });
}

#[test]
fn ipv6_that_got_past_the_bridge_does_not_get_to_the_host() {
    in_namespace("ipv6_that_got_past_the_bridge_does_not_get_to_the_host", |kernel| {
        let mut world = World::new(kernel);
        world.allow(&[(Host, "vmsup0")]);
        super::nft("flush chain bridge vmsup guest; add rule bridge vmsup guest accept");
        // To all nodes of the link, from a link-local address; the packet has no payload.
        let addresses = [0xfe80u128 << 112 | 2, 0xff02 << 112 | 1].map(u128::to_be_bytes).concat();
        let packet = [&[0x60, 0, 0, 0, 0, 0, 59, 255][..], &addresses].concat();
        let guest = &world.guests[0];
        world.drops("drop_ipv6", "to all nodes", |_| {
            guest.send(&ethernet([0x33, 0x33, 0, 0, 0, 1], guest.mac, 0x86dd, &packet));
        });
    });
}

/// What connection tracking has, one line a flow, without what changes by itself.
fn tracked() -> Vec<String> {
    let listed = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
    let lasting = |word: &&str| ["src=", "dst=", "sport=", "dport=", "zone="].iter().any(|key| word.starts_with(key));
    let mut lines: Vec<String> =
        listed.lines().map(|line| line.split(' ').filter(lasting).collect::<Vec<_>>().join(" ")).collect();
    lines.sort();
    lines
}

#[test]
fn an_address_loses_its_flows_and_no_other_does() {
    in_namespace("an_address_loses_its_flows_and_no_other_does", |kernel| {
        let mut world = World::new(kernel);
        world.allow(&[(Nat, "vmsup0"), (Routed, "vmsup1")]);
        super::nft("add table inet zones; add chain inet zones early { type filter hook prerouting priority -350; }");
        super::nft("add rule inet zones early udp sport 1500 ct zone set 7");
        let [old, neighbour, other] = [0, 1, 2].map(|n| world.guests[n].address);
        let forward = Element::Forward { protocol: UDP, host: 8080, address: old, guest: 80 };
        world.add(forward);
        world.add(Element::Forward { protocol: UDP, host: 8081, address: neighbour, guest: 80 });
        world.outsider_sends(7, HOST, 8081);
        world.outsider_sends(7, other, 80);
        world.outsider_sends(7, HOST, 5353);
        for guest in 1..3 {
            for port in [1000, 1500] {
                world.guest_sends(guest, port, OUTSIDER, 53);
            }
        }
        let foreign = tracked();
        assert_eq!(foreign.len(), 7, "{foreign:?}");
        // More than one request takes; one in a zone; one from outside, which its owner's answer made established.
        for port in 1400..=1600 {
            world.guest_sends(0, port, OUTSIDER, 53);
        }
        world.outsider_sends(1001, HOST, 8080);
        assert_eq!(world.at_guest(0), [(OUTSIDER, 1001, old, 80)]);
        world.guest_sends(0, 80, OUTSIDER, 1001);
        assert!(world.at_outside().contains(&(HOST, 8080, OUTSIDER, 1001)));
        assert_eq!(tracked().len(), foreign.len() + 202);
        world.kernel.change(&[], &[forward]).unwrap();
        world.outsider_sends(1001, HOST, 8080);
        assert_eq!(world.at_guest(0), [(OUTSIDER, 1001, old, 80)], "the flow goes on without its forward");
        world.kernel.forget_flows(&|address| address == old).unwrap();
        assert_eq!(tracked(), foreign);
        world.outsider_sends(1001, HOST, 8080);
        world.outsider_sends(53, HOST, 1400);
        assert_eq!(world.at_guest(0), [], "neither the forward's nor an answer");
        world.kernel.forget_flows(&|address| address == old).unwrap();
        // What was sent before there is a forward again is no obstacle; what is answered, or led elsewhere, goes on.
        let server = UdpSocket::bind((HOST, 8080)).unwrap();
        world.outsider_sends(1002, HOST, 8080);
        server.send_to(b"answer", (OUTSIDER, 1002)).unwrap();
        world.add(forward);
        world.outsider_sends(1001, HOST, 8080);
        assert_eq!(world.at_guest(0), [], "translation is decided at the beginning");
        let before = tracked();
        world.kernel.forget_knocks(&[8081]).unwrap();
        assert_eq!(tracked(), before);
        world.kernel.forget_knocks(&[9, 8080]).unwrap();
        assert_eq!(tracked().len(), before.len() - 1);
        for port in [1001, 1002] {
            world.outsider_sends(port, HOST, 8080);
        }
        assert_eq!(world.at_guest(0), [(OUTSIDER, 1001, old, 80)]);
    });
}
