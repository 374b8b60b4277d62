//! systemd's units of this user's supervisor and jailer, where there are any.

use super::ids::Id;
use super::line::Line;
use super::read::say;
use std::path::Path;
use std::process::Command;

/// Where units are found, below which `system` and `user` are.
const FOLDERS: [&str; 4] = ["/etc/systemd", "/run/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd"];
/// What is looked at; the last is the system's alone.
const UNITS: [&str; 5] =
    ["vmsup.socket", "vmsup-jailer.socket", "vmsup.service", "vmsup-jailer.service", "vmsup-guests.service"];

/// Whose service manager it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The user's own.
    User,
    /// The host's, which keeps the system user's supervisor.
    System,
}

impl Scope {
    /// That of the supervisor that this user's commands speak to.
    pub fn of_this_user() -> Scope {
        if vmsup::paths::runtime_dir() == Path::new("/run/vmsup") { Scope::System } else { Scope::User }
    }

    fn systemctl(self) -> &'static str {
        match self {
            Scope::User => "systemctl --user",
            Scope::System => "sudo systemctl",
        }
    }

    fn journal(self, unit: &str) -> String {
        match self {
            Scope::User => format!("journalctl --user -u {unit}"),
            Scope::System => format!("sudo journalctl -u {unit}"),
        }
    }
}

/// A unit of this name is installed.
pub fn installed(scope: Scope, unit: &str) -> bool {
    let folder = match scope {
        Scope::User => "user",
        Scope::System => "system",
    };
    FOLDERS.iter().any(|dir| Path::new(dir).join(folder).join(unit).exists())
}

/// One unit, as its manager knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unit {
    name: String,
    loaded: bool,
    /// `active`, `inactive`, `failed`, …
    active: String,
    /// `enabled`, `disabled`, `static`, …
    enabled: String,
}

/// What was read.
#[derive(Debug)]
pub struct Facts {
    /// systemd is this host's.
    booted: bool,
    scope: Scope,
    /// The units, or why their manager does not tell.
    units: Result<Vec<Unit>, String>,
}

impl Facts {
    /// Of this user.
    pub fn read() -> Facts {
        let scope = Scope::of_this_user();
        let booted = Path::new("/run/systemd/system").exists();
        let nothing = || UNITS.iter().all(|unit| !installed(scope, unit));
        let units = if !booted || nothing() { Ok(Vec::new()) } else { ask(scope) };
        Facts { booted, scope, units }
    }
}

fn ask(scope: Scope) -> Result<Vec<Unit>, String> {
    let mut command = Command::new("systemctl");
    if scope == Scope::User {
        command.arg("--user");
    }
    command.args(["show", "--property=Id,LoadState,ActiveState,UnitFileState"]).args(UNITS);
    let units = parse(&say(&mut command)?);
    if units.is_empty() { Err("it tells nothing of them".into()) } else { Ok(units) }
}

/// One paragraph of `NAME=VALUE` for each unit.
fn parse(said: &str) -> Vec<Unit> {
    let one = |paragraph: &str| {
        let field = |name: &str| {
            let value = paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
            Some(value.to_owned())
        };
        Some(Unit {
            name: field("Id")?,
            loaded: field("LoadState")? == "loaded",
            active: field("ActiveState")?,
            enabled: field("UnitFileState").unwrap_or_default(),
        })
    };
    said.split("\n\n").filter_map(one).collect()
}

/// How the units stand.
pub fn line(facts: &Facts) -> Line {
    const ID: Id = Id::Units;
    const ALONE: &str = "the first command starts the supervisor, which starts its jailer";
    if !facts.booted {
        return Line::ok(ID, format!("no systemd here; {ALONE}"));
    }
    let systemctl = facts.scope.systemctl();
    let units = match &facts.units {
        Ok(units) => units,
        Err(why) => {
            return Line::unknown(
                ID,
                format!("units are installed, but {systemctl} does not tell of them: {why}"),
                "sockets of units that are active come before a supervisor that a command would start",
                format!("in a log-in of this user: {systemctl} status vmsup.socket vmsup-jailer.socket"),
            );
        }
    };
    let unit = |name: &str| units.iter().find(|unit| unit.name == name && unit.loaded);
    let is_active = |name: &str| unit(name).is_some_and(|unit| unit.active == "active");
    if let Some(failed) = units.iter().find(|unit| unit.active == "failed") {
        let name = &failed.name;
        return Line::warning(
            ID,
            format!("{name} has failed"),
            "systemd starts it no more, or not until somebody asks; VMs run on without being looked after",
            format!("{}; then {systemctl} restart {name}", facts.scope.journal(name)),
        );
    }
    let enable = format!("{systemctl} enable --now vmsup.socket vmsup-jailer.socket");
    match (is_active("vmsup.socket"), is_active("vmsup-jailer.socket")) {
        _ if !units.iter().any(|unit| unit.loaded) => Line::ok(ID, format!("none installed; {ALONE}")),
        (false, false) => Line::ok(ID, format!("not enabled ({enable}); {ALONE}")),
        (true, true) => {
            let guests = unit("vmsup-guests.service");
            if facts.scope == Scope::System && guests.is_none_or(|guests| guests.active != "active") {
                return Line::warning(
                    ID,
                    "vmsup-guests.service is not active",
                    "nobody presses the VMs' power buttons when this host goes down: their guests lose what they did not write",
                    "sudo systemctl start vmsup-guests",
                );
            }
            Line::ok(ID, "vmsup.socket and vmsup-jailer.socket are active: systemd starts supervisor and jailer")
        }
        (one, _) => {
            let (active, inactive) =
                if one { ("vmsup.socket", "vmsup-jailer.socket") } else { ("vmsup-jailer.socket", "vmsup.socket") };
            let why = "the supervisor's unit and the jailer's belong together: VMs live in the jailer's";
            Line::warning(ID, format!("{active} is active, {inactive} is not"), why, enable)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::State::{Ok as Fine, Unknown, Warning};
    use super::super::line::assert_line;
    use super::*;

    fn unit(name: &str, active: &str) -> Unit {
        Unit { name: name.into(), loaded: true, active: active.into(), enabled: "enabled".into() }
    }

    fn judge(scope: Scope, units: &[(&str, &str)]) -> Line {
        let units = units.iter().map(|(name, active)| unit(name, active)).collect();
        line(&Facts { booted: true, scope, units: Ok(units) })
    }

    const SOCKETS: [(&str, &str); 2] = [("vmsup.socket", "active"), ("vmsup-jailer.socket", "active")];

    #[test]
    fn what_systemctl_shows_is_understood() {
        let said = "Id=vmsup.socket\nLoadState=loaded\nActiveState=active\nUnitFileState=enabled\n\n\
                    Id=vmsup.service\nLoadState=not-found\nActiveState=inactive\nUnitFileState=\n";
        let absent = Unit { loaded: false, enabled: String::new(), ..unit("vmsup.service", "inactive") };
        assert_eq!(parse(said), [unit("vmsup.socket", "active"), absent]);
        assert_eq!(parse("Failed to connect to bus: No medium found\n"), []);
    }

    #[test]
    fn without_units_a_command_starts_the_supervisor() {
        assert_line(&judge(Scope::User, &[]), Fine, "");
        assert_line(&line(&Facts { booted: false, scope: Scope::User, units: Err("x".into()) }), Fine, "");
        assert_line(
            &judge(Scope::User, &[("vmsup.socket", "inactive"), ("vmsup-jailer.socket", "inactive")]),
            Fine,
            "",
        );
    }

    #[test]
    fn units_that_are_half_active_or_failed_are_a_warning() {
        assert_line(&judge(Scope::User, &SOCKETS), Fine, "");
        let alone = judge(Scope::User, &[SOCKETS[0], ("vmsup-jailer.socket", "inactive")]);
        assert_line(&alone, Warning, "systemctl --user enable --now vmsup.socket vmsup-jailer.socket");
        assert_line(&judge(Scope::User, &[SOCKETS[1]]), Warning, "enable --now");
        let failed = judge(Scope::User, &[SOCKETS[0], SOCKETS[1], ("vmsup.service", "failed")]);
        assert_line(
            &failed,
            Warning,
            "journalctl --user -u vmsup.service; then systemctl --user restart vmsup.service",
        );
        let unheard = Facts { booted: true, scope: Scope::User, units: Err("it does not answer".into()) };
        assert_line(&line(&unheard), Unknown, "systemctl --user status");
    }

    #[test]
    fn under_the_system_somebody_must_press_the_power_buttons() {
        let guests = |state| judge(Scope::System, &[SOCKETS[0], SOCKETS[1], ("vmsup-guests.service", state)]);
        assert_line(&guests("active"), Fine, "");
        assert_line(&guests("inactive"), Warning, "sudo systemctl start vmsup-guests");
        assert_line(&judge(Scope::System, &SOCKETS), Warning, "sudo systemctl start vmsup-guests");
    }
}
