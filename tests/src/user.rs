//! Whom the product runs as in the tests.

use std::process::Command;

/// An ordinary user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// Uid.
    pub uid: u32,
    /// Primary gid.
    pub gid: u32,
}

/// The user with subordinate uids, or the current one where the tests do not run as root.
///
/// # Panics
/// As root, where `tests/setup-users` was not run.
pub fn with_subuids() -> User {
    named("vmsup-test")
}

/// The user without subordinate uids; `None` where the tests do not run as root and so cannot choose.
pub fn without_subuids() -> Option<User> {
    rustix::process::geteuid().is_root().then(|| named("vmsup-bare"))
}

/// A second tenant, with subordinate uids of its own; for root only.
pub fn second_tenant() -> User {
    named("vmsup-test2")
}

/// Whom netd becomes; for root only.
pub fn netd() -> User {
    named("vmsup-netd")
}

/// Somebody whom nobody has named; for root only.
pub fn stranger() -> User {
    named("nobody")
}

fn named(name: &str) -> User {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let own = rustix::process::geteuid();
    passwd
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            Some(User {
                name: fields.first()?.to_string(),
                uid: fields.get(2)?.parse().ok()?,
                gid: fields.get(3)?.parse().ok()?,
            })
        })
        .find(|user| if own.is_root() { user.name == name } else { user.uid == own.as_raw() })
        .unwrap_or_else(|| panic!("no user {name}: run tests/setup-users"))
}

impl User {
    /// A command that runs as this user with its groups, and with nothing of root's environment but PATH.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        if !rustix::process::geteuid().is_root() {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--reuid={}", self.uid))
            .arg(format!("--regid={}", self.gid))
            .arg("--init-groups")
            .arg("--")
            .arg(program)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", "/nonexistent");
        command
    }
}
