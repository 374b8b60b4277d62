//! Devices under a real guest, in a worker whose threads run under their shipped filters.

mod common;

use common::{Ended, Vm, Worker, guest};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use worker_api::{DiskSpec, Engine, exit};

const SECTORS: u64 = 256;

/// A disk without a name, and what a writer and a reader have of it.
struct Disk {
    file: File,
}

impl Disk {
    fn new() -> Self {
        let fd = memfd_create("disk", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, SECTORS * 512).unwrap();
        Self { file: fd.into() }
    }

    /// Opened anew, as a supervisor opens it: with the rights that the disk has.
    fn open(&self, readonly: bool) -> OwnedFd {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        OpenOptions::new().read(true).write(!readonly).open(path).unwrap().into()
    }
}

fn with_disks(kernel: &str, options: &str, disks: &[(&Disk, bool)]) -> Vm {
    let mut vm = Vm::new(guest(kernel));
    vm.spec.cmdline = options.into();
    for (disk, readonly) in disks {
        vm.spec.disks.push(DiskSpec { readonly: *readonly, serial: "vmsup-test".into(), engine: Engine::Threads });
        vm.fds.push(disk.open(*readonly));
    }
    vm
}

/// Runs a guest until it switches itself off, and gives its console.
fn run(vm: &Vm) -> String {
    let worker = Worker::start();
    vm.start_on(&worker.connect()).unwrap();
    let ended = worker.end();
    let console = vm.console();
    assert_eq!(ended, Ended::with_status(exit::SHUTDOWN), "{console}");
    console
}

#[test]
fn a_guest_reads_and_writes_its_disk_in_every_shape() {
    let disk = Disk::new();
    let console = run(&with_disks("block", "seed=77 from=8", &[(&disk, false)]));
    assert!(console.contains("BLOCK PASS") && !console.contains("FAIL"), "{console}");
    // The guest writes sixteen sectors twice, each time with another seed.
    let seed = 77 + 2 * 0x0101_0101u32;
    for (n, word) in (0..).zip(contents(&disk)[8 * 512..24 * 512].chunks(4)) {
        let expected = seed ^ (((8 + n / 128) << 8) | (n % 128));
        assert_eq!(u32::from_le_bytes(word.try_into().unwrap()), expected, "word {n} is not what the guest wrote");
    }
}

#[test]
fn the_second_disk_is_another_one() {
    let (first, second) = (Disk::new(), Disk::new());
    let console = run(&with_disks("block", "disk=1", &[(&first, false), (&second, false)]));
    assert!(console.contains("BLOCK PASS"), "{console}");
    let mut bytes = vec![0; SECTORS as usize * 512];
    first.file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|b| *b == 0), "the first one was not touched");
    second.file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().any(|b| *b != 0));
}

#[test]
fn a_hostile_guest_harms_no_more_than_its_own_disk() {
    let (writable, readonly) = (Disk::new(), Disk::new());
    readonly.file.write_all_at(&[0x5a; 512 * 8], 512 * 16).unwrap();
    let before = contents(&readonly);
    for seed in 1..=2 {
        let options = format!("seed={seed}");
        let console = run(&with_disks("hostile", &options, &[(&writable, false), (&readonly, true)]));
        assert!(!console.contains("FAIL"), "{console}");
        assert!(console.contains("HOSTILE"), "{console}");
    }
    assert_eq!(contents(&readonly), before);
    assert_eq!(contents(&writable).len() as u64, SECTORS * 512, "the disk did not grow");
}

fn contents(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.file.metadata().unwrap().len() as usize];
    disk.file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_guest_that_floods_its_console_is_not_blocked_by_a_reader_that_never_reads() {
    let mut vm = Vm::new(guest("flood"));
    vm.spec.cmdline = "kib=1024".into();
    let console = run(&vm);
    assert!(console.ends_with("FLOOD-END 16384 lines\n"), "the newest bytes are kept");
    let mut written = [0; 8];
    vm.ends.ring.read_exact_at(&mut written, worker_api::console::WRITTEN).unwrap();
    assert!(u64::from_le_bytes(written) > 1 << 20, "and all are counted");
}

#[test]
fn a_vm_outlives_the_writer_of_its_console() {
    let disk = Disk::new();
    let mut vm = with_disks("block", "", &[(&disk, false)]);
    // A pipe for reading only, without a writer from the beginning: its end is the first thing that the reactor hears of.
    vm.fds[4] = std::io::pipe().unwrap().0.into();
    let console = run(&vm);
    assert!(console.contains("BLOCK PASS"), "{console}");
}

#[test]
fn an_fd_with_more_rights_than_its_disk_is_refused() {
    let disk = Disk::new();
    let mut vm = with_disks("block", "", &[(&disk, true)]);
    let last = vm.fds.len() - 1;
    vm.fds[last] = disk.open(false);
    let worker = Worker::start();
    let failure = vm.start_on(&worker.connect()).unwrap_err();
    assert_eq!(failure.part, worker_api::Part::Disk(0));
    assert!(failure.detail.contains("opened for writing"), "{failure:?}");
}
