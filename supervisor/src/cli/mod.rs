//! The command line.
//!
//! Runs as the user, once per command, unconfined: it holds what the user holds. It hears the supervisor (whose socket's
//! owner it checks) and, through it, guests: what they say is made harmless before a terminal sees it, but for the raw
//! console that the user attached to.

mod acts;
mod apply;
mod args;
mod background;
mod client;
mod diff;
mod doctor;
mod documents;
mod events;
mod failure;
mod files;
mod http;
mod inspect;
mod keys;
mod net;
mod ops;
mod output;
mod owners;
mod policy;
mod quota;
mod rates;
mod run;
mod sanitize;
mod serve;
mod session;
mod signals;
mod stats;
mod terminal;
mod top;
mod vms;

use args::{Cli, Command, Net, Ops};
use clap::{CommandFactory, Parser};
use client::Client;
use failure::Failure;
use std::process::ExitCode;

/// Parses the command line, does what it asks, reports.
pub fn main() -> ExitCode {
    match dispatch(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    let named = cli.socket.clone().or_else(|| cli.system.then(|| vmsup::paths::SYSTEM_SOCKET.into()));
    let client = Client::new(named.or_else(vmsup::paths::named_socket).as_deref());
    let Some(command) = cli.command else {
        return output::print(Cli::command().render_long_help().to_string());
    };
    match command {
        Command::Start { what, json } => acts::start(&client, &what, json.json),
        Command::Run { rm, file } => run::run(&client, &file, rm),
        Command::Ls { json } => vms::ls(&client, json.json),
        Command::Inspect { vm: Some(vm), verify, json, .. } => inspect::inspect(&client, &vm, verify, json.json),
        Command::Inspect { vm: None, verify, prometheus, json, .. } => {
            inspect::all(&client, verify || prometheus, prometheus, json.json)
        }
        Command::Console { vm, detach_on_eof, no_history, read_only } => {
            vms::console(&client, &vm.vm, vms::Attach { detach_on_eof, history: !no_history, input: !read_only })
        }
        Command::Logs { vm, follow, raw } => vms::logs(&client, &vm.vm, follow, raw),
        Command::Stop { vms, timeout, for_shutdown, json } => {
            let how = if for_shutdown { acts::How::StopForShutdown(timeout) } else { acts::How::Stop(timeout) };
            acts::end(&client, &vms, how, json.json)
        }
        Command::Kill { vms, json } => acts::end(&client, &vms, acts::How::Kill, json.json),
        Command::Pause { vms, json } => acts::pause(&client, &vms, json.json),
        Command::Resume { vms, json } => acts::resume(&client, &vms, json.json),
        Command::Apply(args) => apply::apply(&client, &args),
        Command::Diff(args) => diff::diff(&client, &args),
        Command::Rm { vms, force } => acts::rm(&client, &vms, force),
        Command::Wait { vm, json } => acts::wait(&client, &vm.vm, json.json),
        Command::Stats { vms, json } => stats::stats(&client, &vms, json.json),
        Command::Top { once } => top::top(&client, once),
        Command::Events { follow, after, vm, json } => {
            events::events(&client, &events::Options { follow, after, vm, json: json.json })
        }
        Command::Ops { what: None, json } => ops::ls(&client, json.json),
        Command::Ops { what: Some(Ops::Wait { id, json }), .. } => ops::wait(&client, id, json.json),
        Command::Ops { what: Some(Ops::Cancel { id, json }), .. } => ops::cancel(&client, id, json.json),
        Command::Net { what: Net::Ls { json } } => net::ls(&client, json.json),
        Command::Net { what: Net::Leases { json } } => net::leases(&client, json.json),
        Command::Net { what: Net::Stats { vm, json } } => net::stats(&client, &vm.vm, json.json),
        Command::Quota { all, json } => quota::quota(&client, all, json.json),
        Command::Doctor { json } => doctor::doctor(&client, json.json),
        Command::Serve(serve) => serve::serve(cli.socket, *serve),
        Command::Policy { what } => policy::policy(&client, &what),
        Command::Schema => documents::schema(),
        Command::Version { json } => documents::version(&client, json.json),
        Command::Completions { shell } => documents::completions(shell),
        Command::Man { dir } => documents::man(&dir),
    }
}
