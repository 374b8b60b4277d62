//! Looks at a running VM: at its console for its marker, at its port, at its worker. What it sees, [`super::health`] judges.
//!
//! Wakes up for what the guest writes while its marker is waited for, for the beat of the one timer of all VMs
//! ([`super::tick`]), and for what it asked then; never by a clock of its own but for the deadlines of these questions.
//!
//! The only address that it ever connects to is the guest's own, which netd leased.

use super::console::{Console, Reader};
use super::health::{Matcher, Monitor, Sight};
use super::jail::Held;
use super::readiness::watch;
use super::tick::{Beats, Tick};
use super::worker::Control;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Bytes of a console that are looked at at once.
const CHUNK: usize = 4 << 10;
/// The timer's beats come a little early or late.
const SLACK: Duration = Duration::from_secs(1);

/// What one look brought.
type Look = Pin<Box<dyn Future<Output = (bool, Option<Sight>)> + Send>>;

/// Who looks at one run of a VM.
pub struct Watcher {
    began: Instant,
    control: Arc<Control>,
    address: Option<Ipv4Addr>,
    port: Option<(u16, Duration)>,
    interval: Duration,
    deadline: Duration,
    looks: Arc<Semaphore>,
    last: Option<Instant>,
    paused: bool,
    beats: Beats,
    marker: Option<Follow>,
    look: Option<Look>,
    stopped: tokio::sync::watch::Receiver<bool>,
    seen: VecDeque<Sight>,
}

/// The console, while the marker is waited for.
struct Follow {
    reader: Reader,
    matcher: Matcher,
}

/// What there is to look at.
pub struct Subject<'a> {
    /// Its worker.
    pub held: &'a Held,
    /// The way to it.
    pub control: Arc<Control>,
    /// Its console.
    pub console: Option<&'a Arc<Console>>,
    /// The guest's address, where it has one.
    pub address: Option<Ipv4Addr>,
    /// When it began to run.
    pub began: Instant,
    /// How long its worker may take for an answer.
    pub deadline: Duration,
    /// Places for looks at ports, which take an fd each.
    pub looks: Arc<Semaphore>,
}

impl Watcher {
    /// Looks from now on, for what `monitor` wants to know.
    pub fn new(subject: Subject<'_>, monitor: &Monitor, tick: &Arc<Tick>) -> Watcher {
        let Subject { held, control, console, address, began, deadline, looks } = subject;
        let mut stopped = held.stopped();
        let seen = if *stopped.borrow_and_update() { [Sight::Stopped(true)].into() } else { VecDeque::new() };
        let mut watcher = Watcher {
            began,
            control,
            address,
            port: None,
            interval: Duration::ZERO,
            deadline,
            looks,
            last: None,
            paused: false,
            beats: tick.listen(),
            marker: None,
            look: None,
            stopped,
            seen,
        };
        watcher.wants(monitor, console);
        watcher
    }

    /// Looks for what `monitor` wants to know from now on.
    pub fn wants(&mut self, monitor: &Monitor, console: Option<&Arc<Console>>) {
        (self.port, self.interval) = (monitor.port(), monitor.interval());
        self.marker = monitor
            .marker()
            .zip(console)
            .map(|(marker, console)| Follow { reader: console.reader(true), matcher: Matcher::new(marker) });
    }

    /// A guest that stands still takes no connections, and that is no fault of its own.
    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// How long it has run.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// The next thing that is seen. May be dropped and called again.
    pub async fn next(&mut self) -> Sight {
        loop {
            if let Some(sight) = self.seen.pop_front() {
                return sight;
            }
            let Watcher { marker, beats, look, stopped, .. } = self;
            tokio::select! {
                found = follow(marker) => if found {
                    self.marker = None;
                    return Sight::Marker;
                },
                () = beats.next() => {
                    self.begin();
                    return Sight::Beat;
                }
                (answered, port) = async { look.as_mut().expect("guarded").await }, if look.is_some() => {
                    self.look = None;
                    self.seen.push_back(if answered { Sight::Answered } else { Sight::Silent });
                    // What was asked of a guest that stands still by now says nothing.
                    self.seen.extend(port.filter(|_| !self.paused));
                }
                Ok(()) = stopped.changed() => return Sight::Stopped(*stopped.borrow_and_update()),
            }
        }
    }

    /// Asks worker and port, beside everything else. A question that is still open is not asked again.
    fn begin(&mut self) {
        if self.look.is_some() {
            return;
        }
        let due = self.last.is_none_or(|last| last.elapsed() + SLACK >= self.interval);
        let port = self.port.zip(self.address).filter(|_| due && !self.paused);
        if port.is_some() {
            self.last = Some(Instant::now());
        }
        let (control, deadline, looks) = (self.control.clone(), self.deadline, self.looks.clone());
        self.look = Some(Box::pin(async move {
            let answered = async { control.status(deadline).await.is_ok() };
            let port = async {
                match port {
                    Some(((port, timeout), address)) => {
                        let _place = looks.acquire_owned().await.ok()?;
                        Some(takes_connections(address, port, timeout).await)
                    }
                    None => None,
                }
            };
            tokio::join!(answered, port)
        }));
    }
}

/// True once the marker was seen. May be dropped and called again.
async fn follow(marker: &mut Option<Follow>) -> bool {
    let Some(Follow { reader, matcher }) = marker else { return std::future::pending().await };
    reader.news().await;
    let mut piece = vec![0; CHUNK];
    let chunk = reader.take(&mut piece);
    matcher.feed(chunk.lost > 0, &piece[..chunk.bytes])
}

/// Whether a port of the guest's takes connections, or whether that cannot be seen from here. The connection is closed at once.
async fn takes_connections(address: Ipv4Addr, port: u16, timeout: Duration) -> Sight {
    let refused =
        |why: &dyn std::fmt::Display| Sight::Port(Err(format!("port {port} of {address} takes no connections: {why}")));
    match tokio::time::timeout(timeout, reach(address, port)).await {
        Ok(Ok(())) => Sight::Port(Ok(())),
        Ok(Err(Unreached::Refused(error))) => refused(&error),
        Ok(Err(Unreached::Blind(error))) => Sight::Unseen(format!(
            "port {port} of {address}: {error}; has this supervisor the host's network (a unit's: vmsup-network.conf), and a \
             route to it?"
        )),
        Err(_) => refused(&format!("no answer in {} s", timeout.as_secs())),
    }
}

/// Why a port was not reached.
enum Unreached {
    /// The guest does not answer, or says no.
    Refused(io::Error),
    /// This process could not ask.
    Blind(io::Error),
}

async fn reach(address: Ipv4Addr, port: u16) -> Result<(), Unreached> {
    use rustix::io::Errno;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let blind = |errno: Errno| Unreached::Blind(errno.into());
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).map_err(blind)?;
    match connect(&socket, &SocketAddrV4::new(address, port)) {
        Ok(()) => return Ok(()),
        Err(Errno::INPROGRESS) => {}
        Err(errno @ (Errno::CONNREFUSED | Errno::CONNRESET | Errno::HOSTUNREACH | Errno::TIMEDOUT)) => {
            return Err(Unreached::Refused(errno.into()));
        }
        // No network, no route, a filter, no port or memory of our own: what the kernel says before it asks anybody.
        Err(errno) => return Err(blind(errno)),
    }
    let socket = watch(socket, Interest::WRITABLE).map_err(Unreached::Blind)?;
    drop(socket.writable().await.map_err(Unreached::Blind)?);
    sockopt::socket_error(socket.get_ref()).map_err(blind)?.map_err(|errno| Unreached::Refused(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_is_reached_or_it_is_said_why_not() {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let timeout = Duration::from_secs(5);
        assert_eq!(takes_connections(Ipv4Addr::LOCALHOST, port, timeout).await, Sight::Port(Ok(())));
        drop(listener);
        let Sight::Port(Err(why)) = takes_connections(Ipv4Addr::LOCALHOST, port, timeout).await else {
            panic!("refused")
        };
        assert!(why.contains("refused") && why.contains(&port.to_string()), "{why}");
    }

    #[tokio::test]
    async fn a_port_that_cannot_be_asked_is_not_one_that_refuses() {
        // Linux lets nobody connect to a broadcast address: the kernel says so itself, as it does without a network.
        let Sight::Unseen(why) = takes_connections(Ipv4Addr::BROADCAST, 80, Duration::from_secs(5)).await else {
            panic!("nobody was asked");
        };
        assert!(why.contains("255.255.255.255") && why.contains("vmsup-network.conf"), "{why}");
    }
}
