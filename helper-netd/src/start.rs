//! From the command line to the loop: what needs privilege is opened first, then it is given up, then peers are served.

use crate::config;
use crate::confine::{self, Open, confine};
use crate::journal::{Journal, replay};
use crate::log;
use crate::names;
use crate::netd::Netd;
use crate::network::Network;
use crate::ops::{Kernel, Ops};
use crate::options::{Action, Options, USAGE};
use crate::permit::Caller;
use crate::places::Place;
use crate::serve::{Fds, Server, Wish};
use crate::sys;
use rustix::event::epoll;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Why netd does not serve.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error("it needs CAP_NET_ADMIN: start it as root, or with AmbientCapabilities=CAP_NET_ADMIN")]
    NoCapability,
    #[error("--user {0}: there is no such user (useradd --system {0})")]
    NoUser(String),
    #[error("--user {0}: netd does not stay root")]
    Root(String),
    #[error("another vmsup-netd is running with the journal {0}")]
    Running(String),
    #[error("{0}: {1}")]
    Directory(String, &'static str),
    #[error("{0}: {1}")]
    System(String, io::Error),
    #[error(transparent)]
    Confine(#[from] confine::Error),
}

impl Error {
    fn code(&self) -> u8 {
        if matches!(self, Error::Usage(_) | Error::Config(_) | Error::NoUser(_) | Error::Root(_)) { 2 } else { 1 }
    }
}

fn failed<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
    let what = what.into();
    move |error| Error::System(what, error.into())
}

/// The whole program.
pub fn main() -> ExitCode {
    if let Err(error) = sys::close_inherited() {
        log!("what the starter left open cannot be closed: {error}");
        return ExitCode::FAILURE;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = Options::parse(&args).map_err(Error::Usage).and_then(|options| match options.action {
        Action::Serve => serve(&options),
        Action::Check => check(&options),
        Action::Version => {
            println!("vmsup-netd {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Action::Help => {
            println!("{USAGE}");
            Ok(())
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log!("{error}");
            ExitCode::from(error.code())
        }
    }
}

/// What is opened with the rights of the start.
struct Opened {
    config: Place,
    accounts: Place,
    networks: Vec<Network>,
    /// Whom to become.
    user: Option<(u32, u32)>,
    own: (u32, u32),
}

fn open(options: &Options) -> Result<Opened, Error> {
    let file = options.config.display().to_string();
    let config = Place::open(&options.config).map_err(|source| config::Error::Read { file, source })?;
    let accounts = Place::open(Path::new("/etc/passwd")).map_err(failed("/etc"))?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let user = match (uid, options.action) {
        (0, Action::Serve) => {
            let names = names::read(&accounts).map_err(failed("/etc/passwd"))?;
            let user = names.user_or_number(&options.user).ok_or_else(|| Error::NoUser(options.user.clone()))?;
            if user.0 == 0 {
                return Err(Error::Root(options.user.clone()));
            }
            Some(user)
        }
        _ => None,
    };
    let own = user.unwrap_or((uid, gid));
    let networks = config::read(&config, &accounts, own.0)?;
    Ok(Opened { config, accounts, networks, user, own })
}

fn check(options: &Options) -> Result<(), Error> {
    let networks = open(options)?.networks;
    println!("{}: {} networks, nothing wrong", options.config.display(), networks.len());
    Ok(())
}

fn serve(options: &Options) -> Result<(), Error> {
    let opened = open(options)?;
    if !confine::has_net_admin() {
        return Err(Error::NoCapability);
    }
    let kernel = Kernel::open(opened.own).map_err(failed("netlink"))?;
    let tun = "/dev/net/tun";
    let tun =
        rustix::fs::openat(rustix::fs::CWD, tun, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed(tun))?;
    let place = own_directory(&options.journal, opened.own, &[opened.own.0])?;
    let _alone = alone(&place, opened.own)?;
    let boot = Place::open(Path::new("/proc/sys/kernel/random/boot_id")).and_then(|p| p.read(p.name()));
    let boot = boot.map_err(failed("the boot id"))?.0.trim().to_owned();
    let journal_place = Place::open(&options.journal).map_err(failed(place.shown()))?;
    let (journal, text) = Journal::open(place, boot.clone()).map_err(failed(options.journal.display().to_string()))?;
    let socket = own_directory(&options.socket, opened.own, &[0, opened.own.0])?;
    let fds = Fds {
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed("epoll"))?,
        listener: listen(&socket)?,
        signals: sys::signal_fd(&[libc::SIGHUP, libc::SIGTERM, libc::SIGINT]).map_err(failed("signals"))?,
    };
    let notify = manager();
    confine(
        opened.user,
        &Open { journal: &journal_place, tun: tun.as_fd(), config: &opened.config, accounts: &opened.accounts },
    )?;
    drop(tun);
    let replay = replay(&text, &boot);
    for fault in &replay.faults {
        log!("the journal: {fault}");
    }
    let mut netd = Netd::start(kernel, opened.networks, journal, replay, opened.own)?;
    // The pools before the first request, so that it finds a warm TAP and bridges that carry frames.
    while netd.refill(Instant::now()) {}
    let mut server = Server::new(netd, fds, |socket| Caller::of(socket)).map_err(failed("epoll"))?;
    log!("serving {}", options.socket.display());
    if let Some(manager) = notify {
        let _ = rustix::io::write(manager, b"READY=1");
    }
    loop {
        match server.run().map_err(failed("the loop"))? {
            Wish::Leave => {
                // Where the directory is root's it stays, and the next netd replaces it.
                let _ = socket.remove();
                return Ok(());
            }
            Wish::Reload => reload(&mut server.netd, &opened.config, &opened.accounts, opened.own.0),
        }
    }
}

fn reload<O: Ops>(netd: &mut Netd<O>, place: &Place, accounts: &Place, own: u32) {
    match config::read(place, accounts, own).and_then(|networks| netd.reload(networks)) {
        Ok(()) => log!("{}: read again, in force", place.shown()),
        Err(error) => log!("{error}; the configuration stays as it was"),
    }
}

/// The directory of a file, which nobody else may write. It is made where it is not there; netd's user must be able to
/// replace the journal in its directory, so that this one is not root's.
fn own_directory(file: &Path, own: (u32, u32), owners: &[u32]) -> Result<Place, Error> {
    let directory = file.parent().unwrap_or(Path::new("."));
    let shown = directory.display().to_string();
    match rustix::fs::mkdir(directory, Mode::from_raw_mode(0o755)) {
        Ok(()) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::openat(rustix::fs::CWD, directory, flags, Mode::empty()).map_err(failed(&shown))?;
            give(&made, own).map_err(failed(&shown))?;
        }
        Err(Errno::EXIST) => {}
        Err(error) => return Err(failed(shown)(error)),
    }
    let place = Place::open(file).map_err(failed(&shown))?;
    let stat = place.stat().map_err(failed(&shown))?;
    if stat.st_mode & 0o022 != 0 {
        return Err(Error::Directory(shown, "others can write there (chmod go-w)"));
    }
    if !owners.contains(&stat.st_uid) {
        return Err(Error::Directory(shown, "must belong to netd's user (chown)"));
    }
    Ok(place)
}

fn give(new: &OwnedFd, (uid, gid): (u32, u32)) -> rustix::io::Result<()> {
    rustix::fs::fchown(new, Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)))
}

/// A lock that is held as long as netd lives, on a file of mode 0600: nobody else can hold it. Only a file that was made
/// here changes its owner; what was there may be a link to another one.
fn alone(place: &Place, own: (u32, u32)) -> Result<OwnedFd, Error> {
    let shown = place.shown().to_owned();
    let lock = match place.open_file(".lock", OFlags::RDWR | OFlags::CREATE | OFlags::EXCL) {
        Ok(new) => give(&new, own).map(|()| new).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => place.open_file(".lock", OFlags::RDWR),
        Err(error) => Err(error),
    };
    let lock = lock.map_err(failed(&shown))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::AGAIN) => Err(Error::Running(shown)),
        Err(error) => Err(failed(shown)(error)),
    }
}

/// Binds the socket that everybody may connect to. Whoever is alone with the journal may replace a stale one.
fn listen(place: &Place) -> Result<OwnedFd, Error> {
    match place.remove() {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(place.shown())(error)),
        _ => {}
    }
    let bound = (|| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // No request carries fds. On an older kernel they are dropped when their message is read.
        let _ = sys::refuse_fds(&socket);
        let before = rustix::process::umask(Mode::from_raw_mode(0o111));
        let bound = SocketAddrUnix::new(place.shown()).and_then(|address| rustix::net::bind(&socket, &address));
        rustix::process::umask(before);
        bound.and_then(|()| rustix::net::listen(&socket, BACKLOG)).map(|()| socket)
    })();
    bound.map_err(failed(place.shown()))
}

/// The service manager's socket, connected, where there is one (sd_notify(3)).
fn manager() -> Option<OwnedFd> {
    let name = std::env::var("NOTIFY_SOCKET").ok()?;
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()),
        None => SocketAddrUnix::new(name.as_str()),
    };
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok()?;
    rustix::net::connect(&socket, &address.ok()?).ok()?;
    Some(socket)
}
