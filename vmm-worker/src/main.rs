//! Placeholder until the program is written in this very change.
fn main() {}
