//! The runtime directory: made, checked, locked.
//!
//! Runs in the supervisor before it confines itself. The directory is the supervisor's only authentication towards
//! its workers (their sockets are in it), so it belongs to this user alone or is refused.

use super::ServeError;
use crate::paths;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Directory of the workers' sockets, in the runtime directory. The jailer binds in it, as its working directory.
const WORKERS: &str = "workers";
/// Directory of the VMs' handles ([`super::handle`]), in the runtime directory.
const HANDLES: &str = "handles";
/// Whoever holds the lock on this file is the supervisor of the directory.
const LOCK: &str = "lock";
/// How long a supervisor that is leaving may hold the lock after its socket is gone.
const LEAVING: Duration = Duration::from_secs(8);

/// The runtime directory of a supervisor that holds its lock.
#[derive(Debug)]
pub struct RunDir {
    /// Its path, for messages and for the jailer's working directory.
    pub path: PathBuf,
    /// The directory of the workers' sockets.
    pub workers: OwnedFd,
    /// The directory of the VMs' handles.
    pub handles: OwnedFd,
    /// There was no directory of handles: whatever ran here before did so before the host was started anew, or before
    /// somebody removed all of this.
    pub new: bool,
    clients: Clients,
    /// Held until the process ends.
    _lock: OwnedFd,
}

/// Who reaches the API's socket. Who of them may is asked of the kernel when they have connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// This user (and root): the directory lets nobody else in.
    Own,
    /// Everybody of this host: they may pass through the directory to the sockets, and see nothing else of what is in it.
    Anybody,
}

impl RunDir {
    /// Makes the directory where it is not there, checks it, and takes its lock.
    ///
    /// # Errors
    /// A directory that is not this user's alone; a supervisor that serves it already.
    pub fn take(path: &Path, socket: &Path, clients: Clients) -> Result<RunDir, ServeError> {
        let dir = match clients {
            Clients::Own => own_dir(rustix::fs::CWD, path.as_os_str().as_bytes(), path)?.0,
            Clients::Anybody => passable_dir(path)?,
        };
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let lock = rustix::fs::openat(&dir, LOCK, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| ServeError::path("opening the lock", &path.join(LOCK), e))?;
        take_lock(&lock, path, socket)?;
        let (workers, _) = own_dir(dir.as_fd(), WORKERS.as_bytes(), &path.join(WORKERS))?;
        let (handles, new) = own_dir(dir.as_fd(), HANDLES.as_bytes(), &path.join(HANDLES))?;
        Ok(RunDir { path: path.to_owned(), workers, handles, new, clients, _lock: lock })
    }

    /// The jailer's working directory.
    pub fn workers_path(&self) -> PathBuf {
        self.path.join(WORKERS)
    }

    /// Binds the API's socket, replacing that of a dead predecessor.
    ///
    /// # Errors
    /// Something else is there, or somebody answers.
    pub fn bind(&self, socket: &Path) -> Result<UnixListener, ServeError> {
        match rustix::fs::lstat(socket) {
            Err(Errno::NOENT) => {}
            Err(e) => return Err(ServeError::path("looking at the socket", socket, e)),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
                return Err(ServeError::NotASocket(socket.to_owned()));
            }
            Ok(_) if UnixStream::connect(socket).is_ok() => return Err(ServeError::Served(socket.to_owned())),
            Ok(_) => rustix::fs::unlink(socket).map_err(|e| ServeError::path("removing the old socket", socket, e))?,
        }
        // Nobody else may connect: serve() set the umask to 0077 before.
        let failed = |source| ServeError::Path { what: "binding the socket", path: socket.to_owned(), source };
        let listener = UnixListener::bind(socket).map_err(failed)?;
        if self.clients == Clients::Anybody {
            open_to_all(socket)?;
        }
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(listener)
    }
}

/// Opens the directory `name` in `parent`, made where it is not there: a directory, no symbolic link, of this user,
/// with no right for anybody else. Says whether it was made.
pub(super) fn own_dir(parent: impl AsFd, name: &[u8], shown: &Path) -> Result<(OwnedFd, bool), ServeError> {
    dir_with(parent, name, shown, 0)
}

/// The same for a directory through which others may pass, without being told what is in it.
fn passable_dir(path: &Path) -> Result<OwnedFd, ServeError> {
    let (dir, _) = dir_with(rustix::fs::CWD, path.as_os_str().as_bytes(), path, 0o011)?;
    let mode = Mode::RWXU | Mode::XGRP | Mode::XOTH;
    rustix::fs::fchmod(&dir, mode).map_err(|e| ServeError::path("letting clients through", path, e))?;
    Ok(dir)
}

/// Lets everybody connect to the socket that we have bound: to that one, whatever is at its path by now.
pub(super) fn open_to_all(socket: &Path) -> Result<(), ServeError> {
    let failed = |e| ServeError::path("letting clients connect to", socket, e);
    let found = rustix::fs::open(socket, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let found = found.map_err(failed)?;
    let stat = rustix::fs::fstat(&found).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(ServeError::NotASocket(socket.to_owned()));
    }
    let all = Mode::from_raw_mode(0o666);
    rustix::fs::chmod(format!("/proc/self/fd/{}", found.as_raw_fd()), all).map_err(failed)
}

/// Opens a directory of this user's, made where it is not there, with no other rights for others than `allowed`.
fn dir_with(parent: impl AsFd, name: &[u8], shown: &Path, allowed: u32) -> Result<(OwnedFd, bool), ServeError> {
    let made = match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(e) => return Err(ServeError::path("making the directory", shown, e)),
    };
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let dir = rustix::fs::openat(&parent, name, flags, Mode::empty()).map_err(|e| match e {
        Errno::NOTDIR | Errno::LOOP => foreign(shown, "is no directory".into()),
        e => ServeError::path("opening the directory", shown, e),
    })?;
    let stat = rustix::fs::fstat(&dir).map_err(|e| ServeError::path("looking at the directory", shown, e))?;
    let uid = rustix::process::geteuid().as_raw();
    if stat.st_uid != uid {
        return Err(foreign(shown, format!("belongs to uid {}", stat.st_uid)));
    }
    if stat.st_mode & 0o077 & !allowed != 0 {
        let mode = stat.st_mode & 0o777;
        return Err(foreign(shown, format!("is open to others (mode {mode:o})")));
    }
    Ok((dir, made))
}

fn foreign(path: &Path, why: String) -> ServeError {
    ServeError::Foreign { path: path.to_owned(), why }
}

/// Takes the lock, or says who has it. A supervisor that is leaving (its socket is gone already) is waited for.
fn take_lock(lock: &OwnedFd, dir: &Path, socket: &Path) -> Result<(), ServeError> {
    let until = Instant::now() + LEAVING;
    loop {
        match rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if !socket.exists() && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(Errno::WOULDBLOCK) => return Err(ServeError::Served(dir.to_owned())),
            Err(Errno::INTR) => {}
            Err(e) => return Err(ServeError::path("locking", &dir.join(LOCK), e)),
        }
    }
}

/// The runtime directory that the options and the environment name.
pub fn chosen(given: Option<PathBuf>) -> PathBuf {
    given.unwrap_or_else(paths::runtime_dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::testing::TempDir;
    use std::os::unix::fs::PermissionsExt;

    fn take(dir: &Path) -> Result<RunDir, ServeError> {
        RunDir::take(dir, &dir.join(paths::API_SOCKET), Clients::Own)
    }

    #[test]
    fn a_second_supervisor_on_one_directory_refuses() {
        let temp = TempDir::new();
        let dir = temp.path().join("run");
        let first = take(&dir).unwrap();
        let _listener = first.bind(&dir.join(paths::API_SOCKET)).unwrap();
        let error = take(&dir).unwrap_err();
        assert!(matches!(error, ServeError::Served(_)), "{error}");
        assert!(error.to_string().contains("already"), "{error}");
    }

    #[test]
    fn a_supervisor_that_is_leaving_is_waited_for() {
        let temp = TempDir::new();
        let dir = temp.path().join("run");
        let first = take(&dir).unwrap();
        let second = std::thread::spawn({
            let dir = dir.clone();
            move || take(&dir).map(|_| ())
        });
        // No socket: the first is on its way out, and the second waits until it is gone.
        drop(first);
        second.join().unwrap().unwrap();
    }

    #[test]
    fn what_a_dead_predecessor_left_stays_but_for_its_socket() {
        let temp = TempDir::new();
        let dir = temp.path().join("run");
        let socket = dir.join(paths::API_SOCKET);
        let first = take(&dir).unwrap();
        assert!(first.new);
        drop(first.bind(&socket).unwrap());
        // A worker that lives on, and what it runs as.
        let kept = ["workers/w7.sock", "handles/0000000000000001.json"].map(|name| dir.join(name));
        drop(UnixListener::bind(&kept[0]).unwrap());
        std::fs::write(&kept[1], "{}").unwrap();
        drop(first);
        let second = take(&dir).unwrap();
        assert!(!second.new && kept.iter().all(|path| path.exists()));
        second.bind(&socket).unwrap();
    }

    #[test]
    fn a_directory_open_to_others_or_a_link_is_refused() {
        let temp = TempDir::new();
        let open = temp.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(take(&open).unwrap_err().to_string().contains("mode 755"));
        let link = temp.path().join("link");
        std::os::unix::fs::symlink(temp.path(), &link).unwrap();
        assert!(matches!(take(&link).unwrap_err(), ServeError::Foreign { .. }));
        let file = temp.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(take(&file).unwrap_err(), ServeError::Foreign { .. }));
    }

    #[test]
    fn anybody_passes_through_to_the_socket_of_a_shared_supervisor_and_to_nothing_else() {
        let temp = TempDir::new();
        let dir = temp.path().join("run");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        // Also where a supervisor of the user's alone was before.
        drop(take(&dir).unwrap());
        assert_eq!(mode(&dir), 0o700);
        let socket = dir.join(paths::API_SOCKET);
        let shared = RunDir::take(&dir, &socket, Clients::Anybody).unwrap();
        shared.bind(&socket).unwrap();
        assert_eq!((mode(&dir), mode(&socket)), (0o711, 0o666));
        for (name, most) in [("workers", 0o700), ("handles", 0o700), ("lock", 0o600)] {
            assert_eq!(mode(&dir.join(name)), most, "{name}");
        }
        drop(shared);
        assert!(take(&dir).unwrap_err().to_string().contains("mode 711"), "one of the user's alone is not for all");
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(RunDir::take(&dir, &socket, Clients::Anybody).unwrap_err().to_string().contains("mode 755"));
    }

    #[test]
    fn a_file_in_the_sockets_place_is_not_removed() {
        let temp = TempDir::new();
        let dir = temp.path().join("run");
        let socket = dir.join(paths::API_SOCKET);
        let taken = take(&dir).unwrap();
        std::fs::write(&socket, "mine").unwrap();
        assert!(matches!(taken.bind(&socket).unwrap_err(), ServeError::NotASocket(_)));
        assert_eq!(std::fs::read(&socket).unwrap(), b"mine");
    }
}
