//! What peers are told, and what they are refused.

use super::*;

#[test]
fn replies_tell_a_caller_of_itself_only() {
    let mut host = with(vec![plain()]);
    let (mine, _held) = host.lease(1000);
    let (_, _also) = host.lease(2000);
    let Reply::Networks(networks) = host.netd.answer(&caller(1000), &Request::Networks).0 else { panic!() };
    assert_eq!((networks[0].leases, networks[0].limit, &*networks[0].forwards), (1, 16, &[(8000, 8999)][..]));
    let Reply::Leases(leases) = host.netd.answer(&caller(1000), &Request::Leases { after: LeaseId(0) }).0 else {
        panic!()
    };
    assert_eq!(leases.iter().map(|l| l.id).collect::<Vec<_>>(), [mine.id]);
    assert_eq!(host.netd.answer(&caller(3000), &Request::Networks).0, Reply::Networks(vec![]));
    assert_eq!(host.netd.answer(&caller(3000), &Request::Leases { after: LeaseId(0) }).0, Reply::Leases(vec![]));
    let Reply::Status(status) = host.netd.answer(&caller(3000), &Request::Status).0 else { panic!() };
    assert_eq!((status.rules, status.leases, status.bridges_down.len()), (true, 2, 0));
}

#[test]
fn leases_are_told_in_pages() {
    let mut host = with(vec![Network { leases: 100, ..plain() }]);
    let held: Vec<_> = (0..70).map(|_| host.lease(1000)).collect();
    let mut seen = Vec::new();
    loop {
        let after = seen.last().copied().unwrap_or(LeaseId(0));
        let Reply::Leases(page) = host.netd.answer(&caller(1000), &Request::Leases { after }).0 else { panic!() };
        assert!(page.len() <= netd_api::PAGE);
        seen.extend(page.iter().map(|l| l.id));
        if page.len() < netd_api::PAGE {
            break;
        }
    }
    assert_eq!(seen, held.iter().map(|(l, _)| l.id).collect::<Vec<_>>());
}

#[test]
fn what_interfaces_counted_is_told_to_who_has_their_leases_in_the_same_pages() {
    let mut host = with(vec![Network { leases: 100, ..plain() }]);
    let (_other, _held) = host.lease(2000);
    let held: Vec<_> = (0..40).map(|_| host.lease(1000)).collect();
    let ask = |host: &mut Host, uid, after| match host.netd.answer(&caller(uid), &Request::Traffic { after }).0 {
        Reply::Traffic(page) => page,
        other => panic!("{other:?}"),
    };
    let first = ask(&mut host, 1000, LeaseId(0));
    let rest = ask(&mut host, 1000, first.last().unwrap().id);
    assert_eq!((first.len(), rest.len()), (netd_api::PAGE, 40 - netd_api::PAGE));
    let told: Vec<_> = first.iter().chain(&rest).map(|traffic| traffic.id).collect();
    assert_eq!(told, held.iter().map(|(lease, _)| lease.id).collect::<Vec<_>>());
    for traffic in first.iter().chain(&rest) {
        assert!(traffic.sent.packets > 0 && traffic.received.packets == 2 * traffic.sent.packets, "{traffic:?}");
    }
    assert_eq!(ask(&mut host, 3000, LeaseId(0)), []);
    // One that is just going.
    host.kernel.world().failing.insert("traffic", 1);
    let page = ask(&mut host, 1000, LeaseId(0));
    assert_eq!((page.len(), page[0].sent.packets), (netd_api::PAGE, 0));
    assert!(page[1].sent.packets > 0);
}

#[test]
fn the_largest_replies_fit_their_frame() {
    let wide = |n: u8| {
        let (name, bridge) = (format!("{n:02}{}", "x".repeat(29)), format!("br{n:013}"));
        let mut net = Network { leases: 64, ..network(&name, &bridge, &format!("10.{n}.0.1"), 16) };
        net.forwards = vec![(net.who.clone(), (0..9).map(|p| (40_000 + p, 50_000 + p)).collect())];
        net
    };
    let mut host = with((0..netd_api::NETWORKS_MAX as u8).map(wide).collect());
    let name = host.netd.networks[0].name.clone();
    let mut held = Vec::new();
    for vm in 0..netd_api::PAGE as u16 {
        let forwards = (0..16).map(|n| Forward { protocol: Protocol::Udp, host: 40_000 + 16 * vm + n, guest: 65_535 });
        let asked = Wanted { forwards: forwards.collect(), vm: netd_api::VmId(u64::MAX), ..wanted(&name) };
        held.push(host.ask(1000, asked).unwrap());
    }
    for request in [
        Request::Networks,
        Request::Leases { after: LeaseId(0) },
        Request::Status,
        Request::Traffic { after: LeaseId(0) },
    ] {
        let reply = host.netd.answer(&caller(1000), &request).0;
        let bytes = ipc::codec::encode(&reply, <Reply as ipc::Message>::MAX_BYTES);
        assert!(bytes.is_ok(), "{request:?}: {:?}", bytes.map(|b| b.len()));
    }
}

#[test]
fn what_is_out_of_bounds_is_refused() {
    let mut host = with(vec![plain()]);
    let twice = vec![forward(8001), Forward { guest: 81, ..forward(8001) }];
    let many = (0..17).map(|n| forward(8000 + n)).collect();
    for wrong in [
        Wanted { queues: 0, ..wanted("a") },
        Wanted { queues: 5, ..wanted("a") },
        Wanted { forwards: vec![forward(0)], ..wanted("a") },
        Wanted { forwards: vec![Forward { guest: 0, ..forward(8001) }], ..wanted("a") },
        Wanted { forwards: twice, ..wanted("a") },
        Wanted { forwards: many, ..wanted("a") },
    ] {
        assert_eq!(host.ask(1000, wrong).unwrap_err(), Refusal::Invalid);
    }
    assert_eq!(
        host.netd.answer(&caller(1000), &lease_request(&"x".repeat(200))).0,
        Reply::Refused(Refusal::NoSuchNetwork)
    );
    assert!(host.kernel.world().names.is_empty());
}
