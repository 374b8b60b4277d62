//! `vmsup serve --watch DIR`: VMs are kept as the files of a directory say, from the start of the supervisor on.
//!
//! Runs in the supervisor, one task for each directory. Who can write into the directory decides what VMs its owner has: it is
//! as trusted as the owner's own command line. The files are read as `vmsup apply` reads them: one that is wrong, or half
//! written, or a directory that is not there, changes nothing, and is said. What is to be done is [`crate::reconcile`]'s.
//!
//! A pass is made at the start and after each change, when nothing has changed for a moment. Between changes this task
//! sleeps: the kernel wakes it (inotify). Only while something is wrong that no change of a file will tell of (a directory
//! that is not there; a VM that could not be made) it tries again by itself, every half minute and then less and less often.
//!
//! A VM that its owner stopped stays stopped: whether one is started again that ended by itself is its file's to say
//! (`restart`). `vmsup apply` starts it.

use super::ServeError;
use super::fault::{self, Step as Point};
use super::readiness::watch as readable;
use crate::reconcile::{
    AT_ONCE, Action, Answer, Call, Counts, Host, Next, Outcome, Place, Plan, Scope, Sources, Step, There, Wanted,
    after, first, plan, turns,
};
use directory::Directory;
use std::collections::BTreeSet;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

mod directory;
mod own;
#[cfg(test)]
mod tests;

pub(super) use own::Own;

/// When things are done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Nothing has to change for so long before a pass.
    quiet: Duration,
    /// A pass is made so long after the first change at the latest.
    most: Duration,
    /// A pass that did not come to its end well is made again after so long, then after twice as long, …
    again: Duration,
    /// … and after so long at most.
    again_most: Duration,
}

/// As it is outside of tests.
pub(super) const PACE: Pace = Pace {
    quiet: Duration::from_millis(200),
    most: Duration::from_secs(2),
    again: Duration::from_secs(30),
    again_most: Duration::from_secs(600),
};

/// The VMs that are kept, and who is told of it.
pub(super) trait Actions: Clone + Send + Sync + 'static {
    /// All VMs of the directory's owner.
    fn list(&self) -> Vec<There>;
    /// Makes a call about a step.
    fn call(&self, step: &Step, call: Call, wanted: Option<&Wanted>) -> impl Future<Output = Answer> + Send;
    /// A pass changed or failed something.
    fn applied(&self, sentence: String);
    /// A pass changed nothing because something is wrong with the directory.
    fn trouble(&self, sentence: String);
}

/// A directory to watch, before the process is confined.
#[derive(Debug)]
pub(super) struct Watched {
    directory: Directory,
    /// Tells of its changes.
    inotify: OwnedFd,
    prune: bool,
}

/// What came of a pass.
enum Pass {
    /// All is as it is wanted.
    Settled,
    /// Some is not; counted.
    Failed,
    /// Nothing was done.
    Nothing,
}

impl Watched {
    /// Makes what the filter forbids to make. The directory need not be there: it may be on a file system that is mounted
    /// later.
    ///
    /// # Errors
    /// The directory's name cannot be one, or the kernel has no inotify left for us.
    pub(super) fn new(named: &Path, prune: bool) -> Result<Watched, ServeError> {
        let failed = |e| ServeError::Path { what: "watching", path: named.to_owned(), source: e };
        // Its canonical name is the source's, as for `vmsup apply`. One that is not there has none yet.
        let path: PathBuf = match named.canonicalize() {
            Ok(path) => path,
            Err(_) => std::path::absolute(named).map_err(failed)?,
        };
        let place = Place::directory(&path).map_err(|e| failed(std::io::Error::other(e.message)))?;
        let inotify = directory::listener().map_err(|e| failed(e.into()))?;
        Ok(Watched { directory: Directory::new(place), inotify, prune })
    }

    /// Keeps at it, for ever.
    pub(super) async fn keep(self, actions: impl Actions, pace: Pace) {
        let Watched { mut directory, inotify, prune } = self;
        let inotify = match readable(inotify, Interest::READABLE) {
            Ok(inotify) => inotify,
            Err(error) => return actions.trouble(format!("{}: cannot be watched ({error})", directory.name())),
        };
        let mut keeper = Keeper::new(actions, prune);
        let mut delay = pace.again;
        loop {
            // Watched first, then read: what changes in between is heard.
            let pass = match directory.attach(&inotify) {
                Ok(()) => keeper.pass(directory.place().clone()).await,
                Err(error) => {
                    let why =
                        format!("{}: cannot be watched ({error}); nothing is changed until it can", directory.name());
                    keeper.trouble(why)
                }
            };
            let again = match pass {
                Pass::Failed => Some(delay),
                // What is wrong with a file is mended by changing it, which is heard; a directory that is gone is not.
                Pass::Nothing if !directory.is_attached() => Some(pace.again),
                Pass::Settled | Pass::Nothing => None,
            };
            let changed = async {
                directory.changed(&inotify).await;
                let latest = Instant::now() + pace.most;
                while timeout(pace.quiet, directory.changed(&inotify)).await.is_ok() && Instant::now() < latest {}
            };
            match again {
                None => changed.await,
                Some(after) => tokio::select! {
                    () = changed => delay = pace.again,
                    () = sleep(after) => delay = (delay * 2).min(pace.again_most),
                },
            }
        }
    }
}

/// What a task knows between two passes.
struct Keeper<A> {
    actions: A,
    prune: bool,
    /// What was said last: the same trouble is said once.
    said: Option<String>,
    /// Ids of VMs that ran until an update stopped them, and were not started again: that is still to be done.
    owed: BTreeSet<String>,
}

impl<A: Actions> Keeper<A> {
    fn new(actions: A, prune: bool) -> Self {
        Keeper { actions, prune, said: None, owed: BTreeSet::new() }
    }

    async fn pass(&mut self, place: Place) -> Pass {
        let name = place.path().display().to_string();
        // On a thread for file systems that take their time.
        let read = tokio::task::spawn_blocking(move || Sources::read(&[place], Host::Left)).await;
        let sources = match read {
            Ok(Ok(sources)) => sources,
            Ok(Err(errors)) => return self.nothing(errors.iter().map(ToString::to_string).collect()),
            Err(error) => return self.nothing(vec![format!("{name}: reading it failed ({error})")]),
        };
        let (prune, there) = (self.prune, self.actions.list());
        let scope = Scope { sources: &sources.names, prune, allow_empty: false, adopt: false, start: false };
        let mut plan = match plan(&sources.wanted, &there, scope) {
            Ok(plan) => plan,
            Err(conflicts) => return self.nothing(conflicts.iter().map(ToString::to_string).collect()),
        };
        plan.start(|vm| self.owed.contains(&vm.id));
        fault::here(Point::WatchPlanned);
        let (counts, failures) = self.carry_out(sources, plan).await;
        let sentence = std::iter::once(format!("{name}: {counts}")).chain(failures).collect::<Vec<_>>().join("; ");
        if counts.done() == 0 && counts.failed == 0 {
            tracing::info!("{sentence}");
            self.said = None;
            return Pass::Settled;
        }
        if counts.done() > 0 || self.said.as_ref() != Some(&sentence) {
            tracing::info!("{sentence}");
            self.actions.applied(sentence.clone());
            self.said = Some(sentence);
        }
        if counts.failed > 0 { Pass::Failed } else { Pass::Settled }
    }

    /// Carries out the steps, turn by turn, some of each turn at the same time.
    async fn carry_out(&mut self, sources: Sources, plan: Plan) -> (Counts, Option<String>) {
        let mut came = Came::default();
        let (places, work) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new((sources, plan)));
        for turn in turns(&work.1) {
            let mut steps = JoinSet::new();
            for n in turn {
                if let Next::Done(outcome) = first(&work.1.steps[n]) {
                    came.add(&work.1.steps[n], &outcome);
                    continue;
                }
                let (actions, places, work) = (self.actions.clone(), places.clone(), work.clone());
                steps.spawn(async move {
                    // Never closed.
                    let _place = places.acquire().await;
                    let step = &work.1.steps[n];
                    (n, carry_out_one(&actions, step, step.wanted.and_then(|n| work.0.wanted.get(n))).await)
                });
            }
            while let Some(over) = steps.join_next().await {
                // A panic would have ended the process, and nobody aborts these tasks but with this one.
                let Ok((n, outcome)) = over else { continue };
                fault::here(Point::WatchStepped);
                came.add(&work.1.steps[n], &outcome);
                self.owe(&work.1.steps[n], &outcome);
            }
        }
        came.failures.sort();
        (came.counts, (!came.failures.is_empty()).then(|| joined(came.failures)))
    }

    /// Notes whether a VM is to be started in the next pass.
    fn owe(&mut self, step: &Step, outcome: &Outcome) {
        let Some(vm) = &step.there else { return };
        let owed = self.owed.contains(&vm.id) || matches!(step.action, Action::Update { .. }) && !vm.rests;
        match outcome {
            Outcome::Failed(_) if owed => self.owed.insert(vm.id.clone()),
            _ => self.owed.remove(&vm.id),
        };
    }

    /// Something is wrong with what is wanted.
    fn nothing(&mut self, errors: Vec<String>) -> Pass {
        self.trouble(format!("nothing is changed: {}", joined(errors)))
    }

    fn trouble(&mut self, sentence: String) -> Pass {
        if self.said.as_ref() != Some(&sentence) {
            tracing::warn!("{sentence}");
            self.actions.trouble(sentence.clone());
            self.said = Some(sentence);
        }
        Pass::Nothing
    }
}

/// How many sentences an event has room for; the log and `vmsup diff` have them all.
const SENTENCES: usize = 4;

/// Some sentences as one.
fn joined(mut sentences: Vec<String>) -> String {
    let more = sentences.len().saturating_sub(SENTENCES);
    sentences.truncate(SENTENCES);
    let more = if more == 0 { String::new() } else { format!("; and {more} more") };
    sentences.join("; ") + &more
}

/// What came of the steps so far.
#[derive(Default)]
struct Came {
    counts: Counts,
    /// What failed, as sentences.
    failures: Vec<String>,
}

impl Came {
    fn add(&mut self, step: &Step, outcome: &Outcome) {
        self.counts.add(outcome);
        if let Outcome::Failed(why) = outcome {
            tracing::warn!(vm = step.name, "{why}");
            self.failures.push(outcome.sentence(&step.name));
        }
    }
}

async fn carry_out_one(actions: &impl Actions, step: &Step, wanted: Option<&Wanted>) -> Outcome {
    let mut next = first(step);
    loop {
        match next {
            Next::Done(outcome) => return outcome,
            Next::Call(call) => next = after(step, call, actions.call(step, call, wanted).await),
        }
    }
}
