//! What the integration tests share: users to run as, the built binaries, and a jailer or a whole host to talk to.
//!
//! Tests that start as root drop to users of their own: `vmsup-test`, who has subordinate uids, and `vmsup-bare`, who
//! has none (`tests/setup-users` makes both). Started as an ordinary user, they run as that user. netd needs root: its tests
//! make network namespaces, and skip where they cannot.

pub mod browser;
pub mod connected;
pub mod frames;
pub mod host;
pub mod installed;
pub mod jailer;
pub mod netd;
pub mod netns;
pub mod page;
pub mod probe;
pub mod tampered;
pub mod tracer;
pub mod tun;
pub mod user;
pub mod verdicts;
pub mod wire;

use std::path::PathBuf;

/// A built program: `$VMSUP_BIN/NAME`, else `target/bin/NAME` of this checkout.
///
/// # Panics
/// Where it is not there: `make build` makes it.
pub fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os("VMSUP_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bin"), PathBuf::from);
    let path = folder.join(name);
    path.canonicalize().unwrap_or_else(|e| panic!("{}: {e}; run make build first", path.display()))
}

/// Says that a test did not run, and why; `make test` counts these lines.
pub fn skip(name: &str, why: &str) {
    println!("SKIPPED {name}: {why}");
}

/// True where the tests run as root; else the test `name` is said to be skipped.
pub fn as_root(name: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(name, "network namespaces and other users need root");
    }
    root
}

/// Waits for `condition`, looking at it again and again.
///
/// # Panics
/// Where it does not hold within a minute.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Names in a directory, sorted.
///
/// # Panics
/// Where it cannot be read.
pub fn names(folder: impl AsRef<std::path::Path>) -> Vec<String> {
    let folder = folder.as_ref();
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut names: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A fresh directory that goes when this is dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes it, for `user`, mode 0700, directly below /tmp (socket paths are short).
    ///
    /// # Panics
    /// Where it cannot be made.
    pub fn new(user: &user::User) -> Scratch {
        use std::os::unix::fs::PermissionsExt;
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("/tmp/vmsup-t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = PathBuf::from(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid)).unwrap();
        Scratch(path)
    }

    /// Its path.
    pub fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
