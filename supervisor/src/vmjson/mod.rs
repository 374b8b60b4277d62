//! Reading `vm.json`: bounded, strict, and with errors that name file, line and field.
//!
//! Runs in the CLI, as the user, on a file of the user's. [`check`] runs in the supervisor as well.

pub mod check;
