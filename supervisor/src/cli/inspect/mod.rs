//! `vmsup inspect`: a VM, and what the process it runs in may do, read from the running process.

mod jail;
pub mod proc;
mod text;

use super::client::{Client, vm_target};
use super::failure::Failure;
use super::output::{print, print_json};
use super::sanitize::without_errno;
use jail::Jail;
use serde::Serialize;
use vmsup::api::types::VmInfo;

/// What `--json` prints: the API's answer, and the jail.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    info: VmInfo,
    /// The jail, while there is a worker.
    jail: Option<Jail>,
    /// Why the jail of a running VM could not be looked at.
    jail_error: Option<String>,
}

/// `vmsup inspect VM`.
pub fn inspect(client: &Client, vm: &str, json: bool) -> Result<(), Failure> {
    let info: VmInfo = client.connect()?.call("GET", &vm_target(vm, ""))?;
    let looked = info.worker.as_ref().map(|worker| {
        jail::look(&info, worker).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => "its process has just ended".to_owned(),
            _ => without_errno(&format!("its process cannot be looked at ({e})")),
        })
    });
    let (jail, jail_error) = match looked.transpose() {
        Ok(jail) => (jail, None),
        Err(error) => (None, Some(error)),
    };
    let report = Report { info, jail, jail_error };
    if json { print_json(&report) } else { print(text::render(&report)) }
}
