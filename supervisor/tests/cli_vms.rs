//! The commands about VMs, against a supervisor made of a script.

mod support;

use serde_json::json;
use support::{Answer, Fake, HELLO, Place, error, vm};

#[test]
fn start_sends_the_file_with_absolute_paths() {
    let fake = Fake::new(|_| Answer::Json(201, vm("web1", None)));
    let image = fake.place.file("root.img", "x");
    let text = HELLO.replace("\"hello\" }", "\"hello\" },\n  \"disks\": [ { \"path\": \"root.img\" } ]");
    fake.place.file("vm.json", text);
    let done = fake.place.run(&["start", "vm.json"]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    assert_eq!(done.stdout, "web1 started (id 77aa); its console: vmsup console web1\n");
    let body = fake.body("POST /v1/vms");
    assert_eq!(body["spec"]["disks"][0]["path"], image.to_str().unwrap());
    assert_eq!(body["remove_when_ended"], false);
}

#[test]
fn a_field_that_the_supervisor_refuses_is_found_in_the_file() {
    let fake = Fake::new(|_| Answer::Json(400, error("invalid", "not a kernel; give a bzImage", Some("boot.builtin"))));
    fake.place.file("vm.json", HELLO);
    for command in ["start", "run"] {
        let done = fake.place.run(&[command, "vm.json"]);
        assert_eq!(done.is_one_sentence(2), "vm.json:5:24: boot.builtin: not a kernel; give a bzImage");
    }
}

#[test]
fn a_name_that_is_taken_is_a_failure_not_a_wrong_input() {
    let fake = Fake::new(|_| Answer::Json(409, error("conflict", "hello runs already; stop it", Some("name"))));
    fake.place.file("vm.json", HELLO);
    let done = fake.place.run(&["start", "vm.json"]);
    assert_eq!(done.is_one_sentence(1), "vm.json:2:11: name: hello runs already; stop it");
}

#[test]
fn ls_shows_a_table_and_keeps_the_terminal_safe() {
    let fake = Fake::new(|_| {
        Answer::Json(
            200,
            json!([vm("web1", None), vm("db", Some(("guest_crashed", "triple\x1b[2J\nfault \u{202e}x")))]),
        )
    });
    let done = fake.place.run(&["ls"]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""));
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{done:?}");
    assert!(lines[0].starts_with("NAME  STATE"), "{done:?}");
    assert!(lines[1].starts_with("web1  running  4711"), "{done:?}");
    assert!(lines[2].ends_with("triple\\u{1b}[2J\\nfault \\u{202e}x"), "{done:?}");
}

#[test]
fn ls_as_json_is_an_array_of_objects() {
    let fake = Fake::new(|_| Answer::Json(200, json!([vm("web1", None)])));
    let done = fake.place.run(&["ls", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    for field in ["name", "id", "state", "pid", "owner"] {
        assert!(!list[0][field].is_null(), "{field} is missing in {list}");
    }
    let fake = Fake::new(|_| Answer::Json(200, json!([])));
    assert_eq!(fake.place.run(&["ls", "--json"]).stdout, "[]\n");
}

#[test]
fn stop_and_kill_ask_and_tell_how_it_ended() {
    let fake = Fake::new(|_| Answer::Json(200, vm("web1", Some(("shutdown", "the guest switched itself off.")))));
    let done = fake.place.run(&["stop", "web1", "--timeout", "7"]);
    assert_eq!((done.status, done.stdout.as_str()), (0, "web1: the guest switched itself off\n"));
    assert_eq!(fake.body("POST /v1/vms/web1/stop"), json!({ "deadline_s": 7 }));
    assert_eq!(fake.place.run(&["kill", "77aa"]).status, 0);
    assert_eq!(fake.asked()[1], "POST /v1/vms/77aa/kill");
}

#[test]
fn the_deadline_of_stop_is_30_seconds_unless_said() {
    let fake = Fake::new(|_| Answer::Json(200, vm("web1", Some(("shutdown", "off")))));
    fake.place.run(&["stop", "web1"]);
    assert_eq!(fake.body("POST /v1/vms/web1/stop"), json!({ "deadline_s": 30 }));
}

#[test]
fn wait_tells_a_good_end_from_a_bad_one() {
    for (kind, status) in
        [("shutdown", 0), ("reset", 0), ("killed", 0), ("guest_crashed", 1), ("worker_crashed", 1), ("unknown", 1)]
    {
        let fake = Fake::new(move |_| Answer::Json(200, vm("a", Some((kind, "so it was")))));
        let done = fake.place.run(&["wait", "a"]);
        assert_eq!((done.status, done.stdout.as_str()), (status, "a: so it was\n"), "{kind}");
    }
}

#[test]
fn rm_deletes_and_with_force_kills_first() {
    let script = |asked: &support::Asked| match asked.what.split(' ').next() {
        Some("DELETE") => Answer::Json(204, json!(null)),
        Some("POST") => Answer::Json(200, vm("a", Some(("killed", "killed")))),
        _ => Answer::Json(200, vm("a", None)),
    };
    let fake = Fake::new(script);
    assert_eq!(fake.place.run(&["rm", "a"]).status, 0);
    assert_eq!(fake.asked(), ["DELETE /v1/vms/a"]);
    let fake = Fake::new(script);
    assert_eq!(fake.place.run(&["rm", "--force", "a"]).status, 0);
    assert_eq!(fake.asked(), ["GET /v1/vms/a", "POST /v1/vms/a/kill", "DELETE /v1/vms/a"]);
}

#[test]
fn start_takes_a_name_where_there_is_no_such_file() {
    let fake = Fake::new(|_| Answer::Json(200, vm("web1", None)));
    std::fs::create_dir(fake.place.path().join("web1")).unwrap();
    let done = fake.place.run(&["start", "web1"]);
    assert_eq!(done.stdout, "web1 started (id 77aa); its console: vmsup console web1\n", "{done:?}");
    assert_eq!(fake.asked(), ["POST /v1/vms/web1/start"]);
    // What looks like a file is one, and what is one is read.
    for name in ["web2.json", "./web2", "vms/web2"] {
        assert_eq!(fake.place.run(&["start", name]).status, 2, "{name}");
    }
    fake.place.file("web3", HELLO);
    assert_eq!(fake.place.run(&["start", "web3"]).status, 0);
    assert_eq!(fake.asked()[1], "POST /v1/vms");
    let fake = Fake::new(|_| Answer::Json(404, error("not_found", "there is no VM a", None)));
    let done = fake.place.run(&["start", "a"]);
    assert_eq!(done.is_one_sentence(1), "there is neither a VM nor a file named a; vmsup ls shows the VMs");
}

#[test]
fn pause_and_resume_say_where_the_vm_is_now() {
    for (command, state) in [("pause", "paused"), ("resume", "running")] {
        let fake = Fake::new(move |_| {
            let mut vm = vm("a", None);
            vm["state"] = json!(state);
            Answer::Json(200, vm)
        });
        assert_eq!(fake.place.run(&[command, "a"]).stdout, format!("a: {state}\n"));
        assert_eq!(fake.asked(), [format!("POST /v1/vms/a/{command}")]);
    }
}

#[test]
fn several_vms_are_asked_side_by_side_and_one_that_fails_stops_no_other() {
    let fake = Fake::new(|asked| match asked.what.as_str() {
        "POST /v1/vms/b/stop" => Answer::Json(404, error("not_found", "there is no VM b", None)),
        other => Answer::Json(200, vm(&other[13..14], Some(("shutdown", "off")))),
    });
    let done = fake.place.run(&["stop", "a", "b", "c"]);
    assert_eq!((done.status, done.stdout.as_str()), (1, "a: off\nc: off\n"));
    assert_eq!(done.stderr, "vmsup: there is no VM b\n");
    let done = fake.place.run(&["kill", "a", "c", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((list[0]["name"].as_str(), list[1]["name"].as_str()), (Some("a"), Some("c")));
    // Which VMs must be said.
    assert_eq!(fake.place.run(&["stop"]).status, 2);
    assert_eq!(fake.place.run(&["stop", "a", "--all"]).status, 2);
}

#[test]
fn all_means_all_that_it_concerns() {
    let script = |asked: &support::Asked| match asked.what.as_str() {
        "GET /v1/vms" => {
            let mut paused = vm("p", None);
            (paused["id"], paused["state"]) = (json!("0p"), json!("paused"));
            let mut ended = vm("e", Some(("guest_crashed", "x")));
            ended["id"] = json!("0e");
            Answer::Json(200, json!([paused, ended]))
        }
        what if what.starts_with("DELETE") => Answer::Json(204, json!(null)),
        what if what.starts_with("GET /v1/vms/0e") => Answer::Json(200, vm("e", Some(("guest_crashed", "x")))),
        what if what.starts_with("GET") => Answer::Json(200, vm("p", None)),
        _ => Answer::Json(200, vm("p", Some(("killed", "killed on request")))),
    };
    for (args, asked) in [
        (&["stop", "--all"][..], &["GET /v1/vms", "POST /v1/vms/0p/stop"][..]),
        (&["kill", "--all"], &["GET /v1/vms", "POST /v1/vms/0p/kill"]),
        (&["resume", "--all"], &["GET /v1/vms", "POST /v1/vms/0p/resume"]),
        (&["pause", "--all"], &["GET /v1/vms"]),
        (&["rm", "--all"], &["GET /v1/vms", "DELETE /v1/vms/0e"]),
    ] {
        let fake = Fake::new(script);
        let done = fake.place.run(args);
        assert_eq!((done.status, fake.asked()), (0, asked.iter().map(|s| s.to_string()).collect()), "{done:?}");
    }
    let fake = Fake::new(script);
    assert_eq!(fake.place.run(&["rm", "--all", "--force"]).status, 0);
    let asked = fake.asked();
    assert_eq!(asked.iter().filter(|what| what.starts_with("DELETE")).count(), 2, "{asked:?}");
    assert!(asked.contains(&"POST /v1/vms/0p/kill".into()) && !asked.contains(&"POST /v1/vms/0e/kill".into()));
}

#[test]
fn ls_shows_restarts_and_health_where_there_are_any() {
    let fake = Fake::new(|_| {
        let mut well = vm("well", None);
        (well["restarts"], well["health"]) = (json!(3), json!("healthy"));
        let mut hung = vm("hung", None);
        hung["health"] = json!({ "hung": "its worker does not answer\u{1b}[2J" });
        Answer::Json(200, json!([well, hung]))
    });
    let done = fake.place.run(&["ls"]);
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert!(lines[0].contains("RESTARTS") && lines[0].contains("HEALTH"), "{done:?}");
    assert!(lines[1].contains("  3  ") && lines[1].contains("healthy"), "{done:?}");
    assert!(lines[2].contains("hung: its worker does not answer\\u{1b}"), "{done:?}");
    let fake = Fake::new(|_| Answer::Json(200, json!([vm("a", None)])));
    assert!(!fake.place.run(&["ls"]).stdout.contains("HEALTH"));
}

#[test]
fn logs_into_a_pipe_are_the_bytes_as_they_are() {
    let bytes = b"\x1b[31mred\x00\xff\r\n".to_vec();
    let sent = bytes.clone();
    let fake = Fake::new(move |_| Answer::Bytes("vmsup-written: 99\r\nvmsup-overwritten: 90\r\n", sent.clone()));
    let output = fake.place.vmsup(&["logs", "a"]).output().unwrap();
    assert_eq!(output.stdout, bytes);
    assert_eq!(output.stderr, b"vmsup: the first 90 bytes of a's console are no longer kept\n");
}

#[test]
fn inspect_of_an_ended_vm_shows_how_it_ended() {
    let fake = Fake::new(|_| Answer::Json(200, vm("a", Some(("guest_crashed", "a triple fault\x07")))));
    let done = fake.place.run(&["inspect", "a"]);
    assert!(done.stdout.contains("crashed") && done.stdout.contains("a: a triple fault\\u{7}"), "{done:?}");
    let json: serde_json::Value = serde_json::from_str(&fake.place.run(&["inspect", "a", "--json"]).stdout).unwrap();
    assert_eq!((&json["name"], &json["jail"]), (&json!("a"), &json!(null)));
}

#[test]
fn inspect_never_shows_another_process_for_a_worker_that_has_gone() {
    let fake = Fake::new(|_| {
        let mut vm = vm("a", None);
        let pid = std::process::id();
        vm["worker"] = json!({ "pid": pid, "start_time": 1, "uid": 1, "slot": 0, "warm": true, "limits": "none" });
        Answer::Json(200, vm)
    });
    let json: serde_json::Value = serde_json::from_str(&fake.place.run(&["inspect", "a", "--json"]).stdout).unwrap();
    assert_eq!((&json["jail"], &json["jail_error"]), (&json!(null), &json!("its process has just ended")));
}

#[test]
fn an_unknown_vm_is_one_sentence() {
    let fake = Fake::new(|_| Answer::Json(404, error("not_found", "there is no VM a", None)));
    for args in [&["stop", "a"] as &[&str], &["console", "a"], &["logs", "a"], &["logs", "-f", "a"], &["inspect", "a"]]
    {
        assert_eq!(fake.place.run(args).is_one_sentence(1), "there is no VM a", "{args:?}");
    }
}

#[test]
fn a_supervisor_that_misbehaves_is_one_sentence() {
    for (answer, says) in [
        ((|| Answer::HangUp) as fn() -> Answer, "the supervisor went away"),
        (|| Answer::Bytes("", b"{]".to_vec()), "makes no sense"),
        (|| Answer::Json(200, json!({ "vms": 1 })), "makes no sense"),
        (|| Answer::Json(500, json!("oh")), "HTTP status 500"),
        (|| Answer::Json(200, error("internal", "x", None)), "makes no sense"),
    ] {
        let fake = Fake::new(move |_| answer());
        let done = fake.place.run(&["ls"]);
        let sentence = done.is_one_sentence(1);
        assert!(sentence.contains(says), "{sentence}");
    }
}

#[test]
fn a_socket_that_was_named_is_used_and_nothing_is_started_for_it() {
    let place = Place::new();
    let done = place.run(&["--socket", "other.sock", "ls"]);
    assert!(done.is_one_sentence(1).starts_with("other.sock: no supervisor answers; start one with"), "{done:?}");
    assert_eq!(place.leftovers(), Vec::<std::path::PathBuf>::new());
    let fake = Fake::new(|_| Answer::Json(200, json!([])));
    let socket = fake.place.path().join("run/vmsup/api.sock");
    let done = place.run(&["--socket", socket.to_str().unwrap(), "ls", "--json"]);
    assert_eq!((done.status, done.stdout.as_str()), (0, "[]\n"));
}

#[test]
fn best_effort_limits_that_are_not_held_are_noted() {
    for (limits, note) in [
        ("not held: no cgroup v2", "vmsup: the limits of web1 are not held: no cgroup v2\n"),
        ("held by a cgroup below /x", ""),
        ("none asked for", ""),
    ] {
        let fake = Fake::new(move |_| {
            let mut vm = vm("web1", None);
            vm["worker"] = json!({ "pid": 1, "start_time": 1, "uid": 1, "slot": 0, "warm": true, "limits": limits });
            Answer::Json(201, vm)
        });
        fake.place.file("vm.json", HELLO);
        let done = fake.place.run(&["start", "vm.json"]);
        assert_eq!((done.status, done.stderr.as_str()), (0, note), "{done:?}");
    }
}

#[test]
fn a_runtime_directory_that_is_not_there_is_named_with_what_to_do() {
    let place = Place::new();
    let none = place.path().join("none");
    let says =
        format!("{}: no such directory; make it, or set XDG_RUNTIME_DIR to a directory of your own", none.display());
    for args in [&["ls"] as &[&str], &["serve"]] {
        let done = support::Done::from(place.vmsup(args).env("XDG_RUNTIME_DIR", &none).output().unwrap());
        assert_eq!(done.is_one_sentence(1), says, "{args:?}");
    }
}

#[test]
fn a_socket_of_somebody_else_says_whose_it_must_be() {
    use std::os::unix::process::CommandExt;
    if !rustix::process::getuid().is_root() {
        // Only root can become somebody else, and nobody is shut out of a socket of their own by its directory alone.
        return;
    }
    let fake = Fake::new(|_| Answer::Json(200, json!([])));
    let socket = fake.place.path().join("run/vmsup/api.sock");
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    // The program may be where nobody else can reach it, so it is carried along.
    let program = fake.place.path().join("vmsup");
    // cp(1) has the file open for writing in no process that another test's fork could copy (ETXTBSY).
    let copied = std::process::Command::new("cp").arg(env!("CARGO_BIN_EXE_vmsup")).arg(&program).status();
    assert!(copied.unwrap().success());
    let output = std::process::Command::new(program)
        .args(["--socket", socket.to_str().unwrap(), "ls"])
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let done = support::Done::from(output);
    let says = "no permission to connect; run as the user whose supervisor it is, or name your own with --socket";
    assert_eq!(done.is_one_sentence(1), format!("{}: {says}", socket.display()));
}

#[test]
fn a_supervisor_that_cannot_be_started_says_why() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let dir = place.path().join("run/vmsup");
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    let done = place.run(&["ls"]);
    let sentence = done.is_one_sentence(1);
    assert!(sentence.starts_with(dir.to_str().unwrap()), "{sentence}");
}
