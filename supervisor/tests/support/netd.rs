//! A netd made of a script, which answers `Status` and `Networks`.

use netd_api::{NAME, NetworkInfo, Reply, Request, Status, VERSION};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept, bind, listen, socket_with};
use std::path::{Path, PathBuf};

/// Listens on a socket in `dir` and answers each connection; a protocol of another version says `version`.
pub fn netd(dir: &Path, version: u16, status: Status, networks: Vec<NetworkInfo>) -> PathBuf {
    let path = dir.join("netd.sock");
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    listen(&socket, 8).unwrap();
    std::thread::spawn(move || {
        while let Ok(peer) = accept(&socket) {
            let channel = ipc::Channel::<Reply, Request>::new(peer);
            if channel.handshake(NAME, version, 0).is_err() {
                continue;
            }
            while let Ok((request, _)) = channel.receive() {
                let reply = match request {
                    Request::Status => Reply::Status(status.clone()),
                    Request::Networks => Reply::Networks(networks.clone()),
                    _ => Reply::Refused(netd_api::Refusal::Invalid),
                };
                if channel.send(&reply, &[]).is_err() {
                    break;
                }
            }
        }
    });
    path
}

/// A netd of this release that has nothing to complain of.
pub fn good() -> Status {
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        rules: true,
        ip_forward: true,
        bridges_down: vec![],
        dropping_chains: vec![],
        leases: 3,
    }
}

/// A network of which the user has two leases.
pub fn network() -> NetworkInfo {
    NetworkInfo {
        name: "default".into(),
        bridge: "vmsup-none0".into(),
        gateway: [10, 77, 0, 1].into(),
        prefix: 24,
        nat: true,
        isolated: true,
        host: false,
        localhost_forwards: true,
        leases: 2,
        limit: 16,
        forwards: vec![(8000, 8999)],
    }
}

/// The version of the protocol that is spoken.
pub const SPOKEN: u16 = VERSION;
