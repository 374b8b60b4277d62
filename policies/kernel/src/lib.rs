//! What the kernel says of filters that are in force.
//!
//! Runs in the CLI, or in a test: never in a process that is confined itself, which the kernel would refuse.
//! Unsafe code is in `readback/sys.rs` and `notify/sys.rs` only.
#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod notify;
pub mod readback;
