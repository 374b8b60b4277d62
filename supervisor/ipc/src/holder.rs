//! Who keeps a lock that somebody waits for. Here because jailer and supervisor both have to say it, and share nothing else.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

/// The process that holds a flock(2) on this file or directory, as `/proc/locks` tells it; `None` where nobody does, or where
/// it cannot be seen from here.
pub fn flock_holder(file: &impl AsFd) -> Option<i32> {
    let meta = File::from(file.as_fd().try_clone_to_owned().ok()?).metadata().ok()?;
    holder_in(&std::fs::read_to_string("/proc/locks").ok()?, meta.dev(), meta.ino())
}

/// A line is `1: FLOCK  ADVISORY  WRITE 1234 00:2e:56 0 EOF`, with the device in hexadecimal and then the inode; one who waits
/// has `->` before the kind.
fn holder_in(locks: &str, dev: u64, ino: u64) -> Option<i32> {
    let (major, minor) = ((dev >> 32 & 0xffff_f000) | (dev >> 8 & 0xfff), (dev >> 12 & 0xffff_ff00) | (dev & 0xff));
    let file = format!("{major:02x}:{minor:02x}:{ino}");
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields[..] {
            [_, "FLOCK", _, _, pid, of, ..] if of == file => pid.parse().ok().filter(|pid| *pid > 0),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_named_and_nobody_else() {
        let locks = "1: POSIX  ADVISORY  READ 7 fd:01:56 128 128\n\
                     2: -> FLOCK  ADVISORY  WRITE 8 fd:01:56 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 9 fd:02:56 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 10 fd:01:56 0 EOF\n\
                     5: FLOCK  ADVISORY  WRITE -1 fd:03:56 0 EOF\n";
        assert_eq!(holder_in(locks, 0xfd01, 56), Some(10));
        assert_eq!(holder_in(locks, 0xfd02, 56), Some(9));
        assert_eq!(holder_in(locks, 0xfd03, 56), None, "in another pid namespace");
        assert_eq!(holder_in(locks, 0xfd01, 57), None);
    }

    #[test]
    fn this_process_is_seen_to_hold_its_lock() {
        let path = std::env::temp_dir().join(format!("vmsup-lock-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        assert_eq!(flock_holder(&file), None);
        file.lock().unwrap();
        assert_eq!(flock_holder(&file), Some(std::process::id() as i32));
        std::fs::remove_file(&path).unwrap();
    }
}
