//! `/etc/vmsup/netd.toml`: read whole or refused whole, with file, line and reason.
//!
//! A network is what its bridge and its subnet are. While it has leases neither changes: a file that says so is refused,
//! at SIGHUP and at a start alike, because the guests that run would lose their gateway. Everything else of it may change
//! at any time; what concerns ports (`isolated`, `mtu`) holds for new ones. A network that is left out while it has
//! leases is *retired*: they go on as they are until their VMs end.

use crate::names;
use crate::network::Network;
use crate::ops::IfName;
use crate::permit::Who;
use crate::places::Place;
use ipc::peer::Accounts;
use netd_api::{DNS_MAX, NETWORK_NAME_MAX, NETWORKS_MAX};
use serde::Deserialize;
use std::net::Ipv4Addr;
use std::rc::Rc;

/// The most leases of one uid in one network.
const LEASES_MAX: u32 = 4096;
/// The most warm TAPs of one network.
const POOL_MAX: u8 = 16;
/// What a TAP can have (65,535 bytes with the Ethernet header), and the least that IPv4 and DHCP need.
const MTU: std::ops::RangeInclusive<u16> = 576..=65521;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file, or the names of this host's users, cannot be read.
    #[error("{file}: {source}")]
    Read {
        /// Its path.
        file: String,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// Somebody else could have written it.
    #[error("{0}: must be root's and writable by nobody else (chown root, chmod go-w)")]
    Untrusted(String),
    /// Something in it is wrong.
    #[error("{file}:{line}: {reason}")]
    Wrong {
        /// Its path.
        file: String,
        /// Where.
        line: usize,
        /// What.
        reason: String,
    },
    /// It contradicts leases of VMs that run.
    #[error("{0}")]
    InUse(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    #[serde(default)]
    network: Vec<NetworkText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkText {
    name: String,
    bridge: String,
    subnet: String,
    #[serde(default = "yes")]
    nat: bool,
    #[serde(default)]
    dns: Vec<Ipv4Addr>,
    mtu: Option<u16>,
    #[serde(default)]
    users: Vec<NameOrId>,
    #[serde(default)]
    groups: Vec<NameOrId>,
    leases: Option<u32>,
    #[serde(default = "yes")]
    isolated: bool,
    #[serde(default)]
    host: bool,
    #[serde(default)]
    metadata: bool,
    #[serde(default)]
    reach: Vec<String>,
    #[serde(default)]
    localhost_forwards: bool,
    pool: Option<u8>,
    #[serde(default)]
    forward: Vec<ForwardText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ForwardText {
    #[serde(default)]
    users: Vec<NameOrId>,
    #[serde(default)]
    groups: Vec<NameOrId>,
    ports: Vec<PortText>,
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

fn yes() -> bool {
    true
}

/// Which key of a network is wrong, and why.
type Wrong = (&'static str, String);

/// Reads the file in its place, and checks it. It must be root's or `owner`'s.
///
/// # Errors
/// Whatever is wrong; nothing of the file is used then.
pub fn read(place: &Place, etc: &Place, owner: u32) -> Result<Vec<Network>, Error> {
    let file = place.shown().to_owned();
    let (text, stat) = place.read(place.name()).map_err(|source| Error::Read { file: file.clone(), source })?;
    if ![0, owner].contains(&stat.st_uid) || stat.st_mode & 0o022 != 0 {
        return Err(Error::Untrusted(file));
    }
    let accounts = names::read(etc)
        .map_err(|source| Error::Read { file: "/etc/passwd, /etc/group, /etc/subuid".into(), source })?;
    parse(&text, &accounts).map_err(|(line, reason)| Error::Wrong { file, line, reason })
}

/// The networks that `text` declares.
///
/// # Errors
/// The line, counted from 1, and what is wrong there.
pub fn parse(text: &str, accounts: &Accounts) -> Result<Vec<Network>, (usize, String)> {
    let file: FileText = basic_toml::from_str(text).map_err(|error| {
        let line = error.line_col().map_or(1, |(line, _)| line + 1);
        let message = without_position(&error.to_string());
        (line_of_key(text, line, &message), message)
    })?;
    let at = |number: usize, (key, reason): Wrong| (line_of(text, number, key), format!("{key}: {reason}"));
    let mut networks: Vec<Network> = Vec::new();
    for (number, given) in file.network.iter().enumerate() {
        let network = check(given, &file.network, accounts).map_err(|wrong| at(number, wrong))?;
        if number >= NETWORKS_MAX {
            return Err(at(number, ("network", format!("more than {NETWORKS_MAX} of them"))));
        }
        for other in &networks {
            conflict(&network, other).map_err(|wrong| at(number, wrong))?;
        }
        networks.push(network);
    }
    Ok(networks)
}

/// Two networks that cannot be there together.
fn conflict(one: &Network, other: &Network) -> Result<(), Wrong> {
    let name = &other.name;
    if one.name == *name {
        return Err(("name", format!("there are two networks \"{name}\"")));
    }
    if one.bridge == other.bridge {
        return Err(("bridge", format!("{} is the bridge of network \"{name}\" already", one.bridge)));
    }
    if one.overlaps(other) {
        let subnet = |n: &Network| format!("{}/{}", n.address, n.prefix);
        return Err(("subnet", format!("{} overlaps {} of network \"{name}\"", subnet(one), subnet(other))));
    }
    Ok(())
}

fn check(given: &NetworkText, all: &[NetworkText], accounts: &Accounts) -> Result<Network, Wrong> {
    let wrong = |key, reason: &str| Err((key, reason.to_owned()));
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if given.name.is_empty() || given.name.len() > NETWORK_NAME_MAX || !given.name.bytes().all(allowed) {
        return wrong("name", "1 to 31 letters, digits, \"-\" and \"_\"");
    }
    let bridge = bridge_name(&given.bridge)?;
    let (address, prefix) = subnet(&given.subnet)?;
    if given.dns.len() > DNS_MAX {
        return wrong("dns", "at most 3 servers");
    }
    let mtu = given.mtu.unwrap_or(1500);
    if !MTU.contains(&mtu) {
        return wrong("mtu", "576 to 65521 bytes");
    }
    let leases = given.leases.unwrap_or(16);
    if leases == 0 || leases > LEASES_MAX {
        return wrong("leases", "1 to 4096 for each uid");
    }
    let pool = given.pool.unwrap_or(2);
    if pool > POOL_MAX {
        return wrong("pool", "0 to 16 TAPs");
    }
    let reach = given.reach.iter().map(|name| match all.iter().find(|n| n.name == *name && n.name != given.name) {
        Some(to) => bridge_name(&to.bridge).map_err(|(_, reason)| ("reach", reason)),
        None => Err(("reach", format!("{name:?} is no other network"))),
    });
    let forwards = given.forward.iter().map(|rule| {
        let ports: Result<Vec<_>, Wrong> = rule.ports.iter().map(ports).collect();
        Ok((who(&rule.users, &rule.groups, accounts)?, ports?))
    });
    Ok(Network {
        name: given.name.clone(),
        bridge,
        address,
        prefix,
        mtu,
        nat: given.nat,
        isolated: given.isolated,
        host: given.host,
        metadata: given.metadata,
        localhost: given.localhost_forwards,
        reach: reach.collect::<Result<_, Wrong>>()?,
        dns: given.dns.clone(),
        who: who(&given.users, &given.groups, accounts)?,
        leases,
        pool,
        forwards: forwards.collect::<Result<_, Wrong>>()?,
        retired: false,
    })
}

/// A name that no TAP of ours could have: the rules go by `vt*`.
fn bridge_name(name: &str) -> Result<IfName, Wrong> {
    let fits = IfName::new(name).filter(|n| !n.as_str().starts_with("vt") && n.as_str() != "lo");
    fits.ok_or_else(|| ("bridge", format!("{name:?} is no name for a bridge: at most 15 bytes, not \"vt…\"")))
}

fn subnet(text: &str) -> Result<(Ipv4Addr, u8), Wrong> {
    let wrong = |reason: &str| ("subnet", format!("{text:?}: {reason}"));
    let parts = text.split_once('/').and_then(|(a, p)| Some((a.parse::<Ipv4Addr>().ok()?, p.parse::<u8>().ok()?)));
    let (address, prefix) = parts.ok_or_else(|| wrong("an address and a prefix are needed, as in 10.77.0.1/24"))?;
    if !(8..=29).contains(&prefix) {
        return Err(wrong("the prefix is /8 to /29"));
    }
    let unusual = address.is_loopback() || address.is_link_local() || address.octets()[0] == 0;
    if unusual || address.octets()[0] >= 224 {
        return Err(wrong("no address for guests"));
    }
    let host = u32::from(address) & (u32::MAX >> prefix);
    if host == 0 || host == u32::MAX >> prefix {
        return Err(wrong("the host's own address in it is needed, not the network's or the broadcast address"));
    }
    Ok((address, prefix))
}

fn who(users: &[NameOrId], groups: &[NameOrId], accounts: &Accounts) -> Result<Who, Wrong> {
    let user = |u: &NameOrId| match u {
        NameOrId::Id(id) => Ok(*id),
        NameOrId::Name(name) => {
            let found = accounts.user(name).ok_or_else(|| ("users", format!("{name:?} is no user in /etc/passwd")));
            found.map(|(uid, _)| uid)
        }
    };
    let group = |g: &NameOrId| match g {
        NameOrId::Id(id) => Ok(*id),
        NameOrId::Name(name) => {
            accounts.group(name).ok_or_else(|| ("groups", format!("{name:?} is no group in /etc/group")))
        }
    };
    let users = users.iter().map(user).collect::<Result<_, Wrong>>()?;
    let groups = groups.iter().map(group).collect::<Result<_, Wrong>>()?;
    Ok(Who { users, groups, subordinate: accounts.subordinate() })
}

fn ports(text: &PortText) -> Result<(u16, u16), Wrong> {
    let (range, shown) = match text {
        PortText::One(port) => (Some((*port, *port)), port.to_string()),
        PortText::Range(range) => {
            let ends = range.split_once('-');
            let numbers = ends.and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
            (numbers, format!("{range:?}"))
        }
    };
    let fits = range.filter(|(first, last)| *first != 0 && first <= last);
    fits.ok_or_else(|| ("ports", format!("{shown}: a port is 1 to 65535, a range \"FIRST-LAST\"")))
}

/// The message of basic-toml without its own position, which would stand there twice.
fn without_position(message: &str) -> String {
    message.rsplit_once(" at line ").map_or(message, |(what, _)| what).to_owned()
}

/// The line of the key that basic-toml's message names. By itself it knows where a value of a wrong type is in a table that
/// is not in a list, and no more than the heading of one that is.
fn line_of_key(text: &str, line: usize, message: &str) -> usize {
    let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
    let path = message.rsplit_once(" for key `").and_then(|(_, path)| path.trim_end_matches('`').rsplit('.').next());
    let Some(key) = unknown.or(path) else { return line };
    let is_it = |l: &str| l.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='));
    let below = text.lines().enumerate().skip(line - 1).find(|(_, l)| is_it(l));
    below.map_or(line, |(number, _)| number + 1)
}

/// The line, counted from 1, of a key of the network with this number, or of its heading.
fn line_of(text: &str, number: usize, key: &str) -> usize {
    let bare = |line: &str| line.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    let heading = |line: &str| bare(line).starts_with("[[network]]");
    let (start, _) = text.lines().enumerate().filter(|(_, l)| heading(l)).nth(number).unwrap_or((0, ""));
    let own = text.lines().enumerate().skip(start + 1).take_while(|(_, l)| !heading(l));
    let found = own.filter(|(_, l)| bare(l).starts_with(&format!("{key}="))).map(|(line, _)| line).next();
    found.unwrap_or(start) + 1
}

/// What holds after `new` was read while `old` held: the new networks, and of the old ones those that have leases and are
/// left out.
///
/// # Errors
/// [`Error::InUse`] where the new ones contradict leases.
pub fn merge(old: &[Rc<Network>], new: Vec<Network>, in_use: impl Fn(&str) -> bool) -> Result<Vec<Rc<Network>>, Error> {
    let running = "while VMs run in it: stop them first, or give the new network another name";
    let mut merged: Vec<Rc<Network>> = new.into_iter().map(Rc::new).collect();
    for before in old.iter().filter(|n| in_use(&n.name)) {
        let name = &before.name;
        match merged.iter().find(|n| n.name == *name) {
            Some(n) if (n.bridge, n.address, n.prefix) != (before.bridge, before.address, before.prefix) => {
                return Err(Error::InUse(format!("network \"{name}\": bridge or subnet cannot change {running}")));
            }
            Some(_) => {}
            None => {
                let retired = before.retire();
                for network in &merged {
                    conflict(network, &retired).map_err(|(_, reason)| {
                        Error::InUse(format!("network \"{}\": {reason}, which was removed, {running}", network.name))
                    })?;
                }
                merged.push(Rc::new(retired));
            }
        }
    }
    Ok(merged)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
