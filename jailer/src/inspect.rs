//! `vmsup-jailer inspect PID`: what only the creator of a worker's user namespace may read.
//!
//! A worker is not dumpable, so its `/proc/PID/fd`, `environ`, `root` and `ns` are closed even to its own uid. Who
//! created its user namespace has every capability in there: this process enters it by the worker's pidfd and reads. It
//! is a process of its own, started for one answer; the jailer that serves never enters a namespace itself.

use crate::section;
use crate::serve::Error;
use jail_spec::Inspection;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use rustix::thread::ThreadNameSpaceType;
use std::fs;
use std::io::Write;

/// `inspect PID [--wire]`: text for people, or one frame of [`Inspection`].
///
/// # Errors
/// A sentence.
pub fn main(args: &[String]) -> Result<(), Error> {
    let usage = || Error::Usage("inspect needs the pid of a worker, and perhaps --wire".into());
    let (pid, wire) = match args {
        [pid] => (pid, false),
        [pid, option] if option == "--wire" => (pid, true),
        _ => return Err(usage()),
    };
    let pid: i32 = pid.parse().ok().filter(|n| *n > 0).ok_or_else(usage)?;
    let inspection = inspect(pid)?;
    let mut out = std::io::stdout().lock();
    let written = if wire {
        let frame = ipc::codec::encode(&inspection, ipc::codec::FRAME_LIMIT)?;
        out.write_all(&frame)
    } else {
        out.write_all(text(&inspection).as_bytes())
    };
    written.map_err(|e| Error::System("standard output", e))
}

/// Enters the user namespace of `pid` and reads.
fn inspect(pid: i32) -> Result<Inspection, Error> {
    let fail = |what: &str, error: std::io::Error| Error::Inspect(format!("{what} of process {pid}: {error}"));
    let target = Pid::from_raw(pid).ok_or_else(|| Error::Usage("inspect needs the pid of a worker".into()))?;
    let pidfd = rustix::process::pidfd_open(target, PidfdFlags::empty()).map_err(|e| match e {
        Errno::SRCH => Error::Inspect(format!("there is no process {pid}")),
        e => fail("the pidfd", e.into()),
    })?;
    match rustix::thread::move_into_thread_name_spaces(pidfd.as_fd(), ThreadNameSpaceType::USER) {
        Ok(()) => {}
        // EINVAL: it is in our own user namespace, where no worker is. EPERM: someone else made its namespace.
        Err(Errno::INVAL | Errno::PERM) => {
            return Err(Error::Inspect(format!("process {pid} is not a worker of this user")));
        }
        Err(e) => return Err(fail("the user namespace", e.into())),
    }
    let folder = format!("/proc/{pid}");
    let read = |file: &str| fs::read(format!("{folder}/{file}")).map_err(|e| fail(file, e));
    let link = |file: &str| {
        fs::read_link(format!("{folder}/{file}")).map(|p| p.to_string_lossy().into_owned()).map_err(|e| fail(file, e))
    };
    let mut fds = Vec::new();
    for name in names(&format!("{folder}/fd")).map_err(|e| fail("fd", e))? {
        // An fd that was closed since is no longer of interest.
        if let (Ok(number), Ok(what)) = (name.parse::<i32>(), link(&format!("fd/{name}"))) {
            fds.push((number, what));
        }
    }
    fds.sort_unstable();
    let mut namespaces = Vec::new();
    for name in names(&format!("{folder}/ns")).map_err(|e| fail("ns", e))? {
        namespaces.push(link(&format!("ns/{name}"))?);
    }
    namespaces.sort_unstable();
    namespaces.dedup();
    let inspection = Inspection {
        fds,
        environ_bytes: read("environ")?.len(),
        root: link("root")?,
        root_entries: names(&format!("{folder}/root/")).map_err(|e| fail("root", e))?,
        mounts: String::from_utf8_lossy(&read("mountinfo")?).lines().map(str::to_owned).collect(),
        namespaces,
        section: fs::File::open(format!("{folder}/exe"))
            .map_err(|e| e.to_string())
            .and_then(|program| section::read(program.as_fd()).map_err(|e| e.to_string())),
    };
    // Asked once more at the end: all of the above was of the process that the pidfd names, not of a later one.
    let mut set = [PollFd::new(&pidfd, PollFlags::IN)];
    match poll(&mut set, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(0) => Ok(inspection),
        _ => Err(fail("the life", std::io::Error::other("it has ended"))),
    }
}

fn names(folder: &str) -> std::io::Result<Vec<String>> {
    let mut names: Vec<String> =
        fs::read_dir(folder)?.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    Ok(names)
}

/// For people.
fn text(i: &Inspection) -> String {
    let mut text = String::new();
    for (number, what) in &i.fds {
        text += &format!("fd {number}: {what}\n");
    }
    text += &format!("environment: {} bytes\n", i.environ_bytes);
    text += &format!("root: {} with {} entries\n", i.root, i.root_entries.len());
    for mount in &i.mounts {
        text += &format!("mount: {mount}\n");
    }
    for namespace in &i.namespaces {
        text += &format!("namespace: {namespace}\n");
    }
    text += &match &i.section {
        Ok(section) if section == &policies::section::bytes() => "policy section: as this jailer's own\n".to_owned(),
        Ok(section) => format!("policy section: {}\n", policies::section::difference(section).unwrap_or_default()),
        Err(why) => format!("policy section: {why}\n"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_no_worker_is_named_as_such() {
        let own = std::process::id().cast_signed();
        let said = inspect(own).unwrap_err().to_string();
        assert_eq!(said, format!("process {own} is not a worker of this user"));
        assert_eq!(inspect(i32::MAX).unwrap_err().to_string(), format!("there is no process {}", i32::MAX));
    }
}
