//! Attacks on netd that are resisted: by whoever connects to its socket. During and after each, somebody else gets a lease
//! and its frames pass.

use netd_api::{LeaseId, NAME, Reply, Request, VERSION, Wanted};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vmsup_tests::netd::{Client, NetHost, stranger, tenant, wanted};
use vmsup_tests::{as_root, eventually};

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
    let host = NetHost::shared();
    let fds = host.fds();
    let silent: Vec<OwnedFd> = (0..4).map(|_| host.connect(&stranger())).collect();
    let request = encoded(&Request::Lease(wanted("default", 1)));
    let mut greeted = Vec::new();
    for cut in [1, request.len() / 2, request.len() - 1] {
        let client = host.client(stranger());
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
    assert!(host.client(stranger()).leases().is_empty());
}

#[test]
fn a_silent_peer_that_was_greeted_is_dropped_too() {
    if !as_root("a_silent_peer_that_was_greeted_is_dropped_too") {
        return;
    }
    let host = NetHost::shared();
    let client = host.client(stranger());
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
    let host = NetHost::shared();
    let fds = host.fds();
    let victim = host.client(tenant()).lease("default", 1).unwrap();
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let good = encoded(&Request::Lease(Wanted { mac_suffix: Some([1, 2, 3]), ..wanted("default", 7) }));
    let mut client: Option<Client> = None;
    for n in 0..10_000u32 {
        let peer = client.get_or_insert_with(|| host.client(stranger()));
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
    let theirs = host.client(stranger());
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
    let host = NetHost::shared();
    let fds = host.fds();
    let (reader, writer) = std::io::pipe().unwrap();
    let flood = vec![writer.as_fd(); 253];
    let request = encoded(&Request::Lease(wanted("default", 1)));
    let mut peers = Vec::new();
    for n in 0..100 {
        // With the greeting, and with a request.
        if n % 2 == 0 {
            let socket = host.connect(&stranger());
            // A kernel that knows SO_PASSRIGHTS refuses them here; then there is nobody to drop.
            if send_raw(&socket, &[0; 20], &flood) {
                peers.push(ipc::Channel::<Request, Reply>::new(socket));
            }
        } else {
            let client = host.client(stranger());
            if send_raw(&client.channel, &request, if n % 3 == 0 { &flood[..1] } else { &flood }) {
                peers.push(client.channel);
            }
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
    assert!(host.client(stranger()).leases().is_empty());
    host.works(tenant(), "default");
}

#[test]
fn two_hundred_connections_at_once_leave_room_for_another_uid() {
    if !as_root("two_hundred_connections_at_once_leave_room_for_another_uid") {
        return;
    }
    let mut host = NetHost::shared();
    let fds = host.fds();
    let held = host.client(tenant());
    let crowd: Vec<OwnedFd> = (0..200)
        .filter_map(|n| {
            let socket = host.try_connect(&stranger()).ok()?;
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
    host.works(stranger(), "default");
    eventually("the fds of before", || host.fds() <= fds);
}

#[test]
fn a_peer_that_reads_no_answers_costs_no_memory() {
    if !as_root("a_peer_that_reads_no_answers_costs_no_memory") {
        return;
    }
    let host = NetHost::shared();
    let before = host.memory_kib();
    let clients: Vec<Client> = (0..8).map(|_| host.client(stranger())).collect();
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
    let host = NetHost::shared();
    let victim = host.client(tenant()).lease("default", 42).unwrap();
    let thief = host.client(stranger());
    for id in (0..200).chain([u64::MAX, u64::MAX - 1, 1 << 32, victim.lease.id.0 | 1 << 32]) {
        assert!(thief.release(LeaseId(id)).is_err());
    }
    // The same number of a VM is another VM of another uid.
    let own = thief.lease("default", 42).unwrap();
    assert_ne!(own.lease.address, victim.lease.address);
    thief.release(own.lease.id).unwrap();
    assert!(victim.passes() && host.client(tenant()).leases().len() == 1);
}
