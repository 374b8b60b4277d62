//! netd itself, without its sockets: what it believes (networks, book, journal), and how the kernel is made to follow.
//!
//! The book is changed first, the kernel's sets second. Where a change of them fails, the sets are read and made what the
//! book says ([`Netd::settle`]); where that fails, too, nothing is leased until it has worked. So the two never differ
//! for longer than a retry takes, and an fd leaves only while they are known not to.

use crate::config::{self, merge};
use crate::journal::{Journal, Replay};
use crate::leases::{Book, Port, State};
use crate::log;
use crate::network::Network;
use crate::ops::{Element, Ops, OpsError};
use netd_api::Refusal;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The first pause before what failed is tried again; it doubles up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// The most unexpected elements that are logged one by one.
const LOGGED: usize = 8;

/// netd, as far as the kernel and the leases go.
pub struct Netd<O> {
    pub(crate) ops: O,
    /// As configured, and behind them those that are retired.
    pub(crate) networks: Vec<Rc<Network>>,
    pub(crate) book: Book,
    pub(crate) journal: Journal,
    /// The queue of each warm port.
    pub(crate) warm: BTreeMap<u32, OwnedFd>,
    /// Indices of the bridges that are as they should be, by network.
    pub(crate) bridges: BTreeMap<String, u32>,
    /// The rules are loaded, as far as we know.
    pub(crate) rules: bool,
    /// No connections lead to free addresses but to those that the book has as soiled.
    pub(crate) swept: bool,
    /// The kernel tells no connections, and the log has it.
    pub(crate) blind: bool,
    /// The kernel's sets are what the book says.
    clean: bool,
    /// When what failed is tried again.
    pub(crate) retry: Option<Instant>,
    pause: Duration,
    /// Networks whose pools are left alone until then.
    pub(crate) resting: BTreeMap<String, Instant>,
    /// How many events each leased port had, and since when they are counted.
    pub(crate) touches: BTreeMap<u32, (Instant, u32)>,
    /// Uid and gid that our TAPs belong to.
    pub(crate) own: (u32, u32),
}

impl<O: Ops> Netd<O> {
    /// Takes up what the journal tells, and makes kernel and journal agree with it.
    ///
    /// # Errors
    /// The configuration contradicts leases whose interfaces are there.
    pub fn start(
        mut ops: O,
        networks: Vec<Network>,
        journal: Journal,
        replay: Replay,
        own: (u32, u32),
    ) -> Result<Netd<O>, config::Error> {
        let there: BTreeSet<_> = match ops.links() {
            Ok(links) => links.into_iter().map(|l| (l.index, l.name)).collect(),
            Err(error) => return Err(config::Error::InUse(format!("what runs cannot be seen: {error}"))),
        };
        let mut book = replay.book;
        // What a lost journal would have known.
        let used = there.iter().filter_map(|(_, name)| name.port_number()).max();
        book.last_port = book.last_port.max(used.unwrap_or(0));
        let ended: Vec<u32> =
            book.ports().filter(|p| !there.contains(&(p.index, p.name()))).map(|p| p.number).collect();
        for port in ended.into_iter().filter_map(|number| book.remove(number)) {
            let id = port.holder().map_or(0, |h| h.id.0);
            log!("lease {id}: {} went while netd was away; ended", port.name());
        }
        let networks = merge(&replay.networks, networks, |name| book.of_network(name).next().is_some())?;
        let mut netd = Netd {
            ops,
            networks,
            book,
            journal,
            warm: BTreeMap::new(),
            bridges: BTreeMap::new(),
            rules: true,
            swept: false,
            blind: false,
            clean: false,
            retry: None,
            pause: FIRST_PAUSE,
            resting: BTreeMap::new(),
            touches: BTreeMap::new(),
            own,
        };
        netd.reconcile();
        let _ = netd.sweep();
        netd.write_journal();
        Ok(netd)
    }

    /// Looks at everything and makes it what it should be.
    pub(crate) fn reconcile(&mut self) {
        self.look(true);
        self.rules_changed();
    }

    /// New networks. Leases go on; what is warm goes where its network is no longer the same.
    ///
    /// # Errors
    /// They contradict leases; then nothing has changed.
    pub fn reload(&mut self, networks: Vec<Network>) -> Result<(), config::Error> {
        let leased = |name: &str| self.book.of_network(name).any(|p| p.state != State::Warm);
        let merged = merge(&self.networks, networks, leased)?;
        let before = std::mem::replace(&mut self.networks, merged);
        let ports = |n: &Network| (n.bridge(), n.isolated, n.retired);
        for old in before {
            let new = self.network(&old.name);
            let keep = new.as_ref().filter(|n| ports(n) == ports(&old)).map_or(0, |n| usize::from(n.pool));
            self.shrink_pool(&old.name, keep);
            if new.is_none_or(|n| n.bridge != old.bridge) {
                self.bridges.remove(&old.name);
            }
        }
        self.retry = None;
        self.resting.clear();
        self.reconcile();
        self.swept = false;
        let _ = self.sweep();
        self.write_journal();
        Ok(())
    }

    /// A network that was retired, and whose last lease has ended, is forgotten.
    pub(crate) fn forget_retired(&mut self) {
        let book = &self.book;
        let before = self.networks.len();
        self.networks.retain(|n| !n.retired || book.of_network(&n.name).next().is_some());
        if self.networks.len() != before {
            let _ = self.settle();
            self.write_journal();
        }
    }

    /// The network of that name, retired ones included.
    pub(crate) fn network(&self, name: &str) -> Option<Rc<Network>> {
        self.networks.iter().find(|n| n.name == name).cloned()
    }

    /// Every element that should be in the kernel's sets.
    pub(crate) fn desired(&self) -> BTreeSet<Element> {
        let networks = self.networks.iter().flat_map(|n| n.elements());
        networks.chain(self.book.ports().flat_map(|p| self.elements_of(p))).collect()
    }

    /// The elements of a port, as its network is.
    pub(crate) fn elements_of(&self, port: &Port) -> Vec<Element> {
        port.elements(self.networks.iter().any(|n| n.name == port.network && n.localhost))
    }

    /// Lets the kernel's sets follow a change of the book.
    ///
    /// # Errors
    /// They do not; they will be made to, and nothing is leased until then.
    pub(crate) fn follow(&mut self, add: &[Element], remove: &[Element]) -> Result<(), Refusal> {
        if add.is_empty() && remove.is_empty() {
            return Ok(());
        }
        if self.clean && self.rules {
            match self.ops.change(add, remove) {
                Ok(()) => return Ok(()),
                Err(OpsError::NoRules) => self.rules_gone(),
                Err(error) => log!("{error}; looking at all elements"),
            }
        }
        self.settle()
    }

    /// Makes the kernel's sets what the book says.
    ///
    /// # Errors
    /// They are not, and nothing must be leased.
    pub(crate) fn settle(&mut self) -> Result<(), Refusal> {
        self.clean = false;
        if !self.rules {
            return Err(Refusal::NoRules);
        }
        match self.try_settle() {
            Ok(()) => {
                self.clean = true;
                Ok(())
            }
            Err(OpsError::NoRules) => {
                self.rules_gone();
                Err(Refusal::NoRules)
            }
            Err(error) => {
                self.trouble(&error);
                Err(Refusal::Failed)
            }
        }
    }

    fn try_settle(&mut self) -> Result<(), OpsError> {
        let there: BTreeSet<Element> = self.ops.elements()?.into_iter().collect();
        let desired = self.desired();
        let extra: Vec<_> = there.difference(&desired).copied().collect();
        let missing: Vec<_> = desired.difference(&there).copied().collect();
        for element in extra.iter().take(LOGGED) {
            log!("{element:?} is in the kernel's sets and should not be: removed");
        }
        if extra.len() > LOGGED || !missing.is_empty() {
            log!("elements of the kernel's sets: {} removed, {} added", extra.len(), missing.len());
        }
        // First what should not be: a map takes one value for a key.
        if !extra.is_empty() {
            self.ops.change(&[], &extra)?;
        }
        if missing.is_empty() { Ok(()) } else { self.ops.change(&missing, &[]) }
    }

    /// Are the sets known to be what the book says?
    pub(crate) fn is_clean(&self) -> bool {
        self.clean && self.rules
    }

    /// Somebody changed the host's rules.
    pub fn rule_events(&mut self) {
        if self.ops.rules_touched() {
            self.rules_changed();
        }
    }

    fn rules_changed(&mut self) {
        match self.ops.rules_loaded() {
            Ok(true) => {
                if !self.rules {
                    log!("the rules are loaded again");
                }
                self.rules = true;
                let _ = self.settle();
            }
            Ok(false) => self.rules_gone(),
            Err(error) => self.trouble(&error),
        }
    }

    fn rules_gone(&mut self) {
        if self.rules {
            log!("{}: no leases until they are; guests may be cut off", OpsError::NoRules);
        }
        self.rules = false;
        self.clean = false;
    }

    /// Something failed that is tried again later.
    pub(crate) fn trouble(&mut self, what: &dyn Display) {
        log!("{what}");
        if self.retry.is_none() {
            self.retry = Some(Instant::now() + self.pause);
            self.pause = (2 * self.pause).min(LAST_PAUSE);
        }
    }

    /// When something is due; nothing is without a reason.
    pub fn due(&self) -> Option<Instant> {
        let ending = self.book.ports().filter_map(|p| match p.state {
            State::Ending(_, at) => Some(at),
            _ => None,
        });
        ending.chain(self.retry).chain(self.resting.values().copied()).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        self.delete_overdue(now);
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            self.reconcile();
            if self.journal.is_broken() {
                self.write_journal();
            }
        }
        if self.retry.is_none() {
            self.pause = FIRST_PAUSE;
        }
    }

    /// Appends a line to the journal about a change that the book has seen.
    pub(crate) fn note(&mut self, line: &str) -> Result<(), Refusal> {
        let written = self.journal.append(line, &self.book, &self.networks);
        self.written(written)
    }

    /// Writes the journal anew.
    pub(crate) fn write_journal(&mut self) {
        let written = self.journal.rewrite(&self.book, &self.networks);
        let _ = self.written(written);
    }

    fn written(&mut self, result: std::io::Result<()>) -> Result<(), Refusal> {
        result.map_err(|error| {
            self.trouble(&format_args!("the journal: {error}"));
            Refusal::Failed
        })
    }
}

#[cfg(test)]
#[path = "netd_tests/mod.rs"]
mod tests;
