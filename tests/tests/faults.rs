//! The supervisor killed at every step that has a name, made to fail there, made to hang there; and after each the next one
//! finds everything that was promised, and nothing of the rest.
//!
//! `target/bin/faults/vmsup` is the supervisor with the cargo feature `faults` (`supervisor/src/serve/fault.rs`): it names its
//! steps, and each of them has to come up in a scenario here.

mod scene;

use scene::Scene;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use vmsup_tests::host::{Host, Ran};
use vmsup_tests::{eventually, program};

/// What is done when the supervisor is killed, and what is to be there afterwards.
struct Scenario {
    name: &'static str,
    /// The steps at which it is killed. Each must be passed.
    steps: &'static [&'static str],
    /// What is there before.
    before: fn(&mut Scene),
    /// What is done. Answered well or not, it is over when this returns.
    act: fn(&mut Scene) -> bool,
    /// What is to be there then, by whether that was answered well.
    after: fn(&mut Scene, bool),
    /// It says by itself which supervisor is killed.
    arms: bool,
}

/// Steps that everything passes, some of it several times.
const STATE: [&str; 2] = ["state.taken", "state.committed"];

const STARTING: &[&str] = &[
    "start.files",
    "start.worker",
    "start.leased",
    "start.connected",
    "handle.beside",
    "handle.placed",
    "start.given",
    "start.running",
    "start.confirmed",
];
const ENDING: &[&str] =
    &["end.heard", "end.written", "end.handle_removed", "end.released", "end.let_go", "end.forgotten", "end.rests"];

fn start(scene: &mut Scene, guest: &str) {
    let file = scene.host.guest("v", guest, "");
    scene.host.vmsup(&["start", &file]).ok();
    scene.host.said("v", &format!("{guest} up"));
}

fn rest(scene: &mut Scene) {
    start(scene, "deaf");
    scene.host.vmsup(&["kill", "v"]).ok();
}

fn asked(scene: &Scene, args: &[&str]) -> bool {
    scene.asks(args).output().unwrap().status.success()
}

/// It is as its row says: running where it is to run, at rest where it is not.
fn as_desired(scene: &Scene) -> String {
    let mut state = String::new();
    eventually("a VM that is as its owner wants it", || {
        let vm = scene.host.inspect("v");
        state = vm["state"].as_str().unwrap().to_owned();
        let rests = ["stopped", "crashed"].contains(&&*state);
        if vm["desired"] == "running" { state == "running" } else { rests }
    });
    state
}

const CREATE: Scenario = Scenario {
    name: "create",
    steps: &["create.reserved", "create.queued"],
    before: |_| {},
    act: |scene| {
        let file = scene.host.guest("v", "deaf", "");
        asked(scene, &["start", &file])
    },
    after: |scene, answered| match &*scene.host.state("v") {
        "running" => {}
        state => assert!(!answered && state.is_empty(), "answered: {answered}, and it is {state}"),
    },
    arms: false,
};

const CREATE_ON: Scenario = Scenario { name: "create, further on", steps: STARTING, ..CREATE };

const START: Scenario = Scenario {
    name: "start",
    steps: STARTING,
    before: |scene| {
        rest(scene);
        scene.noted = scene.host.inspect("v")["id"].clone();
    },
    act: |scene| asked(scene, &["start", "v"]),
    after: |scene, answered| {
        // It was there before, and is what it was.
        assert_eq!(scene.host.inspect("v")["id"], scene.noted);
        let state = as_desired(scene);
        assert!(state == "running" || !answered && state == "stopped", "{state}");
        // Nobody says that it ended where it never ran.
        let vm = scene.host.inspect("v");
        assert_eq!(vm["end"]["kind"], "killed", "{vm}");
    },
    arms: false,
};

/// A start that fails, and the supervisor killed while it is undone. Before that is written, it is a VM that ran for a moment.
const UNDONE: Scenario = Scenario {
    name: "a start that fails",
    steps: &["end.written", "end.handle_removed", "end.released", "end.let_go", "end.rests"],
    before: |scene| {
        rest(scene);
        scene.noted = scene.host.inspect("v")["id"].clone();
    },
    act: |scene| {
        let faults = format!("start.given=fail,{}", scene.faults);
        scene.arm(&faults);
        asked(scene, &["start", "v"])
    },
    after: |scene, answered| {
        assert!(!answered);
        as_desired(scene);
        let vm = scene.host.inspect("v");
        assert_eq!((&vm["id"], &vm["end"]["kind"]), (&scene.noted, &json!("killed")), "{vm}");
    },
    arms: true,
};

const STOP: Scenario = Scenario {
    name: "stop",
    steps: &["stop.queued", "stop.pressed"],
    before: |scene| start(scene, "power"),
    act: |scene| asked(scene, &["stop", "v"]),
    after: |scene, answered| {
        let state = as_desired(scene);
        assert!(state == "stopped" || state == "running" && !answered, "{state}");
        if state == "stopped" {
            assert_eq!(scene.host.inspect("v")["end"]["kind"], "shutdown");
        }
    },
    arms: false,
};

const END: Scenario = Scenario { name: "end", steps: ENDING, ..STOP };

const KILL: Scenario = Scenario {
    name: "kill",
    steps: &["kill.sent"],
    before: |scene| start(scene, "deaf"),
    act: |scene| asked(scene, &["kill", "v"]),
    after: |scene, _| {
        eventually("its end", || !scene.host.inspect("v")["end"].is_null());
        // Whether the supervisor's own word that it was to end was written before it died is a matter of microseconds.
        let kind = scene.host.inspect("v")["end"]["kind"].clone();
        assert!(kind == "killed" || kind == "worker_crashed", "{kind}");
    },
    arms: false,
};

const REMOVE: Scenario = Scenario {
    name: "remove",
    steps: &["remove.asked", "remove.queued", "remove.written"],
    before: rest,
    act: |scene| asked(scene, &["rm", "v"]),
    after: |scene, answered| match &*scene.host.state("v") {
        "" => {}
        state => assert!(!answered && state == "stopped", "answered: {answered}, and it is {state}"),
    },
    arms: false,
};

/// It is forgotten at its end: whenever that is interrupted, it does not come back.
const EPHEMERAL: Scenario = Scenario {
    name: "a VM that is forgotten at its end",
    steps: ENDING,
    before: |_| {},
    act: |scene| {
        let file = scene.host.guest("v", "echo", "");
        let mut run = scene.asks(&["run", "--rm", &file]);
        let run = run.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut run = run.stderr(Stdio::null()).spawn().unwrap();
        std::io::Write::write_all(run.stdin.as_mut().unwrap(), b"q").unwrap();
        run.wait().unwrap().success()
    },
    after: |scene, _| eventually("it to be forgotten", || scene.host.state("v").is_empty()),
    arms: false,
};

const CHANGE: Scenario = Scenario {
    name: "change in place",
    steps: &["change.made", "change.written", "handle.beside", "handle.placed"],
    before: |scene| {
        scene.fleet.vm("v", json!({}));
        scene.host.vmsup(&["apply", &scene.fleet.name()]).ok();
        scene.noted = scene.host.inspect("v")["pid"].clone();
        scene.fleet.vm("v", json!({ "restart": "on-failure" }));
    },
    act: |scene| asked(scene, &["apply", &scene.fleet.name()]),
    after: |scene, answered| {
        if answered {
            assert_eq!(scene.host.inspect("v")["spec"]["restart"], "on-failure");
        }
        scene.host.vmsup(&["apply", &scene.fleet.name()]).ok();
        let vm = scene.host.inspect("v");
        assert_eq!((&vm["spec"]["restart"], &vm["pid"]), (&json!("on-failure"), &scene.noted), "{vm}");
    },
    arms: false,
};

/// The update of a VM that has to be stopped and started for it. Whenever it is interrupted, the VM runs afterwards.
const UPDATE: Scenario = Scenario {
    name: "update",
    steps: &["update.stopped", "change.made", "change.written", "update.changed", "stop.pressed"],
    before: |scene| {
        scene.fleet.vm("v", json!({}));
        scene.host.vmsup(&["apply", &scene.fleet.name()]).ok();
        scene.host.said("v", "power up");
        scene.fleet.vm("v", json!({ "memory_mib": 40 }));
    },
    act: |scene| asked(scene, &["apply", &scene.fleet.name()]),
    after: |scene, answered| {
        eventually("it to run again", || scene.host.state("v") == "running");
        if answered {
            assert_eq!(scene.host.inspect("v")["memory_mib"], 40);
        }
        scene.host.vmsup(&["apply", &scene.fleet.name()]).ok();
        let vm = scene.host.inspect("v");
        assert_eq!((&vm["memory_mib"], &vm["state"]), (&json!(40), &json!("running")), "{vm}");
    },
    arms: false,
};

const UPDATE_END: Scenario = Scenario { name: "update, its stop", steps: ENDING, ..UPDATE };
const UPDATE_START: Scenario = Scenario { name: "update, its start", steps: STARTING, ..UPDATE };

/// A supervisor that takes over is killed at that, and the next one finds all that there was.
const ADOPT: Scenario = Scenario {
    name: "adoption",
    steps: &["adopt.looked", "adopt.asked", "adopt.judged", "adopt.forgetting", "adopt.settled"],
    before: |scene| {
        start(scene, "deaf");
        scene.noted = scene.host.inspect("v")["pid"].clone();
    },
    act: |scene| {
        // Killed in the middle of a start, of which a row is there: what is answered later was written later.
        scene.host.vmsup(&["start", &scene.host.guest("other", "deaf", "")]).ok();
        scene.host.vmsup(&["kill", "other"]).ok();
        let before = scene.hung();
        scene.arm("start.connected=hang");
        let mut half = scene.host.spawn(&["start", &scene.host.guest("half", "deaf", "")]);
        eventually("a start that hangs", || scene.hung() > before);
        scene.host.vmsup(&["rm", "other"]).ok();
        scene.host.supervisor.kill().unwrap();
        scene.host.supervisor.wait().unwrap();
        half.wait().unwrap();
        scene.host.next_with_faults(&scene.faults.clone(), 1);
        false
    },
    after: |scene, _| {
        let vm = scene.host.inspect("v");
        assert_eq!((&vm["pid"], &vm["state"]), (&scene.noted, &json!("running")));
        assert_eq!(scene.host.state("half"), "");
    },
    arms: true,
};

/// A supervisor that leaves in good order, and is killed at that.
const LEAVE: Scenario = Scenario {
    name: "leaving",
    steps: &["leave.withdrawn", "leave.settled"],
    before: |scene| {
        start(scene, "deaf");
        scene.noted = scene.host.inspect("v")["pid"].clone();
    },
    act: |scene| {
        let pid = rustix::process::Pid::from_child(&scene.host.supervisor);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        false
    },
    after: |scene, _| {
        let vm = scene.host.inspect("v");
        assert_eq!((&vm["pid"], &vm["state"]), (&scene.noted, &json!("running")));
    },
    arms: false,
};

/// A directory that is kept: killed whenever, the next supervisor brings it to its end.
const WATCH: Scenario = Scenario {
    name: "watch",
    steps: &["watch.planned", "watch.stepped"],
    before: |_| {},
    act: |scene| {
        scene.fleet.vm("v", json!({}));
        false
    },
    after: |scene, _| eventually("the VM of the file", || scene.host.state("v") == "running"),
    arms: false,
};

const SCENARIOS: [&Scenario; 16] = [
    &CREATE,
    &CREATE_ON,
    &START,
    &UNDONE,
    &STOP,
    &END,
    &KILL,
    &REMOVE,
    &EPHEMERAL,
    &CHANGE,
    &UPDATE,
    &UPDATE_END,
    &UPDATE_START,
    &ADOPT,
    &LEAVE,
    &WATCH,
];

impl Scenario {
    /// Has the supervisor killed at one step of it, and looks at what the next one makes of it. False where the step was not
    /// passed as often as `faults` says.
    fn killed_at(&self, scene: &mut Scene, faults: &str) -> bool {
        println!("{}, {faults}", self.name);
        scene.faults = faults.to_owned();
        (self.before)(scene);
        if !self.arms {
            scene.arm(faults);
        }
        let answered = (self.act)(scene);
        let killed = scene.was_killed(faults.contains('#'));
        scene.mend();
        (self.after)(scene, answered);
        scene.clean();
        // The name is free again, whatever became of it.
        start(scene, "deaf");
        scene.clean();
        killed
    }
}

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
