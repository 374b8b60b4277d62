//! netd: vmsup's only privileged process. It makes TAPs, plugs them into bridges, and hands their fds over a socket.
//!
//! Runs as a system user of its own with CAP_NET_ADMIN and nothing else, single-threaded, confined by landlock and
//! seccomp. Every local user can send to it; who may have what is in root's configuration, and who asks is what the
//! kernel says of the socket's peer.
//!
//! Unsafe: `sys.rs` only.
#![deny(unsafe_code)]

pub mod netlink;
pub mod ops;
#[allow(unsafe_code)]
pub mod sys;
