//! Where the supervisor keeps things: the runtime directory, and the directory of the durable state.

use super::ids::Id;
use super::line::Line;
use super::units::Scope;
use super::user::User;
use rustix::fs::{Access, access, statvfs};
use rustix::io::Errno;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use vmsup::vmjson::check::escaped_path;

/// Where the system user's unit keeps its state (StateDirectory=).
const SYSTEM_STATE: &str = "/var/lib/vmsup";
/// Less room than this for the state makes a warning: the database, its log, and what the log is emptied into.
const ROOM_LOW: u64 = 64 << 20;

/// A directory, or what is in its place.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    uid: u32,
    mode: u32,
}

impl Found {
    fn at(path: &Path) -> Option<Found> {
        std::fs::symlink_metadata(path).ok().map(|m| Found { uid: m.uid(), mode: m.mode() })
    }

    /// A directory of this user's alone, as the supervisor wants it.
    fn is_private(self, user: &User) -> bool {
        const DIRECTORY: u32 = 0o040_000;
        self.uid == user.uid && self.mode & 0o170_000 == DIRECTORY && self.mode & 0o077 == 0
    }
}

/// What was read of the runtime directory.
#[derive(Debug)]
pub struct Runtime {
    dir: PathBuf,
    found: Option<Found>,
    /// It is below the directory of this user's log-ins, which goes with the last of them.
    per_login: bool,
    /// `loginctl enable-linger`.
    lingers: bool,
    /// There is a directory of log-ins, and this shell does not name it.
    unnamed: Option<PathBuf>,
}

impl Runtime {
    /// Of this user.
    pub fn read(user: &User) -> Runtime {
        let dir = vmsup::paths::runtime_dir();
        let named = std::env::var_os("XDG_RUNTIME_DIR");
        let of_logins = PathBuf::from(format!("/run/user/{}", user.uid));
        let linger = |name: &String| Path::new("/var/lib/systemd/linger").join(name).exists();
        Runtime {
            found: Found::at(&dir),
            per_login: dir.starts_with("/run/user"),
            lingers: user.name.as_ref().is_some_and(linger),
            unnamed: (named.is_none() && dir.starts_with("/tmp") && of_logins.exists()).then_some(of_logins),
            dir,
        }
    }
}

/// Whose the runtime directory is, and how long it stays.
pub fn runtime(facts: &Runtime, user: &User) -> Line {
    const ID: Id = Id::RuntimeDirectory;
    let shown = escaped_path(&facts.dir);
    match facts.found {
        Some(found) if !found.is_private(user) => Line::failure(
            ID,
            format!("{shown} is not a directory of this user alone"),
            "who can write there can pose as your supervisor, so it is refused",
            format!("remove {shown}, or set XDG_RUNTIME_DIR to a directory of your own"),
        ),
        _ if facts.per_login && !facts.lingers => Line::warning(
            ID,
            format!("{shown} is removed when you log out"),
            "your VMs end with your last session",
            format!("sudo loginctl enable-linger {}", user.name_or_id()),
        ),
        found => match &facts.unnamed {
            Some(of_logins) => Line::warning(
                ID,
                format!("{shown}, since XDG_RUNTIME_DIR is not set in this shell (su, sudo, cron)"),
                "your log-ins look for the supervisor elsewhere: they would not see the VMs of this shell, nor it theirs",
                format!("export XDG_RUNTIME_DIR={}", of_logins.display()),
            ),
            None if found.is_none() => Line::ok(ID, format!("{shown}, which the supervisor makes")),
            None => Line::ok(ID, shown),
        },
    }
}

/// What was read of the state directory.
#[derive(Debug, Clone)]
pub struct State {
    dir: PathBuf,
    found: Option<Found>,
    /// What access(2) says of it, or where it is not there of the next directory above that is.
    writable: Result<(), Errno>,
    /// Bytes and files that there is room for; `None` for files where the file system has no bound.
    room: Option<(u64, Option<u64>)>,
}

impl State {
    /// Of this user, as the next supervisor would have it.
    pub fn read() -> State {
        let system = Scope::of_this_user() == Scope::System && std::env::var_os("STATE_DIRECTORY").is_none();
        let dir = if system { PathBuf::from(SYSTEM_STATE) } else { vmsup::paths::state_dir(None) };
        let there = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned();
        let room = statvfs(&there).ok().map(|s| {
            let files = (s.f_files > 0).then_some(s.f_favail);
            (s.f_bavail.saturating_mul(s.f_frsize), files)
        });
        State { found: Found::at(&dir), writable: access(&there, Access::WRITE_OK | Access::EXEC_OK), room, dir }
    }
}

/// Whose the state directory is, and whether there is room in it.
pub fn state(facts: &State, user: &User) -> Line {
    const ID: Id = Id::StateDirectory;
    const WHY: &str = "what VMs are is kept there: without it the supervisor serves, and forgets its VMs when it ends";
    let shown = escaped_path(&facts.dir);
    if facts.found.is_some_and(|found| !found.is_private(user)) {
        return Line::failure(
            ID,
            format!("{shown} is not a directory of this user alone"),
            "who can write there decides what your VMs are, so the supervisor refuses it",
            format!("sudo chown {} {shown}; sudo chmod 700 {shown}", user.name_or_id()),
        );
    }
    let absent = if facts.found.is_none() { " cannot be made" } else { " cannot be written" };
    match facts.writable {
        Ok(()) => {}
        Err(Errno::ROFS) => {
            let found = format!("{shown}{absent}: the file system is read-only");
            return Line::warning(ID, found, WHY, "mount it for writing, or name another: vmsup serve --state-dir DIR");
        }
        Err(e) => {
            let mend = format!("give the directory above it to {}, or set XDG_STATE_HOME", user.name_or_id());
            return Line::warning(ID, format!("{shown}{absent} ({e})"), WHY, mend);
        }
    }
    let full = |what: String| {
        let mend = format!("free some room: df -h {shown}; df -i {shown}");
        Line::warning(ID, format!("{shown} has room for {what} only"), WHY, mend)
    };
    match facts.room {
        None => Line::unknown(ID, format!("{shown}: how much room there is cannot be told"), WHY, "df -h"),
        Some((bytes, _)) if bytes < ROOM_LOW => full(format!("{} MiB", bytes >> 20)),
        Some((_, Some(files))) if files < 16 => full(format!("{files} files")),
        Some((bytes, _)) => {
            let made = if facts.found.is_none() { ", which the supervisor makes" } else { "" };
            Line::ok(ID, format!("{shown}{made}; {} MiB free", bytes >> 20))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::State::{Failure, Ok as Fine, Unknown, Warning};
    use super::super::line::assert_line;
    use super::*;

    const STRANGE: [Found; 3] = [
        Found { uid: 1001, mode: 0o040_700 },
        Found { uid: 1000, mode: 0o040_755 },
        Found { uid: 1000, mode: 0o120_777 },
    ];

    fn ours() -> Option<Found> {
        Some(Found { uid: 1000, mode: 0o040_700 })
    }

    #[test]
    fn a_runtime_directory_of_someone_else_is_a_failure_and_one_that_vanishes_a_warning() {
        let with = |found, per_login, lingers, unnamed: Option<&str>| {
            let unnamed = unnamed.map(PathBuf::from);
            let facts = Runtime { dir: "/run/user/1000/vmsup".into(), found, per_login, lingers, unnamed };
            runtime(&facts, &User::anna())
        };
        assert_line(&with(ours(), false, false, None), Fine, "");
        assert_line(&with(None, false, false, None), Fine, "");
        assert_line(&with(ours(), true, true, None), Fine, "");
        assert_line(&with(ours(), true, false, None), Warning, "enable-linger anna");
        assert_line(&with(ours(), false, false, Some("/run/user/1000")), Warning, "XDG_RUNTIME_DIR=/run/user/1000");
        for strange in STRANGE {
            assert_line(&with(Some(strange), true, false, None), Failure, "remove /run/user/1000/vmsup");
        }
    }

    #[test]
    fn a_state_directory_must_be_the_users_own_and_have_room() {
        let good = State {
            dir: "/home/anna/.local/state/vmsup".into(),
            found: ours(),
            writable: Ok(()),
            room: Some((1 << 30, Some(1000))),
        };
        let judge = |facts: &State| state(facts, &User::anna());
        assert_line(&judge(&good), Fine, "");
        assert_line(&judge(&State { found: None, ..good.clone() }), Fine, "");
        assert_line(&judge(&State { room: Some((1 << 30, None)), ..good.clone() }), Fine, "");
        for strange in STRANGE {
            assert_line(&judge(&State { found: Some(strange), ..good.clone() }), Failure, "chmod 700");
        }
        assert_line(&judge(&State { writable: Err(Errno::ROFS), ..good.clone() }), Warning, "--state-dir");
        assert_line(&judge(&State { writable: Err(Errno::ACCESS), ..good.clone() }), Warning, "XDG_STATE_HOME");
        assert_line(&judge(&State { room: Some((1 << 20, Some(1000))), ..good.clone() }), Warning, "df -h");
        assert_line(&judge(&State { room: Some((1 << 30, Some(3))), ..good.clone() }), Warning, "df -i");
        assert_line(&judge(&State { room: None, ..good.clone() }), Unknown, "df -h");
    }
}
