//! A worker becomes a VM, or says why it does not. On the machine's own /dev/kvm, with bare-metal guests.

mod common;

use common::{Ended, Vm, Worker, file, guest, hello};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use worker_api::{Part, StartFailure, exit};

/// What `Start` fails with, and that the worker leaves as failed, with the same words.
fn refusal(vm: &Vm) -> StartFailure {
    let worker = Worker::start();
    let failure = vm.start_on(&worker.connect()).expect_err("it started");
    let ended = worker.end();
    assert_eq!(ended.status, Some(exit::FAILED), "{ended:?}");
    assert_eq!(ended.words.trim_end(), failure.detail);
    failure
}

/// Runs a guest to its end and gives its console.
fn run(vm: &Vm, status: i32) -> String {
    let worker = Worker::start();
    vm.start_on(&worker.connect()).unwrap();
    assert_eq!(worker.end(), Ended::with_status(status));
    vm.console()
}

fn bytes(mut of: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    of.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn hello_prints_its_line_and_asks_for_a_reset() {
    assert_eq!(run(&Vm::new(hello()), exit::RESET), "HELLOGUEST\n");
}

#[test]
fn a_start_is_answered_before_its_guest_is_gone() {
    // The guest ends within microseconds; its supervisor hears of its beginning first, every time.
    for _ in 0..20 {
        let worker = Worker::start();
        Vm::new(hello()).start_on(&worker.connect()).unwrap();
        assert_eq!(worker.end(), Ended::with_status(exit::RESET));
    }
}

#[test]
fn a_triple_fault_is_a_crash_that_says_where() {
    let worker = Worker::start();
    Vm::new(guest("triple")).start_on(&worker.connect()).unwrap();
    let ended = worker.end();
    assert_eq!(ended.status, Some(exit::CRASH));
    assert!(ended.words.starts_with("triple fault at rip 0x10000"), "{ended:?}");
    assert!(ended.words.ends_with(", vCPU 0\n"), "{ended:?}");
}

#[test]
fn every_vcpu_comes_up() {
    for cpus in [1, 2, 32] {
        let console = run(&Vm::with(guest("smp"), cpus, 64), exit::SHUTDOWN);
        for cpu in 0..cpus {
            assert!(console.contains(&format!("cpu {cpu} up")), "{cpus} vCPUs: {console}");
        }
        assert!(console.contains(&format!("ALL {cpus} CPUS UP")), "{console}");
    }
}

/// The row "nested virtualisation in the guest" of the threats. That nothing else is told but what KVM supports is held
/// against KVM itself (`vm.rs`): a back end that emulates may show features of the processor's own here.
#[test]
fn the_guest_sees_no_nested_virtualisation() {
    let console = run(&Vm::with(guest("cpuid"), 2, 64), exit::SHUTDOWN);
    let leaf = |function: &str| -> [u32; 4] {
        let line = console.lines().find_map(|line| line.strip_prefix(&format!("cpuid {function} ")));
        let words = line.expect("a leaf").split(' ').map(|word| u32::from_str_radix(word, 16).unwrap());
        words.collect::<Vec<_>>().try_into().unwrap()
    };
    let [_, topology, features, _] = leaf("1");
    assert_eq!((features >> 5 & 1, features >> 31), (0, 1), "no VMX, and a hypervisor: {console}");
    assert_eq!(topology >> 16, 2, "vCPU 0 of 2: {console}");
    assert_eq!(leaf("80000001")[2] >> 2 & 1, 0, "no SVM: {console}");
    let vendor = leaf("0").map(u32::to_le_bytes);
    if vendor[1..] == [*b"Auth", *b"cAMD", *b"enti"] {
        assert_eq!(leaf("8000000a"), [0; 4], "nothing of SVM: {console}");
    }
}

#[test]
fn the_guest_has_all_the_memory_that_it_is_told_of() {
    let console = run(&Vm::with(guest("walker"), 1, 24), exit::SHUTDOWN);
    assert!(console.contains("PASS") && !console.contains("FAIL"), "{console}");
}

#[test]
fn memory_goes_on_above_the_hole() {
    let vm = Vm::with(hello(), 1, 4096);
    let ram = File::from(vm.fds[1].try_clone().unwrap());
    assert_eq!(run(&vm, exit::RESET), "HELLOGUEST\n");
    // The last entry of the memory map that the guest is told of.
    let mut entry = [0; 20];
    ram.read_exact_at(&mut entry, 0x6080 + 3 * 24).unwrap();
    let [base, size] = [0, 8].map(|at| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap()));
    assert_eq!((base, size, entry[16]), (1 << 32, 1 << 30, 1));
}

#[test]
fn memory_that_the_host_has_no_room_for_is_refused() {
    let worker = Worker::start();
    let limit = rustix::process::Rlimit { current: Some(256 << 20), maximum: Some(256 << 20) };
    let pid = rustix::process::Pid::from_child(&worker.child);
    rustix::process::prlimit(Some(pid), rustix::process::Resource::As, limit).unwrap();
    let failure = Vm::with(hello(), 1, 1024).start_on(&worker.connect()).unwrap_err();
    assert_eq!(failure.part, Part::Memory);
    assert!(failure.detail.contains("cannot be mapped"), "{failure:?}");
    assert_eq!(worker.end().status, Some(exit::FAILED));
}

#[test]
fn the_guest_reads_what_is_typed_at_its_console() {
    let worker = Worker::start();
    let mut vm = Vm::new(guest("echo"));
    vm.start_on(&worker.connect()).unwrap();
    vm.wait_for("echo up");
    vm.ends.input.write_all(b"some words\nq").unwrap();
    assert_eq!(worker.end(), Ended::with_status(exit::SHUTDOWN));
    assert!(vm.console().contains("some words\n"), "{}", vm.console());
}

#[test]
fn what_is_no_kernel_is_refused_with_a_sentence() {
    let failure = refusal(&Vm::new(file(b"#!/bin/sh\necho no kernel\n")));
    assert_eq!(failure.part, Part::Kernel);
    assert_eq!(failure.detail, "boot.kernel is not a kernel: neither a bzImage nor an ELF");
}

#[test]
fn a_kernel_that_is_cut_short_is_refused() {
    let whole = bytes(hello());
    // In the middle of its one segment.
    let offset = u64::from_le_bytes(whole[64 + 8..64 + 16].try_into().unwrap()) as usize;
    let failure = refusal(&Vm::new(file(&whole[..offset + 20])));
    assert_eq!(failure.part, Part::Kernel);
    assert!(failure.detail.contains("cut short"), "{failure:?}");
}

#[test]
fn a_kernel_larger_than_memory_is_refused() {
    let mut kernel = bytes(hello());
    // p_memsz of the first program header.
    kernel[64 + 40..64 + 48].copy_from_slice(&(1u64 << 40).to_le_bytes());
    let failure = refusal(&Vm::new(file(&kernel)));
    assert_eq!(failure.part, Part::Kernel);
    assert!(failure.detail.contains("raise memory_mib"), "{failure:?}");
}

#[test]
fn an_initrd_too_large_is_refused() {
    let huge = memfd_create("initrd", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&huge, 1 << 40).unwrap();
    let failure = refusal(&Vm::new(hello()).initrd(huge));
    assert_eq!(failure.part, Part::Initrd);
    assert!(failure.detail.starts_with("boot.initrd has 1048576 MiB"), "{failure:?}");
}

#[test]
fn an_initrd_is_where_the_guest_is_told() {
    let worker = Worker::start();
    let vm = Vm::new(hello()).initrd(file(b"cpio, as far as the guest knows"));
    let ram = File::from(vm.fds[1].try_clone().unwrap());
    vm.start_on(&worker.connect()).unwrap();
    assert_eq!(worker.end(), Ended::with_status(exit::RESET));
    let mut entry = [0; 16];
    ram.read_exact_at(&mut entry, 0x6040).unwrap();
    let at = u64::from_le_bytes(entry[..8].try_into().unwrap());
    let mut content = [0; 4];
    ram.read_exact_at(&mut content, at).unwrap();
    assert_eq!((&content, at % 4096, entry[8]), (b"cpio", 0, 31));
}

#[test]
fn a_spec_that_is_wrong_is_refused() {
    let mut vm = Vm::new(hello());
    vm.spec.cpus = 33;
    assert_eq!(refusal(&vm).part, Part::Spec);
    vm.spec.cpus = 1;
    vm.spec.memory_mib = 1;
    assert_eq!(refusal(&vm).part, Part::Spec);
}

/// The VM with another fd in the place of number `n`.
fn with_fd(n: usize, fd: impl Into<OwnedFd>) -> Vm {
    let mut vm = Vm::new(hello());
    vm.fds[n] = fd.into();
    vm
}

#[test]
fn an_fd_that_is_not_what_it_should_be_is_refused() {
    let null = || File::options().read(true).write(true).open("/dev/null").unwrap();
    let unsealed = |bytes: u64| {
        let fd = memfd_create("x", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, bytes).unwrap();
        fd
    };
    for (vm, part, words) in [
        (with_fd(0, null()), Part::Kvm, "is not KVM"),
        (with_fd(0, std::io::pipe().unwrap().0), Part::Kvm, "is not KVM"),
        (with_fd(1, common::sealed_memfd(1 << 20)), Part::Memory, "not a file of 67108864 bytes"),
        (with_fd(1, unsealed(64 << 20)), Part::Memory, "not sealed"),
        (with_fd(1, null()), Part::Memory, "not a file of"),
        (with_fd(2, unsealed(worker_api::console::RING_BYTES)), Part::Console, "sealed"),
        (with_fd(2, common::sealed_memfd(4096)), Part::Console, "sealed"),
        (with_fd(5, std::io::pipe().unwrap().0), Part::Kernel, "not a regular file"),
        (with_fd(5, File::open("/").unwrap()), Part::Kernel, "not a regular file"),
    ] {
        let failure = refusal(&vm);
        assert_eq!(failure.part, part, "{failure:?}");
        assert!(failure.detail.contains(words), "{failure:?}");
    }
}
