//! What is to be done: from what is wanted and what is there, one step for each VM. Pure.

use crate::api::types::{Desired, VmState, VmSummary};
use crate::spec::VmSpec;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A VM as a file wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What the file says, with absolute paths.
    pub spec: VmSpec,
    /// Its hash, as the supervisor makes it.
    pub hash: String,
    /// The source that it is wanted by.
    pub source: String,
    /// The file's path, absolute; where the source is a file, the same.
    pub path: String,
    /// The file as its user named it, for messages.
    pub file: String,
}

/// A VM as it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct There {
    /// Its name.
    pub name: String,
    /// Its id: no other VM ever has it, so that a step cannot meet another VM of that name.
    pub id: String,
    /// Hash of its file.
    pub hash: String,
    /// Version of its file.
    pub generation: u64,
    /// Who keeps it; none for one that was started by hand.
    pub source: Option<String>,
    /// It does not run, and nobody is about to start it.
    pub rests: bool,
    /// Nothing of it runs: it can be removed.
    pub ended: bool,
}

impl From<&VmSummary> for There {
    fn from(vm: &VmSummary) -> Self {
        let ended = matches!(vm.state, VmState::Stopped | VmState::Crashed);
        There {
            name: vm.name.clone(),
            id: vm.id.clone(),
            hash: vm.spec_hash.clone(),
            generation: vm.generation,
            source: vm.source.clone(),
            rests: ended || vm.desired == Desired::Stopped,
            ended,
        }
    }
}

/// How far it goes.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The sources that were read, those that want nothing included.
    pub sources: &'a [String],
    /// VMs of these sources that they no longer want are removed.
    pub prune: bool,
    /// A source that wants nothing at all may lose all of its VMs. Without this it is a mistake: a file system that is not
    /// mounted looks like an empty directory.
    pub allow_empty: bool,
    /// VMs that were started by hand, or are another source's, become the source's that wants them.
    pub adopt: bool,
    /// VMs that rest are started.
    pub start: bool,
}

/// What is to be done, one step for each VM, in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The steps; those that do nothing, too.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Has those VMs that rest started, too, that `these` says.
    pub fn start(&mut self, these: impl Fn(&There) -> bool) {
        for step in &mut self.steps {
            if !step.there.as_ref().is_some_and(|vm| vm.rests && these(vm)) {
                continue;
            }
            match &mut step.action {
                Action::Update { start, .. } => *start = true,
                action @ Action::Nothing => *action = Action::Start,
                Action::Create | Action::Start | Action::Remove | Action::Refuse(_) => {}
            }
        }
    }

    /// True where everything is as it is wanted.
    pub fn is_settled(&self) -> bool {
        self.steps.iter().all(|step| step.action == Action::Nothing)
    }
}

/// What is to be done with one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// As it is there, where it is.
    pub there: Option<There>,
    /// Which element of what is wanted it is, where it is wanted.
    pub wanted: Option<usize>,
    /// What is done.
    pub action: Action,
}

/// What is done with a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It is made, and started.
    Create,
    /// It becomes what its file says. Whether that takes a restart is for the supervisor to say.
    Update {
        /// Its file differs; else only its source does.
        differs: bool,
        /// It rests, and is started with the new file.
        start: bool,
    },
    /// It is started: it rests.
    Start,
    /// It is stopped and removed.
    Remove,
    /// It is left alone, which is not what was asked for; why, for people.
    Refuse(String),
    /// It is as it is wanted.
    Nothing,
}

/// Why nothing at all is done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Two files are of one VM.
    #[error("{second}: the name {name} is {first}'s already; give each VM a name of its own")]
    Twice {
        /// The name.
        name: String,
        /// The first file.
        first: String,
        /// The second file.
        second: String,
    },
    /// A source that has VMs wants none.
    #[error(
        "{origin}: no *.json is in it, and VMs of it ({vms}) would be removed, as if a file system was not mounted; if \
         that is meant: vmsup apply --prune --allow-empty"
    )]
    Empty {
        /// The source.
        origin: String,
        /// How many VMs it has.
        vms: usize,
    },
}

/// Makes the plan.
///
/// # Errors
/// What makes it a mistake as a whole.
pub fn plan(wanted: &[Wanted], there: &[There], scope: Scope<'_>) -> Result<Plan, Vec<Conflict>> {
    let conflicts = conflicts(wanted, there, scope);
    if !conflicts.is_empty() {
        return Err(conflicts);
    }
    let by_name: BTreeMap<&str, &There> = there.iter().map(|vm| (vm.name.as_str(), vm)).collect();
    let mut steps: BTreeMap<&str, Step> = BTreeMap::new();
    for (n, one) in wanted.iter().enumerate() {
        let name = one.spec.name.as_str();
        let vm = by_name.get(name).copied();
        let action = vm.map_or(Action::Create, |vm| towards(one, vm, scope));
        steps.insert(name, Step { name: name.to_owned(), there: vm.cloned(), wanted: Some(n), action });
    }
    for vm in there.iter().filter(|vm| is_of(vm, scope.sources) && scope.prune) {
        steps.entry(&vm.name).or_insert_with(|| Step {
            name: vm.name.clone(),
            there: Some(vm.clone()),
            wanted: None,
            action: Action::Remove,
        });
    }
    Ok(Plan { steps: steps.into_values().collect() })
}

fn is_of(vm: &There, sources: &[String]) -> bool {
    vm.source.as_ref().is_some_and(|source| sources.contains(source))
}

fn conflicts(wanted: &[Wanted], there: &[There], scope: Scope<'_>) -> Vec<Conflict> {
    let mut found = Vec::new();
    let mut first: BTreeMap<&str, &Wanted> = BTreeMap::new();
    for one in wanted {
        let name = one.spec.name.as_str();
        if let Some(before) = first.get(name) {
            let (first, second) = (before.file.clone(), one.file.clone());
            found.push(Conflict::Twice { name: name.to_owned(), first, second });
        } else {
            first.insert(name, one);
        }
    }
    let wanting: BTreeSet<&str> = wanted.iter().map(|one| one.source.as_str()).collect();
    for source in scope.sources.iter().filter(|s| scope.prune && !scope.allow_empty && !wanting.contains(s.as_str())) {
        let vms = there.iter().filter(|vm| vm.source.as_ref() == Some(source)).count();
        if vms > 0 {
            found.push(Conflict::Empty { origin: source.clone(), vms });
        }
    }
    found
}

/// From a VM that is there to one that is wanted.
fn towards(wanted: &Wanted, vm: &There, scope: Scope<'_>) -> Action {
    let standing = standing(wanted, vm);
    if let (Standing::Foreign, false) = (standing, scope.adopt) {
        return Action::Refuse(match &vm.source {
            Some(source) => format!("{source} keeps this VM; apply that, or take the VM over with --adopt"),
            None => "a VM of this name was started by hand; remove it, or take it over with --adopt".into(),
        });
    }
    let differs = wanted.hash != vm.hash;
    let start = scope.start && vm.rests;
    match (differs, standing) {
        (false, Standing::Own | Standing::OfItsDirectory) if start => Action::Start,
        (false, Standing::Own | Standing::OfItsDirectory) => Action::Nothing,
        _ => Action::Update { differs, start },
    }
}

/// Whose a VM is, as seen from a file that wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The source's own.
    Own,
    /// The file is applied alone, and the VM is kept by the directory that it lies in: it stays the directory's.
    OfItsDirectory,
    /// The directory is applied, and the VM was made by its very file alone: it becomes the directory's.
    OfItsFile,
    /// Somebody else's.
    Foreign,
}

fn standing(wanted: &Wanted, vm: &There) -> Standing {
    let directory = Path::new(&wanted.path).parent();
    match vm.source.as_deref() {
        Some(source) if source == wanted.source => Standing::Own,
        Some(source) if Some(Path::new(source)) == directory => Standing::OfItsDirectory,
        Some(source) if source == wanted.path => Standing::OfItsFile,
        _ => Standing::Foreign,
    }
}

impl Step {
    /// The source that the VM has when the step was done: an update of a file that is applied alone leaves the VM with the
    /// directory that keeps it.
    pub fn source(&self, wanted: &Wanted) -> String {
        match &self.there {
            Some(vm) if standing(wanted, vm) == Standing::OfItsDirectory => vm.source.clone(),
            _ => None,
        }
        .unwrap_or_else(|| wanted.source.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{there, wanted};
    use super::*;

    fn scope(sources: &[String]) -> Scope<'_> {
        Scope { sources, prune: false, allow_empty: false, adopt: false, start: true }
    }

    fn actions(plan: &Plan) -> Vec<(&str, &Action)> {
        plan.steps.iter().map(|step| (step.name.as_str(), &step.action)).collect()
    }

    #[test]
    fn each_vm_has_one_step_and_prune_touches_only_what_the_source_made() {
        let sources = ["/s".to_owned()];
        let wanted =
            [wanted("new", 1, "/s"), wanted("same", 1, "/s"), wanted("changed", 2, "/s"), wanted("rests", 1, "/s")];
        let mut rests = there("rests", 1, Some("/s"));
        rests.rests = true;
        let there = [
            there("same", 1, Some("/s")),
            there("changed", 1, Some("/s")),
            rests,
            there("gone", 1, Some("/s")),
            there("other", 1, Some("/t")),
            there("hand", 1, None),
        ];
        let keep = plan(&wanted, &there, scope(&sources)).unwrap();
        let update = Action::Update { differs: true, start: false };
        let expected =
            [("changed", &update), ("new", &Action::Create), ("rests", &Action::Start), ("same", &Action::Nothing)];
        assert_eq!(actions(&keep), expected);
        let prune = plan(&wanted, &there, Scope { prune: true, ..scope(&sources) }).unwrap();
        assert_eq!(actions(&prune)[1], ("gone", &Action::Remove));
        assert_eq!(prune.steps.len(), 5, "{prune:?}");
        let leave = plan(&wanted, &there, Scope { start: false, ..scope(&sources) }).unwrap();
        assert_eq!(actions(&leave)[2], ("rests", &Action::Nothing));
    }

    #[test]
    fn two_files_of_one_name_are_named_both_and_nothing_is_planned() {
        let sources = ["/s".to_owned()];
        let mut second = wanted("a", 2, "/s");
        second.file = "/s/b.json".into();
        let errors = plan(&[wanted("a", 1, "/s"), second], &[], scope(&sources)).unwrap_err();
        let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(said, ["/s/b.json: the name a is /s/a.json's already; give each VM a name of its own"]);
    }

    #[test]
    fn a_vm_of_somebody_else_is_refused_until_it_is_adopted() {
        let sources = ["/s".to_owned()];
        for source in [None, Some("/t"), Some("/s/other.json"), Some("/")] {
            let there = [there("a", 1, source)];
            let refused = plan(&[wanted("a", 1, "/s")], &there, scope(&sources)).unwrap();
            assert!(matches!(&refused.steps[0].action, Action::Refuse(why) if why.contains("--adopt")), "{source:?}");
            let adopted = plan(&[wanted("a", 1, "/s")], &there, Scope { adopt: true, ..scope(&sources) }).unwrap();
            assert_eq!(adopted.steps[0].action, Action::Update { differs: false, start: false }, "{source:?}");
        }
    }

    #[test]
    fn a_file_and_the_directory_that_it_lies_in_are_not_strangers() {
        let alone = Wanted { source: "/s/a.json".into(), ..wanted("a", 2, "/s") };
        let kept = there("a", 1, Some("/s"));
        let sources = ["/s/a.json".to_owned()];
        let plan_alone = plan(std::slice::from_ref(&alone), std::slice::from_ref(&kept), scope(&sources)).unwrap();
        assert_eq!(plan_alone.steps[0].action, Action::Update { differs: true, start: false });
        assert_eq!(plan_alone.steps[0].source(&alone), "/s");
        let sources = ["/s".to_owned()];
        let made_alone = there("a", 1, Some("/s/a.json"));
        let with_all = wanted("a", 1, "/s");
        let plan_all = plan(std::slice::from_ref(&with_all), &[made_alone], scope(&sources)).unwrap();
        assert_eq!(plan_all.steps[0].action, Action::Update { differs: false, start: false });
        assert_eq!(plan_all.steps[0].source(&with_all), "/s");
    }

    #[test]
    fn an_empty_source_removes_nothing_unless_that_is_said() {
        let sources = ["/s".to_owned()];
        let there = [there("a", 1, Some("/s")), there("b", 1, Some("/t"))];
        let prune = Scope { prune: true, ..scope(&sources) };
        let errors = plan(&[], &there, prune).unwrap_err();
        assert_eq!(errors, [Conflict::Empty { origin: "/s".into(), vms: 1 }]);
        assert!(plan(&[], &there, scope(&sources)).unwrap().is_settled());
        let meant = plan(&[], &there, Scope { allow_empty: true, ..prune }).unwrap();
        assert_eq!(actions(&meant), [("a", &Action::Remove)]);
    }
}
