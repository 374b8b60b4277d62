//! Random steps: book, kernel and journal agree after each.

use super::*;

/// Anything that anybody can do, in any order: after each step nothing contradicts anything else.
#[test]
fn ten_thousand_random_steps_leave_book_kernel_and_journal_in_agreement() {
    let small = Network { who: plain().who, leases: 5, pool: 1, ..network("b", "br-b", "10.2.0.1", 29) };
    let first = Network { leases: 6, ..pooled(2) };
    let all = vec![first, small];
    let mut host = with(all.clone());
    let mut random = Random(0x5eed);
    let mut held: Vec<(u32, Lease, Vec<OwnedFd>)> = Vec::new();
    let mut leased = 0;
    for _ in 0..10_000 {
        let uid = [1000, 2000][random.below(2)];
        match random.below(24) {
            0..8 => {
                let network = ["a", "b"][random.below(2)];
                let forwards = if random.below(3) == 0 && network == "a" {
                    vec![forward(8000 + random.below(4) as u16)]
                } else {
                    vec![]
                };
                let mac_suffix = (random.below(4) == 0).then(|| [1, 0, random.below(6) as u8]);
                let asked = Wanted { queues: 1 + random.below(2) as u8, forwards, mac_suffix, ..wanted(network) };
                if let Ok((lease, queues)) = host.ask(uid, asked) {
                    leased += 1;
                    held.push((uid, lease, queues));
                }
            }
            8..12 if !held.is_empty() => {
                let (owner, lease, queues) = held.swap_remove(random.below(held.len()));
                let reply = host.release(owner, lease.id);
                assert!(matches!(reply, Reply::Released | Reply::Refused(Refusal::NotYours)));
                if random.below(2) == 0 {
                    held.push((owner, lease, queues));
                }
            }
            12..17 if !held.is_empty() => drop(held.swap_remove(random.below(held.len()))),
            17 if !held.is_empty() => {
                let name = IfName::new(&held[random.below(held.len())].1.interface).unwrap();
                if host.kernel.index_of(name.as_str()).is_some() {
                    let way = random.below(3);
                    host.kernel.spoil(name, |l| match way {
                        0 => l.mac[5] ^= 0x80,
                        1 => l.up = false,
                        _ => l.tun.as_mut().unwrap().persist = true,
                    });
                }
            }
            18 => host.kernel.world().events.push_back(LinkEvent::Lost),
            19 => {
                let step = ["create_tap", "plug", "change", "elements", "delete_link"][random.below(5)];
                host.kernel.world().failing.insert(step, 1);
                match held.pop() {
                    Some((owner, lease, queues)) if random.below(2) == 0 => {
                        host.release(owner, lease.id);
                        drop(queues);
                    }
                    rest => held.extend(rest),
                }
                if let Ok((lease, queues)) = host.ask(uid, Wanted { queues: 2, ..wanted("a") }) {
                    held.push((uid, lease, queues));
                }
            }
            20 => {
                host.kernel.load_rules(false);
                host.kernel.load_rules(true);
            }
            21 => host.restart(all.clone()),
            22 => {
                let keep = random.below(3);
                host.netd.reload(all[..keep].to_vec()).unwrap();
            }
            _ => {
                if let Some(index) = host.kernel.index_of(["br-a", "br-b"][random.below(2)]) {
                    host.kernel.remove(index);
                }
            }
        }
        // With the fault, where one was told; then without.
        host.pump();
        host.kernel.world().failing.clear();
        host.netd.resting.clear();
        if host.netd.retry.take().is_some() {
            host.netd.reconcile();
            host.netd.write_journal();
        }
        if random.below(3) == 0 {
            host.netd.delete_overdue(Instant::now() + Duration::from_secs(2));
        }
        host.settle();
        host.check();
    }
    assert!(leased > 500, "{leased} leases were had");
    drop(held);
    host.netd.delete_overdue(Instant::now() + Duration::from_secs(2));
    host.settle();
    assert_eq!(host.netd.book.leases().count(), 0);
    host.check();
}
