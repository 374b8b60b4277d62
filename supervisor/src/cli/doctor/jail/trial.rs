//! A jail's namespaces, really tried: by the jailer, since a host may let it make them and no other program (AppArmor).

use super::super::read::say;
use std::path::Path;
use std::process::Command;

/// What the jailer could do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// Make namespaces with this user's own uid in them.
    pub own: Result<(), String>,
    /// Make one with a subordinate uid; `None` where there is no range, or no program that would apply it.
    pub subordinate: Option<Result<(), String>>,
    /// Run the worker's program beside it, by that one's policy section; `None` of a jailer that does not say.
    pub section: Option<Result<(), String>>,
}

/// Has the jailer at `path` try.
///
/// # Errors
/// A sentence's end: why nothing was tried.
pub fn trial(path: &Path) -> Result<Trial, String> {
    parse(&say(Command::new(path).arg("try"))?).ok_or_else(|| format!("{} tells nothing", path.display()))
}

/// `own: ok`, perhaps `subordinate: why not`, and `section: ok`.
fn parse(said: &str) -> Option<Trial> {
    let one = |name: &str| {
        let result = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))?;
        Some(if result == "ok" { Ok(()) } else { Err(result.to_owned()) })
    };
    Some(Trial { own: one("own")?, subordinate: one("subordinate"), section: one("section") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_jailer_says_of_its_trial_is_understood() {
        assert_eq!(parse("own: ok\n"), Some(Trial { own: Ok(()), subordinate: None, section: None }));
        let refused = parse("own: ok\nsubordinate: newuidmap: no\nsection: ok\n");
        let subordinate = Some(Err("newuidmap: no".into()));
        assert_eq!(refused, Some(Trial { own: Ok(()), subordinate, section: Some(Ok(())) }));
        assert_eq!(parse("own: ok\nsection: /w is refused\n").unwrap().section, Some(Err("/w is refused".into())));
        assert_eq!(parse("own: a new user namespace: EPERM\n").unwrap().own, Err("a new user namespace: EPERM".into()));
        for nonsense in ["", "own", "usage: vmsup-jailer serve"] {
            assert_eq!(parse(nonsense), None, "{nonsense}");
        }
        assert!(trial(Path::new("/no/jailer")).unwrap_err().starts_with("it does not run"));
    }
}
