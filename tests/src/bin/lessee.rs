//! Speaks to netd for a test, as a process of its own: what a supervisor is that can be killed while somebody else holds the
//! TAPs it has asked for.
//!
//! usage: vmsup-lessee SOCKET
//!
//! Standard input is a socket. A request that comes over it goes to netd, the answer and its fds come back. The fds stay
//! open here, too, until this process ends.

use ipc::Channel;
use netd_api::{NAME, Reply, Request, VERSION};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::AsFd;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [socket] = &words[..] else { panic!("usage: vmsup-lessee SOCKET") };
    let peer =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::connect(&peer, &SocketAddrUnix::new(socket.as_str()).unwrap()).expect("netd");
    let netd: Channel<Request, Reply> = Channel::new(peer);
    netd.handshake(NAME, VERSION, 0).unwrap();
    let test: Channel<Reply, Request> = Channel::new(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let mut held = Vec::new();
    while let Ok((request, _)) = test.receive() {
        netd.send(&request, &[]).unwrap();
        let (reply, fds) = netd.receive().unwrap();
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        test.send(&reply, &borrowed).unwrap();
        held.extend(fds);
    }
}
