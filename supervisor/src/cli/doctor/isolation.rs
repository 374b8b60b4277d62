//! What tenants of one host could learn of each other past the jail: by the processor, by merged memory, from the disk.

use super::ids::Id;
use super::line::Line;
use super::read::{names, number, read};

/// Where the kernel says what it knows of the processor's defects.
const VULNERABILITIES: &str = "/sys/devices/system/cpu/vulnerabilities";
/// The most defects that are named.
const NAMED: usize = 6;

/// What was read.
#[derive(Debug, Default)]
pub struct Facts {
    /// Defect, and what the kernel says of it.
    vulnerabilities: Vec<(String, String)>,
    /// /proc/cmdline.
    cmdline: Option<String>,
    /// /sys/devices/system/cpu/smt/control.
    smt: Option<String>,
    /// /sys/kernel/mm/ksm/run.
    ksm: Option<u64>,
    /// /proc/swaps.
    swaps: Option<String>,
    /// Block devices of the device mapper that encrypt: `dm-0`.
    encrypting: Vec<String>,
    /// kernel.core_pattern, fs.suid_dumpable.
    core_pattern: Option<String>,
    suid_dumpable: Option<u64>,
}

impl Facts {
    /// Of this host.
    pub fn read() -> Facts {
        let vulnerabilities = names(VULNERABILITIES).into_iter();
        let encrypts =
            |dm: &String| read(format!("/sys/block/{dm}/dm/uuid")).is_some_and(|uuid| uuid.starts_with("CRYPT-"));
        Facts {
            vulnerabilities: vulnerabilities
                .filter_map(|name| Some((name.clone(), read(format!("{VULNERABILITIES}/{name}"))?)))
                .collect(),
            cmdline: read("/proc/cmdline"),
            smt: read("/sys/devices/system/cpu/smt/control"),
            ksm: number("/sys/kernel/mm/ksm/run"),
            swaps: read("/proc/swaps"),
            encrypting: names("/sys/block").into_iter().filter(|n| n.starts_with("dm-")).filter(encrypts).collect(),
            core_pattern: read("/proc/sys/kernel/core_pattern"),
            suid_dumpable: number("/proc/sys/fs/suid_dumpable"),
        }
    }
}

/// All lines of this file.
pub fn lines(facts: &Facts) -> Vec<Line> {
    vec![
        vulnerabilities(&facts.vulnerabilities, facts.cmdline.as_deref().unwrap_or_default()),
        smt(facts.smt.as_deref()),
        ksm(facts.ksm),
        swap(facts.swaps.as_deref(), &facts.encrypting),
        cores(facts.core_pattern.as_deref(), facts.suid_dumpable),
    ]
}

/// What the kernel itself calls vulnerable, or has no mitigation for.
fn vulnerabilities(found: &[(String, String)], cmdline: &str) -> Line {
    const ID: Id = Id::CpuVulnerabilities;
    const WHY: &str = "a guest may read what the processor left behind: of the host, or of another tenant's guest";
    if found.is_empty() {
        return Line::unknown(ID, format!("{VULNERABILITIES} tells nothing"), WHY, "use a kernel that has it (4.15)");
    }
    let open = |says: &str| {
        let says = says.to_ascii_lowercase();
        says.contains("vulnerable") || says.starts_with("unknown")
    };
    let open: Vec<&str> = found.iter().filter(|(_, says)| open(says)).map(|(name, _)| name.as_str()).collect();
    if open.is_empty() {
        return Line::ok(ID, format!("none of the {} that this kernel knows is open", found.len()));
    }
    let more = open.len().saturating_sub(NAMED);
    let mut named = open[..open.len().min(NAMED)].join(", ");
    if more > 0 {
        named.push_str(&format!(" and {more} more"));
    }
    let mend = if cmdline.split_whitespace().any(|option| option == "mitigations=off") {
        "take mitigations=off from the kernel's command line (/etc/default/grub, sudo update-grub), and reboot"
            .to_owned()
    } else {
        format!(
            "sudo apt-get install intel-microcode amd64-microcode, a newer kernel, and reboot; grep . {VULNERABILITIES}/* \
             tells what is missing; in a virtual machine this is its host's to mend"
        )
    };
    Line::warning(ID, format!("open: {named}"), WHY, mend)
}

fn smt(control: Option<&str>) -> Line {
    const ID: Id = Id::Smt;
    const WHY: &str =
        "two threads of a core share its caches and buffers: a guest may learn what the guest beside it does";
    match control {
        Some("on") => Line::warning(
            ID,
            "on: the threads of a core run different tenants' guests at the same time",
            WHY,
            "where tenants do not trust each other: echo off | sudo tee /sys/devices/system/cpu/smt/control, and nosmt on \
             the kernel's command line for the next boot",
        ),
        Some("notsupported" | "notimplemented") => Line::ok(ID, "this processor has one thread a core"),
        Some(off) => Line::ok(ID, off),
        None => {
            let see = "lscpu | grep 'per core'";
            Line::unknown(ID, "the kernel does not say whether a core runs several threads", WHY, see)
        }
    }
}

/// Guest RAM is a memfd, which KSM leaves alone; so this is about who else runs VMs here.
fn ksm(run: Option<u64>) -> Line {
    const ID: Id = Id::Ksm;
    match run {
        None => Line::ok(ID, "this kernel has none"),
        Some(1) => Line::warning(
            ID,
            "on: the kernel merges equal pages of the processes that ask for it",
            "vmsup's guests take no part, other VMs of this host may (QEMU asks for it): by the time that a write takes, one \
             tells what is in another's memory, and merged rows of DRAM can be hammered",
            "echo 2 | sudo tee /sys/kernel/mm/ksm/run (which also takes apart what is merged); keep what switches it on \
             from starting: sudo systemctl disable --now ksm ksmtuned",
        ),
        Some(_) => Line::ok(ID, "off"),
    }
}

/// Swap in memory (zram) or that is encrypted keeps nothing that outlives the power.
fn swap(swaps: Option<&str>, encrypting: &[String]) -> Line {
    const ID: Id = Id::Swap;
    const WHY: &str = "guests' memory may be written there, and be read from the disk later; a VM with memory_max_mib under a \
                       cgroup is not swapped";
    let Some(swaps) = swaps else {
        return Line::unknown(ID, "/proc/swaps cannot be read", WHY, "swapon --show");
    };
    let harmless = |path: &str| {
        let name = path.strip_prefix("/dev/").unwrap_or_default();
        name.starts_with("zram") || encrypting.iter().any(|dm| dm == name)
    };
    let all: Vec<&str> = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    let plain: Vec<&str> = all.iter().copied().filter(|path| !harmless(path)).collect();
    match (all.as_slice(), plain.first()) {
        ([], _) => Line::ok(ID, "none"),
        (all, None) => Line::ok(ID, format!("{}: compressed in memory, or encrypted", all.join(", "))),
        (_, Some(first)) => Line::warning(
            ID,
            format!("{} is not known to be encrypted", plain.join(", ")),
            WHY,
            format!(
                "sudo swapoff {first} and take it from /etc/fstab, or have it encrypted with a key of each boot \
                 (crypttab(5): swap)"
            ),
        ),
    }
}

/// Workers and supervisor make no cores, by two means each. What is left are the programs that are setuid root.
fn cores(pattern: Option<&str>, suid_dumpable: Option<u64>) -> Line {
    const ID: Id = Id::CoreDumps;
    const OURS: &str = "vmsup's processes make none";
    let safe = pattern.is_some_and(|p| p.starts_with('|') || p.starts_with('/'));
    let mend = "echo fs.suid_dumpable=0 | sudo tee /etc/sysctl.d/60-suid-dumpable.conf; sudo sysctl --system";
    match (pattern, suid_dumpable) {
        (None, _) | (_, None) => {
            let see = "sysctl kernel.core_pattern fs.suid_dumpable";
            Line::unknown(ID, "the kernel does not say where cores go", format!("{OURS}; others of this host may"), see)
        }
        (_, Some(1)) => Line::warning(
            ID,
            "programs that gained privileges leave cores to their users (fs.suid_dumpable is 1)",
            format!("{OURS}, but newuidmap, which is setuid root, can be had to leave root's secrets"),
            mend,
        ),
        (Some(pattern), Some(2)) if !safe => Line::warning(
            ID,
            format!("cores of privileged programs go to {pattern:?}, wherever they run (fs.suid_dumpable is 2)"),
            format!("{OURS}; of newuidmap, which is setuid root, a user would choose where root writes"),
            mend,
        ),
        (Some(pattern), _) => Line::ok(ID, format!("{OURS}; those of others go to {pattern:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::State::{Ok as Fine, Unknown, Warning};
    use super::super::line::assert_line;
    use super::*;

    #[test]
    fn a_processor_whose_defects_are_open_is_a_warning() {
        let judge = |says: &[&str], cmdline: &str| {
            let found: Vec<_> =
                says.iter().enumerate().map(|(n, says)| (format!("d{n}"), (*says).to_owned())).collect();
            vulnerabilities(&found, cmdline)
        };
        assert_line(
            &judge(&["Not affected", "Mitigation: PTI", "Mitigation: Retpolines; STIBP: disabled"], ""),
            Fine,
            "",
        );
        for open in [
            "Vulnerable",
            "Vulnerable: Safe RET, no microcode",
            "KVM: Vulnerable",
            "Mitigation: Clear CPU buffers; SMT vulnerable",
            "Unknown: No mitigations",
        ] {
            let line = judge(&["Not affected", open], "quiet");
            assert_line(&line, Warning, "microcode");
            assert_eq!(line.found, "open: d1");
        }
        assert_line(&judge(&["Vulnerable"], "quiet mitigations=off"), Warning, "take mitigations=off");
        assert_eq!(judge(&["Vulnerable"; 8], "").found, "open: d0, d1, d2, d3, d4, d5 and 2 more");
        assert_line(&judge(&[], ""), Unknown, "kernel");
    }

    #[test]
    fn threads_of_a_core_that_are_shared_are_a_warning() {
        assert_line(&smt(Some("on")), Warning, "smt/control");
        for off in ["off", "forceoff", "notsupported", "notimplemented"] {
            assert_line(&smt(Some(off)), Fine, "");
        }
        assert_line(&smt(None), Unknown, "lscpu");
    }

    #[test]
    fn memory_that_is_merged_is_a_warning() {
        assert_line(&ksm(Some(1)), Warning, "echo 2 | sudo tee /sys/kernel/mm/ksm/run");
        for off in [None, Some(0), Some(2)] {
            assert_line(&ksm(off), Fine, "");
        }
    }

    #[test]
    fn swap_on_a_disk_that_is_not_encrypted_is_a_warning() {
        const HEAD: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        let judge = |rows: &str| swap(Some(&format!("{HEAD}{rows}")), &["dm-1".into()]);
        assert_line(&judge(""), Fine, "");
        assert_line(&judge("/dev/zram0 partition 100 0 100\n/dev/dm-1 partition 9 0 -2"), Fine, "");
        for plain in
            ["/dev/dm-0 partition 100 0 -2", "/swapfile file 100 0 -2", "/dev/zram0 p 1 0 1\n/dev/sda2 p 1 0 1"]
        {
            assert_line(&judge(plain), Warning, "sudo swapoff /");
        }
        assert_line(&judge("/dev/zram0 p 1 0 1\n/dev/sda2 p 1 0 1"), Warning, "sudo swapoff /dev/sda2");
        assert_line(&swap(None, &[]), Unknown, "swapon");
    }

    #[test]
    fn cores_of_privileged_programs_are_a_warning() {
        assert_line(&cores(Some("core"), Some(0)), Fine, "");
        assert_line(&cores(Some("|/usr/lib/systemd/systemd-coredump %P"), Some(2)), Fine, "");
        assert_line(&cores(Some("/var/core/%p"), Some(2)), Fine, "");
        assert_line(&cores(Some("core"), Some(2)), Warning, "fs.suid_dumpable=0");
        assert_line(&cores(Some("|/bin/handler"), Some(1)), Warning, "fs.suid_dumpable=0");
        assert_line(&cores(None, Some(0)), Unknown, "sysctl");
        assert_line(&cores(Some("core"), None), Unknown, "sysctl");
    }
}
