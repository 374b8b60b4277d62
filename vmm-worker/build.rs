//! Sends every call of `abort(3)` in the worker, those within the C library and Rust's runtime included, to
//! `sys::__wrap_abort`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-Wl,--wrap=abort");
}
