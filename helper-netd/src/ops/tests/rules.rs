//! Elements, and the rules that they are for.

use super::{Element, GATEWAY, IfName, Kernel, Ops, Random, in_namespace, load_rules, name, nft, run};
use crate::netlink::{Attrs, parse};
use crate::ops::{BridgeSet, OpsError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

const TCP: u8 = 6;
const UDP: u8 = 17;

fn lease(n: u8) -> Element {
    let address = Ipv4Addr::new(10, 77, 0, n);
    Element::Lease { port: IfName::port(n.into()), mac: [2, 0x76, 0x6d, 0, 0, n], address }
}

fn forward(host: u16, guest: u16) -> Element {
    Element::Forward { protocol: TCP, host, address: Ipv4Addr::new(10, 77, 0, 2), guest }
}

/// One element of each kind, and two of some.
fn all_kinds() -> Vec<Element> {
    let (long, short) = (name("abcdefghijklmno"), name("b"));
    let sets = [BridgeSet::Bridges, BridgeSet::Nat, BridgeSet::Host, BridgeSet::Metadata, BridgeSet::Routed];
    let mut elements: Vec<Element> =
        sets.into_iter().flat_map(|set| [Element::Bridge(set, long), Element::Bridge(set, short)]).collect();
    elements.extend([lease(2), lease(255), forward(8080, 80), forward(1, 65535)]);
    elements.push(Element::Forward { protocol: UDP, host: 8080, address: GATEWAY, guest: 53 });
    elements.extend([Element::Reach { from: long, to: short }, Element::Reach { from: short, to: short }]);
    elements.extend([TCP, UDP].map(|protocol| Element::Localhost { protocol, host: 8080 }));
    elements
}

fn elements(kernel: &mut Kernel) -> BTreeSet<Element> {
    kernel.elements().unwrap().into_iter().collect()
}

#[test]
fn elements_come_back_as_they_went_and_nft_reads_the_same() {
    in_namespace("elements_come_back_as_they_went_and_nft_reads_the_same", |mut kernel| {
        load_rules();
        assert!(elements(&mut kernel).is_empty());
        let all = all_kinds();
        kernel.change(&all, &[]).unwrap();
        assert_eq!(elements(&mut kernel), all.iter().copied().collect());
        let shown = nft("list ruleset");
        for words in [
            "\"vt2\" . 02:76:6d:00:00:02 . 10.77.0.2",
            "tcp . 8080 : 10.77.0.2 . 80",
            "udp . 8080 : 10.77.0.1 . 53",
            "\"abcdefghijklmno\" . \"b\"",
        ] {
            assert!(shown.contains(words), "{words}: {shown}");
        }
        kernel.change(&[], &all).unwrap();
        assert!(elements(&mut kernel).is_empty());
    });
}

#[test]
fn a_change_is_done_whole_or_not_at_all() {
    in_namespace("a_change_is_done_whole_or_not_at_all", |mut kernel| {
        load_rules();
        kernel.change(&[lease(2), forward(80, 80)], &[]).unwrap();
        let before = elements(&mut kernel);
        for (add, remove) in [
            (vec![lease(3), lease(4)], vec![lease(2), lease(9)]),
            (vec![lease(3), forward(80, 81)], vec![]),
            (vec![], vec![lease(9), lease(2)]),
        ] {
            assert!(matches!(kernel.change(&add, &remove), Err(OpsError::Differs { .. })), "{add:?} {remove:?}");
            assert_eq!(elements(&mut kernel), before, "{add:?} {remove:?}");
        }
        // What is there may be added again; what is removed may be added anew, also with other data.
        kernel.change(&[lease(2)], &[]).unwrap();
        kernel.change(&[forward(80, 81)], &[forward(80, 80)]).unwrap();
        kernel.change(&[], &[]).unwrap();
        assert_eq!(elements(&mut kernel), [lease(2), forward(80, 81)].into());
    });
}

#[test]
fn a_thousand_elements_are_one_change() {
    in_namespace("a_thousand_elements_are_one_change", |mut kernel| {
        load_rules();
        let many: Vec<Element> = (1..=1000).map(|host| forward(host, 80)).collect();
        kernel.change(&many, &[]).unwrap();
        assert_eq!(elements(&mut kernel), many.iter().copied().collect());
        kernel.change(&[], &many).unwrap();
        assert!(elements(&mut kernel).is_empty());
    });
}

#[test]
fn loading_the_rules_again_keeps_elements_and_doubles_nothing() {
    in_namespace("loading_the_rules_again_keeps_elements_and_doubles_nothing", |mut kernel| {
        load_rules();
        let all = all_kinds();
        kernel.change(&all, &[]).unwrap();
        let before = run("nft -s list ruleset");
        load_rules();
        assert_eq!(run("nft -s list ruleset"), before);
        assert_eq!(elements(&mut kernel), all.into_iter().collect());
        assert!(kernel.rules_loaded().unwrap());
    });
}

#[test]
fn rules_that_are_not_all_there_are_not_loaded() {
    in_namespace("rules_that_are_not_all_there_are_not_loaded", |mut kernel| {
        assert!(!kernel.rules_loaded().unwrap());
        assert!(matches!(kernel.change(&[lease(2)], &[]), Err(OpsError::NoRules)));
        assert!(matches!(kernel.elements(), Err(OpsError::NoRules)));
        let others_set = "add table bridge vmsup; flush chain inet vmsup forward; flush chain inet vmsup postrouting_nat; \
                          delete set inet vmsup localhost; add set inet vmsup localhost { type ifname; }";
        for damage in [
            "delete table bridge vmsup",
            "delete table inet vmsup",
            "flush ruleset",
            "flush table bridge vmsup",
            "flush chain inet vmsup forward",
            "flush chain inet vmsup output_nat; delete set inet vmsup localhost",
            &others_set.replace("postrouting_nat", "output_nat"),
        ] {
            run("nft flush ruleset");
            load_rules();
            assert!(kernel.rules_loaded().unwrap());
            nft(damage);
            assert!(!kernel.rules_loaded().unwrap(), "{damage}");
        }
    });
}

#[test]
fn what_others_do_to_the_tables_is_noticed_and_our_own_changes_are_not() {
    in_namespace("what_others_do_to_the_tables_is_noticed_and_our_own_changes_are_not", |mut kernel| {
        load_rules();
        assert!(kernel.rules_touched());
        assert!(!kernel.rules_touched(), "events are told once");
        kernel.change(&all_kinds(), &[]).unwrap();
        assert!(readable(&kernel));
        assert!(!kernel.rules_touched());
        assert!(!readable(&kernel));
        nft("add table inet other; add set inet other leases { type ifname; }; delete table inet other");
        assert!(!kernel.rules_touched());
        for other in [
            "flush set bridge vmsup leases",
            "delete element inet vmsup bridges { \"b\" }",
            "add element inet vmsup host { \"eth0\" }",
            "flush chain bridge vmsup prerouting",
            "delete table bridge vmsup",
            "flush ruleset",
        ] {
            nft(other);
            assert!(kernel.rules_touched(), "{other}");
        }
        load_rules();
        assert!(kernel.rules_touched());
    });
}

fn readable(kernel: &Kernel) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(kernel.rule_events_fd(), PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

#[test]
fn others_chains_that_drop_what_is_forwarded_are_named() {
    in_namespace("others_chains_that_drop_what_is_forwarded_are_named", |mut kernel| {
        load_rules();
        assert_eq!(kernel.dropping_chains(4).unwrap(), Vec::<String>::new());
        let chain = |hook: &str, policy: &str| format!("{{ type filter hook {hook} priority 0; policy {policy}; }}");
        for (table, name, hook, policy) in [
            ("ip filter", "FORWARD", "forward", "drop"),
            ("ip filter", "INPUT", "input", "drop"),
            ("inet ufw", "onward", "forward", "drop"),
            ("inet ufw", "open", "forward", "accept"),
            ("ip6 filter", "FORWARD", "forward", "drop"),
        ] {
            nft(&format!("add table {table}; add chain {table} {name} {}", chain(hook, policy)));
        }
        nft("add chain ip filter plain");
        let mut found = kernel.dropping_chains(4).unwrap();
        found.sort();
        assert_eq!(found, ["inet ufw onward", "ip filter FORWARD"]);
        assert_eq!(kernel.dropping_chains(1).unwrap().len(), 1);
    });
}

#[test]
fn random_messages_never_panic() {
    let mut random = Random::new(2);
    let headed = |random: &mut Random, kind: u16| {
        let mut bytes = random.bytes(200);
        let length = 16 + bytes.len() as u32;
        let header = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10]].concat();
        bytes.splice(0..0, header);
        bytes
    };
    for round in 0..20_000 {
        let kind = [libc::RTM_NEWLINK, libc::RTM_DELLINK, 0x0a03, 0x0a0c][round % 4];
        let mut bytes = headed(&mut random, kind);
        // The family that a link's message must have, and attributes of plausible kinds and lengths.
        for at in (16..bytes.len().saturating_sub(8)).step_by(8) {
            let attr = [random.below(12) as u16, random.below(64) as u16];
            bytes[at..at + 4].copy_from_slice(&[attr[0].to_ne_bytes(), attr[1].to_ne_bytes()].concat());
        }
        for message in parse(&bytes) {
            let _ = crate::ops::link::event_of(&message);
            let _ = (crate::ops::nft::dropping_chain(&message), crate::ops::nft::is_ours(&message));
            for set in 0..9 {
                let _ = crate::ops::nft::decode(set, message.attrs(4));
                let _ = crate::ops::nft::decode(set, Attrs::of(message.family(40)));
            }
        }
    }
}
