//! What a jail is made of: user namespaces, subordinate ids, landlock, seccomp, cgroups.

use super::install::{self, User};
use super::{Check, Level, read};
use std::path::{Path, PathBuf};
use vmsup::api::types::VersionInfo;

/// The least landlock ABI that a worker starts with.
const LANDLOCK_FLOOR: i32 = 2;
/// As many user namespaces as a small host needs at once.
const NAMESPACES_LOW: u64 = 64;

/// All checks of this file.
pub fn checks(user: &User, supervisor: Option<&VersionInfo>) -> Vec<Check> {
    let actions = read("/proc/sys/kernel/seccomp/actions_avail");
    vec![
        namespaces(
            read("/proc/sys/user/max_user_namespaces").as_deref(),
            read("/proc/sys/kernel/unprivileged_userns_clone").as_deref(),
            read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref(),
        ),
        ids(user, read("/etc/subuid").as_deref(), read("/etc/subgid").as_deref(), &mappers()),
        landlock(policies::apply::landlock_abi()),
        seccomp(actions.as_deref()),
        cgroups(supervisor, Path::new("/sys/fs/cgroup/cgroup.controllers").exists(), delegated(user).as_deref()),
    ]
}

/// User namespaces, from three sysctls of which only the first is everywhere.
fn namespaces(max: Option<&str>, clone: Option<&str>, apparmor: Option<&str>) -> Check {
    const NAME: &str = "user namespaces";
    const WHY: &str = "each VM's process is jailed in a user namespace, which must be possible without root";
    let max = max.and_then(|m| m.parse::<u64>().ok());
    if clone == Some("0") {
        return Check::failure(
            NAME,
            "switched off for users (kernel.unprivileged_userns_clone is 0)",
            WHY,
            "echo kernel.unprivileged_userns_clone=1 | sudo tee /etc/sysctl.d/60-userns.conf; sudo sysctl --system",
        );
    }
    let raise = "echo user.max_user_namespaces=16384 | sudo tee /etc/sysctl.d/60-userns.conf; sudo sysctl --system";
    match max {
        None => Check::failure(NAME, "this kernel has none", WHY, "use a kernel with CONFIG_USER_NS"),
        Some(0) => Check::failure(NAME, "switched off (user.max_user_namespaces is 0)", WHY, raise),
        Some(max) if max < NAMESPACES_LOW => {
            Check::warning(NAME, format!("only {max} at once"), "each VM needs one", raise)
        }
        Some(_) if apparmor == Some("1") => Check::warning(
            NAME,
            "AppArmor restricts them to programs with a profile (apparmor_restrict_unprivileged_userns is 1)",
            WHY,
            "install vmsup's AppArmor profile, or sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        Some(max) => Check::ok(NAME, format!("available, at most {max}")),
    }
}

/// A program that writes id maps for users: where it is, and whether it has the privilege to.
#[derive(Debug)]
struct Mapper {
    name: &'static str,
    path: Option<PathBuf>,
    privileged: bool,
}

fn mappers() -> [Mapper; 2] {
    ["newuidmap", "newgidmap"].map(|name| {
        let search = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::split_paths(&search).map(|dir| dir.join(name)).find(|p| p.is_file());
        let privileged = path.as_ref().is_some_and(|p| {
            let setuid = rustix::fs::stat(p).is_ok_and(|s| s.st_mode & 0o4000 != 0 && s.st_uid == 0);
            let mut value = [0u8; 64];
            setuid || rustix::fs::getxattr(p, "security.capability", value.as_mut_slice()).is_ok_and(|n| n > 0)
        });
        Mapper { name, path, privileged }
    })
}

/// Whether each VM can have a uid of its own.
fn ids(user: &User, subuid: Option<&str>, subgid: Option<&str>, mappers: &[Mapper; 2]) -> Check {
    const NAME: &str = "subordinate ids";
    const WHY: &str = "with a uid of its own for each VM, the kernel itself keeps VMs from each other; without, all run \
                       as you, and only their other walls hold";
    let range = |text: Option<&str>| text.and_then(|text| user.largest_range(text));
    let name = user.name_or_id();
    let (uids, gids) = match (range(subuid), range(subgid)) {
        (Some(uids), Some(gids)) => (uids, gids),
        (uids, gids) => {
            let (files, options) = match (uids, gids) {
                (None, None) => ("/etc/subuid and /etc/subgid", &["--add-subuids", "--add-subgids"] as &[&str]),
                (None, _) => ("/etc/subuid", &["--add-subuids"] as &[&str]),
                _ => ("/etc/subgid", &["--add-subgids"] as &[&str]),
            };
            let fix = match install::free_range([subuid, subgid].map(Option::unwrap_or_default)) {
                Some((first, last)) => {
                    let options: Vec<String> = options.iter().map(|o| format!("{o} {first}-{last}")).collect();
                    format!("sudo usermod {} {name}", options.join(" "))
                }
                None => format!("free a range of 65536 ids in {files}, and give it to {name}"),
            };
            return Check::warning(NAME, format!("{name} has no range in {files}"), WHY, fix);
        }
    };
    for mapper in mappers {
        let install = format!("sudo apt-get install --reinstall uidmap (it brings {})", mapper.name);
        match &mapper.path {
            None => return Check::warning(NAME, format!("{} is not installed", mapper.name), WHY, install),
            Some(path) if !mapper.privileged => {
                let finding = format!("{} has neither the setuid bit nor a file capability", path.display());
                return Check::warning(NAME, finding, WHY, install);
            }
            Some(_) => {}
        }
    }
    Check::ok(NAME, format!("{} uids and gids for VMs", uids.min(gids)))
}

fn landlock(abi: i32) -> Check {
    const NAME: &str = "landlock";
    if abi >= LANDLOCK_FLOOR {
        return Check::ok(NAME, format!("ABI {abi}"));
    }
    let finding = if abi == 0 { "not available".to_owned() } else { format!("only ABI {abi}") };
    Check::failure(
        NAME,
        finding,
        format!("a worker that cannot deny itself every file refuses to run; ABI {LANDLOCK_FLOOR} is the least"),
        "use Linux 5.19 or later, and boot it with landlock in its list of security modules (lsm=landlock,...)",
    )
}

fn seccomp(actions: Option<&str>) -> Check {
    const NAME: &str = "seccomp";
    match actions {
        Some(actions) if actions.split_whitespace().any(|a| a == "kill_process") => Check::ok(NAME, "available"),
        _ => Check::failure(
            NAME,
            "the kernel cannot kill a process at a forbidden system call",
            "every process of vmsup runs under such a filter",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        ),
    }
}

/// The controllers that the user's service manager was given, where there is one.
fn delegated(user: &User) -> Option<String> {
    let uid = user.uid;
    read(&format!("/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service/cgroup.controllers"))
}

/// Whether `limits` can be held: what the running jailer says, else what can be expected of the next one. What is in the
/// way is told in the same words, whether a jailer runs or not; only where nothing is, the jailer's reason stands alone.
fn cgroups(supervisor: Option<&VersionInfo>, v2: bool, delegated: Option<&str>) -> Check {
    const NAME: &str = "cgroups";
    const WHY: &str = "the \"limits\" of a VM are held by cgroups; without them a VM with limits is refused, or runs \
                       unlimited where it says \"enforce\": \"best-effort\"";
    let login = "log in with a user service manager (loginctl enable-linger, systemd 244 or later), or name a delegated cgroup: vmsup serve --cgroup DIR";
    if let Some(jailer) = supervisor.map(|s| &s.jailer) {
        if let Some(path) = &jailer.cgroup {
            return Check::ok(NAME, format!("limits are held in {path}"));
        }
        let reason = jailer.cgroup_reason.as_deref().unwrap_or("the jailer does not say why");
        let expected = cgroups(None, v2, delegated);
        return match expected.result {
            Level::Ok => Check::warning(NAME, format!("limits cannot be held: {reason}"), WHY, login),
            _ => Check { why: format!("{WHY} (the running jailer says: {reason})"), ..expected },
        };
    }
    if !v2 {
        let fix = "boot with systemd.unified_cgroup_hierarchy=1";
        return Check::warning(NAME, "limits cannot be held: no cgroup v2 in /sys/fs/cgroup", WHY, fix);
    }
    let Some(delegated) = delegated else {
        let finding = "limits cannot be held: no user service manager that would delegate a cgroup";
        return Check::warning(NAME, finding, WHY, login);
    };
    let missing: Vec<&str> =
        ["memory", "pids", "cpu"].into_iter().filter(|c| !delegated.split_whitespace().any(|d| d == *c)).collect();
    if missing.is_empty() {
        return Check::ok(NAME, "limits can be held: memory, pids and cpu are delegated to this user");
    }
    Check::warning(
        NAME,
        format!("limits cannot be held: not delegated to this user: {}", missing.join(", ")),
        WHY,
        "sudo systemctl edit user@.service, add [Service] Delegate=cpu memory pids, then log in again",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Level::{Failure, Ok, Warning};
    use super::*;

    fn user() -> User {
        User { uid: 1000, name: Some("anna".into()), groups: vec![] }
    }

    fn mappers_that(installed: bool, privileged: bool) -> [Mapper; 2] {
        let path = || installed.then(|| PathBuf::from("/usr/bin/newuidmap"));
        ["newuidmap", "newgidmap"].map(|name| Mapper { name, path: path(), privileged })
    }

    #[track_caller]
    fn assert_check(check: &Check, level: Level, fix: &str) {
        assert_eq!(check.result, level, "{check:?}");
        assert!(check.fix.contains(fix), "{check:?}");
        assert_eq!(level == Ok, check.why.is_empty(), "{check:?}");
    }

    #[test]
    fn user_namespaces_that_are_off_are_seen() {
        assert_check(&namespaces(Some("100000"), Some("1"), None), Ok, "");
        assert_check(&namespaces(Some("100000"), Some("0"), None), Failure, "unprivileged_userns_clone=1");
        assert_check(&namespaces(Some("0"), None, None), Failure, "max_user_namespaces=16384");
        assert_check(&namespaces(Some("3"), None, None), Warning, "max_user_namespaces=16384");
        assert_check(&namespaces(None, None, None), Failure, "CONFIG_USER_NS");
        assert_check(&namespaces(Some("100000"), None, Some("1")), Warning, "AppArmor");
    }

    #[test]
    fn ids_need_both_ranges_and_both_programs() {
        let range = Some("bob:1:2\nanna:100000:65536\n");
        assert_check(&ids(&user(), range, range, &mappers_that(true, true)), Ok, "");
        assert_check(
            &ids(&user(), range, Some("bob:1:2"), &mappers_that(true, true)),
            Warning,
            "usermod --add-subgids 165536-231071 anna",
        );
        assert_check(
            &ids(&user(), None, None, &mappers_that(true, true)),
            Warning,
            "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 anna",
        );
        let taken = Some("bob:100000:65536\n");
        assert_check(
            &ids(&user(), taken, None, &mappers_that(true, true)),
            Warning,
            "--add-subuids 165536-231071 --add-subgids 165536-231071",
        );
        assert_check(&ids(&user(), range, range, &mappers_that(false, false)), Warning, "uidmap");
        assert_check(&ids(&user(), range, range, &mappers_that(true, false)), Warning, "uidmap");
    }

    #[test]
    fn landlock_has_a_floor() {
        assert_check(&landlock(2), Ok, "");
        assert_check(&landlock(1), Failure, "5.19");
        assert_check(&landlock(0), Failure, "lsm=landlock");
    }

    #[test]
    fn seccomp_must_be_able_to_kill() {
        assert_check(&seccomp(Some("kill_process kill_thread trap errno")), Ok, "");
        assert_check(&seccomp(Some("kill_thread")), Failure, "CONFIG_SECCOMP_FILTER");
        assert_check(&seccomp(None), Failure, "CONFIG_SECCOMP_FILTER");
    }

    #[test]
    fn cgroups_are_what_the_jailer_says_or_what_is_delegated() {
        let version = |cgroup: Option<&str>| VersionInfo {
            files: None,
            version: "1".into(),
            pid: 1,
            uid: 1,
            jailer: vmsup::api::types::JailerInfo {
                pid: Some(2),
                uids: "own".into(),
                cgroup: cgroup.map(Into::into),
                cgroup_reason: Some("no user manager".into()),
                pool: 0,
            },
        };
        assert_check(&cgroups(Some(&version(Some("/x"))), false, None), Ok, "");
        let without = cgroups(Some(&version(None)), true, Some("cpu memory pids"));
        assert_check(&without, Warning, "linger");
        assert!(without.finding.contains("no user manager"), "{without:?}");
        for (v2, delegated) in [(false, None), (true, None), (true, Some("memory pids"))] {
            let (with, without) = (cgroups(Some(&version(None)), v2, delegated), cgroups(None, v2, delegated));
            assert_eq!((&with.finding, &with.fix), (&without.finding, &without.fix));
            assert!(with.why.contains("no user manager"), "{with:?}");
        }
        assert_check(&cgroups(None, false, None), Warning, "unified_cgroup_hierarchy");
        assert_check(&cgroups(None, true, None), Warning, "linger");
        assert_check(&cgroups(None, true, Some("memory pids")), Warning, "Delegate=");
        assert_check(&cgroups(None, true, Some("cpuset cpu io memory pids")), Ok, "");
    }
}
