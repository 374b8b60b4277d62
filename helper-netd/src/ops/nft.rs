//! Elements of the sets of `policies/nft/vmsup.nft`, over the kernel's nf_tables netlink. Formats:
//! linux/netfilter/nf_tables.h; all numbers of a length in it are big-endian.

use super::{BridgeSet, Element, IfName, OpsError, failed};
use crate::netlink::{Attrs, Message, Received, Socket, text};
use libc::{NFPROTO_BRIDGE, NFPROTO_INET, NFPROTO_IPV4, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP};
use rustix::net::netlink::NETFILTER;
use std::io;
use std::net::Ipv4Addr;

/// What of linux/netfilter/nf_tables.h libc does not have. The table's name is the first attribute of all objects.
mod uapi {
    pub const TABLE: u16 = 1;
    pub const SET_NAME: u16 = 2;
    pub const SET_KEY_BYTES: u16 = 5;
    pub const SET_DATA_BYTES: u16 = 7;
    pub const ELEMENTS: u16 = 3;
    pub const LIST_ELEMENT: u16 = 1;
    pub const ELEMENT_KEY: u16 = 1;
    pub const ELEMENT_DATA: u16 = 2;
    pub const DATA_VALUE: u16 = 1;
    pub const CHAIN_NAME: u16 = 3;
    pub const CHAIN_HOOK: u16 = 4;
    pub const CHAIN_POLICY: u16 = 5;
    pub const CHAIN_USE: u16 = 6;
    pub const HOOK_NUMBER: u16 = 1;
}

const TABLE: &str = "vmsup";
/// Bytes of `struct nfgenmsg`.
const NFGEN: usize = 4;

/// A set, and how long its keys and data are: each part of a concatenation is padded to 4 bytes.
struct Set {
    family: i32,
    name: &'static str,
    key: u32,
    data: u32,
}

const LEASES: usize = 0;
const REACH: usize = 6;
const FORWARDS: usize = 7;
const LOCALHOST: usize = 8;
const BRIDGE_SETS: [BridgeSet; 5] =
    [BridgeSet::Bridges, BridgeSet::Nat, BridgeSet::Host, BridgeSet::Metadata, BridgeSet::Routed];
/// Behind the leases, the sets of bridges stand in the order of `BridgeSet`.
const SETS: [Set; 9] = [
    Set { family: NFPROTO_BRIDGE, name: "leases", key: 28, data: 0 },
    Set { family: NFPROTO_INET, name: "bridges", key: 16, data: 0 },
    Set { family: NFPROTO_INET, name: "nat", key: 16, data: 0 },
    Set { family: NFPROTO_INET, name: "host", key: 16, data: 0 },
    Set { family: NFPROTO_INET, name: "metadata", key: 16, data: 0 },
    Set { family: NFPROTO_INET, name: "routed", key: 16, data: 0 },
    Set { family: NFPROTO_INET, name: "reach", key: 32, data: 0 },
    Set { family: NFPROTO_INET, name: "forwards", key: 8, data: 8 },
    Set { family: NFPROTO_INET, name: "localhost", key: 8, data: 0 },
];
/// The chains that judge guests; without rules they let all pass.
const CHAINS: [(i32, &str); 6] = [
    (NFPROTO_BRIDGE, "prerouting"),
    (NFPROTO_BRIDGE, "input"),
    (NFPROTO_INET, "prerouting"),
    (NFPROTO_INET, "prerouting_new"),
    (NFPROTO_INET, "input"),
    (NFPROTO_INET, "forward"),
];

pub(super) struct Rules {
    pub(super) requests: Socket,
    pub(super) events: Socket,
}

impl Rules {
    pub(super) fn open() -> io::Result<Rules> {
        let group = 1 << (libc::NFNLGRP_NFTABLES - 1);
        Ok(Rules { requests: Socket::open(Some(NETFILTER), 0)?, events: Socket::open(Some(NETFILTER), group)? })
    }

    pub(super) fn elements(&mut self) -> Result<Vec<Element>, OpsError> {
        let mut elements = Vec::new();
        for (number, set) in SETS.iter().enumerate() {
            let message = set_message(libc::NFT_MSG_GETSETELEM, NLM_F_DUMP, set);
            let replies = self.requests.request(&[message]).map_err(|e| match e.source.raw_os_error() {
                Some(libc::ENOENT) => OpsError::NoRules,
                _ => failed(|| format!("listing the set {}", set.name))(e),
            })?;
            let listed = replies.iter().flat_map(|reply| reply.attrs(NFGEN).within(uapi::ELEMENTS));
            // What names no port or bridge that could be ours is no element of ours, and matches none.
            elements.extend(listed.filter_map(|(_, element)| decode(number, Attrs::of(element))));
        }
        Ok(elements)
    }

    pub(super) fn change(&mut self, add: &[Element], remove: &[Element]) -> Result<(), OpsError> {
        let removed = remove.iter().map(|element| (libc::NFT_MSG_DELSETELEM, 0, element));
        let added = add.iter().map(|element| (libc::NFT_MSG_NEWSETELEM, NLM_F_CREATE, element));
        let changes: Vec<_> = removed.chain(added).collect();
        let Some((_, _, first)) = changes.first() else { return Ok(()) };
        let batch = |kind: i32| Message::new(kind as u16, 0, &[0, 0, 0, libc::NFNL_SUBSYS_NFTABLES as u8]);
        let mut messages = vec![batch(libc::NFNL_MSG_BATCH_BEGIN)];
        for (n, (kind, flags, element)) in (1..).zip(&changes) {
            // Errors come unasked; an ack for each would be more than the socket has room for.
            let flags = if n == changes.len() { flags | NLM_F_ACK } else { *flags };
            messages.push(element_message(*kind, flags, element));
        }
        messages.push(batch(libc::NFNL_MSG_BATCH_END));
        let Err(error) = self.requests.request(&messages) else { return Ok(()) };
        if error.source.raw_os_error() == Some(libc::ENOENT) && !self.loaded()? {
            return Err(OpsError::NoRules);
        }
        let (add, remove) = (add.len(), remove.len());
        Err(failed(|| format!("adding {add} and removing {remove} elements, {first:?} and so on"))(error))
    }

    pub(super) fn loaded(&mut self) -> Result<bool, OpsError> {
        for set in &SETS {
            let found = self.get(set_message(libc::NFT_MSG_GETSET, NLM_F_ACK, set))?;
            let fits = found.iter().map(|reply| reply.attrs(NFGEN)).any(|attrs| {
                let bytes = |kind| attrs.get(kind).map_or(0, be32);
                (bytes(uapi::SET_KEY_BYTES), bytes(uapi::SET_DATA_BYTES)) == (set.key, set.data)
            });
            if !fits {
                return Ok(false);
            }
        }
        for (family, name) in CHAINS {
            let message = message(libc::NFT_MSG_GETCHAIN, NLM_F_ACK, family)
                .attr(uapi::TABLE, &c_string(TABLE))
                .attr(uapi::CHAIN_NAME, &c_string(name));
            let found = self.get(message)?;
            let judges = |attrs: Attrs<'_>| attrs.get(uapi::CHAIN_USE).is_some_and(|rules| be32(rules) > 0);
            if !found.iter().map(|r| r.attrs(NFGEN)).any(|a| a.get(uapi::CHAIN_HOOK).is_some() && judges(a)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn dropping_chains(&mut self, most: usize) -> Result<Vec<String>, OpsError> {
        let listed = self.get(message(libc::NFT_MSG_GETCHAIN, NLM_F_DUMP, libc::NFPROTO_UNSPEC))?;
        Ok(listed.iter().filter_map(dropping_chain).take(most).collect())
    }

    /// What there is; nothing where there is no such thing.
    fn get(&mut self, message: Message) -> Result<Vec<Received>, OpsError> {
        match self.requests.request(&[message]) {
            Err(e) if e.source.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
            result => result.map_err(failed(|| "reading nftables' rules".into())),
        }
    }

    pub(super) fn touched(&mut self) -> bool {
        let mut touched = false;
        loop {
            match self.events.receive() {
                Ok(None) => return touched,
                Ok(Some(events)) => touched |= events.iter().any(|e| e.port != self.requests.port() && is_ours(e)),
                Err(_) => touched = true,
            }
        }
    }
}

fn message(kind: i32, flags: i32, family: i32) -> Message {
    Message::new((libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16, flags, &[family as u8, 0, 0, 0])
}

fn set_message(kind: i32, flags: i32, set: &Set) -> Message {
    message(kind, flags, set.family).attr(uapi::TABLE, &c_string(TABLE)).attr(uapi::SET_NAME, &c_string(set.name))
}

fn element_message(kind: i32, flags: i32, element: &Element) -> Message {
    let (set, key, data) = encode(element);
    set_message(kind, flags, &SETS[set]).nest(uapi::ELEMENTS, |list| {
        list.nest(uapi::LIST_ELEMENT, |element| {
            let element = element.nest(uapi::ELEMENT_KEY, |value| value.attr(uapi::DATA_VALUE, &key));
            if data.is_empty() {
                return element;
            }
            element.nest(uapi::ELEMENT_DATA, |value| value.attr(uapi::DATA_VALUE, &data))
        })
    })
}

/// Number of the set, key, data.
fn encode(element: &Element) -> (usize, Vec<u8>, Vec<u8>) {
    let service = |protocol: u8, port: u16| [&[protocol, 0, 0, 0], &port.to_be_bytes()[..], &[0; 2]].concat();
    match *element {
        Element::Lease { port, mac, address } => {
            (LEASES, [&port.padded()[..], &mac, &[0; 2], &address.octets()].concat(), Vec::new())
        }
        Element::Bridge(set, name) => (1 + set as usize, name.padded().to_vec(), Vec::new()),
        Element::Reach { from, to } => (REACH, [from.padded(), to.padded()].concat(), Vec::new()),
        Element::Localhost { protocol, host } => (LOCALHOST, service(protocol, host), Vec::new()),
        Element::Forward { protocol, host, address, guest } => {
            let to = [&address.octets()[..], &guest.to_be_bytes(), &[0; 2]].concat();
            (FORWARDS, service(protocol, host), to)
        }
    }
}

pub(super) fn decode(set: usize, element: Attrs<'_>) -> Option<Element> {
    let key = element.within(uapi::ELEMENT_KEY).get(uapi::DATA_VALUE)?;
    let data = element.within(uapi::ELEMENT_DATA).get(uapi::DATA_VALUE).unwrap_or_default();
    if (key.len(), data.len()) != (SETS[set].key as usize, SETS[set].data as usize) {
        return None;
    }
    let name = |at: usize| IfName::new(text(key.get(at..at + 16)?));
    let port = |of: &[u8]| Some(u16::from_be_bytes(*of.get(4..)?.first_chunk()?));
    let address = |of: &[u8]| Some(Ipv4Addr::from(*of.first_chunk::<4>()?));
    Some(match set {
        LEASES => {
            Element::Lease { port: name(0)?, mac: *key.get(16..)?.first_chunk()?, address: address(key.get(24..)?)? }
        }
        REACH => Element::Reach { from: name(0)?, to: name(16)? },
        LOCALHOST => Element::Localhost { protocol: *key.first()?, host: port(key)? },
        FORWARDS => {
            Element::Forward { protocol: *key.first()?, host: port(key)?, address: address(data)?, guest: port(data)? }
        }
        n => Element::Bridge(*BRIDGE_SETS.get(n - 1)?, name(0)?),
    })
}

/// `ip filter FORWARD`, where it is a chain at the forward hook that drops what it does not know.
pub(super) fn dropping_chain(chain: &Received) -> Option<String> {
    let attrs = chain.attrs(NFGEN);
    let family = match i32::from(*chain.family(NFGEN).first()?) {
        NFPROTO_INET => "inet",
        NFPROTO_IPV4 => "ip",
        NFPROTO_BRIDGE => "bridge",
        _ => return None,
    };
    let hook = be32(attrs.within(uapi::CHAIN_HOOK).get(uapi::HOOK_NUMBER)?);
    let drops = be32(attrs.get(uapi::CHAIN_POLICY)?) == libc::NF_DROP as u32;
    let (table, name) = (text(attrs.get(uapi::TABLE)?), text(attrs.get(uapi::CHAIN_NAME)?));
    // The hook has the same number in all three families.
    (hook == libc::NF_INET_FORWARD as u32 && drops && table != TABLE)
        .then(|| format!("{family} {} {}", table.escape_debug(), name.escape_debug()))
}

/// An event about the tables, sets, elements, chains and rules of a table with our name.
pub(super) fn is_ours(event: &Received) -> bool {
    // NFT_MSG_NEWGEN closes each transaction and has another first attribute.
    let object = i32::from(event.kind & 0xff) < libc::NFT_MSG_NEWGEN;
    object && event.attrs(NFGEN).get(uapi::TABLE).map(text) == Some(TABLE)
}

fn c_string(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// 0 where it is no number.
fn be32(value: &[u8]) -> u32 {
    value.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}
