//! `vmsup diff`: what `vmsup apply` would do, and why.

use super::apply::{Prepared, about, prepare};
use super::args::Diff;
use super::client::{Api, CallError, Client, vm_target};
use super::failure::{BAD_INPUT, Failure};
use super::output::{print, print_json};
use super::sanitize::line;
use serde::Serialize;
use vmsup::api::types::{ApiError, ErrorCode, VmInfo};
use vmsup::reconcile::{Action, Change, Step, changes};

/// Exit status where something differs, as diff(1) has it.
const DIFFERENT: u8 = 1;
/// Exit status where that could not be told, or `apply` would be refused something.
const TROUBLE: u8 = BAD_INPUT;

/// What a look at the differences comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Everything is as it is wanted.
    Same,
    /// Something is not.
    Differs,
    /// Something is not, and `apply` would not mend it.
    Refused,
}

/// `vmsup diff DIR|FILE…`.
pub fn diff(client: &Client, args: &Diff) -> Result<(), Failure> {
    let trouble = |failure: Failure| Failure { status: TROUBLE, ..failure };
    let (mut api, prepared) = prepare(client, &args.wish).map_err(trouble)?;
    match show(&mut api, &prepared, args.json.json).map_err(trouble)? {
        Verdict::Same => Ok(()),
        Verdict::Differs => Err(Failure::status(DIFFERENT)),
        Verdict::Refused => Err(Failure::status(TROUBLE)),
    }
}

/// One VM that is not as it is wanted.
#[derive(Debug, Serialize)]
struct Difference<'a> {
    name: &'a str,
    action: &'static str,
    /// The file that wants it.
    file: Option<&'a str>,
    /// Why `apply` would leave it alone.
    refused: Option<&'a str>,
    /// The fields that differ, of a VM that is there.
    changes: Vec<Change>,
}

/// Prints what would be done.
///
/// # Errors
/// The supervisor cannot be asked, or the output not be written.
pub fn show(api: &mut Api, prepared: &Prepared, json: bool) -> Result<Verdict, Failure> {
    let mut differences = Vec::new();
    let mut text = String::new();
    for step in prepared.plan.steps.iter().filter(|step| step.action != Action::Nothing) {
        let changes = changes_of(api, prepared, step)?;
        text += &format!("{}\n", line(&would(prepared, step)));
        for change in &changes {
            text += &format!("    {}\n", line(&change.to_string()));
        }
        differences.push(Difference {
            name: &step.name,
            action: word(&step.action),
            file: step.wanted.and_then(|n| prepared.sources.wanted.get(n)).map(|wanted| wanted.file.as_str()),
            refused: match &step.action {
                Action::Refuse(why) => Some(why),
                _ => None,
            },
            changes,
        });
    }
    if json {
        print_json(&differences)?;
    } else {
        print(text)?;
    }
    Ok(match prepared.plan.steps.iter().any(|step| matches!(step.action, Action::Refuse(_))) {
        true => Verdict::Refused,
        false if differences.is_empty() => Verdict::Same,
        false => Verdict::Differs,
    })
}

/// The fields in which a VM that is there differs from its file; its source, too.
fn changes_of(api: &mut Api, prepared: &Prepared, step: &Step) -> Result<Vec<Change>, Failure> {
    let (Some(vm), Some(wanted)) = (&step.there, step.wanted.and_then(|n| prepared.sources.wanted.get(n))) else {
        return Ok(Vec::new());
    };
    if !matches!(step.action, Action::Update { .. }) {
        return Ok(Vec::new());
    }
    let mut found = match api.call::<VmInfo>("GET", &vm_target(&vm.id, "")) {
        Ok(info) => changes(&info.spec, &wanted.spec),
        // It went since the list was made: what would be done is said, the fields that differed are gone with it.
        Err(CallError::Api(ApiError { code: ErrorCode::NotFound, .. })) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let source = step.source(wanted);
    if vm.source.as_ref() != Some(&source) {
        let (old, new) = (vm.source.clone().map(Into::into), Some(source.into()));
        found.push(Change { field: "(source)".into(), old, new });
    }
    Ok(found)
}

/// What `apply` would do with a VM, in a sentence.
fn would(prepared: &Prepared, step: &Step) -> String {
    let name = &step.name;
    match &step.action {
        Action::Create => format!("{name} would be created"),
        Action::Update { differs: false, start: false } => format!("{name} would be taken over"),
        Action::Update { differs: false, start: true } => format!("{name} would be taken over and started"),
        Action::Update { start: true, .. } => format!("{name} would be updated and started"),
        Action::Update { .. } => format!("{name} would be updated"),
        Action::Start => format!("{name} would be started"),
        Action::Remove => format!("{name} would be stopped and removed"),
        Action::Refuse(why) => format!("{name} would be refused: {}", about(&prepared.sources, step, why)),
        Action::Nothing => format!("{name} is as it is wanted"),
    }
}

/// The same for programs.
fn word(action: &Action) -> &'static str {
    match action {
        Action::Create => "create",
        Action::Update { differs: false, .. } => "take_over",
        Action::Update { .. } => "update",
        Action::Start => "start",
        Action::Remove => "remove",
        Action::Refuse(_) => "refuse",
        Action::Nothing => "nothing",
    }
}
