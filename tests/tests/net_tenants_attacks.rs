//! Attacks by a tenant whose supervisor is his own, and by his guests: on netd's time, on the quotas, on what others have
//! in common with him (the host's tables), and around the rules. Each failed to be resisted once.

use netd_api::{Forward, Protocol, Refusal};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use vmsup_tests::frames::{self, UDP};
use vmsup_tests::netd::{ELSEWHERE, METADATA, NetHost, SERVER, UPLINK, stranger, tenant};
use vmsup_tests::netns::{Caller, as_caller, heard};
use vmsup_tests::wire::Wire;
use vmsup_tests::{as_root, eventually, tun, user};

#[test]
fn subordinate_uids_are_no_further_members_of_their_owners_groups() {
    if !as_root("subordinate_uids_are_no_further_members_of_their_owners_groups") {
        return;
    }
    let host = NetHost::start(
        "[[network]]\nname = \"default\"\nbridge = \"vmsup0\"\nsubnet = \"10.77.0.1/24\"\ngroups = [4242]\nleases = 1\npool = 0\n",
    );
    let member = |uid| Caller { uid, gid: tenant().gid, groups: vec![4242] };
    let subuids = std::fs::read_to_string("/etc/subuid").unwrap();
    let mut range =
        subuids.lines().find(|l| l.starts_with("vmsup-test:")).expect("subordinate uids").split(':').skip(1);
    let first: u32 = range.next().unwrap().parse().unwrap();
    let own = host.client(member(tenant().uid)).lease("default", 1).unwrap();
    for n in [0, 1, 65535] {
        // As in a user namespace of his own, where changing the uid leaves the groups alone.
        let other = host.client(member(first + n));
        assert_eq!(other.lease("default", 1).unwrap_err(), Refusal::NoSuchNetwork, "subordinate uid {n}");
        assert_eq!(other.networks(), []);
    }
    let another = host.client(member(stranger().uid)).lease("default", 1).unwrap();
    assert!(own.passes() && another.passes());
}

#[test]
fn a_tap_that_is_touched_without_end_goes() {
    if !as_root("a_tap_that_is_touched_without_end_goes") {
        return;
    }
    let host = NetHost::shared();
    let victim = host.client(tenant()).lease("default", 1).unwrap();
    let hostile = host.client(stranger()).lease("default", 2).unwrap();
    let owner = user::netd().uid.into();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            host.inside.run(|| {
                as_caller(&stranger(), || {
                    // The owner that it has already: every call is an event of the interface, and none shows a fault.
                    while !over.load(Ordering::Relaxed) {
                        let _ = tun::set(&hostile.queues[0], tun::TUNSETOWNER, owner);
                    }
                })
            })
        });
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _over = Over(&over);
        eventually("the hostile interface to go", || !host.ports().contains(&hostile.lease.interface));
        host.works(tenant(), "default");
    });
    assert!(victim.passes());
    let lost = host.log().lines().filter(|l| l.contains("were lost")).count();
    assert!(lost < 10, "{lost} times events were lost");
}

#[test]
fn what_others_translate_to_elsewhere_is_judged_by_where_the_guest_sent_it() {
    if !as_root("what_others_translate_to_elsewhere_is_judged_by_where_the_guest_sent_it") {
        return;
    }
    for allowed in [false, true] {
        let (host, client) = NetHost::with_default(&format!("host = {allowed}\nmetadata = {allowed}"));
        let wire = client.lease("default", 1).unwrap();
        assert!(wire.passes());
        let server = host.outside.udp(SERVER, 9000);
        // As Docker publishes a container's port, and as a cloud's agent answers for its metadata server.
        host.nft(&format!(
            "table ip others {{\n chain published {{\n type nat hook prerouting priority dstnat\n \
             ip daddr {{ {ELSEWHERE}, {}, {METADATA} }} udp dport 80 dnat to {SERVER}:9000\n }}\n}}\n",
            wire.lease.gateway
        ));
        for to in [ELSEWHERE, wire.lease.gateway, METADATA] {
            for round in 0u8..2 {
                wire.send(&wire.packet(host.mac("vmsup0"), to, UDP, &frames::udp(5, 80, &[round]))).unwrap();
            }
            // What was sent after it came: so would it have.
            wire.send(&wire.packet(host.mac("vmsup0"), SERVER, UDP, &frames::udp(6, 9000, b"last"))).unwrap();
            let mut came = Vec::new();
            eventually("the last datagram", || {
                came.extend(heard(&server).into_iter().map(|(data, _)| data));
                came.contains(&b"last".to_vec())
            });
            assert_eq!(came.len(), if allowed { 3 } else { 1 }, "{to}, allowed: {allowed}");
        }
        let counted = host.counters();
        assert_eq!(counted.get("inet drop_host").is_none_or(|n| *n < 4), allowed, "{counted:?}");
        assert_eq!(counted.contains_key("inet drop_metadata"), !allowed, "{counted:?}");
    }
}

#[test]
fn one_guest_does_not_fill_the_hosts_table_of_connections() {
    if !as_root("one_guest_does_not_fill_the_hosts_table_of_connections") {
        return;
    }
    let (host, client) = NetHost::with_default("host = true");
    let (hostile, victim) = (client.lease("default", 1).unwrap(), client.lease("default", 2).unwrap());
    assert!(hostile.passes() && victim.passes());
    let (bridge, server) = (host.mac("vmsup0"), host.outside.udp(SERVER, 9));
    let send = |wire: &vmsup_tests::wire::Wire, to: Ipv4Addr, port: u16| {
        wire.send(&wire.packet(bridge, to, UDP, &frames::udp(port, 9, b"x"))).unwrap();
    };
    let count = || {
        let count = host.inside.feed(&["cat", "/proc/sys/net/netfilter/nf_conntrack_count"], "");
        count.trim().parse::<u32>().unwrap()
    };
    let mut port = 0;
    eventually("its limit to be reached", || {
        (0..1000).for_each(|_| {
            port = port % 50_000 + 1;
            send(&hostile, if port % 2 == 0 { SERVER } else { ELSEWHERE }, port);
        });
        count() >= 4096
    });
    let dropped = host.counters().get("inet drop_connections").copied();
    for port in 50_001..=60_000 {
        send(&hostile, SERVER, port);
    }
    assert!(count() < 4200, "{} connections", count());
    assert!(host.counters().get("inet drop_connections").copied() >= dropped.map(|n| n + 9000).or(Some(9000)));
    heard(&server);
    // It keeps those that it has, and its neighbour has as many.
    for _ in 0..5 {
        send(&hostile, SERVER, 2);
    }
    send(&victim, SERVER, 7);
    let mut came = 0;
    eventually("all of both", || {
        came += heard(&server).len();
        came == 6
    });
}

#[test]
fn an_address_brings_its_next_holder_no_connection_of_the_last_one() {
    if !as_root("an_address_brings_its_next_holder_no_connection_of_the_last_one") {
        return;
    }
    let (tenant, stranger) = (tenant(), stranger());
    let host = NetHost::start(&format!(
        "[[network]]\nname = \"default\"\nbridge = \"vmsup0\"\nsubnet = \"10.77.0.1/29\"\nusers = [{}, {}]\npool = 1\n\
         [[network.forward]]\nusers = [{}]\nports = [8000]\n",
        tenant.uid, stranger.uid, tenant.uid
    ));
    let forward = [Forward { protocol: Protocol::Udp, host: 8000, guest: 80 }];
    let outside = host.outside.udp(SERVER, 9000);
    let reaches = |wire: &Wire, word: &'static [u8]| {
        assert!(wire.passes());
        eventually("the client's datagram", || {
            outside.send_to(word, (UPLINK, 8000)).unwrap();
            came(wire).contains(&word.to_vec())
        });
        wire.send(&wire.packet(host.mac("vmsup0"), SERVER, UDP, &frames::udp(80, 9000, word))).unwrap();
        eventually("the answer", || heard(&outside).iter().any(|(data, from)| data == word && from.port() == 8000));
    };
    let (owner, hostile) = (host.client(tenant), host.client(stranger));
    let old = owner.lease_with("default", 1, &forward).unwrap();
    reaches(&old, b"mine");
    let address = old.lease.address;
    owner.release(old.lease.id).unwrap();
    drop(old);
    // All others of so small a network, and the old one among them.
    let mut held = Vec::new();
    eventually("the address to be given out again", || {
        outside.send_to(b"still", (UPLINK, 8000)).unwrap();
        held.extend(hostile.lease("default", held.len() as u64));
        held.iter().any(|wire: &Wire| wire.lease.address == address)
    });
    let taken = held.iter().find(|wire| wire.lease.address == address).unwrap();
    assert!(taken.passes());
    for _ in 0..3 {
        outside.send_to(b"still", (UPLINK, 8000)).unwrap();
    }
    taken.send(&taken.packet(host.mac("vmsup0"), SERVER, UDP, &frames::udp(80, 9000, b"its own"))).unwrap();
    let mut answers = Vec::new();
    eventually("its own datagram", || {
        answers.extend(heard(&outside));
        !answers.is_empty()
    });
    assert!(answers.iter().all(|(_, from)| from.port() != 8000), "as from the host's port: {answers:?}");
    outside.send_to(b"answer", answers[0].1).unwrap();
    let mut seen = Vec::new();
    eventually("the answer to it", || {
        seen.extend(came(taken));
        seen.contains(&b"answer".to_vec())
    });
    assert_eq!(seen, [b"answer"], "what the client sent before it did not come");
    drop(held);
    let mut again = None;
    eventually("a lease again", || {
        again = owner.lease_with("default", 2, &forward).ok();
        again.is_some()
    });
    reaches(&again.unwrap(), b"again");
}

/// What datagrams that came to the guest's port 80 carry.
fn came(wire: &Wire) -> Vec<Vec<u8>> {
    let packets = wire.received().into_iter().filter_map(|frame| frames::parse_ipv4(&frame));
    let datagrams = packets.filter(|packet| packet.protocol == UDP);
    datagrams.filter_map(|p| frames::parse_udp(&p.payload).filter(|d| d.1 == 80).map(|d| d.2.to_vec())).collect()
}

#[test]
fn a_header_that_is_none_hides_no_dhcp_answer() {
    if !as_root("a_header_that_is_none_hides_no_dhcp_answer") {
        return;
    }
    let (host, client) = NetHost::with_default("isolated = false");
    // Where it looks at bridged packets, it drops some of these before the rules do.
    host.inside.run(|| drop(std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0")));
    let (hostile, victim) = (client.lease("default", 1).unwrap(), client.lease("default", 2).unwrap());
    assert!(hostile.passes() && victim.passes());
    victim.received();
    let datagram =
        |from| hostile.packet(victim.lease.mac, victim.lease.address, UDP, &frames::udp(from, 68, &[7; 300]));
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = datagram(67);
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    // As it should be; longer and shorter than it says; a header of 16 bytes; version 6.
    for frame in [datagram(67), with(16, &[8, 0]), with(16, &[0, 19]), with(14, &[0x44]), with(14, &[0x65])] {
        hostile.send(&frame).unwrap();
    }
    hostile.send(&datagram(66)).unwrap();
    let mut came = Vec::new();
    eventually("the datagram that may pass", || {
        came.extend(victim.received().into_iter().filter(|f| frames::kind(f) == frames::IPV4));
        came.contains(&datagram(66))
    });
    assert_eq!(came.len(), 1, "{came:?}");
}
