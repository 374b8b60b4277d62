//! vmsup: the supervisor (`vmsup serve`) and the command line.
#![forbid(unsafe_code)]

pub mod api;
pub mod guestfile;
pub mod paths;
pub mod reconcile;
pub mod serve;
pub mod side;
pub mod spec;
pub mod vmjson;
