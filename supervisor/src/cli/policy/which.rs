//! Which set is asked about, and which of its architectures.

use crate::cli::failure::Failure;
use crate::cli::sanitize::without_errno;
use clap::{Args, ValueHint};
use policy_set::arch::Arch;
use policy_set::bpf::Instruction;
use policy_set::compile::compile;
use policy_set::foreign;
use policy_set::model::{Filter, Set};
use policy_set::wire::FILE_MAX;
use std::path::{Path, PathBuf};

/// Which set.
#[derive(Debug, Args)]
pub struct Which {
    /// A set on disk (a `policies` directory, or the one that has it), instead of the one compiled in.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// A file of another project instead: filters by thread in seccompiler's JSON, as Firecracker keeps them, for --arch.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "dir")]
    foreign: Option<PathBuf>,
    /// Its policies for this architecture, instead of this host's: x86_64 or aarch64.
    #[arg(long, value_name = "ARCH", value_parser = arch)]
    arch: Option<Arch>,
}

impl Which {
    /// One of these, or the one compiled in; for this architecture, or the host's.
    pub fn of(dir: Option<PathBuf>, foreign: Option<PathBuf>, arch: Option<Arch>) -> Which {
        Which { dir, foreign, arch }
    }

    /// Reads it.
    ///
    /// # Errors
    /// One sentence: what is wrong, and in which file.
    pub fn set(&self) -> Result<Set, Failure> {
        match (&self.dir, &self.foreign) {
            (Some(dir), _) => Set::from_folder(dir).map_err(|e| Failure::input(without_errno(&e.to_string()))),
            (None, Some(file)) => self.foreign(file),
            (None, None) => built_in(),
        }
    }

    fn foreign(&self, file: &Path) -> Result<Set, Failure> {
        let wrong = |e: &str| Failure::input(format!("{}: {}", file.display(), without_errno(e)));
        let about = std::fs::metadata(file).map_err(|e| wrong(&e.to_string()))?;
        if !about.is_file() || about.len() > FILE_MAX as u64 {
            return Err(wrong("no file of filters: not a plain file, or larger than a MiB"));
        }
        let text = std::fs::read_to_string(file).map_err(|e| wrong(&e.to_string()))?;
        let read = foreign::read(&file.display().to_string(), self.arch()?, &text);
        read.map_err(|e| Failure::input(without_errno(&e.to_string())))
    }

    /// A filter's program: the one that this release puts in force, where it is one of those; else what its file compiles to.
    ///
    /// # Errors
    /// It does not compile.
    pub fn program(&self, filter: &Filter) -> Result<Vec<Instruction>, Failure> {
        let shipped = policies::ALL.iter().find(|f| f.name == filter.name);
        match shipped.filter(|_| self.dir.is_none() && self.foreign.is_none() && Arch::host() == Some(filter.arch)) {
            Some(ours) => {
                Ok(ours.program.iter().map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect())
            }
            None => compile(filter).map_err(|e| Failure::input(without_errno(&e.to_string()))),
        }
    }

    /// The architecture.
    ///
    /// # Errors
    /// None was named, and the host's has no policies.
    pub fn arch(&self) -> Result<Arch, Failure> {
        let arch = self.arch.or_else(Arch::host);
        arch.ok_or_else(|| Failure::input("this host's architecture has no policies; name one with --arch"))
    }
}

/// The set that is compiled in.
///
/// # Errors
/// None: the build holds it to its form.
pub fn built_in() -> Result<Set, Failure> {
    let files = policies::FILES.iter().map(|(path, text)| (path.to_string(), text.to_string()));
    Set::from_texts("compiled in", files).map_err(|e| Failure::input(e.to_string()))
}

/// An architecture by its name, for clap.
///
/// # Errors
/// There are no policies for it.
pub fn arch(name: &str) -> Result<Arch, String> {
    Arch::named(name).ok_or_else(|| "there are policies for x86_64 and aarch64".to_owned())
}
