//! The processor and the kernel: `/dev/kvm`, and what kind of KVM is behind it.

use super::ids::Id;
use super::line::Line;
use super::read;
use super::user::User;
use rustix::fs::{Mode, OFlags, open, stat};
use rustix::io::Errno;

const DEVICE: &str = "/dev/kvm";

/// What was read.
#[derive(Debug)]
pub struct Facts {
    /// What open(2) said.
    opened: Result<(), Errno>,
    /// Group and mode of the device.
    owner: Option<(u32, u32)>,
    /// /proc/cpuinfo.
    cpuinfo: Option<String>,
    /// KVM's modules, loaded or built in, but `kvm` itself.
    modules: Vec<String>,
    /// Whether they would give guests a KVM of their own.
    nested: Option<String>,
}

impl Facts {
    /// Of this host.
    pub fn read() -> Facts {
        let modules: Vec<String> =
            read::names("/sys/module").into_iter().filter(|name| name.starts_with("kvm_")).collect();
        Facts {
            opened: open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map(drop),
            owner: stat(DEVICE).ok().map(|s| (s.st_gid, s.st_mode & 0o777)),
            cpuinfo: read::read("/proc/cpuinfo"),
            nested: modules.iter().find_map(|name| read::read(format!("/sys/module/{name}/parameters/nested"))),
            modules,
        }
    }
}

/// All lines of this file.
pub fn lines(facts: &Facts, user: &User) -> Vec<Line> {
    vec![device(facts.opened, facts.owner, user), back_end(facts)]
}

/// Whether the device can be used, from what open(2) said and from its group and mode.
fn device(opened: Result<(), Errno>, owner: Option<(u32, u32)>, user: &User) -> Line {
    const WHY: &str = "without KVM no guest can run";
    let failure = |finding: &str, fix: String| Line::failure(Id::Kvm, format!("{DEVICE} {finding}"), WHY, fix);
    match opened {
        Ok(()) => Line::ok(Id::Kvm, format!("{DEVICE} can be read and written")),
        Err(Errno::ACCESS | Errno::PERM) => {
            let kvm = user.group_id("kvm");
            let for_group = owner.is_some_and(|(gid, mode)| Some(gid) == kvm && mode & 0o060 == 0o060);
            let join = format!("sudo usermod -aG kvm {} and log in again", user.name_or_id());
            let joined = user.member_of.iter().any(|group| group == "kvm");
            if for_group && joined && kvm.is_some_and(|gid| !user.session.contains(&gid)) {
                let finding = "is open to the group kvm, which this user has joined since this log-in";
                return failure(finding, "log out and in again, or for this shell alone: newgrp kvm".into());
            }
            let rule = "echo 'KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\"' | sudo tee /etc/udev/rules.d/65-kvm.rules; \
                        sudo chgrp kvm /dev/kvm; sudo chmod 660 /dev/kvm";
            let create = if kvm.is_none() { "sudo groupadd --system kvm; " } else { "" };
            let fix = if for_group { join } else { format!("{create}{rule}; {join}") };
            failure("is there, but this user may not use it", fix)
        }
        Err(Errno::NOENT | Errno::NXIO | Errno::NODEV) => failure(
            "is not there",
            "switch on virtualisation in the firmware (or nested virtualisation in the host that this machine runs on), \
             then sudo modprobe kvm_intel or sudo modprobe kvm_amd"
                .into(),
        ),
        Err(e) => failure(&format!("cannot be opened ({e})"), "see the kernel's log: sudo dmesg | grep -i kvm".into()),
    }
}

/// Who virtualises: the processor, by one of KVM's modules, or KVM itself, which then emulates.
fn back_end(facts: &Facts) -> Line {
    const ID: Id = Id::KvmBackEnd;
    let Some(cpuinfo) = &facts.cpuinfo else {
        let why = "a KVM that emulates its guests boots no stock Linux kernel";
        return Line::unknown(ID, "/proc/cpuinfo cannot be read", why, "mount /proc");
    };
    let flags = cpuinfo.lines().find_map(|l| l.strip_prefix("flags")).unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|f| f == flag);
    let modules = if facts.modules.is_empty() { "none is loaded".to_owned() } else { facts.modules.join(", ") };
    let here = if has("hypervisor") { "; this host is a virtual machine itself" } else { "" };
    let Some(flag) = ["vmx", "svm"].into_iter().find(|flag| has(flag)) else {
        return Line::warning(
            ID,
            format!("the processor has neither vmx nor svm, so a KVM here ({modules}) emulates its guests{here}"),
            "bare-metal guests run (examples/hello.json does); a stock Linux kernel will not boot here, or far too slowly",
            "use a machine with VT-x or AMD-V, or switch on nested virtualisation in the host that this machine runs on",
        );
    };
    let nested = match facts.nested.as_deref() {
        Some("Y" | "1") => "; it could nest, which vmsup hides from guests",
        _ => "",
    };
    Line::ok(ID, format!("the processor has {flag}, used by {modules}{nested}{here}"))
}

#[cfg(test)]
mod tests {
    use super::super::line::State::{Failure, Ok as Fine, Unknown, Warning};
    use super::super::line::assert_line;
    use super::*;

    fn user() -> User {
        User { groups: vec![("kvm".into(), 109)], ..User::anna() }
    }

    #[test]
    fn a_device_that_can_be_opened_is_fine() {
        assert_line(&device(Ok(()), Some((109, 0o660)), &user()), Fine, "");
    }

    #[test]
    fn a_user_outside_of_the_group_is_told_to_join_it() {
        let line = device(Err(Errno::ACCESS), Some((109, 0o660)), &user());
        assert_line(&line, Failure, "");
        assert_eq!(line.mend, "sudo usermod -aG kvm anna and log in again");
    }

    #[test]
    fn a_user_who_joined_the_group_after_logging_in_is_told_to_log_in_again() {
        let joined = User { member_of: vec!["kvm".into()], ..user() };
        let line = device(Err(Errno::ACCESS), Some((109, 0o660)), &joined);
        assert_line(&line, Failure, "log out and in again");
        assert!(!line.mend.contains("usermod"), "{line:?}");
        // Something else is in the way of a session that has the group.
        let here = User { session: vec![109], ..joined };
        assert_line(&device(Err(Errno::ACCESS), Some((109, 0o660)), &here), Failure, "usermod");
    }

    #[test]
    fn a_device_that_no_group_may_use_gets_a_rule_as_well() {
        let line = device(Err(Errno::ACCESS), Some((0, 0o600)), &user());
        assert!(line.mend.contains("KERNEL==\"kvm\"") && line.mend.contains("usermod"), "{}", line.mend);
        let nobody = User { groups: vec![], ..user() };
        assert!(device(Err(Errno::ACCESS), Some((0, 0o600)), &nobody).mend.starts_with("sudo groupadd"));
    }

    #[test]
    fn a_missing_device_names_the_modules() {
        assert_line(&device(Err(Errno::NOENT), None, &user()), Failure, "modprobe kvm_intel");
        assert_line(&device(Err(Errno::BUSY), None, &user()), Failure, "dmesg");
    }

    #[test]
    fn an_emulating_kvm_is_told_apart_by_the_processors_flags() {
        let judge = |flags: &str, module: &str, nested: Option<&str>| {
            back_end(&Facts {
                opened: Ok(()),
                owner: None,
                cpuinfo: Some(format!("processor\t: 0\nflags\t\t: {flags}\n")),
                modules: vec![module.into()],
                nested: nested.map(str::to_owned),
            })
        };
        let amd = judge("fpu vme svm lm", "kvm_amd", Some("1"));
        assert_line(&amd, Fine, "");
        assert!(amd.found.contains("svm, used by kvm_amd; it could nest"), "{amd:?}");
        let intel = judge("fpu vmx hypervisor", "kvm_intel", Some("N"));
        assert_line(&intel, Fine, "");
        assert!(intel.found.ends_with("vmx, used by kvm_intel; this host is a virtual machine itself"), "{intel:?}");
        let emulated = judge("fpu svmish hypervisor", "kvm_pvm", None);
        assert_line(&emulated, Warning, "nested virtualisation");
        assert!(emulated.found.contains("kvm_pvm") && emulated.why.contains("bare-metal guests run"), "{emulated:?}");
        assert_line(&back_end(&Facts { cpuinfo: None, ..Facts::read() }), Unknown, "/proc");
    }
}
