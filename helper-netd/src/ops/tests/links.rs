//! TAPs, bridges, ports, and what is told of them.

use super::frame::{Arp, UDP, ethernet, flow, ipv4, udp};
use super::{BRIDGE_MAC, Bridge, GATEWAY, Guest, IfName, Kernel, LinkEvent, Ops};
use super::{bridge, expect_event, in_namespace, load_rules, meet_host, name, next, run, vmsup0};
use crate::netlink::{Message, Socket};
use crate::ops::{Element, Link, OpsError, Tap, Tun};
use crate::sys::{self, TunOption, testing};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

/// What `links` says of that interface.
fn look(kernel: &mut Kernel, name: &str) -> Option<Link> {
    kernel.links().unwrap().into_iter().find(|link| link.name.as_str() == name)
}

fn persists(event: &LinkEvent) -> bool {
    matches!(event, LinkEvent::Changed(Link { tun: Some(Tun { persist: true, .. }), .. }))
}

#[test]
fn a_tap_is_what_was_asked_for() {
    in_namespace("a_tap_is_what_was_asked_for", |mut kernel| {
        let base = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        for (number, queues, flags) in [(1, 1, base), (2, 4, base | libc::IFF_MULTI_QUEUE)] {
            let port = IfName::port(number);
            let tap = kernel.create_tap(port, queues, true).unwrap();
            assert_eq!(tap.queues.len(), usize::from(queues));
            for queue in &tap.queues {
                assert_eq!(testing::tun_flags(queue).unwrap(), (port.padded(), flags as u16));
                assert_eq!(testing::tun_header_size(queue).unwrap(), 12);
                assert!(rustix::fs::fcntl_getfl(queue).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
                assert!(rustix::io::fcntl_getfd(queue).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
            }
            let tun = Some(Tun { persist: false, owner: Some(0), group: Some(0) });
            let link = Link { name: port, index: tap.index, mac: tap.mac, bridge: None, up: false, tun };
            assert_eq!(look(&mut kernel, port.as_str()), Some(link));
        }
    });
}

/// A holder of a TAP may call any two bytes of a frame a checksum to complete. The rules see them as they were sent, and so does
/// whoever gets the frame, together with the header: also at a TAP without offloads.
#[test]
fn the_kernel_completes_no_checksum_after_the_rules_have_judged_a_frame() {
    in_namespace("the_kernel_completes_no_checksum_after_the_rules_have_judged_a_frame", |mut kernel| {
        load_rules();
        let bridge = vmsup0(&mut kernel);
        let guest = Guest::new(&mut kernel, 1, bridge, false, Ipv4Addr::new(10, 77, 0, 2));
        let (port, mac, address) = (IfName::port(2), [2, 0x76, 0x6d, 77, 0, 3], Ipv4Addr::new(10, 77, 0, 3));
        let Tap { queues, index, .. } = kernel.create_tap(port, 1, false).unwrap();
        kernel.plug(index, bridge, false, 1500, mac).unwrap();
        kernel.change(&[Element::Lease { port, mac, address }], &[]).unwrap();
        meet_host(&guest, GATEWAY);
        while next(&queues[0]).is_some() {}
        let mut reply = Arp { operation: 2, ..Arp::request(guest.mac, guest.address).to(address) }.from(guest.mac);
        reply[..6].copy_from_slice(&mac);
        // The sum of all from the lower half of the sender's address on would be put there.
        let header = [1, 0, 0, 0, 0, 0, 30, 0, 0, 0, 0, 0];
        let packet = [&header[..], &reply].concat();
        assert_eq!(rustix::io::write(&guest.tap, &packet), Ok(packet.len()));
        let mut came = vec![0; 2048];
        let length = rustix::io::read(&queues[0], &mut came).unwrap();
        assert_eq!(came[12..length], reply, "the sender's address is the lease's");
        assert_eq!(came[..10], header[..10], "and its holder is told of the sender's wish");
    });
}

#[test]
fn what_a_port_counted_is_told_by_way_of_the_guest() {
    in_namespace("what_a_port_counted_is_told_by_way_of_the_guest", |mut kernel| {
        load_rules();
        let bridge = vmsup0(&mut kernel);
        let guest = Guest::new(&mut kernel, 1, bridge, false, Ipv4Addr::new(10, 77, 0, 2));
        meet_host(&guest, GATEWAY);
        let (sent, received) = kernel.traffic(guest.index).unwrap();
        let frame = Arp::request(guest.mac, guest.address).to(GATEWAY).from(guest.mac);
        for _ in 0..10 {
            guest.send(&frame);
        }
        let (then, back) = kernel.traffic(guest.index).unwrap();
        assert_eq!(then.packets - sent.packets, 10);
        assert_eq!(then.bytes - sent.bytes, 10 * frame.len() as u64);
        assert!(back.packets >= received.packets.max(1) && then.dropped == 0, "{back:?} {then:?}");
        kernel.delete_link(guest.index).unwrap();
        assert!(kernel.traffic(guest.index).is_err());
    });
}

#[test]
fn a_name_that_is_there_is_not_attached_to() {
    in_namespace("a_name_that_is_there_is_not_attached_to", |mut kernel| {
        run("ip tuntap add vt1 mode tap");
        assert!(matches!(kernel.create_tap(IfName::port(1), 1, false), Err(OpsError::Differs { .. })));
        assert!(look(&mut kernel, "vt1").is_some());
    });
}

#[test]
fn a_bridge_is_made_and_mended_to_be_what_it_should() {
    in_namespace("a_bridge_is_made_and_mended_to_be_what_it_should", |mut kernel| {
        let wanted = Bridge { mtu: 1400, localhost: true, ..bridge("vmsup0", GATEWAY) };
        let index = kernel.ensure_bridge(&wanted).unwrap();
        run("ip link set vmsup0 type bridge stp_state 1 mcast_snooping 1");
        run("ip link set vmsup0 down address 02:00:00:00:00:01 mtu 1500");
        run("ip addr flush dev vmsup0");
        assert_eq!(kernel.ensure_bridge(&wanted).unwrap(), index);
        let link = look(&mut kernel, "vmsup0").unwrap();
        assert_eq!((link.index, link.mac, link.up, link.tun), (index, wanted.mac, true, None));
        let shown = run("ip -d link show vmsup0");
        for word in ["mtu 1400", "stp_state 0", "mcast_snooping 0", "addrgenmode none"] {
            assert!(shown.contains(word), "{word}: {shown}");
        }
        assert!(run("ip -4 addr show vmsup0").contains("inet 10.77.0.1/24 scope global vmsup0"));
        assert_eq!(run("ip -6 addr show vmsup0"), "");
        for (option, value) in [
            ("forwarding", "1"),
            ("route_localnet", "1"),
            ("send_redirects", "0"),
            ("accept_redirects", "0"),
            ("secure_redirects", "0"),
            ("accept_source_route", "0"),
            ("rp_filter", "1"),
            ("arp_announce", "2"),
            ("arp_ignore", "1"),
        ] {
            let path = format!("/proc/sys/net/ipv4/conf/vmsup0/{option}");
            assert_eq!(std::fs::read_to_string(path).unwrap().trim(), value, "{option}");
        }
        kernel.ensure_bridge(&Bridge { localhost: false, ..wanted }).unwrap();
        let route_localnet = std::fs::read_to_string("/proc/sys/net/ipv4/conf/vmsup0/route_localnet").unwrap();
        assert_eq!(route_localnet.trim(), "0");
    });
}

#[test]
fn an_interface_that_is_no_bridge_is_not_made_one() {
    in_namespace("an_interface_that_is_no_bridge_is_not_made_one", |mut kernel| {
        run("ip link add vmsup0 type veth peer name far0");
        let error = kernel.ensure_bridge(&bridge("vmsup0", GATEWAY)).unwrap_err();
        assert!(matches!(error, OpsError::Differs { .. }) && error.to_string().contains("is no bridge"), "{error}");
        assert_eq!(run("ip -4 addr show vmsup0").matches("inet").count(), 0);
    });
}

#[test]
fn a_port_is_isolated_locked_and_learns_nothing() {
    in_namespace("a_port_is_isolated_locked_and_learns_nothing", |mut kernel| {
        load_rules();
        let bridge = vmsup0(&mut kernel);
        for (number, isolated) in [(1, "isolated on"), (2, "isolated off")] {
            let address = Ipv4Addr::new(10, 77, 0, number as u8);
            let guest = Guest::new(&mut kernel, number, bridge, number == 1, address);
            let shown = run(&format!("bridge -d link show dev {}", guest.port));
            let flags = ["learning off", "locked on", " flood off", "mcast_flood off", "bcast_flood on", "hairpin off"];
            for flag in flags.into_iter().chain([isolated, "state forwarding", "master vmsup0"]) {
                assert!(shown.contains(flag), "{flag}: {shown}");
            }
            let entry = format!("02:76:6d:4d:00:{number:02x} master vmsup0 static");
            assert!(run(&format!("bridge fdb show dev {}", guest.port)).contains(&entry));
            assert_eq!(run(&format!("ip -6 addr show {}", guest.port)), "");
            let link = look(&mut kernel, guest.port.as_str()).unwrap();
            assert_eq!((link.bridge, link.up), (Some(bridge), true));
            assert_eq!(look(&mut kernel, "vmsup0").unwrap().mac, BRIDGE_MAC, "the bridge keeps its own MAC");
        }
    });
}

#[test]
fn a_port_is_unplugged_and_deleted_and_deleting_it_twice_is_nothing() {
    in_namespace("a_port_is_unplugged_and_deleted_and_deleting_it_twice_is_nothing", |mut kernel| {
        load_rules();
        let bridge = vmsup0(&mut kernel);
        let guest = Guest::new(&mut kernel, 1, bridge, true, Ipv4Addr::new(10, 77, 0, 2));
        kernel.unplug(guest.index).unwrap();
        let link = look(&mut kernel, "vt1").unwrap();
        assert_eq!((link.bridge, link.up), (None, false));
        // Its way out of the bridge is no end: other families' events of it are not taken for one.
        while let Some(event) = kernel.next_link_event() {
            assert!(!matches!(event, LinkEvent::Gone { .. }), "{event:?}");
        }
        kernel.delete_link(guest.index).unwrap();
        kernel.delete_link(guest.index).unwrap();
        assert_eq!(look(&mut kernel, "vt1"), None);
        let gone = LinkEvent::Gone { name: guest.port, index: guest.index };
        expect_event(&mut kernel, "the deleted port", |event| *event == gone);
        assert!(matches!(kernel.unplug(guest.index), Err(OpsError::Differs { .. })));
        assert!(matches!(kernel.plug(guest.index, bridge, true, 1500, guest.mac), Err(OpsError::Differs { .. })));
    });
}

#[test]
fn what_a_holder_does_to_its_tap_is_told() {
    in_namespace("what_a_holder_does_to_its_tap_is_told", |mut kernel| {
        load_rules();
        let bridge = vmsup0(&mut kernel);
        let guest = Guest::new(&mut kernel, 1, bridge, true, Ipv4Addr::new(10, 77, 0, 2));
        let index = guest.index;
        sys::tun_set(&guest.tap, TunOption::Owner(4242)).unwrap();
        sys::tun_set(&guest.tap, TunOption::Group(4343)).unwrap();
        expect_event(&mut kernel, "owner and group", |event| {
            let tun = Some(Tun { persist: false, owner: Some(4242), group: Some(4343) });
            matches!(event, LinkEvent::Changed(link) if link.index == index && link.tun == tun)
        });
        testing::tun_set_mac(&guest.tap, [2, 9, 9, 9, 9, 9]).unwrap();
        expect_event(
            &mut kernel,
            "MAC",
            |event| matches!(event, LinkEvent::Changed(link) if link.index == index && link.mac == [2, 9, 9, 9, 9, 9]),
        );
        testing::tun_persist(&guest.tap).unwrap();
        expect_event(&mut kernel, "persist", persists);
    });
}

#[test]
fn a_tap_goes_with_its_holder_and_that_is_told() {
    in_namespace("a_tap_goes_with_its_holder_and_that_is_told", |mut kernel| {
        load_rules();
        let bridge = vmsup0(&mut kernel);
        let guest = Guest::new(&mut kernel, 1, bridge, true, Ipv4Addr::new(10, 77, 0, 2));
        let gone = LinkEvent::Gone { name: guest.port, index: guest.index };
        drop(guest.tap);
        expect_event(&mut kernel, "the closed TAP", |event| *event == gone);
        assert_eq!(look(&mut kernel, "vt1"), None);
    });
}

#[test]
fn only_ports_and_bridges_are_told_of() {
    in_namespace("only_ports_and_bridges_are_told_of", |mut kernel| {
        run("ip link add eth0 type veth peer name vt007");
        run("ip link add vti0 type veth peer name vtx");
        run("ip link add br0 type bridge");
        run("ip link add vt7 type veth peer name far7");
        let mut names = Vec::new();
        expect_event(&mut kernel, "the last one", |event| {
            let LinkEvent::Changed(link) = event else { return false };
            names.push(link.name.to_string());
            link.name == name("vt7")
        });
        names.dedup();
        assert_eq!(names, ["br0", "vt7"]);
        let listed: Vec<Link> = kernel.links().unwrap();
        assert_eq!(listed.iter().map(|link| link.name.as_str()).collect::<Vec<_>>(), ["br0", "vt7"]);
        assert_eq!(listed[1].tun, None, "it is no TAP");
    });
}

#[test]
fn lost_events_are_told_and_later_ones_come() {
    in_namespace("lost_events_are_told_and_later_ones_come", |mut kernel| {
        let index = vmsup0(&mut kernel);
        // More events than the socket has room for, whatever their size.
        let mut socket = Socket::open(None, 0).unwrap();
        for n in 0..10_000u32 {
            let header = [[0; 4], index.to_ne_bytes(), [0; 4], [0; 4]].concat();
            let mtu = (1400 + n % 2).to_ne_bytes();
            let message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_ACK, &header).attr(libc::IFLA_MTU, &mtu);
            socket.request(&[message]).unwrap();
        }
        let mut events = std::iter::from_fn(|| kernel.next_link_event());
        assert!(events.any(|event| event == LinkEvent::Lost));
        assert!(!events.any(|event| event == LinkEvent::Lost), "once");
        let tap = kernel.create_tap(IfName::port(1), 1, false).unwrap();
        expect_event(
            &mut kernel,
            "the next event",
            |event| matches!(event, LinkEvent::Changed(link) if link.index == tap.index),
        );
    });
}

#[test]
fn a_stolen_forwarding_entry_is_given_back() {
    in_namespace("a_stolen_forwarding_entry_is_given_back", |mut kernel| {
        load_rules();
        let bridge = vmsup0(&mut kernel);
        let [thief, victim] =
            [1, 2].map(|n| Guest::new(&mut kernel, n, bridge, false, Ipv4Addr::new(10, 77, 0, 10 + n as u8)));
        let third = Guest::new(&mut kernel, 3, bridge, false, Ipv4Addr::new(10, 77, 0, 13));
        let data = |text: &[u8]| {
            let packet = ipv4(third.address, victim.address, UDP, 0, &udp(1, 2, text));
            ethernet(victim.mac, third.mac, 0x800, &packet)
        };
        let arrived = |text: &[u8]| {
            third.send(&data(text));
            std::iter::from_fn(|| super::next(&victim.tap)).filter(|frame| flow(frame).is_some()).count()
        };
        assert_eq!(arrived(b"before"), 1);
        testing::tun_set_mac(&thief.tap, victim.mac).unwrap();
        assert_eq!(arrived(b"stolen"), 0, "the attack works");
        assert!(!run("bridge fdb show dev vt2").contains(&format!("{:02x} master vmsup0 static", victim.mac[5])));
        kernel.restore_forwarding(victim.index, victim.mac).unwrap();
        assert_eq!(arrived(b"mended"), 1);
        // Also when the thief is put out, and when it gives its name back by itself.
        testing::tun_set_mac(&thief.tap, [2, 9, 9, 9, 9, 9]).unwrap();
        assert_eq!(arrived(b"given back"), 1);
        kernel.delete_link(thief.index).unwrap();
        kernel.restore_forwarding(victim.index, victim.mac).unwrap();
        assert_eq!(arrived(b"gone"), 1);
        let reply = ipv4(victim.address, third.address, UDP, 0, &udp(2, 1, b"reply"));
        victim.send(&ethernet(third.mac, victim.mac, 0x800, &reply));
        third.expect("the victim is heard, too", |frame| flow(frame).is_some());
    });
}

#[test]
fn forwarding_is_read_without_proc() {
    in_namespace("forwarding_is_read_without_proc", |mut kernel| {
        for (value, on) in [("1", true), ("0", false), ("1", true)] {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", value).unwrap();
            assert_eq!(kernel.ip_forward().unwrap(), on);
        }
    });
}

#[test]
fn a_second_attach_needs_the_owner() {
    in_namespace("a_second_attach_needs_the_owner", |mut kernel| {
        let tap = kernel.create_tap(IfName::port(1), 2, false).unwrap();
        let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        // A thread gives its own rights away, by raw system calls: other threads keep theirs.
        rustix::thread::set_thread_res_uid(
            rustix::process::Uid::from_raw(65534),
            rustix::process::Uid::from_raw(65534),
            rustix::process::Uid::from_raw(65534),
        )
        .unwrap();
        let refused = sys::tun_attach(tun.as_fd(), IfName::port(1).padded(), flags as u16).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        drop(tap);
    });
}

#[test]
fn net_admin_alone_is_enough() {
    in_namespace("net_admin_alone_is_enough", |_| {
        load_rules();
        // As udev has it; netd's user is not root.
        run("chmod 0666 /dev/net/tun");
        let nobody = rustix::process::Uid::from_raw(65534);
        let net_admin = CapabilitySet::NET_ADMIN;
        rustix::thread::set_keep_capabilities(true).unwrap();
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let sets = CapabilitySets { effective: net_admin, permitted: net_admin, inheritable: CapabilitySet::empty() };
        rustix::thread::set_capabilities(None, sets).unwrap();
        let mut kernel = Kernel::open((65534, 7)).unwrap();
        let bridge = vmsup0(&mut kernel);
        let guest = Guest::new(&mut kernel, 1, bridge, true, Ipv4Addr::new(10, 77, 0, 2));
        let tun = look(&mut kernel, "vt1").unwrap().tun.unwrap();
        assert_eq!((tun.owner, tun.group), (Some(65534), Some(7)));
        assert!(kernel.rules_loaded().unwrap() && kernel.dropping_chains(4).unwrap().is_empty());
        kernel.ip_forward().unwrap();
        kernel.restore_forwarding(guest.index, guest.mac).unwrap();
        assert_eq!(kernel.elements().unwrap(), [guest.lease()]);
        kernel.change(&[], &[guest.lease()]).unwrap();
        kernel.unplug(guest.index).unwrap();
        kernel.delete_link(guest.index).unwrap();
    });
}
