//! `vmsup inspect`: a VM, and what the process it runs in may do, read from the running process; and whether that is as the
//! policies say.

mod cgroup;
mod host;
mod installed;
mod jail;
mod others;
pub mod proc;
mod prometheus;
mod text;
mod verify;

use super::client::{Client, vm_target};
use super::failure::{FAILED, Failure};
use super::output::{print, print_json};
use super::sanitize::without_errno;
use jail::Jail;
use serde::Serialize;
use verify::Verified;
use vmsup::api::types::{VmInfo, VmSummary};

/// What `--json` prints: the API's answer, and the jail.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    info: VmInfo,
    /// The jail, while there is a worker.
    jail: Option<Jail>,
    /// Why the jail of a running VM could not be looked at.
    jail_error: Option<String>,
    /// With `--verify`: what came of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<Verified>,
}

/// `vmsup inspect VM`.
pub fn inspect(client: &Client, vm: &str, verify: bool, json: bool) -> Result<(), Failure> {
    let info: VmInfo = client.connect()?.call("GET", &vm_target(vm, ""))?;
    let mut report = look(info);
    if verify {
        report.verified = Some(verify::vm(&report));
    }
    let good = report.verified.as_ref().is_none_or(Verified::is_good);
    if json {
        print_json(&report)?
    } else {
        print(text::render(&report))?
    }
    if good { Ok(()) } else { Err(Failure::status(FAILED)) }
}

/// `vmsup inspect --all`.
pub fn all(client: &Client, verify: bool, prometheus: bool, json: bool) -> Result<(), Failure> {
    let list: Vec<VmSummary> = client.connect()?.call("GET", "/v1/vms")?;
    let mut reports = Vec::new();
    for vm in list.iter().filter(|vm| vm.pid.is_some()) {
        reports.push(look(client.connect()?.call("GET", &vm_target(&vm.id, ""))?));
    }
    if !verify {
        return if json {
            print_json(&reports)
        } else {
            print(reports.iter().map(text::render).collect::<Vec<_>>().join("\n"))
        };
    }
    let mut verified: Vec<Verified> = reports.iter().map(verify::vm).collect();
    verify::apart(&reports, &mut verified);
    let known = reports.iter().filter_map(|report| Some(report.info.worker.as_ref()?.pid)).collect();
    verified.extend(others::workers(&known));
    verified.extend(host::processes());
    match (prometheus, json) {
        (true, _) => print(prometheus::text(&verified))?,
        (_, true) => print_json(&verified)?,
        _ => print(verified.iter().map(text::verified).collect::<String>())?,
    }
    if verified.iter().all(Verified::is_good) { Ok(()) } else { Err(Failure::status(FAILED)) }
}

fn look(info: VmInfo) -> Report {
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
    Report { info, jail, jail_error, verified: None }
}
