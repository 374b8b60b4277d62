//! Networks: netd, and what on this host could stand between a guest and its peers.
//!
//! None of it concerns a VM without networks, so where no netd runs that is a warning. Where one runs and no VM can get
//! an interface from it, that is a failure.

mod client;
mod host;

use super::super::documents::VERSION;
use super::super::inspect::proc::Process;
use super::super::net::{joined, ports};
use super::ids::Id;
use super::line::Line;
use super::read::read;
use super::user::User;
use client::{Netd, Silence};
use netd_api::NetworkInfo;
use std::path::{Path, PathBuf};

/// Where root declares networks.
const CONFIG: &str = "/etc/vmsup/netd.toml";
/// CAP_NET_ADMIN as a mask (capability 12, linux/capability.h).
const NET_ADMIN: u64 = 1 << 12;

/// All lines of this group.
pub fn lines(user: &User) -> Vec<Line> {
    let path = vmsup::paths::netd_socket();
    let asked = client::ask(&path);
    let mut lines = vec![helper(&path, &asked)];
    let netd = asked.as_ref().ok();
    if let Some(netd) = netd {
        let bridges: Vec<&str> = netd.networks.iter().map(|n| n.bridge.as_str()).collect();
        lines.extend([
            privileges(netd.pid, &netd.process),
            rules(netd.status.rules, &rules_file()),
            forwarding(netd.status.ip_forward),
            bridges_up(&netd.status.bridges_down),
            networks(user, netd.process.is_ok().then_some(netd.pid), &netd.networks),
            host::chains(&netd.status.dropping_chains, &bridges, host::Manager::found()),
            host::bridge_filter(read("/proc/sys/net/bridge/bridge-nf-call-iptables").as_deref()),
        ]);
        lines.extend(localhost(&netd.networks, |bridge| {
            read(format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet"))
        }));
    }
    lines.push(host::nft(host::nft_says().as_deref()));
    lines.push(host::tun(host::Tun::found(), &host::Opener::of(netd.and_then(|n| n.process.as_ref().ok()), user)));
    lines
}

/// Is there a netd, and is it of this release?
fn helper(path: &Path, asked: &Result<Netd, Silence>) -> Line {
    const ID: Id = Id::Netd;
    let shown = vmsup::vmjson::check::escaped_path(path);
    let restart = "sudo systemctl restart vmsup-netd (without systemd: end vmsup-netd, then sudo vmsup-netd); its log \
                   says more";
    match asked {
        Ok(Netd { pid, status, .. }) if status.version != VERSION => Line::warning(
            ID,
            format!("one of release {} answers on {shown} (pid {pid}), and this is {VERSION}", status.version),
            "requests of this release may be refused",
            restart,
        ),
        Ok(Netd { pid, status, .. }) => {
            Line::ok(ID, format!("answers on {shown} (pid {pid}); {} leases of all users", status.leases))
        }
        Err(Silence::Absent) => Line::warning(
            ID,
            format!("no network helper listens on {shown}"),
            "VMs with \"nets\" cannot be started without one; all other VMs do not need it",
            format!(
                "declare a network in {CONFIG}, then sudo systemctl enable --now vmsup-netd (without systemd: sudo \
                 vmsup-netd)"
            ),
        ),
        Err(Silence::Failed(why)) => Line::failure(
            ID,
            format!("{shown}: {why}"),
            "VMs with \"nets\" cannot be started; all other VMs can",
            restart,
        ),
    }
}

/// Has netd the one capability it needs, and no other?
fn privileges(pid: i32, process: &Result<Process, String>) -> Line {
    const ID: Id = Id::NetdPrivileges;
    const WHY: &str = "netd is the one process of vmsup with a privilege; what breaks into it should find nothing more";
    let process = match process {
        Ok(process) => process,
        Err(why) => {
            let fix = format!("look as root: sudo grep -E '^(Uid|Cap|NoNewPrivs|Seccomp)' /proc/{pid}/status");
            return Line::unknown(ID, format!("needs root: {why}"), WHY, fix);
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
        return Line::ok(ID, format!("CAP_NET_ADMIN alone, as uid {uid}, with no_new_privs and a seccomp filter"));
    }
    wrong.dedup();
    let fix = "start it by its unit (sudo systemctl restart vmsup-netd), or as root with --user vmsup-netd";
    Line::warning(ID, wrong.join("; "), WHY, fix)
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

fn rules(loaded: bool, file: &Path) -> Line {
    const ID: Id = Id::NetworkRules;
    if loaded {
        return Line::ok(ID, "the tables \"bridge vmsup\" and \"inet vmsup\" are loaded");
    }
    Line::failure(
        ID,
        "the tables \"bridge vmsup\" and \"inet vmsup\" are not both loaded, with all of their sets",
        "they keep guests from posing as others, so netd gives no interface without them",
        format!("sudo nft -f {}", vmsup::vmjson::check::escaped_path(file)),
    )
}

fn forwarding(on: bool) -> Line {
    const ID: Id = Id::IpForwarding;
    if on {
        return Line::ok(ID, "on (net.ipv4.ip_forward is 1)");
    }
    Line::warning(
        ID,
        "off (net.ipv4.ip_forward is 0)",
        "guests reach the host's side of their network and nothing beyond it",
        "echo net.ipv4.ip_forward=1 | sudo tee /etc/sysctl.d/60-vmsup.conf; sudo sysctl --system",
    )
}

fn bridges_up(down: &[String]) -> Line {
    const ID: Id = Id::Bridges;
    let Some(first) = down.first() else { return Line::ok(ID, "all are up") };
    Line::warning(
        ID,
        format!("not up: {}", down.join(", ")),
        "nothing passes between the guests of such a network and anything else",
        format!("sudo ip link set {first} up; where it is gone, restart netd: sudo systemctl restart vmsup-netd"),
    )
}

/// What may this user use? `pid` is netd's, where it surely is netd's.
fn networks(user: &User, pid: Option<i32>, networks: &[NetworkInfo]) -> Line {
    const ID: Id = Id::Networks;
    if networks.is_empty() {
        let name = user.name.clone().map_or_else(|| user.uid.to_string(), |name| format!("\"{name}\""));
        let reload =
            pid.map_or_else(|| "sudo systemctl reload vmsup-netd".to_owned(), |pid| format!("sudo kill -HUP {pid}"));
        return Line::warning(
            ID,
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
    Line::ok(ID, joined(networks.iter().map(one), ", "))
}

/// Does `localhost` lead to forwards? Off is the default and no defect; on, the kernel must know.
fn localhost(networks: &[NetworkInfo], sysctl: impl Fn(&str) -> Option<String>) -> Option<Line> {
    const ID: Id = Id::LocalhostForwards;
    let names = |on: bool| -> Vec<&str> {
        networks.iter().filter(|n| n.localhost_forwards == on).map(|n| n.name.as_str()).collect()
    };
    let off_in_kernel =
        networks.iter().find(|n| n.localhost_forwards && sysctl(&n.bridge).is_some_and(|value| value != "1"));
    if let Some(n) = off_in_kernel {
        return Some(Line::warning(
            ID,
            format!("declared in {}, but net.ipv4.conf.{}.route_localnet is 0", n.name, n.bridge),
            "127.0.0.1:PORT on this host does not lead to forwards; the host's other addresses do",
            format!("sudo sysctl net.ipv4.conf.{}.route_localnet=1", n.bridge),
        ));
    }
    let switch = format!("localhost_forwards = true in {CONFIG} switches them on");
    match (names(true), names(false)) {
        (on, off) if on.is_empty() && off.is_empty() => None,
        (on, off) if off.is_empty() => Some(Line::ok(ID, format!("127.0.0.1 leads to forwards in {}", on.join(", ")))),
        (on, off) if on.is_empty() => Some(Line::ok(
            ID,
            format!("off in {}: forwards are reached by the host's other addresses; {switch}", off.join(", ")),
        )),
        (on, off) => Some(Line::ok(
            ID,
            format!("127.0.0.1 leads to forwards in {}; off in {} ({switch})", on.join(", "), off.join(", ")),
        )),
    }
}

#[cfg(test)]
mod tests;
