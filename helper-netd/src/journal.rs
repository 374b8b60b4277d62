//! The journal: what a netd that is started again must know of this boot, as lines of text on a tmpfs.
//!
//! ```text
//! vmsup-netd 1 <boot id>
//! network <name> <bridge> <address> <prefix> <mtu> <flags> <bridges it reaches>
//! port <number>                                    this number is used
//! lease <id> <uid> <vm> <network> <port> <index> <tap's mac> <mac> <address> <forwards>
//! end <id>
//! ```
//!
//! Lists are joined by commas; an empty one is `-`. Each change is one write, without fsync: the interfaces are no more
//! lasting than a tmpfs is. A journal of another boot says nothing. Only netd's user can write it, but it is read with
//! care all the same: a damaged line is reported and left out. docs/decisions/0009-netd-journal.md.

use crate::leases::{Book, Holder, Port, State};
use crate::network::Network;
use crate::ops::{IfName, Mac};
use crate::permit::Who;
use crate::places::{Place, read_all};
use netd_api::{Forward, LeaseId, Protocol, VmId};
use rustix::fs::OFlags;
use std::fmt::{Display, Write as _};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// First words of the first line.
const FORMAT: &str = "vmsup-netd 1";
/// The journal is written anew when it has so many lines more than four times what it needs.
const SLACK: usize = 256;

/// What a journal says.
#[derive(Debug, Default)]
pub struct Replay {
    /// Its ports; all are leased.
    pub book: Book,
    /// Networks as they were, as far as their leases need them.
    pub networks: Vec<Rc<Network>>,
    /// What could not be read.
    pub faults: Vec<String>,
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    place: Place,
    file: OwnedFd,
    boot: String,
    lines: usize,
    /// The last write failed, perhaps half-way: nothing is appended to that.
    broken: bool,
}

impl Journal {
    /// Opens or makes the journal, and reads what is there.
    ///
    /// # Errors
    /// It cannot be opened or read.
    pub fn open(place: Place, boot: String) -> io::Result<(Journal, String)> {
        let file = place.open_file("", OFlags::RDWR | OFlags::CREATE | OFlags::APPEND)?;
        // Whatever stands there: a damaged journal costs leases, not the start.
        let text = String::from_utf8_lossy(&read_all(&file)?).into_owned();
        Ok((Journal { place, file, boot, lines: 0, broken: true }, text))
    }

    /// Writes the journal anew: everything that holds now. A reader finds the old one or this one.
    ///
    /// # Errors
    /// The old one stays.
    pub fn rewrite(&mut self, book: &Book, networks: &[Rc<Network>]) -> io::Result<()> {
        self.broken = true;
        let mut text = format!("{FORMAT} {}\nport {}\nend {}\n", self.boot, book.last_port, book.last_lease);
        for network in networks {
            let _ = writeln!(text, "{}", network_line(network));
        }
        for (port, holder) in book.leases() {
            let _ = writeln!(text, "{}", lease_line(port, holder));
        }
        let file = self.place.open_file(".new", OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::APPEND)?;
        write_whole(&file, text.as_bytes())?;
        self.place.replace(".new")?;
        (self.file, self.lines, self.broken) = (file, text.lines().count(), false);
        Ok(())
    }

    /// It does not tell all that holds; it must be written anew.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Appends a line about a change that the book has seen already.
    ///
    /// # Errors
    /// It is not written; the next call writes everything.
    pub fn append(&mut self, line: &str, book: &Book, networks: &[Rc<Network>]) -> io::Result<()> {
        let needed = networks.len() + book.leases().count();
        if self.broken {
            return self.rewrite(book, networks);
        }
        if self.lines > 4 * needed + SLACK && self.rewrite(book, networks).is_ok() {
            return Ok(());
        }
        self.lines += 1;
        self.broken = true;
        write_whole(&self.file, format!("{line}\n").as_bytes())?;
        self.broken = false;
        Ok(())
    }
}

fn write_whole(file: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    match rustix::io::write(file, bytes)? {
        count if count == bytes.len() => Ok(()),
        _ => Err(io::Error::other("no room")),
    }
}

/// The line of a lease.
pub fn lease_line(port: &Port, holder: &Holder) -> String {
    let protocol = |p| if p == Protocol::Tcp { "tcp" } else { "udp" };
    let forwards = holder.forwards.iter().map(|f| format!("{}:{}:{}", protocol(f.protocol), f.host, f.guest));
    let (id, uid, vm, network) = (holder.id.0, holder.uid, holder.vm.0, &port.network);
    let (number, index, tap, mac) = (port.number, port.index, show_mac(port.tap_mac), show_mac(port.mac));
    format!("lease {id} {uid} {vm} {network} {number} {index} {tap} {mac} {} {}", port.address, list(forwards))
}

fn network_line(n: &Network) -> String {
    let flags = [
        (n.nat, "nat"),
        (n.isolated, "isolated"),
        (n.host, "host"),
        (n.metadata, "metadata"),
        (n.localhost, "localhost"),
    ];
    let flags = list(flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name));
    format!("network {} {} {} {} {} {flags} {}", n.name, n.bridge, n.address, n.prefix, n.mtu, list(n.reach.iter()))
}

fn list<T: Display>(items: impl Iterator<Item = T>) -> String {
    let joined = items.map(|i| i.to_string()).collect::<Vec<_>>().join(",");
    if joined.is_empty() { "-".to_owned() } else { joined }
}

/// A MAC as people write it.
pub fn show_mac(mac: Mac) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

/// What the journal's text says. One of another boot says nothing.
pub fn replay(text: &str, boot: &str) -> Replay {
    let mut replay = Replay::default();
    let count = text.lines().count();
    let mut lines = text.lines().enumerate();
    match lines.next() {
        None => return replay,
        Some((_, first)) if first == format!("{FORMAT} {boot}") => {}
        Some((_, first)) => {
            if !first.starts_with(FORMAT) {
                replay.faults.push("not a journal of this release; it is left out".to_owned());
            }
            return replay;
        }
    }
    for (number, line) in lines {
        // Half a number is a number, too: what has no end of line is not believed.
        let complete = text.ends_with('\n') || number + 1 < count;
        if !complete || entry(line, &mut replay).is_none() {
            replay.faults.push(format!("line {} is damaged and left out: {line:.80?}", number + 1));
        }
    }
    replay
}

fn entry(line: &str, replay: &mut Replay) -> Option<()> {
    let fields: Vec<&str> = line.split(' ').collect();
    match fields.as_slice() {
        ["port", number] => replay.book.last_port = replay.book.last_port.max(number.parse().ok()?),
        ["end", id] => {
            let id = LeaseId(id.parse().ok()?);
            replay.book.last_lease = replay.book.last_lease.max(id.0);
            let ended = replay.book.leases().find(|(_, h)| h.id == id).map(|(p, _)| p.number);
            ended.map(|number| replay.book.remove(number));
        }
        ["lease", fields @ ..] => replay.book.insert(lease(fields)?),
        ["network", fields @ ..] => replay.networks.push(Rc::new(network(fields)?)),
        _ => return None,
    }
    Some(())
}

fn lease(fields: &[&str]) -> Option<Port> {
    let [id, uid, vm, network, number, index, tap_mac, mac, address, forwards] = fields else { return None };
    let forwards = items(forwards).map(forward).collect::<Option<Vec<_>>>()?;
    let (id, vm) = (LeaseId(id.parse().ok()?), VmId(vm.parse().ok()?));
    Some(Port {
        number: number.parse().ok()?,
        index: index.parse().ok()?,
        tap_mac: parse_mac(tap_mac)?,
        network: (*network).to_owned(),
        mac: parse_mac(mac)?,
        address: address.parse().ok()?,
        state: State::Leased(Holder { id, uid: uid.parse().ok()?, vm, forwards }),
    })
}

fn network(fields: &[&str]) -> Option<Network> {
    let [name, bridge, address, prefix, mtu, flags, reach] = fields else { return None };
    let flag = |name| items(flags).any(|f| f == name);
    Some(Network {
        name: (*name).to_owned(),
        bridge: IfName::new(bridge)?,
        address: address.parse().ok()?,
        prefix: prefix.parse().ok().filter(|p| (8..=29).contains(p))?,
        mtu: mtu.parse().ok()?,
        nat: flag("nat"),
        isolated: flag("isolated"),
        host: flag("host"),
        metadata: flag("metadata"),
        localhost: flag("localhost"),
        reach: items(reach).map(IfName::new).collect::<Option<_>>()?,
        dns: Vec::new(),
        who: Who::default(),
        leases: 0,
        pool: 0,
        forwards: Vec::new(),
        retired: true,
    })
}

fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').filter(|i| *i != "-")
}

fn forward(text: &str) -> Option<Forward> {
    let fields: Vec<&str> = text.split(':').collect();
    let [protocol, host, guest] = fields.as_slice() else { return None };
    let protocol = match *protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    Some(Forward { protocol, host: host.parse().ok()?, guest: guest.parse().ok()? })
}

fn parse_mac(text: &str) -> Option<Mac> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|b| u8::from_str_radix(b, 16).ok()).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
