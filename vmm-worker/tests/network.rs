//! Whole guests on a real TAP, with the host's own TCP and IP as their network, in a worker whose threads run under their
//! shipped filters.

mod common;
mod tap;

use common::{Ended, Peer, Vm, Worker, guest};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use tap::{in_own_network, ip, lease};
use worker_api::{NetCounters, Reply, Request, exit};

/// A VM on a TAP whose other side is the host's, 10.77.0.1.
struct Networked {
    worker: Worker,
    vm: Vm,
    peer: Peer,
}

impl Networked {
    fn start(kernel: &str, options: &str) -> Self {
        let mut vm = Vm::new(guest(kernel));
        vm.spec.cmdline = options.into();
        vm.spec.nets.push(lease());
        vm.fds.push(OwnedFd::from(tap::tap(true)));
        ip("link set lo up");
        ip("addr add 10.77.0.1/24 dev t0");
        ip("link set t0 up");
        let worker = Worker::start();
        let peer = worker.connect();
        vm.start_on(&peer).unwrap();
        // The worker has the only one that is left: the TAP lives as long as it does.
        vm.fds.pop();
        vm.wait_for("NET mac=02:76:6d:00:00:05 ip=10.77.0.5 gw=10.77.0.1 mtu=1500\n");
        Self { worker, vm, peer }
    }

    fn ask(&self, request: &Request) -> Reply {
        self.peer.send(request, &[]).unwrap();
        self.peer.receive().expect("a reply").0
    }

    fn counters(&self) -> NetCounters {
        match self.ask(&Request::Stats) {
            Reply::Stats(stats) => stats.nets[0],
            other => panic!("{other:?}"),
        }
    }

    /// Presses the power button, and gives what the guest wrote.
    fn end(self) -> String {
        assert_eq!(self.ask(&Request::PowerButton), Reply::Done);
        let ended = self.worker.end();
        assert_eq!(ended, Ended::with_status(exit::SHUTDOWN), "{}", self.vm.console());
        self.vm.console()
    }
}

fn ping(options: &[&str]) -> bool {
    let ping =
        Command::new("ping").args(options).args(["-c", "1", "-W", "20", "10.77.0.5"]).stdout(Stdio::null()).status();
    ping.expect("ping (Debian: iputils-ping)").success()
}

#[test]
fn a_guest_takes_its_address_answers_pings_and_serves_a_page() {
    in_own_network("a_guest_takes_its_address_answers_pings_and_serves_a_page", || {
        let vm = Networked::start("net", "");
        assert_eq!(vm.counters().dhcp_answers, 2, "nothing of DHCP leaves the worker");
        assert!(ping(&[]));
        assert!(ping(&["-s", "1472", "-M", "do"]), "a packet of 1,500 bytes");
        for _ in 0..3 {
            let mut guest = TcpStream::connect("10.77.0.5:80").unwrap();
            guest.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            let mut page = String::new();
            guest.read_to_string(&mut page).unwrap();
            assert!(page.starts_with("HTTP/1.0 200 ") && page.ends_with("\r\n\r\nHELLO FROM THE GUEST\n"), "{page}");
        }
        let refused = TcpStream::connect("10.77.0.5:81").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let counters = vm.counters();
        assert!(counters.received_bytes > 1500 && counters.sent_bytes > 1500, "{counters:?}");
        let console = vm.end();
        assert!(console.contains("power button") && !console.contains("FAIL"), "{console}");
    });
}

#[test]
fn a_guest_fetches_a_page_that_does_not_fit_one_segment() {
    in_own_network("a_guest_fetches_a_page_that_does_not_fit_one_segment", || {
        ip("link set lo up");
        let listener = TcpListener::bind("0.0.0.0:8000").unwrap();
        let vm = Networked::start("net", "fetch=10.77.0.1:8000/a/path?and=more");
        let (mut connection, _) = listener.accept().unwrap();
        let mut request = [0; 256];
        let length = connection.read(&mut request).unwrap();
        assert_eq!(&request[..length], b"GET /a/path?and=more HTTP/1.0\r\n\r\n");
        connection.write_all(b"HTTP/1.0 203 Whatever\r\nServer: a\r\n\r\nthe first\x1b line\r\n").unwrap();
        connection.write_all(&[b'x'; 100_000]).unwrap();
        drop(connection);
        vm.vm.wait_for("FETCHED 203 100017 bytes\nthe first. line\n");
        let counters = vm.counters();
        assert_eq!((counters.dropped_offload, counters.dropped_buffer), (0, 0), "{counters:?}");
        assert!(!vm.end().contains("FAIL"));
    });
}

#[test]
fn a_fetch_that_is_refused_says_so_and_the_guest_goes_on() {
    in_own_network("a_fetch_that_is_refused_says_so_and_the_guest_goes_on", || {
        let vm = Networked::start("net", "fetch=10.77.0.1:8000/");
        vm.vm.wait_for("FETCH FAILED connection refused\n");
        assert!(ping(&[]));
        vm.end();
    });
}

/// Two TAPs of a bridge: whoever holds the other one may call any place of a frame a checksum to complete, and nobody does so.
#[test]
fn no_neighbours_header_changes_a_frame_on_its_way_to_a_guest() {
    in_own_network("no_neighbours_header_changes_a_frame_on_its_way_to_a_guest", || {
        let vm = Networked::start("net", "");
        let mut neighbour = tap::tap_named(b"t1", true);
        ip("addr flush dev t0");
        ip("link add br0 type bridge mcast_snooping 0");
        ip("addr add 10.77.0.1/24 dev br0");
        ["link set t0 master br0", "link set t1 master br0", "link set t1 up", "link set br0 up"]
            .into_iter()
            .for_each(ip);
        assert!(ping(&[]));
        // An ARP reply, 10.77.0.6 to the guest, whose sender's address would be completed to another one.
        let (mac, guest) = ([2, 0x76, 0x6d, 0, 0, 6], [2, 0x76, 0x6d, 0, 0, 5]);
        let arp = [0, 1, 8, 0, 6, 4, 0, 2];
        let reply = [&guest[..], &mac, &[8, 6], &arp, &mac, &[10, 77, 0, 6], &guest, &[10, 77, 0, 5]].concat();
        let packet = [&[1, 0, 0, 0, 0, 0, 30, 0, 0, 0, 0, 0][..], &reply].concat();
        assert_eq!(neighbour.write(&packet).unwrap(), packet.len());
        tap::until("the frame dropped", || vm.counters().dropped_offload == 1);
        assert!(ping(&[]), "and the next frame passes");
        let mut page = String::new();
        let mut connection = TcpStream::connect("10.77.0.5:80").unwrap();
        connection.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        connection.read_to_string(&mut page).unwrap();
        assert!(page.ends_with("HELLO FROM THE GUEST\n"), "the host's own checksums are completed: {page}");
        assert_eq!(vm.counters().dropped_offload, 1);
        assert!(!vm.end().contains("FAIL"));
    });
}

/// Time that a worker's thread was on a CPU, ns.
fn busy(worker: &Worker, thread: &str) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", worker.pid())).unwrap();
    let task = tasks
        .map(|task| task.unwrap().path())
        .find(|task| std::fs::read_to_string(task.join("comm")).unwrap().trim() == thread);
    let stat = std::fs::read_to_string(task.unwrap().join("schedstat")).unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

/// Who deletes the interface takes the guest's network, and neither its worker's sleep nor its power button.
#[test]
fn a_vm_outlives_its_interface() {
    in_own_network("a_vm_outlives_its_interface", || {
        let vm = Networked::start("net", "");
        assert!(ping(&[]));
        ip("link set t0 down");
        ip("link set t0 up");
        assert!(ping(&[]), "an interface that was down for a while");
        ip("link del t0");
        tap::until("the reactor asleep", || {
            let before = busy(&vm.worker, "reactor");
            std::thread::sleep(std::time::Duration::from_millis(20));
            busy(&vm.worker, "reactor") == before
        });
        assert!(vm.end().contains("power button"));
    });
}

/// What `frames.c` can send, in its order.
const KINDS: [&str; 30] = [
    "good",
    "mac",
    "ip",
    "arp",
    "arpip",
    "arpmac",
    "arpflood",
    "vlan",
    "qinq",
    "ipv6",
    "ethertype",
    "dhcpserver",
    "dhcpother",
    "dhcpgarbage",
    "multicast",
    "metadata",
    "peer",
    "source0",
    "fragments",
    "tiny",
    "header",
    "short",
    "zero",
    "noheader",
    "long",
    "oversize",
    "badgso",
    "badcsum",
    "badsegment",
    "badlength",
];

/// The host's rules are not there, so that whatever the worker lets through arrives; but nothing that a guest sends stops its
/// own device or the next frame, and what no network takes is dropped here and counted.
#[test]
fn after_each_bad_frame_of_a_hostile_guest_the_next_good_one_passes() {
    in_own_network("after_each_bad_frame_of_a_hostile_guest_the_next_good_one_passes", || {
        let vm = Networked::start("frames", "frames=all count=50");
        vm.vm.wait_for("FRAMES DONE\n");
        let console = vm.vm.console();
        for kind in KINDS {
            assert!(console.contains(&format!("SENT {kind}\n")), "{kind}: {console}");
            assert!(console.contains(&format!("ANSWERED {kind}\n")), "{kind}: {console}");
        }
        assert!(!console.contains("FAIL") && !console.contains("RESET"), "{console}");
        let counters = vm.counters();
        assert!(counters.dropped_length >= 4, "short, zero, long, oversize: {counters:?}");
        assert!(counters.dropped_header >= 3, "headers that the kernel or the worker refuses: {counters:?}");
        assert_eq!((counters.dropped_dhcp, counters.dhcp_answers), (2, 2), "{counters:?}");
        vm.end();
    });
}
