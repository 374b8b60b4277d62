//! `vmsup apply` and `vmsup diff`, against a supervisor that keeps what it is told.

mod support;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use support::{Answer, Asked, Done, Fake, Place, error};
use vmsup::reconcile::{Host, Place as Origin, Sources};

/// The VMs of a supervisor.
type Vms = Arc<Mutex<BTreeMap<String, Value>>>;

/// A supervisor that keeps VMs; one that `no` has an answer for is refused that.
struct World {
    fake: Fake,
    vms: Vms,
}

impl World {
    fn new() -> World {
        World::that_refuses(|_, _| None)
    }

    fn that_refuses(no: impl Fn(&str, &Value) -> Option<Answer> + Send + Sync + 'static) -> World {
        let vms = Vms::default();
        let kept = vms.clone();
        let fake = Fake::new(move |asked: &Asked| {
            let body: Value = serde_json::from_str(&asked.body).unwrap_or_default();
            no(&asked.what, &body).unwrap_or_else(|| answer(&asked.what, &body, &mut kept.lock().unwrap()))
        });
        std::fs::create_dir(fake.place.path().join("vms")).unwrap();
        World { fake, vms }
    }

    fn file(&self, name: &str, cpus: u32) {
        self.fake.place.file(&format!("vms/{name}.json"), text(name, cpus));
    }

    fn run(&self, args: &[&str]) -> Done {
        self.fake.place.run(args)
    }

    /// The directory's name as a source.
    fn source(&self) -> String {
        self.fake.place.path().join("vms").canonicalize().unwrap().to_str().unwrap().to_owned()
    }

    /// A VM that is there before anything is applied.
    fn put(&self, name: &str, cpus: u32, source: Option<&str>) {
        let spec: Value = serde_json::from_str(&text(name, cpus)).unwrap();
        self.vms.lock().unwrap().insert(name.to_owned(), made(&spec, source.map_or(Value::Null, Into::into)));
    }

    fn names(&self) -> Vec<String> {
        self.vms.lock().unwrap().keys().cloned().collect()
    }

    fn field(&self, name: &str, field: &str) -> Value {
        self.vms.lock().unwrap()[name][field].clone()
    }

    /// What was asked but for looks at the list.
    fn calls(&self) -> Vec<String> {
        let mut calls = self.fake.asked();
        calls.retain(|what| what != "GET /v1/vms");
        calls.sort();
        calls
    }
}

fn text(name: &str, cpus: u32) -> String {
    format!(
        "{{\n  \"name\": \"{name}\",\n  \"cpus\": {cpus},\n  \"memory_mib\": 32,\n  \"boot\": {{ \"builtin\": \"hello\" }}\n}}\n"
    )
}

/// The hash that this release makes of a file: asked of the library, from a file with the same meaning.
fn hash(spec: &Value) -> String {
    let place = Place::new();
    let file = place.file("one.json", spec.to_string());
    let sources = Sources::read(&[Origin::find(&file).unwrap()], Host::Left).unwrap();
    sources.wanted[0].hash.clone()
}

fn made(spec: &Value, source: Value) -> Value {
    json!({
        "name": spec["name"], "id": format!("id-{}", spec["name"].as_str().unwrap()), "state": "running", "pid": 4711,
        "owner": rustix::process::getuid().as_raw(), "cpus": spec["cpus"], "memory_mib": 32, "nets": [], "started_at": 1, "end": null,
        "desired": "running", "generation": 1, "spec_hash": hash(spec), "source": source, "spec": spec,
        "worker": null, "console": { "written": 0, "overwritten": 0 }
    })
}

fn answer(what: &str, body: &Value, vms: &mut BTreeMap<String, Value>) -> Answer {
    let (method, target) = what.split_once(' ').unwrap();
    let Some(rest) = target.strip_prefix("/v1/vms/id-") else {
        if method == "GET" {
            return Answer::Json(200, vms.values().cloned().collect());
        }
        let vm = made(&body["spec"], body["source"].clone());
        vms.insert(body["spec"]["name"].as_str().unwrap().to_owned(), vm.clone());
        return Answer::Json(201, vm);
    };
    let (name, verb) = rest.split_once('/').unwrap_or((rest, ""));
    let Some(vm) = vms.get_mut(name) else { return Answer::Json(404, error("not_found", "there is no such VM", None)) };
    match (method, verb) {
        ("GET", "") => {}
        ("PUT", "") => {
            assert_eq!(body["if_generation"], vm["generation"]);
            let same = hash(&body["spec"]) == vm["spec_hash"].as_str().unwrap();
            let done = match (same, vm["state"] == "stopped") {
                (true, _) => "nothing",
                (false, true) => "stored",
                (false, false) if body["spec"]["cpus"] == vm["cpus"] => "in_place",
                (false, false) => "restarted",
            };
            let state = vm["state"].clone();
            *vm = made(&body["spec"], body["source"].clone());
            (vm["generation"], vm["state"]) = (json!(2), state);
            return Answer::Json(200, json!({ "done": done, "vm": vm }));
        }
        ("POST", "start") => (vm["state"], vm["desired"]) = (json!("running"), json!("running")),
        ("POST", "stop") => (vm["state"], vm["desired"]) = (json!("stopped"), json!("stopped")),
        ("DELETE", "") => {
            assert_eq!(vm["state"], "stopped", "{name} is removed while it runs");
            vms.remove(name);
            return Answer::Json(204, Value::Null);
        }
        other => panic!("{other:?}"),
    }
    Answer::Json(200, vm.clone())
}

fn lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn apply_makes_what_is_missing_and_a_second_one_asks_for_nothing() {
    let world = World::new();
    world.file("a", 1);
    world.file("b", 1);
    let done = world.run(&["apply", "vms"]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    assert_eq!(
        lines(&done.stdout),
        ["2 created, 0 updated in place, 0 restarted, 0 removed, 0 unchanged, 0 failed", "a created", "b created"]
    );
    assert_eq!(world.field("a", "source"), world.source());
    assert_eq!(world.fake.body("POST /v1/vms")["remove_when_ended"], false);
    let asked = world.fake.asked().len();
    let done = world.run(&["apply", &world.source()]);
    let all_the_same = "0 created, 0 updated in place, 0 restarted, 0 removed, 2 unchanged, 0 failed\n";
    assert_eq!((done.status, done.stdout.as_str()), (0, all_the_same), "{done:?}");
    assert_eq!(world.fake.asked()[asked..], ["GET /v1/vms"]);
}

#[test]
fn apply_says_how_each_changed_vm_was_updated_and_starts_what_rests() {
    let world = World::new();
    let source = world.source();
    for name in ["cpus", "limits", "same", "rests", "stored"] {
        world.put(name, 1, Some(&source));
        world.file(name, 1);
    }
    world.file("cpus", 2);
    world.file("stored", 2);
    let limits = text("limits", 1).replace("1,", "1, \"limits\": { \"pids_max\": 9, \"enforce\": \"best-effort\" },");
    world.fake.place.file("vms/limits.json", limits);
    for name in ["rests", "stored"] {
        world.vms.lock().unwrap().get_mut(name).unwrap()["state"] = json!("stopped");
    }
    let done = world.run(&["apply", "vms", "--timeout", "7"]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    assert_eq!(
        lines(&done.stdout),
        [
            "0 created, 1 updated in place, 1 restarted, 2 started, 0 removed, 1 unchanged, 0 failed",
            "cpus updated and restarted",
            "limits updated in place",
            "rests started",
            "stored started",
        ]
    );
    let body = world.fake.body("PUT /v1/vms/id-cpus");
    assert_eq!((&body["deadline_s"], &body["source"]), (&json!(7), &json!(source)));
    assert_eq!(world.field("stored", "state"), "running");
}

#[test]
fn prune_stops_and_removes_only_what_the_same_source_made() {
    let world = World::new();
    let source = world.source();
    world.put("gone", 1, Some(&source));
    world.put("other", 1, Some("/somewhere/else"));
    world.put("hand", 1, None);
    world.file("kept", 1);
    assert_eq!(world.run(&["apply", "vms"]).status, 0);
    assert_eq!(world.names(), ["gone", "hand", "kept", "other"]);
    let done = world.run(&["apply", "vms", "--prune", "--timeout", "3"]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    assert_eq!(
        done.stdout,
        "gone removed\n0 created, 0 updated in place, 0 restarted, 1 removed, 1 unchanged, 0 failed\n"
    );
    assert_eq!(world.names(), ["hand", "kept", "other"]);
    assert_eq!(world.fake.body("POST /v1/vms/id-gone/stop"), json!({ "deadline_s": 3 }));
}

#[test]
fn one_wrong_file_changes_nothing_and_every_error_is_told() {
    let world = World::new();
    world.put("gone", 1, Some(&world.source()));
    world.file("good", 1);
    world.file("typo", 1);
    world.fake.place.file("vms/typo.json", text("typo", 1).replace("cpus", "cpu"));
    world.fake.place.file("vms/half.json", "{ \"name\": ");
    for args in [&["apply", "--prune", "vms", "nowhere"] as &[&str], &["diff", "vms", "nowhere"]] {
        let done = world.run(args);
        assert_eq!((done.status, done.stdout.as_str()), (2, ""), "{done:?}");
        let said: Vec<&str> = done.stderr.lines().collect();
        assert_eq!(said.len(), 4, "{done:?}");
        assert_eq!(said[0], "vmsup: nowhere: no such file or directory; check the path");
        assert!(said[1].starts_with("vmsup: vms/half.json:1:"), "{done:?}");
        assert_eq!(said[2], "vmsup: vms/typo.json:3:3: cpu: unknown field; did you mean \"cpus\"?");
        assert_eq!(said[3], "vmsup: nothing was changed, because of these 3 errors");
    }
    assert_eq!(world.fake.asked(), Vec::<String>::new());
    // And no supervisor is started for it.
    let place = Place::new();
    assert_eq!(
        place.run(&["apply", "nowhere"]).is_one_sentence(2),
        "nowhere: no such file or directory; check the path"
    );
    assert_eq!(place.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn two_files_of_one_name_change_nothing() {
    let world = World::new();
    world.file("a", 1);
    world.fake.place.file("vms/b.json", text("a", 2));
    let done = world.run(&["apply", "vms"]);
    let says = "vms/b.json: the name a is vms/a.json's already; give each VM a name of its own";
    assert_eq!(done.is_one_sentence(2), says);
    assert_eq!(world.calls(), Vec::<String>::new());
}

#[test]
fn a_directory_that_is_suddenly_empty_removes_nothing_unless_that_is_said() {
    let world = World::new();
    world.put("a", 1, Some(&world.source()));
    let done = world.run(&["apply", "--prune", "vms"]);
    let sentence = done.is_one_sentence(2);
    assert!(sentence.starts_with(&world.source()) && sentence.contains("--allow-empty"), "{sentence}");
    assert_eq!(world.calls(), Vec::<String>::new());
    assert_eq!(world.run(&["apply", "--prune", "--allow-empty", "vms"]).status, 0);
    assert_eq!(world.names(), Vec::<String>::new());
}

#[test]
fn a_failure_names_file_and_field_and_does_not_stop_the_rest() {
    let world = World::that_refuses(|what, body| match (what, body["spec"]["name"].as_str()) {
        ("POST /v1/vms", Some("bad")) => {
            Some(Answer::Json(400, error("invalid", "too much for this host", Some("cpus"))))
        }
        ("POST /v1/vms", Some("full")) => Some(Answer::Json(503, error("unavailable", "no room for another VM", None))),
        ("POST /v1/vms", Some("lost")) => Some(Answer::HangUp),
        _ => None,
    });
    for name in ["bad", "full", "lost", "one", "two"] {
        world.file(name, 1);
    }
    let done = world.run(&["apply", "vms"]);
    assert_eq!(done.status, 1, "{done:?}");
    let said = lines(&done.stderr);
    assert_eq!(said.len(), 3, "{done:?}");
    assert_eq!(said[0], "vmsup: vms/bad.json:3:11: cpus: too much for this host");
    assert_eq!(said[1], "vmsup: vms/full.json: full: no room for another VM");
    assert!(said[2].starts_with("vmsup: vms/lost.json: lost: the supervisor went away"), "{done:?}");
    assert_eq!(
        lines(&done.stdout),
        ["2 created, 0 updated in place, 0 restarted, 0 removed, 0 unchanged, 3 failed", "one created", "two created"]
    );
    let done = world.run(&["apply", "vms", "--json"]);
    let report: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((done.status, &report["counts"]["failed"], &report["counts"]["unchanged"]), (1, &json!(3), &json!(2)));
    let outcomes: Vec<&Value> = report["vms"].as_array().unwrap().iter().map(|vm| &vm["outcome"]).collect();
    assert_eq!(outcomes, ["failed", "failed", "failed", "unchanged", "unchanged"]);
    assert_eq!(report["vms"][0]["file"], "vms/bad.json");
    assert!(report["vms"][1]["error"].as_str().unwrap().contains("no room"), "{report}");
}

#[test]
fn a_vm_of_somebody_else_is_left_alone_until_it_is_adopted() {
    let world = World::new();
    world.put("hand", 1, None);
    world.put("theirs", 1, Some("/somewhere/else"));
    for name in ["hand", "theirs"] {
        world.file(name, 2);
    }
    let done = world.run(&["apply", "vms"]);
    assert_eq!(done.status, 1, "{done:?}");
    let said = lines(&done.stderr);
    assert!(said[0].starts_with("vmsup: vms/hand.json: hand: a VM of this name was started by hand"), "{done:?}");
    assert!(said[1].starts_with("vmsup: vms/theirs.json: theirs: /somewhere/else keeps this VM"), "{done:?}");
    assert_eq!(world.calls(), Vec::<String>::new());
    assert_eq!(world.run(&["diff", "vms"]).status, 2);
    let done = world.run(&["apply", "--adopt", "vms"]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    assert_eq!((world.field("hand", "source"), world.field("theirs", "cpus")), (json!(world.source()), json!(2)));
    assert_eq!(world.run(&["diff", "vms"]).status, 0);
}

#[test]
fn who_sees_other_peoples_vms_leaves_them_alone() {
    let world = World::new();
    for name in ["wanted", "gone"] {
        world.put(name, 1, Some(&world.source()));
        world.vms.lock().unwrap().get_mut(name).unwrap()["owner"] = json!(4242);
    }
    world.file("wanted", 2);
    world.file("other", 1);
    let done = world.run(&["diff", "--prune", "vms"]);
    assert_eq!(
        (done.status, done.stdout.as_str()),
        (1, "other would be created\nwanted would be created\n"),
        "{done:?}"
    );
}

#[test]
fn diff_shows_the_fields_and_changes_nothing() {
    let world = World::new();
    let source = world.source();
    for name in ["changed", "same", "gone"] {
        world.put(name, 1, Some(&source));
    }
    world.file("changed", 2);
    world.file("same", 1);
    world.file("new", 1);
    let done = world.run(&["diff", "--prune", "vms"]);
    assert_eq!((done.status, done.stderr.as_str()), (1, ""), "{done:?}");
    assert_eq!(
        done.stdout,
        "changed would be updated\n    cpus: 1 -> 2\ngone would be stopped and removed\nnew would be created\n"
    );
    let done = world.run(&["diff", "vms", "--json"]);
    let found: Value = serde_json::from_str(&done.stdout).unwrap();
    let change = json!({ "field": "cpus", "old": 1, "new": 2 });
    assert_eq!((done.status, &found[0]["changes"][0], &found[1]["action"]), (1, &change, &json!("create")));
    let dry = world.run(&["apply", "--dry-run", "vms"]);
    assert_eq!(
        (dry.status, dry.stdout.as_str()),
        (0, "changed would be updated\n    cpus: 1 -> 2\nnew would be created\n")
    );
    assert!(world.calls().iter().all(|what| what == "GET /v1/vms/id-changed"), "{:?}", world.calls());
    assert_eq!(world.run(&["apply", "vms", "--prune"]).status, 0);
    let done = world.run(&["diff", "vms", "--prune"]);
    assert_eq!((done.status, done.stdout.as_str()), (0, ""), "{done:?}");
}

#[test]
fn the_fleet_of_the_examples_can_be_applied() {
    let world = World::new();
    let fleet = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/fleet");
    let done = world.run(&["apply", fleet]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    assert_eq!(world.names(), ["idle", "web1", "web2"]);
}

#[test]
fn diff_without_a_supervisor_is_trouble_and_no_difference() {
    let place = Place::new();
    place.file("a.json", text("a", 1));
    let done = place.run(&["--socket", "none.sock", "diff", "a.json"]);
    assert!(done.is_one_sentence(2).starts_with("none.sock: no supervisor answers"), "{done:?}");
}

#[test]
fn what_a_vm_is_called_cannot_write_to_the_terminal() {
    let world = World::new();
    let source = "/else\x1b[2J\nwhere";
    world.put("a", 1, Some(source));
    world.file("a", 1);
    for args in [&["apply", "vms"] as &[&str], &["diff", "vms"], &["apply", "--dry-run", "--adopt", "vms"]] {
        let done = world.run(args);
        let said = format!("{}{}", done.stdout, done.stderr);
        // As a sentence has it, or as JSON has.
        assert!(said.contains("/else\\u{1b}[2J\\nwhere") || said.contains("/else\\u001b[2J\\nwhere"), "{done:?}");
        assert!(!done.stdout.contains('\x1b') && !done.stderr.contains('\x1b'), "{done:?}");
    }
}

#[test]
fn eight_vms_are_made_at_the_same_time_and_no_more() {
    const ALL: usize = 20;
    let (now, most) = (Arc::new((Mutex::new(0), Condvar::new())), Arc::new(AtomicUsize::new(0)));
    let (counted, seen) = (now.clone(), most.clone());
    let world = World::that_refuses(move |what, _| {
        if what == "POST /v1/vms" {
            let (count, changed) = &*counted;
            let mut count = count.lock().unwrap();
            *count += 1;
            seen.fetch_max(*count, Ordering::Relaxed);
            changed.notify_all();
            // The first ones wait for the eighth: one after the other they would wait in vain.
            let alone = |_: &mut usize| seen.load(Ordering::Relaxed) < 8;
            let (mut count, _) = changed.wait_timeout_while(count, Duration::from_secs(20), alone).unwrap();
            *count -= 1;
        }
        None
    });
    for n in 0..ALL {
        world.file(&format!("vm{n}"), 1);
    }
    let done = world.run(&["apply", "vms"]);
    assert_eq!((done.status, world.names().len()), (0, ALL), "{done:?}");
    assert_eq!(most.load(Ordering::Relaxed), 8);
}
