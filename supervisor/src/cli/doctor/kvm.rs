//! The processor and the kernel: `/dev/kvm`, and what kind of KVM is behind it.

use super::install::User;
use super::{Check, read};
use rustix::fs::{Mode, OFlags, open, stat};
use rustix::io::Errno;

const DEVICE: &str = "/dev/kvm";

/// All checks of this file.
pub fn checks(user: &User) -> Vec<Check> {
    let opened = open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map(drop);
    let owner = stat(DEVICE).ok().map(|s| (s.st_gid, s.st_mode & 0o777));
    let present = opened.is_ok();
    let mut checks = vec![device(opened, owner, user)];
    if present && let Some(cpuinfo) = read("/proc/cpuinfo") {
        checks.push(kind(&cpuinfo));
    }
    checks
}

/// Whether the device can be used, from what open(2) said and from its group and mode.
fn device(opened: Result<(), Errno>, owner: Option<(u32, u32)>, user: &User) -> Check {
    const WHY: &str = "without KVM no guest can run";
    let failure = |finding: &str, fix: String| Check::failure("kvm", format!("{DEVICE} {finding}"), WHY, fix);
    match opened {
        Ok(()) => Check::ok("kvm", format!("{DEVICE} can be read and written")),
        Err(Errno::ACCESS | Errno::PERM) => {
            let kvm = user.group_id("kvm");
            let for_group = owner.is_some_and(|(gid, mode)| Some(gid) == kvm && mode & 0o060 == 0o060);
            let join = format!("sudo usermod -aG kvm {} and log in again", user.name_or_id());
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

/// Whether the processor itself virtualises, from its flags. A KVM without that emulates.
fn kind(cpuinfo: &str) -> Check {
    let flags = cpuinfo.lines().find_map(|l| l.strip_prefix("flags")).unwrap_or_default();
    match flags.split_whitespace().find(|f| matches!(*f, "vmx" | "svm")) {
        Some(flag) => Check::ok("virtualisation", format!("the processor has {flag}")),
        None => Check::warning(
            "virtualisation",
            "there is a KVM, but the processor has neither vmx nor svm: this KVM emulates its guests",
            "bare-metal guests run (examples/hello.json does); a stock Linux kernel will not boot here, or far too slowly",
            "use a machine with VT-x or AMD-V, or switch on nested virtualisation in the host that this machine runs on",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn user() -> User {
        User { uid: 1000, name: Some("anna".into()), groups: vec![("kvm".into(), 109)] }
    }

    #[test]
    fn a_device_that_can_be_opened_is_fine() {
        assert_eq!(device(Ok(()), Some((109, 0o660)), &user()).result, Level::Ok);
    }

    #[test]
    fn a_user_outside_of_the_group_is_told_to_join_it() {
        let check = device(Err(Errno::ACCESS), Some((109, 0o660)), &user());
        assert_eq!(check.result, Level::Failure);
        assert_eq!(check.fix, "sudo usermod -aG kvm anna and log in again");
    }

    #[test]
    fn a_device_that_no_group_may_use_gets_a_rule_as_well() {
        let check = device(Err(Errno::ACCESS), Some((0, 0o600)), &user());
        assert!(check.fix.contains("KERNEL==\"kvm\"") && check.fix.contains("usermod"), "{}", check.fix);
        let nobody = User { groups: vec![], ..user() };
        assert!(device(Err(Errno::ACCESS), Some((0, 0o600)), &nobody).fix.starts_with("sudo groupadd"));
    }

    #[test]
    fn a_missing_device_names_the_modules() {
        assert!(device(Err(Errno::NOENT), None, &user()).fix.contains("modprobe kvm_intel"));
    }

    #[test]
    fn an_emulating_kvm_is_told_apart_by_the_processors_flags() {
        assert_eq!(kind("flags\t\t: fpu vme svm lm\n").result, Level::Ok);
        assert_eq!(kind("flags\t\t: fpu vmx\n").result, Level::Ok);
        let check = kind("flags\t\t: fpu svmish hypervisor\n");
        assert_eq!(check.result, Level::Warning);
        assert!(check.why.contains("bare-metal guests run"), "{}", check.why);
    }
}
