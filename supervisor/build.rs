//! Builds the built-in guest `hello` from its source: no binary lies in the repository.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../tests/guest");
    let (source, script) = (root.join("hello.S"), root.join("hello.ld"));
    println!("cargo::rerun-if-changed={}", source.display());
    println!("cargo::rerun-if-changed={}", script.display());
    println!("cargo::rerun-if-env-changed=CC");
    let output = PathBuf::from(env::var_os("OUT_DIR").unwrap()).join("hello.elf");
    let compiler = env::var_os("CC").unwrap_or_else(|| "gcc".into());
    let status = Command::new(&compiler)
        .args(["-nostdlib", "-static", "-no-pie", "-s", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-T"])
        .args([&script, &source])
        .arg("-o")
        .arg(&output)
        .status()
        .unwrap_or_else(|e| {
            panic!("{}: {e}; a C compiler builds the built-in guest (apt install gcc)", compiler.display())
        });
    assert!(status.success(), "{}: {status}", source.display());
    assert!(fs::metadata(&output).unwrap().len() > 0);
    println!("cargo::rustc-env=VMSUP_HELLO={}", output.display());
}
