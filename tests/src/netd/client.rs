//! Clients of netd that are whoever a test wants them to be.

use crate::wire::Wire;
use ipc::Channel;
use netd_api::{Forward, Lease, LeaseId, LeaseInfo, NetworkInfo, Refusal, Reply, Request, Status, VmId, Wanted};
use std::os::fd::OwnedFd;

/// Somebody who speaks netd's protocol.
#[derive(Debug)]
pub struct Client {
    /// After the greeting.
    pub channel: Channel<Request, Reply>,
}

/// What a VM usually wants; netd keeps TAPs of this kind warm.
pub fn wanted(network: &str, vm: u64) -> Wanted {
    let network = network.to_owned();
    Wanted { network, vm: VmId(vm), queues: 1, offloads: true, mac_suffix: None, forwards: Vec::new() }
}

impl Client {
    /// Somebody who was greeted.
    pub(super) fn new(channel: Channel<Request, Reply>) -> Client {
        Client { channel }
    }

    /// One question, one answer.
    ///
    /// # Panics
    /// Where netd does not answer.
    pub fn ask(&self, request: &Request) -> (Reply, Vec<OwnedFd>) {
        self.channel.send(request, &[]).unwrap();
        self.channel.receive().unwrap()
    }

    /// A plain lease.
    ///
    /// # Errors
    /// Why netd refused it.
    pub fn lease(&self, network: &str, vm: u64) -> Result<Wire, Refusal> {
        self.lease_of(wanted(network, vm))
    }

    /// A plain lease with forwards.
    ///
    /// # Errors
    /// Why netd refused it.
    pub fn lease_with(&self, network: &str, vm: u64, forwards: &[Forward]) -> Result<Wire, Refusal> {
        self.lease_of(Wanted { forwards: forwards.to_vec(), ..wanted(network, vm) })
    }

    /// A lease.
    ///
    /// # Errors
    /// Why netd refused it.
    ///
    /// # Panics
    /// Where the answer is about something else.
    pub fn lease_of(&self, wanted: Wanted) -> Result<Wire, Refusal> {
        match self.ask(&Request::Lease(wanted)) {
            (Reply::Leased(lease), queues) => Ok(Wire { queues, lease: check(lease) }),
            (Reply::Refused(why), _) => Err(why),
            (other, _) => panic!("{other:?}"),
        }
    }

    /// Gives a lease back.
    ///
    /// # Errors
    /// Why netd refused that.
    ///
    /// # Panics
    /// Where the answer is about something else.
    pub fn release(&self, lease: LeaseId) -> Result<(), Refusal> {
        match self.ask(&Request::Release { lease }).0 {
            Reply::Released => Ok(()),
            Reply::Refused(why) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    /// The networks that this caller may use.
    ///
    /// # Panics
    /// Where the answer is about something else.
    pub fn networks(&self) -> Vec<NetworkInfo> {
        match self.ask(&Request::Networks).0 {
            Reply::Networks(all) => all,
            other => panic!("{other:?}"),
        }
    }

    /// This caller's leases, all pages.
    ///
    /// # Panics
    /// Where the answer is about something else, or a page does not follow the one before.
    pub fn leases(&self) -> Vec<LeaseInfo> {
        let mut all: Vec<LeaseInfo> = Vec::new();
        loop {
            let after = all.last().map_or(LeaseId(0), |l| l.id);
            let Reply::Leases(page) = self.ask(&Request::Leases { after }).0 else { panic!("Leases is answered so") };
            assert!(page.len() <= netd_api::PAGE && page.iter().all(|l| l.id > after), "{page:?}");
            let full = page.len() == netd_api::PAGE;
            all.extend(page);
            if !full {
                return all;
            }
        }
    }

    /// How netd is.
    ///
    /// # Panics
    /// Where the answer is about something else.
    pub fn status(&self) -> Status {
        match self.ask(&Request::Status).0 {
            Reply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }
}

/// What is true of every lease.
fn check(lease: Lease) -> Lease {
    assert_eq!(lease.mac[..3], [0x02, 0x76, 0x6d], "{lease:?}");
    assert!(lease.interface.starts_with("vt") && lease.address != lease.gateway, "{lease:?}");
    lease
}
