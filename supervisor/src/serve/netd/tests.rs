//! The client against a netd that is good, away, silent, of another release, or lies.

use super::*;
use crate::serve::testing::TempDir;
use crate::serve::testing::netd::{FakeNetd, NULL, NetAct, granted};
use netd_api::{Lease as Told, VmId};
use std::net::Ipv4Addr;

/// A client whose netd is expected in a directory of the test's own.
fn client(deadline: Duration) -> (TempDir, Arc<Netd>) {
    let dir = TempDir::new();
    let netd = Netd::new(dir.path().join("netd.sock"), deadline, NULL);
    (dir, netd)
}

fn wanted(network: &str) -> Wanted {
    Wanted {
        network: network.into(),
        vm: VmId(7),
        queues: 2,
        offloads: true,
        mac_suffix: Some([1, 2, 3]),
        forwards: Vec::new(),
    }
}

async fn refused(netd: &Arc<Netd>) -> NetdError {
    netd.lease(vec![wanted("a")], ()).await.unwrap_err().error
}

#[tokio::test]
async fn a_lease_comes_with_its_queues_and_goes_when_it_is_dropped() {
    let (_dir, netd) = client(DEADLINE);
    let fake = FakeNetd::start(netd.path());
    let granted = netd.lease(vec![wanted("a"), wanted("b")], ()).await.unwrap();
    assert_eq!(granted.iter().map(|g| g.queues.len()).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(granted[0].told.mac, [2, 0x76, 0x6d, 1, 2, 3]);
    assert_eq!(fake.leases.lock().unwrap().len(), 2);
    drop(granted);
    netd.settled().await;
    assert!(fake.leases.lock().unwrap().is_empty());
}

#[tokio::test]
async fn who_gives_up_waiting_leaves_no_lease() {
    let (_dir, netd) = client(DEADLINE);
    let fake = FakeNetd::start(netd.path());
    let mut keep = Arc::new(());
    // The request went out with the call; nobody ever waits for the answer.
    drop(netd.lease(vec![wanted("a"), wanted("b")], keep.clone()));
    // The task that took the answers is over, and with it what it kept.
    while Arc::get_mut(&mut keep).is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(fake.asked(), 2);
    fake.nothing_leased().await;
}

#[tokio::test]
async fn what_was_granted_before_a_refusal_is_released() {
    let (_dir, netd) = client(DEADLINE);
    let fake = FakeNetd::start(netd.path());
    fake.acts(NetAct::Refuse("b", Refusal::NetworkFull));
    let error = netd.lease(vec![wanted("a"), wanted("b")], ()).await.unwrap_err();
    assert!(matches!((error.net, error.error), (1, NetdError::Refused(Refusal::NetworkFull))));
    netd.settled().await;
    assert!(fake.leases.lock().unwrap().is_empty());
    assert!(matches!(fake.seen.lock().unwrap().last(), Some(Request::Release { lease: LeaseId(1) })));
}

#[tokio::test]
async fn a_netd_that_is_away_is_told_from_one_that_is_silent() {
    let (_dir, netd) = client(Duration::from_millis(100));
    assert!(matches!(refused(&netd).await, NetdError::Away(_)));
    let fake = FakeNetd::start(netd.path());
    fake.acts(NetAct::Silent);
    assert!(matches!(refused(&netd).await, NetdError::Silent(_)));
    fake.acts(NetAct::HangUp);
    assert!(matches!(refused(&netd).await, NetdError::Channel(ipc::Error::Closed)));
    fake.acts(NetAct::OldRelease);
    assert!(matches!(refused(&netd).await, NetdError::Channel(ipc::Error::Version { .. })));
}

#[tokio::test]
async fn a_place_in_a_full_backlog_is_waited_for() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let (_dir, netd) = client(Duration::from_secs(30));
    let listener =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(netd.path()).unwrap()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let first = netd.way.begin(&wanted("a")).unwrap();
    assert!(matches!(netd.way.begin(&wanted("a")), Err(NetdError::Busy)));
    let leasing = netd.lease(vec![wanted("a")], ());
    // The place that becomes free is taken by who waited, whose request comes then.
    let served = tokio::task::spawn_blocking(move || {
        let accept = || rustix::net::accept_with(&listener, SocketFlags::CLOEXEC).unwrap();
        drop((accept(), first));
        let channel = ipc::Channel::<Reply, Request>::new(accept());
        channel.handshake(netd_api::NAME, netd_api::VERSION, 0).unwrap();
        let request = channel.receive().unwrap().0;
        channel.send(&Reply::Refused(Refusal::Failed), &[]).unwrap();
        request
    });
    let error = leasing.await.unwrap_err().error;
    assert!(matches!(error, NetdError::Refused(Refusal::Failed)), "{error}");
    assert_eq!(served.await.unwrap(), Request::Lease(wanted("a")));
}

#[tokio::test]
async fn a_lease_that_cannot_be_is_refused_and_released() {
    let (_dir, netd) = client(DEADLINE);
    let fake = FakeNetd::start(netd.path());
    let lies: [fn(&mut Told); 14] = [
        |l| l.interface = "vt1\x1b[2J".into(),
        |l| l.interface = "a-name-too-long1".into(),
        |l| l.interface.clear(),
        |l| l.queues = 1,
        |l| l.queues = 3,
        |l| l.mac[0] |= 1,
        |l| l.mac = [0; 6],
        |l| l.mac[5] = 9,
        |l| l.prefix = 33,
        |l| l.prefix = 0,
        |l| l.gateway = l.address,
        |l| l.gateway = Ipv4Addr::new(10, 78, 0, 1),
        |l| l.dns = vec![Ipv4Addr::LOCALHOST; 4],
        |l| l.mtu = 500,
    ];
    for (n, lie) in lies.into_iter().enumerate() {
        fake.acts(NetAct::Lie(lie));
        let error = refused(&netd).await;
        assert!(matches!(error, NetdError::Confused(_)), "{n}: {error}");
        assert!(!error.to_string().contains(|c: char| c.is_control()), "{error:?}");
    }
    for act in [NetAct::NoTaps, NetAct::Blocking] {
        fake.acts(act);
        let error = refused(&netd).await;
        assert!(error.to_string().contains("TAP"), "{error}");
    }
    netd.settled().await;
    assert!(fake.leases.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_device_that_is_no_tun_is_no_tap() {
    let dir = TempDir::new();
    let netd = Netd::new(dir.path().join("netd.sock"), DEADLINE, TUN);
    let fake = FakeNetd::start(netd.path());
    // /dev/null will do for the other tests, not where it counts.
    assert!(matches!(refused(&netd).await, NetdError::Confused(why) if why.contains("no TAP")));
    fake.nothing_leased().await;
}

#[tokio::test]
async fn all_pages_of_leases_are_read() {
    let (_dir, netd) = client(DEADLINE);
    let fake = FakeNetd::start(netd.path());
    for count in [0, 1, netd_api::PAGE, netd_api::PAGE + 1, 3 * netd_api::PAGE] {
        *fake.leases.lock().unwrap() = (1..=count as u64).map(|id| (id, wanted("a"))).collect();
        let leases = netd.leases().await.unwrap();
        assert_eq!(leases.iter().map(|l| l.id.0).collect::<Vec<_>>(), (1..=count as u64).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn tables_that_cannot_be_are_refused() {
    let (_dir, netd) = client(DEADLINE);
    let fake = FakeNetd::start(netd.path());
    let networks: [fn(&Request) -> Reply; 5] = [
        |_| Reply::Networks(vec![crate::serve::testing::netd::network(); netd_api::NETWORKS_MAX + 1]),
        |_| Reply::Networks(vec![NetworkInfo { name: "a\nb".into(), ..crate::serve::testing::netd::network() }]),
        |_| Reply::Networks(vec![NetworkInfo { bridge: "\x1b".into(), ..crate::serve::testing::netd::network() }]),
        |_| Reply::Networks(vec![NetworkInfo { forwards: vec![(2, 1)], ..crate::serve::testing::netd::network() }]),
        |_| Reply::Released,
    ];
    for (n, reply) in networks.into_iter().enumerate() {
        fake.acts(NetAct::Invent(reply));
        assert!(matches!(netd.networks().await, Err(NetdError::Confused(_))), "{n}");
    }
    fn info(id: u64) -> LeaseInfo {
        let Told { id, interface, mac, address, .. } = granted(id, 1);
        LeaseInfo { id, network: "a".into(), vm: VmId(1), interface, mac, address, forwards: Vec::new() }
    }
    let leases: [fn(&Request) -> Reply; 4] = [
        // One that never ends.
        |_| Reply::Leases((1..=32).map(info).collect()),
        |_| Reply::Leases((1..=33).map(info).collect()),
        |_| Reply::Leases(vec![info(2), info(1)]),
        |_| Reply::Leases(vec![LeaseInfo { interface: "a/b".into(), ..info(1) }]),
    ];
    for (n, reply) in leases.into_iter().enumerate() {
        fake.acts(NetAct::Invent(reply));
        assert!(matches!(netd.leases().await, Err(NetdError::Confused(_))), "{n}");
    }
}

#[tokio::test]
async fn releases_that_netd_does_not_hear_are_given_up() {
    let (_dir, netd) = client(Duration::from_millis(100));
    let fake = FakeNetd::start(netd.path());
    let granted = netd.lease(vec![wanted("a"), wanted("b")], ()).await.unwrap();
    fake.acts(NetAct::Silent);
    drop(granted);
    netd.settled().await;
    let granted = {
        fake.acts(NetAct::Good);
        netd.lease(vec![wanted("c")], ()).await.unwrap()
    };
    drop(fake);
    drop(granted);
    netd.settled().await;
}
