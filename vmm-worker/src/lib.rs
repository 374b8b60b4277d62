//! vmm-worker: one VM, in the process that a guest would break out into.
//!
//! Runs as a uid of its own (or the user's), pid 1 of its own pid namespace, in an empty root, without a capability.
//! The supervisor speaks to it over one socket; the guest speaks to it through registers and queues, and is hostile.
//!
//! Unsafe: `sys.rs` (system calls without a safe wrapper, `ud2`) and `memory.rs` (guest RAM and memslots).
#![deny(unsafe_code)]

pub mod boot;
pub mod bus;
pub mod confine;
pub mod control;
pub mod cpuid;
pub mod devices;
pub mod interrupt;
pub mod leave;
#[allow(unsafe_code)]
pub mod memory;
pub mod pause;
pub mod reactor;
pub mod start;
pub mod stats;
#[allow(unsafe_code)]
pub mod sys;
pub mod threads;
pub mod vcpu;
pub mod vm;
