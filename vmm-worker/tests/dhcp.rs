//! The DHCP answers under a real client and a real IP stack: busybox's udhcpc, on the other side of a TAP.

mod tap;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tap::{in_own_network, ip, lease};
use vmm_worker::devices::virtio::net::dhcp::{DhcpServer, REPLY_MAX};
use worker_api::NetSpec;

/// What stands where the client's packets go.
struct Server {
    tap: File,
    dhcp: DhcpServer,
    answers: usize,
}

impl Server {
    fn new(spec: &NetSpec) -> Self {
        Self { tap: tap::tap(false), dhcp: DhcpServer::new(spec), answers: 0 }
    }

    /// Answers whatever comes until `done`.
    fn serve_until(&mut self, what: &str, mut done: impl FnMut() -> bool) {
        let (mut frame, mut reply) = ([0; 2048], [0; REPLY_MAX]);
        tap::until(what, || {
            let limit = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            let _ = poll(&mut [PollFd::new(&self.tap, PollFlags::IN)], Some(&limit)).unwrap();
            while let Ok(length) = (&self.tap).read(&mut frame) {
                let frame = &frame[..length];
                if !DhcpServer::is_for_server(&frame[..length.min(64)]) {
                    continue;
                }
                if let Some(length) = self.dhcp.answer(frame, &mut reply) {
                    (&self.tap).write_all(&reply[..length]).unwrap();
                    self.answers += 1;
                }
            }
            done()
        });
    }
}

/// A client on `t0` that appends each event, with what it learned, to a file.
struct Client {
    child: Child,
    folder: tempdir::Folder,
}

mod tempdir {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A folder that goes with its owner.
    pub struct Folder(pub PathBuf);

    impl Folder {
        pub fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let name = format!("vmm-worker-dhcp-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

impl Client {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempdir::Folder::new();
        let script = folder.0.join("script");
        // What a distribution's script does: the address and the route. The gateway's MAC is nobody's, as long as it is there.
        std::fs::write(
            &script,
            "#!/bin/sh\n\
             [ $1 = bound ] && ip addr add $ip/$mask dev $interface && ip link set $interface mtu $mtu &&\n\
             ip neigh replace $router lladdr 02:00:00:00:00:01 dev $interface && ip route add default via $router\n\
             echo \"$1 ip=$ip mask=$mask router=$router dns=$dns mtu=$mtu hostname=$hostname broadcast=$broadcast \
             lease=$lease serverid=$serverid\" >>$EVENTS\n",
        )
        .unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let child = Command::new("busybox")
            .args(["udhcpc", "-i", "t0", "-f", "-t", "5", "-T", "2", "-O", "mtu", "-s"])
            .arg(&script)
            .args(arguments)
            .env("EVENTS", folder.0.join("events"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    fn events(&self) -> String {
        std::fs::read_to_string(self.folder.0.join("events")).unwrap_or_default()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `test` where there is a client for it.
fn with_client(name: &'static str, test: fn()) {
    if !["/bin", "/usr/bin", "/sbin", "/usr/sbin"].iter().any(|folder| Path::new(folder).join("busybox").exists()) {
        println!("SKIPPED {name}: busybox is not there (Debian: busybox)");
        return;
    }
    in_own_network(name, test);
}

fn interface(spec: &NetSpec) {
    let mac = spec.mac.map(|b| format!("{b:02x}")).join(":");
    ip(&format!("link set t0 address {mac} up"));
}

#[test]
fn busyboxs_client_is_configured_and_renews_its_lease() {
    with_client("busyboxs_client_is_configured_and_renews_its_lease", || {
        let spec = NetSpec { mtu: 1400, ..lease() };
        let mut server = Server::new(&spec);
        interface(&spec);
        let client = Client::start(&["-R"]);
        server.serve_until("an address", || client.events().contains("bound"));
        let told = "ip=10.77.0.5 mask=24 router=10.77.0.1 dns=9.9.9.9 1.1.1.1 mtu=1400 hostname=web-1 broadcast=10.77.0.255 \
                    lease=2592000 serverid=10.77.0.1";
        assert!(client.events().contains(&format!("bound {told}")), "{}", client.events());
        assert_eq!(server.answers, 2, "an offer and an acknowledgement");
        // Through the kernel's own UDP and IP, which look at every checksum.
        client.signal(rustix::process::Signal::USR1);
        server.serve_until("a renewal", || client.events().contains("renew"));
        assert!(client.events().contains(&format!("renew {told}")), "{}", client.events());
        // This client listens a moment after it asked. An answer that comes before is lost on it, and it asks again.
        assert!(server.answers >= 3);
    });
}

#[test]
fn busyboxs_client_gets_its_answers_by_broadcast_where_it_asks_for_that() {
    with_client("busyboxs_client_gets_its_answers_by_broadcast_where_it_asks_for_that", || {
        let spec = lease();
        let mut server = Server::new(&spec);
        interface(&spec);
        let client = Client::start(&["-q", "-B", "-r", "10.77.0.9"]);
        server.serve_until("an address", || client.events().contains("bound"));
        assert!(client.events().contains("ip=10.77.0.5 "), "not the one that it wished for: {}", client.events());
    });
}

#[test]
fn a_client_with_another_mac_gets_nothing() {
    with_client("a_client_with_another_mac_gets_nothing", || {
        let mut server = Server::new(&lease());
        interface(&NetSpec { mac: [2, 0, 0, 0, 0, 9], ..lease() });
        let mut client = Client::start(&["-n", "-t", "2", "-T", "1"]);
        let child = &mut client.child;
        server.serve_until("giving up", || child.try_wait().unwrap().is_some());
        assert_eq!((server.answers, client.events().contains("bound")), (0, false));
    });
}
