//! Watched directories are real ones; the VMs are a map.

use super::*;
use crate::api::types::UpdateDone;
use crate::serve::testing::TempDir;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use tokio::sync::watch;

/// Everything soon; what is tried again, at once.
const SOON: Pace = Pace {
    quiet: Duration::from_millis(5),
    most: Duration::from_millis(50),
    again: Duration::from_millis(5),
    again_most: Duration::from_millis(20),
};
/// Nothing is tried again by itself while a test runs.
const ONCE: Pace = Pace { again: Duration::from_secs(3600), again_most: Duration::from_secs(3600), ..SOON };

#[derive(Debug, Default, Clone)]
struct World {
    vms: BTreeMap<String, There>,
    calls: Vec<String>,
    applied: Vec<String>,
    trouble: Vec<String>,
    /// Calls that fail, `Create NAME`.
    fails: BTreeSet<String>,
}

/// A supervisor's VMs.
#[derive(Clone)]
struct Double(Arc<(Mutex<World>, watch::Sender<u64>)>);

impl Double {
    fn new() -> Double {
        Double(Arc::new((Mutex::default(), watch::Sender::new(0))))
    }

    fn with<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        let result = act(&mut self.0.0.lock().unwrap());
        self.0.1.send_modify(|n| *n += 1);
        result
    }

    /// Waits until the world is so.
    #[track_caller]
    fn until(&self, what: &'static str, so: impl Fn(&World) -> bool) -> impl Future<Output = World> {
        let this = self.clone();
        async move {
            let mut changed = this.0.1.subscribe();
            let waited = timeout(Duration::from_secs(20), async {
                while !so(&this.0.0.lock().unwrap()) {
                    changed.changed().await.unwrap();
                }
            });
            let is = waited.await;
            let world = this.0.0.lock().unwrap().clone();
            assert!(is.is_ok(), "{what}: {world:?}");
            world
        }
    }

    fn put(&self, name: &str, source: Option<&str>, rests: bool) {
        let id = format!("id of {name}");
        let (hash, source) = ("another".to_owned(), source.map(str::to_owned));
        let vm = There { name: name.into(), id, hash, generation: 1, source, rests, ended: rests };
        self.with(|world| world.vms.insert(name.to_owned(), vm));
    }
}

impl Actions for Double {
    fn list(&self) -> Vec<There> {
        self.0.0.lock().unwrap().vms.values().cloned().collect()
    }

    async fn call(&self, step: &Step, call: Call, wanted: Option<&Wanted>) -> Answer {
        self.with(|world| {
            let what = format!("{call:?} {}", step.name);
            let fails = world.fails.contains(&what);
            world.calls.push(what);
            match call {
                Call::Create if fails => return Answer::Failed("the host cannot".into()),
                Call::Create => {
                    let wanted = wanted.unwrap();
                    let (hash, source) = (wanted.hash.clone(), Some(wanted.source.clone()));
                    let (name, id) = (step.name.clone(), format!("id of {}", step.name));
                    let vm = There { name, id, hash, generation: 1, source, rests: false, ended: false };
                    world.vms.insert(step.name.clone(), vm);
                }
                Call::Update => {
                    let vm = world.vms.get_mut(&step.name).unwrap();
                    vm.hash = wanted.unwrap().hash.clone();
                    if fails {
                        // Stopped, changed, and not started.
                        (vm.rests, vm.ended) = (true, true);
                        return Answer::Failed("the host cannot".into());
                    }
                    return Answer::Updated(if vm.rests { UpdateDone::Stored } else { UpdateDone::Restarted });
                }
                Call::Start | Call::Stop => {
                    let vm = world.vms.get_mut(&step.name).unwrap();
                    (vm.rests, vm.ended) = (call == Call::Stop, call == Call::Stop);
                }
                Call::Look => return Answer::Seen(world.vms[&step.name].clone()),
                Call::Delete => drop(world.vms.remove(&step.name)),
            }
            Answer::Done
        })
    }

    fn applied(&self, sentence: String) {
        self.with(|world| world.applied.push(sentence));
    }

    fn trouble(&self, sentence: String) {
        self.with(|world| world.trouble.push(sentence));
    }
}

/// A directory in a directory, so that it may go.
struct Source {
    dir: TempDir,
}

impl Source {
    fn new() -> Source {
        let dir = TempDir::new();
        std::fs::create_dir(dir.path().join("vms")).unwrap();
        Source { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join("vms")
    }

    fn name(&self) -> String {
        self.path().to_string_lossy().into_owned()
    }

    /// Writes a file as a careful program does: beside, then renamed.
    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.path().join(".new"), text).unwrap();
        std::fs::rename(self.path().join(".new"), self.path().join(file)).unwrap();
    }

    fn vm(&self, name: &str, cpus: u32) {
        self.write(&format!("{name}.json"), &text(name, cpus));
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.path().join(format!("{name}.json"))).unwrap();
    }

    fn keep(&self, double: &Double, prune: bool, pace: Pace) -> tokio::task::JoinHandle<()> {
        tokio::spawn(Watched::new(&self.path(), prune).unwrap().keep(double.clone(), pace))
    }
}

fn text(name: &str, cpus: u32) -> String {
    format!(r#"{{ "name": "{name}", "cpus": {cpus}, "memory_mib": 32, "boot": {{ "builtin": "hello" }} }}"#)
}

fn hash(name: &str, cpus: u32) -> String {
    crate::serve::state::hash::of(&serde_json::from_str(&text(name, cpus)).unwrap())
}

#[tokio::test]
async fn a_watched_directory_is_applied_at_the_start_and_after_each_change() {
    let (source, double) = (Source::new(), Double::new());
    source.vm("a", 1);
    source.keep(&double, false, ONCE);
    double.until("a is made at the start", |w| w.vms.contains_key("a")).await;
    source.vm("b", 1);
    double.until("b is made when its file comes", |w| w.vms.contains_key("b")).await;
    source.vm("a", 2);
    let world = double.until("a is updated", |w| w.vms["a"].hash == hash("a", 2)).await;
    assert_eq!(world.calls, ["Create a", "Create b", "Update a"]);
    let counts = "0 created, 0 updated in place, 1 restarted, 0 removed, 1 unchanged, 0 failed";
    let world = double.until("it is said", |w| w.applied.len() == 3).await;
    assert_eq!(world.applied[2], format!("{}: {counts}", source.name()));
    // Without being told to, nothing is removed; the pass after the next change has seen that b's file is gone.
    source.remove("b");
    source.vm("c", 1);
    let world = double.until("c is made", |w| w.vms.contains_key("c")).await;
    assert!(world.vms.contains_key("b") && world.trouble.is_empty(), "{world:?}");
}

#[tokio::test]
async fn a_file_that_is_half_written_changes_nothing_and_is_said_until_it_is_whole() {
    let (source, double) = (Source::new(), Double::new());
    source.vm("a", 1);
    source.vm("gone", 1);
    source.keep(&double, true, ONCE);
    double.until("both are made", |w| w.vms.len() == 2).await;
    source.write("a.json", &text("a", 2)[..20]);
    double.until("it is said", |w| w.trouble.iter().any(|said| said.contains("a.json:1:"))).await;
    source.remove("gone");
    source.write("b.json", "");
    let world = double.until("that is, too", |w| w.trouble.iter().any(|said| said.contains("b.json:1:"))).await;
    assert_eq!((world.vms.len(), &world.vms["a"].hash), (2, &hash("a", 1)));
    source.vm("a", 2);
    source.vm("b", 1);
    let done = |w: &World| !w.vms.contains_key("gone") && w.vms["a"].hash == hash("a", 2) && w.vms.contains_key("b");
    let world = double.until("all of it is done", done).await;
    assert_eq!(world.calls[2..5], ["Look gone", "Stop gone", "Delete gone"]);
}

#[tokio::test]
async fn a_directory_that_is_suddenly_empty_or_gone_removes_nothing() {
    let (source, double) = (Source::new(), Double::new());
    source.vm("a", 1);
    source.keep(&double, true, SOON);
    double.until("a is made", |w| w.vms.contains_key("a")).await;
    source.remove("a");
    double.until("an empty one is said", |w| w.trouble.iter().any(|s| s.contains("no *.json is in it"))).await;
    std::fs::remove_dir(source.path()).unwrap();
    double.until("one that is gone is said", |w| w.trouble.iter().any(|s| s.contains("cannot be watched"))).await;
    std::fs::create_dir(source.path()).unwrap();
    source.vm("a", 1);
    source.vm("b", 1);
    let world = double.until("it is watched again when it is back", |w| w.vms.contains_key("b")).await;
    assert_eq!(world.calls, ["Create a", "Create b"]);
    source.vm("c", 1);
    double.until("and goes on", |w| w.vms.contains_key("c")).await;
}

#[tokio::test]
async fn a_directory_that_another_takes_the_place_of_is_the_other_from_then_on() {
    let (source, double) = (Source::new(), Double::new());
    source.keep(&double, false, SOON);
    source.vm("a", 1);
    double.until("a is made", |w| w.vms.contains_key("a")).await;
    let (old, new) = (source.dir.path().join("old"), source.dir.path().join("new"));
    std::fs::create_dir(&new).unwrap();
    std::fs::write(new.join("b.json"), text("b", 1)).unwrap();
    std::fs::rename(source.path(), &old).unwrap();
    std::fs::rename(&new, source.path()).unwrap();
    double.until("b is made", |w| w.vms.contains_key("b")).await;
    std::fs::write(old.join("x.json"), text("x", 1)).unwrap();
    source.vm("c", 1);
    let world = double.until("c is made", |w| w.vms.contains_key("c")).await;
    assert!(!world.vms.contains_key("x"), "{world:?}");
}

#[tokio::test]
async fn what_failed_is_tried_again_by_itself() {
    let (source, double) = (Source::new(), Double::new());
    source.vm("a", 1);
    source.vm("b", 1);
    double.with(|world| world.fails.insert("Create a".into()));
    source.keep(&double, false, SOON);
    let failed = |w: &World| w.calls.iter().filter(|call| *call == "Create a").count();
    let world = double.until("a is tried again and again", |w| failed(w) >= 3).await;
    assert!(world.vms.contains_key("b") && world.applied[0].contains("1 failed; a: the host cannot"), "{world:?}");
    double.with(|world| world.fails.clear());
    let world = double.until("a is made", |w| w.vms.contains_key("a")).await;
    // The first pass, and one more at most: the same failure is not said again and again.
    assert!(world.applied.iter().filter(|said| said.contains("1 failed")).count() <= 2, "{world:?}");
}

#[tokio::test]
async fn what_its_owner_stopped_stays_stopped_and_what_a_failed_update_stopped_is_started() {
    let (source, double) = (Source::new(), Double::new());
    let name = source.name();
    double.put("stopped", Some(&name), true);
    double.put("runs", Some(&name), false);
    source.vm("stopped", 1);
    source.vm("runs", 1);
    double.with(|world| world.fails.insert("Update runs".into()));
    source.keep(&double, false, SOON);
    let world = double.until("it is started", |w| w.calls.iter().any(|call| call == "Start runs")).await;
    let stopped = &world.vms["stopped"];
    assert_eq!((stopped.rests, &stopped.hash), (true, &hash("stopped", 1)));
    assert!(!world.calls.iter().any(|call| call == "Start stopped"), "{world:?}");
}

#[tokio::test]
async fn nobody_elses_vm_is_taken_over() {
    let (source, double) = (Source::new(), Double::new());
    double.put("a", None, false);
    source.vm("a", 1);
    source.keep(&double, false, ONCE);
    let world = double.until("it is said", |w| !w.applied.is_empty()).await;
    assert!(world.applied[0].contains("started by hand") && world.calls.is_empty(), "{world:?}");
    assert_eq!(world.vms["a"].source, None);
}

#[tokio::test]
async fn the_same_trouble_is_said_once() {
    let (source, double) = (Source::new(), Double::new());
    let place = Place::directory(&source.path()).unwrap();
    let mut keeper = Keeper::new(double.clone(), true);
    source.write("a.json", "{");
    for _ in 0..3 {
        assert!(matches!(keeper.pass(place.clone()).await, Pass::Nothing));
    }
    source.write("b.json", "{");
    keeper.pass(place).await;
    assert_eq!(double.with(|world| world.trouble.len()), 2);
}
