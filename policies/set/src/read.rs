//! Reads our own sets: files by their paths relative to the set.
//!
//! What is read may be anybody's: everything is bounded, and nothing that is not known is passed over. The rules of the
//! house ([`house_rules`]) are a second step, so that an audit can look at a set that breaks them.

use crate::arch::Arch;
use crate::model::{Filter, Landlock, LandlockRule, Process, Rule, Set, Unfiltered};
use crate::wire::{self, Once, Source, WireAction};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

pub use crate::house::house_rules;
pub use crate::wire::Error;

/// The thread part of the name of a filter that is put on a whole process first.
const STARTUP: &str = "startup";
/// Most files of a set.
const FILES_MAX: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilterFile<'a> {
    mismatch_action: WireAction,
    match_action: WireAction,
    #[serde(default)]
    include: Vec<String>,
    #[serde(default, deserialize_with = "wire::once")]
    accept: BTreeMap<String, String>,
    #[serde(borrow)]
    filter: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UnfilteredFile<'a> {
    unfiltered: String,
    #[serde(borrow)]
    calls: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IncludeFile<'a> {
    comment: String,
    #[serde(borrow)]
    filter: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LandlockFile {
    comment: String,
    floor_abi: u8,
    newest_abi: u8,
    handled: Handled,
    rules: Vec<PlaceFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Handled {
    All,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlaceFile {
    what: String,
    access: Vec<String>,
    comment: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProcessFile {
    comment: String,
    capabilities: Vec<String>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, deserialize_with = "wire::once")]
    rlimits: BTreeMap<String, u64>,
    #[serde(default)]
    fds: Vec<FdFile>,
    #[serde(default, deserialize_with = "wire::once")]
    budgets: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FdFile {
    number: i32,
    what: String,
}

impl Set {
    /// Reads a set from the texts of its files, each with its path relative to the set. Paths that are not of a policy
    /// file are passed over: sources and documents stand beside them.
    ///
    /// # Errors
    /// The first file that is not as it should be.
    pub fn from_texts(origin: &str, files: impl IntoIterator<Item = (String, String)>) -> Result<Set, Error> {
        let files: BTreeMap<String, String> = files.into_iter().collect();
        if files.len() > FILES_MAX {
            let what = format!("{} files, {FILES_MAX} at most", files.len());
            return Err(Error { file: origin.to_owned(), line: None, what });
        }
        let mut set = Set { origin: origin.to_owned(), ..Set::default() };
        let sources: Vec<Source<'_>> = files.iter().map(|(file, text)| Source { file, text }).collect();
        let mut used = BTreeSet::new();
        for source in &sources {
            let parts: Vec<&str> = source.file.split('/').collect();
            match parts[..] {
                ["seccomp", "include", _] => {}
                ["seccomp", arch, name] if name.ends_with(".json") => {
                    let arch = Arch::named(arch)
                        .ok_or_else(|| source.error(None, format!("`{arch}` is no architecture that is known here")))?;
                    set.seccomp(*source, arch, &sources, &mut used)?;
                }
                ["landlock.json"] => set.landlock = landlock(*source)?,
                ["process.json"] => set.processes = processes(*source)?,
                ["nft", name] if name.ends_with(".nft") => {
                    set.nft.insert((*name).to_owned(), source.text.to_owned());
                }
                ["recorded", name] => {
                    let arch = name
                        .strip_suffix(".json")
                        .and_then(Arch::named)
                        .ok_or_else(|| source.error(None, "a record is named after its architecture"))?;
                    let Once(filters): Once<Vec<String>> = source.parse(source.text)?;
                    set.recorded.insert(arch, filters);
                }
                _ => {}
            }
        }
        if set.filters.is_empty() {
            let what = "no filter: there is no file seccomp/<arch>/<name>.json".to_owned();
            return Err(Error { file: origin.to_owned(), line: None, what });
        }
        for source in &sources {
            if source.file.starts_with("seccomp/include/") && !used.contains(source.file) {
                return Err(source.error(None, "no filter includes it: remove it"));
            }
        }
        Ok(set)
    }

    /// Reads the set of a folder: one with `seccomp/` in it, or with `policies/seccomp/`.
    ///
    /// # Errors
    /// The folder, or the first file that is not as it should be.
    pub fn from_folder(folder: &Path) -> Result<Set, Error> {
        let inner = folder.join("policies");
        let root = if inner.join("seccomp").is_dir() { inner } else { folder.to_owned() };
        Set::from_texts(&folder.display().to_string(), texts_of(&root)?)
    }

    /// The filter of this name.
    pub fn filter(&self, arch: Arch, name: &str) -> Option<&Filter> {
        self.filters.iter().find(|f| f.arch == arch && f.name == name)
    }

    /// What all threads of a process may call together once each has narrowed to its own filter, sorted.
    pub fn narrowed(&self, arch: Arch, process: &str) -> BTreeSet<&str> {
        self.filters
            .iter()
            .filter(|f| f.arch == arch && f.process() == process && f.thread().is_some_and(|t| t != STARTUP))
            .flat_map(Filter::syscalls)
            .collect()
    }

    /// The filter that is in force below another one: what a process puts on before its threads narrow.
    pub fn below(&self, filter: &Filter) -> Option<&Filter> {
        let name = format!("{}-{STARTUP}", filter.process());
        self.filter(filter.arch, &name).filter(|below| below.name != filter.name && filter.thread().is_some())
    }

    /// The architectures that the set has filters for.
    pub fn arches(&self) -> Vec<Arch> {
        Arch::ALL.into_iter().filter(|arch| self.filters.iter().any(|f| f.arch == *arch)).collect()
    }

    fn seccomp(
        &mut self,
        source: Source<'_>,
        arch: Arch,
        all: &[Source<'_>],
        used: &mut BTreeSet<String>,
    ) -> Result<(), Error> {
        let stem = stem(source.file);
        let body = source.only(stem)?;
        let keys: BTreeMap<String, &RawValue> = source.parse(body.get())?;
        if keys.contains_key("unfiltered") {
            let parsed: UnfilteredFile<'_> = source.parse(body.get())?;
            let calls = wire::rules(source, &parsed.calls, Some(arch))?;
            self.unfiltered.push(Unfiltered {
                name: stem.to_owned(),
                arch,
                file: source.file.to_owned(),
                reason: parsed.unfiltered,
                calls,
            });
            return Ok(());
        }
        let parsed: FilterFile<'_> = source.parse(body.get())?;
        let mut rules = Vec::new();
        for name in &parsed.include {
            let file = format!("seccomp/include/{name}.json");
            let included = all
                .iter()
                .find(|s| s.file == file)
                .ok_or_else(|| source.error(None, format!("includes `{name}`, but there is no {file}")))?;
            rules.extend(include(*included, arch)?);
            used.insert(file);
        }
        rules.extend(wire::rules(source, &parsed.filter, Some(arch))?);
        self.filters.push(Filter {
            name: stem.to_owned(),
            arch,
            file: source.file.to_owned(),
            default: parsed.mismatch_action.into(),
            matched: parsed.match_action.into(),
            rules,
            accepted: parsed.accept,
        });
        Ok(())
    }
}

fn include(source: Source<'_>, arch: Arch) -> Result<Vec<Rule>, Error> {
    let body = source.only(stem(source.file))?;
    let parsed: IncludeFile<'_> = source.parse(body.get())?;
    if parsed.comment.trim().len() < 8 {
        return Err(source.error(None, "a comment says what these rules are for"));
    }
    wire::rules(source, &parsed.filter, Some(arch))
}

fn landlock(source: Source<'_>) -> Result<BTreeMap<String, Landlock>, Error> {
    let Once(all): Once<LandlockFile> = source.parse(source.text)?;
    let rule = |r: PlaceFile| LandlockRule { what: r.what, access: r.access, comment: r.comment };
    Ok(all
        .into_iter()
        .map(|(name, l)| {
            let Handled::All = l.handled;
            let rules = l.rules.into_iter().map(rule).collect();
            (name, Landlock { comment: l.comment, floor_abi: l.floor_abi, newest_abi: l.newest_abi, rules })
        })
        .collect())
}

fn processes(source: Source<'_>) -> Result<BTreeMap<String, Process>, Error> {
    let Once(all): Once<ProcessFile> = source.parse(source.text)?;
    Ok(all
        .into_iter()
        .map(|(name, p)| {
            let process = Process {
                comment: p.comment,
                capabilities: p.capabilities,
                namespaces: p.namespaces,
                rlimits: p.rlimits,
                fds: p.fds.into_iter().map(|fd| (fd.number, fd.what)).collect(),
                budgets: p.budgets,
            };
            (name, process)
        })
        .collect())
}

fn stem(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.strip_suffix(".json").unwrap_or(name)
}

/// The policy files below the folder that has `seccomp/` in it: path relative to it, and text, sorted.
///
/// # Errors
/// What cannot be read.
pub fn texts_of(root: &Path) -> Result<Vec<(String, String)>, Error> {
    let mut files = Vec::new();
    for below in ["", "nft", "recorded", "seccomp/include"] {
        texts(root, below, &mut files)?;
    }
    for arch in Arch::ALL {
        texts(root, &format!("seccomp/{}", arch.name()), &mut files)?;
    }
    files.sort_unstable();
    Ok(files)
}

/// Reads the policy files of one folder, where it exists.
fn texts(root: &Path, below: &str, into: &mut Vec<(String, String)>) -> Result<(), Error> {
    let folder = root.join(below);
    let failed = |file: &Path, e: &std::io::Error| Error {
        file: file.display().to_string(),
        line: None,
        what: format!("cannot be read: {e}"),
    };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !below.is_empty() => return Ok(()),
        Err(e) => return Err(failed(&folder, &e)),
    };
    for entry in entries {
        let path = entry.map_err(|e| failed(&folder, &e))?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        if !(name.ends_with(".json") || name.ends_with(".nft")) {
            continue;
        }
        let about = fs::metadata(&path).map_err(|e| failed(&path, &e))?;
        // Reading a FIFO would wait for who writes to it.
        if !about.is_file() || about.len() > wire::FILE_MAX as u64 {
            let what = format!("no plain file, or {} bytes of {} at most", about.len(), wire::FILE_MAX);
            return Err(Error { file: path.display().to_string(), line: None, what });
        }
        let text = fs::read_to_string(&path).map_err(|e| failed(&path, &e))?;
        into.push((if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") }, text));
    }
    Ok(())
}
