//! netd in a network namespace of its own that plays the host, with another one that plays the world outside; and
//! clients of netd that are whoever a test wants them to be.
//!
//! ```text
//!   inside (the host: netd, bridges, TAPs)                     outside
//!   up0 192.0.2.1/24 ──────────────────────────────────── out0 192.0.2.2/24
//!   lo  198.51.100.1/32, a further address of the host's
//! ```

use crate::netns::{Caller, Netns, as_caller};
use crate::user::{self, User};
use crate::wire::Wire;
use crate::{Scratch, eventually, program};
use ipc::Channel;
use netd_api::{Forward, Lease, LeaseId, LeaseInfo, NetworkInfo, Refusal, Reply, Request, Status, VmId, Wanted};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The host's address on its uplink.
pub const UPLINK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The server outside. It knows no way to the guests' subnets.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Another address of the host's.
pub const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Where clouds keep their secrets.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The rules as they are shipped.
pub fn rules_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/nft/vmsup.nft")
}

/// One network `default`, bridge `vmsup0`, 10.77.0.1/24, for `vmsup-test`, who may forward 8000 to 8999 and 2222; `more`
/// are further lines of it.
pub fn default_network(more: &str) -> String {
    let name = user::with_subuids().name;
    format!(
        "[[network]]\nname = \"default\"\nbridge = \"vmsup0\"\nsubnet = \"10.77.0.1/24\"\nusers = [\"{name}\"]\n{more}\n\
         [[network.forward]]\nusers = [\"{name}\"]\nports = [\"8000-8999\", 2222]\n"
    )
}

/// A namespace that plays the host, and its netd.
pub struct NetHost {
    /// The host.
    pub inside: Netns,
    /// The world.
    pub outside: Netns,
    /// Root's: the configuration and netd's log; below it `run`, netd's own.
    folder: Scratch,
    /// In front of netd: a program that execs it.
    wrapper: Vec<String>,
    netd: Option<Child>,
    starts: usize,
    /// `run` is a file system of its own.
    mounted: bool,
}

impl NetHost {
    /// A host with rules loaded, forwarding packets, and netd serving.
    pub fn start(config: &str) -> NetHost {
        NetHost::start_wrapped(&[], config)
    }

    /// As [`NetHost::start`], with a program in front that execs netd (`setpriv`, say).
    pub fn start_wrapped(wrapper: &[&str], config: &str) -> NetHost {
        let mut host = NetHost::without_netd(config);
        host.wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        host.load_rules();
        host.run();
        host
    }

    /// A host where netd and its rules are yet to come.
    ///
    /// # Panics
    /// Where the namespaces cannot be made.
    pub fn without_netd(config: &str) -> NetHost {
        let (inside, outside) = (Netns::new(), Netns::new());
        inside.join(("up0", &format!("{UPLINK}/24")), &outside, ("out0", &format!("{SERVER}/24")));
        inside.ip(&format!("address add {ELSEWHERE}/32 dev lo"));
        inside.sysctl("net/ipv4/ip_forward", "1");
        let netd = user::netd();
        let folder = Scratch::new(&User { name: "root".into(), uid: 0, gid: 0 });
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let run = folder.path().join("run");
        std::fs::create_dir(&run).unwrap();
        std::os::unix::fs::chown(&run, Some(netd.uid), Some(netd.gid)).unwrap();
        let host = NetHost { inside, outside, folder, wrapper: Vec::new(), netd: None, starts: 0, mounted: false };
        host.configure(config);
        host
    }

    /// Puts netd's directory onto a file system of its own with so little room; before it is started.
    ///
    /// # Panics
    /// Where it cannot be mounted.
    pub fn little_room(&mut self, kib: u32) {
        let (netd, run) = (user::netd(), self.run_folder());
        let options = format!("size={kib}k,mode=0755,uid={},gid={}", netd.uid, netd.gid);
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&run).status();
        assert!(mount.unwrap().success());
        self.mounted = true;
    }

    /// Takes what room is left there with a file, which is returned.
    ///
    /// # Panics
    /// Where it cannot be made.
    pub fn fill(&self) -> PathBuf {
        let path = self.run_folder().join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        while std::io::Write::write(&mut file, &[1; 4096]).is_ok() {}
        path
    }

    /// Loads the rules as the unit does that is there for it.
    pub fn load_rules(&self) {
        self.inside.feed(&["nft", "-f", rules_file().to_str().unwrap()], "");
    }

    /// Runs commands of nft(8).
    pub fn nft(&self, commands: &str) {
        self.inside.feed(&["nft", "-f", "-"], commands);
    }

    /// Writes the configuration.
    pub fn configure(&self, config: &str) {
        let path = self.folder.path().join("netd.toml");
        std::fs::write(&path, config).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    }

    /// A command of netd's program with this host's places, in this host's namespace, not yet run.
    pub fn command(&self, args: &[&str]) -> Command {
        let netd = program("vmsup-netd");
        let mut command = match &self.wrapper[..] {
            [] => self.inside.command(&netd),
            [first, rest @ ..] => {
                let mut command = self.inside.command(first);
                command.args(rest).arg(&netd);
                command
            }
        };
        command.arg("--config").arg(self.folder.path().join("netd.toml"));
        command.arg("--socket").arg(self.socket()).arg("--journal").arg(self.journal());
        command.args(["--user", &user::netd().name]).args(args).env_clear().stdin(Stdio::null());
        command
    }

    /// Starts netd and waits until it serves.
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn run(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_file()).unwrap();
        self.netd = Some(self.command(&[]).stdout(Stdio::null()).stderr(log).spawn().unwrap());
        self.starts += 1;
        let line = format!("vmsup-netd: serving {}", self.socket().display());
        eventually("netd to serve", || {
            let ended = self.netd.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "netd ended with {ended:?}: {}", self.log());
            self.log().lines().filter(|l| *l == line).count() == self.starts
        });
    }

    /// Kills it.
    pub fn kill(&mut self) {
        let mut child = self.netd.take().expect("netd runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Kills it and starts it again.
    pub fn restart(&mut self) {
        self.kill();
        self.run();
    }

    /// Asks it to leave and returns its exit status.
    ///
    /// # Panics
    /// Where it does not leave.
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        let mut child = self.netd.take().expect("netd runs");
        let mut status = None;
        eventually("netd to leave", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_raw(self.pid()).unwrap(), signal).unwrap();
    }

    /// Lets it have no more fds than so many, from now on.
    ///
    /// # Panics
    /// Where prlimit(1) fails.
    pub fn limit_fds(&self, most: usize) {
        // By its own user: who is not that user needs CAP_SYS_RESOURCE, which root in a container has not. The soft limit,
        // for the same reason.
        let mut prlimit = user::netd().command("prlimit");
        prlimit.args(["--pid", &self.pid().to_string(), &format!("--nofile={most}:")]);
        assert!(prlimit.status().unwrap().success());
    }

    /// True where it is still running.
    pub fn alive(&mut self) -> bool {
        self.netd.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.netd.as_ref().expect("netd runs").id() as i32
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.run_folder().join("netd.sock")
    }

    /// Its journal.
    pub fn journal(&self) -> PathBuf {
        self.run_folder().join("journal")
    }

    fn run_folder(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("netd.log")
    }

    /// All that it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// How many fds it has open.
    pub fn fds(&self) -> usize {
        crate::names(format!("/proc/{}/fd", self.pid())).len()
    }

    /// Memory of its own, KiB.
    ///
    /// # Panics
    /// Where the kernel does not say.
    pub fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).expect("RssAnon");
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Names of the interfaces `vt<n>`, sorted.
    pub fn ports(&self) -> Vec<String> {
        let links = self.inside.json(&["ip", "-j", "link", "show"]);
        let mut ports: Vec<String> = links
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|link| Some(link["ifname"].as_str()?.to_owned()))
            .filter(|name| name.starts_with("vt"))
            .collect();
        ports.sort();
        ports
    }

    /// Elements of a set or map (`bridge vmsup leases`, `inet vmsup forwards`), as nft prints them in JSON.
    ///
    /// # Panics
    /// Where there is none of that name.
    pub fn elements(&self, set: &str) -> Vec<serde_json::Value> {
        let name: Vec<&str> = set.split(' ').collect();
        let kind = if name[2] == "forwards" { "map" } else { "set" };
        let all = self.inside.json(&["nft", "-j", "list", kind, name[0], name[1], name[2]]);
        let found = all["nftables"].as_array().unwrap().iter().find_map(|item| item.get(kind));
        found.expect("the set")["elem"].as_array().cloned().unwrap_or_default()
    }

    /// True where a port may send at all.
    pub fn leased(&self, port: &str) -> bool {
        self.elements("bridge vmsup leases").iter().any(|element| element.to_string().contains(&format!("\"{port}\"")))
    }

    /// Packets that each named counter of the rules has seen, `bridge NAME` or `inet NAME`, where it is not none.
    ///
    /// # Panics
    /// Where there are no counters.
    pub fn counters(&self) -> std::collections::BTreeMap<String, u64> {
        let all = self.inside.json(&["nft", "-j", "list", "counters"]);
        let named = all["nftables"].as_array().unwrap().iter().filter_map(|item| item.get("counter"));
        named
            .map(|c| {
                (format!("{} {}", c["family"], c["name"]).replace('"', ""), c["packets"].as_u64().expect("packets"))
            })
            .filter(|(_, packets)| *packets > 0)
            .collect()
    }

    /// The MAC of an interface.
    ///
    /// # Panics
    /// Where there is none of that name.
    pub fn mac(&self, interface: &str) -> [u8; 6] {
        let link = self.inside.json(&["ip", "-j", "link", "show", "dev", interface]);
        let text = link[0]["address"].as_str().expect("an address").to_owned();
        let mut mac = [0; 6];
        for (byte, digits) in mac.iter_mut().zip(text.split(':')) {
            *byte = u8::from_str_radix(digits, 16).unwrap();
        }
        mac
    }

    /// A client of netd's that is `who` to it, after the greeting.
    ///
    /// # Panics
    /// Where it is not let in.
    pub fn client(&self, who: impl Into<Caller>) -> Client {
        let channel = Channel::new(self.connect(&who.into()));
        channel.handshake(netd_api::NAME, netd_api::VERSION, 0).unwrap();
        Client { channel }
    }

    /// A connection of `who`'s that has said nothing yet. A read gives up after half a minute.
    ///
    /// # Panics
    /// Where there is nobody to connect to.
    pub fn connect(&self, who: &Caller) -> OwnedFd {
        self.try_connect(who).unwrap()
    }

    /// As [`NetHost::connect`].
    ///
    /// # Errors
    /// What connect(2) says.
    pub fn try_connect(&self, who: &Caller) -> rustix::io::Result<OwnedFd> {
        let path = SocketAddrUnix::new(self.socket()).unwrap();
        as_caller(who, || {
            let kind = SocketType::SEQPACKET;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(30)))?;
            rustix::net::connect(&socket, &path)?;
            Ok(socket)
        })
    }

    /// A lease and its release, by `who`, work.
    ///
    /// # Panics
    /// Where they do not.
    pub fn works(&self, who: impl Into<Caller>, network: &str) {
        let client = self.client(who);
        let wire = client.lease(network, u64::MAX).unwrap();
        assert_eq!(client.release(wire.lease.id), Ok(()));
    }

    /// Waits until there are so many ports, so many elements of leases, and netd holds the fds of so many TAPs.
    pub fn nothing_but(&self, ports: usize, taps: usize) {
        eventually("so many ports", || self.ports().len() == ports);
        eventually("so many elements", || self.elements("bridge vmsup leases").len() == ports);
        eventually("so many TAPs", || crate::tun::held(self.pid()).len() == taps);
    }

    /// Waits until no port is left but `warm` ones, and no element of a lease but theirs, no forward, no lease.
    pub fn nothing_left(&self, warm: usize, who: impl Into<Caller>) {
        let client = self.client(who);
        eventually("no leases", || client.leases().is_empty());
        eventually("no port but the warm ones", || self.ports().len() == warm);
        eventually("no lease element but the warm ones", || self.elements("bridge vmsup leases").len() == warm);
        eventually("no forwards", || self.elements("inet vmsup forwards").is_empty());
    }
}

impl Drop for NetHost {
    fn drop(&mut self) {
        if let Some(mut child) = self.netd.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(self.run_folder()).status();
        }
        if std::thread::panicking() {
            eprintln!("--- log of netd:\n{}", self.log());
        }
    }
}

/// Somebody who speaks netd's protocol.
#[derive(Debug)]
pub struct Client {
    /// After the greeting.
    pub channel: Channel<Request, Reply>,
}

/// What a VM usually wants; netd keeps TAPs of this kind warm.
pub fn wanted(network: &str, vm: u64) -> Wanted {
    let network = network.to_owned();
    Wanted { network, vm: VmId(vm), queues: 1, offloads: true, mac_suffix: None, forwards: Vec::new() }
}

impl Client {
    /// One question, one answer.
    ///
    /// # Panics
    /// Where netd does not answer.
    pub fn ask(&self, request: &Request) -> (Reply, Vec<OwnedFd>) {
        self.channel.send(request, &[]).unwrap();
        self.channel.receive().unwrap()
    }

    /// A plain lease.
    ///
    /// # Errors
    /// Why netd refused it.
    pub fn lease(&self, network: &str, vm: u64) -> Result<Wire, Refusal> {
        self.lease_of(wanted(network, vm))
    }

    /// A plain lease with forwards.
    ///
    /// # Errors
    /// Why netd refused it.
    pub fn lease_with(&self, network: &str, vm: u64, forwards: &[Forward]) -> Result<Wire, Refusal> {
        self.lease_of(Wanted { forwards: forwards.to_vec(), ..wanted(network, vm) })
    }

    /// A lease.
    ///
    /// # Errors
    /// Why netd refused it.
    ///
    /// # Panics
    /// Where the answer is about something else.
    pub fn lease_of(&self, wanted: Wanted) -> Result<Wire, Refusal> {
        match self.ask(&Request::Lease(wanted)) {
            (Reply::Leased(lease), queues) => Ok(Wire { queues, lease: check(lease) }),
            (Reply::Refused(why), _) => Err(why),
            (other, _) => panic!("{other:?}"),
        }
    }

    /// Gives a lease back.
    ///
    /// # Errors
    /// Why netd refused that.
    ///
    /// # Panics
    /// Where the answer is about something else.
    pub fn release(&self, lease: LeaseId) -> Result<(), Refusal> {
        match self.ask(&Request::Release { lease }).0 {
            Reply::Released => Ok(()),
            Reply::Refused(why) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    /// The networks that this caller may use.
    ///
    /// # Panics
    /// Where the answer is about something else.
    pub fn networks(&self) -> Vec<NetworkInfo> {
        match self.ask(&Request::Networks).0 {
            Reply::Networks(all) => all,
            other => panic!("{other:?}"),
        }
    }

    /// This caller's leases, all pages.
    ///
    /// # Panics
    /// Where the answer is about something else, or a page does not follow the one before.
    pub fn leases(&self) -> Vec<LeaseInfo> {
        let mut all: Vec<LeaseInfo> = Vec::new();
        loop {
            let after = all.last().map_or(LeaseId(0), |l| l.id);
            let Reply::Leases(page) = self.ask(&Request::Leases { after }).0 else { panic!("Leases is answered so") };
            assert!(page.len() <= netd_api::PAGE && page.iter().all(|l| l.id > after), "{page:?}");
            let full = page.len() == netd_api::PAGE;
            all.extend(page);
            if !full {
                return all;
            }
        }
    }

    /// How netd is.
    ///
    /// # Panics
    /// Where the answer is about something else.
    pub fn status(&self) -> Status {
        match self.ask(&Request::Status).0 {
            Reply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }
}

/// What is true of every lease.
fn check(lease: Lease) -> Lease {
    assert_eq!(lease.mac[..3], [0x02, 0x76, 0x6d], "{lease:?}");
    assert!(lease.interface.starts_with("vt") && lease.address != lease.gateway, "{lease:?}");
    lease
}
