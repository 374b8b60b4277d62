//! Every event in every state.

use super::*;

const KINDS: [EndKind; 9] = [
    EndKind::Shutdown,
    EndKind::Reset,
    EndKind::Killed,
    EndKind::GuestCrashed,
    EndKind::WorkerCrashed,
    EndKind::Unhealthy,
    EndKind::HostDown,
    EndKind::StartFailed,
    EndKind::Unknown,
];
const CAUSES: [Cause; 3] = [Cause::Asked, Cause::StartFailed, Cause::Unwell];

fn states() -> Vec<State> {
    use State::*;
    let mut all =
        vec![Resting, Making, Cancelled, Handing, Running, Pausing, Paused, Resuming, Stopping, BackingOff, Gone];
    for asked in [false, true] {
        all.extend(CAUSES.map(|cause| Ending { cause, asked }));
        all.extend(KINDS.map(|kind| Ended { kind, asked }));
    }
    all
}

fn events() -> Vec<Event> {
    use Event::*;
    let mut all = vec![
        StartAsked,
        Made,
        MakeFailed,
        Started,
        StartFailed,
        PauseAsked,
        PauseDone,
        PauseFailed,
        ResumeAsked,
        ResumeDone,
        ResumeFailed,
        StopAsked,
        StopCancelled,
        KillAsked,
        DeadlinePassed,
        Unwell,
        WorkerLost,
        BackOffOver,
        RemoveAsked,
    ];
    all.extend([After::Rest, After::BackOff, After::Remove].map(Recorded));
    all.extend(KINDS.map(|kind| WorkerEnded { kind, sigkill: false }));
    all.push(WorkerEnded { kind: EndKind::WorkerCrashed, sigkill: true });
    all
}

fn has_worker(state: State) -> bool {
    state.has_guest() || matches!(state, State::Handing | State::Ending { .. })
}

fn ended(state: State) -> bool {
    matches!(state, State::Ended { .. })
}

/// Every step that there is.
fn steps() -> impl Iterator<Item = (State, Event, State, Effects)> {
    states().into_iter().flat_map(|state| {
        events().into_iter().map(move |event| {
            let (after, effects) = next(state, event);
            (state, event, after, effects)
        })
    })
}

#[test]
fn a_vm_that_is_gone_stays_gone_and_only_one_that_rests_is_removed() {
    for (state, event, after, effects) in steps() {
        if state == State::Gone {
            assert_eq!((after, effects), (State::Gone, &[][..]), "{event:?}");
        } else if after == State::Gone {
            let by_owner = matches!(state, State::Resting | State::BackingOff) && event == Event::RemoveAsked;
            assert!(by_owner || ended(state) && event == Event::Recorded(After::Remove), "{state:?} {event:?}");
        }
    }
}

#[test]
fn a_worker_is_always_gone_before_the_end_and_the_end_is_written_once() {
    for (state, event, after, effects) in steps() {
        let gone = matches!(event, Event::WorkerEnded { .. } | Event::WorkerLost);
        if has_worker(state) {
            assert_eq!(ended(after), gone, "{state:?} {event:?}");
        }
        assert_eq!(effects.contains(&Effect::Record), ended(after) && !ended(state), "{state:?} {event:?}");
        assert!(!(has_worker(state) && after.rests()), "{state:?} {event:?}");
    }
}

#[test]
fn every_state_has_a_way_to_rest_that_needs_neither_guest_nor_worker() {
    for state in states().into_iter().filter(|state| *state != State::Gone) {
        let mut after = next(state, Event::KillAsked).0;
        if after == State::Cancelled {
            // The jailer answers, or its deadline passes.
            assert!(ended(next(after, Event::MakeFailed).0));
            after = next(after, Event::Made).0;
        }
        if matches!(after, State::Ending { .. }) {
            let reaped = Event::WorkerEnded { kind: EndKind::WorkerCrashed, sigkill: true };
            assert!(ended(next(after, reaped).0), "{state:?}");
            after = next(after, Event::WorkerLost).0;
        }
        if ended(after) {
            // Whatever the policy says.
            assert_eq!(next(after, Event::Recorded(After::BackOff)).0, State::Resting, "{state:?}");
            after = next(after, Event::Recorded(After::Rest)).0;
        }
        assert_eq!(after, State::Resting, "{state:?}");
    }
}

#[test]
fn a_vm_that_its_owner_stopped_is_never_started_by_policy() {
    // All that can happen after a stop or a kill, but for another start.
    let policy: Vec<Event> =
        events().into_iter().filter(|e| !matches!(e, Event::StartAsked | Event::StopCancelled)).collect();
    for asked in [Event::StopAsked, Event::KillAsked] {
        let mut seen: Vec<State> = states().into_iter().map(|state| next(state, asked).0).collect();
        let mut at = 0;
        while at < seen.len() {
            for event in &policy {
                let after = next(seen[at], *event).0;
                assert!(!matches!(after, State::BackingOff | State::Making), "{asked:?} {:?} {event:?}", seen[at]);
                if !seen.contains(&after) {
                    seen.push(after);
                }
            }
            at += 1;
        }
        // The walk went somewhere.
        assert!(seen.contains(&State::Resting) && seen.iter().any(|s| ended(*s)));
    }
}

#[test]
fn whoever_enters_ending_kills_and_nobody_else_does() {
    let ending = |state| matches!(state, State::Ending { .. });
    for (state, event, after, effects) in steps() {
        assert_eq!(effects.contains(&Effect::Kill), ending(after) && !ending(state), "{state:?} {event:?} {after:?}");
    }
}

#[test]
fn a_vm_is_made_and_given_away_once_and_only_by_the_step_that_says_so() {
    for (state, event, after, effects) in steps() {
        let enters = |to| after == to && state != to;
        assert_eq!(effects.contains(&Effect::GiveVm), enters(State::Handing), "{state:?} {event:?}");
        assert_eq!(effects.contains(&Effect::Make), enters(State::Making), "{state:?} {event:?}");
        assert_eq!(effects.contains(&Effect::ArmBackOff), enters(State::BackingOff), "{state:?} {event:?}");
    }
}

#[test]
fn a_pause_and_a_resume_are_asked_of_the_worker_once_each_and_come_back_where_they_fail() {
    use {Effect::*, Event::*, State::*};
    for (state, event, after, effects) in steps() {
        assert_eq!(effects.contains(&Pause), after == Pausing && state != Pausing, "{state:?} {event:?}");
        assert_eq!(effects.contains(&Resume), after == Resuming && state != Resuming, "{state:?} {event:?}");
    }
    assert_eq!(next(Running, PauseAsked), (Pausing, &[Pause][..]));
    assert_eq!(next(Pausing, PauseAsked), (Pausing, &[][..]));
    assert_eq!((next(Pausing, PauseDone).0, next(Pausing, PauseFailed).0), (Paused, Running));
    assert_eq!(next(Paused, ResumeAsked), (Resuming, &[Resume][..]));
    assert_eq!((next(Resuming, ResumeDone).0, next(Resuming, ResumeFailed).0), (Running, Paused));
}

#[test]
fn a_stop_arms_a_deadline_that_leads_to_a_kill_and_lets_a_paused_guest_act() {
    use {Effect::*, Event::*, State::*};
    let asked = Ending { cause: Cause::Asked, asked: true };
    assert_eq!(next(Running, StopAsked), (Stopping, &[PressPowerButton, ArmDeadline][..]));
    for state in [Pausing, Paused, Resuming] {
        assert_eq!(next(state, StopAsked), (Stopping, &[PressAndResume, ArmDeadline][..]), "{state:?}");
    }
    assert_eq!(next(Stopping, StopAsked), (Stopping, &[ArmDeadline][..]));
    assert_eq!(next(Stopping, DeadlinePassed), (asked, &[Kill][..]));
    assert_eq!(next(Stopping, StopCancelled), (Running, &[DisarmDeadline][..]));
    // What a pause answers late changes nothing.
    assert_eq!(next(Stopping, PauseDone), (Stopping, &[][..]));
}

#[test]
fn a_back_off_ends_by_itself_or_by_its_owner() {
    use {Event::*, State::*};
    let crashed = Ended { kind: EndKind::GuestCrashed, asked: false };
    assert_eq!(next(crashed, Recorded(After::BackOff)), (BackingOff, &[Effect::ArmBackOff][..]));
    assert_eq!(next(BackingOff, BackOffOver), (Making, &[Effect::Make][..]));
    assert_eq!(next(BackingOff, StartAsked), (Making, &[Effect::Make][..]));
    assert_eq!((next(BackingOff, StopAsked).0, next(BackingOff, KillAsked).0), (Resting, Resting));
    assert_eq!(next(Resting, BackOffOver), (Resting, &[][..]));
}

#[test]
fn an_end_is_called_by_its_cause() {
    let reaped = |kind, sigkill| Event::WorkerEnded { kind, sigkill };
    let kind = |state, event| match next(state, event).0 {
        State::Ended { kind, asked } => (kind, asked),
        other => panic!("{other:?}"),
    };
    let asked = State::Ending { cause: Cause::Asked, asked: true };
    let unwell = State::Ending { cause: Cause::Unwell, asked: false };
    let crash = reaped(EndKind::WorkerCrashed, true);
    assert_eq!(kind(asked, crash), (EndKind::Killed, true));
    assert_eq!(kind(asked, Event::WorkerLost), (EndKind::Killed, true));
    assert_eq!(kind(asked, reaped(EndKind::Shutdown, false)), (EndKind::Shutdown, true));
    assert_eq!(kind(unwell, crash), (EndKind::Unhealthy, false));
    assert_eq!(kind(next(unwell, Event::StopAsked).0, crash), (EndKind::Unhealthy, true));
    assert_eq!(kind(State::Running, crash), (EndKind::WorkerCrashed, false));
    assert_eq!(kind(State::Paused, crash), (EndKind::WorkerCrashed, false));
    assert_eq!(kind(State::Stopping, reaped(EndKind::Shutdown, false)), (EndKind::Shutdown, true));
    assert_eq!(kind(State::Handing, reaped(EndKind::WorkerCrashed, false)), (EndKind::StartFailed, false));
    assert_eq!(kind(State::Handing, reaped(EndKind::Reset, false)), (EndKind::Reset, false));
    assert_eq!(kind(State::Running, Event::WorkerLost), (EndKind::Unknown, false));
}

#[test]
fn who_is_found_running_runs_or_is_paused() {
    assert_eq!((State::adopted(false), State::adopted(true)), (State::Running, State::Paused));
}

#[test]
fn the_outside_view_tells_a_good_rest_from_a_bad_one() {
    assert_eq!(State::Resting.outside(None), VmState::Stopped);
    for kind in KINDS {
        let expected = if kind.is_clean() { VmState::Stopped } else { VmState::Crashed };
        assert_eq!(State::Resting.outside(Some(kind)), expected);
        assert_eq!(State::Running.outside(Some(kind)), VmState::Running);
        assert_eq!(State::BackingOff.outside(Some(kind)), VmState::Restarting);
    }
}

/// Random walks: within one run, the outside view moves only forward but for pauses and a stop that is taken back.
#[test]
fn the_outside_view_never_goes_back_within_a_run() {
    let rank = |s: State| match s.outside(None) {
        VmState::Starting => 0,
        VmState::Running | VmState::Paused => 1,
        VmState::Stopping => 2,
        VmState::Restarting | VmState::Stopped | VmState::Crashed => 3,
    };
    let events = events();
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut walked = 0;
    for _ in 0..20_000 {
        let mut state = State::Making;
        for _ in 0..14 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let event = events[(random % events.len() as u64) as usize];
            let (after, effects) = next(state, event);
            assert!(effects.len() <= 2);
            if after == State::Making && state.rests() {
                break;
            }
            assert!(rank(after) >= rank(state) || event == Event::StopCancelled, "{state:?} {event:?} {after:?}");
            walked += usize::from(after != state);
            state = after;
        }
    }
    assert!(walked > 20_000, "{walked}");
}
