//! This installation: who runs it, and its programs.

use super::ids::Id;
use super::line::Line;
use super::read::say;
use super::user::User;
use crate::cli::documents::VERSION;
use std::path::Path;
use std::process::Command;

/// All lines of this file.
pub fn lines(user: &User) -> Vec<Line> {
    vec![who(user), programs()]
}

fn who(user: &User) -> Line {
    match user.uid {
        0 => Line::warning(
            Id::User,
            "you are root",
            "vmsup needs no root: as root, what breaks out of a supervisor or jailer has the whole host",
            "run vmsup as a user of its own: sudo useradd --create-home --groups kvm NAME",
        ),
        uid => Line::ok(Id::User, format!("{} (uid {uid}), not root", user.name_or_id())),
    }
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

fn programs() -> Line {
    let Ok(dir) = vmsup::paths::program_dir() else {
        return Line::warning(
            Id::Programs,
            "our own executable cannot be found",
            "the others are looked for beside it",
            "mount /proc",
        );
    };
    let look = |name: &str| {
        let path = dir.join(name);
        if rustix::fs::access(&path, rustix::fs::Access::EXEC_OK).is_err() {
            return Program::Missing;
        }
        let said = say(Command::new(&path).arg("--version"));
        match said.ok().and_then(|text| text.lines().next().map(str::to_owned)) {
            Some(first) if first.starts_with(name) => Program::Says(first),
            _ => Program::Silent,
        }
    };
    judge_programs(&dir, &["vmsup-jailer", "vmsup-worker", "vmsup-netd"].map(|name| (name, look(name))))
}

fn judge_programs(dir: &Path, found: &[(&str, Program)]) -> Line {
    const ID: Id = Id::Programs;
    let install = format!("install all programs of vmsup {VERSION} side by side in {}", dir.display());
    for (name, program) in found {
        match program {
            // Started by root, from wherever root has it; whether one runs is seen by who answers (`netd`).
            Program::Missing if *name == "vmsup-netd" => {}
            Program::Missing => {
                let why = "the supervisor starts it from there";
                return Line::failure(ID, format!("{name} is not in {}", dir.display()), why, install);
            }
            Program::Says(what) if what != &format!("{name} {VERSION}") => {
                let why = "programs of two releases refuse each other";
                return Line::failure(ID, format!("{what}, and this is vmsup {VERSION}"), why, install);
            }
            Program::Says(_) | Program::Silent => {}
        }
    }
    let netd = match found.iter().any(|(name, program)| *name == "vmsup-netd" && *program == Program::Missing) {
        true => " but vmsup-netd, which only networks need",
        false => "",
    };
    Line::ok(ID, format!("all of vmsup {VERSION} are in {}{netd}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::super::line::State::{Failure, Ok as Fine, Warning};
    use super::super::line::assert_line;
    use super::*;

    #[test]
    fn root_is_told_that_it_need_not_be() {
        assert_line(&who(&User::anna()), Fine, "");
        assert_line(&who(&User { uid: 0, ..User::anna() }), Warning, "useradd");
    }

    #[test]
    fn a_missing_or_foreign_program_is_a_failure() {
        let dir = Path::new("/opt/bin");
        let says = |name: &str, version: &str| Program::Says(format!("{name} {version}"));
        let judge = |jailer, worker, netd| {
            judge_programs(dir, &[("vmsup-jailer", jailer), ("vmsup-worker", worker), ("vmsup-netd", netd)]).state
        };
        let jailer = || says("vmsup-jailer", VERSION);
        assert_eq!(judge(jailer(), Program::Silent, Program::Silent), Fine);
        assert_eq!(judge(Program::Missing, Program::Silent, Program::Silent), Failure);
        assert_eq!(judge(says("vmsup-jailer", "0.0.1"), Program::Silent, Program::Silent), Failure);
        assert_eq!(judge(jailer(), Program::Missing, Program::Silent), Failure);
        assert_eq!(judge(jailer(), Program::Silent, Program::Missing), Fine);
        assert_eq!(judge(jailer(), Program::Silent, says("vmsup-netd", "0.0.1")), Failure);
    }
}
