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
use crate::{Scratch, eventually, program};
use ipc::Channel;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

mod client;
mod seen;
pub use client::{Client, wanted};

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

/// The user of whom `vmsup-test`'s supervisor is, as a caller of netd.
pub fn tenant() -> Caller {
    (&user::with_subuids()).into()
}

/// Another user, of whom [`default_network`] knows nothing.
pub fn stranger() -> Caller {
    (&user::second_tenant()).into()
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

    /// With the network `default` without warm TAPs, `more` are lines of it, and a client who may use it.
    pub fn with_default(more: &str) -> (NetHost, Client) {
        let host = NetHost::start(&default_network(&format!("pool = 0\n{more}")));
        let client = host.client(tenant());
        (host, client)
    }

    /// With one network for [`tenant`] and [`stranger`]: the worst that two can share.
    pub fn shared() -> NetHost {
        let (one, other) = (user::with_subuids().name, user::second_tenant().name);
        NetHost::start(&format!(
            "[[network]]\nname = \"default\"\nbridge = \"vmsup0\"\nsubnet = \"10.77.0.1/24\"\nusers = [\"{one}\", \"{other}\"]\n\
             leases = 300\npool = 0\n"
        ))
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

    /// Takes the configuration away.
    ///
    /// # Panics
    /// Where there is none.
    pub fn without_configuration(&self) {
        std::fs::remove_file(self.folder.path().join("netd.toml")).unwrap();
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

    /// A client of netd's that is `who` to it, after the greeting.
    ///
    /// # Panics
    /// Where it is not let in.
    pub fn client(&self, who: impl Into<Caller>) -> Client {
        let channel = Channel::new(self.connect(&who.into()));
        channel.handshake(netd_api::NAME, netd_api::VERSION, 0).unwrap();
        Client::new(channel)
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

    /// A process of `user`'s that speaks to netd, and what it is told to say (`vmsup-lessee`).
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn lessee(&self, user: &User) -> (Child, Client) {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        sockopt::set_socket_timeout(&ours, sockopt::Timeout::Recv, Some(Duration::from_secs(30))).unwrap();
        let mut command = user.command(program("vmsup-lessee"));
        let child = command.arg(self.socket()).stdin(Stdio::from(theirs)).spawn().unwrap();
        (child, Client::new(Channel::new(ours)))
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
