//! Copies of files with holes, of files that change, and into places without room.

use super::*;
use crate::serve::testing::TempDir;
use rustix::fs::{Mode, OFlags};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file of that size with data at these places.
fn source(dir: &TempDir, size: u64, data: &[(u64, &[u8])]) -> PathBuf {
    let path = dir.path().join("source");
    let file = File::create(&path).unwrap();
    file.set_len(size).unwrap();
    data.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
    path
}

fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

fn empty(path: &Path) -> OwnedFd {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).unwrap()
}

/// Without help of the kernel, as from a block device or another file system.
fn by_hand(from: &OwnedFd, to: &OwnedFd, size: u64) -> Result<(), CopyError> {
    ftruncate(to, size).map_err(CopyError::Write)?;
    Copying { from, to, size, begun: 0, progress: &Progress::default(), by_kernel: false }.all()
}

#[test]
fn a_sparse_tebibyte_is_copied_with_its_holes() {
    let (dir, size) = (TempDir::new(), 1 << 40);
    let data: [(u64, &[u8]); 3] = [(0, b"first"), (5 << 30, &[7; 100_000]), (size - 4, b"last")];
    let from = source(&dir, size, &data);
    let copies = [dir.path().join("kernel"), dir.path().join("hand")];
    let progress = Progress::default();
    copy(&open(&from), &empty(&copies[0]), size, &progress).unwrap();
    assert_eq!(progress.done.load(Ordering::Relaxed), size);
    by_hand(&open(&from), &empty(&copies[1]), size).unwrap();
    for path in copies {
        let file = File::open(path).unwrap();
        let stat = file.metadata().unwrap();
        assert_eq!(stat.len(), size);
        assert!(stat.blocks() * 512 < 10 << 20, "{} blocks", stat.blocks());
        for (at, bytes) in data {
            let mut found = vec![0; bytes.len()];
            file.read_exact_at(&mut found, at).unwrap();
            assert_eq!(found, bytes, "at {at}");
        }
    }
}

#[test]
fn zeroes_of_a_source_without_holes_become_holes() {
    let dir = TempDir::new();
    let mut bytes = vec![0u8; 3 << 20];
    bytes[1 << 20] = 1;
    let from = source(&dir, 0, &[(0, &bytes)]);
    let to = dir.path().join("copy");
    by_hand(&open(&from), &empty(&to), bytes.len() as u64).unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), bytes);
    assert!(std::fs::metadata(&to).unwrap().blocks() * 512 <= 2 * BLOCK as u64);
}

#[test]
fn files_of_any_size_come_out_as_they_went_in() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..40 {
        let (dir, size) = (TempDir::new(), 1 + random() % (3 << 20));
        let pieces: Vec<(u64, Vec<u8>)> = (0..random() % 6)
            .map(|_| {
                let at = random() % size;
                let length = (random() % 200_000).min(size - at);
                (at, (0..length).map(|n| (n * 31 % 251) as u8).collect())
            })
            .collect();
        let data: Vec<(u64, &[u8])> = pieces.iter().map(|(at, bytes)| (*at, &bytes[..])).collect();
        let from = source(&dir, size, &data);
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        copy(&open(&from), &empty(&one), size, &Progress::default()).unwrap();
        by_hand(&open(&from), &empty(&two), size).unwrap();
        let wanted = std::fs::read(&from).unwrap();
        assert!(std::fs::read(&one).unwrap() == wanted && std::fs::read(&two).unwrap() == wanted, "{size} {data:?}");
    }
}

#[test]
fn a_source_that_became_shorter_or_longer_is_refused() {
    let dir = TempDir::new();
    let from = source(&dir, 0, &[(0, &[1; 10_000])]);
    for size in [1u64, 9_999, 10_001, 1 << 30] {
        let to = empty(&dir.path().join(size.to_string()));
        assert_eq!(copy(&open(&from), &to, size, &Progress::default()), Err(CopyError::Changed), "{size}");
    }
    // While it is read.
    let to = empty(&dir.path().join("to"));
    let progress = Progress::default();
    let mut copying =
        Copying { from: &open(&from), to: &to, size: 20_000, begun: 0, progress: &progress, by_kernel: true };
    let mut buffer = Vec::new();
    assert_eq!(copying.piece(0, 20_000, &mut buffer), Ok(10_000));
    assert_eq!(copying.piece(10_000, 10_000, &mut buffer), Err(CopyError::Changed));
}

#[test]
fn a_source_that_is_written_to_meanwhile_is_refused() {
    let dir = TempDir::new();
    let from = source(&dir, 0, &[(0, &vec![1; 48 << 20])]);
    let writes = OpenOptions::new().write(true).open(&from).unwrap();
    let (over, begun) = (AtomicBool::new(false), AtomicBool::new(false));
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                writes.write_all_at(b"x", 7).unwrap();
                begun.store(true, Ordering::Relaxed);
            }
        });
        while !begun.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let result = copy(&open(&from), &empty(&dir.path().join("copy")), 48 << 20, &Progress::default());
        over.store(true, Ordering::Relaxed);
        result
    });
    assert_eq!(result, Err(CopyError::Changed));
}

#[test]
fn a_copy_that_nobody_wants_ends() {
    let dir = TempDir::new();
    let from = source(&dir, 0, &[(0, &[1; 100_000])]);
    let progress = Progress { cancelled: true.into(), ..Progress::default() };
    let to = empty(&dir.path().join("copy"));
    assert_eq!(copy(&open(&from), &to, 100_000, &progress), Err(CopyError::Cancelled));
}

#[test]
fn a_size_that_no_file_can_have_is_refused_with_a_sentence() {
    let dir = TempDir::new();
    let from = source(&dir, 10, &[]);
    let error = by_hand(&open(&from), &empty(&dir.path().join("copy")), u64::MAX >> 1).unwrap_err();
    assert_eq!(error, CopyError::Write(Errno::FBIG));
    assert!(error.to_string().contains("larger than a file"), "{error}");
}

/// A file system of one MiB, until it is dropped.
struct Small<'a>(&'a Path);

impl Drop for Small<'_> {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg(self.0).status().unwrap().success());
    }
}

#[test]
fn a_storage_that_is_full_says_so_and_keeps_nothing() {
    let (dir, mount) = (TempDir::new(), TempDir::new());
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(mount.path()).output();
    if !mounted.is_ok_and(|done| done.status.success()) {
        println!("skipped: a_storage_that_is_full_says_so_and_keeps_nothing: no file system can be mounted here");
        return;
    }
    let small = Small(mount.path());
    let from = source(&dir, 0, &[(0, &vec![1; 4 << 20])]);
    let error = copy(&open(&from), &empty(&mount.path().join("copy")), 4 << 20, &Progress::default()).unwrap_err();
    assert_eq!(error, CopyError::Write(Errno::NOSPC));
    assert!(error.to_string().contains("full"), "{error}");
    std::fs::remove_file(mount.path().join("copy")).unwrap();
    drop(small);
}
