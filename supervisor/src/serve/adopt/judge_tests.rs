//! Every row of the table, and every way in which a handle can be wrong.

use super::*;
use crate::serve::testing::handle;

/// Makes something of the evidence wrong.
type Change = fn(&mut Evidence);

/// One VM that runs, as everybody says.
fn whole() -> Evidence {
    let handle = handle(1, "a");
    let worker = Worker { slot: Slot(handle.slot), pid: handle.pid, start_time: handle.start_time, uid: handle.uid };
    Evidence {
        boot_id: handle.boot_id.clone(),
        rows: vec![handle.intent.clone()],
        living: vec![Living { worker, start_time: Some(handle.start_time), inode: handle.pidfd_inode }],
        handles: vec![handle],
        ..Evidence::default()
    }
}

fn changed(change: impl FnOnce(&mut Evidence)) -> Evidence {
    let mut evidence = whole();
    change(&mut evidence);
    evidence
}

/// The verdict on the only VM.
fn verdict(evidence: &Evidence) -> Verdict {
    let verdicts = judge(evidence);
    assert!(verdicts.removed.is_empty(), "{verdicts:?}");
    assert_eq!(verdicts.vms.len(), 1, "{verdicts:?}");
    verdicts.vms[0].1.clone()
}

fn lost(evidence: &Evidence) -> String {
    match verdict(evidence) {
        Verdict::Lost(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_worker_that_everybody_names_is_asked() {
    assert_eq!(verdict(&whole()), Verdict::Ask(Box::new(handle(1, "a"))));
    assert!(judge(&whole()).said.is_empty());
    // A /proc that hides other users' processes, and a kernel without pidfs.
    let old =
        |e: &mut Evidence| (e.living[0].inode, e.handles[0].pidfd_inode, e.living[0].start_time) = (None, None, None);
    assert!(matches!(verdict(&changed(old)), Verdict::Ask(_)));
}

#[test]
fn a_worker_of_which_anything_differs_is_not_the_vms() {
    let differences: [(&str, Change); 7] = [
        ("pid", |e| e.living[0].worker.pid += 1),
        ("start time", |e| e.living[0].worker.start_time += 1),
        ("start time", |e| e.living[0].start_time = Some(1)),
        ("uid", |e| e.living[0].worker.uid += 1),
        ("pidfd", |e| e.living[0].inode = Some(1)),
        ("pidfd", |e| e.living[0].inode = None),
        ("pidfd", |e| e.handles[0].pidfd_inode = None),
    ];
    for (what, change) in differences {
        let why = lost(&changed(change));
        assert!(why.ends_with(&format!("a different {what}")), "{what}: {why}");
    }
    assert!(lost(&changed(|e| e.living[0].worker.slot = Slot(99))).contains("nobody could say"));
}

#[test]
fn the_end_that_the_jailer_tells_is_that_of_slot_and_pid() {
    let told = |e: &mut Evidence| {
        e.ended = vec![(e.living[0].worker.slot, e.living[0].worker.pid)];
        e.living.clear();
    };
    assert_eq!(verdict(&changed(told)), Verdict::Told(Slot(handle(1, "a").slot)));
    let other = changed(|e| {
        told(e);
        e.ended[0].1 += 1;
    });
    assert!(lost(&other).contains("nobody could say"));
}

#[test]
fn a_host_that_was_started_anew_is_what_ended_its_vms() {
    assert_eq!(verdict(&changed(|e| e.boot_id = "other".into())), Verdict::HostDown);
    let gone = |e: &mut Evidence| (e.handles, e.living) = (Vec::new(), Vec::new());
    let new = changed(|e| {
        gone(e);
        e.new = true;
    });
    assert_eq!(verdict(&new), Verdict::HostDown);
    assert!(lost(&changed(gone)).contains("no handle"));
}

#[test]
fn a_vm_that_did_not_run_rests() {
    let gone = |e: &mut Evidence| (e.handles, e.living, e.new) = (Vec::new(), Vec::new(), true);
    let stopped = changed(|e| {
        gone(e);
        e.rows[0].desired = Desired::Stopped;
    });
    assert_eq!(verdict(&stopped), Verdict::Rests);
    let waiting = changed(|e| {
        gone(e);
        (e.rows[0].runs, e.rows[0].over) = (3, 3);
    });
    assert_eq!(verdict(&waiting), Verdict::Rests);
}

#[test]
fn an_end_that_is_written_down_is_not_told_again() {
    let told = |e: &mut Evidence| {
        e.ended = vec![(e.living[0].worker.slot, e.living[0].worker.pid)];
        e.living.clear();
        e.rows[0].over = e.handles[0].intent.runs;
    };
    // Killed before the handle went, and before the jailer was told to forget.
    assert_eq!(verdict(&changed(told)), Verdict::Rests);
    let stopped = changed(|e| {
        told(e);
        e.rows[0].desired = Desired::Stopped;
    });
    assert_eq!(verdict(&stopped), Verdict::Rests);
    // The run before was over: this one is told, also where the row does not know of it yet.
    let next = changed(|e| {
        told(e);
        e.handles[0].intent.runs += 1;
    });
    assert!(matches!(verdict(&next), Verdict::Told(_)));
    assert_eq!(judge(&next).vms[0].0.runs, 2);
    // The jailer does not know of it: it never got its VM, and there is no end to tell.
    let never = changed(|e| {
        told(e);
        e.ended.clear();
        e.handles[0].intent.runs += 1;
    });
    assert_eq!((verdict(&never), judge(&never).vms[0].0.runs), (Verdict::Rests, 1));
    // A release that did not count: nothing says that it is over.
    let old = changed(|e| {
        told(e);
        (e.rows[0].runs, e.rows[0].over, e.handles[0].intent.runs) = (0, 0, 0);
    });
    assert!(matches!(verdict(&old), Verdict::Told(_)));
}

#[test]
fn what_was_to_be_forgotten_at_its_end_is_not_there_without_a_handle() {
    let forgotten = |e: &mut Evidence| e.rows[0].remove_when_ended = true;
    assert!(matches!(verdict(&changed(forgotten)), Verdict::Ask(_)));
    let gone = |e: &mut Evidence| {
        forgotten(e);
        (e.handles, e.living) = (Vec::new(), Vec::new());
    };
    let verdicts = judge(&changed(gone));
    assert_eq!((verdicts.vms, verdicts.removed.len()), (Vec::new(), 1));
    let down = changed(|e| {
        gone(e);
        e.new = true;
    });
    assert_eq!(verdict(&down), Verdict::HostDown);
}

#[test]
fn a_start_whose_row_never_was_there_is_one_that_its_worker_knows_of() {
    let never = changed(|e| {
        e.rows.clear();
        e.handles[0].intent.confirmed = false;
    });
    assert!(!judge(&never).vms[0].0.confirmed, "an empty worker is that of a start that was not over");
    let gone = changed(|e| {
        (e.rows, e.living) = (Vec::new(), Vec::new());
        e.handles[0].intent.confirmed = false;
    });
    assert!(judge(&gone).vms[0].0.confirmed, "the database may have been lost");
    let alone = changed(|e| {
        (e.rows[0], e.living) = (handle(2, "b").intent, Vec::new());
        (e.rows[0].desired, e.handles[0].intent.confirmed) = (Desired::Stopped, false);
    });
    let verdicts = judge(&alone);
    assert_eq!((verdicts.vms.len(), verdicts.removed.len(), verdicts.removed[0].0.number), (1, 1, 1));
}

#[test]
fn a_worker_without_a_handle_is_nobodys() {
    // The row alone does not make it the VM's: which of the workers it is nobody says.
    assert!(lost(&changed(|e| e.handles.clear())).contains("no handle"));
    assert_eq!(judge(&changed(|e| (e.handles, e.rows) = (Vec::new(), Vec::new()))), Verdicts::default());
}

#[test]
fn a_lost_database_costs_no_vm_that_has_its_handle() {
    let verdicts = judge(&changed(|e| e.rows.clear()));
    assert_eq!(verdicts.vms[0].0, handle(1, "a").intent);
    assert!(matches!(verdicts.vms[0].1, Verdict::Ask(_)));
    assert!(verdicts.said[0].contains("not in the database"), "{:?}", verdicts.said);
    let forgotten = changed(|e| {
        e.rows.clear();
        e.handles[0].intent.remove_when_ended = true;
    });
    assert!(judge(&forgotten).said.is_empty(), "its row may not have been written yet");
    assert!(matches!(judge(&forgotten).vms[0].1, Verdict::Ask(_)));
    let ended = changed(|e| (e.rows, e.living) = (Vec::new(), Vec::new()));
    assert!(lost(&ended).contains("gone"));
}

#[test]
fn a_start_that_nobody_was_told_of_is_removed_unless_it_runs() {
    let unconfirmed = |e: &mut Evidence| e.rows[0].confirmed = false;
    assert!(matches!(verdict(&changed(unconfirmed)), Verdict::Ask(_)));
    let cases: [Change; 4] = [
        |e| e.living.clear(),
        |e| (e.handles, e.living) = (Vec::new(), Vec::new()),
        |e| e.boot_id = "other".into(),
        |e| {
            e.ended = vec![(e.living[0].worker.slot, e.living[0].worker.pid)];
            e.living.clear();
        },
    ];
    for (n, case) in cases.into_iter().enumerate() {
        let verdicts = judge(&changed(|e| {
            unconfirmed(e);
            case(e);
        }));
        assert_eq!((verdicts.vms.len(), verdicts.removed.len()), (0, 1), "{n}: {verdicts:?}");
    }
}

#[test]
fn of_two_handles_for_one_worker_the_one_in_the_database_is_believed_or_none() {
    let liar = |e: &mut Evidence| {
        let mut liar = e.handles[0].clone();
        (liar.intent.number, liar.intent.spec.name) = (2, "b".into());
        e.handles.push(liar);
    };
    let verdicts = judge(&changed(liar));
    assert_eq!(verdicts.vms.len(), 2);
    for (intent, verdict) in &verdicts.vms {
        assert_eq!(matches!(verdict, Verdict::Ask(_)), intent.number == 1, "{verdict:?}");
    }
    let both = judge(&changed(|e| {
        liar(e);
        e.rows.push(e.handles[1].intent.clone());
    }));
    assert!(both.vms.iter().all(|(_, verdict)| matches!(verdict, Verdict::Lost(_))), "{both:?}");
}

#[test]
fn of_two_vms_of_one_name_the_one_that_runs_stays() {
    let verdicts = judge(&changed(|e| {
        // The old one's removal and the new one's row were never written.
        e.rows[0].number = 9;
        e.rows[0].desired = Desired::Stopped;
    }));
    assert_eq!(verdicts.vms.len(), 1);
    assert_eq!((verdicts.vms[0].0.number, verdicts.removed[0].0.number), (1, 9));
    let other_owner = judge(&changed(|e| {
        e.rows[0].number = 9;
        e.rows[0].owner += 1;
    }));
    assert_eq!(other_owner.vms.len(), 2);
}

#[test]
fn the_newer_of_row_and_handle_says_what_a_vm_is() {
    for (row, handle, believed) in [(2, 1, 2), (1, 2, 2), (2, 2, 2)] {
        let verdicts = judge(&changed(|e| {
            (e.rows[0].generation, e.handles[0].intent.generation) = (row, handle);
        }));
        assert_eq!(verdicts.vms[0].0.generation, believed);
    }
}

/// Whatever is wrong, no worker is asked for two VMs, none is asked whose handle differs, and every confirmed row is
/// either judged or removed by name.
#[test]
fn nothing_is_judged_twice_or_forgotten() {
    for seed in 0..4000u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut pick = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let mut e = Evidence { boot_id: "b00t".into(), new: pick(4) == 0, ..Evidence::default() };
        for number in 1..=4 {
            let mut h = handle(number, ["a", "b", "c"][pick(3) as usize]);
            (h.slot, h.pid) = (pick(3) as u32, 100 + pick(3) as i32);
            h.intent.confirmed = pick(4) > 0;
            if pick(4) > 0 {
                e.rows.push(h.intent.clone());
            }
            if pick(4) > 0 {
                e.handles.push(h);
            }
        }
        for slot in 0..3 {
            let pid = 100 + pick(3) as i32;
            match pick(3) {
                0 => e.ended.push((Slot(slot), pid)),
                1 => {
                    let h = handle(1, "a");
                    let worker = Worker { slot: Slot(slot), pid, start_time: h.start_time, uid: h.uid };
                    e.living.push(Living { worker, start_time: None, inode: h.pidfd_inode });
                }
                _ => {}
            }
        }
        let verdicts = judge(&e);
        let (mut slots, mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (intent, verdict) in &verdicts.vms {
            assert!(numbers.insert(intent.number) && names.insert(&intent.spec.name), "{seed}: {verdicts:?}");
            let slot = match verdict {
                Verdict::Ask(h) => {
                    let living = e.living.iter().find(|l| l.worker.slot.0 == h.slot).expect("it lives");
                    assert_eq!((living.worker.pid, h.intent.number), (h.pid, intent.number));
                    h.slot
                }
                Verdict::Told(slot) => slot.0,
                _ => continue,
            };
            assert!(slots.insert(slot), "{seed}: {verdicts:?}");
        }
        for (intent, _) in &verdicts.removed {
            assert!(numbers.insert(intent.number), "{seed}: {verdicts:?}");
        }
        let all: BTreeSet<u64> =
            e.rows.iter().map(|row| row.number).chain(e.handles.iter().map(|h| h.intent.number)).collect();
        assert_eq!(numbers, all, "{seed}");
    }
}
