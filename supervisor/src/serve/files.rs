//! A VM's files, open: from their paths, from what its owner handed over, or from the supervisor's own storage.
//!
//! Runs in the supervisor, on threads for blocking work. Which files there are, and what may be one, is
//! [`crate::guestfile`]'s.

use super::closing;
use super::side::{Back, Received};
use super::storage::Images;
use crate::api::types::ApiError;
use crate::guestfile::{self, GuestFile, Opened, Part, Purpose};
use crate::spec::VmSpec;
use std::os::fd::OwnedFd;

/// A guest's files, open.
#[derive(Debug, Default)]
pub struct GuestFiles {
    /// `None` for a built-in guest.
    pub kernel: Option<OwnedFd>,
    /// The initrd.
    pub initrd: Option<OwnedFd>,
    /// The disks, in order; locked.
    pub disks: Vec<OwnedFd>,
    /// Bytes of the largest disk that the guest may write; 0 where there is none.
    pub largest_writable: u64,
    /// Who closes them, where somebody else opened them: that may take as long as they like.
    back: Option<Back>,
    /// Some of them are not on a local file system, so that closing them may take as long as another one likes.
    remote: bool,
}

impl GuestFiles {
    /// True where the spec names a file at all.
    pub fn any(spec: &VmSpec) -> bool {
        spec.boot.kernel.is_some() || spec.boot.initrd.is_some() || !spec.disks.is_empty()
    }

    /// Opens the paths that `spec` names: those of a VM of this supervisor's own user. May block as long as the file
    /// systems do.
    ///
    /// # Errors
    /// The first file that cannot be used, with its field.
    pub fn open(spec: &VmSpec) -> Result<GuestFiles, ApiError> {
        GuestFiles::collect(spec, |file| file.open(Purpose::Use)).map(GuestFiles::seen)
    }

    /// Takes what was handed over for `spec`. Each fd is an allegation. Runs on a thread of the one who handed it over.
    ///
    /// # Errors
    /// The first file that cannot be used, or that did not come, with its field.
    pub fn received(spec: &VmSpec, mut received: Received) -> Result<GuestFiles, ApiError> {
        received.matches(spec)?;
        let mut files = GuestFiles::collect(spec, |file| file.accept(received.take(file)?, Purpose::Use))?;
        files.back = Some(received.back());
        Ok(files)
    }

    /// Opens what was imported for a VM.
    ///
    /// # Errors
    /// The first file that is not there or cannot be used, with its field.
    pub fn stored(spec: &VmSpec, images: &Images) -> Result<GuestFiles, ApiError> {
        GuestFiles::collect(spec, |file| images.open(file)).map(GuestFiles::seen)
    }

    /// Looks where they are. Here, on a thread for that: the file system is asked.
    fn seen(mut self) -> GuestFiles {
        self.remote = !self.kernel.iter().chain(&self.initrd).chain(&self.disks).all(is_local);
        self
    }

    fn collect(
        spec: &VmSpec,
        mut open: impl FnMut(&GuestFile) -> Result<Opened, ApiError>,
    ) -> Result<GuestFiles, ApiError> {
        let mut files = GuestFiles::default();
        for file in guestfile::of(spec) {
            let Opened { fd, size } = open(&file)?;
            match file.part {
                Part::Kernel => files.kernel = Some(fd),
                Part::Initrd => files.initrd = Some(fd),
                Part::Disk { .. } => files.disks.push(fd),
            }
            if file.is_written() {
                files.largest_writable = files.largest_writable.max(size);
            }
        }
        Ok(files)
    }
}

impl Drop for GuestFiles {
    fn drop(&mut self) {
        let fds = self.kernel.take().into_iter().chain(self.initrd.take()).chain(self.disks.drain(..));
        match self.back.take() {
            Some(back) => back.close(fds),
            None if self.remote => closing::later(fds),
            // At once: who starts the VM again finds its disks free.
            None => drop(fds),
        }
    }
}

/// File systems of this host alone, whose close(2) waits for nobody else. From linux/magic.h and their own headers.
const LOCAL: [u32; 10] = [
    0x0000_ef53, // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0xf2f5_2010, // f2fs
    0x2fc1_2fc1, // zfs
    0xca45_1a4e, // bcachefs
    0x0102_1994, // tmpfs, devtmpfs
    0x8584_58f6, // ramfs
    0x7371_7368, // squashfs
    0x794c_7630, // overlayfs: as what lies under it, which root has put there
];

fn is_local(fd: &OwnedFd) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|fs| LOCAL.contains(&(fs.f_type as u32)))
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
