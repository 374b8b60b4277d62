//! The files that a spec names, and the host it shall run on, as they are now.
//!
//! For a good sentence before anything is started. It protects nothing: the supervisor opens the files itself, later,
//! and checks what it opened.

use super::check::{self, FieldError};
use crate::spec::{Disk, VmSpec};
use nix::sys::statfs::{
    CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, FsType, PROC_SUPER_MAGIC, SECURITYFS_MAGIC, SYSFS_MAGIC,
    TRACEFS_MAGIC,
};
use rustix::fs::{Access, FileType, access};
use rustix::io::Errno;

/// File systems whose files are no files.
const KERNEL_FILE_SYSTEMS: [FsType; 7] = [
    PROC_SUPER_MAGIC,
    SYSFS_MAGIC,
    CGROUP_SUPER_MAGIC,
    CGROUP2_SUPER_MAGIC,
    DEBUGFS_MAGIC,
    TRACEFS_MAGIC,
    SECURITYFS_MAGIC,
];

/// Checks the spec against the host's memory and the files that it names.
///
/// # Errors
/// The first field that is wrong.
pub(super) fn check_host(spec: &VmSpec) -> Result<(), FieldError> {
    if let Ok(host) = nix::sys::sysinfo::sysinfo() {
        check::check_memory(spec.memory_mib, host.ram_total() >> 20)?;
    }
    for (field, path) in [("boot.kernel", &spec.boot.kernel), ("boot.initrd", &spec.boot.initrd)] {
        if let Some(path) = path {
            check_file(path, false, Access::READ_OK).map_err(|m| FieldError::new(field, m))?;
        }
    }
    for (n, disk) in spec.disks.iter().enumerate() {
        let rights = if disk.readonly { Access::READ_OK } else { Access::READ_OK | Access::WRITE_OK };
        check_file(&disk.path, true, rights).map_err(|m| FieldError::new(format!("disks[{n}].path"), m))?;
    }
    check_shared(&spec.disks)
}

/// Two disks of one file would write over each other; two that only read it do no harm.
fn check_shared(disks: &[Disk]) -> Result<(), FieldError> {
    let identity = |disk: &Disk| {
        let stat = rustix::fs::stat(&disk.path).ok()?;
        // A block device is the same whichever node leads to it.
        let block = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
        Some(if block { (true, stat.st_rdev, 0) } else { (false, stat.st_dev, stat.st_ino) })
    };
    let identities: Vec<_> = disks.iter().map(identity).collect();
    for (n, one) in disks.iter().enumerate() {
        let same = |m: &usize| {
            identities[*m].is_some() && identities[*m] == identities[n] && !(one.readonly && disks[*m].readonly)
        };
        if let Some(first) = (0..n).find(same) {
            let name = check::escaped_path(&one.path);
            return Err(FieldError::new(
                format!("disks[{n}].path"),
                format!(
                    "{name}: the same file as disks[{first}]; give each disk a file of its own, or set \"readonly\": true for both"
                ),
            ));
        }
    }
    Ok(())
}

/// Whether a file lies in a file system whose files are no files.
pub(super) fn is_made_up(file: impl std::os::fd::AsFd) -> bool {
    nix::sys::statfs::fstatfs(file).is_ok_and(|s| KERNEL_FILE_SYSTEMS.contains(&s.filesystem_type()))
}

fn check_file(path: &str, block_device_too: bool, rights: Access) -> Result<(), String> {
    let name = check::escaped_path(path);
    let other = |e: Errno| format!("{name}: cannot be used ({})", std::io::Error::from(e));
    let stat = rustix::fs::stat(path).map_err(|e| match e {
        Errno::NOENT | Errno::NOTDIR => format!("{name}: no such file; check the path"),
        Errno::ACCESS => format!("{name}: no permission to reach it; check the directories above it"),
        e => other(e),
    })?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let wanted = if block_device_too { "an image file or a block device" } else { "a regular file" };
    match kind {
        FileType::RegularFile => {}
        FileType::BlockDevice if block_device_too => {}
        kind => return Err(format!("{name}: {}; give {wanted}", kind_name(kind))),
    }
    let magic = nix::sys::statfs::statfs(path).map(|s| s.filesystem_type());
    if kind == FileType::RegularFile && magic.is_ok_and(|m| KERNEL_FILE_SYSTEMS.contains(&m)) {
        return Err(format!("{name}: a file that the kernel makes up; give {wanted}"));
    }
    if kind == FileType::RegularFile && stat.st_size == 0 {
        return Err(format!("{name}: empty; check the path"));
    }
    access(path, rights).map_err(|e| match e {
        Errno::ACCESS | Errno::PERM if rights.contains(Access::WRITE_OK) => {
            format!("{name}: no permission to write; check its mode and owner, or set \"readonly\": true")
        }
        Errno::ACCESS | Errno::PERM => format!("{name}: no permission to read; check its mode and owner"),
        Errno::ROFS => format!("{name}: on a read-only file system; set \"readonly\": true"),
        e => other(e),
    })
}

/// A kind of file, in words.
pub(super) fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Symlink => "a symbolic link",
        FileType::Unknown => "a file of an unknown kind",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::Mode;

    #[test]
    fn what_cannot_be_a_disk_or_a_kernel_is_refused() {
        let folder = std::env::temp_dir().join(format!("vmsup-files-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let fifo = folder.join("fifo");
        let _ = rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR, 0);
        let empty = folder.join("empty");
        std::fs::write(&empty, b"").unwrap();
        let good = folder.join("good");
        std::fs::write(&good, b"x").unwrap();
        let text = |p: &std::path::Path| p.to_str().unwrap().to_owned();
        for (path, says) in [
            ("/no/such/file".to_owned(), "no such file"),
            (text(&folder), "a directory"),
            (text(&fifo), "a FIFO"),
            ("/proc/self/mem".into(), "the kernel makes up"),
            ("/dev/null".into(), "a character device"),
            (text(&empty), "empty"),
        ] {
            for disk in [false, true] {
                let message = check_file(&path, disk, Access::READ_OK).unwrap_err();
                assert!(message.starts_with(&path) && message.contains(says), "{message}");
            }
        }
        assert_eq!(check_file(&text(&good), true, Access::READ_OK | Access::WRITE_OK), Ok(()));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn two_disks_may_share_a_file_that_both_only_read() {
        let path = std::env::temp_dir().join(format!("vmsup-shared-{}", std::process::id()));
        std::fs::write(&path, b"x").unwrap();
        let disk = |readonly: bool| {
            serde_json::from_value::<Disk>(serde_json::json!({ "path": path, "readonly": readonly })).unwrap()
        };
        assert_eq!(check_shared(&[disk(true), disk(true)]), Ok(()));
        assert_eq!(check_shared(&[disk(true), disk(true), disk(false)]).unwrap_err().field, "disks[2].path");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_path_in_a_message_is_bounded_and_harmless() {
        let shown = check::escaped_path(format!("/{}\x1b[2J/end", "ü".repeat(4000)));
        assert!(shown.chars().count() < 200 && shown.ends_with("/end") && !shown.contains('\x1b'), "{shown}");
    }
}
