//! Resource limits by name, as `policies/process.json` has them.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Sets the soft and the hard limit to `value`, or leaves a hard limit that is lower already: nothing here may raise one.
pub(super) fn set(name: &str, value: u64) -> Result<(), Errno> {
    let resource = resource(name).ok_or(Errno::INVAL)?;
    let value = getrlimit(resource).maximum.map_or(value, |hard| hard.min(value));
    setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
}

/// The resource of a name without `RLIMIT_`, in lower case.
fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_limit_of_the_policy_has_a_resource() {
        for (name, _) in policies::PROCESS_WORKER.rlimits {
            assert!(super::resource(name).is_some(), "{name}");
        }
        assert!(super::resource("everything").is_none());
    }
}
