//! What is believed: a pure function of what the database, the handles, the jailer and the kernel say.
//!
//! A worker is a VM's only where a handle of this boot names it, and slot, pid, start time, uid and (where there is pidfs)
//! the inode of its pidfd are what jailer and kernel say of it; whatever of this differs, the handle is about somebody else.
//! A worker that no such handle names is nobody's and ends: what it runs is not known.
//!
//! | row | handle | worker | verdict |
//! |---|---|---|---|
//! | any | names it | lives | [`Verdict::Ask`]; without a row the VM comes back from its handle |
//! | any | of a run whose end is in the row | – | as without a handle |
//! | confirmed | names it | ended, and the jailer says how | [`Verdict::Told`] |
//! | confirmed | of another boot | – | [`Verdict::HostDown`] |
//! | confirmed | names another, or nobody | – | [`Verdict::Lost`]; where the last run is over, that of a start which was not: [`Verdict::Rests`] |
//! | confirmed, to run | none | – | [`Verdict::HostDown`] where the runtime directory is new, else [`Verdict::Lost`] |
//! | confirmed, and its last run is over, or it is not to run | none | – | [`Verdict::Rests`] |
//! | to be forgotten at its end | none, in a runtime directory that is not new | – | removed: it ended, or nothing says what it ran as |
//! | unconfirmed | any | none that lives | removed: nobody was ever told that it runs |
//! | none | any | none that lives | as with a confirmed row: the database was lost |

use crate::api::types::Desired;
use crate::serve::handle::Handle;
use crate::serve::state::Intent;
use jail_spec::{Slot, Worker};
use std::collections::{BTreeMap, BTreeSet};

/// All that there is to judge by.
#[derive(Debug, Default)]
pub struct Evidence {
    /// Of the kernel that runs.
    pub boot_id: String,
    /// The runtime directory was made by this supervisor.
    pub new: bool,
    /// What the database says.
    pub rows: Vec<Intent>,
    /// What the handles say.
    pub handles: Vec<Handle>,
    /// Workers that live.
    pub living: Vec<Living>,
    /// Slots and pids of workers whose end the jailer tells.
    pub ended: Vec<(Slot, i32)>,
}

/// A worker that lives.
#[derive(Debug, Clone, Copy)]
pub struct Living {
    /// As the jailer has it.
    pub worker: Worker,
    /// As the kernel says, where it says so: a mount of /proc may hide it.
    pub start_time: Option<u64>,
    /// Inode of its pidfd, where the kernel has pidfs.
    pub inode: Option<u64>,
}

/// What became of a VM, as far as can be said without asking its worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The worker of its handle lives.
    Ask(Box<Handle>),
    /// The jailer says how the worker of this slot ended.
    Told(Slot),
    /// The host went down under it.
    HostDown,
    /// It is gone, and why nobody can say more.
    Lost(String),
    /// It did not run.
    Rests,
}

/// The verdicts.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// What there is, with what became of it.
    pub vms: Vec<(Intent, Verdict)>,
    /// What is removed with its row and its handle, and why.
    pub removed: Vec<(Intent, String)>,
    /// What people should know.
    pub said: Vec<String>,
}

/// Judges.
pub fn judge(evidence: &Evidence) -> Verdicts {
    let rows: BTreeMap<u64, &Intent> = evidence.rows.iter().map(|row| (row.number, row)).collect();
    // Its supervisor died after the end was written down, and before the handle was gone.
    let over = |handle: &Handle| rows.get(&handle.intent.number).is_some_and(|row| row.is_over(handle.intent.runs));
    let handles: BTreeMap<u64, &Handle> =
        evidence.handles.iter().filter(|handle| !over(handle)).map(|handle| (handle.intent.number, handle)).collect();
    let claims = claims(evidence, &handles, &rows);
    let mut verdicts = Verdicts::default();
    let mut found: Vec<(bool, Intent, Verdict)> = Vec::new();
    for (number, row) in &rows {
        let verdict = claims.get(number).cloned().unwrap_or_else(|| without_a_handle(evidence, row));
        if !row.confirmed && !matches!(verdict, Verdict::Ask(_)) {
            verdicts.removed.push(((*row).clone(), "its start was not over when its supervisor died".into()));
            continue;
        }
        // Its last run is over, and the handle is of a start that was not: a jailer ends and forgets what never got its VM.
        if matches!(verdict, Verdict::Lost(_)) && row.is_over(row.runs) {
            found.push((true, (*row).clone(), Verdict::Rests));
            continue;
        }
        if row.remove_when_ended && !evidence.new && !claims.contains_key(number) {
            let why = "it was to be forgotten at its end, and has no handle any more";
            verdicts.removed.push(((*row).clone(), why.into()));
            continue;
        }
        // Written after the handle, but for a database that could not be written for a while.
        let handle = handles.get(number);
        let newer = handle.filter(|handle| handle.intent.generation > row.generation);
        let mut intent = newer.map_or(*row, |handle| &handle.intent).clone();
        intent.runs = intent.runs.max(handle.map_or(0, |handle| handle.intent.runs));
        found.push((true, intent, verdict));
    }
    for (number, verdict) in &claims {
        if !rows.contains_key(number) {
            let mut intent = handles[number].intent.clone();
            // A database that has others was not lost: this one's start was not over, and its jailer ended what never got its VM.
            if !intent.confirmed && matches!(verdict, Verdict::Lost(_)) && !rows.is_empty() {
                verdicts.removed.push((intent, "its start was not over when its supervisor died".into()));
                continue;
            }
            // What its worker says of itself tells whether it ran; where there is none, it is taken to have.
            intent.confirmed |= !matches!(verdict, Verdict::Ask(_));
            // The row of one that is to be forgotten may not have been written yet.
            if !intent.remove_when_ended {
                let name = &intent.spec.name;
                verdicts.said.push(format!("{name} is not in the database; what it is comes from its handle"));
            }
            found.push((false, intent, verdict.clone()));
        }
    }
    // Of two of one name the one that lives stays, then the one that is in the database.
    found.sort_by_key(|(row, _, verdict)| (!matches!(verdict, Verdict::Ask(_)), !row));
    let mut names = BTreeSet::new();
    for (_, intent, verdict) in found {
        if names.insert((intent.owner, intent.spec.name.clone())) {
            verdicts.vms.push((intent, verdict));
        } else {
            let why = format!("another VM has the name {}", intent.spec.name);
            verdicts.said.push(format!("VM {} is removed: {why}", intent.id()));
            verdicts.removed.push((intent, why));
        }
    }
    verdicts
}

fn without_a_handle(evidence: &Evidence, row: &Intent) -> Verdict {
    match row.desired {
        Desired::Stopped => Verdict::Rests,
        Desired::Running if row.is_over(row.runs) => Verdict::Rests,
        Desired::Running if evidence.new => Verdict::HostDown,
        Desired::Running => Verdict::Lost("there is no handle that says what it ran as".into()),
    }
}

/// What each handle comes to. Of several that name the same worker the one with a row is believed; where that does not tell
/// them apart, none is.
fn claims(
    evidence: &Evidence,
    handles: &BTreeMap<u64, &Handle>,
    rows: &BTreeMap<u64, &Intent>,
) -> BTreeMap<u64, Verdict> {
    let mut claims: BTreeMap<u64, Verdict> =
        handles.iter().map(|(number, handle)| (*number, claim(evidence, handle))).collect();
    let mut by_slot: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for (number, claim) in &claims {
        if matches!(claim, Verdict::Ask(_) | Verdict::Told(_)) {
            by_slot.entry(handles[number].slot).or_default().push(*number);
        }
    }
    for numbers in by_slot.values().filter(|numbers| numbers.len() > 1) {
        let with_row: Vec<u64> = numbers.iter().copied().filter(|number| rows.contains_key(number)).collect();
        for number in numbers {
            if with_row != [*number] {
                claims
                    .insert(*number, Verdict::Lost("its handle names a worker that another handle names, too".into()));
            }
        }
    }
    claims
}

fn claim(evidence: &Evidence, handle: &Handle) -> Verdict {
    if handle.boot_id != evidence.boot_id {
        return Verdict::HostDown;
    }
    if let Some(living) = evidence.living.iter().find(|living| living.worker.slot.0 == handle.slot) {
        return match differs(handle, living) {
            None => Verdict::Ask(Box::new(handle.clone())),
            Some(what) => {
                Verdict::Lost(format!("its worker is gone, and where it was another one has a different {what}"))
            }
        };
    }
    match evidence.ended.iter().find(|(slot, pid)| (slot.0, *pid) == (handle.slot, handle.pid)) {
        Some((slot, _)) => Verdict::Told(*slot),
        None => Verdict::Lost("its worker is gone, and nobody could say how it ended".into()),
    }
}

/// What of a worker is not what a handle says.
fn differs(handle: &Handle, living: &Living) -> Option<&'static str> {
    let Living { worker, start_time, inode } = living;
    if worker.pid != handle.pid {
        return Some("pid");
    }
    if worker.start_time != handle.start_time || start_time.is_some_and(|time| time != handle.start_time) {
        return Some("start time");
    }
    if worker.uid != handle.uid {
        return Some("uid");
    }
    // A handle of a kernel without pidfs is of another boot than one with it.
    (*inode != handle.pidfd_inode).then_some("pidfd")
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
