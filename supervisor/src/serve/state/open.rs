//! Opening the database: whose it is, what state it is in, what can be done where it is not good.
//!
//! Runs in the supervisor before it confines itself. The directory belongs to this user alone or is refused, like the runtime
//! directory. Whoever holds the lock in it has the state; SQLite's own locks are for people who look with other tools.

use super::writer::{self, Writer};
use super::{Loaded, StateError, rows, schema};
use crate::serve::ServeError;
use crate::serve::rundir::own_dir;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::fs::{DirBuilder, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The database, in the state directory.
pub const DATABASE: &str = "vmsup.db";
/// Its write-ahead log, beside it.
const LOG: &str = "vmsup.db-wal";
/// Whoever holds the lock on this file has the state.
const LOCK: &str = "lock";
/// How long a predecessor that ends may hold it: the kernel closes the fds of a process one after the other, and that of the
/// runtime directory's lock, by which its end was seen, may have been the first.
const LEAVING: Duration = Duration::from_secs(2);
/// A database that was corrupt, and when that was found.
const CORRUPT: &str = "vmsup.db.corrupt-";
/// How many of these are kept.
const CORRUPT_KEPT: usize = 3;
/// Pages of the database that are kept in memory, KiB.
const CACHE_KIB: i64 = 256;
/// The log is emptied in quiet moments; where there are none, at this many pages.
const LOG_PAGES: i64 = 4096;

/// Why a database could not be opened as it should.
#[derive(Debug)]
enum Obstacle {
    /// There is nothing that a supervisor should do about it.
    Fatal(StateError),
    /// It is damaged.
    Corrupt(String),
    /// It cannot be written: disk full, read-only, no permission, I/O errors.
    Unwritable(String),
}

impl Obstacle {
    /// What SQLite says of the database at `path`.
    fn of(path: &Path, error: &rusqlite::Error) -> Obstacle {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Obstacle::Corrupt(error.to_string()),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                let why = "another program has it open; close that first, or name another --state-dir";
                Obstacle::Fatal(StateError::unusable(path, why))
            }
            // A table or a column that should be there is not, or holds something else.
            Some(ErrorCode::Unknown) | None => Obstacle::Corrupt(error.to_string()),
            _ => Obstacle::Unwritable(error.to_string()),
        }
    }

    fn unwritable(what: &str) -> impl FnOnce(Errno) -> Obstacle {
        move |errno| Obstacle::Unwritable(format!("{what}: {}", std::io::Error::from(errno)))
    }
}

/// Opens what is in `dir`, or the best that can be had of it; says what is wrong with it for as long as this process lives.
///
/// # Errors
/// See [`super::Store::open`].
pub fn open(dir: &Path) -> Result<(Writer, Loaded, Option<String>), StateError> {
    let path = dir.join(DATABASE);
    match open_writable(dir, &path) {
        Ok((writer, loaded)) => Ok((writer, loaded, None)),
        Err(Obstacle::Fatal(error)) => Err(error),
        Err(Obstacle::Corrupt(why) | Obstacle::Unwritable(why)) => {
            let (writer, mut loaded) = copy_in_memory(&path)?;
            let trouble = format!(
                "{}: {why}. What was written there before is known, but nothing is written: VMs that are made, changed or \
                 removed now are forgotten when this supervisor ends (those that run then are found again). Mend it, then \
                 restart the supervisor",
                path.display()
            );
            loaded.trouble = Some(trouble.clone());
            Ok((writer, loaded, Some(trouble)))
        }
    }
}

fn open_writable(dir: &Path, path: &Path) -> Result<(Writer, Loaded), Obstacle> {
    let folder = folder(dir)?;
    let lock = lock(&folder, dir)?;
    match open_database(&folder, path) {
        Ok((mut writer, loaded)) => {
            writer.lock = Some(lock);
            Ok((writer, loaded))
        }
        Err(Obstacle::Corrupt(why)) => {
            let kept = keep_aside(&folder)?;
            let (mut writer, mut loaded) = open_database(&folder, path)?;
            writer.lock = Some(lock);
            loaded.trouble = Some(format!(
                "{} was corrupt ({why}) and is kept as {kept} beside a new one. VMs that run are found again; those that did not \
                 run, events and operations are not known any more",
                path.display()
            ));
            Ok((writer, loaded))
        }
        Err(other) => Err(other),
    }
}

/// The state directory: made with its parents where it is not there, this user's alone.
fn folder(dir: &Path) -> Result<OwnedFd, Obstacle> {
    if let Some(parent) = dir.parent() {
        // Closed to others, as the XDG Base Directory Specification wants it.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(|e| Obstacle::Unwritable(format!("making {}: {e}", parent.display())))?;
    }
    own_dir(CWD, dir.as_os_str().as_bytes(), dir).map(|(folder, _)| folder).map_err(|error| match error {
        ServeError::Foreign { path, why } => {
            let why = format!("{why}; give it back to yourself alone (chown, chmod 700), or name another --state-dir");
            Obstacle::Fatal(StateError::unusable(&path, why))
        }
        error => Obstacle::Unwritable(error.to_string()),
    })
}

fn lock(folder: &OwnedFd, dir: &Path) -> Result<OwnedFd, Obstacle> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let lock = rustix::fs::openat(folder, LOCK, flags, Mode::RUSR | Mode::WUSR)
        .map_err(Obstacle::unwritable("opening its lock"))?;
    let until = Instant::now() + LEAVING;
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            Err(Errno::WOULDBLOCK) => return Err(Obstacle::Fatal(StateError::Locked(dir.to_owned()))),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Obstacle::unwritable("locking it")(errno)),
        }
    }
}

fn open_database(folder: &OwnedFd, path: &Path) -> Result<(Writer, Loaded), Obstacle> {
    // Made by us: private, and no link to somewhere else.
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::openat(folder, DATABASE, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| match errno {
        Errno::LOOP => Obstacle::Fatal(StateError::unusable(path, "is a symbolic link; move the database itself here")),
        errno => Obstacle::unwritable("opening it")(errno),
    })?;
    drop(file);
    let error = |e: rusqlite::Error| Obstacle::of(path, &e);
    let mut connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(error)?;
    let found = configure(&connection).map_err(error)?;
    refuse_newer(path, found)?;
    if connection.is_readonly(rusqlite::MAIN_DB).map_err(error)? {
        return Err(Obstacle::Unwritable("it can only be read".into()));
    }
    check(&connection).map_err(error)?.map_or(Ok(()), |damage| Err(Obstacle::Corrupt(damage)))?;
    schema::migrate(&mut connection, schema::STEPS).map_err(error)?;
    let mut loaded = rows::load(&mut connection).map_err(error)?;
    // SQLite has made the log by now; its beginning is synced here, so that the first change waits for no disk.
    if let Err(e) = writer::begin_log(&connection) {
        match error(e) {
            // It can be read, and perhaps there is room again when something changes.
            Obstacle::Unwritable(why) => loaded.trouble = Some(unwritable_now(path, &why)),
            other => return Err(other),
        }
    }
    let log = rustix::fs::openat(folder, LOG, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(Obstacle::unwritable("opening its log"))?;
    if found == 0 {
        rustix::fs::fsync(folder).map_err(Obstacle::unwritable("syncing its directory"))?;
    }
    let log = Some(Arc::new(File::from(log)));
    Ok((prepared(connection, path, log, &loaded).map_err(error)?, loaded))
}

fn unwritable_now(path: &Path, why: &str) -> String {
    let path = path.display();
    format!(
        "{path} cannot be written now ({why}). What changes is kept in memory, and written as soon as that works again"
    )
}

/// Sets what holds for this connection only, and says which version the database has.
fn configure(connection: &Connection) -> rusqlite::Result<i64> {
    // Before anything is read: a database of a newer release is left exactly as it is.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // A database or a row that was made to harm is only data.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    // One process, one connection: no shared memory file, and no lock is ever asked for again.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    let found = schema::version(connection)?;
    if found <= schema::known(schema::STEPS) && !connection.is_readonly(rusqlite::MAIN_DB)? {
        // A commit is a write at the log's end. Only emptying the log syncs; the rest is the syncer's.
        connection.pragma_update(None, "journal_mode", "WAL")?;
    }
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    Ok(found)
}

fn refuse_newer(path: &Path, found: i64) -> Result<(), Obstacle> {
    let known = schema::known(schema::STEPS);
    if found > known {
        return Err(Obstacle::Fatal(StateError::Newer { path: path.to_owned(), found, known }));
    }
    Ok(())
}

/// What is damaged, if anything is.
fn check(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let said: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    Ok((said != "ok").then_some(said))
}

fn prepared(connection: Connection, path: &Path, log: Option<Arc<File>>, loaded: &Loaded) -> rusqlite::Result<Writer> {
    let present = loaded.vms.iter().map(|vm| vm.number).collect();
    let events: i64 = connection.query_row("SELECT count(*) FROM events", [], |row| row.get(0))?;
    let events = usize::try_from(events).unwrap_or(0);
    Ok(Writer { connection, path: path.to_owned(), log, present, events, lock: None })
}

/// An empty database in memory.
///
/// # Errors
/// Out of memory.
pub fn in_memory(path: &Path) -> rusqlite::Result<(Writer, Loaded)> {
    filled(Connection::open_in_memory()?, path)
}

/// What can be read of the database at `path`, in memory; nothing where nothing can.
fn copy_in_memory(path: &Path) -> Result<(Writer, Loaded), StateError> {
    let error = |e: rusqlite::Error| StateError::unusable(path, e.to_string());
    let copy = read_only(path).and_then(|from| {
        let mut copy = Connection::open_in_memory()?;
        rusqlite::backup::Backup::new(&from, &mut copy)?.step(-1)?;
        match check(&copy)? {
            None => Ok(copy),
            // As good as none.
            Some(_) => Connection::open_in_memory(),
        }
    });
    let copy = match copy {
        Ok(copy) => copy,
        Err(_) => Connection::open_in_memory().map_err(error)?,
    };
    let found = schema::version(&copy).map_err(error)?;
    match refuse_newer(path, found) {
        Err(Obstacle::Fatal(newer)) => Err(newer),
        _ => filled(copy, path).or_else(|_| in_memory(path)).map_err(error),
    }
}

/// Where the file cannot be written, it cannot be locked either: so without SQLite's locks, and with the log's index in memory.
fn read_only(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags_and_vfs(path, flags, "unix-none")?;
    configure(&connection)?;
    Ok(connection)
}

fn filled(mut connection: Connection, path: &Path) -> rusqlite::Result<(Writer, Loaded)> {
    schema::migrate(&mut connection, schema::STEPS)?;
    let loaded = rows::load(&mut connection)?;
    Ok((prepared(connection, path, None, &loaded)?, loaded))
}

/// Renames a corrupt database and its log, and removes the oldest of too many.
fn keep_aside(folder: &OwnedFd) -> Result<String, Obstacle> {
    let mut kept = kept_aside(folder);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    // Behind the others also where the clock went back, or two come in a second.
    let number = now.max(kept.last().map_or(0, |last| last + 1));
    let name = format!("{CORRUPT}{number}");
    rustix::fs::renameat_with(folder, DATABASE, folder, name.as_str(), RenameFlags::NOREPLACE)
        .map_err(Obstacle::unwritable("renaming it, since it is corrupt"))?;
    match rustix::fs::renameat(folder, LOG, folder, format!("{name}-wal")) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(Obstacle::unwritable("renaming its log, since it is corrupt")(errno)),
    }
    kept.push(number);
    for oldest in &kept[..kept.len().saturating_sub(CORRUPT_KEPT)] {
        for name in [format!("{CORRUPT}{oldest}"), format!("{CORRUPT}{oldest}-wal")] {
            // Where that does not work, there is one more than there should be.
            let _ = rustix::fs::unlinkat(folder, name, AtFlags::empty());
        }
    }
    Ok(name)
}

/// When the databases that were kept aside were, in order.
fn kept_aside(folder: &OwnedFd) -> Vec<u64> {
    let Ok(entries) = rustix::fs::Dir::read_from(folder.as_fd()) else { return Vec::new() };
    let number = |entry: rustix::fs::DirEntry| entry.file_name().to_str().ok()?.strip_prefix(CORRUPT)?.parse().ok();
    let mut numbers: Vec<u64> = entries.flatten().filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}
