//! What a client is told when there will be no VM: one sentence each, from what jailer, worker and netd said.

use super::end::WorkerEnd;
use super::jail::{GONE, MakeError};
use super::netd::NetdError;
use super::worker::ControlError;
use crate::api::types::{ApiError, ErrorCode};
use crate::spec::Net;
use crate::vmjson::check::escaped_path;
use crate::vmjson::nets::protocol_name;
use jail_spec::Refusal;
use std::path::Path;
use worker_api::Part;

/// Limits cannot be held on this host.
pub fn no_cgroup(reason: &str) -> ApiError {
    ApiError {
        code: ErrorCode::Invalid,
        message: format!(
            "there is no delegated cgroup to hold limits ({reason}); remove \"limits\", or set \"enforce\": \"best-effort\""
        ),
        field: Some("limits".into()),
    }
}

/// The jailer made no worker.
pub fn no_worker(error: MakeError) -> ApiError {
    match error {
        MakeError::Gone => unavailable(GONE),
        MakeError::Refused(Refusal::NoCgroup(reason)) => no_cgroup(&reason),
        MakeError::Refused(Refusal::Full { slots }) => {
            unavailable(format!("all {slots} places for VMs are in use; stop some VMs"))
        }
        MakeError::Refused(Refusal::Step { step, errno }) => {
            let error = std::io::Error::from_raw_os_error(errno);
            internal(format!("no jail could be made: step {step}: {error}; vmsup doctor may know why"))
        }
        MakeError::Refused(Refusal::Died(how, words)) => {
            let end = WorkerEnd::new(how, &words);
            internal(format!("no jail could be made: {}; vmsup doctor may know why", end.reason()))
        }
        MakeError::Refused(Refusal::Program(why)) => internal(format!(
            "the worker's program (vmsup-worker) is refused: {why}; install all programs of one release"
        )),
        MakeError::Refused(Refusal::Invalid(why)) => internal(format!("the jailer refused the request: {why}")),
    }
}

/// What a worker said no to, or what it did instead of an answer. `paths` are those of the VM's files, by their fields;
/// `nets` is how many interfaces it has.
pub fn refused(error: ControlError, paths: &[(String, String)], nets: usize) -> ApiError {
    let ControlError::Failed(failure) = &error else { return internal(error.to_string()) };
    let field = match failure.part {
        Part::Kernel => Some("boot.kernel".into()),
        Part::Initrd => Some("boot.initrd".into()),
        Part::Cmdline => Some("boot.cmdline".into()),
        Part::Disk(n) => Some(format!("disks[{n}].path")).filter(|field| paths.iter().any(|(f, _)| f == field)),
        Part::Memory => Some("memory_mib".into()),
        Part::Net(n) => (usize::from(n) < nets).then(|| format!("nets[{n}]")),
        Part::Spec | Part::Kvm | Part::Console | Part::Thread => None,
    };
    let code = match failure.part {
        Part::Kvm | Part::Thread | Part::Console => ErrorCode::Internal,
        _ => ErrorCode::Invalid,
    };
    let said = error.to_string();
    // Some details begin with the field that goes out beside them. The worker knows no paths; the user knows no others.
    let rest =
        field.as_deref().and_then(|field| said.strip_prefix(field)).map(|rest| rest.trim_start_matches([':', ' ']));
    let path = paths.iter().find(|(of, _)| field.as_ref() == Some(of)).map(|(_, path)| escaped_path(path));
    let message = match (path, rest) {
        (Some(path), Some(rest)) => format!("{path} {rest}"),
        (Some(path), None) => format!("{path}: {said}"),
        (None, rest) => rest.unwrap_or(&said).into(),
    };
    let advice = match failure.part {
        Part::Kernel | Part::Initrd if said.contains("memory_mib") => "",
        Part::Kernel if said.contains("cut short") => "; copy or build it anew",
        Part::Kernel if paths.iter().any(|(of, _)| of == "boot.kernel") => {
            "; name a bzImage, an ELF with a PVH note or an ELF64"
        }
        Part::Cmdline => "; shorten it",
        _ => "",
    };
    ApiError { code, message: message + advice, field }
}

/// netd granted no lease for interface number `n`. `uid` is who asked, where that is the VM's owner: of a supervisor that others
/// use, too, nobody is told how much they use. `path` is netd's socket.
pub fn no_lease(error: &NetdError, n: usize, net: &Net, uid: Option<u32>, path: &Path) -> ApiError {
    let NetdError::Refused(why) = error else {
        return ApiError { field: Some("nets".into()), ..no_netd(error, path) };
    };
    use netd_api::Refusal::*;
    let network = &net.network;
    let you = uid.map_or_else(|| "this supervisor".to_owned(), |uid| format!("uid {uid}"));
    let (code, field, message) = match why {
        NoSuchNetwork => (
            ErrorCode::Invalid,
            ".network".into(),
            format!("no network \"{network}\" for {you}; vmsup net ls shows those that you may use"),
        ),
        Quota { .. } if uid.is_none() => (
            ErrorCode::Unavailable,
            ".network".into(),
            format!("no address is left in the network \"{network}\"; try again later, or ask an administrator"),
        ),
        Quota { limit } => (
            ErrorCode::Unavailable,
            ".network".into(),
            format!(
                "{you} has all {limit} leases that it may have in the network \"{network}\"; stop a VM that has one \
                 (vmsup net leases shows them)"
            ),
        ),
        NetworkFull => (
            ErrorCode::Unavailable,
            ".network".into(),
            format!(
                "no address is left in the network \"{network}\"; stop VMs, or have its subnet enlarged in netd.toml"
            ),
        ),
        MacTaken if net.mac_suffix.is_some() => (
            ErrorCode::Conflict,
            ".mac_suffix".into(),
            format!("another VM in the network \"{network}\" has this MAC; choose another end, or none"),
        ),
        PortNotAllowed { port } => (
            ErrorCode::Forbidden,
            forward_field(net, *port),
            format!(
                "{you} may not forward {} in the network \"{network}\"; vmsup net ls shows the ports that you may \
                 forward",
                forwarded(net, *port)
            ),
        ),
        PortTaken { port } => (
            ErrorCode::Conflict,
            forward_field(net, *port),
            format!("{} of the host leads to another VM; choose another port, or stop that VM", forwarded(net, *port)),
        ),
        Invalid => (
            ErrorCode::Invalid,
            String::new(),
            format!("the network helper takes no such interface in the network \"{network}\"; its log says why"),
        ),
        NoRules => (
            ErrorCode::Unavailable,
            ".network".into(),
            "the host's rules against spoofing are not loaded, so that no network would be safe; have root load them \
             (nft -f vmsup.nft), vmsup doctor says how"
                .into(),
        ),
        MacTaken | NotYours | Failed => (
            ErrorCode::Internal,
            ".network".into(),
            format!(
                "the network helper could not make an interface in the network \"{network}\"; its log says why \
                 (journalctl -u vmsup-netd)"
            ),
        ),
    };
    ApiError { code, message, field: Some(format!("nets[{n}]{field}")) }
}

/// The field of the forward of a host port that netd named; all forwards where there is none of that port.
fn forward_field(net: &Net, port: u16) -> String {
    match net.forwards.iter().position(|f| f.host == port) {
        Some(f) => format!(".forwards[{f}].host"),
        None => ".forwards".into(),
    }
}

/// A host port that netd named, with its protocol where only one of ours has it.
fn forwarded(net: &Net, port: u16) -> String {
    let mut protocols = net.forwards.iter().filter(|f| f.host == port).map(|f| protocol_name(f.protocol));
    match (protocols.next(), protocols.next()) {
        (Some(protocol), None) => format!("{protocol} port {port}"),
        _ => format!("port {port}"),
    }
}

/// netd is away, or no use. `path` is its socket.
pub fn no_netd(error: &NetdError, path: &Path) -> ApiError {
    let at = escaped_path(path);
    match error {
        NetdError::Away(why) => unavailable(format!(
            "no network helper at {at} ({}); have root start it (systemctl start vmsup-netd), vmsup doctor says more",
            match why.kind() {
                std::io::ErrorKind::NotFound => "no such socket".into(),
                std::io::ErrorKind::ConnectionRefused => "nobody listens there".into(),
                _ => why.to_string(),
            }
        )),
        NetdError::Busy | NetdError::Silent(_) | NetdError::Channel(ipc::Error::Closed) => unavailable(format!(
            "the network helper at {at}: {error}; try again, and see its log (journalctl -u vmsup-netd) if it stays so"
        )),
        NetdError::Channel(error @ ipc::Error::Version { .. }) => unavailable(format!(
            "the network helper at {at}: {error}; install one release, then restart vmsup-netd and vmsup serve"
        )),
        NetdError::Channel(_) | NetdError::Confused(_) | NetdError::Refused(_) => internal(format!(
            "the network helper at {at}: {error}; see its log (journalctl -u vmsup-netd), and restart it"
        )),
    }
}

/// The host cannot, at least now.
pub fn unavailable(message: impl Into<String>) -> ApiError {
    ApiError { code: ErrorCode::Unavailable, message: message.into(), field: None }
}

/// A defect, or a host that misbehaves.
pub fn internal(message: impl Into<String>) -> ApiError {
    ApiError { code: ErrorCode::Internal, message: message.into(), field: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use worker_api::StartFailure;

    /// The field and the message of what a worker said no to.
    fn said(part: Part, detail: &str) -> (Option<String>, String) {
        let paths = [("boot.kernel", "/k"), ("boot.initrd", "/i"), ("disks[0].path", "/d")];
        let paths = paths.map(|(field, path)| (field.into(), path.into()));
        let failure = ControlError::Failed(StartFailure { part, detail: detail.into() });
        let error = refused(failure, &paths, 1);
        (error.field, error.message)
    }

    #[test]
    fn what_a_worker_says_of_a_file_names_the_file_and_what_to_do() {
        for (part, detail, field, message) in [
            (
                Part::Kernel,
                "boot.kernel is not a kernel: neither a bzImage nor an ELF",
                "boot.kernel",
                "/k is not a kernel: neither a bzImage nor an ELF; name a bzImage, an ELF with a PVH note or an ELF64",
            ),
            (
                Part::Kernel,
                "boot.kernel is cut short: its header cannot be read",
                "boot.kernel",
                "/k is cut short: its header cannot be read; copy or build it anew",
            ),
            (
                Part::Initrd,
                "boot.initrd has 99 MiB, and beside the kernel there is room for 9 MiB: raise memory_mib",
                "boot.initrd",
                "/i has 99 MiB, and beside the kernel there is room for 9 MiB: raise memory_mib",
            ),
            (Part::Disk(0), "it cannot be read", "disks[0].path", "/d: it cannot be read"),
            (Part::Memory, "no memory", "memory_mib", "no memory"),
            (Part::Net(0), "nets[0]: no TAP", "nets[0]", "no TAP"),
        ] {
            assert_eq!(said(part, detail), (Some(field.into()), message.into()));
        }
    }

    #[test]
    fn a_device_that_the_vm_does_not_have_is_no_field() {
        assert_eq!(said(Part::Disk(1), "a lie"), (None, "a lie".into()));
        assert_eq!(said(Part::Net(1), "a lie"), (None, "a lie".into()));
    }

    #[test]
    fn what_netd_refuses_names_the_field_and_what_to_do() {
        use netd_api::Refusal::*;
        let net: Net = serde_json::from_str(
            r#"{"network":"blue","mac_suffix":"00:00:01","forwards":[{"host":80,"guest":1},{"host":53,"guest":2,
                "protocol":"udp"},{"host":53,"guest":2}]}"#,
        )
        .unwrap();
        for (why, code, field, says) in [
            (NoSuchNetwork, ErrorCode::Invalid, "network", "no network \"blue\" for uid 7; vmsup net ls"),
            (Quota { limit: 16 }, ErrorCode::Unavailable, "network", "all 16 leases"),
            (NetworkFull, ErrorCode::Unavailable, "network", "no address is left"),
            (MacTaken, ErrorCode::Conflict, "mac_suffix", "another VM"),
            (
                PortNotAllowed { port: 80 },
                ErrorCode::Forbidden,
                "forwards[0].host",
                "uid 7 may not forward TCP port 80",
            ),
            (PortTaken { port: 53 }, ErrorCode::Conflict, "forwards[1].host", "port 53 of the host leads"),
            (PortTaken { port: 9 }, ErrorCode::Conflict, "forwards", "port 9 of the host leads"),
            (NoRules, ErrorCode::Unavailable, "network", "not loaded"),
            (Failed, ErrorCode::Internal, "network", "its log says why"),
            (NotYours, ErrorCode::Internal, "network", "its log says why"),
        ] {
            let error = no_lease(&NetdError::Refused(why), 1, &net, Some(7), Path::new("/s"));
            assert_eq!((error.code, error.field), (code, Some(format!("nets[1].{field}"))), "{}", error.message);
            assert!(error.message.contains(says), "{}", error.message);
        }
        let error = no_lease(&NetdError::Refused(Invalid), 2, &net, Some(7), Path::new("/s"));
        assert_eq!((error.code, error.field.as_deref()), (ErrorCode::Invalid, Some("nets[2]")));
    }
}
