//! What is loaded where what is there is damaged, doubled or too much.

use super::open::DATABASE;
use super::store_tests::{event, intent, names, open, operation, put, state};
use super::{Change, Intent, OPERATIONS_KEPT};
use crate::api::types::{Operation, OperationState};
use crate::serve::testing::TempDir;

#[tokio::test]
async fn a_corrupt_database_is_kept_aside_and_said_loudly() {
    let temp = TempDir::new();
    for damage in 0..5 {
        let (store, _) = open(&state(&temp));
        store.write((0..200).map(|n| put(n, &format!("vm{n}"))).collect()).await.unwrap();
        store.close();
        let path = state(&temp).join(DATABASE);
        // All of it in the database itself.
        assert!(rusqlite::Connection::open(&path).unwrap().execute("DELETE FROM facts", []).unwrap() > 0);
        let mut bytes = std::fs::read(&path).unwrap();
        let bytes = match damage {
            0 => b"no database at all, but long enough to have a header. ".repeat(20),
            1 => bytes[..bytes.len() / 2].to_vec(),
            2 => {
                let middle = bytes.len() / 2;
                bytes[4096..middle].fill(0x5a);
                bytes
            }
            // Right in form, and not ours.
            3 => {
                std::fs::remove_file(&path).unwrap();
                let other = rusqlite::Connection::open(&path).unwrap();
                other.execute_batch("CREATE TABLE vms (a); PRAGMA user_version = 1").unwrap();
                drop(other);
                std::fs::read(&path).unwrap()
            }
            _ => {
                bytes[..100].fill(0);
                bytes
            }
        };
        std::fs::write(&path, &bytes).unwrap();
        let (store, loaded) = open(&state(&temp));
        assert!(loaded.vms.is_empty(), "damage {damage}");
        let trouble = loaded.trouble.unwrap_or_else(|| panic!("damage {damage} is not told"));
        let kept = trouble.split(" is kept as ").nth(1).unwrap().split(' ').next().unwrap();
        let kept = std::fs::read(state(&temp).join(kept)).unwrap();
        // One that is right in form was opened, and its header says so.
        assert!(kept == bytes || damage == 3 && kept[100..] == bytes[100..], "damage {damage}: {trouble}");
        // The new one works, and nothing is wrong with it.
        assert_eq!(store.trouble(), None);
        store.write(vec![put(1, "new")]).await.unwrap();
        store.close();
        let (store, loaded) = open(&state(&temp));
        assert_eq!((names(&loaded), &loaded.trouble), (vec!["new"], &None));
        store.close();
    }
    let kept = std::fs::read_dir(state(&temp)).unwrap().flatten();
    let kept = kept.filter(|entry| entry.file_name().to_str().unwrap().contains("corrupt")).count();
    assert!((1..=6).contains(&kept), "{kept} files of at most 3 databases");
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_set_aside_and_the_others_are_there() {
    let temp = TempDir::new();
    let (store, _) = open(&state(&temp));
    store.write(vec![put(1, "a"), put(2, "b"), put(3, "c"), Change::Event(event(1))]).await.unwrap();
    store.close();
    let database = rusqlite::Connection::open(state(&temp).join(DATABASE)).unwrap();
    let newer = r#"{"name":"b","cpus":1,"memory_mib":32,"boot":{"builtin":"hello"},"of_the_future":true}"#;
    database.execute("UPDATE vms SET spec = ?1 WHERE number = 2", [newer]).unwrap();
    database.execute("INSERT INTO events VALUES (2, '{\"kind\":\"of_the_future\"}')", []).unwrap();
    drop(database);
    let (store, loaded) = open(&state(&temp));
    assert_eq!((names(&loaded), loaded.events.len()), (vec!["a", "c"], 1));
    assert!(loaded.trouble.unwrap().contains("of_the_future"));
    store.close();
    // Told once, and kept for good.
    let (store, loaded) = open(&state(&temp));
    assert_eq!((names(&loaded), &loaded.trouble), (vec!["a", "c"], &None));
    store.close();
    let database = rusqlite::Connection::open(state(&temp).join(DATABASE)).unwrap();
    let kept: String =
        database.query_row("SELECT json_extract(row, '$.spec') FROM unreadable", [], |r| r.get(0)).unwrap();
    assert_eq!(kept, newer);
}

#[tokio::test]
async fn a_name_is_that_of_the_vm_that_had_it_last_and_a_vm_that_never_ran_takes_it_from_nobody() {
    let temp = TempDir::new();
    let (store, _) = open(&state(&temp));
    store.write(vec![put(1, "a"), put(5, "other")]).await.unwrap();
    let unconfirmed = Intent { confirmed: false, ..intent(2, "a") };
    store.write(vec![Change::Put(Box::new(unconfirmed))]).await.unwrap();
    store.close();
    let (store, loaded) = open(&state(&temp));
    assert_eq!(names(&loaded), ["a", "a", "other"]);
    // In one write, whatever the order of their numbers.
    store.write(vec![put(2, "a"), Change::Remove(1)]).await.unwrap();
    store.write(vec![put(3, "a")]).await.unwrap();
    let elsewhere = Intent { owner: 7, ..intent(4, "a") };
    store.write(vec![Change::Put(Box::new(elsewhere))]).await.unwrap();
    store.close();
    let numbers: Vec<u64> = open(&state(&temp)).1.vms.iter().map(|vm| vm.number).collect();
    assert_eq!(numbers, [3, 4, 5]);
}

#[tokio::test]
async fn old_events_and_operations_go_but_none_that_is_under_way() {
    let temp = TempDir::new();
    let (store, _) = open(&state(&temp));
    let running = Operation { state: OperationState::Running, ..operation(1) };
    store.write(vec![Change::Operation(running.clone())]).await.unwrap();
    for n in 1..=6000 {
        let written = store.write(vec![Change::Event(event(n)), Change::Operation(operation(n / 10 + 2))]);
        if n % 100 == 0 {
            written.await.unwrap();
        }
    }
    store.close();
    let database = rusqlite::Connection::open(state(&temp).join(DATABASE)).unwrap();
    let rows: usize = database.query_row("SELECT count(*) FROM events", [], |row| row.get(0)).unwrap();
    assert!(rows < super::EVENTS_KEPT + 1000, "{rows}");
    drop(database);
    let (_, loaded) = open(&state(&temp));
    assert_eq!((loaded.events.len(), loaded.events.last().unwrap().cursor), (super::EVENTS_KEPT, 6000));
    assert_eq!(loaded.operations[0], running);
    assert_eq!(loaded.operations.len(), OPERATIONS_KEPT + 1);
    assert_eq!(loaded.operations.last().unwrap().id, 602);
}
