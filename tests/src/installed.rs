//! What `make install` places, placed for a test.

use crate::user::User;
use crate::{Scratch, program};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Who runs the tests.
pub fn me() -> User {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    User { name: "me".into(), uid, gid }
}

/// What a command prints, both streams.
///
/// # Panics
/// Where it fails.
pub fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

/// `make install` without its building.
pub fn install(dest: &Path, prefix: &str, etc: &str) {
    let bin = program("vmsup").parent().unwrap().to_owned();
    let mut make = Command::new("make");
    make.args(["-s", "install-files"]).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    make.args([format!("DESTDIR={}", dest.display()), format!("PREFIX={prefix}"), format!("SYSCONFDIR={etc}")]);
    output(make.env("VMSUP_BIN", bin));
}

/// Installed so that all paths in the units are there.
pub fn installed_here() -> (Scratch, PathBuf) {
    let scratch = Scratch::new(&me());
    let prefix = scratch.path().join("usr");
    install(Path::new(""), prefix.to_str().unwrap(), scratch.path().join("etc").to_str().unwrap());
    (scratch, prefix)
}
