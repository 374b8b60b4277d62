//! A double of netd: speaks the real protocol from threads of the test's own process, and grants leases whose TAPs are
//! copies of `/dev/null`.

use ipc::Channel;
use netd_api::{
    Flow, Lease, LeaseId, LeaseInfo, NAME, NetworkInfo, PAGE, Refusal, Reply, Request, Traffic, VERSION, Wanted,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Character device 1:3, `/dev/null`: what this netd's TAPs are.
pub const NULL: (u32, u32) = (1, 3);

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What it does.
#[derive(Clone)]
pub enum NetAct {
    /// Grant, release and tell.
    Good,
    /// Say no to whoever wants this network, grant everything else.
    Refuse(&'static str, Refusal),
    /// Take requests and never answer.
    Silent,
    /// Hang up at each request.
    HangUp,
    /// Speak another version.
    OldRelease,
    /// Grant something that cannot be.
    Lie(fn(&mut Lease)),
    /// Tell of leases and networks that cannot be.
    Invent(fn(&Request) -> Reply),
    /// Grant with memfds for TAPs.
    NoTaps,
    /// Grant with TAPs that block.
    Blocking,
}

/// A netd.
pub struct FakeNetd {
    pub act: Arc<Mutex<NetAct>>,
    /// Leases that were granted and not released.
    pub leases: Arc<Mutex<BTreeMap<u64, Wanted>>>,
    /// All requests, in order.
    pub seen: Arc<Mutex<Vec<Request>>>,
    listener: OwnedFd,
    path: PathBuf,
}

/// The lease with that number, as it is granted.
pub fn granted(id: u64, queues: u8) -> Lease {
    Lease {
        id: LeaseId(id),
        interface: format!("vt{id}"),
        queues,
        mac: [2, 0x76, 0x6d, 0, 0, id as u8],
        address: Ipv4Addr::new(10, 77, 0, id as u8 + 1),
        prefix: 24,
        gateway: Ipv4Addr::new(10, 77, 0, 1),
        dns: vec![Ipv4Addr::new(9, 9, 9, 9)],
        mtu: 1500,
    }
}

impl FakeNetd {
    /// Listens at `path`.
    pub fn start(path: &Path) -> FakeNetd {
        let flags = SocketFlags::CLOEXEC;
        let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(path).unwrap()).unwrap();
        rustix::net::listen(&listener, 16).unwrap();
        let netd = FakeNetd {
            act: Arc::new(Mutex::new(NetAct::Good)),
            leases: Arc::default(),
            seen: Arc::default(),
            listener,
            path: path.to_owned(),
        };
        let (act, leases, seen) = (netd.act.clone(), netd.leases.clone(), netd.seen.clone());
        let listener = netd.listener.try_clone().unwrap();
        std::thread::spawn(move || {
            let next = Arc::new(Mutex::new(0));
            while let Ok(socket) = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC) {
                let peer = Peer { act: act.clone(), leases: leases.clone(), seen: seen.clone(), next: next.clone() };
                std::thread::spawn(move || peer.serve(Channel::new(socket)));
            }
        });
        netd
    }

    pub fn acts(&self, act: NetAct) {
        *self.act.lock().unwrap() = act;
    }

    /// Waits until every lease was released.
    pub async fn nothing_leased(&self) {
        let released = async {
            while !self.leases.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        let left = || format!("leases that nobody releases: {:?}", self.leases.lock().unwrap());
        tokio::time::timeout(PATIENCE, released).await.unwrap_or_else(|_| panic!("{}", left()));
    }

    /// How many leases were asked for so far.
    pub fn asked(&self) -> usize {
        self.seen.lock().unwrap().iter().filter(|r| matches!(r, Request::Lease(_))).count()
    }
}

impl Drop for FakeNetd {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        let _ = std::fs::remove_file(&self.path);
    }
}

/// One connection's thread.
struct Peer {
    act: Arc<Mutex<NetAct>>,
    leases: Arc<Mutex<BTreeMap<u64, Wanted>>>,
    seen: Arc<Mutex<Vec<Request>>>,
    next: Arc<Mutex<u64>>,
}

impl Peer {
    fn serve(self, channel: Channel<Reply, Request>) {
        let version = if matches!(*self.act.lock().unwrap(), NetAct::OldRelease) { VERSION + 1 } else { VERSION };
        if channel.handshake(NAME, version, 0).is_err() {
            return;
        }
        while let Ok((request, _)) = channel.receive() {
            self.seen.lock().unwrap().push(request.clone());
            let act = self.act.lock().unwrap().clone();
            let (reply, fds) = match (&request, &act) {
                (_, NetAct::HangUp) => return,
                (_, NetAct::Silent) => continue,
                (_, NetAct::Invent(reply)) => (reply(&request), Vec::new()),
                (Request::Lease(wanted), act) => self.lease(wanted, act),
                (Request::Release { lease }, _) => match self.leases.lock().unwrap().remove(&lease.0) {
                    Some(_) => (Reply::Released, Vec::new()),
                    None => (Reply::Refused(Refusal::NotYours), Vec::new()),
                },
                (Request::Networks, _) => (Reply::Networks(vec![network()]), Vec::new()),
                (Request::Leases { after }, _) => (Reply::Leases(self.page(*after)), Vec::new()),
                // Lease n has sent n packets and received 2 n.
                (Request::Traffic { after }, _) => {
                    let flow = |n| Flow { packets: n, bytes: 100 * n, dropped: 0 };
                    let traffic = |id: LeaseId| Traffic { id, sent: flow(id.0), received: flow(2 * id.0) };
                    (Reply::Traffic(self.page(*after).iter().map(|lease| traffic(lease.id)).collect()), Vec::new())
                }
                (Request::Status, _) => panic!("nobody asks for it here"),
            };
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            if channel.send(&reply, &fds).is_err() {
                return;
            }
        }
    }

    fn lease(&self, wanted: &Wanted, act: &NetAct) -> (Reply, Vec<OwnedFd>) {
        if let NetAct::Refuse(network, why) = act
            && wanted.network == *network
        {
            return (Reply::Refused(why.clone()), Vec::new());
        }
        let id = {
            let mut next = self.next.lock().unwrap();
            *next += 1;
            *next
        };
        let mut lease = granted(id, wanted.queues);
        if let Some(suffix) = wanted.mac_suffix {
            lease.mac[3..].copy_from_slice(&suffix);
        }
        if let NetAct::Lie(change) = act {
            change(&mut lease);
        }
        self.leases.lock().unwrap().insert(id, wanted.clone());
        let fds = (0..lease.queues).map(|_| tap(act)).collect();
        (Reply::Leased(lease), fds)
    }

    fn page(&self, after: LeaseId) -> Vec<LeaseInfo> {
        let leases = self.leases.lock().unwrap();
        let behind = leases.range(after.0 + 1..).take(PAGE);
        behind
            .map(|(id, wanted)| {
                let lease = granted(*id, wanted.queues);
                LeaseInfo {
                    id: lease.id,
                    network: wanted.network.clone(),
                    vm: wanted.vm,
                    interface: lease.interface,
                    mac: lease.mac,
                    address: lease.address,
                    forwards: wanted.forwards.clone(),
                }
            })
            .collect()
    }
}

/// The network that it tells of.
pub fn network() -> NetworkInfo {
    NetworkInfo {
        name: "default".into(),
        bridge: "vmsup0".into(),
        gateway: Ipv4Addr::new(10, 77, 0, 1),
        prefix: 24,
        nat: true,
        isolated: true,
        host: false,
        localhost_forwards: false,
        leases: 1,
        limit: 16,
        forwards: vec![(8000, 8999)],
    }
}

fn tap(act: &NetAct) -> OwnedFd {
    let flags = if matches!(act, NetAct::Blocking) { 0 } else { nix::libc::O_NONBLOCK };
    match act {
        NetAct::NoTaps => crate::serve::memfd::constant("no-tap", b"x").unwrap(),
        _ => std::fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/null").unwrap().into(),
    }
}
