//! `vmsup policy ls`, `show` and `check`, as a program. No supervisor is needed, and none is started.

mod support;

use serde_json::Value;
use support::{Done, Place};

fn ask(args: &[&str]) -> Done {
    let args: Vec<&str> = ["policy"].iter().chain(args).copied().collect();
    Place::new().run(&args)
}

fn json(args: &[&str]) -> Value {
    let args: Vec<&str> = args.iter().chain(&["--json"]).copied().collect();
    serde_json::from_str(&ask(&args).stdout).unwrap()
}

#[test]
fn every_filter_is_listed_with_its_budget_and_the_hash_of_its_program() {
    for arch in ["x86_64", "aarch64"] {
        let listing = json(&["ls", "--arch", arch]);
        let rows = listing["filters"].as_array().unwrap();
        let names: Vec<&str> = rows.iter().map(|r| r["name"].as_str().unwrap()).collect();
        assert!(names.contains(&"worker/vcpu") && names.contains(&"jailer"), "{arch}: {names:?}");
        for row in rows.iter().filter(|r| !r["default"].is_null()) {
            assert_eq!(row["sha256"].as_str().unwrap().len(), 64, "{row}");
            assert_eq!(row["default"], "kill the process", "{row}");
            assert!(row["budget"].is_null() || row["calls"].as_u64() <= row["budget"].as_u64(), "{row}");
        }
    }
    let text = ask(&["ls"]).stdout;
    assert!(text.contains("worker/startup") && text.contains("calls of 32"), "{text}");
}

#[test]
fn a_thread_is_shown_with_its_conditions_and_reasons() {
    let vcpu = ask(&["show", "worker/vcpu", "--arch", "x86_64"]).stdout;
    for part in ["argument 1 == 0xae80 (KVM_RUN)", "runs the vCPU", "worker/startup is in force as well"] {
        assert!(vcpu.contains(part), "{part}: {vcpu}");
    }
    let netd = ask(&["show", "netd"]).stdout;
    for part in ["CAP_NET_ADMIN", "Landlock, ABI 2", "/dev/net/tun", "table bridge vmsup", "nofile 1024"] {
        assert!(netd.contains(part), "{part}: {netd}");
    }
    let worker = ask(&["show", "worker"]).stdout;
    assert!(worker.contains("worker/io:") && worker.contains("3  control socket"), "{worker}");
    assert!(ask(&["show", "jailer"]).stdout.contains("No filter. A filter on the jailer"));
    assert_eq!(json(&["show", "worker/vcpu"])["filters"][0]["name"], "worker-vcpu");
}

#[test]
fn a_call_is_allowed_by_the_program_and_explained_by_the_file() {
    let run = ask(&["check", "worker/vcpu", "ioctl", "0", "0xae80"]);
    assert_eq!((run.status, run.stdout.lines().next()), (0, Some("allowed: ioctl(0x0, 0xae80)")));
    assert!(run.stdout.contains("worker-vcpu.json:") && run.stdout.contains("worker-startup.json:"), "{}", run.stdout);
    let vm = ask(&["check", "worker/vcpu", "ioctl", "0", "0xae01"]);
    assert_eq!((vm.status, vm.stdout.lines().next()), (1, Some("denied: ioctl(0x0, 0xae01)")));
    // What start-up allows, the thread does not.
    assert!(vm.stdout.contains("worker/startup: allow") && vm.stdout.contains("worker/vcpu: kill the process"));
    // The other way round: its own filter has no say where the one below denies.
    assert_eq!(ask(&["check", "worker/reactor", "openat"]).status, 1);
    assert_eq!(json(&["check", "netd", "openat", "-100"])["args"][0], u64::MAX - 99);
    let all = ask(&["check", "worker/reactor", "--all"]);
    assert_eq!(all.status, 0);
    assert!(all.stdout.lines().count() > 300 && all.stdout.contains("MAP_ANONYMOUS"), "{}", all.stdout);
}

#[test]
fn a_set_on_disk_is_asked_instead_and_a_wrong_one_is_refused_with_its_place() {
    let place = Place::new();
    let folder = place.path().join("set/seccomp/x86_64");
    std::fs::create_dir_all(&folder).unwrap();
    let write = |text: &str| std::fs::write(folder.join("netd.json"), text).unwrap();
    write(
        "{\"netd\": {\"mismatch_action\": \"kill_process\", \"match_action\": \"allow\", \"filter\": [\n {\"syscall\": \"ptrace\", \"comment\": \"a reason that is one\"}]}}",
    );
    let dir = place.path().join("set").display().to_string();
    let check = |call: &str| place.run(&["policy", "check", "netd", call, "--dir", &dir, "--arch", "x86_64"]);
    assert_eq!(check("ptrace").status, 0);
    assert_eq!(check("read").status, 1);
    write(
        "{\"netd\": {\"mismatch_action\": \"kill_process\", \"match_action\": \"allow\", \"filter\": [\n {\"syscall\": \"ptraze\", \"comment\": \"a reason that is one\"}]}}",
    );
    let wrong = check("read");
    assert_eq!(wrong.status, 2);
    assert!(wrong.stderr.contains("netd.json:2:") && wrong.stderr.contains("ptraze"), "{}", wrong.stderr);
}

#[test]
fn a_name_that_does_not_exist_is_refused_with_the_nearest_one() {
    for (args, wanted) in [
        (&["show", "wrker/vcpu"][..], "did you mean worker/vcpu?"),
        (&["check", "netd", "opnat"], "did you mean openat?"),
        (&["check", "worker", "read"], "name one: worker/control"),
        (&["check", "jailer", "read"], "has no filter"),
        (&["check", "netd", "read", "0xx"], "a number of 64 bits"),
        (&["ls", "--arch", "riscv64"], "x86_64 and aarch64"),
        (&["ls", "--dir", "/nowhere"], "/nowhere"),
    ] {
        let said = ask(args);
        assert_eq!(said.status, 2, "{args:?}: {}", said.stdout);
        assert!(said.stderr.contains(wanted), "{args:?}: {}", said.stderr);
    }
}

#[test]
fn the_shipped_set_has_no_finding_that_is_not_explained() {
    let done = ask(&["audit"]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{}", done.stdout);
    assert!(done.stdout.contains("explained: ") && done.stdout.contains("Findings: 0 high, 0 medium, 0 low"));
    let sarif: Value = serde_json::from_str(&ask(&["audit", "--sarif"]).stdout).unwrap();
    assert_eq!(sarif["version"], "2.1.0");
    assert!(json(&["audit"]).as_array().is_some_and(|all| !all.is_empty()));
}

#[test]
fn a_foreign_set_is_audited_shown_and_checked_and_an_unknown_construct_refused_by_name() {
    let place = Place::new();
    let text = r#"{
  "vcpu": {"default_action": "trap", "filter_action": "allow", "filter": [
    {"syscall": "ioctl", "args": [{"index": 1, "type": "dword", "op": "eq", "val": 44672, "comment": "KVM_RUN"}]},
    {"syscall": "ptrace"},
    {"syscall": "exit", "comment": "the end of the thread"}
  ]}
}"#;
    let file = place.file("foreign.json", text).display().to_string();
    let policy = |args: &[&str]| {
        let foreign = ["--foreign", &file, "--arch", "x86_64"];
        place.run(&["policy"].iter().chain(args).chain(&foreign).copied().collect::<Vec<_>>())
    };
    let audit = policy(&["audit"]);
    assert_eq!(audit.status, 1, "{}", audit.stderr);
    assert!(audit.stdout.contains("ptrace") && audit.stdout.contains("foreign.json:4"), "{}", audit.stdout);
    assert_eq!(policy(&["check", "vcpu", "ioctl", "0", "44672"]).status, 0);
    assert_eq!(policy(&["check", "vcpu", "ioctl", "0", "44673"]).status, 1);
    assert!(policy(&["ls"]).stdout.contains("SIGSYS"));
    place.file("foreign.json", text.replace("\"eq\"", "\"one_of\""));
    let refused = policy(&["audit"]);
    assert_eq!(refused.status, 2);
    assert!(refused.stderr.contains("foreign.json:3") && refused.stderr.contains("one_of"), "{}", refused.stderr);
}
