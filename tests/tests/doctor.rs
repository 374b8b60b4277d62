//! `vmsup doctor` and the jailer's trial on this host, as it is and with something taken away.

use serde_json::Value;
use std::process::Command;
use vmsup_tests::{program, skip, user};

/// What the jailer says of its trial, as this command.
fn tried(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr))
}

/// `vmsup-jailer try` by a shell that can first do something.
fn try_after(wrapper: &[&str]) -> (Option<i32>, String) {
    let mut command = user::with_subuids().command(wrapper[0]);
    tried(command.args(&wrapper[1..]).arg(program("vmsup-jailer")).arg("try"))
}

/// In a user namespace of its own, in which nobody may make another one.
const FORBIDDEN: [&str; 6] = [
    "unshare",
    "--user",
    "--map-root-user",
    "sh",
    "-c",
    "echo 0 >/proc/sys/user/max_user_namespaces && exec \"$0\" \"$@\"",
];

#[test]
fn the_jailers_trial_uses_what_a_jail_is_made_of() {
    let with = tried(user::with_subuids().command(program("vmsup-jailer")).arg("try"));
    if let Some(bare) = user::without_subuids() {
        assert_eq!(with, (Some(0), "own: ok\nsubordinate: ok\nsection: ok\n".into()));
        let without = tried(bare.command(program("vmsup-jailer")).arg("try"));
        assert_eq!(without, (Some(0), "own: ok\nsection: ok\n".into()));
    } else {
        assert!(with.0 == Some(0) && with.1.starts_with("own: ok\n"), "{with:?}");
    }
    let (status, said) = tried(user::with_subuids().command(program("vmsup-jailer")).args(["try", "this"]));
    assert!(status == Some(2) && said.contains("no arguments"), "{said}");
}

#[test]
fn the_jailers_trial_tells_what_is_in_the_way() {
    let (status, said) = try_after(&FORBIDDEN);
    assert!(status == Some(0) && said.contains("own: a new user namespace: No space left on device"), "{said}");
    if user::without_subuids().is_some() {
        let (status, said) = try_after(&["setpriv", "--no-new-privs"]);
        assert!(status == Some(0) && said.starts_with("own: ok\nsubordinate: newuidmap: "), "{said}");
    } else {
        skip("the_jailers_trial_tells_what_is_in_the_way", "who has subordinate ids is for root to choose");
    }
}

/// The exit status of `vmsup doctor --json`, and its lines by id, after a shell did something.
fn doctor(wrapper: &[&str]) -> (Option<i32>, impl Fn(&str) -> Value + use<>) {
    let mut command = user::with_subuids().command(wrapper[0]);
    command.args(&wrapper[1..]).arg(program("vmsup")).args(["doctor", "--json"]);
    let output = command.env("XDG_RUNTIME_DIR", "/nonexistent").env("XDG_STATE_HOME", "/nonexistent").output().unwrap();
    let lines: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (output.status.code(), move |id: &str| lines.iter().find(|l| l["id"] == id).cloned().unwrap_or_default())
}

#[test]
fn doctor_sees_a_host_that_starts_vms_and_what_is_taken_away_from_it() {
    let (_, line) = doctor(&["env"]);
    for id in ["user-namespaces", "namespaces", "landlock", "seccomp", "policy-section", "programs", "resource-limits"]
    {
        assert_eq!(line(id)["state"], "ok", "{}", line(id));
    }
    // Nothing is there, nothing can be made there, and nothing was.
    assert_eq!(line("state-directory")["state"], "warning", "{}", line("state-directory"));
    assert!(!std::path::Path::new("/nonexistent").exists());

    let (status, line) = doctor(&FORBIDDEN);
    let namespaces = line("user-namespaces");
    assert_eq!((status, &namespaces["state"]), (Some(1), &"failure".into()), "{namespaces}");
    assert!(namespaces["found"].as_str().unwrap().contains("max_user_namespaces is 0"), "{namespaces}");

    let (_, line) = doctor(&["prlimit", "--nofile=256", "--fsize=1048576"]);
    assert_eq!(line("open-files")["state"], "warning", "{}", line("open-files"));
    assert!(
        line("resource-limits")["found"].as_str().unwrap().contains("fsize 1048576"),
        "{}",
        line("resource-limits")
    );

    if user::without_subuids().is_some() {
        let (_, line) = doctor(&["setpriv", "--no-new-privs"]);
        let ids = line("subordinate-ids");
        assert!(ids["found"].as_str().unwrap().contains("no_new_privs"), "{ids}");
    }
}
