//! Attacks on netd that are resisted: by whoever connects to its socket, and by who holds a TAP's fd. During and after
//! each, somebody else gets a lease and its frames pass.

use netd_api::{LeaseId, NAME, Reply, Request, VERSION, Wanted};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vmsup_tests::frames::{self, UDP};
use vmsup_tests::netd::{Client, NetHost, wanted};
use vmsup_tests::netns::{Caller, as_caller};
use vmsup_tests::wire::Wire;
use vmsup_tests::{as_root, eventually, tun, user};

fn tenant() -> Caller {
    (&user::with_subuids()).into()
}

fn attacker() -> Caller {
    (&user::second_tenant()).into()
}

/// A network for both: the worst that can be shared.
fn shared(more: &str) -> NetHost {
    let (one, other) = (user::with_subuids().name, user::second_tenant().name);
    NetHost::start(&format!(
        "[[network]]\nname = \"default\"\nbridge = \"vmsup0\"\nsubnet = \"10.77.0.1/24\"\nusers = [\"{one}\", \"{other}\"]\n\
         leases = 300\npool = 0\n{more}"
    ))
}

/// Past the typed end. False where netd has hung up already.
fn send_raw(socket: &impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let bytes = [rustix::io::IoSlice::new(bytes)];
    rustix::net::sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL).is_ok()
}

fn encoded(request: &Request) -> Vec<u8> {
    ipc::codec::encode(request, 1000).unwrap()
}

/// Waits until netd has hung up.
fn hung_up(channel: &ipc::Channel<Request, Reply>) {
    eventually("netd to hang up", || match channel.receive() {
        Err(error) => !error.would_block(),
        Ok(_) => false,
    });
}

#[test]
fn peers_that_say_nothing_or_half_a_frame_are_in_nobodys_way() {
    if !as_root("peers_that_say_nothing_or_half_a_frame_are_in_nobodys_way") {
        return;
    }
    let host = shared("");
    let fds = host.fds();
    let silent: Vec<OwnedFd> = (0..4).map(|_| host.connect(&attacker())).collect();
    let request = encoded(&Request::Lease(wanted("default", 1)));
    let mut greeted = Vec::new();
    for cut in [1, request.len() / 2, request.len() - 1] {
        let client = host.client(attacker());
        send_raw(&client.channel, &request[..cut], &[]);
        greeted.push(client);
    }
    host.works(tenant(), "default");
    // What was cut is no request: over at once. Who says nothing is dropped some time later.
    for client in greeted {
        hung_up(&client.channel);
    }
    for socket in silent {
        let channel = ipc::Channel::<Request, Reply>::new(socket);
        let _ = channel.receive();
        hung_up(&channel);
    }
    eventually("the fds of before", || host.fds() <= fds);
    assert!(host.client(attacker()).leases().is_empty());
}

#[test]
fn a_silent_peer_that_was_greeted_is_dropped_too() {
    if !as_root("a_silent_peer_that_was_greeted_is_dropped_too") {
        return;
    }
    let host = shared("");
    let client = host.client(attacker());
    assert_eq!(client.leases(), []);
    hung_up(&client.channel);
    host.works(tenant(), "default");
}

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn ten_thousand_random_frames_change_nothing() {
    if !as_root("ten_thousand_random_frames_change_nothing") {
        return;
    }
    let host = shared("");
    let fds = host.fds();
    let victim = host.client(tenant()).lease("default", 1).unwrap();
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let good = encoded(&Request::Lease(Wanted { mac_suffix: Some([1, 2, 3]), ..wanted("default", 7) }));
    let mut client: Option<Client> = None;
    for n in 0..10_000u32 {
        let peer = client.get_or_insert_with(|| host.client(attacker()));
        let mut frame = match n % 3 {
            0 => good.clone(),
            _ => (0..numbers.next() % 300).map(|_| numbers.next() as u8).collect(),
        };
        // A right frame with a few wrong bytes comes further than noise.
        for _ in 0..numbers.next() % 4 {
            let at = numbers.next() as usize;
            if let Some(byte) = frame.get_mut(at % good.len()) {
                *byte = numbers.next() as u8;
            }
        }
        // Nothing at all is no frame, and would be waited for.
        if frame.is_empty() {
            frame.push(0xff);
        }
        if !send_raw(&peer.channel, &frame, &[]) || peer.channel.receive().is_err() {
            client = None;
        }
        if n % 1000 == 0 {
            host.works(tenant(), "default");
        }
    }
    drop(client);
    // What it got by luck it may keep; it is its own.
    let theirs = host.client(attacker());
    for lease in theirs.leases() {
        theirs.release(lease.id).unwrap();
    }
    eventually("the victim's lease alone", || host.ports() == [victim.lease.interface.clone()]);
    assert!(victim.passes());
    eventually("the fds of before", || host.fds() <= fds + 2);
}

#[test]
fn fds_that_nobody_asked_for_are_closed_and_their_sender_dropped() {
    if !as_root("fds_that_nobody_asked_for_are_closed_and_their_sender_dropped") {
        return;
    }
    let host = shared("");
    let fds = host.fds();
    let (reader, writer) = std::io::pipe().unwrap();
    let flood = vec![writer.as_fd(); 253];
    let request = encoded(&Request::Lease(wanted("default", 1)));
    let mut peers = Vec::new();
    for n in 0..100 {
        // With the greeting, and with a request.
        if n % 2 == 0 {
            let socket = host.connect(&attacker());
            send_raw(&socket, &[0; 20], &flood);
            peers.push(ipc::Channel::<Request, Reply>::new(socket));
        } else {
            let client = host.client(attacker());
            send_raw(&client.channel, &request, if n % 3 == 0 { &flood[..1] } else { &flood });
            peers.push(client.channel);
        }
        if n % 10 == 0 {
            host.works(tenant(), "default");
        }
    }
    for peer in &peers {
        // The greeting may have been on its way.
        let _ = peer.receive();
        hung_up(peer);
    }
    drop((flood, peers));
    drop(writer);
    // The pipe's end is seen only when every copy of the write end is closed.
    assert_eq!(std::io::Read::read(&mut &reader, &mut [0u8; 1]).unwrap(), 0);
    eventually("the fds of before", || host.fds() <= fds);
    assert!(host.client(attacker()).leases().is_empty());
    host.works(tenant(), "default");
}

#[test]
fn two_hundred_connections_at_once_leave_room_for_another_uid() {
    if !as_root("two_hundred_connections_at_once_leave_room_for_another_uid") {
        return;
    }
    let mut host = shared("");
    let fds = host.fds();
    let held = host.client(tenant());
    let crowd: Vec<OwnedFd> = (0..200)
        .filter_map(|n| {
            let socket = host.try_connect(&attacker()).ok()?;
            if n % 2 == 0 {
                let channel = ipc::Channel::<Request, Reply>::new(socket);
                let _ = channel.greet(NAME, VERSION, 0);
                return Some(channel.into_fd());
            }
            Some(socket)
        })
        .collect();
    assert!(crowd.len() > 50, "{} got in", crowd.len());
    assert!(host.alive());
    // While all of them are there.
    host.works(tenant(), "default");
    drop(held);
    drop(crowd);
    host.works(attacker(), "default");
    eventually("the fds of before", || host.fds() <= fds);
}

#[test]
fn a_peer_that_reads_no_answers_costs_no_memory() {
    if !as_root("a_peer_that_reads_no_answers_costs_no_memory") {
        return;
    }
    let host = shared("");
    let before = host.memory_kib();
    let clients: Vec<Client> = (0..8).map(|_| host.client(attacker())).collect();
    for client in &clients {
        rustix::io::ioctl_fionbio(&client.channel, true).unwrap();
        for _ in 0..5000 {
            if client.channel.send(&Request::Networks, &[]).is_err() {
                break;
            }
        }
    }
    host.works(tenant(), "default");
    assert!(host.memory_kib() < before + 1024, "{before} KiB before, {} KiB now", host.memory_kib());
}

#[test]
fn leases_of_others_stay_out_of_reach_for_crafted_numbers() {
    if !as_root("leases_of_others_stay_out_of_reach_for_crafted_numbers") {
        return;
    }
    let host = shared("");
    let victim = host.client(tenant()).lease("default", 42).unwrap();
    let thief = host.client(attacker());
    for id in (0..200).chain([u64::MAX, u64::MAX - 1, 1 << 32, victim.lease.id.0 | 1 << 32]) {
        assert!(thief.release(LeaseId(id)).is_err());
    }
    // The same number of a VM is another VM of another uid.
    let own = thief.lease("default", 42).unwrap();
    assert_ne!(own.lease.address, victim.lease.address);
    thief.release(own.lease.id).unwrap();
    assert!(victim.passes() && host.client(tenant()).leases().len() == 1);
}

/// A victim and an attacker in one network, and the attacker's TAP in the attacker's hands.
struct Holders {
    host: NetHost,
    victim: Wire,
    hostile: Wire,
}

fn holders(queues: u8) -> Holders {
    let host = shared("");
    let victim = host.client(tenant()).lease("default", 1).unwrap();
    let hostile = host.client(attacker()).lease_of(Wanted { queues, ..wanted("default", 2) }).unwrap();
    assert!(victim.passes() && hostile.passes());
    Holders { host, victim, hostile }
}

impl Holders {
    /// What the attacker does with its TAP, in the host's namespace, without a capability.
    fn attack<T: Send>(&self, work: impl FnOnce(&OwnedFd) -> T + Send) -> T {
        let tap = &self.hostile.queues[0];
        self.host.inside.run(|| as_caller(&attacker(), || work(tap)))
    }

    /// The victim answers the host, and its frames are let through.
    fn victim_is_reached(&self) {
        self.victim.answering(|_| {
            eventually("an answer of the victim's", || {
                // Not from what the host still remembers.
                self.host.inside.feed(&["ip", "neigh", "flush", "all"], "");
                self.host.inside.ping(self.victim.lease.address, 0)
            });
        });
        eventually("the victim's frames to pass", || self.victim.passes());
    }

    fn interface_goes(&self) {
        let name = &self.hostile.lease.interface;
        eventually("the hostile interface to go", || !self.host.ports().contains(name));
        eventually("its elements to go", || !self.host.leased(name));
        eventually("its lease to end", || self.host.client(attacker()).leases().is_empty());
    }
}

#[test]
fn a_tap_that_is_made_to_persist_goes_all_the_same() {
    if !as_root("a_tap_that_is_made_to_persist_goes_all_the_same") {
        return;
    }
    let holders = holders(1);
    holders.attack(|tap| tun::set(tap, tun::TUNSETPERSIST, 1)).unwrap();
    holders.interface_goes();
    holders.victim_is_reached();
    // And where the flag is set in the last moment.
    let late = holders.host.client(attacker()).lease("default", 3).unwrap();
    tun::set(&late.queues[0], tun::TUNSETPERSIST, 1).unwrap();
    drop(late);
    eventually("no port but the victim's", || holders.host.ports() == [holders.victim.lease.interface.clone()]);
}

#[test]
fn a_tap_that_takes_another_vms_address_harms_only_itself() {
    if !as_root("a_tap_that_takes_another_vms_address_harms_only_itself") {
        return;
    }
    let bridge_mac = |h: &Holders| h.host.mac("vmsup0");
    type Chosen = fn(&Holders, [u8; 6]) -> [u8; 6];
    let choices: [(&str, Chosen); 4] = [
        ("the victim's", |h, _| h.victim.lease.mac),
        ("the bridge's", |_, bridge| bridge),
        ("its own guest's", |h, _| h.hostile.lease.mac),
        ("anything", |_, _| [2, 9, 9, 9, 9, 9]),
    ];
    for (what, chosen) in choices {
        let holders = holders(1);
        let mac = chosen(&holders, bridge_mac(&holders));
        // The kernel refuses some by itself.
        let changed = holders.attack(|tap| tun::set_mac(tap, mac)).is_ok();
        if changed {
            holders.interface_goes();
        }
        holders.victim_is_reached();
        let entries = holders.host.inside.json(&["bridge", "-j", "fdb", "show", "br", "vmsup0"]);
        let victim = holders.victim.lease.mac.map(|b| format!("{b:02x}")).join(":");
        let to: Vec<&str> = entries
            .as_array()
            .unwrap()
            .iter()
            .filter(|e| e["mac"] == victim.as_str())
            .filter_map(|e| e["ifname"].as_str())
            .collect();
        assert_eq!(to, [holders.victim.lease.interface.as_str()], "{what}: {entries}");
        assert!(changed || what != "the victim's", "the attack was possible");
    }
}

#[test]
fn nobody_attaches_to_a_tap_a_second_time() {
    if !as_root("nobody_attaches_to_a_tap_a_second_time") {
        return;
    }
    for queues in [1, 2] {
        let holders = holders(queues);
        for name in [&holders.hostile.lease.interface, &holders.victim.lease.interface] {
            for several in [false, true] {
                let refused = holders.attack(|_| tun::attach(name, several)).unwrap_err();
                let code = refused.raw_os_error();
                let codes = [Some(libc::EPERM), Some(libc::EBUSY), Some(libc::EINVAL)];
                assert!(codes.contains(&code), "{name}: {refused}");
            }
        }
        // A holder can name another owner, itself for instance: that is seen, and the interface goes.
        let uid = u64::from(attacker().uid);
        holders.attack(|tap| tun::set(tap, tun::TUNSETOWNER, uid)).unwrap();
        holders.interface_goes();
        holders.victim_is_reached();
    }
}

#[test]
fn a_tap_given_to_a_group_goes() {
    if !as_root("a_tap_given_to_a_group_goes") {
        return;
    }
    let holders = holders(1);
    let gid = u64::from(attacker().gid);
    holders.attack(|tap| tun::set(tap, tun::TUNSETGROUP, gid)).unwrap();
    holders.interface_goes();
    holders.victim_is_reached();
}

#[test]
fn other_offloads_and_no_carrier_are_the_holders_own_loss() {
    if !as_root("other_offloads_and_no_carrier_are_the_holders_own_loss") {
        return;
    }
    let holders = holders(1);
    for offloads in [0, 0x1f, 0x61f, 1] {
        let _ = holders.attack(|tap| tun::set(tap, tun::TUNSETOFFLOAD, offloads));
        holders.victim_is_reached();
    }
    // The carrier: an int behind a pointer.
    let down = 0i32;
    let _ = holders.attack(|tap| tun::set(tap, tun::TUNSETCARRIER, (&raw const down) as u64));
    holders.victim_is_reached();
    let name = holders.hostile.lease.interface.clone();
    drop(holders.hostile);
    eventually("the interface to go with its holder", || !holders.host.ports().contains(&name));
}

#[test]
fn a_flood_of_frames_from_one_tap_leaves_netd_and_its_neighbour_alone() {
    if !as_root("a_flood_of_frames_from_one_tap_leaves_netd_and_its_neighbour_alone") {
        return;
    }
    let holders = holders(1);
    let packet =
        holders.hostile.packet(holders.host.mac("vmsup0"), [192, 0, 2, 2].into(), UDP, &frames::udp(1, 2, &[0; 1000]));
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = holders.hostile.send(&packet);
            }
        });
        for _ in 0..20 {
            holders.host.works(tenant(), "default");
        }
        holders.victim_is_reached();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
