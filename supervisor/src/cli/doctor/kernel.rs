//! The kernel itself: its age, its clock, and two of its interfaces that are known for what they let others do.

use super::ids::Id;
use super::line::Line;
use super::read::read;

/// The oldest kernel that the tests run on.
const OLDEST: (u32, u32) = (6, 1);
/// What later kernels brought, and what is done without.
const LATER: &[((u32, u32), &str)] = &[
    ((6, 3), "memory that can never be executed is marked as such"),
    ((6, 5), "netd knows its peers by pidfd"),
    ((6, 7), "landlock denies TCP, too"),
    ((6, 9), "a worker is found again by its pidfd's number, too"),
    ((6, 10), "landlock denies ioctls, too"),
    ((6, 12), "landlock denies signals and abstract sockets, too"),
];
/// Clocks that a process reads without a system call.
const FAST: &[&str] = &["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"];

/// What was read.
#[derive(Debug, Default)]
pub struct Facts {
    /// kernel.osrelease.
    release: Option<String>,
    /// The clock source in use, and those that there are.
    clock: Option<String>,
    clocks: Option<String>,
    /// kernel.io_uring_disabled.
    io_uring: Option<String>,
    /// vm.unprivileged_userfaultfd.
    userfaultfd: Option<String>,
}

impl Facts {
    /// Of this host.
    pub fn read() -> Facts {
        let clock = |file: &str| read(format!("/sys/devices/system/clocksource/clocksource0/{file}"));
        Facts {
            release: read("/proc/sys/kernel/osrelease"),
            clock: clock("current_clocksource"),
            clocks: clock("available_clocksource"),
            io_uring: read("/proc/sys/kernel/io_uring_disabled"),
            userfaultfd: read("/proc/sys/vm/unprivileged_userfaultfd"),
        }
    }
}

/// All lines of this file.
pub fn lines(facts: &Facts) -> Vec<Line> {
    vec![
        release(facts.release.as_deref()),
        clock(facts.clock.as_deref(), facts.clocks.as_deref().unwrap_or_default()),
        io_uring(facts.io_uring.as_deref()),
        userfaultfd(facts.userfaultfd.as_deref()),
    ]
}

/// `6.1.0-18-cloud-amd64` as two numbers.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

fn release(release: Option<&str>) -> Line {
    const ID: Id = Id::Release;
    let Some((release, version)) = release.and_then(|r| Some((r, version(r)?))) else {
        let why = "much of what jails are made of came with a certain release of the kernel";
        return Line::unknown(ID, "/proc/sys/kernel/osrelease tells no release", why, "uname -r");
    };
    if version < OLDEST {
        let (major, minor) = OLDEST;
        return Line::warning(
            ID,
            format!("Linux {release} is older than {major}.{minor}"),
            format!("{major}.{minor} is the oldest that vmsup is tested on; before 5.19 no worker runs (landlock)"),
            "install a newer kernel and boot it (Debian: sudo apt-get install linux-image-amd64)",
        );
    }
    let later: Vec<String> = LATER
        .iter()
        .filter(|(since, _)| version < *since)
        .map(|((major, minor), what)| format!("from {major}.{minor} on {what}"))
        .collect();
    let later = if later.is_empty() { String::new() } else { format!("; {}", later.join(", ")) };
    Line::ok(ID, format!("Linux {release}{later}"))
}

fn clock(current: Option<&str>, available: &str) -> Line {
    const ID: Id = Id::Clock;
    const WHY: &str = "vmsup's processes look at the clock often; with this one each look is a system call, and the timers \
                       of guests are late";
    let Some(current) = current else {
        let see = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource";
        return Line::unknown(ID, "the kernel does not say which clock it uses", WHY, see);
    };
    if FAST.contains(&current) {
        return Line::ok(ID, current);
    }
    let mend = match available.split_whitespace().find(|name| FAST.contains(name)) {
        Some(name) => {
            format!("echo {name} | sudo tee /sys/devices/system/clocksource/clocksource0/current_clocksource")
        }
        None => "see why there is no tsc: sudo dmesg | grep -iE 'tsc|clocksource'".to_owned(),
    };
    Line::warning(ID, format!("{current}, which is slow"), WHY, mend)
}

/// No part of this release uses it, and no worker may.
fn io_uring(disabled: Option<&str>) -> Line {
    const ID: Id = Id::IoUring;
    let who = match disabled {
        None => "this kernel has no switch for it (6.6 has)".to_owned(),
        Some("0") => "any process may use it (kernel.io_uring_disabled is 0)".to_owned(),
        Some("1") => "a group may use it (kernel.io_uring_disabled is 1)".to_owned(),
        Some("2") => "nobody may use it (kernel.io_uring_disabled is 2)".to_owned(),
        Some(other) => {
            let why = "no VM's process may use it in any case: its filter has no such call";
            let found = format!("kernel.io_uring_disabled is {other}, which is not known here");
            return Line::unknown(ID, found, why, "read kernel.io_uring_disabled in the kernel's sysctl/kernel.rst");
        }
    };
    Line::ok(ID, format!("{who}; VMs' processes may not, and need none: threads serve their disks"))
}

fn userfaultfd(unprivileged: Option<&str>) -> Line {
    const ID: Id = Id::Userfaultfd;
    match unprivileged {
        None => Line::ok(ID, "this kernel has none; no part of vmsup needs it"),
        Some("0") => {
            Line::ok(ID, "closed to users where the kernel's own faults are concerned; no part of vmsup needs it")
        }
        Some(_) => Line::warning(
            ID,
            "open to every process (vm.unprivileged_userfaultfd is 1)",
            "who can halt the kernel in the middle of a copy turns many of its defects into a break-in; VMs' processes \
             may not, but others of this host may",
            "echo vm.unprivileged_userfaultfd=0 | sudo tee /etc/sysctl.d/60-userfaultfd.conf; sudo sysctl --system",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::State::{Ok as Fine, Unknown, Warning};
    use super::super::line::assert_line;
    use super::*;

    #[test]
    fn a_kernel_is_told_by_its_release() {
        assert_line(&release(Some("6.18.44-x1")), Fine, "");
        assert_eq!(release(Some("6.18.44-x1")).found, "Linux 6.18.44-x1");
        let debian = release(Some("6.1.0-18-cloud-amd64"));
        assert_line(&debian, Fine, "");
        assert!(debian.found.contains("from 6.9 on a worker is found again"), "{debian:?}");
        assert_line(&release(Some("5.15.0-generic")), Warning, "linux-image");
        assert_line(&release(Some("6.0")), Warning, "linux-image");
        for nonsense in [None, Some(""), Some("six"), Some("6")] {
            assert_line(&release(nonsense), Unknown, "uname");
        }
    }

    #[test]
    fn a_slow_clock_is_a_warning() {
        for fast in FAST {
            assert_line(&clock(Some(fast), ""), Fine, "");
        }
        assert_line(&clock(Some("hpet"), "hpet tsc acpi_pm"), Warning, "echo tsc | sudo tee");
        assert_line(&clock(Some("acpi_pm"), "hpet acpi_pm"), Warning, "dmesg");
        assert_line(&clock(None, ""), Unknown, "current_clocksource");
    }

    #[test]
    fn whoever_may_use_io_uring_vms_processes_may_not() {
        for (value, who) in [(None, "no switch"), (Some("0"), "any"), (Some("1"), "a group"), (Some("2"), "nobody")] {
            assert_line(&io_uring(value), Fine, "");
            assert!(io_uring(value).found.contains(who), "{value:?}");
        }
        assert_line(&io_uring(Some("3")), Unknown, "io_uring_disabled");
    }

    #[test]
    fn a_userfaultfd_for_everybody_is_a_warning() {
        assert_line(&userfaultfd(Some("0")), Fine, "");
        assert_line(&userfaultfd(None), Fine, "");
        assert_line(&userfaultfd(Some("1")), Warning, "vm.unprivileged_userfaultfd=0");
    }

    #[test]
    fn all_of_this_is_read_from_where_the_kernel_has_it() {
        let facts = Facts::read();
        let released = std::process::Command::new("uname").arg("-r").output().unwrap().stdout;
        assert_eq!(facts.release.as_deref(), Some(String::from_utf8(released).unwrap().trim()));
        assert!(facts.clocks.unwrap().split_whitespace().any(|c| Some(c) == facts.clock.as_deref()));
    }
}
