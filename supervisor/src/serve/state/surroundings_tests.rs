//! What the state does on a disk that is full or read-only, and under the supervisor's filter: in a child of its own each, since
//! a mount and a filter are for a whole process.

use super::open::DATABASE;
use super::store_tests::{event, names, open, operation, put};
use super::{Change, Store};
use crate::api::types::Operation;
use crate::serve::testing::TempDir;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The folder that a child is to work in.
const CHILD: &str = "VMSUP_TEST_SURROUNDINGS";
/// What a child prints at its end.
const DONE: &str = "the child is done";

/// Where this is a child: its folder.
fn is_child() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

fn test(name: &str) -> String {
    format!("serve::state::surroundings_tests::{name}")
}

fn assert_done(output: &Output) {
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains(DONE), "{}: {said}{errors}", output.status);
}

/// Runs this test as a child on a small file system of its own, in namespaces that vanish with it.
fn on_a_small_disk(name: &str) {
    let temp = TempDir::new();
    let script = r#"mount -t tmpfs -o size=1m,mode=0700 tmpfs "$1" && exec "$2" --exact "$3" --nocapture"#;
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(temp.path())
        .arg(std::env::current_exe().unwrap())
        .arg(test(name))
        .env(CHILD, temp.path())
        .output()
        .unwrap();
    assert_done(&output);
}

/// Takes all the room that is left.
fn fill(dir: &Path) -> PathBuf {
    let path = dir.join("filler");
    let mut file = std::fs::File::create(&path).unwrap();
    for piece in [4096, 1] {
        while file.write_all(&vec![b'x'; piece]).is_ok() {}
    }
    path
}

/// Rows that need room.
fn many(from: u64) -> Vec<Change> {
    (from..from + 300).map(|n| put(n, &format!("vm{n}"))).collect()
}

#[tokio::test]
async fn a_full_disk_stops_no_supervisor_and_loses_nothing_once_there_is_room_again() {
    let Some(dir) = is_child() else {
        return on_a_small_disk("a_full_disk_stops_no_supervisor_and_loses_nothing_once_there_is_room_again");
    };
    let state = dir.join("state");
    let (store, _) = open(&state);
    store.write(vec![put(1, "a"), put(2, "b")]).await.unwrap();
    // While it runs.
    let filler = fill(&dir);
    let error = store.write(many(1000)).await.unwrap_err();
    assert!(error.to_string().contains("full"), "{error}");
    store.write(vec![put(3, "c")]).await.unwrap_err();
    assert_eq!(store.trouble().map(|trouble| trouble.contains("full")), Some(true));
    std::fs::remove_file(&filler).unwrap();
    store.write(vec![Change::Remove(2)]).await.unwrap();
    assert_eq!(store.trouble(), None);
    store.close();
    // When it starts.
    let filler = fill(&dir);
    let (store, loaded) = open(&state);
    assert_eq!(loaded.vms.len(), 302, "{:?}", loaded.trouble);
    store.write((1000..1300).map(Change::Remove).collect()).await.unwrap_or_else(|error| {
        assert!(error.to_string().contains("full"), "{error}");
    });
    std::fs::remove_file(&filler).unwrap();
    store.write(vec![put(4, "d")]).await.unwrap();
    assert_eq!(store.trouble(), None);
    store.close();
    assert_eq!(names(&open(&state).1), ["a", "c", "d"]);
    // When there is nothing yet.
    fill(&dir);
    let (store, loaded) = open(&dir.join("other"));
    let trouble = loaded.trouble.unwrap();
    assert!(trouble.contains("nothing is written"), "{trouble}");
    store.write(vec![put(1, "a")]).await.unwrap();
    assert_eq!(store.trouble(), Some(trouble));
    println!("{DONE}");
}

#[tokio::test]
async fn a_read_only_state_is_read_and_gone_on_with_in_memory() {
    let Some(dir) = is_child() else {
        return on_a_small_disk("a_read_only_state_is_read_and_gone_on_with_in_memory");
    };
    let state = dir.join("state");
    let (store, _) = open(&state);
    store.write(vec![put(1, "a"), put(2, "b"), Change::Event(event(7))]).await.unwrap();
    store.close();
    assert!(Command::new("mount").args(["-o", "remount,ro"]).arg(&dir).status().unwrap().success());
    let before = std::fs::read(state.join(DATABASE)).unwrap();
    let (store, loaded) = open(&state);
    // Also what is in the log alone.
    assert_eq!((names(&loaded), loaded.events.len()), (vec!["a", "b"], 1));
    let trouble = loaded.trouble.unwrap();
    assert!(trouble.contains(DATABASE) && trouble.contains("nothing is written"), "{trouble}");
    store.write(vec![put(3, "c")]).await.unwrap();
    assert_eq!(store.trouble(), Some(trouble));
    assert!(std::fs::read(state.join(DATABASE)).unwrap() == before);
    let (_, loaded) = open(&dir.join("not/there"));
    assert!(loaded.vms.is_empty() && loaded.trouble.is_some());
    println!("{DONE}");
}

#[tokio::test]
async fn the_supervisors_filter_allows_all_that_the_state_does_at_run_time() {
    let Some(dir) = is_child() else {
        let temp = TempDir::new();
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                &test("the_supervisors_filter_allows_all_that_the_state_does_at_run_time"),
                "--nocapture",
            ])
            .env(CHILD, temp.path())
            .output()
            .unwrap();
        assert_done(&output);
        let size = |name: &str| std::fs::metadata(temp.path().join("state").join(name)).unwrap().len();
        // The log was emptied, more than once.
        assert!(size(DATABASE) > 1 << 20, "{}", size(DATABASE));
        assert!(size("vmsup.db-wal") < 5 << 20, "{}", size("vmsup.db-wal"));
        let (_, loaded) = open(&temp.path().join("state"));
        assert_eq!((names(&loaded), &loaded.trouble), (vec!["a"], &None));
        return;
    };
    let state = dir.join("state");
    let (store, _) = open(&state);
    store.write(vec![put(1, "a")]).await.unwrap();
    store.close();
    let database = rusqlite::Connection::open(state.join(DATABASE)).unwrap();
    let full = "CREATE TRIGGER full BEFORE INSERT ON operations WHEN NEW.record LIKE '%no room%'
                BEGIN SELECT RAISE(ABORT, 'disk full'); END";
    database.execute_batch(full).unwrap();
    drop(database);
    let (store, _) = Store::open(&state).unwrap();
    store.keep_open();
    // This thread, and so those that it makes.
    nix::sys::prctl::set_no_new_privs().unwrap();
    policies::apply::seccomp(&policies::SUPERVISOR).unwrap();
    let mut events = 0;
    for round in 0..6 {
        for _ in 0..40 {
            let more = (0..100).map(|n| {
                let cause = "x".repeat(200);
                Change::Event(crate::api::types::Event { cause, ..event(events + n) })
            });
            store.write(more.collect()).await.unwrap();
            events += 100;
        }
        store.write(many(10)).await.unwrap();
        store.write((10..310).map(Change::Remove).collect()).await.unwrap();
        let room = |stage: &str| Change::Operation(Operation { stage: stage.into(), ..operation(round) });
        store.write(vec![put(1, "b"), room("no room")]).await.unwrap_err();
        store.write(vec![put(1, "a"), room("again")]).await.unwrap();
        store.settled().await;
    }
    println!("{DONE}");
    // As a supervisor ends: with the database open.
    std::process::exit(0);
}
