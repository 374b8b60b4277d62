//! What the program says of itself and of the host. None of it starts a supervisor.

mod support;

use support::{Answer, Fake, Place};

#[track_caller]
fn printed(args: &[&str]) -> String {
    let place = Place::new();
    let done = place.run(args);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{args:?}: {done:?}");
    assert_eq!(place.leftovers(), Vec::<std::path::PathBuf>::new(), "{args:?}");
    done.stdout
}

#[test]
fn vmsup_alone_prints_its_help_with_examples() {
    let help = printed(&[]);
    for part in ["Usage: vmsup", "Examples:", "doctor", "console", "--socket"] {
        assert!(help.contains(part), "{part} is missing:\n{help}");
    }
}

#[test]
fn the_help_of_serve_tells_how_to_choose_what_is_logged() {
    let help = Place::new().run(&["serve", "--help"]).stdout;
    assert!(help.contains("VMSUP_LOG") && help.contains("debug shows a line for each"), "{help}");
}

#[test]
fn every_command_has_help() {
    let commands =
        "start run ls inspect console logs stop kill rm wait net policy doctor serve schema version completions man";
    for command in commands.split(' ') {
        let help = printed(&[command, "--help"]);
        assert!(help.contains(&format!("Usage: vmsup {command}")), "{help}");
    }
    for command in ["ls", "leases", "stats"] {
        let help = printed(&["net", command, "--help"]);
        assert!(help.contains(&format!("Usage: vmsup net {command}")) && help.contains("Example"), "{help}");
    }
    for command in ["ls", "show", "check", "audit", "diff", "report", "trace"] {
        let help = printed(&["policy", command, "--help"]);
        assert!(help.contains(&format!("Usage: vmsup policy {command}")) && help.contains("Example"), "{help}");
    }
}

#[test]
fn the_schema_is_json_and_of_its_draft() {
    let schema: serde_json::Value = serde_json::from_str(&printed(&["schema"])).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(schema, vmsup::vmjson::schema::document());
}

#[test]
fn completions_know_the_commands_of_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = printed(&["completions", shell]);
        for word in ["vmsup", "inspect", "doctor", "leases"] {
            assert!(script.contains(word), "{word} for {shell}");
        }
    }
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let place = Place::new();
    let done = place.run(&["man", "pages/man1"]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""));
    for page in ["vmsup.1", "vmsup-run.1", "vmsup-inspect.1", "vmsup-doctor.1", "vmsup-net.1", "vmsup-net-stats.1"] {
        let text = std::fs::read_to_string(place.path().join("pages/man1").join(page)).unwrap();
        assert!(text.contains(".SH DESCRIPTION"), "{page}");
    }
    assert_eq!(place.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn the_version_is_told_without_a_supervisor() {
    assert_eq!(printed(&["version"]), format!("vmsup {}\nno supervisor runs\n", env!("CARGO_PKG_VERSION")));
    let json: serde_json::Value = serde_json::from_str(&printed(&["version", "--json"])).unwrap();
    assert_eq!(json, serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "supervisor": null }));
}

#[test]
fn doctor_checks_the_host_and_starts_nothing() {
    let place = Place::new();
    let done = place.run(&["doctor", "--json"]);
    let lines: Vec<serde_json::Value> = serde_json::from_str(&done.stdout).unwrap();
    let ids: Vec<&str> = lines.iter().map(|line| line["id"].as_str().unwrap()).collect();
    for id in [
        "kernel",
        "kvm",
        "user-namespaces",
        "subordinate-ids",
        "landlock",
        "seccomp",
        "cgroups",
        "cpu-vulnerabilities",
        "swap",
        "memory",
        "open-files",
        "programs",
        "supervisor",
        "systemd-units",
        "runtime-directory",
        "state-directory",
        "netd",
        "nft",
        "tun-device",
    ] {
        assert!(ids.contains(&id), "{id} is missing in {ids:?}");
    }
    for line in &lines {
        let text = |key: &str| line[key].as_str().unwrap().to_owned();
        let fine = line["state"] == "ok";
        assert!(!text("group").is_empty() && !text("found").is_empty(), "{line}");
        assert_eq!((text("why").is_empty(), text("mend").is_empty()), (fine, fine), "{line}");
        assert!(["ok", "warning", "failure", "unknown"].contains(&text("state").as_str()), "{line}");
    }
    let failed = lines.iter().any(|line| line["state"] == "failure");
    assert_eq!(done.status, i32::from(failed));
    assert_eq!(done.stderr, "");
    assert_eq!(place.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_closed_output_ends_a_command_quietly() {
    let place = Place::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let done = support::Done::from(place.vmsup(&["schema"]).stdout(writer).output().unwrap());
    assert_eq!((done.status, done.stderr.as_str()), (141, ""));
}

/// What `doctor` says of a supervisor that answers like this, by id.
fn doctor_of(script: impl Fn(&str) -> Answer + Send + Sync + 'static) -> impl Fn(&str) -> serde_json::Value {
    let fake = Fake::new(move |asked| script(&asked.what));
    let lines: Vec<serde_json::Value> = serde_json::from_str(&fake.place.run(&["doctor", "--json"]).stdout).unwrap();
    move |id| lines.iter().find(|line| line["id"] == id).cloned().unwrap()
}

fn good_version() -> serde_json::Value {
    let jailer = serde_json::json!({
        "pid": 8, "uids": "subordinate", "cgroup": "/sys/fs/cgroup/x", "cgroup_reason": null, "pool": 2
    });
    serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "pid": 7, "uid": 1000, "jailer": jailer })
}

#[test]
fn doctor_repeats_what_the_supervisor_says_of_itself_and_its_state() {
    const EVENTS: &str = concat!(
        r#"{"cursor":1,"at_ms":1,"kind":"state_trouble","cause":"no room"}"#,
        "\n",
        r#"{"cursor":2,"at_ms":2,"kind":"state_trouble","cause":"the disk is full"}"#,
        "\n",
    );
    let with = |trouble: u8| {
        doctor_of(move |asked| match asked {
            "GET /v1/version" => Answer::Json(200, good_version()),
            "GET /metrics" => Answer::Bytes("", format!("# HELP\nvmsup_state_trouble {trouble}\n").into_bytes()),
            _ => Answer::Lines(EVENTS),
        })
    };
    let well = with(0);
    for (id, found) in [("supervisor", "(pid 7, jailer 8)"), ("cgroups", "/sys/fs/cgroup/x"), ("state", "writes")] {
        let line = well(id);
        assert!(line["state"] == "ok" && line["found"].as_str().unwrap().contains(found), "{line}");
    }
    let line = with(1)("state");
    assert!(line["state"] == "warning" && line["found"].as_str().unwrap().ends_with("the disk is full"), "{line}");
}

#[test]
fn doctor_fails_at_a_supervisor_that_hangs_up_or_has_lost_its_jailer() {
    let line = doctor_of(|_| Answer::HangUp)("supervisor");
    assert_eq!(line["state"], "failure", "{line}");
    let line = doctor_of(|_| {
        let mut version = good_version();
        version["jailer"]["pid"] = serde_json::Value::Null;
        Answer::Json(200, version)
    });
    assert_eq!((&line("supervisor")["state"], &line("state")["state"]), (&"failure".into(), &"unknown".into()));
    assert!(line("supervisor")["mend"].as_str().unwrap().starts_with("kill 7 "), "{}", line("supervisor"));
    // No pid of a supervisor gets into a command.
    let line = doctor_of(|_| {
        let mut version = good_version();
        version["pid"] = (-1).into();
        version["version"] = "0.0.1".into();
        Answer::Json(200, version)
    })("supervisor");
    assert!(line["state"] == "failure" && !line["mend"].as_str().unwrap().contains("kill"), "{line}");
}
