//! `/etc/vmsup/supervisor.toml`: who may use a shared supervisor, and how much. Read whole or refused whole, with file, line
//! and reason.
//!
//! Names are those of `/etc/passwd` and `/etc/group`, looked up when the file is read; who is known to a directory service
//! only is named by number. Runs before the filter is in force and again, under it, at each SIGHUP.

use super::quota::{Demand, GIB, Limit, Quota};
use ipc::peer::{Accounts, Peer, Who};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest file that is read.
const FILE_MAX: u64 = 16 << 20;
/// What a user may have of whom nothing else is said: a few small VMs, without a network.
const DEFAULT: Demand = Demand { vms: 8, vcpus: 8, memory_mib: 8192, disk_bytes: 64 * GIB, leases: 8 };
/// The most of each that can be written down.
const VMS_MAX: u64 = crate::serve::registry::VMS_MAX as u64;
const OTHERS_MAX: u64 = 1 << 40;
/// As netd has it.
const NETWORK_NAME_MAX: usize = 31;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It, or the names of this host's users, cannot be read.
    #[error("{}: {source}", .file.display())]
    Read {
        /// Its path.
        file: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// Somebody else could have written it.
    #[error("{}: must be root's, or of the user whose supervisor this is, and writable by nobody else (chmod go-w)", .0.display())]
    Untrusted(PathBuf),
    /// Something in it is wrong.
    #[error("{}:{line}: {reason}", .file.display())]
    Wrong {
        /// Its path.
        file: PathBuf,
        /// Where.
        line: usize,
        /// What.
        reason: String,
    },
}

/// Where the configuration and the names are.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file.
    pub file: PathBuf,
    /// The directory of `passwd`, `group` and `subuid`.
    pub etc: PathBuf,
    /// The uid of the user who may have written it, beside root.
    pub owner: u32,
}

impl Source {
    /// `file`, which may be `owner`'s, with this host's names. Whole, for it is read again from wherever we are then.
    ///
    /// # Errors
    /// There is no working directory.
    pub fn of(file: &Path, owner: u32) -> Result<Source, Error> {
        let file = std::path::absolute(file).map_err(|source| Error::Read { file: file.to_owned(), source })?;
        Ok(Source { file, etc: "/etc".into(), owner })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    #[serde(default)]
    access: AccessText,
    #[serde(default)]
    quota: QuotaText,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct AccessText {
    #[serde(default)]
    users: Vec<NameOrId>,
    #[serde(default)]
    groups: Vec<NameOrId>,
    administrators: Option<NameOrId>,
}

/// `[quota]`, and with the same fields `[quota.users.NAME]` and `[quota.groups.NAME]`, which have no tables in them.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct QuotaText {
    vms: Option<u64>,
    vcpus: Option<u64>,
    memory_mib: Option<u64>,
    disk_gib: Option<u64>,
    leases: Option<u64>,
    networks: Option<Vec<String>>,
    forwards: Option<Vec<PortText>>,
    #[serde(default)]
    users: BTreeMap<String, QuotaText>,
    #[serde(default)]
    groups: BTreeMap<String, QuotaText>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a name or a number")]
enum NameOrId {
    Name(String),
    Id(u32),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a port, or \"FIRST-LAST\"")]
enum PortText {
    One(u16),
    Range(String),
}

/// What one table of quotas says; nothing where it is silent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Said {
    vms: Option<u64>,
    vcpus: Option<u64>,
    memory_mib: Option<u64>,
    disk_bytes: Option<u64>,
    leases: Option<u64>,
    networks: Option<Vec<String>>,
    forwards: Option<Vec<(u16, u16)>>,
}

/// A configuration, checked.
#[derive(Debug, Clone, Default)]
pub struct Config {
    access: Who,
    administrators: Who,
    default: Said,
    users: BTreeMap<u32, Said>,
    groups: Vec<(u32, Said)>,
    accounts: Accounts,
}

/// What somebody is to a shared supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Sees and touches every VM, and is held to no quota.
    Administrator,
    /// Their own VMs, and no others.
    Tenant,
}

/// A table, a key in it, and why that is wrong.
type Wrong = (String, String, String);

/// Reads the file and the names, and checks all of it.
///
/// # Errors
/// Whatever is wrong; nothing of the file is used then.
pub fn read(source: &Source) -> Result<Config, Error> {
    let failed = |file: &Path| {
        let file = file.to_owned();
        |source| Error::Read { file, source }
    };
    let (text, stat) = text(&source.file).map_err(failed(&source.file))?;
    if ![0, source.owner].contains(&stat.st_uid) || stat.st_mode & 0o022 != 0 {
        return Err(Error::Untrusted(source.file.clone()));
    }
    let of = |name: &str| {
        let path = source.etc.join(name);
        self::text(&path).map(|(text, _)| text).map_err(failed(&path))
    };
    let subuid = match of("subuid") {
        Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => String::new(),
        read => read?,
    };
    let accounts = Accounts::of(of("passwd")?, of("group")?, subuid);
    parse(&text, accounts).map_err(|(line, reason)| Error::Wrong { file: source.file.clone(), line, reason })
}

/// The text of a file, and whose it is.
fn text(path: &Path) -> io::Result<(String, rustix::fs::Stat)> {
    // Non-blocking: a FIFO in this place must not stop the supervisor.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file: OwnedFd = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("no regular file"));
    }
    let mut text = String::new();
    std::fs::File::from(file).take(FILE_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_MAX {
        return Err(io::Error::other("too large"));
    }
    Ok((text, stat))
}

/// What `text` says.
///
/// # Errors
/// The line, counted from 1, and what is wrong there.
pub fn parse(text: &str, accounts: Accounts) -> Result<Config, (usize, String)> {
    let file: FileText = basic_toml::from_str(text).map_err(|error| {
        let line = error.line_col().map_or(1, |(line, _)| line + 1);
        let message = error.to_string();
        let message = message.rsplit_once(" at line ").map_or(&*message, |(what, _)| what).to_owned();
        (line_of_message(text, line, &message), message)
    })?;
    checked(file, accounts).map_err(|(table, key, reason)| (line_of(text, &table, &key), format!("{key}: {reason}")))
}

fn checked(file: FileText, accounts: Accounts) -> Result<Config, Wrong> {
    let FileText { access, quota } = file;
    let at = |key: &'static str| move |reason| ("access".to_owned(), key.to_owned(), reason);
    let subordinate = accounts.subordinate();
    let users = access.users.iter().map(|user| uid(user, &accounts).map_err(at("users")));
    let groups = access.groups.iter().map(|group| gid(group, &accounts).map_err(at("groups")));
    let administrators = access.administrators.iter().map(|group| gid(group, &accounts).map_err(at("administrators")));
    let administrators = administrators.collect::<Result<_, _>>()?;
    let mut config = Config {
        access: Who {
            users: users.collect::<Result<_, _>>()?,
            groups: groups.collect::<Result<_, _>>()?,
            subordinate: subordinate.clone(),
        },
        administrators: Who { users: Vec::new(), groups: administrators, subordinate },
        default: said(&quota, "quota")?,
        ..Config::default()
    };
    for (name, text) in &quota.users {
        let table = format!("quota.users.{name}");
        let uid = uid(&name_or_id(name), &accounts).map_err(|reason| (table.clone(), name.clone(), reason))?;
        if config.users.insert(uid, said(text, &table)?).is_some() {
            return Err((table, name.clone(), format!("uid {uid} has another quota already")));
        }
    }
    for (name, text) in &quota.groups {
        let table = format!("quota.groups.{name}");
        let gid = gid(&name_or_id(name), &accounts).map_err(|reason| (table.clone(), name.clone(), reason))?;
        config.groups.push((gid, said(text, &table)?));
    }
    if let Some(text) = quota.users.values().chain(quota.groups.values()).find(|text| text.has_tables()) {
        let name = text.users.keys().chain(text.groups.keys()).next().cloned().unwrap_or_default();
        return Err(("quota".into(), name, "a quota of one user or group has no others in it".into()));
    }
    config.accounts = accounts;
    Ok(config)
}

impl QuotaText {
    fn has_tables(&self) -> bool {
        !self.users.is_empty() || !self.groups.is_empty()
    }
}

fn said(text: &QuotaText, table: &str) -> Result<Said, Wrong> {
    let number = |key: &str, value: Option<u64>, most: u64| match value {
        Some(value) if value > most => Err((table.to_owned(), key.to_owned(), format!("{value} is more than {most}"))),
        value => Ok(value),
    };
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let named = |name: &&String| name.is_empty() || name.len() > NETWORK_NAME_MAX || !name.bytes().all(allowed);
    if let Some(name) = text.networks.iter().flatten().find(named) {
        let reason = format!("{name:?} is no name of a network (1 to 31 letters, digits, \"-\" and \"_\")");
        return Err((table.into(), "networks".into(), reason));
    }
    let forwards = text.forwards.as_ref().map(|all| all.iter().map(ports).collect::<Result<Vec<_>, _>>());
    Ok(Said {
        vms: number("vms", text.vms, VMS_MAX)?,
        vcpus: number("vcpus", text.vcpus, OTHERS_MAX)?,
        memory_mib: number("memory_mib", text.memory_mib, OTHERS_MAX)?,
        disk_bytes: number("disk_gib", text.disk_gib, OTHERS_MAX / GIB)?.map(|gib| gib * GIB),
        leases: number("leases", text.leases, OTHERS_MAX)?,
        networks: text.networks.clone(),
        forwards: forwards.transpose().map_err(|reason| (table.to_owned(), "forwards".to_owned(), reason))?,
    })
}

fn name_or_id(name: &str) -> NameOrId {
    name.parse().map_or_else(|_| NameOrId::Name(name.to_owned()), NameOrId::Id)
}

fn uid(user: &NameOrId, accounts: &Accounts) -> Result<u32, String> {
    match user {
        NameOrId::Id(id) => Ok(*id),
        NameOrId::Name(name) => {
            let found = accounts.user(name).ok_or_else(|| format!("{name:?} is no user in /etc/passwd"));
            found.map(|(uid, _)| uid)
        }
    }
}

fn gid(group: &NameOrId, accounts: &Accounts) -> Result<u32, String> {
    match group {
        NameOrId::Id(id) => Ok(*id),
        NameOrId::Name(name) => accounts.group(name).ok_or_else(|| format!("{name:?} is no group in /etc/group")),
    }
}

fn ports(text: &PortText) -> Result<(u16, u16), String> {
    let (range, shown) = match text {
        PortText::One(port) => (Some((*port, *port)), port.to_string()),
        PortText::Range(range) => {
            let ends = range.split_once('-');
            let numbers = ends.and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
            (numbers, format!("{range:?}"))
        }
    };
    let fits = range.filter(|(first, last)| *first != 0 && first <= last);
    fits.ok_or_else(|| format!("{shown}: a port is 1 to 65535, a range \"FIRST-LAST\""))
}

impl Config {
    /// Whom it lets in, in a sentence.
    pub fn summary(&self) -> String {
        let counted = |n: usize, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
        let who = match (self.access.users.len(), self.access.groups.len()) {
            (0, 0) => "nobody may use it but root, its own user and administrators".to_owned(),
            (users, 0) => format!("{} may use it", counted(users, "user")),
            (0, groups) => format!("members of {} may use it", counted(groups, "group")),
            (users, groups) => {
                format!("{} and members of {} may use it", counted(users, "user"), counted(groups, "group"))
            }
        };
        match self.administrators.groups.len() {
            0 => format!("{who}; it has no administrators"),
            groups => format!("{who}; members of {} are its administrators", counted(groups, "group")),
        }
    }

    /// What `peer` is here; nothing where they may not use this supervisor.
    pub fn standing(&self, peer: &Peer) -> Option<Standing> {
        if self.administrators.includes(peer) {
            return Some(Standing::Administrator);
        }
        self.access.includes(peer).then_some(Standing::Tenant)
    }

    /// What a tenant may have. Their own table says it; else the most generous of those of their groups; else `[quota]`; else
    /// [`DEFAULT`]. Each field by itself.
    pub fn quota(&self, peer: &Peer) -> Quota {
        let own = self.users.get(&peer.uid);
        let groups: Vec<&Said> =
            self.groups.iter().filter(|(gid, _)| peer.groups.contains(gid)).map(|(_, said)| said).collect();
        let number = |of: fn(&Said) -> Option<u64>, default: u64| {
            let groups = groups.iter().filter_map(|said| of(said)).max();
            own.and_then(of).or(groups).or(of(&self.default)).unwrap_or(default)
        };
        Quota {
            most: Demand {
                vms: number(|said| said.vms, DEFAULT.vms),
                vcpus: number(|said| said.vcpus, DEFAULT.vcpus),
                memory_mib: number(|said| said.memory_mib, DEFAULT.memory_mib),
                disk_bytes: number(|said| said.disk_bytes, DEFAULT.disk_bytes),
                leases: number(|said| said.leases, DEFAULT.leases),
            },
            networks: list(own, &groups, &self.default, |said| said.networks.as_ref()),
            forwards: list(own, &groups, &self.default, |said| said.forwards.as_ref()),
        }
    }

    /// What a uid may have that nobody is connected as: by the groups that `/etc/group` says they are in.
    pub fn limit_of(&self, uid: u32) -> Limit {
        let peer = Peer { uid, groups: self.accounts.groups_of(uid) };
        let administrator = self.standing(&peer) == Some(Standing::Administrator);
        (!administrator && uid != 0).then(|| Arc::new(self.quota(&peer)))
    }
}

/// Of lists the own one counts, or those of all groups together, or the default one; nothing where none is written.
fn list<T: Clone + Ord>(
    own: Option<&Said>,
    groups: &[&Said],
    default: &Said,
    of: impl Fn(&Said) -> Option<&Vec<T>>,
) -> Vec<T> {
    let of_groups: Vec<&Vec<T>> = groups.iter().filter_map(|said| of(said)).collect();
    let mut all: Vec<T> = match own.and_then(&of) {
        Some(own) => own.clone(),
        None if !of_groups.is_empty() => of_groups.into_iter().flatten().cloned().collect(),
        None => of(default).cloned().unwrap_or_default(),
    };
    all.sort();
    all.dedup();
    all
}

/// The line of the key that basic-toml's message names. By itself it may know no more than the heading of the table.
fn line_of_message(text: &str, line: usize, message: &str) -> usize {
    let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
    let path = message.rsplit_once(" for key `").and_then(|(_, path)| path.trim_end_matches('`').rsplit('.').next());
    let Some(key) = unknown.or(path) else { return line };
    let is_it = |l: &str| {
        let l = l.trim_start().trim_start_matches('[');
        l.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(['=', ']', '.']))
    };
    let below = text.lines().enumerate().skip(line - 1).find(|(_, l)| is_it(l));
    below.map_or(line, |(number, _)| number + 1)
}

/// The line, counted from 1, of a key of a table, or of the table's heading, or the first one.
fn line_of(text: &str, table: &str, key: &str) -> usize {
    let bare = |line: &str| line.chars().filter(|c| !c.is_whitespace() && *c != '"').collect::<String>();
    let is_heading = |line: &str| bare(line).starts_with('[');
    let Some((start, _)) = text.lines().enumerate().find(|(_, l)| bare(l).starts_with(&format!("[{table}]"))) else {
        return 1;
    };
    let own = text.lines().enumerate().skip(start + 1).take_while(|(_, l)| !is_heading(l));
    let found = own.filter(|(_, l)| bare(l).starts_with(&format!("{key}="))).map(|(line, _)| line).next();
    found.unwrap_or(start) + 1
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
