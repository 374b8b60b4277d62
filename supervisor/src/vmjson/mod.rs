//! Reading `vm.json`: bounded, strict, and with errors that name file, line and field.
//!
//! Runs in the CLI, as the user, on a file of the user's. [`check`] runs in the supervisor as well.
//!
//! ```text
//! read.rs   path  -> text      regular files only, at most 256 KiB, UTF-8
//! tree.rs   text  -> tree      JSON with positions, no key twice, bounded depth
//! de.rs     tree  -> VmSpec    serde, with errors that keep their parts
//! check.rs  VmSpec             what the types do not hold; pure (nets.rs: of its interfaces)
//! files.rs  VmSpec             the files that it names, as they are now
//! ```

pub mod check;
mod de;
mod files;
mod life;
pub(crate) mod nets;
mod read;
pub mod schema;
mod sentence;
mod tree;

use crate::spec::VmSpec;
use check::FieldError;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What is wrong with a file: one sentence, `FILE:LINE:COLUMN: FIELD: what; what to do`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputError {
    /// The file, as its user named it, with control characters escaped.
    pub file: String,
    /// Line and column, from 1, where the fault has a place.
    pub position: Option<(usize, usize)>,
    /// The field at fault, where it is one.
    pub field: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

impl std::fmt::Display for InputError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.file)?;
        if let Some((line, column)) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        match &self.field {
            Some(field) if !field.is_empty() => write!(f, ": {field}: {}", self.message),
            _ => write!(f, ": {}", self.message),
        }
    }
}

impl std::error::Error for InputError {}

/// A file that was read and checked.
#[derive(Debug)]
pub struct SpecFile {
    /// The VM, with absolute paths.
    pub spec: VmSpec,
    file: String,
    text: String,
}

impl SpecFile {
    /// Reads, parses and checks `path`, the files that it names included.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(path: &Path) -> Result<Self, InputError> {
        SpecFile::load_as(path, path, true)
    }

    /// The same under another name for the messages. The files that it names are looked at only with `host`: the supervisor
    /// opens them itself, when it needs them.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load_as(path: &Path, shown: &Path, host: bool) -> Result<Self, InputError> {
        let file = check::escaped_path(shown);
        let text = read::bounded(path).map_err(|message| InputError {
            file: file.clone(),
            position: None,
            field: None,
            message,
        })?;
        let mut spec = parse(&file, &text)?;
        let base = base_directory(path);
        let wrong = |e: FieldError| error_at(&file, &text, &e.field, e.message);
        let base = base.map_err(|message| InputError { file: file.clone(), position: None, field: None, message })?;
        resolve(&mut spec, &base);
        check::check(&spec).map_err(wrong)?;
        if host {
            files::check_host(&spec).map_err(wrong)?;
        }
        Ok(SpecFile { spec, file, text })
    }

    /// The error of a field that someone else found, the supervisor say, with its place in this file.
    pub fn error(&self, field: &str, message: impl Into<String>) -> InputError {
        error_at(&self.file, &self.text, field, message.into())
    }
}

/// Parses a text; `file` is for the messages. Paths stay as they are and nothing beyond the types is checked.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse(file: &str, text: &str) -> Result<VmSpec, InputError> {
    let tree = tree::parse(text).map_err(|e| {
        let (field, message) = sentence::of_fault(text, &e);
        InputError { file: file.to_owned(), position: Some(tree::position(text, e.offset)), field, message }
    })?;
    VmSpec::deserialize(&tree).map_err(|e| InputError {
        file: file.to_owned(),
        position: Some(tree::position(text, e.offset.unwrap_or(0))),
        field: Some(e.field()),
        message: sentence::of_type_error(&e),
    })
}

fn error_at(file: &str, text: &str, field: &str, message: String) -> InputError {
    let position = tree::parse(text).ok().map(|tree| tree::position(text, tree.locate(field)));
    InputError { file: file.to_owned(), position, field: Some(check::escaped(field)), message }
}

/// The directory that the relative paths of a file are relative to, absolute.
fn base_directory(path: &Path) -> Result<PathBuf, String> {
    let absolute =
        std::path::absolute(path).map_err(|e| format!("its directory is not known ({e}); give an absolute path"))?;
    let directory = absolute.parent().unwrap_or(Path::new("/")).to_owned();
    match directory.to_str() {
        Some(_) => Ok(directory),
        None => Err("its directory's name is not UTF-8; move it to one that is".into()),
    }
}

/// Makes the paths of a spec absolute. Empty ones stay, for [`check`] to refuse.
fn resolve(spec: &mut VmSpec, base: &Path) {
    let paths = [&mut spec.boot.kernel, &mut spec.boot.initrd].into_iter().flatten();
    for path in paths.chain(spec.disks.iter_mut().map(|d| &mut d.path)) {
        if !path.is_empty() && !path.starts_with('/') {
            *path = base.join(&path).to_string_lossy().into_owned();
        }
    }
}
