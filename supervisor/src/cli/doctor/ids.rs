//! What is looked at: every line of the report has one of these names. docs/doctor.md tells of each.

use std::fmt;

macro_rules! ids {
    ($($(#[$about:meta])* $group:ident $label:literal: $($id:ident $name:literal),+;)+) => {
        /// What a line is about.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Group {
            $($(#[$about])* $group),+
        }

        impl Group {
            /// As JSON has it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Group::$group => $label),+
                }
            }
        }

        /// What is looked at.
        #[allow(missing_docs, reason = "docs/doctor.md has a line for each")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Id {
            $($($id),+),+
        }

        impl Id {
            /// All of them, in the order of the report.
            pub const ALL: &[Id] = &[$($(Id::$id),+),+];

            /// As people and JSON have it.
            pub fn name(self) -> &'static str {
                match self {
                    $($(Id::$id => $name),+),+
                }
            }

            /// What it is about.
            pub fn group(self) -> Group {
                match self {
                    $($(Id::$id)|+ => Group::$group),+
                }
            }
        }
    };
}

ids! {
    /// The kernel itself.
    Kernel "kernel": Release "kernel", Clock "clock-source", IoUring "io-uring", Userfaultfd "userfaultfd";
    /// KVM, and the processor.
    Kvm "kvm": Kvm "kvm", KvmBackEnd "kvm-back-end";
    /// What a jail is made of.
    Jail "jail": UserNamespaces "user-namespaces", Namespaces "namespaces", SubordinateIds "subordinate-ids",
        Landlock "landlock", Seccomp "seccomp", PolicySection "policy-section", Cgroups "cgroups";
    /// What keeps tenants of one host from each other, beside the jail.
    Isolation "isolation": CpuVulnerabilities "cpu-vulnerabilities", Smt "smt", Ksm "ksm", Swap "swap",
        CoreDumps "core-dumps";
    /// How much there may be.
    Limits "limits": Memory "memory", OpenFiles "open-files", Processes "processes", ResourceLimits "resource-limits";
    /// This installation, and what runs of it.
    Install "install": User "user", Programs "programs", Supervisor "supervisor", State "state", Units "systemd-units",
        RuntimeDirectory "runtime-directory", StateDirectory "state-directory";
    /// What VMs without networks do not need.
    Network "network": Netd "netd", NetdPrivileges "netd-privileges", NetworkRules "network-rules",
        IpForwarding "ip-forwarding", Bridges "bridges", Networks "networks", ForwardChains "forward-chains",
        BridgeFilter "br-netfilter", LocalhostForwards "localhost-forwards", Nft "nft", TunDevice "tun-device";
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_name_is_one_of_its_own_that_needs_no_quotes() {
        let names: BTreeSet<&str> = Id::ALL.iter().map(|id| id.name()).collect();
        assert_eq!(names.len(), Id::ALL.len());
        assert!(names.iter().all(|n| n.chars().all(|c| c.is_ascii_lowercase() || c == '-')), "{names:?}");
    }

    #[test]
    fn the_documentation_tells_of_every_line_in_the_order_of_the_report_and_of_no_other() {
        let text = include_str!("../../../../docs/doctor.md");
        let told: Vec<(&str, &str)> = text
            .split("\n## ")
            .skip(1)
            .flat_map(|section| {
                let group = section.lines().next().unwrap_or_default().split('`').nth(1).unwrap_or_default();
                section.lines().filter_map(move |line| Some((group, line.strip_prefix("| `")?.split('`').next()?)))
            })
            .collect();
        let ours: Vec<(&str, &str)> = Id::ALL.iter().map(|id| (id.group().name(), id.name())).collect();
        assert_eq!(told, ours);
    }
}
