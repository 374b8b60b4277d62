//! Nobody gets more than their quota, in whatever order and however many at a time.

use super::*;

fn quota(most: Demand) -> Limit {
    Some(Arc::new(Quota { most, networks: Vec::new(), forwards: Vec::new() }))
}

const SMALL: Demand = Demand { vms: 3, vcpus: 8, memory_mib: 1024, disk_bytes: 10 * GIB, leases: 2 };

/// The same numbers for each seed (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn demand(&mut self) -> Demand {
        let all = [
            Demand::vm(),
            Demand { vcpus: self.below(6), memory_mib: self.below(700), leases: self.below(2), ..Demand::default() },
            Demand::disk(self.below(7) * GIB),
            Demand::disk(u64::MAX - self.below(2)),
        ];
        all[self.below(4) as usize]
    }
}

fn fits(used: Demand, most: Demand) -> bool {
    used.each(most, |used, most| u64::from(used > most)) == Demand::default()
}

#[test]
fn whatever_is_claimed_and_given_back_the_sum_is_right_and_within_the_quota() {
    for seed in 1..200 {
        let mut random = Random(seed);
        let ledger = Arc::new(Ledger::default());
        let limit = quota(SMALL);
        let mut held: Vec<(u32, Claim)> = Vec::new();
        for _ in 0..100 {
            let owner = 1000 + random.below(2) as u32;
            if random.below(3) == 0 && !held.is_empty() {
                let at = random.below(held.len() as u64) as usize;
                held.swap_remove(at);
            } else {
                let wanted = random.demand();
                let before = ledger.used(owner);
                match ledger.claim(owner, wanted, None, &limit) {
                    Ok(claim) => held.push((owner, claim)),
                    Err(excess) => {
                        assert!(!fits(before.plus(wanted), SMALL), "{wanted:?} beside {before:?}: {excess}");
                        assert_eq!(ledger.used(owner), before, "a refusal takes nothing");
                    }
                }
            }
            for owner in [1000, 1001] {
                let own = held.iter().filter(|(of, _)| *of == owner);
                let sum = own.fold(Demand::default(), |sum, (_, claim)| sum.plus(claim.demand()));
                assert_eq!(ledger.used(owner), sum);
                assert!(fits(sum, SMALL), "{sum:?}");
            }
        }
        drop(held);
        assert!(ledger.all().is_empty());
    }
}

#[test]
fn many_at_the_same_time_get_no_more_than_one_after_the_other() {
    let ledger = Arc::new(Ledger::default());
    let limit = quota(SMALL);
    let granted = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                if let Ok(claim) = ledger.claim(7, Demand { vcpus: 3, ..Demand::vm() }, None, &limit) {
                    granted.lock().unwrap().push(claim);
                }
            });
        }
    });
    assert_eq!(granted.into_inner().unwrap().len(), 2, "8 vCPUs are 2 times 3");
    assert!(ledger.all().is_empty());
}

#[test]
fn what_leaves_for_it_is_not_counted_and_only_ones_own_can_leave() {
    let ledger = Arc::new(Ledger::default());
    let limit = quota(SMALL);
    let most = Demand { vcpus: 8, ..Demand::default() };
    let old = ledger.claim(7, most, None, &limit).unwrap();
    assert!(ledger.claim(7, most, None, &limit).is_err());
    let new = ledger.claim(7, most, Some(&old), &limit).unwrap();
    assert!(ledger.claim(7, most, Some(&old), &limit).is_err(), "one that was granted and not yet accepted counts");
    drop(old);
    assert_eq!(ledger.used(7), most);
    assert!(ledger.claim(8, most, Some(&new), &limit).is_ok());
    let full = ledger.claim(8, most, None, &limit).unwrap();
    assert!(ledger.claim(8, most, Some(&new), &limit).is_err(), "another's");
    drop(full);
}

#[test]
fn what_is_not_wanted_is_not_looked_at() {
    let limit = quota(SMALL);
    let over = Demand { vcpus: 99, ..Demand::default() };
    let quota = limit.unwrap();
    assert_eq!(check(&over, &Demand::vm(), &quota), Ok(()));
    let refused = check(&over, &Demand { vcpus: 1, ..Demand::default() }, &quota).unwrap_err();
    assert_eq!(refused, Excess { resource: Resource::Vcpus, used: 99, wanted: 1, allowed: 8 });
}

#[test]
fn a_refusal_says_what_is_used_wanted_and_allowed_and_what_to_do() {
    let refused = |used, wanted| {
        let quota = quota(SMALL).unwrap();
        ApiError::from(check(&used, &wanted, &quota).unwrap_err())
    };
    let vms = refused(Demand { vms: 3, ..Demand::default() }, Demand::vm());
    assert_eq!(
        vms.message,
        "your quota is 3 VMs, you use 3, and this takes 1; remove a VM (vmsup rm), or ask an administrator"
    );
    let memory = refused(Demand::default(), Demand { memory_mib: 2048, ..Demand::default() });
    assert_eq!((memory.code, memory.field.as_deref()), (ErrorCode::Forbidden, Some("memory_mib")));
    let disk = refused(Demand::disk(9 * GIB), Demand::disk(3 * GIB / 2));
    assert!(disk.message.contains("10.0 GiB of storage, you use 9.0 GiB, and this takes 1.5 GiB"), "{}", disk.message);
}
