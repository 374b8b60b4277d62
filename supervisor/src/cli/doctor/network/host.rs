//! The host beside netd: nft, other people's rules, `br_netfilter`, `/dev/net/tun`.

use super::super::super::inspect::proc::Process;
use super::super::ids::Id;
use super::super::line::Line;
use super::super::read::{program, read, say};
use super::super::user::User;
use rustix::fs::{FileType, stat};
use std::path::Path;
use std::process::Command;

/// The oldest nft whose reading of `vmsup.nft` was tested.
const NFT_KNOWN: (u32, u32, u32) = (1, 0, 6);
/// What TAPs are made with.
const TUN: &str = "/dev/net/tun";
/// netd's own user and group, unless its command line says otherwise.
const NETD_USER: &str = "vmsup-netd";

/// The first line of `nft --version`; `None` where there is no nft.
pub fn nft_says() -> Option<String> {
    let program = program("nft", &["/usr/sbin", "/sbin"])?;
    let said = say(Command::new(program).arg("--version")).unwrap_or_default();
    Some(said.lines().next().unwrap_or_default().to_owned())
}

/// `nftables v1.0.6 (…)` as three numbers.
fn nft_version(says: &str) -> Option<(u32, u32, u32)> {
    let version = says.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?))
}

/// Is there an nft that loads the rules?
pub fn nft(says: Option<&str>) -> Line {
    const ID: Id = Id::Nft;
    const WHY: &str = "it loads the rules of vmsup's networks (vmsup.nft), at each boot";
    let install = "sudo apt-get install nftables";
    let Some(says) = says else {
        return Line::warning(ID, "not found in /usr/sbin, /sbin and PATH", WHY, install);
    };
    let (a, b, c) = NFT_KNOWN;
    match nft_version(says) {
        None => Line::warning(ID, "nft --version does not tell its version", WHY, install),
        Some(version) if version < NFT_KNOWN => {
            let older = format!("{says} is older than {a}.{b}.{c}, the oldest that is known to load the rules");
            Line::warning(ID, older, WHY, format!("install nftables {a}.{b}.{c} or later"))
        }
        Some((x, y, z)) => Line::ok(ID, format!("{x}.{y}.{z}")),
    }
}

/// Who else keeps rules on this host.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manager {
    /// ufw is switched on.
    pub ufw: bool,
    /// Docker made its bridge.
    pub docker: bool,
}

impl Manager {
    /// Those of this host.
    pub fn found() -> Manager {
        let conf = read("/etc/ufw/ufw.conf").unwrap_or_default();
        let ufw = conf.lines().any(|l| l.trim().to_ascii_lowercase().replace('"', "") == "enabled=yes");
        Manager { ufw, docker: Path::new("/sys/class/net/docker0").exists() }
    }
}

/// Do other people's chains drop what guests send and receive?
pub fn chains(dropping: &[String], bridges: &[&str], manager: Manager) -> Line {
    const ID: Id = Id::ForwardChains;
    // Guests have IPv4 only.
    let dropping: Vec<&str> = dropping.iter().map(String::as_str).filter(|chain| !chain.starts_with("ip6 ")).collect();
    let Some(first) = dropping.first() else { return Line::ok(ID, "no other rules drop what guests send") };
    let whose = if manager.docker && !manager.ufw { " (Docker's doing)" } else { "" };
    let (bridge, others) = match bridges {
        [] => ("BRIDGE", String::new()),
        [one] => (*one, String::new()),
        [one, more @ ..] => (*one, format!(" (and the same for {})", more.join(", "))),
    };
    Line::warning(
        ID,
        format!("{} drops what it does not know{whose}", dropping.join(", ")),
        "a packet must pass every chain: guests reach nothing beyond the host and forwards do not work, whatever \
         vmsup's own rules say (they go on to hold after this change)",
        opened(first, bridge, manager) + &others,
    )
}

/// The command that lets a bridge's packets through a chain, by the one who keeps that chain.
fn opened(chain: &str, bridge: &str, manager: Manager) -> String {
    let both = |command: &dyn Fn(&str, &str) -> String| format!("{}; {}", command("i", "in"), command("o", "out"));
    let harmless = |c: char| c.is_ascii_alphanumeric() || "_-./ ".contains(c);
    if chain.contains("firewalld") {
        let zone = "sudo firewall-cmd --permanent --zone=trusted --add-interface";
        return format!("{zone}={bridge}; sudo firewall-cmd --reload");
    }
    match chain.strip_prefix("ip filter ") {
        Some("FORWARD") if manager.ufw => both(&|_, way| format!("sudo ufw route allow {way} on {bridge}")),
        Some("FORWARD") => {
            let into = if manager.docker { "DOCKER-USER" } else { "FORWARD" };
            both(&|option, _| format!("sudo iptables -I {into} -{option} {bridge} -j ACCEPT"))
        }
        // A name goes into a command only where no shell makes more of it.
        _ if chain.chars().all(harmless) => {
            both(&|option, _| format!("sudo nft insert rule {chain} {option}ifname {bridge} accept"))
        }
        _ => format!("add rules to that chain that accept packets from and to {bridge}"),
    }
}

/// Does `br_netfilter` send bridged frames through the IP rules?
pub fn bridge_filter(sysctl: Option<&str>) -> Line {
    const ID: Id = Id::BridgeFilter;
    match sysctl {
        None => Line::ok(ID, "not loaded"),
        Some("0") => Line::ok(ID, "loaded, and off for IPv4 (bridge-nf-call-iptables is 0)"),
        Some(_) => Line::warning(
            ID,
            "frames within a bridge go through the IP rules, too (net.bridge.bridge-nf-call-iptables is 1)",
            "where guests of one network may reach each other, the host's forward chains decide as well, and each \
             frame costs more",
            "echo net.bridge.bridge-nf-call-iptables=0 | sudo tee /etc/sysctl.d/60-vmsup-bridge.conf; sudo sysctl \
             --system (Kubernetes needs it at 1: leave it so there)",
        ),
    }
}

/// `/dev/net/tun` as it is.
#[derive(Debug, Clone, Copy)]
pub struct Tun {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

impl Tun {
    /// That of this host; `None` where it is not there, or is no device.
    pub fn found() -> Option<Tun> {
        let s = stat(TUN).ok()?;
        let device = FileType::from_raw_mode(s.st_mode) == FileType::CharacterDevice;
        device.then_some(Tun { uid: s.st_uid, gid: s.st_gid, mode: s.st_mode & 0o777 })
    }
}

/// Who opens it.
#[derive(Debug, Default)]
pub struct Opener {
    pub uid: Option<u32>,
    pub gids: Vec<u32>,
}

impl Opener {
    /// netd as it runs; where that cannot be seen, the user that it would run as.
    pub fn of(netd: Option<&Process>, user: &User) -> Opener {
        match netd {
            Some(process) => Opener {
                uid: process.uids.get(3).copied(),
                gids: process.gids.iter().skip(3).chain(&process.groups).copied().collect(),
            },
            None => Opener { uid: None, gids: user.group_id(NETD_USER).into_iter().collect() },
        }
    }

    /// The kernel's own order: who is the owner is not asked for the group.
    fn may_open(&self, tun: Tun) -> bool {
        let bits = if self.uid == Some(tun.uid) {
            tun.mode >> 6
        } else if self.gids.contains(&tun.gid) {
            tun.mode >> 3
        } else {
            tun.mode
        };
        bits & 0o6 == 0o6
    }
}

/// Can netd make a TAP? It has no capability that would open what its user may not.
pub fn tun(found: Option<Tun>, opener: &Opener) -> Line {
    const ID: Id = Id::TunDevice;
    const WHY: &str = "netd makes the VMs' interfaces with it";
    let rule = "echo 'KERNEL==\"tun\", MODE=\"0666\", OPTIONS+=\"static_node=net/tun\"' | sudo tee \
                /etc/udev/rules.d/65-vmsup-tun.rules; sudo chmod 666 /dev/net/tun (opening it gives nobody an interface: \
                that takes CAP_NET_ADMIN)";
    match found {
        None => Line::warning(ID, format!("{TUN} is not there"), WHY, "sudo modprobe tun"),
        Some(tun) if opener.may_open(tun) => {
            Line::ok(ID, format!("{TUN} can be opened by netd's user (mode {:04o})", tun.mode))
        }
        Some(tun) => {
            let finding = format!(
                "{TUN} cannot be opened by netd's user (mode {:04o}, uid {}, gid {})",
                tun.mode, tun.uid, tun.gid
            );
            Line::warning(ID, finding, WHY, rule)
        }
    }
}
