//! How a step is carried out: one call after the other, and what came of it. Pure: who carries it out makes the calls.

use super::plan::{Action, Plan, Step, There};
use crate::api::types::UpdateDone;

/// Steps that are under way at the same time, at most.
pub const AT_ONCE: usize = 8;

/// One call to the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Make the VM of the file, and start it.
    Create,
    /// Make the VM what the file says, if it still has the generation that was seen.
    Update,
    /// Start it.
    Start,
    /// See how it is now.
    Look,
    /// Stop it, and wait for its end.
    Stop,
    /// Remove it; it has ended.
    Delete,
}

/// What the supervisor answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Done,
    /// The answer to [`Call::Update`].
    Updated(UpdateDone),
    /// The answer to [`Call::Look`].
    Seen(There),
    /// There is no such VM (any more).
    NoVm,
    /// It failed, or was refused; why, for people.
    Failed(String),
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// This call.
    Call(Call),
    /// Nothing: this came of the step.
    Done(Outcome),
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was made, and runs.
    Created,
    /// What changed did not concern the running guest.
    InPlace,
    /// It was stopped and started.
    Restarted,
    /// It rests, and will be that the next time.
    Stored,
    /// It was started.
    Started,
    /// Its source is another now.
    TakenOver,
    /// It is gone.
    Removed,
    /// It was as it is wanted.
    Unchanged,
    /// It is not as it is wanted; why, for people.
    Failed(String),
}

/// The steps in turns, by their numbers: all of one turn are over before the next begins. What is removed or becomes smaller
/// gives back what the next one may want: a disk, a port, memory.
pub fn turns(plan: &Plan) -> [Vec<usize>; 3] {
    let mut turns = [const { Vec::new() }; 3];
    for (n, step) in plan.steps.iter().enumerate() {
        let turn = match step.action {
            Action::Remove | Action::Refuse(_) | Action::Nothing => 0,
            Action::Update { .. } => 1,
            Action::Create | Action::Start => 2,
        };
        turns[turn].push(n);
    }
    turns
}

/// How a step begins.
pub fn first(step: &Step) -> Next {
    match &step.action {
        Action::Create => Next::Call(Call::Create),
        Action::Update { .. } => Next::Call(Call::Update),
        Action::Start => Next::Call(Call::Start),
        Action::Remove => Next::Call(Call::Look),
        Action::Refuse(why) => Next::Done(Outcome::Failed(why.clone())),
        Action::Nothing => Next::Done(Outcome::Unchanged),
    }
}

/// How a step goes on after the answer to a call.
pub fn after(step: &Step, call: Call, answer: Answer) -> Next {
    let done = Next::Done;
    match (call, answer) {
        (_, Answer::Failed(why)) => done(Outcome::Failed(why)),
        // That it is gone is what was wanted, whoever did it.
        (Call::Look | Call::Stop | Call::Delete, Answer::NoVm) => done(Outcome::Removed),
        (_, Answer::NoVm) => done(Outcome::Failed("it was removed meanwhile; apply again".into())),
        (Call::Create, _) => done(Outcome::Created),
        (Call::Start, _) => done(Outcome::Started),
        (Call::Update, Answer::Updated(what)) => updated(step, what),
        (Call::Look, Answer::Seen(vm)) => seen(step, &vm),
        (Call::Stop, _) => Next::Call(Call::Delete),
        (Call::Delete, _) => done(Outcome::Removed),
        (call, answer) => done(Outcome::Failed(format!("an answer that makes no sense ({answer:?} to {call:?})"))),
    }
}

fn updated(step: &Step, what: UpdateDone) -> Next {
    let start = matches!(step.action, Action::Update { start: true, .. });
    match what {
        UpdateDone::InPlace => Next::Done(Outcome::InPlace),
        UpdateDone::Restarted => Next::Done(Outcome::Restarted),
        UpdateDone::Stored | UpdateDone::Nothing if start => Next::Call(Call::Start),
        UpdateDone::Stored => Next::Done(Outcome::Stored),
        UpdateDone::Nothing if matches!(step.action, Action::Update { differs: false, .. }) => {
            Next::Done(Outcome::TakenOver)
        }
        // Its generation is the one that was seen, so its file was the one that was seen, and that one differed.
        UpdateDone::Nothing => Next::Done(Outcome::Unchanged),
    }
}

/// A VM that is about to be removed is looked at once more: somebody may have changed it, or taken it over, since.
fn seen(step: &Step, vm: &There) -> Next {
    let as_planned = step.there.as_ref().is_some_and(|planned| {
        (&planned.id, planned.generation, &planned.source) == (&vm.id, vm.generation, &vm.source)
    });
    match (as_planned, vm.ended) {
        (false, _) => Next::Done(Outcome::Failed("somebody changed it meanwhile; apply again".into())),
        (true, true) => Next::Call(Call::Delete),
        (true, false) => Next::Call(Call::Stop),
    }
}

impl Outcome {
    /// One line about it, but for a failure, whose sentence says it all.
    pub fn sentence(&self, name: &str) -> String {
        match self {
            Outcome::Created => format!("{name} created"),
            Outcome::InPlace => format!("{name} updated in place"),
            Outcome::Restarted => format!("{name} updated and restarted"),
            Outcome::Stored => format!("{name} updated; it does not run"),
            Outcome::Started => format!("{name} started"),
            Outcome::TakenOver => format!("{name} taken over"),
            Outcome::Removed => format!("{name} removed"),
            Outcome::Unchanged => format!("{name} unchanged"),
            Outcome::Failed(why) => format!("{name}: {why}"),
        }
    }

    /// A word for programs.
    pub fn word(&self) -> &'static str {
        match self {
            Outcome::Created => "created",
            Outcome::InPlace => "updated_in_place",
            Outcome::Restarted => "restarted",
            Outcome::Stored => "stored",
            Outcome::Started => "started",
            Outcome::TakenOver => "taken_over",
            Outcome::Removed => "removed",
            Outcome::Unchanged => "unchanged",
            Outcome::Failed(_) => "failed",
        }
    }
}
