//! What a jail is made of: namespaces, subordinate ids, landlock, seccomp, cgroups.

mod cgroups;
mod ids;
mod namespaces;
mod trial;

use super::ids::Id;
use super::line::Line;
use super::read::read;
use super::supervisor::Supervisor;
use super::user::User;
use trial::{Trial, trial};

/// The least landlock ABI that a worker starts with.
const LANDLOCK_FLOOR: i32 = 2;

/// All lines of this group.
pub fn lines(user: &User, supervisor: &Supervisor) -> Vec<Line> {
    let jailer = vmsup::paths::program_dir().unwrap_or_default().join("vmsup-jailer");
    let tried = trial(&jailer);
    let namespaces = namespaces::Facts::read(&jailer);
    vec![
        namespaces::user(&namespaces, &tried),
        namespaces::others(&namespaces),
        ids::line(&ids::Facts::read(), user, tried.ok().and_then(|trial| trial.subordinate)),
        landlock(policies::apply::landlock_abi()),
        seccomp(read("/proc/sys/kernel/seccomp/actions_avail").as_deref()),
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

#[cfg(test)]
mod tests {
    use super::super::line::State::{Failure, Ok as Fine};
    use super::super::line::assert_line;
    use super::*;

    #[test]
    fn landlock_has_a_floor() {
        assert_line(&landlock(2), Fine, "");
        assert_line(&landlock(1), Failure, "5.19");
        assert_line(&landlock(0), Failure, "lsm=landlock");
    }

    #[test]
    fn seccomp_must_be_able_to_kill() {
        assert_line(&seccomp(Some("kill_process kill_thread trap errno")), Fine, "");
        assert_line(&seccomp(Some("kill_thread")), Failure, "CONFIG_SECCOMP_FILTER");
        assert_line(&seccomp(None), Failure, "CONFIG_SECCOMP_FILTER");
    }
}
