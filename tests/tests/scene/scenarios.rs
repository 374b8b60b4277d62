//! What is done when the supervisor is killed, and what is to be there afterwards.

use super::Scene;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::process::Stdio;
use vmsup_tests::eventually;

/// What is done when the supervisor is killed, and what is to be there afterwards.
pub struct Scenario {
    pub name: &'static str,
    /// The steps at which it is killed. Each must be passed.
    pub steps: &'static [&'static str],
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
pub const STATE: [&str; 2] = ["state.taken", "state.committed"];

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

pub fn start(scene: &mut Scene, guest: &str) {
    let file = scene.host.guest("v", guest, "");
    scene.host.vmsup(&["start", &file]).ok();
    scene.host.said("v", &format!("{guest} up"));
}

pub fn rest(scene: &mut Scene) {
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

pub const CREATE: Scenario = Scenario {
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

pub const CREATE_ON: Scenario = Scenario { name: "create, further on", steps: STARTING, ..CREATE };

pub const START: Scenario = Scenario {
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
pub const UNDONE: Scenario = Scenario {
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

pub const STOP: Scenario = Scenario {
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

pub const END: Scenario = Scenario { name: "end", steps: ENDING, ..STOP };

pub const KILL: Scenario = Scenario {
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

pub const REMOVE: Scenario = Scenario {
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
pub const EPHEMERAL: Scenario = Scenario {
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

pub const CHANGE: Scenario = Scenario {
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
pub const UPDATE: Scenario = Scenario {
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

pub const UPDATE_END: Scenario = Scenario { name: "update, its stop", steps: ENDING, ..UPDATE };
pub const UPDATE_START: Scenario = Scenario { name: "update, its start", steps: STARTING, ..UPDATE };

/// A supervisor that takes over is killed at that, and the next one finds all that there was.
pub const ADOPT: Scenario = Scenario {
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
pub const LEAVE: Scenario = Scenario {
    name: "leaving",
    steps: &["leave.withdrawn", "leave.settled"],
    before: |scene| {
        start(scene, "deaf");
        scene.noted = scene.host.inspect("v")["pid"].clone();
    },
    act: |scene| {
        let pid = Pid::from_child(&scene.host.supervisor);
        kill_process(pid, Signal::TERM).unwrap();
        false
    },
    after: |scene, _| {
        let vm = scene.host.inspect("v");
        assert_eq!((&vm["pid"], &vm["state"]), (&scene.noted, &json!("running")));
    },
    arms: false,
};

/// A directory that is kept: killed whenever, the next supervisor brings it to its end.
pub const WATCH: Scenario = Scenario {
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

pub const SCENARIOS: [&Scenario; 16] = [
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
    pub fn killed_at(&self, scene: &mut Scene, faults: &str) -> bool {
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
