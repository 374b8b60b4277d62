//! The checks of the group `network`, each shown broken.

use super::super::line::State::{Failure, Ok as Fine, Unknown, Warning};
use super::super::line::assert_line;
use super::host::{Manager, Opener, Tun, bridge_filter, chains, nft, tun};
use super::*;
use crate::cli::inspect::proc::{Capabilities, Thread};
use netd_api::Status;

fn user() -> User {
    User { groups: vec![("vmsup-netd".into(), 990)], ..User::anna() }
}

fn network(name: &str, localhost_forwards: bool) -> NetworkInfo {
    NetworkInfo {
        name: name.into(),
        bridge: format!("br-{name}"),
        gateway: [10, 77, 0, 1].into(),
        prefix: 24,
        nat: true,
        isolated: true,
        host: false,
        localhost_forwards,
        leases: 3,
        limit: 16,
        forwards: vec![(8000, 8999), (2222, 2222)],
    }
}

fn process() -> Process {
    let capabilities =
        Capabilities { inheritable: NET_ADMIN, permitted: NET_ADMIN, effective: NET_ADMIN, bounding: 0, ambient: 0 };
    let thread = Thread {
        tid: 7,
        name: "vmsup-netd".into(),
        kernel: false,
        capabilities,
        no_new_privs: true,
        seccomp: "filter".into(),
        seccomp_filters: Some(1),
    };
    let (uids, gids) = (vec![990; 4], vec![990; 4]);
    let (groups, rlimits, uid_map, gid_map) = (vec![], vec![], vec![], vec![]);
    Process { uids, gids, uid_map, gid_map, groups, threads: vec![thread], rlimits, cgroup: "/".into() }
}

fn netd(version: &str) -> Netd {
    let status = Status {
        version: version.into(),
        rules: true,
        ip_forward: true,
        bridges_down: vec![],
        dropping_chains: vec![],
        leases: 3,
    };
    Netd { pid: 7, process: Ok(process()), status, networks: vec![] }
}

#[test]
fn a_netd_that_is_not_there_is_no_failure_and_one_that_does_not_answer_is() {
    let judge = |asked| helper(Path::new("/s"), &asked);
    assert_line(&judge(Ok(netd(VERSION))), Fine, "");
    assert_line(&judge(Ok(netd("0.0.1"))), Warning, "restart");
    assert_line(&judge(Err(Silence::Absent)), Warning, "/etc/vmsup/netd.toml");
    assert_line(&judge(Err(Silence::Failed("it is mute".into()))), Failure, "restart");
}

#[test]
fn a_netd_that_is_mute_is_told_from_one_that_is_absent() {
    use std::io::{Error, ErrorKind};
    for absent in [ErrorKind::NotFound, ErrorKind::ConnectionRefused] {
        assert!(matches!(Silence::from(Error::from(absent)), Silence::Absent), "{absent}");
    }
    // While connecting to a full backlog, and while waiting for the answer.
    for mute in [Silence::from(Error::from(ErrorKind::WouldBlock)), ipc::Error::Io(ErrorKind::WouldBlock.into()).into()]
    {
        assert!(matches!(&mute, Silence::Failed(why) if why == "it does not answer within 5 s"), "{mute:?}");
    }
    assert!(matches!(Silence::from(ipc::Error::Closed), Silence::Failed(_)));
    assert!(matches!(Silence::from(Error::from(ErrorKind::PermissionDenied)), Silence::Failed(_)));
}

#[test]
fn netd_has_one_capability_and_is_confined() {
    let judge = |change: &dyn Fn(&mut Process)| {
        let mut process = process();
        change(&mut process);
        privileges(7, &Ok(process))
    };
    assert_line(&judge(&|_| ()), Fine, "");
    for change in [
        (|p| p.threads[0].capabilities.effective |= 1 << 21) as fn(&mut Process),
        |p| p.threads[0].capabilities.permitted = u64::MAX,
        |p| p.threads[0].capabilities.ambient = 1,
        |p| p.threads[0].capabilities.effective = 0,
        |p| p.threads[0].no_new_privs = false,
        |p| p.threads[0].seccomp = "disabled".into(),
        |p| p.threads.clear(),
        |p| p.uids[1] = 0,
        |p| p.uids.clear(),
    ] {
        assert_line(&judge(&change), Warning, "vmsup-netd");
    }
}

#[test]
fn a_netd_that_proc_hides_is_not_called_good() {
    let line = privileges(7, &Err("/proc does not show process 7 to this user (hidepid)".into()));
    assert_line(&line, Unknown, "/proc/7/status");
    assert!(line.found.starts_with("needs root: "), "{line:?}");
}

#[test]
fn what_netd_finds_missing_on_the_host_is_told_with_what_mends_it() {
    assert_line(&rules(true, Path::new("/r")), Fine, "");
    assert_line(&rules(false, Path::new("/r/vmsup.nft")), Failure, "sudo nft -f /r/vmsup.nft");
    assert_line(&forwarding(true), Fine, "");
    assert_line(&forwarding(false), Warning, "net.ipv4.ip_forward=1");
    assert_line(&bridges_up(&[]), Fine, "");
    assert_line(&bridges_up(&["vmsup0".into(), "vmsup1".into()]), Warning, "ip link set vmsup0 up");
}

#[test]
fn a_user_without_a_network_is_told_how_to_get_one() {
    assert_line(&networks(&user(), Some(7), &[]), Warning, "add \"anna\" to users");
    assert_line(&networks(&user(), Some(7), &[]), Warning, "sudo kill -HUP 7");
    assert_line(&networks(&User { name: None, ..user() }, None, &[]), Warning, "add 1000 to users");
    let line = networks(&user(), None, &[network("default", false), network("b", false)]);
    assert_line(&line, Fine, "");
    let first = "default (10.77.0.1/24, 3 of 16 leases, forwards of 8000-8999,2222), b (";
    assert!(line.found.starts_with(first), "{line:?}");
}

#[test]
fn localhost_forwards_are_said_to_work_only_where_the_kernel_lets_them() {
    let (on, off) = (|| network("on", true), || network("off", false));
    let judge = |networks: &[NetworkInfo], value: Option<&str>| localhost(networks, |_| value.map(str::to_owned));
    assert_eq!(judge(&[], Some("1")), None);
    let line = judge(&[on(), off()], Some("1")).unwrap();
    assert_line(&line, Fine, "");
    assert!(line.found.starts_with("127.0.0.1 leads to forwards in on; off in off"), "{line:?}");
    assert!(judge(&[off()], Some("0")).unwrap().found.starts_with("off in off: "));
    assert_eq!(judge(&[on()], None).unwrap().found, "127.0.0.1 leads to forwards in on");
    assert_line(&judge(&[on()], Some("0")).unwrap(), Warning, "net.ipv4.conf.br-on.route_localnet=1");
}

#[test]
fn an_nft_that_is_missing_old_or_odd_is_a_warning() {
    assert_line(&nft(Some("nftables v1.0.6 (Lester Gooch #5)")), Fine, "");
    assert_line(&nft(Some("nftables v1.1 (x)")), Fine, "");
    assert_line(&nft(Some("nftables v1.0.5 (x)")), Warning, "1.0.6 or later");
    assert_line(&nft(Some("nftables v0.9.9 (x)")), Warning, "1.0.6 or later");
    assert_line(&nft(Some("")), Warning, "nftables");
    assert_line(&nft(None), Warning, "apt-get install nftables");
}

#[test]
fn a_chain_that_drops_is_opened_by_the_one_who_keeps_it() {
    let judge = |chain: &str, ufw, docker| chains(&[chain.to_owned()], &["vmsup0"], Manager { ufw, docker });
    let forward = "ip filter FORWARD";
    assert_line(&chains(&[], &["vmsup0"], Manager::default()), Fine, "");
    assert_line(&judge("ip6 filter FORWARD", false, false), Fine, "");
    let plain = "sudo iptables -I FORWARD -i vmsup0 -j ACCEPT; sudo iptables -I FORWARD -o vmsup0 -j ACCEPT";
    assert_line(&judge(forward, false, false), Warning, plain);
    assert_line(&judge(forward, false, true), Warning, "iptables -I DOCKER-USER -i vmsup0 -j ACCEPT");
    assert_line(&judge(forward, true, true), Warning, "sudo ufw route allow in on vmsup0");
    assert_line(&judge("inet firewalld filter_FORWARD", false, false), Warning, "--add-interface=vmsup0");
    assert_line(&judge("inet mine fwd", false, false), Warning, "nft insert rule inet mine fwd oifname vmsup0 accept");
    let two = chains(&[forward.to_owned()], &["vmsup0", "vmsup1"], Manager::default());
    assert_line(&two, Warning, "and the same for vmsup1");
}

#[test]
fn the_name_of_a_chain_makes_no_command_of_its_own() {
    let line = chains(&["inet x; reboot".to_owned()], &["vmsup0"], Manager::default());
    assert_line(&line, Warning, "add rules to that chain");
    assert!(!line.mend.contains("reboot"), "{line:?}");
}

#[test]
fn a_bridge_filter_that_is_on_is_a_warning() {
    assert_line(&bridge_filter(None), Fine, "");
    assert_line(&bridge_filter(Some("0")), Fine, "");
    assert_line(&bridge_filter(Some("1")), Warning, "bridge-nf-call-iptables=0");
}

#[test]
fn a_tun_device_is_judged_by_who_opens_it() {
    let device = |uid, gid, mode| Some(Tun { uid, gid, mode });
    let netd = || Opener { uid: Some(990), gids: vec![990] };
    assert_line(&tun(device(0, 0, 0o666), &netd()), Fine, "");
    assert_line(&tun(device(0, 990, 0o660), &netd()), Fine, "");
    assert_line(&tun(device(0, 0, 0o600), &netd()), Warning, "chmod 666 /dev/net/tun");
    assert_line(&tun(device(0, 1, 0o660), &netd()), Warning, "KERNEL==\"tun\"");
    // The owner's bits count for the owner, even where everybody else may more.
    assert_line(&tun(device(990, 0, 0o066), &netd()), Warning, "chmod 666");
    assert_line(&tun(device(0, 0, 0o600), &Opener { uid: Some(0), gids: vec![] }), Fine, "");
    assert_line(&tun(None, &netd()), Warning, "modprobe tun");
}

#[test]
fn who_opens_the_tun_device_is_netd_as_it_runs_or_as_it_would() {
    let running = Opener::of(Some(&Process { groups: vec![5], ..process() }), &user());
    assert_eq!((running.uid, running.gids), (Some(990), vec![990, 5]));
    let absent = Opener::of(None, &user());
    assert_eq!((absent.uid, absent.gids), (None, vec![990]));
}
