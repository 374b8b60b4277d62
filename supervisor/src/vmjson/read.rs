//! Reading the file itself: nothing blocks, nothing large is read.

use crate::spec::SPEC_MAX_BYTES;
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The text of a regular file of at most [`SPEC_MAX_BYTES`]. A FIFO without a writer does not block (`O_NONBLOCK`), and
/// what a huge file says of its size is enough to refuse it.
///
/// # Errors
/// One sentence without the file's name.
pub(super) fn bounded(path: &Path) -> Result<String, String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    // The supervisor's filter knows openat(2) only.
    let fd = openat(CWD, path, flags, Mode::empty()).map_err(|e| match e {
        Errno::NOENT => "no such file; check the path".to_owned(),
        Errno::ACCESS => "no permission to read it; check its mode and owner".into(),
        Errno::INVAL => "no path: it contains a NUL character".into(),
        e => format!("cannot be opened ({})", std::io::Error::from(e)),
    })?;
    let stat = fstat(&fd).map_err(|e| format!("cannot be looked at ({})", std::io::Error::from(e)))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::RegularFile {
        return Err(format!("{}; give a regular file", super::files::kind_name(kind)));
    }
    if super::files::is_made_up(&fd) {
        return Err("a file that the kernel makes up; give a regular file".into());
    }
    let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if size > SPEC_MAX_BYTES {
        return Err(too_large(&format!("{size} bytes are")));
    }
    let mut bytes = Vec::with_capacity(size as usize + 1);
    File::from(fd).take(SPEC_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| format!("cannot be read ({e})"))?;
    // The file may have grown since, or be one of those that say 0 and go on for ever.
    if bytes.len() as u64 > SPEC_MAX_BYTES {
        return Err(too_large("it is"));
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err("begins with a byte order mark; save it without".into());
    }
    String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        format!("line {line} is not UTF-8; save it as UTF-8")
    })
}

fn too_large(what: &str) -> String {
    format!("{what} too large for the file of a VM; the limit is {} KiB", SPEC_MAX_BYTES / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn folder(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("vmsup-read-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[track_caller]
    fn refused(path: &Path, says: &str) {
        let message = bounded(path).unwrap_err();
        assert!(message.contains(says), "{}: {message}", path.display());
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_blocking() {
        let folder = folder("kinds");
        let fifo = folder.join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let _listener = UnixListener::bind(folder.join("socket")).unwrap();
        refused(&fifo, "a FIFO");
        refused(&folder, "a directory");
        refused(Path::new("/dev/null"), "a character device");
        refused(&folder.join("socket"), "cannot be opened");
        refused(&folder.join("none"), "no such file");
        refused(Path::new("/proc/self/mem"), "the kernel makes up");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_file_of_a_gibibyte_is_refused_by_its_size() {
        let folder = folder("size");
        let huge = folder.join("huge");
        File::create(&huge).unwrap().set_len(1 << 30).unwrap();
        refused(&huge, "1073741824 bytes");
        std::fs::write(&huge, vec![b' '; SPEC_MAX_BYTES as usize]).unwrap();
        assert_eq!(bounded(&huge).unwrap().len() as u64, SPEC_MAX_BYTES);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn bytes_that_are_no_utf_8_are_refused_with_their_line() {
        let folder = folder("utf8");
        let file = folder.join("f");
        std::fs::write(&file, b"{\n\"name\": \"\xff\"}").unwrap();
        refused(&file, "line 2");
        std::fs::write(&file, b"\xef\xbb\xbf{}").unwrap();
        refused(&file, "byte order mark");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
