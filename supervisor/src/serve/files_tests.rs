//! What may be a guest's file, and what may not.

use super::*;
use crate::api::types::ErrorCode;
use crate::serve::testing::{Bench, TempDir, spec};
use crate::spec::{Boot, Disk};
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use std::path::Path;

fn kernel(path: &Path) -> Result<GuestFiles, ApiError> {
    let mut spec = spec("a");
    spec.boot = Boot { kernel: Some(path.to_str().unwrap().into()), initrd: None, cmdline: None, builtin: None };
    GuestFiles::open(&spec)
}

fn disks(disks: &[(&Path, bool)]) -> Result<GuestFiles, ApiError> {
    let mut spec = spec("a");
    spec.disks = disks
        .iter()
        .map(|(path, readonly)| Disk {
            path: path.to_str().unwrap().into(),
            readonly: *readonly,
            engine: Default::default(),
            serial: None,
        })
        .collect();
    GuestFiles::open(&spec)
}

#[track_caller]
fn refused(result: Result<GuestFiles, ApiError>, field: &str, says: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.field.as_deref(), Some(field), "{error:?}");
    assert!(error.message.contains(says), "{error:?}");
}

fn file(dir: &TempDir, name: &str, size: u64) -> std::path::PathBuf {
    let path = dir.path().join(name);
    std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    path
}

#[test]
fn a_regular_file_is_a_kernel_also_through_a_link() {
    let dir = TempDir::new();
    let path = file(&dir, "k", 4096);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for path in [&path, &link] {
        let files = kernel(path).unwrap();
        let flags = rustix::io::fcntl_getfd(files.kernel.as_ref().unwrap()).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
}

#[test]
fn a_fifo_is_refused_and_blocks_nobody() {
    let dir = TempDir::new();
    let path = dir.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused(kernel(&path), "boot.kernel", "FIFO");
    refused(disks(&[(&path, false)]), "disks[0].path", "FIFO");
}

#[test]
fn what_is_no_file_is_no_kernel() {
    let dir = TempDir::new();
    refused(kernel(dir.path()), "boot.kernel", "is a directory");
    refused(kernel(&dir.path().join("missing")), "boot.kernel", "no such file");
    refused(kernel(&file(&dir, "f", 5).join("x")), "boot.kernel", "no such file");
    refused(kernel(&file(&dir, "empty", 0)), "boot.kernel", "is empty");
    refused(kernel(Path::new("/dev/null")), "boot.kernel", "character device");
    refused(kernel(Path::new("/proc/self/mem")), "boot.kernel", "kernel's own");
    refused(kernel(Path::new("/proc/self/status")), "boot.kernel", "kernel's own");
    refused(kernel(Path::new("/sys/kernel/mm/transparent_hugepage/enabled")), "boot.kernel", "kernel's own");
    let socket = dir.path().join("s");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    refused(kernel(&socket), "boot.kernel", "socket");
}

#[test]
fn a_kernel_larger_than_the_memory_is_refused() {
    let dir = TempDir::new();
    refused(kernel(&file(&dir, "huge", 33 << 20)), "boot.kernel", "33 MiB");
    refused(kernel(&file(&dir, "giant", 1 << 40)), "boot.kernel", "MiB");
}

#[test]
fn what_is_no_file_is_no_disk() {
    let dir = TempDir::new();
    let good = file(&dir, "good", 1 << 20);
    refused(disks(&[(&good, false), (dir.path(), false)]), "disks[1].path", "is a directory");
    refused(disks(&[(dir.path(), true)]), "disks[0].path", "is a directory");
    refused(disks(&[(Path::new("/dev/null"), false)]), "disks[0].path", "character device");
    refused(disks(&[(Path::new("/proc/self/mem"), false)]), "disks[0].path", "kernel's own");
    refused(disks(&[(&file(&dir, "tiny", 511), false)]), "disks[0].path", "sector");
}

#[test]
fn a_readonly_disk_is_open_for_reading_only_and_nothing_is_truncated() {
    let dir = TempDir::new();
    let path = file(&dir, "d", 4096);
    std::fs::write(&path, [7u8; 4096]).unwrap();
    let files = disks(&[(&path, true)]).unwrap();
    assert_eq!(files.largest_writable, 0);
    assert_eq!(rustix::io::write(&files.disks[0], b"x"), Err(Errno::BADF));
    drop(files);
    assert_eq!(disks(&[(&path, false)]).unwrap().largest_writable, 4096);
    assert_eq!(std::fs::read(&path).unwrap(), [7u8; 4096]);
}

#[test]
fn two_writers_never_share_one_image() {
    let dir = TempDir::new();
    let path = file(&dir, "d", 4096);
    let writer = disks(&[(&path, false)]).unwrap();
    refused(disks(&[(&path, false)]), "disks[0].path", "in use");
    refused(disks(&[(&path, true)]), "disks[0].path", "being written");
    // A copy of the fd (the worker's) keeps the lock.
    let copy = writer.disks[0].try_clone().unwrap();
    drop(writer);
    assert_eq!(disks(&[(&path, false)]).unwrap_err().code, ErrorCode::Conflict);
    drop(copy);
    let readers = (disks(&[(&path, true)]).unwrap(), disks(&[(&path, true)]).unwrap());
    refused(disks(&[(&path, false)]), "disks[0].path", "in use");
    drop(readers);
    refused(disks(&[(&path, false), (&path, false)]), "disks[1].path", "in use");
}

/// A spec with a kernel and a disk, and both of them in `dir`.
fn both(dir: &TempDir) -> VmSpec {
    let mut spec = spec("a");
    let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    (spec.boot.builtin, spec.boot.kernel) = (None, Some(text(file(dir, "kernel", 4096))));
    let path = text(file(dir, "disk", 4096));
    spec.disks = vec![Disk { path, readonly: false, engine: Default::default(), serial: None }];
    spec
}

fn opened(path: &str, flags: OFlags) -> OwnedFd {
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap()
}

/// What becomes of these fds as kernel and disk of a VM that uses them as they are.
async fn handed(spec: &VmSpec, kernel: OwnedFd, disk: OwnedFd) -> Result<GuestFiles, ApiError> {
    let bench = Bench::new();
    let received = bench.handed(77, vec![("boot.kernel", kernel), ("disks[0].path", disk)]).await;
    GuestFiles::received(spec, received)
}

#[tokio::test]
async fn what_was_opened_for_less_than_its_use_or_oddly_is_refused() {
    let dir = TempDir::new();
    let spec = both(&dir);
    let (kernel, disk) = (spec.boot.kernel.clone().unwrap(), spec.disks[0].path.clone());
    let (read, write, both) = (OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR);
    let files = handed(&spec, opened(&kernel, read), opened(&disk, both)).await.unwrap();
    assert_eq!(files.largest_writable, 4096);
    refused(handed(&spec, opened(&kernel, read), opened(&disk, both)).await, "disks[0].path", "in use");
    drop(files);
    // They are closed on a thread.
    let free = || rustix::fs::fcntl_lock(opened(&disk, both), FlockOperation::NonBlockingLockExclusive).is_ok();
    while !free() {
        tokio::task::yield_now().await;
    }
    let good = handed(&spec, opened(&kernel, both), opened(&disk, both | OFlags::NONBLOCK)).await;
    drop(good.unwrap());
    for (flags, says) in [
        (read, "not opened for reading and writing"),
        (write, "not opened for reading and writing"),
        (OFlags::PATH, "opened in a way"),
        (both | OFlags::APPEND, "opened in a way"),
        (both | OFlags::DIRECT, "opened in a way"),
    ] {
        refused(handed(&spec, opened(&kernel, read), opened(&disk, flags)).await, "disks[0].path", says);
    }
    for (flags, says) in [(write, "not opened for reading"), (OFlags::PATH, "opened in a way")] {
        refused(handed(&spec, opened(&kernel, flags), opened(&disk, both)).await, "boot.kernel", says);
    }
}

#[tokio::test]
async fn what_is_no_file_is_refused_however_it_came() {
    let dir = TempDir::new();
    let spec = both(&dir);
    let kernel = || opened(spec.boot.kernel.as_ref().unwrap(), OFlags::RDONLY);
    let deleted = file(&dir, "deleted", 4096);
    let gone = opened(deleted.to_str().unwrap(), OFlags::RDWR);
    std::fs::remove_file(deleted).unwrap();
    let cases: Vec<(OwnedFd, &str)> = vec![
        (std::io::pipe().unwrap().0.into(), "FIFO"),
        (std::os::unix::net::UnixStream::pair().unwrap().0.into(), "has no name"),
        (opened("/dev/null", OFlags::RDWR), "character device"),
        (opened("/proc/self/mem", OFlags::RDWR), "kernel's own"),
        (opened(dir.path().to_str().unwrap(), OFlags::RDONLY), "directory"),
        (crate::serve::memfd::sealed("x", 4096).unwrap(), "has no name"),
        (gone, "has no name"),
    ];
    for (fd, says) in cases {
        let error = handed(&spec, kernel(), fd).await.unwrap_err();
        assert_eq!(error.field.as_deref(), Some("disks[0].path"));
        assert!(error.message.contains(says) || says != "kernel's own", "{says}: {error:?}");
    }
    // Those of another VM, one too few, one too many.
    let bench = Bench::new();
    let received = bench.handed(77, vec![("boot.kernel", kernel())]).await;
    refused(GuestFiles::received(&spec, received), "disks[0].path", "not handed over");
    let disk = opened(&spec.disks[0].path, OFlags::RDWR);
    let all = vec![("boot.kernel", kernel()), ("disks[0].path", disk), ("boot.initrd", kernel())];
    let received = bench.handed(77, all).await;
    refused(GuestFiles::received(&spec, received), "boot.initrd", "this VM has not");
}

#[test]
fn a_message_repeats_no_control_characters() {
    let message = kernel(Path::new("/tmp/\x1b[2Jx")).unwrap_err().message;
    assert!(!message.contains('\x1b'), "{message:?}");
}

#[test]
fn only_files_of_this_host_are_closed_where_others_wait() {
    let memfd = crate::serve::memfd::constant("test", b"x").unwrap();
    assert!(is_local(&memfd));
    // As any file system that is not known to close by itself.
    assert!(!is_local(&std::fs::File::open("/proc/self/stat").unwrap().into()));
}
