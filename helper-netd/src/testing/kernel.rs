//! A kernel that is none: interfaces, bridges, sets and connections in memory.

use super::OWN;
use crate::ops::{Bridge, Element, IfName, Link, LinkEvent, Mac, Ops, OpsError, Tap, Tun};
use netd_api::Flow;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::cell::{RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, PipeReader};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// An interface of the fake.
pub struct FakeLink {
    pub link: Link,
    /// The other end of what its holders have; a bridge has none.
    held: Option<PipeReader>,
    isolated: bool,
}

/// What the fake kernel has, for tests to look at and to spoil.
pub struct World {
    pub links: BTreeMap<u32, FakeLink>,
    pub elements: BTreeSet<Element>,
    /// By bridge and MAC, the port.
    pub forwarding: BTreeMap<(u32, Mac), u32>,
    pub loaded: bool,
    pub touched: bool,
    pub events: VecDeque<LinkEvent>,
    /// Operations that fail, and how often from now on.
    pub failing: BTreeMap<&'static str, u32>,
    pub deleted: Vec<IfName>,
    /// Every name that a TAP ever had.
    pub names: BTreeSet<IfName>,
    pub dumps: usize,
    /// Addresses that connections lead to, and how often some were ended.
    pub flows: BTreeSet<Ipv4Addr>,
    pub sweeps: usize,
    /// There is no nf_conntrack_netlink.
    pub blind: bool,
    /// Ports whose unanswered datagrams were forgotten, and how many of them led to a guest then.
    pub knocks: Vec<(Vec<u16>, usize)>,
    next_index: u32,
}

/// A kernel in memory. A TAP is the writing end of a pipe: it is gone when nobody holds that any more.
#[derive(Clone)]
pub struct FakeKernel {
    world: Rc<RefCell<World>>,
    link_events: Rc<OwnedFd>,
    rule_events: Rc<OwnedFd>,
}

impl FakeKernel {
    pub fn new() -> FakeKernel {
        let event = || Rc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap());
        let world = World {
            links: BTreeMap::new(),
            elements: BTreeSet::new(),
            forwarding: BTreeMap::new(),
            loaded: true,
            touched: false,
            events: VecDeque::new(),
            failing: BTreeMap::new(),
            deleted: Vec::new(),
            names: BTreeSet::new(),
            dumps: 0,
            flows: BTreeSet::new(),
            sweeps: 0,
            blind: false,
            knocks: Vec::new(),
            next_index: 10,
        };
        FakeKernel { world: Rc::new(RefCell::new(world)), link_events: event(), rule_events: event() }
    }

    pub fn world(&self) -> RefMut<'_, World> {
        self.world.borrow_mut()
    }

    /// Changes an interface behind netd's back, and tells of it.
    pub fn spoil(&self, name: IfName, how: impl FnOnce(&mut Link)) {
        let mut world = self.world();
        let link = &mut world.links.values_mut().find(|l| l.link.name == name).expect("a link").link;
        how(link);
        let event = LinkEvent::Changed(link.clone());
        world.events.push_back(event);
        drop(world);
        self.signal();
    }

    /// The interfaces that nobody holds any more are gone, unless they were made persistent. `own`: only fds of this
    /// process count. Else what is under way in a socket counts as well; but so does, for a moment, what another test's
    /// fork has copied.
    pub fn collect(&self, own: bool) {
        let fds = own.then(open_pipes);
        let held = |l: &FakeLink| match &l.held {
            None => true,
            Some(_) if l.link.tun.is_some_and(|t| t.persist) => true,
            // The reader is one.
            Some(reader) if own => fds.as_ref().and_then(|f| f.get(&inode(reader))).is_some_and(|count| *count > 1),
            Some(reader) => {
                let mut fds = [PollFd::new(reader, PollFlags::empty())];
                poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
                !fds[0].revents().contains(PollFlags::HUP)
            }
        };
        let gone: Vec<u32> = self.world().links.iter().filter(|(_, l)| !held(l)).map(|(i, _)| *i).collect();
        for index in gone {
            self.remove(index);
        }
    }

    /// An interface goes.
    pub fn remove(&self, index: u32) {
        let mut world = self.world();
        let Some(FakeLink { link, .. }) = world.links.remove(&index) else { return };
        world.forwarding.retain(|(bridge, _), port| *port != index && *bridge != index);
        let mut freed = Vec::new();
        for other in world.links.values_mut().filter(|l| l.link.bridge == Some(index)) {
            other.link.bridge = None;
            freed.push(LinkEvent::Changed(other.link.clone()));
        }
        world.events.extend(freed);
        world.events.push_back(LinkEvent::Gone { name: link.name, index });
        drop(world);
        self.signal();
    }

    /// nft removes or loads the tables.
    pub fn load_rules(&self, loaded: bool) {
        let mut world = self.world();
        world.loaded = loaded;
        world.elements.clear();
        world.touched = true;
        drop(world);
        rustix::io::write(&*self.rule_events, &1u64.to_ne_bytes()).unwrap();
    }

    pub fn index_of(&self, name: &str) -> Option<u32> {
        self.world().links.values().find(|l| l.link.name.as_str() == name).map(|l| l.link.index)
    }

    fn signal(&self) {
        rustix::io::write(&*self.link_events, &1u64.to_ne_bytes()).unwrap();
    }

    fn changed(&self, index: u32) {
        let mut world = self.world();
        let event = LinkEvent::Changed(world.links[&index].link.clone());
        world.events.push_back(event);
        drop(world);
        self.signal();
    }

    fn fails(&self, operation: &'static str) -> Result<(), OpsError> {
        match self.world().failing.get_mut(operation) {
            Some(times) if *times > 0 => {
                *times -= 1;
                Err(OpsError::Kernel { what: operation.to_owned(), source: io::Error::other("told to fail") })
            }
            _ => Ok(()),
        }
    }
}

fn inode(pipe: &PipeReader) -> u64 {
    rustix::fs::fstat(pipe).unwrap().st_ino
}

/// How many fds of this process each pipe has, by inode.
fn open_pipes() -> BTreeMap<u64, usize> {
    let mut pipes = BTreeMap::new();
    for fd in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let Ok(target) = std::fs::read_link(fd.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        if let Some(inode) = target.strip_prefix("pipe:[").and_then(|t| t.trim_end_matches(']').parse().ok()) {
            *pipes.entry(inode).or_default() += 1;
        }
    }
    pipes
}

fn differs(what: &str) -> OpsError {
    OpsError::Differs { what: what.to_owned(), source: io::Error::from(io::ErrorKind::NotFound) }
}

impl Ops for FakeKernel {
    fn create_tap(&mut self, name: IfName, queues: u8, _offloads: bool) -> Result<Tap, OpsError> {
        self.fails("create_tap")?;
        let (reader, writer) = io::pipe().unwrap();
        let queues = (0..queues).map(|_| OwnedFd::from(writer.try_clone().unwrap())).collect();
        let mut world = self.world();
        assert!(world.names.insert(name), "{name} was used before");
        world.next_index += 1;
        let (index, mac) = (world.next_index, [2, 0xaa, 0, 0, 0, world.next_index as u8]);
        let tun = Some(Tun { persist: false, owner: Some(OWN.0), group: Some(OWN.1) });
        let link = Link { name, index, mac, bridge: None, up: false, tun };
        world.links.insert(index, FakeLink { link, held: Some(reader), isolated: false });
        drop(world);
        self.changed(index);
        Ok(Tap { queues, index, mac })
    }

    fn ensure_bridge(&mut self, bridge: &Bridge) -> Result<u32, OpsError> {
        self.fails("ensure_bridge")?;
        let mut world = self.world();
        let known = world.links.values().find(|l| l.link.name == bridge.name).map(|l| l.link.index);
        let index = known.unwrap_or(world.next_index + 1);
        world.next_index = world.next_index.max(index);
        let link = Link { name: bridge.name, index, mac: bridge.mac, bridge: None, up: true, tun: None };
        let before = world.links.insert(index, FakeLink { link: link.clone(), held: None, isolated: false });
        drop(world);
        if before.is_none_or(|b| b.link != link) {
            self.changed(index);
        }
        Ok(index)
    }

    fn plug(&mut self, index: u32, bridge: u32, isolated: bool, _mtu: u16, mac: Mac) -> Result<(), OpsError> {
        self.fails("plug")?;
        let mut world = self.world();
        if !world.links.contains_key(&bridge) {
            return Err(differs("plug"));
        }
        let link = world.links.get_mut(&index).ok_or_else(|| differs("plug"))?;
        (link.link.bridge, link.link.up, link.isolated) = (Some(bridge), true, isolated);
        world.forwarding.insert((bridge, mac), index);
        drop(world);
        self.changed(index);
        Ok(())
    }

    fn restore_forwarding(&mut self, index: u32, mac: Mac) -> Result<(), OpsError> {
        let mut world = self.world();
        let bridge = world.links.get(&index).and_then(|l| l.link.bridge).ok_or_else(|| differs("restore"))?;
        world.forwarding.insert((bridge, mac), index);
        Ok(())
    }

    fn unplug(&mut self, index: u32) -> Result<(), OpsError> {
        let mut world = self.world();
        let link = world.links.get_mut(&index).ok_or_else(|| differs("unplug"))?;
        (link.link.bridge, link.link.up) = (None, false);
        world.forwarding.retain(|_, port| *port != index);
        drop(world);
        self.changed(index);
        Ok(())
    }

    fn delete_link(&mut self, index: u32) -> Result<(), OpsError> {
        self.fails("delete_link")?;
        let name = self.world().links.get(&index).map(|l| l.link.name);
        self.world().deleted.extend(name);
        self.remove(index);
        Ok(())
    }

    fn links(&mut self) -> Result<Vec<Link>, OpsError> {
        self.world().dumps += 1;
        Ok(self.world().links.values().map(|l| l.link.clone()).collect())
    }

    /// Port n has sent n packets and received 2 n.
    fn traffic(&mut self, index: u32) -> Result<(Flow, Flow), OpsError> {
        self.fails("traffic")?;
        let flow = |n: u64| Flow { packets: n, bytes: 100 * n, dropped: n / 2 };
        Ok((flow(u64::from(index)), flow(2 * u64::from(index))))
    }

    fn elements(&mut self) -> Result<Vec<Element>, OpsError> {
        self.fails("elements")?;
        let world = self.world();
        if world.loaded { Ok(world.elements.iter().copied().collect()) } else { Err(OpsError::NoRules) }
    }

    fn change(&mut self, add: &[Element], remove: &[Element]) -> Result<(), OpsError> {
        self.fails("change")?;
        let mut world = self.world();
        if !world.loaded {
            return Err(OpsError::NoRules);
        }
        let mut after = world.elements.clone();
        for element in remove {
            if !after.remove(element) {
                return Err(differs("change"));
            }
        }
        after.extend(add);
        let key = |e: &Element| match e {
            Element::Forward { protocol, host, .. } => Some((*protocol, *host)),
            _ => None,
        };
        let forwards: Vec<_> = after.iter().filter_map(key).collect();
        if forwards.iter().collect::<BTreeSet<_>>().len() != forwards.len() {
            return Err(differs("change"));
        }
        world.elements = after;
        Ok(())
    }

    fn forget_flows(&mut self, of: &dyn Fn(Ipv4Addr) -> bool) -> Result<(), OpsError> {
        self.fails("forget_flows")?;
        let mut world = self.world();
        if world.blind {
            return Err(OpsError::NoFlows);
        }
        world.sweeps += 1;
        world.flows.retain(|address| !of(*address));
        Ok(())
    }

    fn forget_knocks(&mut self, ports: &[u16]) -> Result<(), OpsError> {
        self.fails("forget_knocks")?;
        let leads = |e: &Element| matches!(e, Element::Forward { protocol: 17, host, .. } if ports.contains(host));
        let mut world = self.world();
        let led = world.elements.iter().filter(|e| leads(e)).count();
        world.knocks.push((ports.to_vec(), led));
        Ok(())
    }

    fn rules_loaded(&mut self) -> Result<bool, OpsError> {
        Ok(self.world().loaded)
    }

    fn dropping_chains(&mut self, most: usize) -> Result<Vec<String>, OpsError> {
        Ok(vec!["ip filter FORWARD".to_owned(); most.min(1)])
    }

    fn ip_forward(&mut self) -> Result<bool, OpsError> {
        Ok(true)
    }

    fn link_events_fd(&self) -> BorrowedFd<'_> {
        self.link_events.as_fd()
    }

    fn next_link_event(&mut self) -> Option<LinkEvent> {
        let event = self.world().events.pop_front();
        if event.is_none() {
            let _ = rustix::io::read(&*self.link_events, &mut [0; 8]);
        }
        event
    }

    fn rule_events_fd(&self) -> BorrowedFd<'_> {
        self.rule_events.as_fd()
    }

    fn rules_touched(&mut self) -> bool {
        let _ = rustix::io::read(&*self.rule_events, &mut [0; 8]);
        std::mem::take(&mut self.world().touched)
    }
}
