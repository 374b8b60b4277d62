//! Who the workers are: uid ranges, and user namespaces prepared ahead and kept by fd.
//!
//! A prepared namespace maps one uid and one gid: [`INNER_ID`] inside, a subordinate id (or the user's own) outside.
//! It is made by a child that is born into it, is mapped, and leaves; the fd keeps the namespace. It serves one worker after
//! another of the same slot, so that newuidmap (two program starts) is paid once a slot.

use crate::sys::{self, Forked};
use jail_spec::{Slot, UidSource};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use std::io::Read;
use std::process::Command;

/// The uid and gid of a worker inside of its user namespace. 0, because the kernel gives what is in `/proc/PID` of a
/// process that is not dumpable to the namespace's id 0: with another the creator of the namespace could not read it
/// (`vmsup-jailer inspect`). It means nothing else: securebits take every privilege from it before exec.
pub const INNER_ID: u32 = 0;

/// A user namespace could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Unprivileged user namespaces are off, or used up.
    #[error(
        "a new user namespace: {0}; unprivileged user namespaces are needed (vmsup doctor says what is in the way)"
    )]
    Unshare(std::io::Error),
    /// The map could not be written.
    #[error("{what}: {why}")]
    Map {
        /// The file or program.
        what: String,
        /// What went wrong.
        why: String,
    },
    /// Another system call.
    #[error("{0}: {1}")]
    System(&'static str, std::io::Error),
}

/// Finds out whose uids workers can run as: a range in /etc/subuid and /etc/subgid with newuidmap to apply it, else the
/// user's own.
pub fn uid_source() -> UidSource {
    let uid = rustix::process::getuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = user_name(&passwd, uid);
    let range = |file: &str| {
        let text = std::fs::read_to_string(file).ok()?;
        find_range(&text, name.as_deref(), uid)
    };
    let (Some((first_uid, uids)), Some((first_gid, gids))) = (range("/etc/subuid"), range("/etc/subgid")) else {
        return UidSource::Own;
    };
    let installed = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    };
    if !installed("newuidmap") || !installed("newgidmap") {
        return UidSource::Own;
    }
    UidSource::Subordinate { first_uid, first_gid, count: uids.min(gids) }
}

/// The name of `uid` in the text of a passwd(5). Read directly: a static program cannot load name service modules.
fn user_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// The largest range of the user in the text of a subuid(5) file: first id, count.
fn find_range(text: &str, name: Option<&str>, uid: u32) -> Option<(u32, u32)> {
    let number = uid.to_string();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let who = fields.next()?;
            if Some(who) != name && who != number {
                return None;
            }
            let first: u32 = fields.next()?.parse().ok()?;
            let count: u32 = fields.next()?.parse().ok()?;
            // A range that reaches past the last id, or over 0, is of no use to newuidmap.
            (count > 0 && first > 0 && first.checked_add(count).is_some()).then_some((first, count))
        })
        .max_by_key(|(_, count)| *count)
}

/// The ids outside that the worker of `slot` has.
pub fn outer_ids(source: UidSource, slot: Slot) -> Option<(u32, u32)> {
    match source {
        UidSource::Subordinate { first_uid, first_gid, count } => {
            (slot.0 < count).then(|| (first_uid + slot.0, first_gid + slot.0))
        }
        UidSource::Own => Some((rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw())),
    }
}

/// Prepares a user namespace for these ids.
///
/// # Errors
/// Nothing is left behind: the child that was to hold the namespace is reaped.
pub fn prepare(source: UidSource, slot: Slot) -> Result<OwnedFd, Error> {
    let (mut go_reader, go_writer) = std::io::pipe().map_err(|e| Error::System("pipe", e))?;
    let options = sys::Clone { flags: libc::CLONE_NEWUSER, ..Default::default() };
    let Forked::Parent { pid, .. } = sys::clone3(&options).map_err(|e| Error::Unshare(e.into()))? else {
        drop(go_writer);
        // Holds the namespace until the parent has its fd, or is gone: the end of this pipe.
        let _ = go_reader.read(&mut [0u8; 1]);
        sys::exit_now(0);
    };
    drop(go_reader);
    let result = map(source, slot, pid).and_then(|()| {
        rustix::fs::open(format!("/proc/{pid}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Error::System("/proc/PID/ns/user", e.into()))
    });
    drop(go_writer);
    let pid = rustix::process::Pid::from_raw(pid);
    let _ = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty());
    result
}

/// Writes the maps of the namespace that process `pid` has just made.
fn map(source: UidSource, slot: Slot, pid: i32) -> Result<(), Error> {
    let write = |file: &str, text: String| {
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, text).map_err(|e| Error::Map { what: path, why: e.to_string() })
    };
    let (uid, gid) = outer_ids(source, slot)
        .ok_or_else(|| Error::Map { what: "subordinate uids".into(), why: "all of the range are in use".into() })?;
    match source {
        UidSource::Own => {
            write("setgroups", "deny".into())?;
            write("uid_map", format!("{INNER_ID} {uid} 1"))?;
            write("gid_map", format!("{INNER_ID} {gid} 1"))
        }
        UidSource::Subordinate { .. } => {
            newidmap("newuidmap", pid, uid)?;
            newidmap("newgidmap", pid, gid)
        }
    }
}

fn newidmap(program: &str, pid: i32, outer: u32) -> Result<(), Error> {
    let ids = [pid as u32, INNER_ID, outer, 1].map(|n| n.to_string());
    let output = Command::new(program)
        .args(&ids)
        .output()
        .map_err(|e| Error::Map { what: program.into(), why: e.to_string() })?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().chars().take(200).collect();
    Err(Error::Map { what: program.into(), why })
}

/// Prepared namespaces by slot.
#[derive(Default)]
pub struct Prepared {
    by_slot: Vec<Option<OwnedFd>>,
}

impl Prepared {
    /// The namespace of `slot`, prepared now if it was not before.
    ///
    /// # Errors
    /// As [`prepare`].
    pub fn get(&mut self, source: UidSource, slot: Slot) -> Result<rustix::fd::BorrowedFd<'_>, Error> {
        let index = slot.0 as usize;
        if self.by_slot.len() <= index {
            self.by_slot.resize_with(index + 1, || None);
        }
        let place = &mut self.by_slot[index];
        if place.is_none() {
            *place = Some(prepare(source, slot)?);
        }
        // Filled just above where it was empty.
        place.as_ref().map(|fd| fd.as_fd()).ok_or(Error::System("user namespace", std::io::Error::other("missing")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_the_users_by_name_or_number() {
        let text = "root:100000:65536\nann:165536:65536\n1001:300000:1000\n";
        assert_eq!(find_range(text, Some("ann"), 1000), Some((165536, 65536)));
        assert_eq!(find_range(text, None, 1001), Some((300000, 1000)));
        assert_eq!(find_range(text, Some("bob"), 1002), None);
    }

    #[test]
    fn a_range_that_is_no_range_is_ignored() {
        for text in ["ann:100000", "ann:x:5", "ann:100000:0", "ann:0:1000", "ann:4294967295:10", ""] {
            assert_eq!(find_range(text, Some("ann"), 1000), None, "{text}");
        }
    }

    #[test]
    fn the_largest_of_several_ranges_is_taken() {
        assert_eq!(find_range("ann:100:10\nann:1000:500\nann:9000:20", Some("ann"), 7), Some((1000, 500)));
    }

    #[test]
    fn a_user_name_is_found_by_uid() {
        let passwd = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000:Ann:/home/ann:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("ann"));
        assert_eq!(user_name(passwd, 1001), None);
    }

    #[test]
    fn a_slot_past_the_range_has_no_uid() {
        let source = UidSource::Subordinate { first_uid: 100, first_gid: 200, count: 2 };
        assert_eq!(outer_ids(source, Slot(1)), Some((101, 201)));
        assert_eq!(outer_ids(source, Slot(2)), None);
    }
}
