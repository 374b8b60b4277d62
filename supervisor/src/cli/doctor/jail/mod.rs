//! What a jail is made of: namespaces, subordinate ids, landlock, seccomp, the worker's policies, cgroups.

mod cgroups;
mod ids;
mod namespaces;
mod trial;

use super::ids::Id;
use super::line::Line;
use super::read::read;
use super::supervisor::Supervisor;
use super::user::User;
use crate::cli::documents::VERSION;
use std::path::Path;
use trial::{Trial, trial};

/// The least landlock ABI that a worker starts with.
const LANDLOCK_FLOOR: i32 = 2;

/// All lines of this group.
pub fn lines(user: &User, supervisor: &Supervisor) -> Vec<Line> {
    let jailer = vmsup::paths::program_dir().unwrap_or_default().join("vmsup-jailer");
    let tried = trial(&jailer);
    let namespaces = namespaces::Facts::read(&jailer);
    let section = policy_section(&tried, &jailer);
    vec![
        namespaces::user(&namespaces, &tried),
        namespaces::others(&namespaces),
        ids::line(&ids::Facts::read(), user, tried.ok().and_then(|trial| trial.subordinate)),
        landlock(policies::apply::landlock_abi()),
        seccomp(read("/proc/sys/kernel/seccomp/actions_avail").as_deref()),
        section,
        cgroups::line(&cgroups::Facts::read(user), supervisor.as_ref().ok().map(|s| &s.version)),
    ]
}

fn landlock(abi: i32) -> Line {
    if abi >= LANDLOCK_FLOOR {
        return Line::ok(Id::Landlock, format!("ABI {abi}"));
    }
    let finding = if abi == 0 { "not available".to_owned() } else { format!("only ABI {abi}") };
    Line::failure(
        Id::Landlock,
        finding,
        format!("a worker that cannot deny itself every file refuses to run; ABI {LANDLOCK_FLOOR} is the least"),
        "use Linux 5.19 or later, and boot it with landlock in its list of security modules (lsm=landlock,...)",
    )
}

fn seccomp(actions: Option<&str>) -> Line {
    match actions {
        Some(actions) if actions.split_whitespace().any(|a| a == "kill_process") => Line::ok(Id::Seccomp, "available"),
        _ => Line::failure(
            Id::Seccomp,
            "the kernel cannot kill a process at a forbidden system call",
            "every process of vmsup runs under such a filter",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        ),
    }
}

/// Whether the jailer would run the worker's program beside it: what it says itself.
fn policy_section(tried: &Result<Trial, String>, jailer: &Path) -> Line {
    const ID: Id = Id::PolicySection;
    const WHY: &str = "the jailer runs no program in a worker's place that was built from other policies than itself";
    let install = || {
        let dir = jailer.parent().unwrap_or(Path::new("."));
        format!("install all programs of vmsup {VERSION} side by side in {}", dir.display())
    };
    let untold = match tried {
        Ok(Trial { section: Some(Ok(())), .. }) => {
            return Line::ok(ID, "the jailer and the worker's program were built from the same policies");
        }
        Ok(Trial { section: Some(Err(why)), .. }) => return Line::failure(ID, why.clone(), WHY, install()),
        Ok(Trial { section: None, .. }) => "the jailer does not look at it; it is of another release",
        Err(untried) => untried.as_str(),
    };
    Line::unknown(ID, format!("not looked at: {untold}"), WHY, install())
}

#[cfg(test)]
mod tests {
    use super::super::line::State::{Failure, Ok as Fine, Unknown};
    use super::super::line::assert_line;
    use super::*;

    #[test]
    fn landlock_has_a_floor() {
        assert_line(&landlock(2), Fine, "");
        assert_line(&landlock(1), Failure, "5.19");
        assert_line(&landlock(0), Failure, "lsm=landlock");
    }

    #[test]
    fn the_workers_program_is_to_be_of_the_jailers_policies() {
        let line = |section| {
            let tried = Ok(Trial { own: Ok(()), subordinate: None, section });
            policy_section(&tried, Path::new("/opt/bin/vmsup-jailer"))
        };
        assert_line(&line(Some(Ok(()))), Fine, "");
        assert_line(&line(Some(Err("/opt/bin/vmsup-worker is refused: it has none".into()))), Failure, "in /opt/bin");
        assert_line(&line(None), Unknown, "side by side");
        let untried = policy_section(&Err("it does not run".into()), Path::new("/opt/bin/vmsup-jailer"));
        assert!(untried.found.contains("it does not run"));
        assert_line(&untried, Unknown, "");
    }

    #[test]
    fn seccomp_must_be_able_to_kill() {
        assert_line(&seccomp(Some("kill_process kill_thread trap errno")), Fine, "");
        assert_line(&seccomp(Some("kill_thread")), Failure, "CONFIG_SECCOMP_FILTER");
        assert_line(&seccomp(None), Failure, "CONFIG_SECCOMP_FILTER");
    }
}
