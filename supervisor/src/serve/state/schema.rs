//! The schema, and the way from each earlier one to it.
//!
//! A step is added for each change, and none is ever edited: databases of all earlier releases are out there. What is
//! queried is a column; a spec and the ends are JSON, which older releases wrote and this one reads. Nothing in it is about a
//! process: pids, sockets and leases are in handle files ([`crate::serve::handle`]).

use rusqlite::Connection;

/// What makes a database of version `n` one of version `n + 1`. The first makes an empty file version 1.
pub const STEPS: &[&str] = &[
    "
    CREATE TABLE vms (
        number INTEGER PRIMARY KEY,
        owner INTEGER NOT NULL,
        name TEXT NOT NULL,
        desired TEXT NOT NULL,
        generation INTEGER NOT NULL,
        spec_hash TEXT NOT NULL,
        source TEXT,
        remove_when_ended INTEGER NOT NULL,
        confirmed INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        restarts INTEGER NOT NULL,
        spec TEXT NOT NULL,
        ends TEXT NOT NULL
    ) STRICT;
    -- A name is its owner's VM that ran. One that is being made under the name of an ended one is not there to stay yet.
    CREATE UNIQUE INDEX vms_by_name ON vms (owner, name) WHERE confirmed = 1;
    CREATE TABLE events (cursor INTEGER PRIMARY KEY, record TEXT NOT NULL) STRICT;
    CREATE TABLE operations (number INTEGER PRIMARY KEY, running INTEGER NOT NULL, record TEXT NOT NULL) STRICT;
    -- Rows of vms that a release could not read, for people to look at.
    CREATE TABLE unreadable (at INTEGER NOT NULL, why TEXT NOT NULL, row TEXT NOT NULL) STRICT;
    CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
",
    // Which run the last end is of. Of older rows that is not known.
    "
    ALTER TABLE vms ADD COLUMN runs INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE vms ADD COLUMN over INTEGER NOT NULL DEFAULT 0;
",
    // Whether a stop is the first half of a start.
    "ALTER TABLE vms ADD COLUMN again INTEGER NOT NULL DEFAULT 0;",
];

/// The version that this release writes.
pub fn known(steps: &[&str]) -> i64 {
    steps.len() as i64
}

/// The version of a database; 0 for an empty file.
///
/// # Errors
/// It is no database, or cannot be read.
pub fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Brings a database that is not newer than this release up to date, each step whole or not at all.
///
/// # Errors
/// A step failed; the database has the version that it had before that step.
pub fn migrate(connection: &mut Connection, steps: &[&str]) -> rusqlite::Result<()> {
    let found = usize::try_from(version(connection)?).unwrap_or(usize::MAX);
    for (at, step) in steps.iter().enumerate().skip(found) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", at as i64 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a release that had this many steps wrote.
    const FIXTURES: &[&str] =
        &[include_str!("fixtures/v1.sql"), include_str!("fixtures/v2.sql"), include_str!("fixtures/v3.sql")];

    fn fixture(version: usize) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(FIXTURES[version - 1]).unwrap();
        connection
    }

    #[test]
    fn a_database_of_each_earlier_release_is_brought_up_to_date_with_all_that_is_in_it() {
        assert_eq!(FIXTURES.len(), STEPS.len(), "each version has a fixture that stays for ever");
        for number in 1..=FIXTURES.len() {
            let mut connection = fixture(number);
            assert_eq!(version(&connection).unwrap(), number as i64);
            migrate(&mut connection, STEPS).unwrap();
            assert_eq!(version(&connection).unwrap(), known(STEPS));
            let loaded = super::super::rows::load(&mut connection).unwrap();
            let names: Vec<&str> = loaded.vms.iter().map(|vm| vm.spec.name.as_str()).collect();
            assert_eq!((names, &loaded.trouble), (vec!["web1", "db"], &None));
            assert_eq!((loaded.events.len(), loaded.operations.len()), (2, 1));
            assert_eq!(loaded.vms[1].ends[0].reason, "the guest switched itself off");
        }
    }

    #[test]
    fn steps_are_done_once_each_in_order_and_a_failing_one_leaves_its_version() {
        let steps = [STEPS[0], "ALTER TABLE vms ADD COLUMN colour TEXT", "UPDATE vms SET colour = 'red'"];
        let mut connection = fixture(1);
        migrate(&mut connection, &steps).unwrap();
        migrate(&mut connection, &steps).unwrap();
        assert_eq!(version(&connection).unwrap(), 3);
        let red: i64 = connection.query_row("SELECT count(*) FROM vms WHERE colour = 'red'", [], |r| r.get(0)).unwrap();
        assert_eq!(red, 2);

        let steps = [STEPS[0], "ALTER TABLE vms ADD COLUMN colour TEXT", "DELETE FROM vms; SELECT nonsense"];
        let mut connection = fixture(1);
        migrate(&mut connection, &steps).unwrap_err();
        assert_eq!(version(&connection).unwrap(), 2);
        let rows: i64 = connection.query_row("SELECT count(*) FROM vms", [], |r| r.get(0)).unwrap();
        assert_eq!(rows, 2);
    }

    #[test]
    fn nothing_in_the_schema_is_about_a_process() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, STEPS).unwrap();
        let mut names: Vec<String> = Vec::new();
        let sql = "SELECT c.name FROM sqlite_schema AS t, pragma_table_info(t.name) AS c WHERE t.type = 'table'";
        let mut statement = connection.prepare(sql).unwrap();
        for name in statement.query_map([], |row| row.get(0)).unwrap() {
            names.push(name.unwrap());
        }
        let row = serde_json::to_value(super::super::store_tests::intent(7, "a")).unwrap();
        names.extend(row.as_object().unwrap().keys().cloned());
        assert!(names.len() > 30, "{names:?}");
        for momentary in ["pid", "pidfd", "fd", "tap", "lease", "socket", "slot", "cgroup", "start_time", "nets", "uid"]
        {
            assert!(!names.iter().any(|name| name == momentary), "{momentary} in {names:?}");
        }
    }
}
