//! A set of policy files: what they say ([`model`]), how they are read ([`read`], [`foreign`]), what becomes of them
//! ([`compile`]), and what the compiled programs do ([`bpf`], [`check`]).
//!
//! Everything here is a function of the files' text. Nothing looks at a running process, and nothing is put in force.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod arch;
pub mod bpf;
pub mod check;
pub mod compile;
pub mod families;
pub mod foreign;
mod house;
pub mod model;
pub mod program;
pub mod read;
pub mod wire;
