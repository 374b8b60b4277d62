//! The only place that opens a guest's files: kernel, initrd, disks.
//!
//! Runs in the supervisor, on a thread for blocking work, with the rights of the user whose VM it is. A path is opened
//! once; what was opened is then looked at, and the fd is what the worker gets. Nothing is created or truncated.

use crate::api::types::{ApiError, ErrorCode};
use crate::spec::VmSpec;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{CWD, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// The largest kernel image, bytes.
const KERNEL_MAX: u64 = 1 << 30;

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

/// A guest's files, open.
#[derive(Debug)]
pub struct GuestFiles {
    /// `None` for a built-in guest.
    pub kernel: Option<OwnedFd>,
    /// The initrd.
    pub initrd: Option<OwnedFd>,
    /// The disks, in order; locked.
    pub disks: Vec<OwnedFd>,
    /// Bytes of the largest disk that the guest may write; 0 where there is none.
    pub largest_writable: u64,
}

impl GuestFiles {
    /// True where the spec names a file at all.
    pub fn any(spec: &VmSpec) -> bool {
        spec.boot.kernel.is_some() || spec.boot.initrd.is_some() || !spec.disks.is_empty()
    }

    /// Opens what `spec` names. May block as long as the file systems do.
    ///
    /// # Errors
    /// The first file that cannot be used, with its field.
    pub fn open(spec: &VmSpec) -> Result<GuestFiles, ApiError> {
        let ram = spec.memory_mib << 20;
        let kernel =
            spec.boot.kernel.as_deref().map(|path| image("boot.kernel", path, ram.min(KERNEL_MAX))).transpose()?;
        let initrd = spec.boot.initrd.as_deref().map(|path| image("boot.initrd", path, ram)).transpose()?;
        let mut files = GuestFiles { kernel, initrd, disks: Vec::new(), largest_writable: 0 };
        for (n, disk) in spec.disks.iter().enumerate() {
            let (fd, size) = open_disk(&format!("disks[{n}].path"), &disk.path, disk.readonly)?;
            if !disk.readonly {
                files.largest_writable = files.largest_writable.max(size);
            }
            files.disks.push(fd);
        }
        Ok(files)
    }
}

/// Opens a kernel or an initrd: a regular file of 1 to `max` bytes.
fn image(field: &str, path: &str, max: u64) -> Result<OwnedFd, ApiError> {
    let file = open(field, path, OFlags::RDONLY, "a regular file", &[FileType::RegularFile])?;
    match file.size {
        0 => Err(refuse(field, path, "is empty; name a file that can be booted")),
        size if size > max => {
            let (size, max) = (size.div_ceil(1 << 20), max >> 20);
            Err(refuse(
                field,
                path,
                &format!("has {size} MiB, where at most {max} MiB fit; give the VM more memory_mib"),
            ))
        }
        _ => Ok(file.fd),
    }
}

/// Opens and locks a disk; says its size in bytes.
fn open_disk(field: &str, path: &str, readonly: bool) -> Result<(OwnedFd, u64), ApiError> {
    let mode = if readonly { OFlags::RDONLY } else { OFlags::RDWR };
    let allowed = [FileType::RegularFile, FileType::BlockDevice];
    let Opened { fd, kind, mut size } = open(field, path, mode, "a raw image or a block device", &allowed)?;
    if kind == FileType::BlockDevice {
        size =
            rustix::fs::seek(&fd, SeekFrom::End(0)).map_err(|e| refuse(field, path, &format!("has no size: {e}")))?;
    }
    if size < 512 {
        return Err(refuse(
            field,
            path,
            "is smaller than one sector of 512 bytes; make it larger (truncate -s 1G FILE)",
        ));
    }
    lock(field, path, &fd, readonly)?;
    Ok((fd, size))
}

/// Locks a disk for as long as any copy of the fd is open, the worker's included: shared where the guest only reads,
/// else exclusive. Open file description locks are what QEMU and Cloud Hypervisor take, too; `flock(2)` would meet
/// udev's, which takes it on block devices for a moment now and then.
fn lock(field: &str, path: &str, fd: &OwnedFd, readonly: bool) -> Result<(), ApiError> {
    let kind = if readonly { libc::F_RDLCK } else { libc::F_WRLCK };
    let whole = libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    match fcntl(fd, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(()),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => {
            let advice = if readonly {
                "is being written by another VM or program; wait for it or use a copy"
            } else {
                "is in use by another VM or program; wait for it, use a copy, or set \"readonly\": true everywhere"
            };
            Err(ApiError { code: ErrorCode::Conflict, ..refuse(field, path, advice) })
        }
        // A file system without locks (some network ones): nothing can be held, nothing is refused.
        Err(nix::Error::ENOLCK | nix::Error::EOPNOTSUPP | nix::Error::ENOSYS) => {
            tracing::warn!(%field, "{} is on a file system without locks", shown(path));
            Ok(())
        }
        Err(e) => Err(refuse(field, path, &format!("cannot be locked: {}", e.desc()))),
    }
}

/// Opens a path in two steps. The first (O_PATH) only finds the inode: opening a device for real does things (a
/// watchdog starts, a tape rewinds), and a FIFO would block. What it is gets decided on that inode, and the same inode
/// is then opened for real, so that nothing can be put in its place in between.
fn open(field: &str, path: &str, mode: OFlags, what: &str, allowed: &[FileType]) -> Result<Opened, ApiError> {
    let found = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| cannot_open(field, path, e))?;
    let failed = |e: Errno| refuse(field, path, &format!("cannot be looked at: {e}"));
    let stat = rustix::fs::fstat(&found).map_err(failed)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if UNREAL.contains(&(rustix::fs::fstatfs(&found).map_err(failed)?.f_type as u32)) {
        return Err(refuse(field, path, "is on a file system of the kernel's own (such as /proc); name a real file"));
    }
    // A memfd or a deleted file, reached through /proc/PID/fd: one of ours, perhaps.
    if stat.st_nlink == 0 {
        return Err(refuse(field, path, "has no name of its own (a deleted file, or one in memory); name a real file"));
    }
    if !allowed.contains(&kind) {
        return Err(refuse(field, path, &format!("is {}; name {what}", name(kind))));
    }
    let flags = mode | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::openat(CWD, format!("/proc/self/fd/{}", found.as_raw_fd()), flags, Mode::empty())
        .map_err(|e| cannot_open(field, path, e))?;
    Ok(Opened { fd, kind, size: u64::try_from(stat.st_size).unwrap_or(0) })
}

/// A file of an allowed type.
struct Opened {
    fd: OwnedFd,
    kind: FileType,
    /// As `fstat(2)` has it: 0 for a block device.
    size: u64,
}

fn cannot_open(field: &str, path: &str, error: Errno) -> ApiError {
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
    refuse(field, path, &what)
}

fn refuse(field: &str, path: &str, what: &str) -> ApiError {
    ApiError { code: ErrorCode::Invalid, message: format!("{} {what}", shown(path)), field: Some(field.into()) }
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

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
