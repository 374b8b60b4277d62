//! The supervisor killed at every step that has a name, made to fail there, made to hang there; and after each the next one
//! finds everything that was promised, and nothing of the rest.
//!
//! `target/bin/faults/vmsup` is the supervisor with the cargo feature `faults` (`supervisor/src/serve/fault.rs`): it names its
//! steps, and each of them has to come up in a scenario here.

mod scene;

use scene::Scene;
use scene::scenarios::*;
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use vmsup_tests::host::{Host, Ran};
use vmsup_tests::{eventually, program};

/// At every step of some scenarios, one after the other on one host.
fn at_every_step_of(scene: &mut Scene, scenarios: &[&Scenario]) {
    for scenario in scenarios {
        for step in scenario.steps {
            assert!(scenario.killed_at(scene, &format!("{step}=kill")), "{step} is not a step of {}", scenario.name);
        }
    }
}

/// At every write to the database, before it and behind it.
fn at_every_write_of(scene: &mut Scene, scenario: &Scenario) {
    for step in STATE {
        let writes = (1..).take_while(|nth| scenario.killed_at(scene, &format!("{step}#{nth}=kill"))).count();
        // Taking over is one, and what is done is one at least.
        assert!(writes >= 2, "{writes} writes");
    }
}

#[test]
fn a_supervisor_killed_while_it_makes_a_vm_leaves_what_it_promised_and_nothing_else() {
    let mut scene = Scene::new(false);
    at_every_step_of(&mut scene, &[&CREATE, &CREATE_ON, &START, &UNDONE]);
    at_every_write_of(&mut scene, &CREATE);
    scene.leaves_nothing();
}

#[test]
fn a_supervisor_killed_while_a_vm_ends_or_is_removed_leaves_its_true_end_and_nothing_else() {
    let mut scene = Scene::new(false);
    at_every_step_of(&mut scene, &[&STOP, &END, &KILL, &REMOVE, &EPHEMERAL]);
    scene.leaves_nothing();
}

#[test]
fn a_supervisor_killed_while_a_vm_becomes_another_leaves_one_that_runs() {
    let mut scene = Scene::new(false);
    at_every_step_of(&mut scene, &[&CHANGE, &UPDATE, &UPDATE_END, &UPDATE_START]);
    at_every_write_of(&mut scene, &UPDATE);
    scene.leaves_nothing();
}

#[test]
fn a_supervisor_killed_while_it_takes_over_or_leaves_costs_no_vm() {
    let mut scene = Scene::new(false);
    at_every_step_of(&mut scene, &[&ADOPT, &LEAVE]);
    scene.leaves_nothing();
}

#[test]
fn a_supervisor_killed_while_it_keeps_a_directory_is_followed_by_one_that_goes_on_with_it() {
    let mut scene = Scene::new(true);
    at_every_step_of(&mut scene, &[&WATCH]);
    scene.leaves_nothing();
}

/// The steps that the program with faults names, each with what it can be made to do.
fn named() -> Vec<(String, Vec<String>)> {
    let mut serve = Command::new(program("faults/vmsup"));
    let ran = Ran::from(serve.arg("serve").env("VMSUP_FAULT", "?").output().unwrap());
    let sentence = ran.sentence(1);
    let steps = sentence.split_once("the steps are ").expect("all steps").1;
    let step = |text: &str| {
        let (name, can) = text.trim_end_matches(')').split_once(" (").unwrap();
        (name.to_owned(), can.split(' ').map(str::to_owned).collect())
    };
    steps.split(", ").map(step).collect()
}

/// The steps that can be made to do this.
fn that_can(what: &str) -> Vec<String> {
    let able = named().into_iter().filter(|(_, can)| can.iter().any(|can| can == what));
    able.map(|(name, _)| name).collect()
}

#[test]
fn every_step_that_has_a_name_is_tried_and_no_release_has_any() {
    let all: BTreeSet<String> = that_can("kill").into_iter().collect();
    let tried: BTreeSet<String> =
        SCENARIOS.iter().flat_map(|scenario| scenario.steps).chain(&STATE).map(|step| (*step).to_owned()).collect();
    assert_eq!(all, tried);
    let holds = |path: &str, text: &str| {
        let status = Command::new("grep").args(["-qaF", text]).arg(program(path)).status().unwrap();
        assert!(matches!(status.code(), Some(0 | 1)), "{status:?}");
        status.success()
    };
    for text in ["VMSUP_FAULT", "create.reserved", "end.let_go"] {
        assert!(holds("faults/vmsup", text) && !holds("vmsup", text), "{text}");
    }
}

#[test]
fn a_start_that_fails_at_any_step_leaves_nothing_and_the_next_one_works() {
    let mut scene = Scene::new(false);
    for step in that_can("fail") {
        scene.arm(&format!("{step}=fail"));
        let file = scene.host.guest("v", "deaf", "");
        let sentence = scene.host.vmsup(&["start", &file]).sentence(1);
        assert!(sentence.contains(&step), "{sentence}");
        scene.nothing_but_the_bystander();
        // It was there before: it is what it was.
        rest(&mut scene);
        let before = scene.host.inspect("v");
        scene.arm(&format!("{step}=fail"));
        scene.host.vmsup(&["start", "v"]).sentence(1);
        let after = scene.host.inspect("v");
        for field in ["id", "state", "desired", "end", "generation"] {
            assert_eq!(before[field], after[field], "{step}: {field}");
        }
        scene.clean();
    }
    scene.leaves_nothing();
}

#[test]
fn a_start_that_hangs_at_any_step_holds_up_nobody_and_can_be_cancelled() {
    let mut scene = Scene::new(false);
    for step in that_can("hang") {
        let before = scene.hung();
        scene.arm(&format!("{step}=hang"));
        let file = scene.host.guest("v", "deaf", "");
        let mut hangs = scene.host.spawn(&["start", &file]);
        eventually("a start that hangs", || scene.hung() > before);
        scene.host.vmsup(&["start", &scene.host.guest("w", "deaf", "")]).ok();
        scene.host.vmsup(&["rm", "--force", "w"]).ok();
        let ops: Vec<Value> = serde_json::from_str(&scene.host.vmsup(&["ops", "--json"]).ok()).unwrap();
        let op = ops.iter().find(|op| op["vm"] == "v" && op["state"] == "running").expect("the start");
        scene.host.vmsup(&["ops", "cancel", &op["id"].to_string()]).ok();
        assert!(!hangs.wait().unwrap().success());
        scene.nothing_but_the_bystander();
        start(&mut scene, "deaf");
        scene.clean();
    }
    scene.leaves_nothing();
}

/// A third of the starts fails, each at a step that chance chose.
#[test]
fn of_a_hundred_starts_at_once_those_that_fail_leave_nothing_and_the_others_run() {
    let mut scene = Scene::new(false);
    let steps = that_can("fail");
    let faults: Vec<String> = steps.iter().map(|step| format!("{step}%5=fail")).collect();
    scene.arm(&faults.join(","));
    let host = &scene.host;
    let files: Vec<String> = (0..100).map(|n| host.guest(&format!("vm{n}"), "deaf", "")).collect();
    let next = AtomicUsize::new(0);
    let well = Mutex::new(BTreeSet::from(["bystander".to_owned()]));
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some(file) = files.get(n) else { return };
                    let ran = host.vmsup(&["start", file]);
                    if ran.status == Some(0) {
                        well.lock().unwrap().insert(format!("vm{n}"));
                    } else {
                        let sentence = ran.sentence(1);
                        assert!(steps.iter().any(|step| sentence.contains(step)), "{sentence}");
                    }
                }
            });
        }
    });
    let well = well.into_inner().unwrap();
    assert!((50..90).contains(&well.len()), "{} of 100 run", well.len() - 1);
    let survivors = |host: &Host| {
        let all = host.ls();
        assert!(all.iter().all(|vm| vm["state"] == "running"), "{all:?}");
        all.iter().map(|vm| vm["name"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    assert_eq!(survivors(&scene.host), well);
    scene.nothing_but(well.len());
    // Nor is there anything in the database or among the handles that the next supervisor would find.
    scene.host.replace();
    assert_eq!(survivors(&scene.host), well);
    scene.nothing_but(well.len());
    for name in well.iter().filter(|name| *name != "bystander") {
        scene.host.vmsup(&["rm", "--force", name]).ok();
    }
    scene.nothing_but_the_bystander();
    scene.leaves_nothing();
}
