//! What the program knows about itself: schema, version, completions, manual pages. None of it needs a supervisor.

use super::args::Cli;
use super::client::Client;
use super::failure::Failure;
use super::output::{print, print_json};
use clap::CommandFactory;
use clap_complete::Shell;
use std::path::Path;
use vmsup::api::types::VersionInfo;

/// Release of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `vmsup schema`.
pub fn schema() -> Result<(), Failure> {
    print_json(&vmsup::vmjson::schema::document())
}

/// `vmsup version`.
pub fn version(client: &Client, json: bool) -> Result<(), Failure> {
    let supervisor = client.try_connect().ok().and_then(|mut api| api.call::<VersionInfo>("GET", "/v1/version").ok());
    if json {
        return print_json(&serde_json::json!({ "version": VERSION, "supervisor": supervisor }));
    }
    let other = match supervisor {
        Some(s) => format!("supervisor {} (pid {}, uid {})\n", super::sanitize::line(&s.version), s.pid, s.uid),
        None => "no supervisor runs\n".into(),
    };
    print(format!("vmsup {VERSION}\n{other}"))
}

/// `vmsup completions SHELL`.
pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "vmsup", &mut script);
    print(script)
}

/// `vmsup man DIR`.
pub fn man(dir: &Path) -> Result<(), Failure> {
    let failed = |e: std::io::Error| {
        let dir = vmsup::vmjson::check::escaped_path(dir);
        Failure::failed(format!("{dir}: the manual pages cannot be written ({e}); check the directory"))
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_argument_has_a_help_text() {
        fn walk(command: &clap::Command, missing: &mut Vec<String>) {
            if command.get_about().is_none() {
                missing.push(command.get_name().to_owned());
            }
            for argument in command.get_arguments().filter(|a| a.get_help().is_none()) {
                missing.push(format!("{} {}", command.get_name(), argument.get_id()));
            }
            command.get_subcommands().for_each(|c| walk(c, missing));
        }
        let mut missing = Vec::new();
        walk(&Cli::command(), &mut missing);
        assert_eq!(missing, Vec::<String>::new());
    }
}
