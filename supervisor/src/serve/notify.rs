//! Telling a service manager how it goes: sd_notify(3), datagrams of `NAME=value` lines to the socket that the environment
//! names. Nothing is received. Where there is no service manager, all of this is silent.
//!
//! The socket is connected before the supervisor confines itself; afterwards a message is one `write(2)`. Nothing here goes
//! on to the jailer: it is started with an environment of its own.

use super::tick::{Beats, PERIOD, Tick};
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// The way to the service manager, where there is one.
#[derive(Debug, Default)]
pub struct Notify {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// As the environment says: `NOTIFY_SOCKET`, and `WATCHDOG_USEC` where it is meant for this process.
    ///
    /// A service manager that cannot be reached is said and does without: it is the one that gives up on us, not we on it.
    pub fn of_environment() -> Notify {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Notify::default() };
        let socket = connected(&name).inspect_err(|error| {
            tracing::warn!(socket = %name.display(), %error, "cannot tell the service manager anything");
        });
        let number = |name: &str| std::env::var(name).ok()?.parse().ok();
        let own = u64::from(std::process::id());
        Notify { socket: socket.ok(), watchdog: pings(number("WATCHDOG_USEC"), number("WATCHDOG_PID"), own) }
    }

    /// All VMs of the predecessor are known again, and the socket accepts.
    pub fn ready(&self) {
        self.say("READY=1");
    }

    /// The supervisor leaves. Its VMs do not.
    pub fn stopping(&self) {
        self.say("STOPPING=1\nSTATUS=Leaving; VMs go on.");
    }

    /// Says how many VMs live whenever that has changed, and pings the watchdog where there is one: with the beat of all VMs,
    /// so that the two make one wake-up. For ever; wakes nobody where nothing changes and no watchdog was asked for.
    pub async fn keep_told(&self, mut living: watch::Receiver<usize>, tick: &Arc<Tick>) {
        if self.socket.is_none() {
            return;
        }
        let mut watchdog = self.watchdog.map(|every| Pings::new(every, tick));
        self.say(&status(*living.borrow_and_update()));
        loop {
            tokio::select! {
                changed = living.changed() => match changed {
                    Ok(()) => self.say(&status(*living.borrow_and_update())),
                    // The registry is gone: so is the supervisor, soon.
                    Err(_) => return,
                },
                () = next(watchdog.as_mut()) => self.say("WATCHDOG=1"),
            }
        }
    }

    /// Never waits: a service manager that does not read misses a line.
    fn say(&self, lines: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(lines.as_bytes())
        {
            tracing::debug!(%error, "the service manager did not take a message");
        }
    }
}

/// When to ping.
enum Pings {
    /// With the beat of all VMs, which is there for this, too.
    Beats(Beats),
    /// More often, because the watchdog gives less time than two beats.
    Own(Interval),
}

impl Pings {
    fn new(every: Duration, tick: &Arc<Tick>) -> Pings {
        if every >= PERIOD {
            return Pings::Beats(tick.listen());
        }
        let mut ticks = interval_at(Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Pings::Own(ticks)
    }
}

async fn next(pings: Option<&mut Pings>) {
    match pings {
        Some(Pings::Beats(beats)) => beats.next().await,
        Some(Pings::Own(ticks)) => drop(ticks.tick().await),
        None => std::future::pending().await,
    }
}

fn status(living: usize) -> String {
    match living {
        0 => "STATUS=No VM runs.".into(),
        1 => "STATUS=1 VM runs.".into(),
        n => format!("STATUS={n} VMs run."),
    }
}

/// A path, or the name of an abstract socket after `@`.
fn connected(name: &OsStr) -> std::io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(std::io::Error::other("it is neither a path nor an abstract name")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// How often to ping: twice in the time that the watchdog gives. `None` where no watchdog is meant for this process.
fn pings(usec: Option<u64>, pid: Option<u64>, own: u64) -> Option<Duration> {
    let given = usec.filter(|usec| *usec > 0 && pid.is_none_or(|pid| pid == own))?;
    Some(Duration::from_micros(given / 2).max(Duration::from_millis(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::testing::TempDir;

    fn manager() -> (TempDir, UnixDatagram, Notify) {
        let temp = TempDir::new();
        let path = temp.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let notify = Notify { socket: Some(connected(path.as_os_str()).unwrap()), watchdog: None };
        (temp, manager, notify)
    }

    fn heard(manager: &UnixDatagram) -> String {
        let mut buffer = [0; 200];
        let count = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    #[test]
    fn the_service_manager_hears_that_we_are_ready_and_that_we_leave() {
        let (_temp, manager, notify) = manager();
        notify.ready();
        assert_eq!(heard(&manager), "READY=1");
        notify.stopping();
        assert!(heard(&manager).starts_with("STOPPING=1\nSTATUS="));
    }

    #[test]
    fn a_name_after_an_at_sign_is_an_abstract_socket() {
        let name = format!("vmsup-notify-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        connected(OsStr::new(&format!("@{name}"))).unwrap().send(b"x").unwrap();
        assert_eq!(heard(&manager), "x");
        assert!(connected(OsStr::new("relative")).is_err());
    }

    #[test]
    fn a_service_manager_that_does_not_read_holds_up_nobody() {
        let (_temp, manager, notify) = manager();
        for _ in 0..10_000 {
            notify.ready();
        }
        assert_eq!(heard(&manager), "READY=1");
    }

    #[tokio::test(start_paused = true)]
    async fn each_change_is_said_once_and_the_watchdog_hears_of_us_with_every_beat() {
        let (_temp, manager, mut notify) = manager();
        notify.watchdog = pings(Some(90_000_000), None, 1);
        let (count, living) = watch::channel(0);
        let tick = Tick::new(PERIOD);
        tokio::join!(notify.keep_told(living, &tick), async {
            // Changes come faster than the beats, and put off none of them.
            for more in 1..=4 {
                tokio::time::sleep(PERIOD * 2 / 3).await;
                count.send(more).unwrap();
            }
            tokio::task::yield_now().await;
            drop(count);
        });
        let all: Vec<_> = (0..7).map(|_| heard(&manager)).collect();
        let (none, one, two) = ("STATUS=No VM runs.", "STATUS=1 VM runs.", "STATUS=2 VMs run.");
        let (three, four) = ("STATUS=3 VMs run.", "STATUS=4 VMs run.");
        assert_eq!(all, [none, one, "WATCHDOG=1", two, &all[4], &all[5], four]);
        assert!(all[4..6].contains(&three.into()) && all[4..6].contains(&"WATCHDOG=1".into()), "{all:?}");
        manager.set_nonblocking(true).unwrap();
        assert!(manager.recv(&mut [0; 10]).is_err(), "nothing else was said");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watchdog_of_less_time_than_two_beats_is_pinged_more_often() {
        let (_temp, manager, mut notify) = manager();
        notify.watchdog = pings(Some(10_000_000), None, 1);
        let (count, living) = watch::channel(0);
        let tick = Tick::new(PERIOD);
        tokio::join!(notify.keep_told(living, &tick), async {
            tokio::time::sleep(Duration::from_secs(11)).await;
            drop(count);
        });
        let all: Vec<_> = (0..3).map(|_| heard(&manager)).collect();
        assert_eq!(all, ["STATUS=No VM runs.", "WATCHDOG=1", "WATCHDOG=1"]);
    }

    #[test]
    fn the_watchdog_is_ours_only_where_it_names_us() {
        assert_eq!(pings(None, None, 7), None);
        assert_eq!(pings(Some(0), None, 7), None);
        assert_eq!(pings(Some(90_000_000), Some(8), 7), None, "another process's");
        assert_eq!(pings(Some(90_000_000), Some(7), 7), Some(Duration::from_secs(45)));
        assert_eq!(pings(Some(10_000_000), None, 7), Some(Duration::from_secs(5)), "twice in its time");
    }
}
