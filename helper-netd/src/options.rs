//! The command line.

use std::path::PathBuf;

/// What `--help` prints.
pub const USAGE: &str = "usage: vmsup-netd [--config FILE] [--socket PATH] [--journal FILE] [--user NAME] [--check]
       vmsup-netd --version | --help";

/// The command line of `vmsup-netd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The networks, as root wants them.
    pub config: PathBuf,
    /// Where supervisors connect.
    pub socket: PathBuf,
    /// What this boot's leases are.
    pub journal: PathBuf,
    /// Whom to become when started as root: a name or a number.
    pub user: String,
    /// What to do.
    pub action: Action,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Serve until told to leave.
    Serve,
    /// Read the configuration, say what is wrong with it, leave.
    Check,
    /// Print the release.
    Version,
    /// Print the usage.
    Help,
}

impl Options {
    /// Parses the arguments behind the program's name.
    ///
    /// # Errors
    /// A sentence that names what is wrong.
    pub fn parse(args: &[String]) -> Result<Options, String> {
        let mut options = Options {
            config: "/etc/vmsup/netd.toml".into(),
            socket: netd_api::SOCKET.into(),
            journal: "/run/vmsup-netd/journal".into(),
            user: "vmsup-netd".into(),
            action: Action::Serve,
        };
        let mut args = args.iter();
        while let Some(name) = args.next() {
            let mut value = || args.next().filter(|v| !v.is_empty()).ok_or_else(|| format!("{name} needs a value"));
            match name.as_str() {
                "--config" => options.config = value()?.into(),
                "--socket" => options.socket = value()?.into(),
                "--journal" => options.journal = value()?.into(),
                "--user" => options.user = value()?.clone(),
                "--check" => options.action = Action::Check,
                "--version" => options.action = Action::Version,
                "--help" | "-h" => options.action = Action::Help,
                _ => return Err(format!("{name}: no such option (see --help)")),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        Options::parse(&args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_command_line_is_checked() {
        let options = parse(&["--config", "/c", "--socket", "/s", "--journal", "/j", "--user", "7"]).unwrap();
        let wanted = Options {
            config: "/c".into(),
            socket: "/s".into(),
            journal: "/j".into(),
            user: "7".into(),
            action: Action::Serve,
        };
        assert_eq!(options, wanted);
        assert_eq!(parse(&[]).unwrap().socket.to_str(), Some(netd_api::SOCKET));
        assert_eq!(parse(&["--check"]).unwrap().action, Action::Check);
        for (bad, says) in
            [(&["--config"][..], "needs a value"), (&["--user", ""], "needs a value"), (&["x"], "no such")]
        {
            assert!(parse(bad).unwrap_err().contains(says), "{bad:?}");
        }
    }
}
