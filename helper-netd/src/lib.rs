//! netd: vmsup's only privileged process. It makes TAPs, plugs them into bridges, and hands their fds over a socket.
//!
//! Runs as a system user of its own with CAP_NET_ADMIN and nothing else, single-threaded, confined by landlock and
//! seccomp. Every local user can send to it; who may have what is in root's configuration, and who asks is what the
//! kernel says of the socket's peer.
//!
//! ```text
//!  start ── options, config, names           what root wants
//!    │  └── confine                          all but CAP_NET_ADMIN is given up
//!    v
//!  serve ── peers: permit ─> requests ─┐
//!    │                                 ├──> netd: book (leases) ─> journal
//!    └───── kernel's events: links ────┘      └──> ports ──> ops: TAPs, bridges, elements of sets
//! ```
//!
//! Unsafe: `sys.rs` only.
#![deny(unsafe_code)]

pub mod config;
pub mod confine;
pub mod journal;
pub mod leases;
mod links;
pub mod log;
pub mod names;
pub mod netd;
pub mod netlink;
pub mod network;
pub mod ops;
pub mod options;
pub mod permit;
pub mod places;
mod ports;
mod requests;
pub mod serve;
pub mod start;
#[allow(unsafe_code)]
pub mod sys;
#[cfg(test)]
mod testing;
