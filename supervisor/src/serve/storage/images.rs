//! The files of one VM in the storage, by the paths that its spec names.

use super::DIRECTORY;
use super::copy::{CopyError, Progress, copy};
use crate::api::types::ApiError;
use crate::guestfile::{self, GuestFile, Opened, Part};
use crate::serve::state;
use crate::spec::VmSpec;
use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;
use std::fmt::Write;
use std::io;
use std::os::fd::OwnedFd;

/// What a file is called after its own name while it is being copied.
const PART: &str = ".part";

/// The directory of one VM's files.
#[derive(Debug)]
pub struct Images(OwnedFd);

/// The name of a file: what it is to the guest, and which path it came from.
pub fn name(file: &GuestFile) -> String {
    use sha2::Digest;
    let part = match file.part {
        Part::Kernel => "kernel-",
        Part::Initrd => "initrd-",
        Part::Disk { .. } => "disk-",
    };
    let hash = sha2::Sha256::digest(file.path.as_bytes());
    hash.iter().take(16).fold(part.to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The names of all files of a spec.
pub fn names(spec: &VmSpec) -> Vec<String> {
    guestfile::of(spec).iter().map(name).collect()
}

/// The VMs that have a directory. Anything else that is there is not ours.
pub fn numbers(images: &OwnedFd) -> Vec<u64> {
    let number = |name: &str| u64::from_str_radix(name, 16).ok().filter(|number| state::id(*number) == name);
    entries(images).unwrap_or_default().iter().filter_map(|name| number(name)).collect()
}

fn entries(dir: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        match entry?.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    }
    Ok(names)
}

impl Images {
    /// Those of VM `number`; none where it has none.
    ///
    /// # Errors
    /// The file system's.
    pub fn find(images: &OwnedFd, number: u64) -> io::Result<Option<Images>> {
        match rustix::fs::openat(images, state::id(number), DIRECTORY, Mode::empty()) {
            Ok(dir) => Ok(Some(Images(dir))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The same, made where it is not there.
    ///
    /// # Errors
    /// The file system's.
    pub fn make(images: &OwnedFd, number: u64) -> io::Result<Images> {
        match rustix::fs::mkdirat(images, state::id(number), Mode::RWXU) {
            Ok(()) => rustix::fs::fsync(images)?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Images(rustix::fs::openat(images, state::id(number), DIRECTORY, Mode::empty())?))
    }

    /// Opens what was imported.
    ///
    /// # Errors
    /// It is not there, or cannot be used.
    pub fn open(&self, file: &GuestFile) -> Result<Opened, ApiError> {
        let mode = if file.is_written() { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = mode | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::openat(&self.0, name(file), flags, Mode::empty()) {
            Ok(fd) => file.stored(fd),
            Err(Errno::NOENT) => Err(file.refuse("was not imported; start the VM anew from its file")),
            Err(error) => Err(file.refuse(&format!("was imported, and cannot be opened now: {error}"))),
        }
    }

    /// It was imported.
    pub fn has(&self, file: &GuestFile) -> bool {
        self.size(&name(file)).is_some()
    }

    /// Size of a regular file.
    fn size(&self, name: &str) -> Option<u64> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let stat = rustix::fs::fstat(rustix::fs::openat(&self.0, name, flags, Mode::empty()).ok()?).ok()?;
        let regular = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile;
        regular.then(|| u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Bytes of all of it, holes included.
    pub fn bytes(&self) -> u64 {
        let sizes = entries(&self.0).unwrap_or_default();
        sizes.iter().filter_map(|name| self.size(name)).fold(0, u64::saturating_add)
    }

    /// Copies a file beside, syncs it and renames it into its place. Where that fails nothing of it is left.
    ///
    /// # Errors
    /// See [`CopyError`].
    pub fn import(&self, file: &GuestFile, source: &Opened, progress: &Progress) -> Result<(), CopyError> {
        let name = name(file);
        let beside = format!("{name}{PART}");
        let copied = self.copied(&beside, source, progress).and_then(|()| {
            rustix::fs::renameat(&self.0, &beside, &self.0, &name).map_err(CopyError::Write)?;
            rustix::fs::fsync(&self.0).map_err(CopyError::Write)
        });
        if copied.is_err() {
            self.unlink(&beside);
        }
        copied
    }

    fn copied(&self, beside: &str, source: &Opened, progress: &Progress) -> Result<(), CopyError> {
        // Of an import that its supervisor did not live to finish.
        self.unlink(beside);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = rustix::fs::openat(&self.0, beside, flags, Mode::RUSR | Mode::WUSR).map_err(CopyError::Write)?;
        copy(&source.fd, &to, source.size, progress)?;
        rustix::fs::fsync(&to).map_err(CopyError::Write)
    }

    /// Takes back what was imported.
    pub fn forget(&self, file: &GuestFile) {
        self.unlink(&name(file));
    }

    /// Where it does not work, there is a file that nobody names; it goes with the next cleaning.
    fn unlink(&self, name: &str) {
        let _ = rustix::fs::unlinkat(&self.0, name, AtFlags::empty());
    }

    /// Removes those files of VM `number` that are `unwanted`, and its directory where it is empty then.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(images: &OwnedFd, number: u64, unwanted: impl Fn(&str) -> bool) -> io::Result<()> {
        let Some(own) = Images::find(images, number)? else { return Ok(()) };
        for name in entries(&own.0)?.iter().filter(|name| unwanted(name)) {
            rustix::fs::unlinkat(&own.0, name, AtFlags::empty())?;
        }
        match rustix::fs::unlinkat(images, state::id(number), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
