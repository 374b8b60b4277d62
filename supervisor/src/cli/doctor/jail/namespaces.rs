//! Namespaces: whether this user may make them, and how many.

use super::super::ids::Id;
use super::super::line::Line;
use super::super::read::{number, read};
use super::Trial;
use std::path::{Path, PathBuf};

/// As many namespaces as a small host needs at once.
const LOW: u64 = 64;
/// Where AppArmor's profile for the jailer is installed.
const PROFILE: &str = "/etc/apparmor.d/vmsup-jailer";
/// Those that each jail has one of, beside the user namespace, as the sysctls have them.
const OTHERS: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];

/// What was read.
#[derive(Debug, Default, Clone)]
pub struct Facts {
    /// user.max_user_namespaces.
    max: Option<u64>,
    /// kernel.unprivileged_userns_clone, of Debian's kernels.
    clone: Option<String>,
    /// kernel.apparmor_restrict_unprivileged_userns, of Ubuntu's.
    apparmor: Option<String>,
    /// AppArmor's profile for the jailer.
    profile: Option<String>,
    /// The jailer of this installation.
    jailer: PathBuf,
    /// user.max_*_namespaces of the other kinds.
    others: Vec<(&'static str, u64)>,
}

impl Facts {
    /// Of this host.
    pub fn read(jailer: &Path) -> Facts {
        let max = |kind: &str| number(format!("/proc/sys/user/max_{kind}_namespaces"));
        Facts {
            max: max("user"),
            clone: read("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor: read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            profile: read(PROFILE),
            jailer: jailer.to_owned(),
            others: OTHERS.into_iter().filter_map(|kind| Some((kind, max(kind)?))).collect(),
        }
    }
}

const RAISE: &str = "echo user.max_user_namespaces=16384 | sudo tee /etc/sysctl.d/60-userns.conf; sudo sysctl --system";

/// Whether user namespaces can be made: what the trial says; and where it failed, or could not be made, what the host's switches
/// say.
pub fn user(facts: &Facts, trial: &Result<Trial, String>) -> Line {
    const ID: Id = Id::UserNamespaces;
    const WHY: &str = "each VM's process is jailed in a user namespace, which must be possible without root";
    match (trial, facts.max) {
        (Ok(Trial { own: Ok(()), .. }), Some(max)) if max < LOW => {
            Line::warning(ID, format!("only {max} at once"), "each VM needs one", RAISE)
        }
        (Ok(Trial { own: Ok(()), .. }), max) => {
            let most = max.map_or_else(String::new, |max| format!(", at most {max}"));
            Line::ok(ID, format!("one was made, and all other namespaces in it{most}"))
        }
        (Ok(Trial { own: Err(why), .. }), _) => match obstacle(facts) {
            Some((obstacle, mend)) => Line::failure(ID, format!("{obstacle} ({why})"), WHY, mend),
            None => Line::failure(
                ID,
                format!("none can be made: {why}"),
                WHY,
                "run vmsup outside of the container or sandbox that this shell is in, or have that one allow clone(2) with \
                 new namespaces and mount(2)",
            ),
        },
        (Err(untried), _) => match obstacle(facts) {
            Some((obstacle, mend)) => Line::failure(ID, obstacle, WHY, mend),
            None => Line::unknown(
                ID,
                format!("nothing that the host tells is in the way, but none was tried: {untried}"),
                WHY,
                format!("{} try", facts.jailer.display()),
            ),
        },
    }
}

/// Which of the host's switches is in the way, and what turns it.
fn obstacle(facts: &Facts) -> Option<(String, String)> {
    let found = |what: &str, mend: &str| Some((what.to_owned(), mend.to_owned()));
    if facts.clone.as_deref() == Some("0") {
        return found(
            "switched off for users (kernel.unprivileged_userns_clone is 0)",
            "echo kernel.unprivileged_userns_clone=1 | sudo tee /etc/sysctl.d/60-userns.conf; sudo sysctl --system",
        );
    }
    match facts.max {
        None => return found("this kernel has none", "use a kernel with CONFIG_USER_NS"),
        Some(0) => return found("switched off (user.max_user_namespaces is 0)", RAISE),
        Some(_) => {}
    }
    if facts.apparmor.as_deref() != Some("1") {
        return None;
    }
    let what =
        "AppArmor gives them to programs with a profile only (kernel.apparmor_restrict_unprivileged_userns is 1)";
    let (jailer, load) = (facts.jailer.display(), format!("sudo apparmor_parser -r {PROFILE}"));
    let (what, mend) = match facts.profile.as_deref().map(named) {
        None => (format!("{what}, and {PROFILE} is not there"), format!("make install places it; then {load}")),
        Some(Some(path)) if Path::new(path) != facts.jailer => (
            format!("{what}, and {PROFILE} is for {path}, not for {jailer}"),
            format!("run the vmsup beside {path}, or put {jailer} into its place in {PROFILE}; then {load}"),
        ),
        Some(_) => (what.to_owned(), load),
    };
    Some((what, mend))
}

/// The program that a profile is for: `profile vmsup-jailer PROGRAM flags=(…) {`.
fn named(profile: &str) -> Option<&str> {
    let rest = profile.lines().find_map(|line| line.strip_prefix("profile vmsup-jailer "))?;
    rest.split_whitespace().next()
}

/// How many of the other namespaces there may be.
pub fn others(facts: &Facts) -> Line {
    const ID: Id = Id::Namespaces;
    const WHY: &str = "each VM's jail has one of each kind (cgroup, ipc, mnt, net, pid, uts)";
    let Some((kind, least)) = facts.others.iter().min_by_key(|(_, max)| max) else {
        return Line::unknown(ID, "/proc/sys/user tells no bounds", WHY, "sysctl -a | grep user.max_");
    };
    let found = format!("at most {least} of a kind (user.max_{kind}_namespaces)");
    let mend = format!(
        "echo user.max_{kind}_namespaces=16384 | sudo tee /etc/sysctl.d/60-{kind}-namespaces.conf; sudo sysctl --system"
    );
    match *least {
        0 => Line::failure(ID, found, WHY, mend),
        1..LOW => Line::warning(ID, found, WHY, mend),
        _ => Line::ok(ID, found),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::line::State::{Failure, Ok as Fine, Unknown, Warning};
    use super::super::super::line::assert_line;
    use super::*;

    fn facts() -> Facts {
        Facts {
            max: Some(100_000),
            clone: Some("1".into()),
            jailer: "/usr/bin/vmsup-jailer".into(),
            others: OTHERS.into_iter().map(|kind| (kind, 100_000)).collect(),
            ..Facts::default()
        }
    }

    fn tried(own: Result<(), String>) -> Result<Trial, String> {
        Ok(Trial { own, subordinate: None, section: None })
    }

    #[test]
    fn a_user_namespace_that_was_made_is_fine_whatever_the_switches_say() {
        let closed = Facts { clone: Some("0".into()), apparmor: Some("1".into()), ..facts() };
        for facts in [facts(), closed, Facts { max: None, ..facts() }] {
            assert_line(&user(&facts, &tried(Ok(()))), Fine, "");
        }
        let few = Facts { max: Some(3), ..facts() };
        assert_line(&user(&few, &tried(Ok(()))), Warning, "max_user_namespaces=16384");
    }

    #[test]
    fn what_is_in_the_way_of_user_namespaces_is_named_whether_they_were_tried_or_not() {
        let restricted = |profile: Option<&str>| Facts {
            apparmor: Some("1".into()),
            profile: profile.map(str::to_owned),
            ..facts()
        };
        let profile = |path: &str| format!("abi <abi/4.0>,\nprofile vmsup-jailer {path} flags=(unconfined) {{\n");
        let (ours, theirs) = (profile("/usr/bin/vmsup-jailer"), profile("/usr/local/bin/vmsup-jailer"));
        for (facts, mend) in [
            (Facts { clone: Some("0".into()), ..facts() }, "unprivileged_userns_clone=1"),
            (Facts { max: Some(0), ..facts() }, "max_user_namespaces=16384"),
            (Facts { max: None, ..facts() }, "CONFIG_USER_NS"),
            (restricted(None), "make install"),
            (restricted(Some(&ours)), "sudo apparmor_parser -r /etc/apparmor.d/vmsup-jailer"),
            (restricted(Some(&theirs)), "put /usr/bin/vmsup-jailer into its place"),
        ] {
            for trial in [tried(Err("no".into())), Err("it does not run".into())] {
                assert_line(&user(&facts, &trial), Failure, mend);
            }
        }
    }

    #[test]
    fn what_no_switch_explains_is_a_sandboxs_doing_and_what_was_not_tried_is_unknown() {
        let line = user(&facts(), &tried(Err("a new user namespace: EPERM".into())));
        assert_line(&line, Failure, "outside of the container");
        assert!(line.found.contains("EPERM"), "{line:?}");
        assert_line(&user(&facts(), &Err("it does not run".into())), Unknown, "/usr/bin/vmsup-jailer try");
    }

    #[test]
    fn the_kind_of_namespace_that_there_are_fewest_of_counts() {
        assert_line(&others(&facts()), Fine, "");
        let with = |max| Facts { others: vec![("mnt", 100_000), ("net", max)], ..facts() };
        assert_line(&others(&with(8)), Warning, "user.max_net_namespaces=16384");
        assert_line(&others(&with(0)), Failure, "user.max_net_namespaces=16384");
        assert_line(&others(&Facts { others: vec![], ..facts() }), Unknown, "sysctl");
    }
}
