//! Builds the guests that are built in from their sources: no binary lies in the repository.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

/// Guest, and the variable that tells where its image is.
const GUESTS: [(&str, &str); 2] = [("hello", "VMSUP_HELLO"), ("net", "VMSUP_NET")];
/// Each image becomes part of the program, bytes.
const IMAGE_MAX: u64 = 64 * 1024;

fn main() {
    // Relative relocations packed: 280 KB less to read in each start of a command.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    let sources = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../tests/guest");
    // The whole folder, with what the guests share and how the Makefile builds them.
    println!("cargo::rerun-if-changed={}", sources.display());
    println!("cargo::rerun-if-env-changed=CC");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap()).join("guest");
    let images = GUESTS.map(|(guest, _)| out.join(guest).with_extension("elf"));
    let mut make = Command::new("make");
    make.arg("--silent").arg("-C").arg(&sources).arg(format!("OUT={}", out.display())).args(&images);
    // Of a make that may have started cargo: its job server is not ours.
    for variable in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "DEFINES"] {
        make.env_remove(variable);
    }
    let status = make.status().unwrap_or_else(|e| {
        panic!("make: {e}; make and a C compiler build the built-in guests (apt install make gcc)")
    });
    assert!(status.success(), "make of {images:?} failed: {status}");
    for ((_, variable), image) in GUESTS.iter().zip(&images) {
        let bytes = fs::metadata(image).unwrap().len();
        assert!(0 < bytes && bytes <= IMAGE_MAX, "{}: {bytes} bytes, at most {IMAGE_MAX} wanted", image.display());
        println!("cargo::rustc-env={variable}={}", image.display());
    }
}
