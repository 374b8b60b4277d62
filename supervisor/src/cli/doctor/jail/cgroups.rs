//! Cgroups: whether the `limits` of VMs can be held.

use super::super::ids::Id;
use super::super::line::{Line, State};
use super::super::read::read;
use super::super::units::{Scope, installed};
use super::super::user::User;
use std::path::Path;
use vmsup::api::types::VersionInfo;

/// What holds limits.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// What was read.
#[derive(Debug, Default, Clone)]
pub struct Facts {
    /// The controllers of cgroup v2 at its root; none where it is not mounted there.
    root: Option<String>,
    /// It is mounted beside version 1, which then has the controllers.
    hybrid: bool,
    /// The controllers that the user's service manager was given, where there is one.
    user_manager: Option<String>,
    /// The system's manager keeps the jailer of this user: in a unit with a delegated cgroup.
    system_unit: bool,
}

impl Facts {
    /// Of this host.
    pub fn read(user: &User) -> Facts {
        let uid = user.uid;
        let manager = format!("/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service/cgroup.controllers");
        Facts {
            root: read("/sys/fs/cgroup/cgroup.controllers"),
            hybrid: Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists(),
            user_manager: read(manager),
            system_unit: Scope::of_this_user() == Scope::System && installed(Scope::System, "vmsup-jailer.service"),
        }
    }
}

const ID: Id = Id::Cgroups;
const WHY: &str = "the \"limits\" of a VM are held by cgroups; without them a VM with limits is refused, or runs unlimited where it \
                   says \"enforce\": \"best-effort\"";
const LOGIN: &str = "log in with a user service manager (loginctl enable-linger, systemd 244 or later), or name a delegated \
                     cgroup: vmsup serve --cgroup DIR";

/// What the running jailer says, else what can be expected of the next one. What is in the way is told in the same words,
/// whether a jailer runs or not; only where nothing is, the jailer's reason stands alone.
pub fn line(facts: &Facts, supervisor: Option<&VersionInfo>) -> Line {
    let Some(jailer) = supervisor.map(|s| &s.jailer) else { return expected(facts) };
    if let Some(path) = &jailer.cgroup {
        return Line::ok(ID, format!("limits are held, each VM's in a cgroup of its own below {path}"));
    }
    let reason = jailer.cgroup_reason.as_deref().unwrap_or("the jailer does not say why");
    let expected = expected(facts);
    match expected.state {
        State::Ok => Line::warning(ID, format!("limits cannot be held: {reason}"), WHY, LOGIN),
        _ => Line { why: format!("{WHY} (the running jailer says: {reason})"), ..expected },
    }
}

fn expected(facts: &Facts) -> Line {
    let Some(root) = &facts.root else {
        let beside = if facts.hybrid { " (it is beside version 1, which has the controllers)" } else { "" };
        let found = format!("limits cannot be held: no cgroup v2 in /sys/fs/cgroup{beside}");
        return Line::warning(ID, found, WHY, "boot with systemd.unified_cgroup_hierarchy=1");
    };
    let without = |controllers: &str| {
        let has = |name: &str| controllers.split_whitespace().any(|c| c == name);
        CONTROLLERS.into_iter().filter(|c| !has(c)).collect::<Vec<_>>()
    };
    let missing = without(root);
    if !missing.is_empty() {
        let found = format!("limits cannot be held: this kernel's cgroup v2 has no {}", missing.join(", no "));
        let mend =
            "take cgroup_disable= and systemd.unified_cgroup_hierarchy=0 from the kernel's command line, and reboot";
        return Line::warning(ID, found, WHY, mend);
    }
    if facts.system_unit {
        return Line::ok(ID, "limits can be held: below vmsup-jailer.service, whose cgroup is delegated");
    }
    let Some(delegated) = &facts.user_manager else {
        let finding = "limits cannot be held: no user service manager that would delegate a cgroup";
        return Line::warning(ID, finding, WHY, LOGIN);
    };
    let missing = without(delegated);
    if missing.is_empty() {
        return Line::ok(
            ID,
            "limits can be held: memory, pids and cpu are delegated to this user, whose service manager gives the jailer a scope",
        );
    }
    Line::warning(
        ID,
        format!("limits cannot be held: not delegated to this user: {}", missing.join(", ")),
        WHY,
        "sudo systemctl edit user@.service, add [Service] Delegate=cpu memory pids, then log in again",
    )
}

#[cfg(test)]
mod tests {
    use super::super::super::line::State::{Ok as Fine, Warning};
    use super::super::super::line::assert_line;
    use super::*;

    fn version(cgroup: Option<&str>) -> VersionInfo {
        VersionInfo {
            version: "1".into(),
            pid: 1,
            uid: 1,
            files: None,
            jailer: vmsup::api::types::JailerInfo {
                pid: Some(2),
                uids: "own".into(),
                cgroup: cgroup.map(Into::into),
                cgroup_reason: Some("no user manager".into()),
                pool: 0,
            },
        }
    }

    fn facts(user_manager: Option<&str>) -> Facts {
        Facts {
            root: Some("cpuset cpu io memory pids".into()),
            user_manager: user_manager.map(str::to_owned),
            ..Facts::default()
        }
    }

    #[test]
    fn a_running_jailer_knows_best() {
        assert_line(&line(&Facts::default(), Some(&version(Some("/x")))), Fine, "");
        let without = line(&facts(Some("cpu memory pids")), Some(&version(None)));
        assert_line(&without, Warning, "linger");
        assert!(without.found.contains("no user manager"), "{without:?}");
        for facts in [Facts::default(), facts(None), facts(Some("memory pids"))] {
            let (with, without) = (line(&facts, Some(&version(None))), line(&facts, None));
            assert_eq!((&with.found, &with.mend), (&without.found, &without.mend));
            assert!(with.why.contains("no user manager"), "{with:?}");
        }
    }

    #[test]
    fn without_a_jailer_it_counts_what_is_delegated() {
        assert_line(&line(&Facts::default(), None), Warning, "unified_cgroup_hierarchy");
        let hybrid = line(&Facts { hybrid: true, ..Facts::default() }, None);
        assert!(hybrid.found.contains("beside version 1"), "{hybrid:?}");
        let disabled = Facts { root: Some("cpu pids".into()), ..facts(Some("cpu memory pids")) };
        assert_line(&line(&disabled, None), Warning, "cgroup_disable=");
        assert_line(&line(&facts(None), None), Warning, "linger");
        assert_line(&line(&facts(Some("memory pids")), None), Warning, "Delegate=");
        assert_line(&line(&facts(Some("cpuset cpu io memory pids")), None), Fine, "");
        let unit = line(&Facts { system_unit: true, ..facts(None) }, None);
        assert_line(&unit, Fine, "");
        assert!(unit.found.contains("vmsup-jailer.service"), "{unit:?}");
    }
}
