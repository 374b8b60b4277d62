//! What is wanted: directories of files, and files. All of it is read and checked before anything is done; where one file is
//! wrong, the source is, and every error is told.
//!
//! In the supervisor this runs under its filter, on a thread for file systems that take their time: a directory is opened and
//! listed, files are opened and read, nothing else is asked of the kernel.

use super::plan::Wanted;
use crate::serve::state::hash;
use crate::vmjson::check::escaped_path;
use crate::vmjson::{InputError, SpecFile};
use rustix::fs::{CWD, Dir, Mode, OFlags, openat};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The most files of a directory.
const FILES_MAX: usize = 4096;
/// The most entries of a directory that are looked at: one with more was not made for this.
const ENTRIES_MAX: usize = 65536;

/// A directory or a file, as its user named it and as it is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    shown: PathBuf,
    path: PathBuf,
    is_directory: bool,
}

/// Whether the files that a VM names are looked at, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// Yes: the CLI, for a sentence that names line and field before anything is done.
    Checked,
    /// No: the supervisor, which opens them when they are needed, and may not ask the host about others.
    Left,
}

/// What the sources want.
#[derive(Debug, Default)]
pub struct Sources {
    /// All of them, those that want nothing included.
    pub names: Vec<String>,
    /// What they want.
    pub wanted: Vec<Wanted>,
    /// The files, in the same order.
    files: Vec<SpecFile>,
}

impl Place {
    /// Finds what `shown` names. A directory is known by its canonical path; a file by that of its directory and its own
    /// name, so that a symbolic link is a file like others, and means the files beside it.
    ///
    /// # Errors
    /// There is nothing, or it cannot be reached.
    pub fn find(shown: &Path) -> Result<Place, InputError> {
        let failed = |e: std::io::Error| wrong(shown, sentence(&e));
        let is_directory = std::fs::metadata(shown).map_err(failed)?.is_dir();
        let path = match shown.file_name() {
            Some(name) if !is_directory => {
                let above = shown.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                above.canonicalize().map_err(failed)?.join(name)
            }
            _ => shown.canonicalize().map_err(failed)?,
        };
        Place::known(shown, path, is_directory)
    }

    /// A directory by its absolute path, whether it is there or not.
    ///
    /// # Errors
    /// Its name is not UTF-8, or contains a control character.
    pub fn directory(path: &Path) -> Result<Place, InputError> {
        Place::known(path, path.to_owned(), true)
    }

    fn known(shown: &Path, path: PathBuf, is_directory: bool) -> Result<Place, InputError> {
        match path.to_str() {
            None => return Err(wrong(shown, "its name is not UTF-8; rename it")),
            // It is the name of a source, and the supervisor takes none with such.
            Some(name) if name.contains(char::is_control) => {
                return Err(wrong(shown, "its name contains a control character; rename it"));
            }
            Some(_) => {}
        }
        Ok(Place { shown: shown.to_owned(), path, is_directory })
    }

    /// The name by which VMs know their source.
    pub fn source(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its files: as they are shown, and their paths.
    fn files(&self) -> Result<Vec<(PathBuf, PathBuf)>, InputError> {
        if !self.is_directory {
            return Ok(vec![(self.shown.clone(), self.path.clone())]);
        }
        let names = names(&self.path).map_err(|message| wrong(&self.shown, message))?;
        Ok(names.into_iter().map(|name| (self.shown.join(&name), self.path.join(&name))).collect())
    }
}

impl Sources {
    /// Reads all files of all places.
    ///
    /// # Errors
    /// Everything that is wrong: with one error, nothing of it may be used.
    pub fn read(places: &[Place], host: Host) -> Result<Sources, Vec<InputError>> {
        let mut sources = Sources::default();
        let mut errors = Vec::new();
        let mut seen = BTreeSet::new();
        // Directories first: a file that is named beside the directory that it lies in is the directory's.
        for place in places.iter().filter(|p| p.is_directory).chain(places.iter().filter(|p| !p.is_directory)) {
            let source = place.source();
            let files = place.files().unwrap_or_else(|error| {
                errors.push(error);
                Vec::new()
            });
            for (shown, path) in files {
                if !seen.insert(path.clone()) {
                    continue;
                }
                match SpecFile::load_as(&path, &shown, host == Host::Checked) {
                    Ok(file) => sources.add(&source, &path, &shown, file),
                    Err(error) => errors.push(error),
                }
            }
            if !sources.names.contains(&source) {
                sources.names.push(source);
            }
        }
        if errors.is_empty() { Ok(sources) } else { Err(errors) }
    }

    fn add(&mut self, source: &str, path: &Path, shown: &Path, file: SpecFile) {
        self.wanted.push(Wanted {
            spec: file.spec.clone(),
            hash: hash::of(&file.spec),
            source: source.to_owned(),
            path: path.to_string_lossy().into_owned(),
            file: escaped_path(shown),
        });
        self.files.push(file);
    }

    /// A sentence about a field of what is wanted, with its place in the file.
    pub fn located(&self, wanted: usize, field: &str, message: &str) -> String {
        match self.files.get(wanted) {
            Some(file) => file.error(field, message).to_string(),
            None => format!("{field}: {message}"),
        }
    }
}

/// The names of a directory's files: `*.json`, sorted, but for hidden ones (editors keep theirs there).
fn names(directory: &Path) -> Result<Vec<String>, String> {
    let failed = |e: Errno| sentence(&e.into());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // The supervisor's filter knows openat(2) only.
    let fd = openat(CWD, directory, flags, Mode::empty()).map_err(failed)?;
    let mut names = Vec::new();
    // rustix's and not std's: std asks for more than the supervisor's filter allows.
    for (count, entry) in Dir::new(fd).map_err(failed)?.enumerate() {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        if count >= ENTRIES_MAX {
            return Err(format!("more than {ENTRIES_MAX} files are in it; give VMs a directory of their own"));
        }
        if !name.ends_with(b".json") || name.starts_with(b".") {
            continue;
        }
        match std::str::from_utf8(name) {
            Ok(name) => names.push(name.to_owned()),
            Err(_) => return Err(format!("{}: not UTF-8; rename it", String::from_utf8_lossy(name).escape_debug())),
        }
    }
    if names.len() > FILES_MAX {
        return Err(format!("{} files of VMs are too many; a directory has at most {FILES_MAX}", names.len()));
    }
    names.sort();
    Ok(names)
}

fn sentence(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory; check the path".into(),
        std::io::ErrorKind::NotADirectory => "no directory; check the path".into(),
        std::io::ErrorKind::PermissionDenied => "no permission to read it; check its mode and owner".into(),
        _ => format!("cannot be read ({error})"),
    }
}

fn wrong(shown: &Path, message: impl Into<String>) -> InputError {
    InputError { file: escaped_path(shown), position: None, field: None, message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::testing::TempDir;

    fn file(name: &str) -> String {
        format!(r#"{{ "name": "{name}", "cpus": 1, "memory_mib": 32, "boot": {{ "builtin": "hello" }} }}"#)
    }

    fn read(paths: &[&Path]) -> Result<Sources, Vec<String>> {
        let places: Result<Vec<Place>, InputError> = paths.iter().map(|path| Place::find(path)).collect();
        let places = places.map_err(|e| vec![e.to_string()])?;
        Sources::read(&places, Host::Checked).map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_directory_is_its_json_files_sorted_and_nothing_hidden_or_below() {
        let dir = TempDir::new();
        for name in ["b", "a"] {
            std::fs::write(dir.path().join(format!("{name}.json")), file(name)).unwrap();
        }
        std::fs::write(dir.path().join(".#a.json"), "{").unwrap();
        std::fs::write(dir.path().join("a.json~"), "{").unwrap();
        std::fs::create_dir(dir.path().join("below")).unwrap();
        std::fs::write(dir.path().join("below/c.json"), "{").unwrap();
        std::os::unix::fs::symlink("below/../b.json", dir.path().join("c.json")).unwrap();
        let sources = read(&[dir.path()]).unwrap();
        let source = dir.path().canonicalize().unwrap().to_string_lossy().into_owned();
        assert_eq!(sources.names, std::slice::from_ref(&source));
        let names: Vec<&str> = sources.wanted.iter().map(|w| w.spec.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "b"], "a link is a file like others");
        assert!(sources.wanted.iter().all(|w| w.source == source && w.hash == hash::of(&w.spec)));
    }

    #[test]
    fn one_bad_file_spoils_the_source_and_every_error_is_told() {
        let dir = TempDir::new();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("good.json"), file("good")).unwrap();
        std::fs::write(path("half.json"), "{ \"name\": \"half\"").unwrap();
        std::fs::write(path("typo.json"), file("typo").replace("cpus", "cpu")).unwrap();
        std::os::unix::fs::symlink("nowhere", path("link.json")).unwrap();
        std::fs::create_dir(path("folder.json")).unwrap();
        let errors = read(&[dir.path()]).unwrap_err();
        assert_eq!(errors.len(), 4, "{errors:?}");
        for (error, says) in
            errors.iter().zip(["a directory", "half.json:1:", "no such file", "did you mean \"cpus\"?"])
        {
            assert!(error.contains(says), "{error}");
        }
        std::fs::create_dir(path("a\nb")).unwrap();
        assert!(
            read(&[&path("a\nb")]).unwrap_err()[0].ends_with("a\\nb: its name contains a control character; rename it")
        );
        let errors = read(&[&path("gone")]).unwrap_err();
        assert_eq!(errors, [format!("{}: no such file or directory; check the path", path("gone").display())]);
    }

    #[test]
    fn a_file_is_known_by_its_name_in_its_canonical_directory() {
        let dir = TempDir::new();
        let here = dir.path().canonicalize().unwrap();
        std::fs::create_dir(here.join("real")).unwrap();
        std::fs::write(here.join("real/a.json"), file("a")).unwrap();
        std::os::unix::fs::symlink("real", here.join("link")).unwrap();
        let source = here.join("real/a.json").to_string_lossy().into_owned();
        for shown in ["real/a.json", "link/a.json", "real/../link/a.json"] {
            let sources = read(&[&here.join(shown)]).unwrap();
            assert_eq!(sources.names, std::slice::from_ref(&source), "{shown}");
            assert_eq!(sources.wanted[0].file, here.join(shown).to_string_lossy());
        }
        // Named twice, and beside its directory: it is there once, and the directory's.
        let twice = read(&[&here.join("link/a.json"), &here.join("real"), &here.join("link")]).unwrap();
        assert_eq!(twice.names, [here.join("real").to_string_lossy().into_owned(), source]);
        assert_eq!(twice.wanted.len(), 1);
        assert_eq!(twice.wanted[0].source, twice.names[0]);
    }

    #[test]
    fn paths_mean_the_same_whatever_way_led_to_the_file() {
        let dir = TempDir::new();
        let here = dir.path().canonicalize().unwrap();
        std::fs::create_dir(here.join("real")).unwrap();
        std::fs::write(here.join("real/disk"), "x").unwrap();
        let with_disk = file("a").replace("\"cpus\"", "\"disks\": [ { \"path\": \"disk\" } ], \"cpus\"");
        std::fs::write(here.join("real/a.json"), with_disk).unwrap();
        std::os::unix::fs::symlink("real", here.join("link")).unwrap();
        let hashes: BTreeSet<String> = ["real", "link", "link/a.json"]
            .map(|shown| read(&[&here.join(shown)]).unwrap().wanted[0].hash.clone())
            .into();
        assert_eq!(hashes.len(), 1);
    }
}
