//! Directories that are opened once, with the rights of the start: afterwards only names inside of them are used, so that
//! neither a dropped privilege nor a renamed parent changes what is meant.

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// The largest file that is read whole; a journal of many thousand leases is a few megabytes.
const FILE_MAX: usize = 64 << 20;

/// A directory, and the name of the one file in it that matters.
#[derive(Debug)]
pub struct Place {
    directory: OwnedFd,
    name: String,
    shown: String,
}

impl Place {
    /// Opens the directory of `path`.
    ///
    /// # Errors
    /// No file name, or no such directory.
    pub fn open(path: &Path) -> io::Result<Place> {
        let name = path.file_name().and_then(|n| n.to_str());
        let name = name.ok_or_else(|| io::Error::other("no name of a file"))?.to_owned();
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, parent, flags, Mode::empty())?;
        Ok(Place { directory, name, shown: path.display().to_string() })
    }

    /// Opens a file of this name, or of another one beside it.
    ///
    /// # Errors
    /// What `openat(2)` says.
    pub fn open_file(&self, suffix: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let name = format!("{}{suffix}", self.name);
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(rustix::fs::openat(&self.directory, name, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, mode)?)
    }

    /// Lets the file with `suffix` take the place of the one without.
    ///
    /// # Errors
    /// What `renameat(2)` says.
    pub fn replace(&self, suffix: &str) -> io::Result<()> {
        let new = format!("{}{suffix}", self.name);
        Ok(rustix::fs::renameat(&self.directory, new, &self.directory, &self.name)?)
    }

    /// Removes the file that matters.
    ///
    /// # Errors
    /// What `unlinkat(2)` says.
    pub fn remove(&self) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty())?)
    }

    /// Whose directory it is, and with which rights.
    ///
    /// # Errors
    /// What `fstat(2)` says.
    pub fn stat(&self) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(&self.directory)?)
    }

    /// The text of file `name` in this directory, and whose it is.
    ///
    /// # Errors
    /// No regular file, too large, or no text.
    pub fn read(&self, name: &str) -> io::Result<(String, Stat)> {
        // Non-blocking: a FIFO in this place must not stop netd.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("no regular file"));
        }
        let text = String::from_utf8(read_all(&file)?).map_err(|_| io::Error::other("no UTF-8 text"))?;
        Ok((text, stat))
    }

    /// The name of the file that matters.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path as it was given, for people.
    pub fn shown(&self) -> &str {
        &self.shown
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Reads a file to its end.
///
/// # Errors
/// What `read(2)` says, or too large.
pub fn read_all(file: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        match rustix::io::read(file, &mut buffer)? {
            0 => return Ok(bytes),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
        if bytes.len() > FILE_MAX {
            return Err(io::Error::other("too large"));
        }
    }
}
