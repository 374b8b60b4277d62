//! Network namespaces of the tests' own making: to run programs and sockets in, to ping from, to listen on a link.
//!
//! They have no name, only fds of this process: whatever becomes of a test, nothing is left behind.

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recvfrom, sendto, sockopt};
use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Who a thread of the test is, for what it does in [`as_caller`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Its uid; any but 0 is without capabilities.
    pub uid: u32,
    /// Its gid.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
}

impl From<&crate::user::User> for Caller {
    fn from(user: &crate::user::User) -> Caller {
        Caller { uid: user.uid, gid: user.gid, groups: Vec::new() }
    }
}

/// A network namespace; it goes with the last process, socket and TAP in it.
#[derive(Debug)]
pub struct Netns(File);

impl Netns {
    /// A new one with its loopback interface up.
    ///
    /// # Panics
    /// Where it cannot be made: it needs root.
    pub fn new() -> Netns {
        let made = std::thread::spawn(|| {
            // SAFETY: plain numbers; it concerns this thread alone, which ends right after.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let netns = Netns(made.join().unwrap());
        netns.ip("link set lo up");
        netns
    }

    /// A path by which other programs of root's find it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `work` in it, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_a_thread(|| {
            enter(self.0.as_raw_fd()).unwrap();
            work()
        })
    }

    /// A command that runs in it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        self.put(&mut command);
        command
    }

    /// Makes a command run in it.
    pub fn put(&self, command: &mut Command) {
        let netns = self.0.try_clone().unwrap();
        // SAFETY: setns(2) is all that runs between fork and exec; it neither allocates nor takes a lock.
        unsafe { command.pre_exec(move || enter(netns.as_raw_fd())) };
    }

    /// Runs lines of ip(8).
    ///
    /// # Panics
    /// Where one fails.
    pub fn ip(&self, lines: &str) {
        self.feed(&["ip", "-batch", "-"], lines);
    }

    /// Runs a program to its end with `input`, and returns its output.
    ///
    /// # Panics
    /// Where it fails.
    pub fn feed(&self, command: &[&str], input: &str) -> String {
        let mut run = self.command(command[0]);
        run.args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = run.spawn().unwrap_or_else(|e| panic!("{}: {e} (make deps)", command[0]));
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{command:?}: {input}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The output of a program that prints JSON.
    ///
    /// # Panics
    /// Where it fails, or prints something else. Nothing at all is an empty list.
    pub fn json(&self, command: &[&str]) -> serde_json::Value {
        let text = self.feed(command, "");
        if text.trim().is_empty() {
            return serde_json::Value::Array(Vec::new());
        }
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{command:?}: {e}: {text}"))
    }

    /// Sets a sysctl of this namespace (`net/ipv4/ip_forward`).
    ///
    /// # Panics
    /// Where it cannot be set.
    pub fn sysctl(&self, name: &str, value: &str) {
        self.run(|| std::fs::write(format!("/proc/sys/{name}"), value).unwrap_or_else(|e| panic!("{name}: {e}")));
    }

    /// Joins it to another by a pair of veth interfaces with these names and addresses (`192.0.2.1/24`).
    pub fn join(&self, (name, address): (&str, &str), other: &Netns, (far, far_address): (&str, &str)) {
        self.ip(&format!("link add {name} type veth peer name {far} netns {}", other.path()));
        self.ip(&format!("address add {address} dev {name}\nlink set {name} up"));
        other.ip(&format!("address add {far_address} dev {far}\nlink set {far} up"));
    }

    /// Sends one ping with so many bytes of payload, and waits a second for its answer.
    ///
    /// # Panics
    /// Where there can be no raw socket.
    pub fn ping(&self, to: Ipv4Addr, bytes: usize) -> bool {
        self.run(|| ping(to, bytes))
    }

    /// All that comes to an interface, and goes out of it, from now on.
    ///
    /// # Panics
    /// Where there is no such interface.
    pub fn listen(&self, interface: &str) -> Capture {
        self.run(|| Capture::on(interface))
    }

    /// A UDP socket there that never makes the test wait.
    ///
    /// # Panics
    /// Where the address is not that namespace's.
    pub fn udp(&self, address: Ipv4Addr, port: u16) -> UdpSocket {
        let socket = self.run(|| UdpSocket::bind((address, port)).unwrap());
        socket.set_nonblocking(true).unwrap();
        socket
    }
}

/// What came to a socket, and from whom, all that there is by now.
pub fn heard(socket: &UdpSocket) -> Vec<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; 2048];
    let mut all = Vec::new();
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        all.push((buffer[..length].to_vec(), from));
    }
    all
}

impl Default for Netns {
    fn default() -> Self {
        Netns::new()
    }
}

fn enter(netns: RawFd) -> std::io::Result<()> {
    // SAFETY: plain numbers; it concerns the calling thread alone.
    match unsafe { libc::setns(netns, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Runs `work` on a thread that ends with it; its panic is the caller's.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// Runs `work` as somebody else, without any capability, on a thread of its own. Sockets that it connects and ioctls
/// that it makes are this caller's to the kernel.
///
/// # Panics
/// Where the process is not root's.
pub fn as_caller<T: Send>(who: &Caller, work: impl FnOnce() -> T + Send) -> T {
    on_a_thread(|| {
        // The system calls themselves: libc's functions would change all threads of the process.
        let call = |number, a: u64, b: u64, c: u64| {
            // SAFETY: numbers, and for setgroups a list that lives through the call with its length before it.
            let result = unsafe { libc::syscall(number, a, b, c) };
            assert_eq!(result, 0, "becoming {who:?}: {}", std::io::Error::last_os_error());
        };
        call(libc::SYS_setgroups, who.groups.len() as u64, who.groups.as_ptr() as u64, 0);
        call(libc::SYS_setresgid, who.gid.into(), who.gid.into(), who.gid.into());
        call(libc::SYS_setresuid, who.uid.into(), who.uid.into(), who.uid.into());
        work()
    })
}

fn ping(to: Ipv4Addr, bytes: usize) -> bool {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::ICMP))
            .unwrap();
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_millis(100))).unwrap();
    // A number of our own, so that the answers to others' pings are told apart.
    let id = (socket.as_raw_fd() as u16 ^ (std::process::id() as u16)).to_be_bytes();
    let echo = crate::frames::icmp_echo(id, bytes);
    if sendto(&socket, &echo, SendFlags::empty(), &SocketAddrV4::new(to, 0)).is_err() {
        return false;
    }
    let deadline = Instant::now() + Duration::from_secs(1);
    let mut buffer = vec![0; 70_000];
    while Instant::now() < deadline {
        let Ok((length, _, _)) = recvfrom(&socket, &mut buffer[..], RecvFlags::empty()) else { continue };
        // An IP header comes first. Type 0 is an answer.
        let answer = &buffer[20..length.max(20)];
        if buffer[12..16] == to.octets() && answer.first() == Some(&0) && answer[4..] == echo[4..] {
            return true;
        }
    }
    false
}

/// Listens on an interface.
#[derive(Debug)]
pub struct Capture(OwnedFd);

impl Capture {
    fn on(interface: &str) -> Capture {
        let name = std::ffi::CString::new(interface).unwrap();
        // SAFETY: plain numbers; the fd is checked and owned below.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: new, and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: the name lives through the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        assert!(index > 0, "no interface {interface}");
        // SAFETY: all zeroes is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        // SAFETY: the address lives through the call and the length is its own.
        let bound = unsafe { libc::bind(fd, (&raw const address).cast(), size_of_val(&address) as u32) };
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
        Capture(socket)
    }

    /// The frames that it has seen since it was asked before.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 70_000];
        while let Ok((length, _, _)) = recvfrom(&self.0, &mut buffer[..], RecvFlags::empty()) {
            frames.push(buffer[..length].to_vec());
        }
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_crosses_from_one_namespace_to_the_other_and_finds_nobody_elsewhere() {
        if !rustix::process::geteuid().is_root() {
            return crate::skip(
                "a_ping_crosses_from_one_namespace_to_the_other_and_finds_nobody_elsewhere",
                "namespaces need root",
            );
        }
        let (a, b) = (Netns::new(), Netns::new());
        a.join(("a0", "192.0.2.1/24"), &b, ("b0", "192.0.2.2/24"));
        let heard = b.listen("b0");
        assert!(a.ping(Ipv4Addr::new(192, 0, 2, 2), 1472));
        assert!(!a.ping(Ipv4Addr::new(192, 0, 2, 3), 0));
        assert!(heard.frames().iter().any(|f| crate::frames::parse_ipv4(f).is_some_and(|p| p.payload[0] == 8)));
    }

    #[test]
    fn somebody_else_is_without_capabilities_and_the_test_itself_keeps_its_own() {
        if !rustix::process::geteuid().is_root() {
            return crate::skip(
                "somebody_else_is_without_capabilities_and_the_test_itself_keeps_its_own",
                "being somebody else needs root",
            );
        }
        let status = || std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let theirs = as_caller(&Caller { uid: 12345, gid: 12346, groups: vec![7, 9] }, status);
        assert!(theirs.contains("CapEff:\t0000000000000000") && theirs.contains("Uid:\t12345"), "{theirs}");
        assert!(theirs.contains("Groups:\t7 9 \n"), "{theirs}");
        assert!(!status().contains("Uid:\t12345"));
    }
}
