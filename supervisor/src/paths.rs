//! Where the supervisor of a user is found: its runtime directory and what is in it.
//!
//! Runs in the CLI (which connects) and in the supervisor (which makes the directory, see [`crate::serve`]).

use std::path::{Path, PathBuf};

/// Name of the system user whose supervisor serves from [`SYSTEM_DIR`].
const SYSTEM_USER: &str = "vmsup";
/// Runtime directory of the system user's supervisor, made by its unit.
const SYSTEM_DIR: &str = "/run/vmsup";

/// The runtime directory of this user's supervisor: `/run/vmsup` for the system user `vmsup` (and where that directory
/// belongs to this user), else `$XDG_RUNTIME_DIR/vmsup`, else `/tmp/vmsup-<uid>`.
///
/// It is only named here. Nothing in it is believed before its owner and mode were checked.
pub fn runtime_dir() -> PathBuf {
    let uid = nix::unistd::getuid();
    let system = PathBuf::from(SYSTEM_DIR);
    let owned = rustix::fs::lstat(&system).is_ok_and(|s| {
        s.st_uid == uid.as_raw() && rustix::fs::FileType::from_raw_mode(s.st_mode) == rustix::fs::FileType::Directory
    });
    if !uid.is_root() && (owned || is_system_user(uid)) {
        return system;
    }
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(dir) if dir.is_absolute() => dir.join("vmsup"),
        _ => PathBuf::from(format!("/tmp/vmsup-{uid}")),
    }
}

/// The API's socket in [`runtime_dir`].
pub fn api_socket() -> PathBuf {
    runtime_dir().join(API_SOCKET)
}

/// The log of a supervisor in the background, in [`runtime_dir`].
pub fn log_file() -> PathBuf {
    runtime_dir().join(LOG_FILE)
}

/// The directory of the durable state: what the service manager made for it (`STATE_DIRECTORY`, systemd.exec(5)); else `state`
/// in the runtime directory, where that was named; else `$XDG_STATE_HOME/vmsup`; else `~/.local/state/vmsup`.
pub fn state_dir(named_runtime_dir: Option<&Path>) -> PathBuf {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // systemd separates several by colons; our units name one.
    if let Some(dir) = absolute("STATE_DIRECTORY") {
        return dir;
    }
    if let Some(runtime) = named_runtime_dir {
        return runtime.join("state");
    }
    match (absolute("XDG_STATE_HOME"), absolute("HOME")) {
        (Some(state), _) => state.join("vmsup"),
        (None, Some(home)) => home.join(".local/state/vmsup"),
        (None, None) => runtime_dir().join("state"),
    }
}

/// netd's socket: what `VMSUP_NETD_SOCKET` names, else the one that its unit makes.
pub fn netd_socket() -> PathBuf {
    match std::env::var_os("VMSUP_NETD_SOCKET") {
        Some(path) if !path.is_empty() => PathBuf::from(path),
        _ => PathBuf::from(netd_api::SOCKET),
    }
}

/// The API's socket of the system user's supervisor, which may serve other users, too.
pub const SYSTEM_SOCKET: &str = "/run/vmsup/api.sock";

/// The socket that `VMSUP_SOCKET` names, for commands that are to speak to another supervisor than this user's own.
pub fn named_socket() -> Option<PathBuf> {
    std::env::var_os("VMSUP_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// File name of the API's socket.
pub const API_SOCKET: &str = "api.sock";
/// File name of the side socket ([`crate::side`]).
pub const FILES_SOCKET: &str = "files.sock";
/// File name of the log of a supervisor in the background.
pub const LOG_FILE: &str = "supervisor.log";

/// The directory that holds our own executable, where the other programs of this release are.
///
/// # Errors
/// What reading `/proc/self/exe` says.
pub fn program_dir() -> std::io::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    Ok(exe.parent().map_or_else(|| PathBuf::from("/"), PathBuf::from))
}

/// `/etc/passwd` is read rather than asked of NSS: a static binary cannot load NSS modules, and a system user of a
/// package is always in the file.
fn is_system_user(uid: nix::unistd::Uid) -> bool {
    std::fs::read_to_string("/etc/passwd").is_ok_and(|text| {
        text.lines().any(|line| {
            let mut fields = line.split(':');
            fields.next() == Some(SYSTEM_USER) && fields.nth(1) == Some(uid.to_string().as_str())
        })
    })
}
