//! netd gives up all but what it needs: one function, in order; any failure is the end. Then it is checked.
//!
//! 1. no core dumps, few fds (`policies/process.json`)
//! 2. the user: no capability may come back by a change of uid or by exec (securebits, bounding set); groups, gid, uid
//! 3. CAP_NET_ADMIN alone, permitted and effective; nothing inheritable or ambient
//! 4. no_new_privs, not dumpable: nobody of the same user looks inside
//! 5. landlock, then the seccomp filter
//!
//! Under a service manager steps 2 and 3 were done by it; without CAP_SETPCAP the bounding set and securebits stay as it
//! set them, and no_new_privs makes both meaningless.

use crate::places::Place;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitiesSecureBits as Bits, CapabilitySet, CapabilitySets, Gid, Uid};
use std::fmt::Display;
use std::os::fd::{AsFd, BorrowedFd};

/// A step that did not hold.
#[derive(Debug, thiserror::Error)]
#[error("netd cannot be confined: {step}: {reason}")]
pub struct Error {
    step: &'static str,
    reason: String,
}

fn failed<E: Display>(step: &'static str) -> impl Fn(E) -> Error {
    move |reason| Error { step, reason: reason.to_string() }
}

/// The places that landlock leaves open.
pub struct Open<'a> {
    /// The journal's.
    pub journal: &'a Place,
    /// `/dev/net/tun`, O_PATH.
    pub tun: BorrowedFd<'a>,
    /// The configuration's.
    pub config: &'a Place,
    /// `/etc`.
    pub accounts: &'a Place,
}

/// Is there a capability to keep?
pub fn has_net_admin() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.permitted.contains(CapabilitySet::NET_ADMIN))
}

/// Steps 1 to 5. `become_user`: uid and gid, where netd was started as root.
///
/// # Errors
/// The step that failed; the process must end.
pub fn confine(become_user: Option<(u32, u32)>, open: &Open<'_>) -> Result<(), Error> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(failed("threads"))?.count();
    if threads != 1 {
        return Err(failed("threads")(format!("{threads} are there, and one would be confined")));
    }
    limit_resources()?;
    if let Some((uid, gid)) = become_user {
        drop_user(uid, gid)?;
    }
    let only = CapabilitySet::NET_ADMIN;
    let sets = CapabilitySets { effective: only, permitted: only, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(failed("capabilities"))?;
    rustix::thread::clear_ambient_capability_set().map_err(failed("ambient capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(failed("no_new_privs"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("dumpable"))?;
    let places = [
        ("journal directory", open.journal.as_fd()),
        ("/dev/net/tun", open.tun),
        ("configuration directory", open.config.as_fd()),
        ("accounts directory", open.accounts.as_fd()),
    ];
    policies::apply::landlock_netd(&places).map_err(failed("landlock"))?;
    verify(become_user, sets)?;
    policies::apply::seccomp(&policies::NETD).map_err(failed("filter"))
}

fn limit_resources() -> Result<(), Error> {
    for (name, value) in policies::PROCESS_NETD.rlimits {
        let resource = match *name {
            "core" => Resource::Core,
            "nofile" => Resource::Nofile,
            other => return Err(failed("limits")(format!("process.json names {other}, which is not known here"))),
        };
        // Less, where whoever started us allows less.
        let value = rustix::process::getrlimit(resource).maximum.map_or(*value, |most| most.min(*value));
        let both = Rlimit { current: Some(value), maximum: Some(value) };
        rustix::process::setrlimit(resource, both).map_err(failed("limits"))?;
    }
    Ok(())
}

fn drop_user(uid: u32, gid: u32) -> Result<(), Error> {
    // Without fix-up the change of uid leaves the capabilities alone: the next step names those that stay.
    let bits = Bits::NO_ROOT
        | Bits::NO_ROOT_LOCKED
        | Bits::NO_SETUID_FIXUP
        | Bits::NO_SETUID_FIXUP_LOCKED
        | Bits::KEEP_CAPS_LOCKED
        | Bits::NO_CAP_AMBIENT_RAISE
        | Bits::NO_CAP_AMBIENT_RAISE_LOCKED;
    rustix::thread::set_capabilities_secure_bits(bits).map_err(failed("securebits"))?;
    for number in 0..64 {
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // Past the last one that the kernel knows.
            Err(rustix::io::Errno::INVAL) if number > 0 => break,
            Err(error) => return Err(failed("bounding set")(error)),
        }
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&[]).map_err(failed("groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("gid"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("uid"))
}

/// Reads back what can be read, before the filter takes the calls away that read it.
fn verify(user: Option<(u32, u32)>, wanted: CapabilitySets) -> Result<(), Error> {
    let ids = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let effective = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let dumpable = rustix::process::dumpable_behavior();
    let checks = [
        ("capabilities", rustix::thread::capabilities(None) == Ok(wanted)),
        ("ambient", rustix::thread::capability_is_in_ambient_set(CapabilitySet::NET_ADMIN) == Ok(false)),
        ("user", user.is_none_or(|u| u == ids && u == effective && ids.0 != 0)),
        ("groups", user.is_none() || rustix::process::getgroups().is_ok_and(|g| g.is_empty())),
        ("bounding", user.is_none() || bounding_set_is_empty()),
        ("no_new_privs", rustix::thread::no_new_privs() == Ok(true)),
        ("dumpable", dumpable == Ok(DumpableBehavior::NotDumpable)),
        ("landlock", std::fs::File::open("/proc/self/status").is_err() && std::fs::read_dir("/").is_err()),
    ];
    match checks.into_iter().find(|(_, holds)| !holds) {
        Some((what, _)) => Err(failed(what)("is not as it was set")),
        None => Ok(()),
    }
}

fn bounding_set_is_empty() -> bool {
    let in_set = |n: u32| rustix::thread::capability_is_in_bounding_set(CapabilitySet::from_bits_retain(1 << n));
    (0..64).all(|n| !in_set(n).unwrap_or(false))
}
