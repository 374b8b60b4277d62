//! `worker/vcpu`, `worker`, `netd`: what people call a filter or a process.

use crate::cli::failure::Failure;
use policy_set::arch::Arch;
use policy_set::model::{Filter, Set, Unfiltered};

/// Below this a name is not likely meant.
const ALIKE: f64 = 0.75;

/// What a name means.
pub struct Named<'a> {
    /// The process.
    pub process: String,
    /// Its filters, or the one that was named.
    pub filters: Vec<&'a Filter>,
    /// Where it has none.
    pub unfiltered: Option<&'a Unfiltered>,
}

/// Looks up a process, or one of its threads.
///
/// # Errors
/// There is none of that name; the sentence has the nearest one.
pub fn find<'a>(set: &'a Set, arch: Arch, name: &str) -> Result<Named<'a>, Failure> {
    let file = name.replacen('/', "-", 1);
    let of_arch = || set.filters.iter().filter(move |f| f.arch == arch);
    let exact: Vec<&Filter> = of_arch().filter(|f| f.name == file).collect();
    let filters = if exact.is_empty() { of_arch().filter(|f| f.process() == file).collect() } else { exact };
    let unfiltered = set.unfiltered.iter().find(|u| u.arch == arch && u.name == file);
    if filters.is_empty() && unfiltered.is_none() {
        return Err(unknown(set, arch, name));
    }
    let process = filters.first().map_or(file.as_str(), |f| f.process()).to_owned();
    Ok(Named { process, filters, unfiltered })
}

/// The one filter that a name means.
///
/// # Errors
/// There is none, or there are several.
pub fn filter<'a>(set: &'a Set, arch: Arch, name: &str) -> Result<&'a Filter, Failure> {
    let named = find(set, arch, name)?;
    match named.filters[..] {
        [one] => Ok(one),
        [] => Err(Failure::input(format!("{name} has no filter: `vmsup policy show {name}` says why"))),
        _ => {
            let all: Vec<String> = named.filters.iter().map(|f| shown(&f.name)).collect();
            Err(Failure::input(format!("{name} has a filter for each of its threads; name one: {}", all.join(", "))))
        }
    }
}

/// `worker/vcpu` of `worker-vcpu`.
pub fn shown(name: &str) -> String {
    name.replacen('-', "/", 1)
}

fn unknown(set: &Set, arch: Arch, name: &str) -> Failure {
    let mut known: Vec<String> = set.filters.iter().filter(|f| f.arch == arch).map(|f| shown(&f.name)).collect();
    known.extend(set.unfiltered.iter().filter(|u| u.arch == arch).map(|u| u.name.clone()));
    if known.is_empty() {
        return Failure::input(format!(
            "the set has nothing for {}; name another architecture with --arch",
            arch.name()
        ));
    }
    let what = format!("no process or thread is called {name:?}");
    match nearest(name, known.iter().map(String::as_str)) {
        Some(near) => Failure::input(format!("{what}; did you mean {near}?")),
        None => Failure::input(format!("{what}; there are {}", known.join(", "))),
    }
}

/// The name that is most like another.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|k| (strsim::jaro_winkler(name, k), k))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}
