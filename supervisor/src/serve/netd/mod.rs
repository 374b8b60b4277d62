//! The client of netd, the host's network helper: leases, and what there is to see of networks.
//!
//! Speaks to the one privileged process of vmsup, which knows this supervisor by its uid and believes nothing else of it.
//! The other way round netd is trusted more than any guest, but it may be of another release, hang, or be away: every
//! answer has a deadline and bounds ([`check`]), and nothing that runs depends on it. A VM keeps its network while netd
//! is away, since its worker holds the TAP.
//!
//! Who serves the socket is not asked by uid: netd runs as root, or as any system user that the administrator chose, and
//! no number tells a system user from another. The path is the check. The usual one lies below `/run`, where only root
//! makes directories; another one was named by the very user whose supervisor this is.
//!
//! One connection for each operation, which may be several requests.

mod check;
mod connection;

#[cfg(test)]
mod tests;

pub use connection::NetdError;

use connection::Connection;
use netd_api::{LeaseId, LeaseInfo, NetworkInfo, Refusal, Reply, Request, Traffic, Wanted};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How long netd may take for one answer.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// Character device 10:200, `/dev/net/tun`: what every queue of a TAP is an open file of.
pub const TUN: (u32, u32) = (10, 200);
/// The most leases that are shown: more than all VMs of a supervisor have.
const LEASES_MAX: usize = jail_spec::SLOTS_MAX as usize * worker_api::NETS_MAX;

/// The way to netd.
#[derive(Debug)]
pub struct Netd {
    way: Way,
    releases: mpsc::UnboundedSender<LeaseId>,
    /// Releases that were asked for and not carried out.
    pending: watch::Sender<usize>,
}

/// Where it is and how long it may take.
#[derive(Debug, Clone)]
struct Way {
    path: PathBuf,
    deadline: Duration,
    tap_device: (u32, u32),
}

/// What netd granted.
#[derive(Debug)]
pub struct Granted {
    /// To be kept as long as the VM lives.
    pub lease: Lease,
    /// What the VM is on its network.
    pub told: netd_api::Lease,
    /// The TAP, an fd for each queue.
    pub queues: Vec<OwnedFd>,
}

/// A lease of ours. Dropping it releases it; the interface goes when its last fd does.
#[derive(Debug)]
pub struct Lease {
    id: LeaseId,
    netd: Arc<Netd>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.netd.release(self.id);
    }
}

impl Netd {
    /// At `path`, with `deadline` for each answer. `tap_device` is [`TUN`] outside of tests. Needs a runtime.
    pub fn new(path: PathBuf, deadline: Duration, tap_device: (u32, u32)) -> Arc<Netd> {
        let way = Way { path, deadline, tap_device };
        let (releases, released) = mpsc::unbounded_channel();
        let pending = watch::Sender::new(0);
        tokio::spawn(carry_out_releases(way.clone(), released, pending.clone()));
        Arc::new(Netd { way, releases, pending })
    }

    /// Asks for the lease of each of `wanted`, in order. The first request is on its way when this returns; the answers
    /// are taken by a task of their own, so that who gives up waiting leaves no lease behind: what comes is released.
    /// `keep` lives as long as that task may hold fds.
    pub fn lease<K: Send + 'static>(
        self: &Arc<Self>,
        wanted: Vec<Wanted>,
        keep: K,
    ) -> impl Future<Output = Result<Vec<Granted>, LeaseError>> + use<K> {
        let begun = wanted.first().map(|first| self.way.begin(first));
        let netd = self.clone();
        let task = tokio::spawn(async move {
            let _keep = keep;
            match begun {
                Some(begun) => netd.lease_all(&wanted, begun).await,
                None => Ok(Vec::new()),
            }
        });
        async move {
            let leaving = |_| NetdError::Away(std::io::Error::other("this supervisor is leaving"));
            task.await.unwrap_or_else(|error| Err(LeaseError { net: 0, error: leaving(error) }))
        }
    }

    /// Takes the answer to the first request, then asks for the others.
    async fn lease_all(
        self: &Arc<Self>,
        wanted: &[Wanted],
        begun: Result<Connection, NetdError>,
    ) -> Result<Vec<Granted>, LeaseError> {
        let (begun, mut sent) = match begun {
            Err(NetdError::Busy) => (self.way.connect().await, false),
            begun => (begun, true),
        };
        let mut connection = begun.map_err(|error| LeaseError { net: 0, error })?;
        let mut leases = Vec::with_capacity(wanted.len());
        for (net, wanted) in wanted.iter().enumerate() {
            let answer = async {
                if !std::mem::take(&mut sent) {
                    connection.send(&Request::Lease(wanted.clone()))?;
                }
                let (reply, fds) = connection.answer().await?;
                self.granted(wanted, reply, fds)
            };
            leases.push(answer.await.map_err(|error| LeaseError { net, error })?);
        }
        Ok(leases)
    }

    fn granted(self: &Arc<Self>, wanted: &Wanted, reply: Reply, fds: Vec<OwnedFd>) -> Result<Granted, NetdError> {
        match reply {
            Reply::Leased(lease) => {
                // From here on it is released, whatever is wrong with it.
                let granted = Granted { lease: Lease { id: lease.id, netd: self.clone() }, told: lease, queues: fds };
                check::lease(&granted.told, &granted.queues, wanted, self.way.tap_device)?;
                Ok(granted)
            }
            other => Err(unfit(other)),
        }
    }

    /// A lease that an earlier supervisor got, for a VM that lives.
    pub fn adopt(self: &Arc<Self>, id: LeaseId) -> Lease {
        Lease { id, netd: self.clone() }
    }

    /// The networks that this supervisor's user may use.
    ///
    /// # Errors
    /// netd is away, or its answer is none.
    pub async fn networks(&self) -> Result<Vec<NetworkInfo>, NetdError> {
        match self.way.connect().await?.ask(&Request::Networks).await?.0 {
            Reply::Networks(networks) => check::networks(networks),
            other => Err(unfit(other)),
        }
    }

    /// The leases of this supervisor's user, in the order of their numbers.
    ///
    /// # Errors
    /// As [`Netd::networks`].
    pub async fn leases(&self) -> Result<Vec<LeaseInfo>, NetdError> {
        let page = |reply, after| match reply {
            Reply::Leases(page) => check::leases(page, after),
            other => Err(unfit(other)),
        };
        self.pages(|after| Request::Leases { after }, page, |lease| lease.id).await
    }

    /// What the kernel counted on the interfaces of the leases of this supervisor's user, in the order of their numbers.
    ///
    /// # Errors
    /// As [`Netd::networks`].
    pub async fn traffic(&self) -> Result<Vec<Traffic>, NetdError> {
        let page = |reply, after| match reply {
            Reply::Traffic(page) => check::traffic(page, after),
            other => Err(unfit(other)),
        };
        self.pages(|after| Request::Traffic { after }, page, |traffic| traffic.id).await
    }

    /// Asks on until a page is not full.
    async fn pages<T>(
        &self,
        ask: impl Fn(LeaseId) -> Request,
        check: impl Fn(Reply, LeaseId) -> Result<Vec<T>, NetdError>,
        id: impl Fn(&T) -> LeaseId,
    ) -> Result<Vec<T>, NetdError> {
        let mut connection = self.way.connect().await?;
        let mut all: Vec<T> = Vec::new();
        loop {
            let after = all.last().map_or(LeaseId(0), &id);
            let page = check(connection.ask(&ask(after)).await?.0, after)?;
            let full = page.len() == netd_api::PAGE;
            all.extend(page);
            if !full {
                return Ok(all);
            }
            if all.len() > LEASES_MAX {
                return Err(NetdError::Confused(format!("more than {LEASES_MAX} leases")));
            }
        }
    }

    /// Gives a lease back, some time later.
    fn release(&self, lease: LeaseId) {
        self.pending.send_modify(|n| *n += 1);
        if self.releases.send(lease).is_err() {
            self.pending.send_modify(|n| *n -= 1);
        }
    }

    /// Waits until every release was carried out or given up.
    pub async fn settled(&self) {
        let _ = self.pending.subscribe().wait_for(|n| *n == 0).await;
    }

    /// Where netd is expected.
    pub fn path(&self) -> &std::path::Path {
        &self.way.path
    }
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
#[error("nets[{net}]: {error}")]
pub struct LeaseError {
    /// For which of those that were wanted.
    pub net: usize,
    /// What happened.
    pub error: NetdError,
}

impl Way {
    /// Connects and asks for a lease, without waiting.
    fn begin(&self, wanted: &Wanted) -> Result<Connection, NetdError> {
        let mut connection = Connection::open(&self.path, self.deadline)?;
        connection.send(&Request::Lease(wanted.clone()))?;
        Ok(connection)
    }

    /// Connects; waits for a place where netd's backlog is full.
    async fn connect(&self) -> Result<Connection, NetdError> {
        Connection::open_patiently(&self.path, self.deadline).await
    }
}

/// Carries out releases, one after the other, for as long as there is a [`Netd`]. Each is tried once: where netd is away,
/// the interface is gone with its worker, which netd sees when it is back.
async fn carry_out_releases(way: Way, mut released: mpsc::UnboundedReceiver<LeaseId>, pending: watch::Sender<usize>) {
    while let Some(first) = released.recv().await {
        let mut connection = way.connect().await;
        let mut next = Some(first);
        while let Some(lease) = next {
            // After an error the rest of what is queued is given up, too: it would only wait for the same.
            if let Ok(open) = &mut connection
                && let Err(error) = release(open, lease).await
            {
                connection = Err(error);
            }
            if let Err(error) = &connection {
                tracing::warn!(lease = lease.0, %error, "a lease could not be released; netd ends it with its interface");
            }
            pending.send_modify(|n| *n -= 1);
            next = released.try_recv().ok();
        }
    }
}

async fn release(connection: &mut Connection, lease: LeaseId) -> Result<(), NetdError> {
    match connection.ask(&Request::Release { lease }).await?.0 {
        // `NotYours`: netd saw the interface go before we said so, which is as good.
        Reply::Released | Reply::Refused(Refusal::NotYours) => Ok(()),
        other => Err(unfit(other)),
    }
}

/// An answer that is not the one that was asked for.
fn unfit(reply: Reply) -> NetdError {
    match reply {
        Reply::Refused(why) => NetdError::Refused(why),
        _ => NetdError::Confused("something else than it was asked".into()),
    }
}
