//! What a guest may say, where forwards lead, and what loading the rules again costs. The guest's end is the test's: it
//! writes frames into the TAP, and the kernel has done with a frame what it does when the write returns.

use netd_api::{Forward, Protocol};
use rustix::net::{RecvFlags, recv};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;
use vmsup_tests::frames::{self, ARP, BROADCAST, IPV4, IPV6, Mac, QINQ, TCP, UDP, VLAN, ethernet};
use vmsup_tests::netd::{NetHost, SERVER, UPLINK, default_network, tenant};
use vmsup_tests::netns::{Netns, heard};
use vmsup_tests::wire::Wire;
use vmsup_tests::{as_root, eventually};

/// The bridge itself drops this one, before any rule sees it.
const GROUP: &str = "a group's MAC as source";

/// Frames that no guest may send.
fn forbidden(wire: &Wire, router: Mac, bystander: &Wire) -> Vec<(&'static str, Vec<u8>)> {
    let (mac, address) = wire.own();
    let (their_mac, their_address) = bystander.own();
    let data = frames::udp(5000, 5000, b"x");
    let ip = |from, to| frames::ipv4(from, to, UDP, &data);
    let foreign_mac: Mac = [0x02, 0x76, 0x6d, 9, 9, 9];
    let gateway = wire.lease.gateway;
    let arp = |operation, sender| frames::arp(operation, sender, ([0; 6], gateway));
    let dhcp_answer = frames::ipv4(address, Ipv4Addr::BROADCAST, UDP, &frames::udp(67, 68, &[2; 300]));
    let multicast: Mac = [0x01, 0x80, 0xc2, 0, 0, 0];
    vec![
        ("foreign MAC with IP", ethernet(router, foreign_mac, IPV4, &ip(address, SERVER))),
        ("foreign MAC with ARP", ethernet(BROADCAST, foreign_mac, ARP, &arp(1, (foreign_mac, address)))),
        ("another VM's MAC", ethernet(router, their_mac, IPV4, &ip(address, SERVER))),
        ("another VM's MAC and address", ethernet(router, their_mac, IPV4, &ip(their_address, SERVER))),
        ("the bridge's MAC", ethernet(BROADCAST, router, IPV4, &ip(address, Ipv4Addr::BROADCAST))),
        (GROUP, ethernet(router, multicast, IPV4, &ip(address, SERVER))),
        ("foreign address", ethernet(router, mac, IPV4, &ip(Ipv4Addr::new(10, 77, 0, 200), SERVER))),
        ("another VM's address", ethernet(router, mac, IPV4, &ip(their_address, SERVER))),
        ("the gateway's address", ethernet(BROADCAST, mac, IPV4, &ip(gateway, Ipv4Addr::BROADCAST))),
        ("an address of the world", ethernet(router, mac, IPV4, &ip(SERVER, gateway))),
        ("no address", ethernet(BROADCAST, mac, IPV4, &ip(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST))),
        ("loopback's address", ethernet(router, mac, IPV4, &ip(Ipv4Addr::LOCALHOST, gateway))),
        ("ARP for another VM's address", ethernet(BROADCAST, mac, ARP, &arp(2, (mac, their_address)))),
        ("ARP for the gateway's address", ethernet(BROADCAST, mac, ARP, &arp(2, (mac, gateway)))),
        ("ARP with another VM's MAC inside", ethernet(BROADCAST, mac, ARP, &arp(1, (their_mac, address)))),
        ("ARP from no address", ethernet(BROADCAST, mac, ARP, &arp(1, (mac, Ipv4Addr::UNSPECIFIED)))),
        ("ARP that is cut", ethernet(BROADCAST, mac, ARP, &arp(1, (mac, address))[..12])),
        ("VLAN", ethernet(router, mac, VLAN, &frames::tagged(7, IPV4, &ip(address, SERVER)))),
        ("VLAN 0", ethernet(router, mac, VLAN, &frames::tagged(0, IPV4, &ip(address, SERVER)))),
        ("a provider's VLAN", ethernet(router, mac, QINQ, &frames::tagged(7, IPV4, &ip(address, SERVER)))),
        ("IPv6", ethernet([0x33, 0x33, 0, 0, 0, 1], mac, IPV6, &router_advertisement())),
        ("a DHCP server's answer", ethernet(BROADCAST, mac, IPV4, &dhcp_answer)),
        ("a bridge's own protocol", ethernet(multicast, mac, 38, &[0x42, 0x42, 3, 0, 0, 0, 0, 0])),
        ("LLDP", ethernet([0x01, 0x80, 0xc2, 0, 0, 0x0e], mac, 0x88cc, &[2, 7, 4, 2, 2, 2, 2, 2, 2])),
        ("reverse ARP", ethernet(BROADCAST, mac, 0x8035, &arp(3, (mac, address)))),
        ("an EtherType that nobody knows", ethernet(router, mac, 0x1234, &[0; 60])),
        ("an IP packet that is cut", ethernet(router, mac, IPV4, &ip(address, SERVER)[..10])),
        ("nothing after the header", ethernet(router, mac, IPV4, &[])),
    ]
}

/// "I am the router": what a guest must not say to its neighbours.
fn router_advertisement() -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 16, 58, 255];
    packet.extend("fe80::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet.extend("ff02::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet.extend([134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    packet
}

/// How many packets the drops of the rules have counted, all reasons together.
fn dropped(host: &NetHost) -> u64 {
    host.counters().values().sum()
}

#[test]
fn a_frame_that_is_not_the_leases_reaches_nobody_and_is_counted() {
    if !as_root("a_frame_that_is_not_the_leases_reaches_nobody_and_is_counted") {
        return;
    }
    // Not even where guests may reach each other and the host.
    let (host, client) = NetHost::with_default("isolated = false\nhost = true\nmetadata = true");
    let (wire, bystander) = (client.lease("default", 1).unwrap(), client.lease("default", 2).unwrap());
    assert!(wire.passes() && bystander.passes());
    let (bridge, uplink) = (host.inside.listen("vmsup0"), host.inside.listen("up0"));
    let router = host.mac("vmsup0");
    for (what, frame) in forbidden(&wire, router, &bystander) {
        let before = dropped(&host);
        bystander.received();
        bridge.frames();
        let _ = wire.send(&frame);
        assert_eq!(bridge.frames(), Vec::<Vec<u8>>::new(), "{what}: on the bridge");
        assert_eq!(bystander.received(), Vec::<Vec<u8>>::new(), "{what}: at the neighbour");
        assert!(dropped(&host) > before || what == GROUP, "{what}: not counted: {:?}", host.counters());
        assert!(wire.passes(), "after {what}");
    }
    assert!(uplink.frames().iter().all(|f| frames::parse_ipv4(f).is_none()), "something went out");
    assert!(bystander.passes());
    // The reasons are told apart.
    assert!(host.counters().len() >= 4, "{:?}", host.counters());
}

#[test]
fn a_header_that_the_kernel_refuses_harms_nobody() {
    if !as_root("a_header_that_the_kernel_refuses_harms_nobody") {
        return;
    }
    let (host, client) = NetHost::with_default("");
    let wire = client.lease("default", 1).unwrap();
    let bridge = host.inside.listen("vmsup0");
    let good = frames::who_has(wire.own(), wire.lease.gateway);
    let router = host.mac("vmsup0");
    let packet = wire.packet(router, SERVER, UDP, &frames::udp(1, 2, &[7; 100]));
    // flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers
    let headers: [(&str, [u8; 12]); 6] = [
        ("a segment type that there is not", [0, 0x55, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("segments of no size", [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0]),
        ("a header past the end", [0, 1, 0xff, 0xff, 100, 0, 0, 0, 0, 0, 0, 0]),
        ("a checksum past the end", [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        ("TCP segments of a UDP packet", [1, 1, 54, 0, 8, 0, 34, 0, 16, 0, 0, 0]),
        ("all ones", [0xff; 12]),
    ];
    for (what, header) in headers {
        bridge.frames();
        let _ = wire.send_raw(&header, &packet);
        // What passes is at most the guest's own packet: never from somebody else.
        let others = |f: &Vec<u8>| f[6..12] != wire.lease.mac && frames::kind(f) != ARP && f[6..12] != router;
        assert!(!bridge.frames().iter().any(others), "{what}");
        assert!(wire.passes(), "after {what}");
    }
    // Too short: refused by the kernel. Too long: not seen by anybody either.
    for (header, frame) in [(0, 0), (5, 0), (12, 0), (12, 13), (12, 66_000)] {
        bridge.frames();
        let taken = wire.send_raw(&vec![0; header], &vec![0xff; frame]).is_ok();
        assert!(!taken || frame > 1500, "{header} and {frame} bytes");
        assert_eq!(bridge.frames().len(), 0, "{header} and {frame} bytes");
    }
    wire.send(&good).unwrap();
    assert!(wire.passes());
}

#[test]
fn a_flood_of_arp_is_bounded_and_counted() {
    if !as_root("a_flood_of_arp_is_bounded_and_counted") {
        return;
    }
    let (host, client) = NetHost::with_default("");
    let (wire, bystander) = (client.lease("default", 1).unwrap(), client.lease("default", 2).unwrap());
    let neighbours = || host.inside.json(&["ip", "-j", "neigh", "show"]).as_array().unwrap().len();
    assert!(wire.passes());
    let (known, before) = (neighbours(), dropped(&host));
    let (mac, address) = wire.own();
    for n in 0..10_000u16 {
        let [high, low] = n.to_be_bytes();
        let sender = (mac, Ipv4Addr::new(10, 77, high, low));
        if sender.1 != address {
            wire.send(&ethernet(BROADCAST, mac, ARP, &frames::arp(2, sender, (BROADCAST, sender.1)))).unwrap();
        }
    }
    assert!(dropped(&host) >= before + 9_999, "{:?}", host.counters());
    assert!(neighbours() <= known + 1, "the host learned {} neighbours", neighbours() - known);
    assert!(bystander.passes() && wire.passes());
}

/// A datagram to `address`, port 8081, from `netns`; true where it comes back from the guest, as from there.
fn echoed(netns: &Netns, address: Ipv4Addr) -> bool {
    let socket = netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.connect((address, 8081)).unwrap();
    let _ = socket.send(b"anybody?");
    recv(&socket, &mut [0u8; 64][..], RecvFlags::empty()).is_ok()
}

#[test]
fn a_forward_leads_to_the_guest_from_outside_and_nowhere_else() {
    if !as_root("a_forward_leads_to_the_guest_from_outside_and_nowhere_else") {
        return;
    }
    let (host, client) = NetHost::with_default("");
    let forwards = [
        Forward { protocol: Protocol::Tcp, host: 8080, guest: 80 },
        Forward { protocol: Protocol::Udp, host: 8081, guest: 53 },
    ];
    let wire = client.lease_with("default", 1, &forwards).unwrap();
    // To wait for what is to come, and for what is not to come.
    let (long, short) = (Duration::from_secs(10), Duration::from_millis(300));
    let connect = |netns: &Netns, address: Ipv4Addr, port: u16, patience: Duration| {
        let to = SocketAddr::from((address, port));
        netns.run(|| TcpStream::connect_timeout(&to, patience).is_ok())
    };
    wire.answering(|seen| {
        assert!(connect(&host.outside, UPLINK, 8080, long));
        assert!(echoed(&host.outside, UPLINK));
        let ports: BTreeMap<(u8, u16), Ipv4Addr> = seen
            .lock()
            .unwrap()
            .iter()
            .filter_map(|f| frames::parse_ipv4(f))
            .filter(|p| [TCP, UDP].contains(&p.protocol))
            .map(|p| ((p.protocol, u16::from_be_bytes([p.payload[2], p.payload[3]])), p.from))
            .collect();
        assert_eq!(ports, [((TCP, 80), SERVER), ((UDP, 53), SERVER)].into(), "the guest sees who it was");
        for (address, port) in [(UPLINK, 80), (UPLINK, 8081), (UPLINK, 8082), (UPLINK, 22)] {
            assert!(!connect(&host.outside, address, port, short), "{address}:{port}");
        }
        // The host's own way in; its loopback stays its own.
        assert!(connect(&host.inside, UPLINK, 8080, long));
        assert!(!connect(&host.inside, Ipv4Addr::LOCALHOST, 8080, short));
    });
    client.release(wire.lease.id).unwrap();
    wire.answering(|_| assert!(!connect(&host.outside, UPLINK, 8080, short), "it ends with its lease"));
}

#[test]
fn localhost_leads_to_a_forward_where_it_is_said() {
    if !as_root("localhost_leads_to_a_forward_where_it_is_said") {
        return;
    }
    let (host, client) = NetHost::with_default("localhost_forwards = true\nhost = true");
    let forwards = [Forward { protocol: Protocol::Tcp, host: 8080, guest: 80 }];
    let wire = client.lease_with("default", 1, &forwards).unwrap();
    // A guest must not reach the host's loopback by that way, not even one that may reach the host's services (CVE-2020-8558).
    let secret = host.inside.udp(Ipv4Addr::LOCALHOST, 5353);
    wire.answering(|_| {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
        assert!(host.inside.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)).is_ok()));
        let knock = frames::udp(5000, 5353, b"knock");
        wire.send(&wire.packet(host.mac("vmsup0"), Ipv4Addr::LOCALHOST, UDP, &knock)).unwrap();
        assert!(host.inside.ping(wire.lease.address, 0));
        assert_eq!(heard(&secret), []);
    });
}

#[test]
fn loading_the_rules_again_keeps_what_is_leased_and_doubles_nothing() {
    if !as_root("loading_the_rules_again_keeps_what_is_leased_and_doubles_nothing") {
        return;
    }
    let (host, client) = NetHost::with_default("");
    let forwards = [Forward { protocol: Protocol::Udp, host: 8081, guest: 53 }];
    let wire = client.lease_with("default", 1, &forwards).unwrap();
    let rules = || {
        let text = host.inside.feed(&["nft", "-s", "list", "ruleset"], "");
        text.lines().filter(|l| !l.trim_start().starts_with("counter")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = rules();
    host.load_rules();
    host.load_rules();
    assert_eq!(rules(), before);
    assert!(host.leased(&wire.lease.interface) && wire.passes());
    wire.answering(|_| assert!(echoed(&host.outside, UPLINK)));
    host.works(tenant(), "default");
}

#[test]
fn a_warm_port_says_nothing_for_whoever_has_it_next() {
    if !as_root("a_warm_port_says_nothing_for_whoever_has_it_next") {
        return;
    }
    // What was sent to a port before it had a guest is not the guest's.
    let host = NetHost::start(&default_network("pool = 1"));
    eventually("a warm port", || host.elements("bridge vmsup leases").len() == 1);
    host.inside.feed(&["ip", "neigh", "flush", "all"], "");
    for n in 2..20 {
        host.inside.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            let _ = socket.send_to(b"for the one before", (Ipv4Addr::new(10, 77, 0, n), 9));
        });
    }
    let wire = host.client(tenant()).lease("default", 1).unwrap();
    let stale: Vec<_> = wire.received().into_iter().filter(|f| frames::kind(f) == IPV4).collect();
    assert_eq!(stale, Vec::<Vec<u8>>::new());
}
