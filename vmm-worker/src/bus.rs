//! The port and MMIO buses.
