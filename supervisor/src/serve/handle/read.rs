//! Reading what an earlier supervisor left. Its files are our own user's, in a directory that is this user's alone; still a
//! crash may have cut one short, and a release may have written what this one does not know. Runs before the supervisor is
//! confined.

use super::{Handle, Handles, VERSION};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use std::io::Read;

/// The largest file that is read, bytes: a VM's own file is most of it.
const BYTES_MAX: u64 = 512 * 1024;
/// Where a file goes that is no handle: kept for people, and not read again.
const BAD: &str = ".bad";

/// What was in the directory.
#[derive(Debug, Default)]
pub struct Left {
    /// The handles, by number.
    pub handles: Vec<Handle>,
    /// What was no handle, and why: a sentence for each.
    pub trouble: Vec<String>,
}

/// Why a file is no handle.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It is not a file of ours.
    #[error("it is no plain file of this user's")]
    NotOurs,
    /// Nobody writes as much.
    #[error("it has {0} bytes, where {BYTES_MAX} are the most")]
    TooLarge(u64),
    /// It was cut short, or somebody changed it.
    #[error("it is no handle: {0}")]
    Malformed(serde_json::Error),
    /// Another release wrote it.
    #[error("it has version {0}, where this release knows {VERSION}")]
    OtherVersion(u32),
    /// It is about another VM than its name says.
    #[error("it is about VM {0:016x}, which its name does not say")]
    OtherVm(u64),
    /// The file system's.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl Handles {
    /// Reads all handles. What a dying supervisor had half written is removed; what is no handle is moved aside
    /// (`NAME.bad`) and said.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn read_all(&self) -> std::io::Result<Left> {
        let mut left = Left::default();
        let mut names: Vec<String> = Vec::new();
        for entry in Dir::read_from(&self.dir)? {
            // A name that is no UTF-8 is none of ours.
            names.extend(entry?.file_name().to_str().map(str::to_owned));
        }
        names.sort_unstable();
        for name in names {
            if name.ends_with(".new") {
                rustix::fs::unlinkat(&self.dir, &name, AtFlags::empty())?;
            } else if let Some(number) = name.strip_suffix(".json") {
                match self.read(&name, number) {
                    Ok(handle) => left.handles.push(handle),
                    Err(why) => left.trouble.push(self.put_aside(&name, &why)),
                }
            }
        }
        Ok(left)
    }

    fn read(&self, name: &str, number: &str) -> Result<Handle, Unfit> {
        // Non-blocking: a FIFO in its place is to be looked at, not waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, name, flags, Mode::empty()).map_err(|error| match error {
            rustix::io::Errno::LOOP | rustix::io::Errno::NXIO => Unfit::NotOurs,
            error => Unfit::Io(error.into()),
        })?;
        let stat = rustix::fs::fstat(&file).map_err(std::io::Error::from)?;
        let plain = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !plain || stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(Unfit::NotOurs);
        }
        let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        if size > BYTES_MAX {
            return Err(Unfit::TooLarge(size));
        }
        let mut bytes = Vec::new();
        std::fs::File::from(file).take(BYTES_MAX).read_to_end(&mut bytes)?;
        parse(&bytes, number)
    }

    fn put_aside(&self, name: &str, why: &Unfit) -> String {
        let aside = format!("{name}{BAD}");
        match rustix::fs::renameat(&self.dir, name, &self.dir, &aside) {
            Ok(()) => format!("the handle {name} is not believed and was kept as {aside}: {why}"),
            Err(error) => format!("the handle {name} is not believed, and cannot be moved ({error}): {why}"),
        }
    }
}

/// A handle, where that is what the bytes are, and where it is the one of that name.
fn parse(bytes: &[u8], number: &str) -> Result<Handle, Unfit> {
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    // First: another version may have another form.
    let Version { version } = serde_json::from_slice(bytes).map_err(Unfit::Malformed)?;
    if version != VERSION {
        return Err(Unfit::OtherVersion(version));
    }
    let handle: Handle = serde_json::from_slice(bytes).map_err(Unfit::Malformed)?;
    if handle.intent.id() != number {
        return Err(Unfit::OtherVm(handle.intent.number));
    }
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::testing::{TempDir, handle};
    use std::path::Path;

    fn handles(dir: &Path) -> Handles {
        Handles::new(std::fs::File::open(dir).unwrap().into())
    }

    #[tokio::test]
    async fn what_was_written_is_read() {
        let dir = TempDir::new();
        let handles = handles(dir.path());
        let (a, b) = (handle(1, "a"), handle(u64::MAX, "b"));
        handles.write(&b).await.unwrap();
        handles.write(&a).await.unwrap();
        assert_eq!(handles.read_all().unwrap().handles, [a, b.clone()]);
        handles.remove(1).unwrap();
        handles.remove(1).unwrap();
        assert_eq!(handles.read_all().unwrap().handles, [b]);
    }

    #[test]
    fn what_is_no_handle_is_named_kept_aside_and_not_read_again() {
        let dir = TempDir::new();
        let good = serde_json::to_vec(&handle(7, "a")).unwrap();
        let later = String::from_utf8(good.clone()).unwrap().replace("\"version\":1", "\"version\":2,\"more\":{}");
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        write("0000000000000001.json", &good);
        write("0000000000000002.json", &good[..good.len() / 2]);
        write("0000000000000003.json", b"");
        write("0000000000000004.json", later.as_bytes());
        write("0000000000000005.json", &vec![b' '; BYTES_MAX as usize + 1]);
        std::os::unix::fs::symlink("0000000000000007.json", dir.path().join("0000000000000006.json")).unwrap();
        write("0000000000000007.json", &good);
        write("0000000000000007.json.new", b"half");
        std::fs::create_dir(dir.path().join("0000000000000008.json")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("0000000000000009.json"), FileType::Fifo, Mode::RUSR, 0)
            .unwrap();
        write("notes.txt", b"not ours to touch");

        let left = handles(dir.path()).read_all().unwrap();
        assert_eq!(left.handles, [handle(7, "a")]);
        let says = ["about VM 0000000000000007", "no handle", "no handle", "version 2", "the most", "plain file"];
        assert_eq!(left.trouble.len(), 8, "{:#?}", left.trouble);
        for (trouble, says) in left.trouble.iter().zip(says.into_iter().chain(["plain file"; 2])) {
            assert!(trouble.contains(says), "{trouble}");
        }
        assert!(!dir.path().join("0000000000000007.json.new").exists());
        assert!(dir.path().join("0000000000000002.json.bad").exists());
        assert!(dir.path().join("notes.txt").exists());
        let again = handles(dir.path()).read_all().unwrap();
        assert_eq!((again.handles.len(), again.trouble.len()), (1, 0));
    }
}
