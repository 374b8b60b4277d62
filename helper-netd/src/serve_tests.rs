//! The real loop over real sockets, on a kernel in memory. Whom a newcomer belongs to is what the test says.

use super::*;
use crate::ops::IfName;
use crate::permit::Who;
use crate::testing::{FakeKernel, Random, Scratch, lease_request, network, start, wanted};
use ipc::codec;
use netd_api::{LeaseId, Refusal};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketType, connect, sendmsg,
    socket_with,
};
use std::cell::Cell;

thread_local! {
    static WHO: Cell<u32> = const { Cell::new(1000) };
}

struct Host {
    kernel: FakeKernel,
    scratch: Scratch,
    server: Server<FakeKernel>,
    signals: OwnedFd,
}

fn host() -> Host {
    let (kernel, scratch) = (FakeKernel::new(), Scratch::new());
    let who = Who { users: vec![1000, 2000], groups: vec![], ..Who::default() };
    let netd = start(&kernel, &scratch, vec![crate::network::Network { who, ..network("a", "br-a", "10.1.0.1", 24) }]);
    let listener = socket();
    rustix::net::bind(&listener, &SocketAddrUnix::new(scratch.0.join("sock")).unwrap()).unwrap();
    rustix::net::listen(&listener, 256).unwrap();
    let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
    let signals = event.try_clone().unwrap();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let identify: Identify = |_| Ok(crate::testing::caller(WHO.get()));
    let server = Server::new(netd, Fds { epoll, listener, signals: event }, identify).unwrap();
    Host { kernel, scratch, server, signals }
}

fn socket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

type Client = Channel<Request, Reply>;

impl Host {
    /// Turns of the loop until one finds nothing to do.
    fn pump(&mut self) {
        for _ in 0..200 {
            assert_eq!(self.server.turn(Some(Duration::ZERO)).unwrap(), None);
            self.kernel.collect(false);
        }
    }

    /// Until the interface is gone: a copy of its fd may be in another test's fork for a moment.
    fn pump_until_gone(&mut self, interface: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.kernel.index_of(interface).is_some() {
            assert!(Instant::now() < deadline, "{interface} is still held");
            self.pump();
        }
        self.pump();
    }

    fn connect(&self, uid: u32) -> Client {
        WHO.set(uid);
        let socket = socket();
        connect(&socket, &SocketAddrUnix::new(self.scratch.0.join("sock")).unwrap()).unwrap();
        Channel::new(socket)
    }

    /// A client that is in.
    fn client(&mut self, uid: u32) -> Client {
        let client = self.connect(uid);
        client.greet(NAME, VERSION, 0).unwrap();
        self.pump();
        client.meet(NAME, VERSION, 0).unwrap();
        client
    }

    fn ask(&mut self, client: &Client, request: &Request) -> (Reply, Vec<OwnedFd>) {
        client.send(request, &[]).unwrap();
        self.pump();
        client.receive().unwrap()
    }

    /// A request by somebody else is served as ever.
    fn serves(&mut self, uid: u32) {
        let client = self.client(uid);
        assert!(matches!(self.ask(&client, &Request::Status).0, Reply::Status(_)));
    }
}

fn raw(to: &Client, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
    let _ = sendmsg(to, &[rustix::io::IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
}

fn is_closed(client: &Client) -> bool {
    loop {
        match client.receive() {
            Ok(_) => {}
            Err(error) => return !error.would_block(),
        }
    }
}

#[test]
fn a_lease_arrives_with_its_fds_and_netd_keeps_no_copy() {
    let mut host = host();
    let client = host.client(1000);
    let asked = Request::Lease(netd_api::Wanted { queues: 3, ..wanted("a") });
    let (reply, queues) = host.ask(&client, &asked);
    let Reply::Leased(lease) = reply else { panic!("{reply:?}") };
    assert_eq!(queues.len(), 3);
    assert!(host.kernel.index_of(&lease.interface).is_some());
    drop(queues);
    host.pump_until_gone(&lease.interface);
    let (reply, _) = host.ask(&client, &Request::Leases { after: LeaseId(0) });
    assert_eq!(reply, Reply::Leases(vec![]));
}

#[test]
fn another_uids_lease_is_out_of_reach() {
    let mut host = host();
    let (mine, theirs) = (host.client(1000), host.client(2000));
    let (Reply::Leased(lease), _held) = host.ask(&mine, &lease_request("a")) else { panic!() };
    for id in [lease.id, LeaseId(0), LeaseId(u64::MAX)] {
        let (reply, _) = host.ask(&theirs, &Request::Release { lease: id });
        assert_eq!(reply, Reply::Refused(Refusal::NotYours));
    }
    assert_eq!(host.ask(&mine, &Request::Release { lease: lease.id }).0, Reply::Released);
}

#[test]
fn ten_thousand_random_frames_change_nothing() {
    let mut host = host();
    let mut random = Random(42);
    let good = codec::encode(&lease_request("nowhere"), 256).unwrap();
    let mut client = host.client(1000);
    for _ in 0..10_000 {
        let mut frame: Vec<u8> = if random.below(2) == 0 {
            good.clone()
        } else {
            (0..1 + random.below(300)).map(|_| random.next() as u8).collect()
        };
        for _ in 0..random.below(4) {
            let at = random.below(frame.len());
            frame[at] = random.next() as u8;
        }
        frame.truncate(1 + random.below(frame.len()));
        raw(&client, &frame, &[]);
        for _ in 0..3 {
            host.server.turn(Some(Duration::ZERO)).unwrap();
        }
        if is_closed(&client) {
            drop(client);
            client = host.connect(1000);
            client.greet(NAME, VERSION, 0).unwrap();
            for _ in 0..3 {
                host.server.turn(Some(Duration::ZERO)).unwrap();
            }
        }
    }
    assert!(host.kernel.world().names.is_empty(), "no TAP was made");
    assert!(host.server.offences[&1000] > 1000, "{:?}", host.server.offences);
    drop(client);
    host.serves(1000);
}

#[test]
fn a_frame_with_fds_is_refused_and_they_are_closed() {
    let mut host = host();
    for count in [1, 32, 253] {
        let client = host.client(1000);
        let (mut reader, writer) = std::io::pipe().unwrap();
        raw(&client, &codec::encode(&Request::Status, 256).unwrap(), &vec![writer.as_fd(); count]);
        host.pump();
        assert!(is_closed(&client), "{count}");
        drop(writer);
        assert_eq!(std::io::Read::read(&mut reader, &mut [0]).unwrap(), 0, "netd holds none of {count}");
    }
    host.serves(1000);
}

#[test]
fn a_peer_of_another_release_is_sent_away() {
    let mut host = host();
    for (name, version) in [(NAME, VERSION + 1), ("vmsup-jailer", VERSION)] {
        let client = host.connect(1000);
        client.greet(name, version, 0).unwrap();
        host.pump();
        assert!(is_closed(&client));
    }
    assert_eq!(host.server.peers(), 0);
}

#[test]
fn a_silent_peer_is_dropped_when_its_time_is_over_and_not_before() {
    let mut host = host();
    let (half, silent, busy) = (host.connect(1000), host.client(1000), host.client(2000));
    host.pump();
    assert_eq!(host.server.peers(), 3);
    for peer in host.server.peers.values_mut().filter(|p| p.caller.uid == 1000) {
        peer.deadline = Instant::now();
    }
    host.pump();
    assert!(is_closed(&half) && is_closed(&silent));
    assert!(matches!(host.ask(&busy, &Request::Status).0, Reply::Status(_)));
    assert_eq!(host.server.peers(), 1);
}

#[test]
fn a_peer_that_reads_no_answers_is_dropped() {
    let mut host = host();
    let client = host.client(1000);
    let mut sent = 0;
    while client.send(&Request::Status, &[]).is_ok() && sent < 10_000 {
        sent += 1;
        host.server.turn(Some(Duration::ZERO)).unwrap();
    }
    assert!(sent < 10_000, "its socket was full at some time, and it was let go");
    host.pump();
    assert_eq!(host.server.peers(), 0);
}

#[test]
fn two_hundred_connections_of_one_uid_leave_room_for_another() {
    let mut host = host();
    let flood: Vec<Client> = (0..200).map(|_| host.connect(1000)).collect();
    host.pump();
    assert_eq!(host.server.peers(), PEERS_OF_UID);
    host.serves(2000);
    drop(flood);
    host.pump();
    host.serves(1000);
}

#[test]
fn many_uids_together_lock_nobody_out() {
    let mut host = host();
    let mut flood = Vec::new();
    for uid in 0..100 {
        flood.extend((0..3).map(|_| host.connect(50_000 + uid)));
        host.pump();
    }
    assert_eq!(host.server.peers(), PEERS);
    host.serves(2000);
}

#[test]
fn connections_that_hung_up_do_not_count() {
    let mut host = host();
    for _ in 0..40 {
        drop(host.connect(1000));
    }
    let client = host.connect(1000);
    client.greet(NAME, VERSION, 0).unwrap();
    host.pump();
    assert!(client.meet(NAME, VERSION, 0).is_ok());
}

#[test]
fn without_fds_the_listener_rests_and_comes_back() {
    let mut host = host();
    host.server.rest(true).unwrap();
    let client = host.connect(1000);
    client.greet(NAME, VERSION, 0).unwrap();
    host.pump();
    assert_eq!(host.server.peers(), 0);
    host.server.resting = Some(Instant::now());
    host.pump();
    assert!(client.meet(NAME, VERSION, 0).is_ok());
    assert_eq!(host.server.resting, None);
}

#[test]
fn nothing_wakes_an_idle_netd() {
    let mut host = host();
    let client = host.client(1000);
    let (_, _held) = host.ask(&client, &lease_request("a"));
    drop(client);
    host.pump();
    assert_eq!((host.server.peers(), host.server.netd.due(), host.server.resting), (0, None, None));
}

#[test]
fn events_of_the_kernel_are_taken_before_requests() {
    let mut host = host();
    let client = host.client(1000);
    let (Reply::Leased(lease), held) = host.ask(&client, &lease_request("a")) else { panic!() };
    // Both wait when the loop turns: the lease must be gone for the answer.
    drop(held);
    host.kernel.collect(true);
    client.send(&Request::Leases { after: LeaseId(0) }, &[]).unwrap();
    host.server.turn(Some(Duration::ZERO)).unwrap();
    assert_eq!(client.receive().unwrap().0, Reply::Leases(vec![]));
    assert!(host.kernel.index_of(IfName::new(&lease.interface).unwrap().as_str()).is_none());
}

#[test]
fn a_signal_is_told() {
    let mut host = host();
    // Not a whole siginfo: nothing that a signalfd would say.
    rustix::io::write(&host.signals, &1u64.to_ne_bytes()).unwrap();
    assert_eq!(host.server.turn(Some(Duration::ZERO)).unwrap(), None);
    let (reader, writer) = std::io::pipe().unwrap();
    let mut info = [0u8; 128];
    for (signal, wish) in [(libc::SIGHUP, Wish::Reload), (libc::SIGTERM, Wish::Leave), (libc::SIGINT, Wish::Leave)] {
        info[0] = signal as u8;
        rustix::io::write(&writer, &info).unwrap();
        host.server.signals = reader.try_clone().unwrap().into();
        assert_eq!(host.server.signal(), Some(wish));
    }
}
