//! Networks: netd, and what on this host could stand between a guest and its peers.
//!
//! None of it concerns a VM without networks, so where no netd runs that is a warning. Where one runs and no VM can get
//! an interface from it, that is a failure.

mod client;
mod host;

use super::super::documents::VERSION;
use super::super::inspect::proc::Process;
use super::super::net::{joined, ports};
use super::install::User;
use super::{Check, read};
use client::{Netd, Silence};
use netd_api::NetworkInfo;
use std::path::{Path, PathBuf};

/// Where root declares networks.
const CONFIG: &str = "/etc/vmsup/netd.toml";
/// CAP_NET_ADMIN as a mask (capability 12, linux/capability.h).
const NET_ADMIN: u64 = 1 << 12;

/// All checks of this group.
pub fn checks(user: &User) -> Vec<Check> {
    let path = vmsup::paths::netd_socket();
    let asked = client::ask(&path);
    let mut checks = vec![helper(&path, &asked)];
    let netd = asked.as_ref().ok();
    if let Some(netd) = netd {
        let bridges: Vec<&str> = netd.networks.iter().map(|n| n.bridge.as_str()).collect();
        checks.extend([
            privileges(netd.pid, &netd.process),
            rules(netd.status.rules, &rules_file()),
            forwarding(netd.status.ip_forward),
            bridges_up(&netd.status.bridges_down),
            networks(user, netd.process.is_ok().then_some(netd.pid), &netd.networks),
            host::chains(&netd.status.dropping_chains, &bridges, host::Manager::found()),
            host::bridge_filter(read("/proc/sys/net/bridge/bridge-nf-call-iptables").as_deref()),
        ]);
        checks.extend(localhost(&netd.networks, |bridge| {
            read(&format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet"))
        }));
    }
    checks.push(host::nft(host::nft_says().as_deref()));
    checks.push(host::tun(host::Tun::found(), &host::Opener::of(netd.and_then(|n| n.process.as_ref().ok()), user)));
    checks
}

/// Is there a netd, and is it of this release?
fn helper(path: &Path, asked: &Result<Netd, Silence>) -> Check {
    const NAME: &str = "netd";
    let shown = vmsup::vmjson::check::escaped_path(path);
    let restart = "sudo systemctl restart vmsup-netd (without systemd: end vmsup-netd, then sudo vmsup-netd); its log \
                   says more";
    match asked {
        Ok(Netd { pid, status, .. }) if status.version != VERSION => Check::warning(
            NAME,
            format!("one of release {} answers on {shown} (pid {pid}), and this is {VERSION}", status.version),
            "requests of this release may be refused",
            restart,
        ),
        Ok(Netd { pid, status, .. }) => {
            Check::ok(NAME, format!("answers on {shown} (pid {pid}); {} leases of all users", status.leases))
        }
        Err(Silence::Absent) => Check::warning(
            NAME,
            format!("no network helper listens on {shown}"),
            "VMs with \"nets\" cannot be started without one; all other VMs do not need it",
            format!(
                "declare a network in {CONFIG}, then sudo systemctl enable --now vmsup-netd (without systemd: sudo \
                 vmsup-netd)"
            ),
        ),
        Err(Silence::Failed(why)) => Check::failure(
            NAME,
            format!("{shown}: {why}"),
            "VMs with \"nets\" cannot be started; all other VMs can",
            restart,
        ),
    }
}

/// Has netd the one capability it needs, and no other?
fn privileges(pid: i32, process: &Result<Process, String>) -> Check {
    const NAME: &str = "netd's privileges";
    const WHY: &str = "netd is the one process of vmsup with a privilege; what breaks into it should find nothing more";
    let process = match process {
        Ok(process) => process,
        Err(why) => {
            let fix = format!("look as root: sudo grep -E '^(Uid|Cap|NoNewPrivs|Seccomp)' /proc/{pid}/status");
            return Check::warning(NAME, format!("not known: {why}"), WHY, fix);
        }
    };
    let mut wrong = Vec::new();
    if process.uids.contains(&0) || process.uids.is_empty() {
        wrong.push("it runs as root".to_owned());
    }
    for thread in &process.threads {
        let caps = thread.capabilities;
        if caps.effective != NET_ADMIN || (caps.permitted | caps.inheritable | caps.ambient) & !NET_ADMIN != 0 {
            wrong.push(format!("its capabilities are {:#x}, not CAP_NET_ADMIN alone", caps.effective | caps.permitted));
        }
        if !thread.no_new_privs {
            wrong.push("it has no no_new_privs".to_owned());
        }
        if thread.seccomp != "filter" {
            wrong.push("it has no seccomp filter".to_owned());
        }
    }
    if process.threads.is_empty() {
        wrong.push("none of its threads can be seen".to_owned());
    }
    if wrong.is_empty() {
        let uid = process.uids[0];
        return Check::ok(NAME, format!("CAP_NET_ADMIN alone, as uid {uid}, with no_new_privs and a seccomp filter"));
    }
    wrong.dedup();
    let fix = "start it by its unit (sudo systemctl restart vmsup-netd), or as root with --user vmsup-netd";
    Check::warning(NAME, wrong.join("; "), WHY, fix)
}

/// Where the rules of this release are: as `make install` puts them, as a package does, in a checkout; else their name.
fn rules_file() -> PathBuf {
    let beside = vmsup::paths::program_dir().unwrap_or_default();
    let places = [
        beside.join("../share/vmsup/vmsup.nft"),
        "/usr/share/vmsup/vmsup.nft".into(),
        beside.join("../../policies/nft/vmsup.nft"),
    ];
    places.iter().find_map(|p| p.canonicalize().ok()).unwrap_or_else(|| "vmsup.nft".into())
}

fn rules(loaded: bool, file: &Path) -> Check {
    const NAME: &str = "network rules";
    if loaded {
        return Check::ok(NAME, "the tables \"bridge vmsup\" and \"inet vmsup\" are loaded");
    }
    Check::failure(
        NAME,
        "the tables \"bridge vmsup\" and \"inet vmsup\" are not both loaded, with all of their sets",
        "they keep guests from posing as others, so netd gives no interface without them",
        format!("sudo nft -f {}", vmsup::vmjson::check::escaped_path(file)),
    )
}

fn forwarding(on: bool) -> Check {
    const NAME: &str = "ip forwarding";
    if on {
        return Check::ok(NAME, "on (net.ipv4.ip_forward is 1)");
    }
    Check::warning(
        NAME,
        "off (net.ipv4.ip_forward is 0)",
        "guests reach the host's side of their network and nothing beyond it",
        "echo net.ipv4.ip_forward=1 | sudo tee /etc/sysctl.d/60-vmsup.conf; sudo sysctl --system",
    )
}

fn bridges_up(down: &[String]) -> Check {
    const NAME: &str = "bridges";
    let Some(first) = down.first() else { return Check::ok(NAME, "all are up") };
    Check::warning(
        NAME,
        format!("not up: {}", down.join(", ")),
        "nothing passes between the guests of such a network and anything else",
        format!("sudo ip link set {first} up; where it is gone, restart netd: sudo systemctl restart vmsup-netd"),
    )
}

/// What may this user use? `pid` is netd's, where it surely is netd's.
fn networks(user: &User, pid: Option<i32>, networks: &[NetworkInfo]) -> Check {
    const NAME: &str = "networks";
    if networks.is_empty() {
        let name = user.name.clone().map_or_else(|| user.uid.to_string(), |name| format!("\"{name}\""));
        let reload =
            pid.map_or_else(|| "sudo systemctl reload vmsup-netd".to_owned(), |pid| format!("sudo kill -HUP {pid}"));
        return Check::warning(
            NAME,
            "none is open to this user",
            "VMs with \"nets\" are refused; all other VMs start",
            format!(
                "in a [[network]] of {CONFIG}, add {name} to users (or a group of this user to groups), then {reload}"
            ),
        );
    }
    let one = |n: &NetworkInfo| {
        let forwards = joined(n.forwards.iter().map(|range| ports(*range)), ",");
        let forwards = if n.forwards.is_empty() { "no forwards".to_owned() } else { format!("forwards of {forwards}") };
        format!("{} ({}/{}, {} of {} leases, {forwards})", n.name, n.gateway, n.prefix, n.leases, n.limit)
    };
    Check::ok(NAME, joined(networks.iter().map(one), ", "))
}

/// Does `localhost` lead to forwards? Off is the default and no defect; on, the kernel must know.
fn localhost(networks: &[NetworkInfo], sysctl: impl Fn(&str) -> Option<String>) -> Option<Check> {
    const NAME: &str = "localhost forwards";
    let names = |on: bool| -> Vec<&str> {
        networks.iter().filter(|n| n.localhost_forwards == on).map(|n| n.name.as_str()).collect()
    };
    let off_in_kernel =
        networks.iter().find(|n| n.localhost_forwards && sysctl(&n.bridge).is_some_and(|value| value != "1"));
    if let Some(n) = off_in_kernel {
        return Some(Check::warning(
            NAME,
            format!("declared in {}, but net.ipv4.conf.{}.route_localnet is 0", n.name, n.bridge),
            "127.0.0.1:PORT on this host does not lead to forwards; the host's other addresses do",
            format!("sudo sysctl net.ipv4.conf.{}.route_localnet=1", n.bridge),
        ));
    }
    let switch = format!("localhost_forwards = true in {CONFIG} switches them on");
    match (names(true), names(false)) {
        (on, off) if on.is_empty() && off.is_empty() => None,
        (on, off) if off.is_empty() => {
            Some(Check::ok(NAME, format!("127.0.0.1 leads to forwards in {}", on.join(", "))))
        }
        (on, off) if on.is_empty() => Some(Check::ok(
            NAME,
            format!("off in {}: forwards are reached by the host's other addresses; {switch}", off.join(", ")),
        )),
        (on, off) => Some(Check::ok(
            NAME,
            format!("127.0.0.1 leads to forwards in {}; off in {} ({switch})", on.join(", "), off.join(", ")),
        )),
    }
}

#[cfg(test)]
mod tests;
