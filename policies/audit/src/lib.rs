//! What an auditor asks of a set of policy files: findings, differences, reports.
//!
//! Pure: sets in, values and text out.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod audit;
pub mod diff;
pub mod finding;
mod points;
pub mod report;
pub mod risk;
pub mod sarif;
pub mod tables;
pub mod trace;
