//! `vmsup-jailer try`: makes the namespaces of a jail, looks at the worker's program, says what came of it, and leaves nothing.
//!
//! A process of its own, started for one answer by `vmsup doctor`. The jailer's own program tries, since a host may let it make
//! user namespaces and no other one (AppArmor's profile).

use crate::identity::{prepare, uid_source};
use crate::make::NAMESPACES;
use crate::section;
use crate::serve::Error;
use crate::sys::{self, Forked};
use jail_spec::{Slot, UidSource};
use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::io::Write;

/// `try`: one line for the user's own uid in a namespace; one more for a subordinate one, where there is a range; and one for
/// the policy section of the worker's program beside this one.
///
/// # Errors
/// Standard output cannot be written. What could not be made is an answer.
pub fn main(args: &[String]) -> Result<(), Error> {
    if !args.is_empty() {
        return Err(Error::Usage("try takes no arguments".into()));
    }
    let subordinate = match uid_source() {
        UidSource::Own => None,
        range => Some(prepare(range, Slot(0)).map(drop).map_err(|e| e.to_string())),
    };
    let section = policy_section();
    // Last, for this process does not come back from that namespace.
    let own = all_namespaces();
    let mut out = std::io::stdout().lock();
    let mut say = |name: &str, result: Result<(), String>| {
        let result = result.map_or_else(|why| why.replace('\n', " "), |()| "ok".into());
        writeln!(out, "{name}: {result}").map_err(|e| Error::System("standard output", e))
    };
    say("own", own)?;
    subordinate.map_or(Ok(()), |result| say("subordinate", result))?;
    say("section", section)
}

/// What a jailer that serves would say of the worker's program, where that is in its usual place.
fn policy_section() -> Result<(), String> {
    let path = std::env::current_exe().map_err(|e| format!("our own program: {e}"))?.with_file_name("vmsup-worker");
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let program = rustix::fs::open(&path, flags, Mode::empty())
        .map_err(|e| format!("{}: {}", path.display(), std::io::Error::from(e)))?;
    section::check(program.as_fd()).map_err(|e| format!("{} is refused: {e}", path.display()))
}

/// A user namespace may be given and be worth nothing (AppArmor takes the privileges in it away), so the others are made in it.
fn all_namespaces() -> Result<(), String> {
    let user_namespace = prepare(UidSource::Own, Slot(0)).map_err(|e| e.to_string())?;
    move_into_link_name_space(user_namespace.as_fd(), Some(LinkNameSpaceType::User))
        .map_err(|e| format!("entering a user namespace of our own: {}", std::io::Error::from(e)))?;
    let forked = sys::clone3(&sys::Clone { flags: NAMESPACES, ..Default::default() })
        .map_err(|e| format!("the other namespaces in a user namespace of our own: {}", std::io::Error::from(e)))?;
    let Forked::Parent { pid, .. } = forked else { sys::exit_now(0) };
    match waitpid(Pid::from_raw(pid), WaitOptions::empty()) {
        Ok(Some((_, status))) if status.exit_status() == Some(0) => Ok(()),
        ended => {
            Err(format!("a process in namespaces of its own ended oddly ({:?})", ended.map(|e| e.map(|(_, s)| s))))
        }
    }
}
