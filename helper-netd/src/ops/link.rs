//! Interfaces, over the kernel's route netlink: bridges, their ports, and what happens to them. Formats: rtnetlink(7),
//! linux/if_link.h.

use super::{Bridge, IfName, Link, LinkEvent, Mac, OpsError, Tun, failed};
use crate::netlink::{Attrs, Error, Message, Received, Socket, read_u32, read_u64, text};
use libc::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netd_api::Flow;
use std::collections::VecDeque;
use std::io;

/// What of linux/if_link.h, linux/ip.h and linux/netconf.h libc does not have, with the values that it is set to.
mod uapi {
    /// No spanning tree; no multicast snooping; frames to 01:80:c2:00:00:03 to 0f go the way of all frames
    /// (group_fwd_mask), because the host's own way for them, to LLDP's for one, passes no rule. (VLANs are off unless
    /// somebody turns them on, and not every kernel has the option.)
    pub const BRIDGE_OPTIONS: [(u16, &[u8]); 3] = [(5, &[0; 4]), (23, &[0]), (9, &0xfff8u16.to_ne_bytes())];
    /// Isolated is set apart. Learns nothing, is not sent what is for nobody, and takes only what has a forwarding entry.
    pub const PORT_OPTIONS: [(u16, u8); 6] = [(4, 0), (8, 0), (9, 0), (27, 0), (30, 1), (39, 1)];
    pub const PORT_ISOLATED: u16 = 33;
    /// Routes; neither believes nor sends redirects, nor source routes; takes a source only from where it would answer;
    /// answers ARP for its own address only, and from it only.
    pub const INET_OPTIONS: [(u16, u32); 8] = [(1, 1), (4, 0), (5, 0), (6, 0), (8, 1), (9, 0), (18, 2), (19, 1)];
    pub const INET_ROUTE_LOCALNET: u16 = 26;
    pub const INET_CONF: u16 = 1;
    pub const INET6_ADDR_GEN_MODE: u16 = 8;
    pub const ADDR_GEN_MODE_NONE: u8 = 1;
    pub const INFO_SLAVE_KIND: u16 = 4;
    pub const INFO_SLAVE_DATA: u16 = 5;
    pub const TUN_OWNER: u16 = 1;
    pub const TUN_GROUP: u16 = 2;
    pub const TUN_PERSIST: u16 = 6;
    pub const NETCONF_IFINDEX: u16 = 1;
    pub const NETCONF_FORWARDING: u16 = 2;
    pub const NETCONF_ALL: i32 = -1;
    /// Statistics are not wanted: they are most of an answer.
    pub const SKIP_STATS: u32 = 8;
    /// if_link.h: IFLA_STATS64.
    pub const STATS64: u16 = 23;
}

/// Bytes of `struct ifinfomsg`.
const IFINFO: usize = 16;

pub(super) struct Links {
    requests: Socket,
    pub(super) events: Socket,
    pending: VecDeque<LinkEvent>,
}

impl Links {
    pub(super) fn open() -> io::Result<Links> {
        let events = Socket::open(None, libc::RTMGRP_LINK as u32)?;
        Ok(Links { requests: Socket::open(None, 0)?, events, pending: VecDeque::new() })
    }

    /// The interface of that name, with "it is a bridge" or not.
    fn find(&mut self, name: IfName) -> Result<Option<(u32, Mac, bool)>, Error> {
        let message = link_message(libc::RTM_GETLINK, NLM_F_ACK, 0, 0, 0)
            .attr(libc::IFLA_IFNAME, &name.padded())
            .attr(libc::IFLA_EXT_MASK, &uapi::SKIP_STATS.to_ne_bytes());
        match self.requests.request(&[message]) {
            Ok(replies) => Ok(replies.iter().find_map(|reply| {
                let attrs = reply.attrs(IFINFO);
                let index = read_u32(reply.family(IFINFO), 4)?;
                Some((index, *attrs.get(libc::IFLA_ADDRESS)?.first_chunk()?, kind(attrs) == "bridge"))
            })),
            Err(e) if e.source.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Index and MAC of a new interface.
    pub(super) fn look(&mut self, name: IfName) -> Result<(u32, Mac), OpsError> {
        let found = self.find(name).and_then(|found| Ok(found.ok_or(io::Error::from_raw_os_error(libc::ENODEV))?));
        let (index, mac, _) = found.map_err(failed(|| format!("looking at {name}")))?;
        Ok((index, mac))
    }

    pub(super) fn ensure_bridge(&mut self, bridge: &Bridge) -> Result<u32, OpsError> {
        let what = || format!("bridge {}", bridge.name);
        let new = link_message(libc::RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, 0, 0, 0)
            .attr(libc::IFLA_IFNAME, &bridge.name.padded())
            .nest(libc::IFLA_LINKINFO, |info| info.attr(libc::IFLA_INFO_KIND, b"bridge"));
        let mut found = self.find(bridge.name).map_err(failed(what))?;
        if found.is_none() {
            self.requests.request(&[new]).map_err(failed(what))?;
            found = self.find(bridge.name).map_err(failed(what))?;
        }
        let Some((index, mac, true)) = found else {
            let source = io::Error::from_raw_os_error(libc::EEXIST);
            return Err(OpsError::Differs {
                what: format!("{}: an interface of that name is no bridge", what()),
                source,
            });
        };
        self.configure_bridge(index, mac, bridge).map_err(failed(what))?;
        Ok(index)
    }

    fn configure_bridge(&mut self, index: u32, mac: Mac, bridge: &Bridge) -> Result<(), Error> {
        let inet = uapi::INET_OPTIONS.into_iter().chain([(uapi::INET_ROUTE_LOCALNET, u32::from(bridge.localhost))]);
        // Setting the MAC makes the host forget its neighbours, even where it is the same.
        let set = link_message(libc::RTM_NEWLINK, NLM_F_ACK, index, 0, 0);
        let set = if mac == bridge.mac { set } else { set.attr(libc::IFLA_ADDRESS, &bridge.mac) };
        let set = set
            .attr(libc::IFLA_MTU, &u32::from(bridge.mtu).to_ne_bytes())
            .nest(libc::IFLA_LINKINFO, |info| {
                info.attr(libc::IFLA_INFO_KIND, b"bridge").nest(libc::IFLA_INFO_DATA, |data| {
                    uapi::BRIDGE_OPTIONS.iter().fold(data, |data, (option, value)| data.attr(*option, value))
                })
            })
            .nest(libc::IFLA_AF_SPEC, |spec| {
                spec.nest(libc::AF_INET as u16, |spec| {
                    spec.nest(uapi::INET_CONF, |conf| {
                        inet.fold(conf, |conf, (option, value)| conf.attr(option, &value.to_ne_bytes()))
                    })
                })
            });
        self.requests.request(&[set])?;
        self.quiet_ipv6(index)?;
        let mut address = vec![libc::AF_INET as u8, bridge.prefix, 0, libc::RT_SCOPE_UNIVERSE];
        address.extend(index.to_ne_bytes());
        let address = Message::new(libc::RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &address)
            .attr(libc::IFA_LOCAL, &bridge.address.octets())
            .attr(libc::IFA_ADDRESS, &bridge.address.octets());
        self.requests.request(&[address])?;
        let up = link_message(libc::RTM_NEWLINK, NLM_F_ACK, index, libc::IFF_UP as u32, libc::IFF_UP as u32);
        self.requests.request(&[up]).map(drop)
    }

    /// No IPv6 address comes up by itself. A host without IPv6 has nothing to set.
    fn quiet_ipv6(&mut self, index: u32) -> Result<(), Error> {
        let message = link_message(libc::RTM_NEWLINK, NLM_F_ACK, index, 0, 0).nest(libc::IFLA_AF_SPEC, |spec| {
            spec.nest(libc::AF_INET6 as u16, |spec| spec.attr(uapi::INET6_ADDR_GEN_MODE, &[uapi::ADDR_GEN_MODE_NONE]))
        });
        match self.requests.request(&[message]) {
            Err(e) if e.source.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(()),
            result => result.map(drop),
        }
    }

    /// In this order: nothing passes before the port is what it should be and has its forwarding entry.
    pub(super) fn plug(&mut self, index: u32, bridge: u32, isolated: bool, mtu: u16, mac: Mac) -> Result<(), OpsError> {
        let what = || format!("making interface {index} a port of bridge {bridge}");
        let enslave = link_message(libc::RTM_NEWLINK, NLM_F_ACK, index, 0, libc::IFF_UP as u32)
            .attr(libc::IFLA_MTU, &u32::from(mtu).to_ne_bytes())
            .attr(libc::IFLA_MASTER, &bridge.to_ne_bytes());
        self.requests.request(&[enslave]).map_err(failed(what))?;
        self.quiet_ipv6(index).map_err(failed(what))?;
        self.restore_forwarding(index, mac)?;
        // Within one message the options of a port come before its flags.
        let options = uapi::PORT_OPTIONS.into_iter().chain([(uapi::PORT_ISOLATED, u8::from(isolated))]);
        let up = link_message(libc::RTM_NEWLINK, NLM_F_ACK, index, libc::IFF_UP as u32, libc::IFF_UP as u32).nest(
            libc::IFLA_LINKINFO,
            |info| {
                info.attr(uapi::INFO_SLAVE_KIND, b"bridge").nest(uapi::INFO_SLAVE_DATA, |data| {
                    options.fold(data, |data, (option, value)| data.attr(option, &[value]))
                })
            },
        );
        self.requests.request(&[up]).map_err(failed(what)).map(drop)
    }

    pub(super) fn restore_forwarding(&mut self, index: u32, mac: Mac) -> Result<(), OpsError> {
        // struct ndmsg. NOARP is a static entry; PERMANENT would make the address one of the host's own.
        let mut entry = vec![libc::AF_BRIDGE as u8, 0, 0, 0];
        entry.extend(index.to_ne_bytes());
        entry.extend(libc::NUD_NOARP.to_ne_bytes());
        entry.extend([libc::NTF_MASTER, 0]);
        let message = Message::new(libc::RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &entry)
            .attr(libc::NDA_LLADDR, &mac);
        self.requests.request(&[message]).map_err(failed(|| format!("forwarding entry of interface {index}"))).map(drop)
    }

    pub(super) fn unplug(&mut self, index: u32) -> Result<(), OpsError> {
        let message =
            link_message(libc::RTM_NEWLINK, NLM_F_ACK, index, 0, libc::IFF_UP as u32).attr(libc::IFLA_MASTER, &[0; 4]);
        self.requests.request(&[message]).map_err(failed(|| format!("unplugging interface {index}"))).map(drop)
    }

    pub(super) fn delete(&mut self, index: u32) -> Result<(), OpsError> {
        match self.requests.request(&[link_message(libc::RTM_DELLINK, NLM_F_ACK, index, 0, 0)]) {
            Err(e) if e.source.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            result => result.map_err(failed(|| format!("deleting interface {index}"))).map(drop),
        }
    }

    pub(super) fn all(&mut self) -> Result<Vec<Link>, OpsError> {
        let message = link_message(libc::RTM_GETLINK, NLM_F_DUMP, 0, 0, 0)
            .attr(libc::IFLA_EXT_MASK, &uapi::SKIP_STATS.to_ne_bytes());
        let replies = self.requests.request(&[message]).map_err(failed(|| "listing interfaces".into()))?;
        Ok(replies.iter().filter_map(link_of).collect())
    }

    pub(super) fn traffic(&mut self, index: u32) -> Result<(Flow, Flow), OpsError> {
        let what = || format!("what interface {index} counted");
        let message = link_message(libc::RTM_GETLINK, NLM_F_ACK, index, 0, 0);
        let replies = self.requests.request(&[message]).map_err(failed(what))?;
        let stats = replies.iter().find_map(|reply| reply.attrs(IFINFO).get(uapi::STATS64));
        // struct rtnl_link_stats64: packets, bytes, errors, drops, each as received by the host and then as sent.
        let number = |n: usize| read_u64(stats?, 8 * n);
        let flow = |way| Some(Flow { packets: number(way)?, bytes: number(2 + way)?, dropped: number(6 + way)? });
        flow(0).zip(flow(1)).ok_or_else(|| failed(what)(io::Error::from_raw_os_error(libc::EPROTO).into()))
    }

    pub(super) fn ip_forward(&mut self) -> Result<bool, OpsError> {
        let what = || "reading net.ipv4.ip_forward".into();
        let message = Message::new(libc::RTM_GETNETCONF, NLM_F_ACK, &[libc::AF_INET as u8])
            .attr(uapi::NETCONF_IFINDEX, &uapi::NETCONF_ALL.to_ne_bytes());
        let replies = self.requests.request(&[message]).map_err(failed(what))?;
        let value = replies.iter().find_map(|r| read_u32(r.attrs(4).get(uapi::NETCONF_FORWARDING)?, 0));
        value.map(|on| on != 0).ok_or_else(|| failed(what)(io::Error::from_raw_os_error(libc::EPROTO).into()))
    }

    pub(super) fn next_event(&mut self) -> Option<LinkEvent> {
        while self.pending.is_empty() {
            match self.events.receive() {
                Ok(None) => return None,
                Ok(Some(messages)) => self.pending.extend(messages.iter().filter_map(event_of)),
                Err(_) => return Some(LinkEvent::Lost),
            }
        }
        self.pending.pop_front()
    }
}

fn link_message(kind: u16, flags: i32, index: u32, up: u32, change: u32) -> Message {
    let mut header = [0; IFINFO];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&up.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    Message::new(kind, flags, &header)
}

/// What the message says of a port or a bridge; `None` for all other interfaces. Of family AF_BRIDGE are reports of a
/// port's options: leaving a bridge looks like a deletion there.
fn link_of(message: &Received) -> Option<Link> {
    let (header, attrs) = (message.family(IFINFO), message.attrs(IFINFO));
    if !matches!(message.kind, libc::RTM_NEWLINK | libc::RTM_DELLINK)
        || header.first() != Some(&(libc::AF_UNSPEC as u8))
    {
        return None;
    }
    let name = IfName::new(text(attrs.get(libc::IFLA_IFNAME)?))?;
    if name.port_number().is_none() && kind(attrs) != "bridge" {
        return None;
    }
    let number = |attrs: Attrs<'_>, kind| read_u32(attrs.get(kind)?, 0);
    let tun = attrs.within(libc::IFLA_LINKINFO).within(libc::IFLA_INFO_DATA);
    Some(Link {
        name,
        index: read_u32(header, 4)?,
        mac: attrs.get(libc::IFLA_ADDRESS).and_then(|mac| mac.try_into().ok()).unwrap_or_default(),
        bridge: number(attrs, libc::IFLA_MASTER),
        up: read_u32(header, 8)? & libc::IFF_UP as u32 != 0,
        tun: (kind(attrs) == "tun").then(|| Tun {
            persist: tun.get(uapi::TUN_PERSIST).is_none_or(|value| value != [0]),
            owner: number(tun, uapi::TUN_OWNER),
            group: number(tun, uapi::TUN_GROUP),
        }),
    })
}

pub(super) fn event_of(message: &Received) -> Option<LinkEvent> {
    let link = link_of(message)?;
    Some(match message.kind {
        libc::RTM_DELLINK => LinkEvent::Gone { name: link.name, index: link.index },
        _ => LinkEvent::Changed(link),
    })
}

fn kind(attrs: Attrs<'_>) -> &str {
    attrs.within(libc::IFLA_LINKINFO).get(libc::IFLA_INFO_KIND).map(text).unwrap_or_default()
}
