//! A VM's files, open: from their paths, from what its owner handed over, or from the supervisor's own storage.
//!
//! Runs in the supervisor, on threads for blocking work. Which files there are, and what may be one, is
//! [`crate::guestfile`]'s.

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
        GuestFiles::collect(spec, |file| file.open(Purpose::Use))
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
        GuestFiles::collect(spec, |file| images.open(file))
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
        if let Some(back) = self.back.take() {
            back.close(self.kernel.take().into_iter().chain(self.initrd.take()).chain(self.disks.drain(..)));
        }
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
