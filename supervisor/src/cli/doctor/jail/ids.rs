//! Subordinate ids: whether each VM can have a uid of its own.

use super::super::ids::Id;
use super::super::line::Line;
use super::super::read::{program, read};
use super::super::user::{User, free_range};
use std::path::PathBuf;

/// A program that writes id maps for users: where it is, and whether it has the privilege to.
#[derive(Debug, Clone)]
struct Mapper {
    name: &'static str,
    path: Option<PathBuf>,
    privileged: bool,
}

/// What was read.
#[derive(Debug, Clone)]
pub struct Facts {
    subuid: Option<String>,
    subgid: Option<String>,
    mappers: [Mapper; 2],
    /// This process, and so a jailer that it would start, gains nothing from what it executes.
    no_new_privs: bool,
}

impl Facts {
    /// Of this host.
    pub fn read() -> Facts {
        let status = read("/proc/self/status").unwrap_or_default();
        Facts {
            subuid: read("/etc/subuid"),
            subgid: read("/etc/subgid"),
            mappers: mappers(),
            no_new_privs: status.lines().any(|l| l.split_whitespace().eq(["NoNewPrivs:", "1"])),
        }
    }
}

fn mappers() -> [Mapper; 2] {
    ["newuidmap", "newgidmap"].map(|name| {
        let path = program(name, &[]);
        let privileged = path.as_ref().is_some_and(|p| {
            let setuid = rustix::fs::stat(p).is_ok_and(|s| s.st_mode & 0o4000 != 0 && s.st_uid == 0);
            let mut value = [0u8; 64];
            setuid || rustix::fs::getxattr(p, "security.capability", value.as_mut_slice()).is_ok_and(|n| n > 0)
        });
        Mapper { name, path, privileged }
    })
}

const ID: Id = Id::SubordinateIds;
const WHY: &str = "with a uid of its own for each VM, the kernel itself keeps VMs from each other; without, all run as you, and \
                   only their other walls hold";

/// From the tables and the programs, and at last from what came of using them; `tried` is `None` where nothing was.
pub fn line(facts: &Facts, user: &User, tried: Option<Result<(), String>>) -> Line {
    let range = |text: &Option<String>| text.as_deref().and_then(|text| user.largest_range(text));
    let (Some(uids), Some(gids)) = (range(&facts.subuid), range(&facts.subgid)) else {
        return without_range(facts, user, range(&facts.subuid).is_none(), range(&facts.subgid).is_none());
    };
    for mapper in &facts.mappers {
        let install = format!("sudo apt-get install --reinstall uidmap (it brings {})", mapper.name);
        match &mapper.path {
            None => return Line::warning(ID, format!("{} is not installed", mapper.name), WHY, install),
            Some(path) if !mapper.privileged => {
                let finding = format!("{} has neither the setuid bit nor a file capability", path.display());
                return Line::warning(ID, finding, WHY, install);
            }
            Some(_) => {}
        }
    }
    match tried {
        Some(Err(_)) if facts.no_new_privs => Line::warning(
            ID,
            "newuidmap gains no privilege in this shell, which has no_new_privs",
            WHY,
            "run vmsup from a log-in, outside of the sandbox or container that set it",
        ),
        Some(Err(why)) => Line::warning(
            ID,
            format!("a range is there and cannot be used: {why}"),
            WHY,
            "look at the range in /etc/subuid and /etc/subgid (inside of a container it must be one that the container has), and \
             at newuidmap (on a file system that is mounted nosuid it gains nothing)",
        ),
        tried => {
            let used = if tried.is_some() { ", and one was used" } else { "" };
            Line::ok(ID, format!("{} uids and gids for VMs{used}", uids.min(gids)))
        }
    }
}

fn without_range(facts: &Facts, user: &User, no_uids: bool, no_gids: bool) -> Line {
    let name = user.name_or_id();
    let (files, options) = match (no_uids, no_gids) {
        (true, true) => ("/etc/subuid and /etc/subgid", &["--add-subuids", "--add-subgids"] as &[&str]),
        (true, false) => ("/etc/subuid", &["--add-subuids"] as &[&str]),
        _ => ("/etc/subgid", &["--add-subgids"] as &[&str]),
    };
    let mend = match free_range([&facts.subuid, &facts.subgid].map(|text| text.as_deref().unwrap_or_default())) {
        Some((first, last)) => {
            let options: Vec<String> = options.iter().map(|o| format!("{o} {first}-{last}")).collect();
            format!("sudo usermod {} {name}", options.join(" "))
        }
        None => format!("free a range of 65536 ids in {files}, and give it to {name}"),
    };
    Line::warning(ID, format!("{name} has no range in {files}"), WHY, mend)
}

#[cfg(test)]
mod tests {
    use super::super::super::line::State::{Ok as Fine, Warning};
    use super::super::super::line::assert_line;
    use super::*;

    fn facts(subuid: Option<&str>, subgid: Option<&str>) -> Facts {
        let mappers = ["newuidmap", "newgidmap"].map(|name| {
            let path = Some(PathBuf::from("/usr/bin").join(name));
            Mapper { name, path, privileged: true }
        });
        Facts { subuid: subuid.map(str::to_owned), subgid: subgid.map(str::to_owned), mappers, no_new_privs: false }
    }

    fn judge(facts: &Facts) -> Line {
        line(facts, &User::anna(), Some(Ok(())))
    }

    #[test]
    fn ids_need_both_ranges() {
        let range = Some("bob:1:2\nanna:100000:65536\n");
        assert_line(&judge(&facts(range, range)), Fine, "");
        assert_line(&line(&facts(range, range), &User::anna(), None), Fine, "");
        let one = judge(&facts(range, Some("bob:1:2")));
        assert_line(&one, Warning, "usermod --add-subgids 165536-231071 anna");
        let other = judge(&facts(None, range));
        assert_line(&other, Warning, "usermod --add-subuids 165536-231071 anna");
        let both = judge(&facts(None, None));
        assert_line(&both, Warning, "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 anna");
        let taken = judge(&facts(Some("bob:100000:65536\n"), None));
        assert_line(&taken, Warning, "--add-subuids 165536-231071 --add-subgids 165536-231071");
        let all = judge(&facts(Some("bob:100000:4294867296\n"), None));
        assert_line(&all, Warning, "free a range of 65536 ids");
    }

    #[test]
    fn ids_need_both_programs_with_their_privilege() {
        let range = Some("anna:100000:65536\n");
        for broken in 0..2 {
            let mut absent = facts(range, range);
            absent.mappers[broken].path = None;
            assert_line(&judge(&absent), Warning, "uidmap");
            let mut plain = facts(range, range);
            plain.mappers[broken].privileged = false;
            assert_line(&judge(&plain), Warning, "uidmap");
        }
    }

    #[test]
    fn a_range_that_cannot_be_used_is_a_warning_with_what_is_in_the_way() {
        let range = Some("anna:100000:65536\n");
        let tried = || Some(Err("newuidmap: write to uid_map failed".to_owned()));
        let refused = line(&facts(range, range), &User::anna(), tried());
        assert_line(&refused, Warning, "nosuid");
        assert!(refused.found.contains("uid_map failed"), "{refused:?}");
        let bound = Facts { no_new_privs: true, ..facts(range, range) };
        assert_line(&line(&bound, &User::anna(), tried()), Warning, "log-in");
        // One that is used all the same is used.
        assert_line(&line(&bound, &User::anna(), Some(Ok(()))), Fine, "");
    }
}
