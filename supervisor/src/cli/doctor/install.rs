//! The user, the programs of this release, the supervisor, its directory, and memory.

use super::super::documents::VERSION;
use super::{Check, read};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use vmsup::api::types::VersionInfo;

/// Less memory than this makes a warning, MiB.
const MEMORY_LOW_MIB: u64 = 256;

/// Who asks.
#[derive(Debug, Clone)]
pub struct User {
    /// Uid.
    pub uid: u32,
    /// Name, where /etc/passwd has one (a static program cannot ask other sources).
    pub name: Option<String>,
    /// The groups of this host: name, gid.
    pub groups: Vec<(String, u32)>,
}

impl User {
    /// The user of this process.
    pub fn current() -> User {
        let uid = rustix::process::getuid().as_raw();
        let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
        let table = |path: &str| read(path).unwrap_or_default().lines().map(fields).collect::<Vec<_>>();
        let id = |row: &[String]| row.get(2).and_then(|id| id.parse::<u32>().ok());
        let name = table("/etc/passwd").into_iter().find(|row| id(row) == Some(uid)).map(|row| row[0].clone());
        let groups = table("/etc/group").into_iter().filter_map(|row| Some((row[0].clone(), id(&row)?))).collect();
        User { uid, name, groups }
    }

    /// The gid of a group.
    pub fn group_id(&self, name: &str) -> Option<u32> {
        self.groups.iter().find(|(n, _)| n == name).map(|(_, gid)| *gid)
    }

    /// For commands: the name, or the uid where there is none.
    pub fn name_or_id(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.uid.to_string())
    }

    /// The length of this user's largest range in the text of /etc/subuid or /etc/subgid.
    pub fn largest_range(&self, text: &str) -> Option<u32> {
        let id = self.uid.to_string();
        text.lines()
            .filter_map(|line| {
                let mut fields = line.trim().split(':');
                let who = fields.next()?;
                let mine = Some(who) == self.name.as_deref() || who == id;
                let _first: u32 = fields.next()?.parse().ok()?;
                let count: u32 = fields.next()?.parse().ok()?;
                (mine && count > 0).then_some(count)
            })
            .max()
    }
}

/// How many subordinate ids a user is given, as `useradd` does.
const RANGE: u32 = 65536;
/// Where the ids of `useradd` begin.
const RANGE_FIRST: u32 = 100_000;

/// The first range of [`RANGE`] ids that no line of these tables (/etc/subuid and /etc/subgid) touches: first and last.
pub fn free_range(tables: [&str; 2]) -> Option<(u32, u32)> {
    let taken = |line: &str| {
        let mut fields = line.trim().split(':').skip(1);
        let first: u64 = fields.next()?.trim().parse().ok()?;
        let count: u64 = fields.next()?.trim().parse().ok()?;
        (count > 0).then(|| (first, first.saturating_add(count)))
    };
    let mut ranges: Vec<(u64, u64)> = tables.iter().flat_map(|table| table.lines().filter_map(taken)).collect();
    ranges.sort_unstable();
    let mut first = u64::from(RANGE_FIRST);
    for (start, end) in ranges {
        if start >= first + u64::from(RANGE) {
            break;
        }
        first = first.max(end);
    }
    // The last id of all, u32::MAX, means "none" to the kernel.
    let last = first.checked_add(u64::from(RANGE) - 1).filter(|last| *last < u64::from(u32::MAX))?;
    Some((u32::try_from(first).ok()?, u32::try_from(last).ok()?))
}

/// All checks of this file.
pub fn checks(user: &User, socket: &Path, supervisor: &io::Result<VersionInfo>) -> Vec<Check> {
    let mut checks = Vec::new();
    if user.uid == 0 {
        checks.push(Check::warning(
            "user",
            "you are root",
            "vmsup needs no root: as root, what breaks out of a supervisor or jailer has the whole host",
            "run vmsup as a user of its own: sudo useradd --create-home --groups kvm NAME",
        ));
    }
    checks.push(programs());
    checks.push(running(supervisor, socket));
    checks.push(directory(user));
    checks.push(memory(read("/proc/meminfo").as_deref().unwrap_or_default()));
    checks
}

/// What a program beside us is.
#[derive(Debug, PartialEq, Eq)]
enum Program {
    Missing,
    /// It runs, and says this of itself.
    Says(String),
    /// It is there and does not say its release; the handshake of its first connection will compare.
    Silent,
}

fn programs() -> Check {
    let Ok(dir) = vmsup::paths::program_dir() else {
        return Check::warning(
            "programs",
            "our own executable cannot be found",
            "the others are looked for beside it",
            "",
        );
    };
    let look = |name: &str| {
        let path = dir.join(name);
        if rustix::fs::access(&path, rustix::fs::Access::EXEC_OK).is_err() {
            return Program::Missing;
        }
        let said = Command::new(&path).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
        match said
            .ok()
            .and_then(|o| String::from_utf8(o.stdout).ok())
            .and_then(|text| text.lines().next().map(str::to_owned))
        {
            Some(first) if first.starts_with(name) => Program::Says(first),
            _ => Program::Silent,
        }
    };
    judge_programs(&dir, &["vmsup-jailer", "vmsup-worker", "vmsup-netd"].map(|name| (name, look(name))))
}

fn judge_programs(dir: &Path, found: &[(&str, Program)]) -> Check {
    const NAME: &str = "programs";
    let install = format!("install all programs of vmsup {VERSION} side by side in {}", dir.display());
    for (name, program) in found {
        match program {
            // Started by root, from wherever root has it; whether one runs is seen by who answers (`netd`).
            Program::Missing if *name == "vmsup-netd" => {}
            Program::Missing => {
                let why = "the supervisor starts it from there";
                return Check::failure(NAME, format!("{name} is not in {}", dir.display()), why, install);
            }
            Program::Says(what) if what != &format!("{name} {VERSION}") => {
                let why = "programs of two releases refuse each other";
                return Check::failure(NAME, format!("{what}, and this is vmsup {VERSION}"), why, install);
            }
            Program::Says(_) | Program::Silent => {}
        }
    }
    let netd = match found.iter().any(|(name, program)| *name == "vmsup-netd" && *program == Program::Missing) {
        true => " but vmsup-netd, which only networks need",
        false => "",
    };
    Check::ok(NAME, format!("all of vmsup {VERSION} are in {}{netd}", dir.display()))
}

fn running(supervisor: &io::Result<VersionInfo>, socket: &Path) -> Check {
    const NAME: &str = "supervisor";
    let socket = socket.display();
    match supervisor {
        Ok(info) if info.version != VERSION => Check::warning(
            NAME,
            format!("one of release {} runs (pid {}), and this is {VERSION}", info.version, info.pid),
            "requests of this release may be refused",
            format!("kill {} (its VMs go on); the next command starts one of this release", info.pid),
        ),
        Ok(info) if info.jailer.pid.is_none() => Check::failure(
            NAME,
            format!("runs (pid {}), but its jailer is gone", info.pid),
            "it cannot start another VM; the running ones go on",
            format!("kill {} (its VMs go on); the next command starts a supervisor with a jailer", info.pid),
        ),
        Ok(info) => {
            let uids = match info.jailer.uids.as_str() {
                "subordinate" => "each VM has a uid of its own",
                _ => "all VMs have your uid",
            };
            Check::ok(
                NAME,
                format!("answers on {socket} (pid {}); {uids}; {} warm workers", info.pid, info.jailer.pool),
            )
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Check::ok(NAME, "none runs; the next command starts one")
        }
        Err(e) => Check::failure(
            NAME,
            format!("cannot be reached on {socket} ({e})"),
            "all commands about VMs go through it",
            format!("see {}, then end it and try again", vmsup::paths::log_file().display()),
        ),
    }
}

/// The runtime directory: whose it is, and how long it stays.
fn directory(user: &User) -> Check {
    let dir = vmsup::paths::runtime_dir();
    let found = std::fs::symlink_metadata(&dir).ok().map(|m| (m.uid(), m.mode()));
    let linger = user.name.as_ref().is_some_and(|name| Path::new("/var/lib/systemd/linger").join(name).exists());
    let per_login =
        std::env::var_os("XDG_RUNTIME_DIR").is_some_and(|x| dir.starts_with(x) && dir.starts_with("/run/user"));
    judge_directory(&dir, found, user, per_login && !linger)
}

fn judge_directory(dir: &Path, found: Option<(u32, u32)>, user: &User, vanishes: bool) -> Check {
    const NAME: &str = "runtime directory";
    const DIRECTORY: u32 = 0o040_000;
    let shown = dir.display();
    match found {
        Some((uid, mode)) if uid != user.uid || mode & 0o170_000 != DIRECTORY || mode & 0o077 != 0 => Check::failure(
            NAME,
            format!("{shown} is not a directory of this user alone"),
            "who can write there can pose as your supervisor, so it is refused",
            format!("remove {shown}, or set XDG_RUNTIME_DIR to a directory of your own"),
        ),
        _ if vanishes => Check::warning(
            NAME,
            format!("{shown} is removed when you log out"),
            "your VMs end with your last session",
            format!("sudo loginctl enable-linger {}", user.name_or_id()),
        ),
        _ => Check::ok(NAME, format!("{shown}")),
    }
}

fn memory(meminfo: &str) -> Check {
    const NAME: &str = "memory";
    let field = |name: &str| -> Option<u64> {
        let value = meminfo.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        Some(value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024)
    };
    match (field("MemAvailable"), field("MemTotal")) {
        (Some(free), Some(all)) if free < MEMORY_LOW_MIB => Check::warning(
            NAME,
            format!("{free} MiB of {all} MiB available"),
            "a guest's memory is taken when the guest uses it; a host without memory kills processes",
            "free some memory, or start smaller VMs",
        ),
        (Some(free), Some(all)) => Check::ok(NAME, format!("{free} MiB of {all} MiB available")),
        _ => Check::warning(
            NAME,
            "/proc/meminfo cannot be read",
            "VMs are compared with the host's memory",
            "mount /proc",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level::{Failure, Ok as Fine, Warning};
    use super::*;

    fn user() -> User {
        User { uid: 1000, name: Some("anna".into()), groups: vec![] }
    }

    #[test]
    fn the_largest_range_of_the_user_counts() {
        let text = "bob:1:99999\nanna:100000:10\n1000:200000:65536\nanna:x:9\nanna:1\n\n";
        assert_eq!(user().largest_range(text), Some(65536));
        assert_eq!(user().largest_range("annabell:1:65536\nanna:5:0"), None);
    }

    #[test]
    fn a_free_range_touches_nobodys() {
        assert_eq!(free_range(["", ""]), Some((100_000, 165_535)));
        assert_eq!(free_range(["bob:1:99999\n", ""]), Some((100_000, 165_535)));
        assert_eq!(free_range(["bob:100000:65536\n", "eve:165536:65536\n"]), Some((231_072, 296_607)));
        // Out of order, in both files, with a gap that is one id too small and one that fits.
        let uids = "c:400000:65536\na:100000:10\n# none\nx:y:z\ne:100:0\n";
        assert_eq!(free_range([uids, "b:165545:10\n"]), Some((165_555, 231_090)));
        assert_eq!(free_range([uids, "b:165546:10\n"]), Some((100_010, 165_545)));
        assert_eq!(free_range(["bob:100000:4294867296\n", ""]), None);
        assert_eq!(free_range(["bob:5:18446744073709551615\n", ""]), None);
    }

    #[test]
    fn a_missing_or_foreign_program_is_a_failure() {
        let dir = Path::new("/opt/bin");
        let says = |name: &str, version: &str| Program::Says(format!("{name} {version}"));
        let judge = |jailer, worker, netd| {
            judge_programs(dir, &[("vmsup-jailer", jailer), ("vmsup-worker", worker), ("vmsup-netd", netd)]).result
        };
        let jailer = || says("vmsup-jailer", VERSION);
        assert_eq!(judge(jailer(), Program::Silent, Program::Silent), Fine);
        assert_eq!(judge(Program::Missing, Program::Silent, Program::Silent), Failure);
        assert_eq!(judge(says("vmsup-jailer", "0.0.1"), Program::Silent, Program::Silent), Failure);
        assert_eq!(judge(jailer(), Program::Missing, Program::Silent), Failure);
        assert_eq!(judge(jailer(), Program::Silent, Program::Missing), Fine);
        assert_eq!(judge(jailer(), Program::Silent, says("vmsup-netd", "0.0.1")), Failure);
    }

    #[test]
    fn a_directory_of_someone_else_is_a_failure() {
        let judge =
            |found, vanishes| judge_directory(Path::new("/run/user/1000/vmsup"), found, &user(), vanishes).result;
        assert_eq!(judge(Some((1000, 0o040_700)), false), Fine);
        assert_eq!(judge(None, false), Fine);
        assert_eq!(judge(Some((1000, 0o040_700)), true), Warning);
        assert_eq!(judge(Some((1001, 0o040_700)), false), Failure);
        assert_eq!(judge(Some((1000, 0o040_755)), false), Failure);
        assert_eq!(judge(Some((1000, 0o120_777)), true), Failure);
    }

    #[test]
    fn a_supervisor_is_judged_by_its_answer() {
        let info = |version: &str, jailer: Option<i32>| {
            Ok(VersionInfo {
            files: None,
                version: version.into(),
                pid: 7,
                uid: 1000,
                jailer: vmsup::api::types::JailerInfo {
                    pid: jailer,
                    uids: "own".into(),
                    cgroup: None,
                    cgroup_reason: None,
                    pool: 2,
                },
            })
        };
        let judge = |answer: io::Result<VersionInfo>| running(&answer, Path::new("/s")).result;
        assert_eq!(judge(info(VERSION, Some(8))), Fine);
        assert_eq!(judge(info("0.0.1", Some(8))), Warning);
        assert_eq!(judge(info(VERSION, None)), Failure);
        assert!(running(&info(VERSION, None), Path::new("/s")).fix.starts_with("kill 7 "));
        assert_eq!(judge(Err(io::ErrorKind::NotFound.into())), Fine);
        assert_eq!(judge(Err(io::ErrorKind::PermissionDenied.into())), Failure);
    }

    #[test]
    fn little_memory_is_a_warning() {
        assert_eq!(memory("MemTotal: 8388608 kB\nMemAvailable:    4194304 kB\n").result, Fine);
        assert_eq!(memory("MemTotal: 8388608 kB\nMemAvailable:    1024 kB\n").result, Warning);
        assert_eq!(memory("").result, Warning);
    }
}
