//! Rows to values and back.

use super::pending::Pending;
use super::{EVENTS_KEPT, Intent, Loaded, OPERATIONS_KEPT};
use crate::api::types::{Desired, OperationState};
use rusqlite::{Connection, Row, Transaction, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;

/// How many more events than are kept may be there before the oldest are deleted: together, not one with each new one.
const EVENTS_SLACK: usize = 512;

/// All that is kept. A row of `vms` that cannot be read is set aside, and said.
///
/// # Errors
/// The database cannot be read.
pub fn load(connection: &mut Connection) -> rusqlite::Result<Loaded> {
    let (vms, unreadable) = vms(connection)?;
    let trouble = set_aside(connection, &unreadable)?;
    let newest = "SELECT record FROM events ORDER BY cursor DESC LIMIT ?1";
    let events = records(connection, newest, EVENTS_KEPT)?.into();
    let newest = "SELECT record FROM operations ORDER BY number DESC LIMIT ?1";
    let operations = records(connection, newest, usize::MAX >> 1)?.into();
    Ok(Loaded { vms, events, operations, trouble })
}

/// A row that cannot be read: its number, and why.
type Unreadable = (i64, String);

fn vms(connection: &Connection) -> rusqlite::Result<(Vec<Intent>, Vec<Unreadable>)> {
    let mut statement = connection.prepare("SELECT * FROM vms ORDER BY created_at, number")?;
    let mut rows = statement.query([])?;
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    while let Some(row) = rows.next()? {
        match intent(row) {
            Ok(intent) => good.push(intent),
            Err(why) => bad.push((row.get("number")?, why)),
        }
    }
    Ok((good, bad))
}

fn intent(row: &Row<'_>) -> Result<Intent, String> {
    fn column<T: rusqlite::types::FromSql>(row: &Row<'_>, name: &'static str) -> Result<T, String> {
        row.get(name).map_err(|e| format!("{name}: {e}"))
    }
    fn json<T: DeserializeOwned>(row: &Row<'_>, name: &'static str) -> Result<T, String> {
        serde_json::from_str(&column::<String>(row, name)?).map_err(|e| format!("{name}: {e}"))
    }
    let number = |name| column::<i64>(row, name).map(i64::cast_unsigned);
    let intent = Intent {
        number: number("number")?,
        owner: column(row, "owner")?,
        spec: json(row, "spec")?,
        spec_hash: column(row, "spec_hash")?,
        generation: number("generation")?,
        desired: match column::<String>(row, "desired")?.as_str() {
            "running" => Desired::Running,
            "stopped" => Desired::Stopped,
            other => return Err(format!("desired: {other}")),
        },
        source: column(row, "source")?,
        remove_when_ended: column(row, "remove_when_ended")?,
        confirmed: column(row, "confirmed")?,
        created_at: number("created_at")?,
        restarts: column(row, "restarts")?,
        ends: json(row, "ends")?,
        runs: number("runs")?,
        over: number("over")?,
        again: column(row, "again")?,
    };
    match column::<String>(row, "name")? {
        name if name == intent.spec.name => Ok(intent),
        name => Err(format!("name: {name}, and {} in its spec", intent.spec.name)),
    }
}

/// Moves rows that cannot be read out of the way, as they are.
fn set_aside(connection: &mut Connection, rows: &[Unreadable]) -> rusqlite::Result<Option<String>> {
    let Some((_, first)) = rows.first() else { return Ok(None) };
    let transaction = connection.transaction()?;
    for (number, why) in rows {
        transaction.execute(
            "INSERT INTO unreadable SELECT unixepoch(), ?2, json_object('number', number, 'owner', owner, 'name', name,
                'desired', desired, 'generation', generation, 'spec_hash', spec_hash, 'source', source,
                'remove_when_ended', remove_when_ended, 'confirmed', confirmed, 'created_at', created_at,
                'restarts', restarts, 'spec', spec, 'ends', ends, 'runs', runs, 'over', over,
                'again', again) FROM vms WHERE number = ?1",
            params![number, why],
        )?;
        transaction.execute("DELETE FROM vms WHERE number = ?1", [number])?;
    }
    transaction.commit()?;
    let count = rows.len();
    Ok(Some(format!(
        "{count} VMs could not be read and were set aside (table unreadable in the database); the first: {first}"
    )))
}

/// Records, oldest first. What a newer release wrote in a form of its own is passed over: they only tell what was.
fn records<T: DeserializeOwned>(connection: &Connection, newest: &str, most: usize) -> rusqlite::Result<VecDeque<T>> {
    let mut statement = connection.prepare(newest)?;
    let mut rows = statement.query([most as i64])?;
    let mut all = VecDeque::new();
    while let Some(row) = rows.next()? {
        if let Ok(record) = serde_json::from_str(row.get_ref(0)?.as_str()?) {
            all.push_front(record);
        }
    }
    Ok(all)
}

/// Makes these changes; `events` is how many there were, and says how many there are.
///
/// # Errors
/// Whatever it is, the transaction is not to be committed.
pub fn apply(transaction: &Transaction<'_>, changes: &Pending, events: &mut usize) -> rusqlite::Result<()> {
    // First what goes: a name may belong to another row from now on.
    let mut remove = transaction.prepare_cached("DELETE FROM vms WHERE number = ?1")?;
    for number in changes.rows.iter().filter(|(_, row)| row.is_none()).map(|(number, _)| number) {
        remove.execute([number.cast_signed()])?;
    }
    for intent in changes.rows.values().flatten() {
        put(transaction, intent)?;
    }
    let mut insert = transaction.prepare_cached("INSERT OR REPLACE INTO events VALUES (?1, ?2)")?;
    for event in &changes.events {
        insert.execute(params![event.cursor.cast_signed(), json(event)])?;
    }
    let mut insert = transaction.prepare_cached("INSERT OR REPLACE INTO operations VALUES (?1, ?2, ?3)")?;
    for operation in changes.operations.values() {
        let running = operation.state == OperationState::Running;
        insert.execute(params![operation.id.cast_signed(), running, json(operation)])?;
    }
    *events += changes.events.len();
    if *events > EVENTS_KEPT + EVENTS_SLACK {
        let oldest = "DELETE FROM events WHERE cursor IN (SELECT cursor FROM events ORDER BY cursor LIMIT ?1)";
        *events -= transaction.execute(oldest, [(*events - EVENTS_KEPT) as i64])?;
    }
    if !changes.operations.is_empty() {
        let mut oldest = transaction.prepare_cached(
            "DELETE FROM operations WHERE running = 0 AND number <
                (SELECT number FROM operations ORDER BY number DESC LIMIT 1 OFFSET ?1)",
        )?;
        oldest.execute([OPERATIONS_KEPT as i64 - 1])?;
    }
    Ok(())
}

/// A row, new or instead of the one with its number; a confirmed VM's name is its own from now on.
fn put(transaction: &Transaction<'_>, intent: &Intent) -> rusqlite::Result<()> {
    let mut put = transaction.prepare_cached(
        "INSERT OR REPLACE INTO vms (number, owner, name, desired, generation, spec_hash, source, remove_when_ended,
            confirmed, created_at, restarts, spec, ends, runs, over, again)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
    )?;
    let desired = match intent.desired {
        Desired::Running => "running",
        Desired::Stopped => "stopped",
    };
    put.execute(params![
        intent.number.cast_signed(),
        intent.owner,
        intent.spec.name,
        desired,
        intent.generation.cast_signed(),
        intent.spec_hash,
        intent.source,
        intent.remove_when_ended,
        intent.confirmed,
        intent.created_at.cast_signed(),
        intent.restarts,
        json(&intent.spec),
        json(&intent.ends),
        intent.runs.cast_signed(),
        intent.over.cast_signed(),
        intent.again,
    ])?;
    Ok(())
}

/// There is nothing in these types that JSON cannot say.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
