//! A directory whose changes are heard of (inotify(7)).

use crate::reconcile::Place;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// What is heard of. The supervisor's filter allows this very word and no other (`inotify_add_watch` in
/// policies/seccomp/x86_64/supervisor.json).
///
/// Not `IN_MODIFY`: a file counts when its writer closes it. `IN_CREATE` is for links, which nobody closes; `IN_ATTRIB` for a
/// file that becomes readable.
const CHANGES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// What ends a watch: the directory is no longer what its name means.
const GONE: ReadFlags =
    ReadFlags::DELETE_SELF.union(ReadFlags::MOVE_SELF).union(ReadFlags::UNMOUNT).union(ReadFlags::IGNORED);

/// The fd that tells of a directory's changes. Before the process is confined.
///
/// # Errors
/// Out of inotify instances, or of fds.
pub fn listener() -> Result<OwnedFd, Errno> {
    inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
}

/// A directory.
#[derive(Debug)]
pub struct Directory {
    place: Place,
    /// The kernel's number for the watch, while there is one.
    watch: Option<i32>,
}

impl Directory {
    /// Nothing is watched yet.
    pub fn new(place: Place) -> Directory {
        Directory { place, watch: None }
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its name, for people.
    pub fn name(&self) -> String {
        self.place.source()
    }

    /// Whether its changes are heard of.
    pub fn is_attached(&self) -> bool {
        self.watch.is_some()
    }

    /// Has the kernel tell of its changes, if it does not yet.
    ///
    /// # Errors
    /// It is not there, is no directory, may not be read; out of inotify watches.
    pub fn attach(&mut self, inotify: &AsyncFd<OwnedFd>) -> Result<(), std::io::Error> {
        if self.watch.is_none() {
            self.watch = Some(inotify::add_watch(inotify.get_ref(), self.place.path(), CHANGES)?);
        }
        Ok(())
    }

    /// Waits until something has changed that may concern a file of a VM.
    pub async fn changed(&mut self, inotify: &AsyncFd<OwnedFd>) {
        loop {
            // It fails only where the reactor is gone, and this task with it.
            let Ok(mut guard) = inotify.readable().await else { return std::future::pending().await };
            let concerns = self.hear(inotify.get_ref());
            guard.clear_ready();
            if concerns {
                return;
            }
        }
    }

    /// Reads all that the kernel has to tell; whether some of it concerns a file of a VM.
    fn hear(&mut self, inotify: &OwnedFd) -> bool {
        let mut concerns = false;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            let what = event.events();
            let of_ours = self.watch == Some(event.wd());
            if of_ours && what.intersects(GONE) {
                if what.contains(ReadFlags::MOVE_SELF) {
                    // The watch went along with the directory, whose name is what counts.
                    let _ = inotify::remove_watch(inotify, event.wd());
                }
                self.watch = None;
                concerns = true;
            }
            concerns |= what.contains(ReadFlags::QUEUE_OVERFLOW);
            concerns |= of_ours && event.file_name().is_some_and(|name| is_of_a_vm(name.to_bytes()));
        }
        concerns
    }
}

/// The names that [`crate::reconcile::Sources`] reads.
fn is_of_a_vm(name: &[u8]) -> bool {
    name.ends_with(b".json") && !name.starts_with(b".")
}
