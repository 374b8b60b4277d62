//! Tenants: who may use this supervisor, whose VMs they see, and how much they may have.
//!
//! A supervisor without a configuration is its user's own: that user and root may use it, see everything, and are held to
//! nothing. With one (`--config`) it is *shared*: whom the file names may use it, each with their own VMs, which nobody else
//! learns of but administrators. Who somebody is the kernel says (SO_PEERCRED, SO_PEERGROUPS), as of when they connected.
//!
//! ```text
//! config.rs  the file                        pure but for reading it
//! quota.rs   how much of what, for whom      pure but for one lock
//! ```

mod config;
mod quota;

pub use config::{Error as ConfigError, Source, Standing};
pub use quota::{Claim, Demand, Excess, Limit, Quota, Terms};

use super::registry::Who;
use config::Config;
use ipc::peer::Peer;
use quota::Ledger;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;

/// Who may, and what each may have.
#[derive(Debug)]
pub struct Tenants {
    /// The supervisor's own uid.
    own: u32,
    shared: Option<Shared>,
    ledger: Arc<Ledger>,
}

/// What a supervisor of several has.
#[derive(Debug)]
struct Shared {
    source: Source,
    /// As it was read last.
    config: watch::Sender<Arc<Config>>,
}

/// What is wrong with a configuration, or whom it lets in.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(file: &Path) -> Result<String, ConfigError> {
    let own = rustix::process::geteuid().as_raw();
    Ok(config::read(&Source::of(file, own)?)?.summary())
}

impl Tenants {
    /// Of a supervisor that is the user `own`'s alone.
    pub fn of_one(own: u32) -> Tenants {
        Tenants { own, shared: None, ledger: Arc::default() }
    }

    /// Of one that is whose a file says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn shared(own: u32, source: Source) -> Result<Tenants, ConfigError> {
        let config = watch::Sender::new(Arc::new(config::read(&source)?));
        Ok(Tenants { own, shared: Some(Shared { source, config }), ledger: Arc::default() })
    }

    /// Whether others than the supervisor's own user may use it: then no path that a client names is opened.
    pub fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Reads the file again; what it says holds from now on, for those who are connected, too.
    ///
    /// # Errors
    /// What is wrong with it: then all is as before.
    pub fn reload(&self) -> Result<(), ConfigError> {
        if let Some(Shared { source, config }) = &self.shared {
            let new = config::read(source)?;
            config.send_replace(Arc::new(new));
        }
        Ok(())
    }

    /// Whose VMs `peer` sees; nothing where they may not use this supervisor. Root and the supervisor's own user could read
    /// all of it anyway.
    pub fn standing(&self, peer: &Peer) -> Option<Who> {
        let all = peer.uid == 0 || peer.uid == self.own || {
            let shared = self.shared.as_ref()?;
            shared.config.borrow().standing(peer)? == Standing::Administrator
        };
        Some(Who { uid: peer.uid, all })
    }

    /// What `peer` is held to.
    pub fn limit(&self, peer: &Peer) -> Limit {
        let who = self.standing(peer);
        let shared = self.shared.as_ref().filter(|_| who.is_none_or(|who| !who.all))?;
        Some(Arc::new(shared.config.borrow().quota(peer)))
    }

    /// What a uid is held to that nobody may be connected as, as far as this host's files tell.
    pub fn limit_of(&self, uid: u32) -> Limit {
        let shared = self.shared.as_ref().filter(|_| uid != self.own)?;
        shared.config.borrow().limit_of(uid)
    }

    /// Waits until `peer` may use this supervisor no longer, or sees more or less than before.
    pub async fn until_other_than(&self, peer: &Peer, who: Who) {
        let Some(shared) = &self.shared else { return std::future::pending().await };
        let mut config = shared.config.subscribe();
        while self.standing(peer) == Some(who) {
            if config.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Takes `wanted` for `owner`, in place of `instead`, which goes once this is accepted.
    ///
    /// # Errors
    /// It would be more than `limit` allows.
    pub fn claim(&self, owner: u32, wanted: Demand, instead: Option<&Claim>, limit: &Limit) -> Result<Claim, Excess> {
        self.ledger.claim(owner, wanted, instead, limit)
    }

    /// What `owner` has already, whatever they may have: of an earlier supervisor's.
    pub fn charge(&self, owner: u32, demand: Demand) -> Claim {
        self.ledger.charge(owner, demand)
    }

    /// What `owner` has.
    pub fn used(&self, owner: u32) -> Demand {
        self.ledger.used(owner)
    }

    /// Who has anything, and what.
    pub fn all_used(&self) -> BTreeMap<u32, Demand> {
        self.ledger.all()
    }
}
