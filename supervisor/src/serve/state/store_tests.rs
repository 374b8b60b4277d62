//! What the state survives, and what it says where it does not.

use super::open::DATABASE;
use super::{Change, Intent, Loaded, StateError, Store, hash};
use crate::api::types::{Desired, End, EndKind, Event, EventKind, Operation, OperationKind, OperationState};
use crate::serve::testing::{TempDir, spec};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A row.
pub fn intent(number: u64, name: &str) -> Intent {
    let spec = spec(name);
    Intent {
        number,
        owner: 1000,
        spec_hash: hash::of(&spec),
        spec,
        generation: 1,
        desired: Desired::Running,
        source: None,
        remove_when_ended: false,
        confirmed: true,
        created_at: 1_700_000_000,
        restarts: 0,
        ends: Vec::new(),
        runs: 0,
        over: 0,
        again: false,
    }
}

/// An event.
pub fn event(cursor: u64) -> Event {
    let cause = format!("cause {cursor}");
    Event { cursor, at_ms: cursor, kind: EventKind::Started, vm: None, id: None, owner: Some(1000), cause }
}

/// An operation that is over.
pub fn operation(id: u64) -> Operation {
    Operation {
        id,
        kind: OperationKind::Create,
        vm: "a".into(),
        owner: 1000,
        state: OperationState::Done,
        stage: "guest".into(),
        percent: None,
        begun_at_ms: 1,
        ended_at_ms: Some(2),
        error: None,
    }
}

pub(super) fn open(dir: &Path) -> (Store, Loaded) {
    Store::open(dir).unwrap()
}

pub(super) fn state(temp: &TempDir) -> PathBuf {
    temp.path().join("state")
}

pub(super) fn names(loaded: &Loaded) -> Vec<&str> {
    loaded.vms.iter().map(|vm| vm.spec.name.as_str()).collect()
}

pub(super) fn put(number: u64, name: &str) -> Change {
    Change::Put(Box::new(intent(number, name)))
}

/// A generator of its own for each seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}

/// What should be in the database.
#[derive(Debug, Default, Clone, PartialEq)]
struct Model {
    rows: BTreeMap<u64, Intent>,
    events: Vec<Event>,
    operations: BTreeMap<u64, Operation>,
}

impl Model {
    fn add(&mut self, change: &Change) {
        match change.clone() {
            Change::Put(intent) => drop(self.rows.insert(intent.number, *intent)),
            Change::Remove(number) => drop(self.rows.remove(&number)),
            Change::Event(event) => self.events.push(event),
            Change::Operation(operation) => drop(self.operations.insert(operation.id, operation)),
        }
    }

    fn of(loaded: Loaded) -> Model {
        assert_eq!(loaded.trouble, None);
        Model {
            rows: loaded.vms.into_iter().map(|vm| (vm.number, vm)).collect(),
            events: loaded.events,
            operations: loaded.operations.into_iter().map(|op| (op.id, op)).collect(),
        }
    }
}

/// The `n`th change of a sequence, any of the four kinds.
fn change(random: &mut Random, n: u64) -> Change {
    match random.below(8) {
        0..=2 => {
            let number = u64::MAX - random.below(6);
            let mut row = intent(number, &format!("vm{number:x}"));
            row.generation = n;
            row.confirmed = random.below(2) == 0;
            row.desired = if random.below(2) == 0 { Desired::Running } else { Desired::Stopped };
            row.source = (random.below(2) == 0).then(|| "dir".to_owned());
            row.restarts = u32::MAX - random.below(3) as u32;
            for _ in 0..random.below(3) {
                row.ended(End { kind: EndKind::GuestCrashed, reason: "triple \"fault\" \u{1b}".into(), at: n });
            }
            Change::Put(Box::new(row))
        }
        3 => Change::Remove(u64::MAX - random.below(6)),
        4..=5 => Change::Event(event(n)),
        _ => Change::Operation(Operation { stage: n.to_string(), ..operation(random.below(9)) }),
    }
}

#[tokio::test]
async fn whatever_is_written_is_what_is_read_also_by_who_comes_after_a_kill() {
    for seed in 1..=12 {
        let temp = TempDir::new();
        let mut random = Random(seed);
        let mut model = Model::default();
        let (mut store, _) = open(&state(&temp));
        for n in 1..=120 {
            let changes: Vec<Change> = (0..1 + random.below(3)).map(|more| change(&mut random, n * 4 + more)).collect();
            changes.iter().for_each(|change| model.add(change));
            let written = store.write(changes);
            match random.below(20) {
                0 => {
                    store.close();
                    let (again, loaded) = open(&state(&temp));
                    assert_eq!(Model::of(loaded), model, "seed {seed}, step {n}");
                    store = again;
                }
                1 => {
                    // What a supervisor that is killed now leaves: the files as they are.
                    written.await.unwrap();
                    let copy = temp.path().join(format!("copy{n}"));
                    std::fs::create_dir(&copy).unwrap();
                    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o700)).unwrap();
                    for name in [DATABASE, "vmsup.db-wal"] {
                        std::fs::copy(state(&temp).join(name), copy.join(name)).unwrap();
                    }
                    assert_eq!(Model::of(open(&copy).1), model, "seed {seed}, step {n}");
                }
                2..=9 => written.await.unwrap(),
                _ => drop(written),
            }
        }
    }
}

const CHILD: &str = "VMSUP_TEST_STATE_OF_A_CHILD";

/// The `n`th event and the row that goes with it, in one write.
fn numbered(n: u64) -> Vec<Change> {
    let row = Intent { generation: n, ..intent(n % 5, &format!("vm{}", n % 5)) };
    vec![Change::Event(event(n)), Change::Put(Box::new(row))]
}

#[tokio::test]
async fn a_store_that_is_killed_has_what_it_said_was_written_and_nothing_out_of_order() {
    if let Some(dir) = std::env::var_os(CHILD) {
        // The child: writes on and on, and says so, until it is killed.
        let (store, loaded) = open(Path::new(&dir));
        let first = loaded.events.last().map_or(0, |event| event.cursor);
        for n in first + 1.. {
            let written = store.write(numbered(n));
            if n % 3 == 0 {
                written.await.unwrap();
                // Past the test harness, which would keep it.
                let mut stderr = std::io::stderr().lock();
                writeln!(stderr, "acknowledged {n}").unwrap();
            }
        }
    }
    let temp = TempDir::new();
    let mut random = Random(7);
    let mut last = 0;
    for round in 0..6 {
        let name =
            "serve::state::store_tests::a_store_that_is_killed_has_what_it_said_was_written_and_nothing_out_of_order";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, state(&temp))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let mut acknowledged = 0;
        let mut read = |line: String| {
            if let Some(n) = line.strip_prefix("acknowledged ") {
                acknowledged = n.parse().unwrap();
            }
        };
        for _ in 0..1 + random.below(200) {
            read(lines.next().unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        lines.for_each(&mut read);
        assert!(acknowledged > last, "round {round}");
        let (store, loaded) = open(&state(&temp));
        assert_eq!(loaded.trouble, None);
        last = loaded.events.last().unwrap().cursor;
        assert!(last >= acknowledged, "round {round}: {last} is kept and {acknowledged} was said to be");
        let cursors: Vec<u64> = loaded.events.iter().map(|event| event.cursor).collect();
        assert!(cursors.windows(2).all(|pair| pair[1] == pair[0] + 1), "round {round}: {cursors:?}");
        for vm in &loaded.vms {
            let should = (last - 4..=last).find(|n| n % 5 == vm.number).unwrap();
            assert_eq!(vm.generation, should, "round {round}: a row goes with its event, {last}");
        }
        store.close();
    }
}

#[tokio::test]
async fn a_second_supervisor_on_one_state_directory_refuses() {
    let temp = TempDir::new();
    let (first, _) = open(&state(&temp));
    let error = Store::open(&state(&temp)).unwrap_err();
    assert!(matches!(error, StateError::Locked(_)), "{error}");
    first.close();
    drop(open(&state(&temp)));
}

#[test]
fn the_state_is_its_users_alone() {
    let temp = TempDir::new();
    let dir = temp.path().join("not/there/yet");
    drop(open(&dir));
    for path in [temp.path().join("not"), dir.clone(), dir.join(DATABASE), dir.join("vmsup.db-wal"), dir.join("lock")] {
        let mode = std::fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
    }
    let link = temp.path().join("link");
    std::os::unix::fs::symlink(&dir, &link).unwrap();
    let error = Store::open(&link).unwrap_err();
    assert!(error.to_string().contains("is no directory"), "{error}");
    let linked = temp.path().join("linked");
    std::fs::create_dir(&linked).unwrap();
    std::fs::set_permissions(&linked, std::fs::Permissions::from_mode(0o750)).unwrap();
    let error = Store::open(&linked).unwrap_err();
    assert!(error.to_string().contains("mode 750"), "{error}");
    std::fs::set_permissions(&linked, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink(dir.join(DATABASE), linked.join(DATABASE)).unwrap();
    let error = Store::open(&linked).unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_its_file_left_as_it_is() {
    let temp = TempDir::new();
    let (store, _) = open(&state(&temp));
    store.write(vec![put(1, "a")]).await.unwrap();
    store.close();
    let path = state(&temp).join(DATABASE);
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    let before = std::fs::read(&path).unwrap();
    let error = Store::open(&state(&temp)).unwrap_err();
    assert!(matches!(error, StateError::Newer { found: 99, known: 3, .. }), "{error}");
    assert!(error.to_string().contains("newer release"), "{error}");
    assert!(std::fs::read(&path).unwrap() == before);
}

#[tokio::test]
async fn what_the_disk_does_not_take_is_kept_and_written_when_it_does_again() {
    let temp = TempDir::new();
    let (store, _) = open(&state(&temp));
    store.write(vec![put(1, "a"), put(2, "b")]).await.unwrap();
    store.close();
    // The last thing that a transaction writes fails, as long as it says so.
    let database = rusqlite::Connection::open(state(&temp).join(DATABASE)).unwrap();
    let full = "CREATE TRIGGER full BEFORE INSERT ON operations WHEN NEW.record LIKE '%no room%'
                BEGIN SELECT RAISE(ABORT, 'disk full'); END";
    database.execute_batch(full).unwrap();
    drop(database);
    let (store, _) = open(&state(&temp));
    let room = |stage: &str| Change::Operation(Operation { stage: stage.into(), ..operation(1) });
    let error = store.write(vec![put(1, "changed"), Change::Remove(2), room("no room")]).await.unwrap_err();
    assert!(error.to_string().contains("cannot be written (disk full)"), "{error}");
    assert_eq!(store.trouble(), Some(error.to_string()));
    store.write(vec![put(1, "last"), put(3, "c"), Change::Event(event(9))]).await.unwrap_err();
    store.write(vec![Change::Event(event(10)), room("again")]).await.unwrap();
    assert_eq!(store.trouble(), None);
    store.close();
    let (_, loaded) = open(&state(&temp));
    assert_eq!(names(&loaded), ["last", "c"]);
    assert_eq!(loaded.events.iter().map(|e| e.cursor).collect::<Vec<_>>(), [9, 10]);
}

#[tokio::test]
async fn settled_means_written_and_synced() {
    let temp = TempDir::new();
    let (store, _) = open(&state(&temp));
    // Nothing was written: there is no thread to ask.
    store.settled().await;
    for n in 0..50 {
        drop(store.write(vec![put(n, &n.to_string())]));
    }
    store.settled().await;
    assert_eq!(store.unsynced(), 0);
    store.close();
    assert_eq!(open(&state(&temp)).1.vms.len(), 50);
}

#[tokio::test]
async fn what_only_tells_of_what_was_is_written_with_the_next_row_and_without_one_by_itself() {
    let temp = TempDir::new();
    let (store, _) = open(&state(&temp));
    store.settled().await;
    // In one transaction with the row: nobody else has woken the writer when this is told.
    let before = store.commits();
    (1..=20).for_each(|cursor| store.queue(Change::Event(event(cursor))));
    store.queue(Change::Operation(operation(1)));
    store.write(vec![put(1, "a")]).await.unwrap();
    assert!(store.commits() <= before + 2, "{} after {before}", store.commits());
    let before = store.commits();
    store.queue(Change::Event(event(21)));
    // Nobody asks for anything.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while store.commits() == before || store.unsynced() > 0 {
        assert!(std::time::Instant::now() < deadline, "it waits for ever");
        tokio::task::yield_now().await;
    }
    store.close();
    let (_, loaded) = open(&state(&temp));
    assert_eq!((loaded.events.len(), loaded.operations.len(), loaded.vms.len()), (21, 1, 1));
}
