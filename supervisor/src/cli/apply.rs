//! `vmsup apply`: VMs become what files say. What is to be done, and in which order, is [`vmsup::reconcile`]'s; here it is
//! asked of the supervisor, a few VMs at a time, each on a connection of its own.

use super::acts::How;
use super::args::{Apply, Wish};
use super::client::{Api, CallError, Client, vm_target};
use super::diff::{self, Verdict};
use super::failure::{FAILED, Failure, notice};
use super::files;
use super::output::{print, print_json};
use super::sanitize::line;
use super::vms::note_limits;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use vmsup::api::types::{ApiError, CreateRequest, ErrorCode, UpdateAnswer, UpdateRequest, VmInfo, VmSummary};
use vmsup::guestfile::Purpose;
use vmsup::reconcile::{
    AT_ONCE, Answer, Call, Counts, Host, Next, Outcome, Place, Plan, Scope, Sources, Step, There, Wanted, after, first,
    plan, turns,
};
use vmsup::side::HandedOver;

/// What files want, and what is to be done about it.
#[derive(Debug)]
pub struct Prepared {
    /// The files.
    pub sources: Sources,
    /// The steps.
    pub plan: Plan,
}

/// `vmsup apply DIR|FILE…`.
pub fn apply(client: &Client, args: &Apply) -> Result<(), Failure> {
    let (mut api, prepared) = prepare(client, &args.wish)?;
    if args.dry_run {
        return match diff::show(&mut api, &prepared, args.json.json)? {
            Verdict::Refused => Err(Failure::status(FAILED)),
            Verdict::Same | Verdict::Differs => Ok(()),
        };
    }
    let mut printed = Ok(());
    let outcomes = carry_out(client, &prepared, args.timeout, &mut |step, outcome| {
        if let Outcome::Failed(why) = outcome {
            notice(&about(&prepared.sources, step, why));
        } else if *outcome != Outcome::Unchanged && !args.json.json && printed.is_ok() {
            // Whoever does not read this any more is no reason to leave the rest undone.
            printed = print(format!("{}\n", line(&outcome.sentence(&step.name))));
        }
    });
    printed?;
    let mut counts = Counts::default();
    outcomes.iter().for_each(|outcome| counts.add(outcome));
    if args.json.json {
        print_json(&report(&prepared, &outcomes, counts))?;
    } else {
        print(format!("{counts}\n"))?;
    }
    if counts.failed == 0 { Ok(()) } else { Err(Failure::status(FAILED)) }
}

/// Reads everything that is wanted, asks what is there, and plans. Where anything is wrong with what is wanted, all of it is
/// said, and no supervisor is asked.
///
/// # Errors
/// What is wrong, with the status of wrong input; the supervisor cannot be asked.
pub fn prepare(client: &Client, wish: &Wish) -> Result<(Api, Prepared), Failure> {
    let found: Vec<Result<Place, _>> = wish.paths.iter().map(|path| Place::find(path)).collect();
    let missing: Vec<String> = found.iter().filter_map(|p| p.as_ref().err()).map(ToString::to_string).collect();
    let places: Vec<Place> = found.into_iter().flatten().collect();
    let read = Sources::read(&places, Host::Checked);
    let wrong = read.as_ref().err().into_iter().flatten().map(ToString::to_string);
    let errors: Vec<String> = missing.into_iter().chain(wrong).collect();
    let sources = match read {
        Ok(sources) if errors.is_empty() => sources,
        _ => return Err(nothing_done(&errors)),
    };
    let mut api = client.connect()?;
    let vms: Vec<VmSummary> = api.call("GET", "/v1/vms")?;
    // Who sees other people's VMs, too, still wants none but their own to be what their files say.
    let me = rustix::process::getuid().as_raw();
    let there: Vec<There> = vms.iter().filter(|vm| vm.owner == me).map(There::from).collect();
    let Wish { prune, allow_empty, adopt, .. } = *wish;
    let scope = Scope { sources: &sources.names, prune, allow_empty, adopt, start: true };
    let plan = plan(&sources.wanted, &there, scope)
        .map_err(|conflicts| nothing_done(&conflicts.iter().map(ToString::to_string).collect::<Vec<_>>()))?;
    Ok((api, Prepared { sources, plan }))
}

/// Says every error, and where there are several, that nothing was done at all.
fn nothing_done(errors: &[String]) -> Failure {
    if let [error] = errors {
        return Failure::input(error);
    }
    errors.iter().for_each(|error| notice(error));
    Failure::input(format!("nothing was changed, because of these {} errors", errors.len()))
}

/// A failure with the file that wants the VM, where one does.
pub fn about(sources: &Sources, step: &Step, why: &str) -> String {
    match step.wanted.and_then(|n| sources.wanted.get(n)) {
        // A sentence about a field names its file already.
        Some(wanted) if why.starts_with(&wanted.file) => why.to_owned(),
        Some(wanted) => format!("{}: {}: {why}", wanted.file, step.name),
        None => format!("{}: {why}", step.name),
    }
}

/// Carries out the steps, turn by turn, some of each turn at the same time; `tell` hears of each as it is over. The outcomes
/// are in the order of the steps.
fn carry_out(
    client: &Client,
    prepared: &Prepared,
    deadline_s: u32,
    tell: &mut dyn FnMut(&Step, &Outcome),
) -> Vec<Outcome> {
    let steps = &prepared.plan.steps;
    let mut outcomes = vec![Outcome::Unchanged; steps.len()];
    for turn in turns(&prepared.plan) {
        let next = AtomicUsize::new(0);
        let (sender, over) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..turn.len().min(AT_ONCE) {
                let (sender, next, turn) = (sender.clone(), &next, &turn);
                scope.spawn(move || {
                    let mut hand = Hand { client, prepared, deadline_s, api: None };
                    while let Some(n) = turn.get(next.fetch_add(1, Ordering::Relaxed)) {
                        // The receiver lives as long as this scope.
                        let _ = sender.send((*n, hand.step(&steps[*n])));
                    }
                });
            }
            drop(sender);
            for (n, outcome) in over {
                tell(&steps[n], &outcome);
                outcomes[n] = outcome;
            }
        });
    }
    outcomes
}

/// One of those that carry out steps.
struct Hand<'a> {
    client: &'a Client,
    prepared: &'a Prepared,
    deadline_s: u32,
    /// Its connection, while it is good.
    api: Option<Api>,
}

impl Hand<'_> {
    fn step(&mut self, step: &Step) -> Outcome {
        let mut next = first(step);
        loop {
            match next {
                Next::Done(outcome) => return outcome,
                Next::Call(call) => {
                    let answer = self.call(step, call).unwrap_or_else(|error| self.failed(step, error));
                    next = after(step, call, answer);
                }
            }
        }
    }

    fn call(&mut self, step: &Step, call: Call) -> Result<Answer, CallError> {
        let wanted = step.wanted.and_then(|n| self.prepared.sources.wanted.get(n));
        let id = step.there.as_ref().map_or("", |vm| vm.id.as_str());
        Ok(match (call, wanted) {
            (Call::Create, Some(wanted)) => {
                let (source, handed) = (Some(step.source(wanted)), self.hand_over(wanted)?);
                let files = handed.as_ref().map(|handed| handed.ticket.clone());
                let request = CreateRequest { spec: wanted.spec.clone(), remove_when_ended: false, source, files };
                let info: VmInfo = self.ask("POST", "/v1/vms", Some(&request))?;
                note_limits(&info);
                Answer::Done
            }
            (Call::Update, Some(wanted)) => {
                let handed = self.hand_over(wanted)?;
                let request = UpdateRequest {
                    spec: wanted.spec.clone(),
                    source: Some(step.source(wanted)),
                    if_generation: step.there.as_ref().map(|vm| vm.generation),
                    deadline_s: self.deadline_s,
                    files: handed.as_ref().map(|handed| handed.ticket.clone()),
                };
                let answer: UpdateAnswer = self.ask("PUT", &vm_target(id, ""), Some(&request))?;
                Answer::Updated(answer.done)
            }
            (Call::Start, _) => {
                let _: VmInfo = self.ask("POST", &vm_target(id, "/start"), None::<&()>)?;
                Answer::Done
            }
            (Call::Look, _) => {
                let info: VmInfo = self.ask("GET", &vm_target(id, ""), None::<&()>)?;
                Answer::Seen(There::from(&info.summary))
            }
            (Call::Stop, _) => {
                let deadline_s = self.deadline_s;
                let api = self.api()?;
                How::Stop(deadline_s).ask(api, id)?;
                let _: VmInfo = api.answer()?;
                Answer::Done
            }
            (Call::Delete, _) => {
                self.api()?.raw("DELETE", &vm_target(id, ""))?;
                Answer::Done
            }
            (Call::Create | Call::Update, None) => Answer::NoVm,
        })
    }

    /// What the VM was imported from may have changed; what it has already is not taken again.
    fn hand_over(&mut self, wanted: &Wanted) -> Result<Option<HandedOver>, CallError> {
        files::hand_over(self.api()?, &wanted.spec, Purpose::Copy)
    }

    fn ask<T: DeserializeOwned>(
        &mut self,
        method: &str,
        target: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, CallError> {
        let api = self.api()?;
        api.ask(method, target, body)?;
        api.answer()
    }

    /// Its connection. Answers may take as long as a guest takes to switch itself off.
    fn api(&mut self) -> Result<&mut Api, CallError> {
        match self.api {
            Some(ref mut api) => Ok(api),
            None => {
                let again = self.client.connect_again();
                let mut api = again.map_err(|e| CallError::Transport(e.sentence.unwrap_or_default()))?;
                api.be_patient()?;
                Ok(self.api.insert(api))
            }
        }
    }

    fn failed(&mut self, step: &Step, error: CallError) -> Answer {
        match error {
            CallError::Api(ApiError { code: ErrorCode::NotFound, .. }) => Answer::NoVm,
            CallError::Api(ApiError { field, message, .. }) => Answer::Failed(match (field, step.wanted) {
                (Some(field), Some(n)) => self.prepared.sources.located(n, &field, &message),
                (Some(field), None) => format!("{field}: {message}"),
                (None, _) => message,
            }),
            CallError::Transport(sentence) => {
                self.api = None;
                Answer::Failed(sentence)
            }
        }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    counts: Counts,
    vms: Vec<Line<'a>>,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    name: &'a str,
    outcome: &'static str,
    /// The file that wants it.
    file: Option<&'a str>,
    /// Why it failed.
    error: Option<&'a str>,
}

fn report<'a>(prepared: &'a Prepared, outcomes: &'a [Outcome], counts: Counts) -> Report<'a> {
    let line = |(step, outcome): (&'a Step, &'a Outcome)| Line {
        name: &step.name,
        outcome: outcome.word(),
        file: step.wanted.and_then(|n| prepared.sources.wanted.get(n)).map(|wanted| wanted.file.as_str()),
        error: match outcome {
            Outcome::Failed(why) => Some(why),
            _ => None,
        },
    };
    Report { counts, vms: prepared.plan.steps.iter().zip(outcomes).map(line).collect() }
}
