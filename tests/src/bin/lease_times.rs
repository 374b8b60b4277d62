//! Measures how long netd takes for a lease, as the supervisor sees it: from the request to the reply with its fd.
//!
//! usage: vmsup-lease-times SOCKET NETWORK RUNS
//!
//! Prints the median of so many round trips, µs. Between two of them it lets netd make a warm TAP again.

use ipc::Channel;
use netd_api::{NAME, Reply, Request, VERSION, VmId, Wanted};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::time::{Duration, Instant};

/// Round trips before those that count.
const WARM_UP: usize = 10;
/// netd needs far less to fill a pool and to end a lease.
const PAUSE: Duration = Duration::from_millis(25);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [socket, network, runs] = &words[..] else { panic!("usage: vmsup-lease-times SOCKET NETWORK RUNS") };
    let runs: usize = runs.parse().expect("a number of runs");
    let peer =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::connect(&peer, &SocketAddrUnix::new(socket.as_str()).unwrap()).expect("netd");
    let netd: Channel<Request, Reply> = Channel::new(peer);
    netd.handshake(NAME, VERSION, 0).unwrap();
    let mut times: Vec<Duration> = (0..runs + WARM_UP).map(|vm| lease(&netd, network, vm as u64)).collect();
    times.drain(..WARM_UP);
    times.sort();
    println!("{:.1}", times[runs / 2].as_secs_f64() * 1e6);
}

/// One lease and its end; the time of the lease.
fn lease(netd: &Channel<Request, Reply>, network: &str, vm: u64) -> Duration {
    let network = network.to_owned();
    let wanted = Wanted { network, vm: VmId(vm), queues: 1, offloads: true, mac_suffix: None, forwards: Vec::new() };
    let start = Instant::now();
    netd.send(&Request::Lease(wanted), &[]).unwrap();
    let (reply, taps) = netd.receive().unwrap();
    let took = start.elapsed();
    let Reply::Leased(lease) = reply else { panic!("netd answered {reply:?}") };
    netd.send(&Request::Release { lease: lease.id }, &[]).unwrap();
    assert_eq!(netd.receive().unwrap().0, Reply::Released);
    drop(taps);
    std::thread::sleep(PAUSE);
    took
}
