//! What the program says of itself and of the host. None of it starts a supervisor.

mod support;

use support::Place;

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
        "start run ls inspect console logs stop kill rm wait net doctor serve schema version completions man";
    for command in commands.split(' ') {
        let help = printed(&[command, "--help"]);
        assert!(help.contains(&format!("Usage: vmsup {command}")), "{help}");
    }
    for command in ["ls", "leases", "stats"] {
        let help = printed(&["net", command, "--help"]);
        assert!(help.contains(&format!("Usage: vmsup net {command}")) && help.contains("Example"), "{help}");
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
    let report: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let names: Vec<&str> = checks.iter().map(|c| c["check"].as_str().unwrap()).collect();
    for name in [
        "kvm",
        "user namespaces",
        "subordinate ids",
        "landlock",
        "seccomp",
        "cgroups",
        "programs",
        "supervisor",
        "runtime directory",
        "memory",
        "netd",
        "nft",
        "tun device",
    ] {
        assert!(names.contains(&name), "{name} is missing in {names:?}");
    }
    for check in checks.iter().filter(|c| c["result"] != "ok") {
        assert!(!check["why"].as_str().unwrap().is_empty() && !check["fix"].as_str().unwrap().is_empty(), "{check}");
    }
    let failed = checks.iter().any(|c| c["result"] == "failure");
    assert_eq!((report["ok"].as_bool(), done.status), (Some(!failed), i32::from(failed)));
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
