//! What the kernel says of filters that are in force.
//!
//! Runs in the CLI, or in a test: never in a process that is confined itself, which the kernel would refuse.
#![deny(missing_docs)]
