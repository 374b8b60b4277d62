//! A guest's files one by one: what a spec names, how each is opened, what it may be. The only place that decides this.
//!
//! Runs with the rights of the user whose files they are: in a supervisor of that user alone, which opens the paths of its
//! VMs, and in the CLI, which opens them for a supervisor that several users share and hands the fds over ([`crate::side`]).
//! What is handed over there is looked at once more by who gets it: each fd is an allegation ([`GuestFile::accept`]).
//!
//! A path is opened once; what was opened is then looked at, and the fd is what the worker gets. Nothing is created or
//! truncated. All of it may block as long as the file systems do.

use crate::api::types::{ApiError, ErrorCode};
use crate::spec::VmSpec;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{CWD, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// The largest kernel image, bytes.
const KERNEL_MAX: u64 = 1 << 30;
/// The size of a sector: the smallest disk.
const SECTOR: u64 = 512;
/// The file system that a program of its user serves. From linux/magic.h.
const FUSE: u32 = 0x6573_5546;

/// File systems of the kernel whose files are no files: reading or writing them does things. From linux/magic.h.
const UNREAL: [u32; 19] = [
    0x0000_9fa0, // proc
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0xcafe_4a11, // bpf
    0xde5e_81e4, // efivarfs
    0x6165_676c, // pstore
    0x6265_6570, // configfs
    0x4249_4e4d, // binfmt_misc
    0x6573_5543, // fusectl
    0x1980_0202, // mqueue
    0x6e73_6673, // nsfs
    0x0000_1cd1, // devpts
    0x5049_4446, // pidfs
];

/// What a file is to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Its kernel.
    Kernel,
    /// Its initrd.
    Initrd,
    /// One of its disks.
    Disk {
        /// The guest only reads it.
        readonly: bool,
    },
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The VM uses it as it is.
    Use,
    /// It is copied, and the VM uses the copy: it is only read.
    Copy,
}

/// A file that a spec names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFile {
    /// The field that names it: `boot.kernel`, `disks[0].path`.
    pub field: String,
    /// Its path.
    pub path: String,
    /// What it is to the guest.
    pub part: Part,
    /// The most bytes that it may have.
    most: u64,
}

/// A file that can be used.
#[derive(Debug)]
pub struct Opened {
    /// It. A disk is locked for as long as any copy of this fd is open.
    pub fd: OwnedFd,
    /// Its size, bytes.
    pub size: u64,
}

/// The files that `spec` names: kernel, initrd, the disks in order.
pub fn of(spec: &VmSpec) -> Vec<GuestFile> {
    let ram = spec.memory_mib << 20;
    let file = |field: String, path: &str, part, most| GuestFile { field, path: path.to_owned(), part, most };
    let kernel = spec.boot.kernel.as_deref();
    let kernel = kernel.map(|path| file("boot.kernel".into(), path, Part::Kernel, ram.min(KERNEL_MAX)));
    let initrd = spec.boot.initrd.as_deref().map(|path| file("boot.initrd".into(), path, Part::Initrd, ram));
    let disk = |(n, disk): (usize, &crate::spec::Disk)| {
        file(format!("disks[{n}].path"), &disk.path, Part::Disk { readonly: disk.readonly }, u64::MAX)
    };
    kernel.into_iter().chain(initrd).chain(spec.disks.iter().enumerate().map(disk)).collect()
}

impl GuestFile {
    /// True where the VM writes to it, or to the copy of it.
    pub fn is_written(&self) -> bool {
        self.part == Part::Disk { readonly: false }
    }

    /// Opens its path in two steps. The first (O_PATH) only finds the inode: opening a device for real does things (a
    /// watchdog starts, a tape rewinds), and a FIFO would block. What it is gets decided on that inode, and the same inode
    /// is then opened for real, so that nothing can be put in its place in between.
    ///
    /// # Errors
    /// Why it cannot be used, with its field.
    pub fn open(&self, purpose: Purpose) -> Result<Opened, ApiError> {
        let found = rustix::fs::openat(CWD, &self.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| self.cannot_open(e))?;
        let (kind, size) = self.look(&found)?;
        let flags = self.mode(purpose) | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = rustix::fs::openat(CWD, format!("/proc/self/fd/{}", found.as_raw_fd()), flags, Mode::empty())
            .map_err(|e| self.cannot_open(e))?;
        self.usable(fd, kind, size, purpose)
    }

    /// Takes an fd that somebody else opened. What they say of it is worth nothing: it is looked at as if it had just been
    /// found, and how it was opened is checked, too.
    ///
    /// # Errors
    /// Why it cannot be used, with its field.
    pub fn accept(&self, fd: OwnedFd, purpose: Purpose) -> Result<Opened, ApiError> {
        // First, since everything else could wait for whoever serves its files.
        if self.file_system(&fd)? == FUSE {
            return Err(self.refuse("is on a file system that a program of a user serves (FUSE); copy it elsewhere"));
        }
        let (kind, size) = self.look(&fd)?;
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(|e| self.refuse(&format!("cannot be looked at: {e}")))?;
        let mode = flags & OFlags::RWMODE;
        let odd = OFlags::PATH | OFlags::APPEND | OFlags::DIRECT | OFlags::from_bits_retain(libc::O_ASYNC as u32);
        if flags.intersects(odd) {
            return Err(
                self.refuse("was opened in a way that no guest could use (O_PATH, O_APPEND, O_DIRECT, O_ASYNC)")
            );
        }
        if mode != OFlags::RDWR && mode != self.mode(purpose) {
            let way = if self.mode(purpose) == OFlags::RDWR { "reading and writing" } else { "reading" };
            return Err(self.refuse(&format!("was not opened for {way}")));
        }
        self.usable(fd, kind, size, purpose)
    }

    /// Takes an fd of the supervisor's own copy.
    ///
    /// # Errors
    /// Why it cannot be used, with its field.
    pub fn stored(&self, fd: OwnedFd) -> Result<Opened, ApiError> {
        let (kind, size) = self.look(&fd)?;
        self.usable(fd, kind, size, Purpose::Use)
    }

    fn mode(&self, purpose: Purpose) -> OFlags {
        if self.is_written() && purpose == Purpose::Use { OFlags::RDWR } else { OFlags::RDONLY }
    }

    /// What file is behind `fd`, where a guest may have such a one: its type and its size, which is 0 for a block device.
    fn look(&self, fd: &OwnedFd) -> Result<(FileType, u64), ApiError> {
        let stat = rustix::fs::fstat(fd).map_err(|e| self.refuse(&format!("cannot be looked at: {e}")))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if UNREAL.contains(&self.file_system(fd)?) {
            return Err(self.refuse("is on a file system of the kernel's own (such as /proc); name a real file"));
        }
        // A memfd or a deleted file, reached through /proc/PID/fd: one of ours, perhaps.
        if stat.st_nlink == 0 {
            return Err(self.refuse("has no name of its own (a deleted file, or one in memory); name a real file"));
        }
        let disk = matches!(self.part, Part::Disk { .. });
        match kind {
            FileType::RegularFile => {}
            FileType::BlockDevice if disk => {}
            _ => {
                let what = if disk { "a raw image or a block device" } else { "a regular file" };
                return Err(self.refuse(&format!("is {}; name {what}", name(kind))));
            }
        }
        Ok((kind, u64::try_from(stat.st_size).unwrap_or(0)))
    }

    fn file_system(&self, fd: &OwnedFd) -> Result<u32, ApiError> {
        let stat = rustix::fs::fstatfs(fd).map_err(|e| self.refuse(&format!("cannot be looked at: {e}")))?;
        Ok(stat.f_type as u32)
    }

    /// Judges the size of what was opened for real, and locks it where it is a disk.
    fn usable(&self, fd: OwnedFd, kind: FileType, mut size: u64, purpose: Purpose) -> Result<Opened, ApiError> {
        if kind == FileType::BlockDevice {
            size = rustix::fs::seek(&fd, SeekFrom::End(0)).map_err(|e| self.refuse(&format!("has no size: {e}")))?;
        }
        match self.part {
            Part::Disk { .. } if size < SECTOR => {
                let what = "is smaller than one sector of 512 bytes; make it larger (truncate -s 1G FILE)";
                return Err(self.refuse(what));
            }
            Part::Disk { .. } => self.lock(&fd, !self.is_written() || purpose == Purpose::Copy)?,
            _ if size == 0 => return Err(self.refuse("is empty; name a file that can be booted")),
            _ if size > self.most => {
                let (size, most) = (size.div_ceil(1 << 20), self.most >> 20);
                let what = format!("has {size} MiB, where at most {most} MiB fit; give the VM more memory_mib");
                return Err(self.refuse(&what));
            }
            _ => {}
        }
        Ok(Opened { fd, size })
    }

    /// Locks a disk for as long as any copy of the fd is open, the worker's included: shared where it is only read,
    /// else exclusive. Open file description locks are what QEMU and Cloud Hypervisor take, too; `flock(2)` would meet
    /// udev's, which takes it on block devices for a moment now and then.
    fn lock(&self, fd: &OwnedFd, shared: bool) -> Result<(), ApiError> {
        let kind = if shared { libc::F_RDLCK } else { libc::F_WRLCK };
        let whole =
            libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
        match fcntl(fd, FcntlArg::F_OFD_SETLK(&whole)) {
            Ok(_) => Ok(()),
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => {
                let advice = if shared {
                    "is being written by another VM or program; wait for it or use a copy"
                } else {
                    "is in use by another VM or program; wait for it, use a copy, or set \"readonly\": true everywhere"
                };
                Err(ApiError { code: ErrorCode::Conflict, ..self.refuse(advice) })
            }
            // A file system without locks (some network ones): nothing can be held, nothing is refused.
            Err(nix::Error::ENOLCK | nix::Error::EOPNOTSUPP | nix::Error::ENOSYS) => {
                tracing::warn!(field = self.field, "{} is on a file system without locks", shown(&self.path));
                Ok(())
            }
            Err(e) => Err(self.refuse(&format!("cannot be locked: {}", e.desc()))),
        }
    }

    fn cannot_open(&self, error: Errno) -> ApiError {
        let what = match error {
            Errno::NOENT => "no such file; check the path".into(),
            Errno::NOTDIR => "no such file (a part of the path is no directory); check the path".into(),
            Errno::ACCESS | Errno::PERM => {
                "permission denied; give this user access to the file and its directories".into()
            }
            Errno::ISDIR => "is a directory; name a raw image or a block device".into(),
            Errno::ROFS => "is on a read-only file system; set \"readonly\": true".into(),
            Errno::LOOP => "too many symbolic links; check the path".into(),
            Errno::NXIO | Errno::NODEV => {
                "is no file that can be opened (a FIFO, a socket, or a device without its hardware)".into()
            }
            Errno::TXTBSY => "is a program that runs; use a copy".into(),
            Errno::MFILE | Errno::NFILE => {
                return ApiError {
                    code: ErrorCode::Unavailable,
                    message:
                        "no file descriptors left; stop some VMs, or raise the limit (ulimit -n) and restart vmsup serve"
                            .into(),
                    field: None,
                };
            }
            e => format!("cannot be opened: {e}"),
        };
        self.refuse(&what)
    }

    /// The error that this file is at fault, and what about it.
    pub fn refuse(&self, what: &str) -> ApiError {
        let message = format!("{} {what}", shown(&self.path));
        ApiError { code: ErrorCode::Invalid, message, field: Some(self.field.clone()) }
    }
}

/// A path for a message: bounded, no control characters.
fn shown(path: &str) -> String {
    let mut text: String = path.chars().flat_map(char::escape_debug).take(300).collect();
    if text.len() < path.len() {
        text.push('…');
    }
    text
}

fn name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Unknown => "of an unknown type",
    }
}
