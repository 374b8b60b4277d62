//! Who may ask for what. Pure: the request, the caller as the kernel tells it, and the book.
//!
//! | request | who |
//! |---|---|
//! | Lease | whom the network's `users` or `groups` name; what is forwarded and how many is checked with it |
//! | Release | the uid that has the lease |
//! | Networks, Leases, Traffic | anyone, about themselves |
//! | Status | anyone; it says nothing of anyone |

use crate::leases::Book;
use crate::network::Network;
pub use ipc::peer::{Peer as Caller, Who};
use netd_api::{Refusal, Request};
use std::rc::Rc;

/// What a request needs. Every message of the protocol stands here.
enum Need<'a> {
    Nothing,
    Network(&'a str),
    Lease(netd_api::LeaseId),
}

fn need(request: &Request) -> Need<'_> {
    match request {
        Request::Lease(wanted) => Need::Network(&wanted.network),
        Request::Release { lease } => Need::Lease(*lease),
        Request::Networks | Request::Leases { .. } | Request::Traffic { .. } | Request::Status => Need::Nothing,
    }
}

/// May the caller ask this?
///
/// # Errors
/// The refusal to answer with. It does not tell what is there but not the caller's.
pub fn permit(request: &Request, caller: &Caller, networks: &[Rc<Network>], book: &Book) -> Result<(), Refusal> {
    match need(request) {
        Need::Nothing => Ok(()),
        Need::Network(name) => network(name, caller, networks).map(drop),
        Need::Lease(id) => match book.owned(id, caller.uid) {
            Some(_) => Ok(()),
            None => Err(Refusal::NotYours),
        },
    }
}

/// The network of that name, where the caller may use it.
///
/// # Errors
/// [`Refusal::NoSuchNetwork`], whether it is not there or not for the caller.
pub fn network(name: &str, caller: &Caller, networks: &[Rc<Network>]) -> Result<Rc<Network>, Refusal> {
    let found = networks.iter().find(|n| n.name == name && n.who.includes(caller));
    found.cloned().ok_or(Refusal::NoSuchNetwork)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{book_of, lease_request, network as a_network};
    use netd_api::LeaseId;

    #[test]
    fn each_request_is_for_whom_the_table_says() {
        let mut one = a_network("one", "br1", "10.0.0.1", 24);
        one.who = Who { users: vec![1000], groups: vec![50], ..Who::default() };
        let networks = [Rc::new(one)];
        let book = book_of(&networks[0], &[(LeaseId(1), 1000)]);
        let alice = Caller { uid: 1000, groups: vec![] };
        let member = Caller { uid: 2000, groups: vec![7, 50] };
        let mallory = Caller { uid: 3000, groups: vec![7] };
        let lease = lease_request("one");
        let release = Request::Release { lease: LeaseId(1) };
        for (request, caller, answer) in [
            (&lease, &alice, Ok(())),
            (&lease, &member, Ok(())),
            (&lease, &mallory, Err(Refusal::NoSuchNetwork)),
            (&lease_request("two"), &alice, Err(Refusal::NoSuchNetwork)),
            (&release, &alice, Ok(())),
            (&release, &member, Err(Refusal::NotYours)),
            (&Request::Release { lease: LeaseId(2) }, &alice, Err(Refusal::NotYours)),
            (&Request::Status, &mallory, Ok(())),
            (&Request::Networks, &mallory, Ok(())),
            (&Request::Leases { after: LeaseId(0) }, &mallory, Ok(())),
            (&Request::Traffic { after: LeaseId(0) }, &mallory, Ok(())),
        ] {
            assert_eq!(permit(request, caller, &networks, &book), answer, "{request:?} by {}", caller.uid);
        }
    }
}
